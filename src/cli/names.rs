//! `socktrail names`: DNS names as processes look them up.

use std::io::{self, StdoutLock};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use socktrail::clock::Clock;
use socktrail::escape::printable;
use socktrail::monitor::{Monitor, Options, Received};
use socktrail::names::NameLearned;
use socktrail::output::{Format, LineBuffer};

use super::args::{FormatArg, NamesArgs};
use super::exit::Status;
use super::print::{Print, Signals, print};
use crate::receive::{Limits, announce};

/// Runs the command.
pub fn run(args: NamesArgs, mut options: Options, quiet: bool) -> anyhow::Result<Status> {
    let signals = Signals::catch(false)?;
    options.report_names = true;
    anyhow::ensure!(
        options.dns.enabled,
        "names are taken from DNS traffic, which is not captured: remove --dns-enabled false"
    );
    let monitor = Monitor::start(&options)?;
    announce(&monitor, quiet);
    let stdout = io::stdout();
    let format = FormatArg::or_default(args.format, &stdout);
    let limits = Limits { count: None, duration: args.duration.map(Duration::from) };
    print(&monitor, limits, signals, Names { monitor: &monitor, format, lines: LineBuffer::new(stdout.lock()) })
}

/// Prints names.
struct Names<'a> {
    monitor: &'a Monitor,
    format: Format,
    lines: LineBuffer<StdoutLock<'a>>,
}

impl Print for Names<'_> {
    fn print(&mut self, received: &Received, _now: Instant, _max_lines: u64) -> io::Result<u64> {
        let Received::Name(name) = received else { return Ok(0) };
        let clock = self.monitor.clock();
        match self.format {
            Format::Text => self.lines.text(&line(name, clock))?,
            Format::Ecs => self.lines.json(&Report::of(name, clock))?,
        }
        Ok(1)
    }

    fn is_unflushed(&self) -> bool {
        self.lines.is_unflushed()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }

    fn stats(&self) -> Value {
        serde_json::to_value(self.monitor.stats()).unwrap_or_default()
    }
}

fn line(name: &NameLearned, clock: Clock) -> String {
    let addresses: Vec<_> = name.lookup.addresses.iter().map(|address| address.ip.to_string()).collect();
    let process = name.process.image.name().unwrap_or("-");
    format!(
        "{}  {:>7} {:<16} {} -> {}",
        clock.wall(name.time()).millis(),
        name.process.pid,
        printable(process, 64),
        printable(&name.lookup.name, 255),
        addresses.join(" ")
    )
}

/// A line of JSON output.
#[derive(Serialize)]
struct Report {
    #[serde(rename = "@timestamp")]
    timestamp: socktrail::clock::Millis,
    process: ProcessFields,
    name: String,
    addresses: Vec<AddressFields>,
    server: String,
}

#[derive(Serialize)]
struct ProcessFields {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

#[derive(Serialize)]
struct AddressFields {
    ip: std::net::IpAddr,
    /// In seconds.
    ttl: u32,
}

impl Report {
    fn of(name: &NameLearned, clock: Clock) -> Self {
        let NameLearned { process, lookup, .. } = name;
        let addresses = lookup.addresses.iter().map(|address| AddressFields { ip: address.ip, ttl: address.ttl });
        Self {
            timestamp: clock.wall(name.time()).millis(),
            process: ProcessFields { pid: process.pid, name: process.image.name().map(str::to_owned) },
            name: lookup.name.to_string(),
            addresses: addresses.collect(),
            server: lookup.server.to_string(),
        }
    }
}
