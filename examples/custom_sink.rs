//! Uses a handler instead of a loop: counts bytes by program, and prints them when no result arrives for a moment.
//!
//! Run as root: `cargo run --example custom_sink -- 10` runs for ten seconds, and leaves no probes behind.

#![allow(clippy::print_stdout, reason = "a program prints")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use socktrail::{Clock, Flow, Handler, Monitor, Owner};

/// Bytes sent and received, by the name of a program.
struct Totals {
    bytes: BTreeMap<String, (u64, u64)>,
    changed: bool,
    until: Instant,
}

impl Handler for Totals {
    fn flow(&mut self, flow: Flow, _clock: Clock) -> ControlFlow<()> {
        let name = match &flow.owner {
            Owner::Process(process) => process.image.name().unwrap_or("?").to_owned(),
            other => other.to_string(),
        };
        let (sent, received) = self.bytes.entry(name).or_default();
        *sent += flow.sent.bytes;
        *received += flow.received.bytes;
        self.changed = true;
        ControlFlow::Continue(())
    }

    fn idle(&mut self) -> ControlFlow<()> {
        if std::mem::take(&mut self.changed) {
            for (name, (sent, received)) in &self.bytes {
                println!("{name}: {sent} bytes sent, {received} received");
            }
        }
        if Instant::now() < self.until { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(60), |text| text.parse())?;
    let monitor = Monitor::builder().flow_termination_timeout(Duration::from_secs(1)).start()?;
    let until = Instant::now() + Duration::from_secs(seconds);
    monitor.run(&mut Totals { bytes: BTreeMap::new(), changed: false, until });
    Ok(())
}
