//! Flows in a program of your own: run as root, on a kernel with kprobes.

#![allow(clippy::print_stdout, reason = "a program prints")]

use std::time::Duration;

use socktrail::monitor::{Monitor, Options, Received};

fn main() -> Result<(), socktrail::Error> {
    let monitor = Monitor::start(&Options::default())?;
    loop {
        match monitor.recv(Duration::from_secs(1)) {
            Received::Flow(flow) => println!("{} -> {} {:?}", flow.local, flow.remote, flow.owner),
            Received::Ended => return Ok(()),
            _ => {}
        }
    }
}
