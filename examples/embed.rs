//! Flows in a program of your own: run as root, on a kernel with kprobes. Ctrl-C ends it, and leaves probes behind that the
//! next start sweeps up: a program that wants to leave nothing drops its monitor.
//!
//! `cargo vm run --example embed -- 'embed & sleep 5; nc 127.0.0.1 1 </dev/null; sleep 8; kill $!'` runs it in a guest.

#![allow(clippy::print_stdout, reason = "a program prints")]

use socktrail::monitor::Monitor;

fn main() -> Result<(), socktrail::Error> {
    let monitor = Monitor::builder().start()?;
    for flow in monitor.flows() {
        println!("{} -> {} {} bytes, {}", flow.local, flow.remote, flow.sent.bytes, flow.owner);
    }
    Ok(())
}
