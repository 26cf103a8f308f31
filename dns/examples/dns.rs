//! Prints lookups: `cargo run -p socktrail-dns --example dns [INTERFACE]`, as root.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use socktrail_dns::{Capture, Error, Lookup, Options, Tracker};

fn main() -> ExitCode {
    let Err(error) = listen();
    eprintln!("dns: {error}");
    ExitCode::FAILURE
}

fn listen() -> Result<Infallible, Error> {
    let mut options = Options::default();
    options.interface = std::env::args().nth(1);
    let mut capture = Capture::open(&options)?;
    let mut tracker = Tracker::new(&options);
    eprintln!("listening on {}", options.interface.as_deref().unwrap_or("all interfaces"));
    let mut reported = 0;
    loop {
        capture.wait(Some(Duration::from_secs(1)))?;
        capture.drain(&mut |packet| tracker.ingest(packet, &mut print));
        tracker.expire(capture.now());
        let lost = capture.lost();
        if lost > reported {
            eprintln!("{} packets lost", lost - reported);
            reported = lost;
        }
    }
}

fn print(lookup: Lookup) {
    let Lookup { client, server, transport, name, query_type, addresses, .. } = &lookup;
    let took = Duration::from_nanos(lookup.time - lookup.query_time);
    let addresses: Vec<String> =
        addresses.iter().map(|address| format!("{} ({} s)", address.ip, address.ttl)).collect();
    let (query_type, addresses) = (query_type.name(), addresses.join(", "));
    println!("{client} asked {server} over {transport:?} for {name} {query_type}, got {addresses} after {took:?}");
}
