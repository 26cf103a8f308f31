//! Prints flows. Run it as root, on a kernel with kprobes. Ctrl-C kills it, so its probes stay until the next start removes them. A
//! program that drops its monitor leaves no probes behind.
//!
//! `cargo vm run --example embed -- 'embed & sleep 5; nc 127.0.0.1 1 </dev/null; sleep 8; kill $!'` runs it in a guest.

#![allow(clippy::print_stdout, reason = "a program prints")]

use socktrail::Monitor;

fn main() -> Result<(), socktrail::Error> {
    let monitor = Monitor::builder().start()?;
    for flow in monitor.flows() {
        println!("{} -> {} {} bytes, {}", flow.local, flow.remote, flow.sent.bytes, flow.owner);
    }
    Ok(())
}
