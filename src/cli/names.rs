//! `socktrail names`: names as they are looked up, by whom.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use socktrail::clock::Clock;
use socktrail::monitor::{Monitor, Options, Received};
use socktrail::output::{LineBuffer, printable};
use socktrail::state::NameLearned;

use super::args::{FormatArg, NamesArgs};
use super::exit::Status;
use super::interrupt::Interrupts;

/// How long a signal may go unnoticed.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the command.
pub fn run(args: NamesArgs, quiet: bool) -> anyhow::Result<Status> {
    let mut interrupts = Interrupts::catch().context("catching signals")?;
    let mut options = Options::default();
    options.tracefs_path = args.tracefs_path;
    options.source = args.source.source;
    options.guess_timeout = args.source.guess_timeout.into();
    options.report_names = true;
    args.dns.apply(&mut options.dns);
    anyhow::ensure!(options.dns.enabled, "names cannot be shown without listening to them: leave --dns-enabled out");
    let monitor = Monitor::start(&options)?;
    super::flows::announce(&monitor, quiet);

    let stdout = io::stdout();
    let text = args.format.map_or(stdout.is_terminal(), |format| matches!(format, FormatArg::Text));
    let (mut lines, started) = (LineBuffer::new(stdout.lock()), Instant::now());
    let mut stopping = false;
    loop {
        let signals = interrupts.count();
        let is_over = signals > 0 || args.duration.is_some_and(|duration| started.elapsed() >= duration.into());
        if is_over && !stopping {
            stopping = true;
            monitor.stop();
        }
        let written = match monitor.recv(PAUSE) {
            Received::Name(name) if text => lines.text(&line(&name, monitor.clock())),
            Received::Name(name) => lines.json(&Report::of(&name, monitor.clock())),
            Received::Ended if stopping => return Ok(Status::Success),
            Received::Ended => anyhow::bail!("the monitor ended by itself; this is a bug: please report it"),
            Received::Idle if super::flows::is_gone(&stdout) => return Ok(Status::Success),
            _ => Ok(()),
        };
        match written.and_then(|()| lines.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Status::Success),
            written => written.context("writing to stdout")?,
        }
        if signals > 1 {
            return Ok(Status::Success);
        }
    }
}

fn line(name: &NameLearned, clock: Clock) -> String {
    let addresses: Vec<_> = name.learned.addresses.iter().map(|address| address.ip.to_string()).collect();
    let process = name.process.image.name().unwrap_or("-");
    format!(
        "{}  {:>7} {:<16} {} -> {}",
        clock.wall(name.learned.time).millis(),
        name.process.pid,
        printable(process, 64),
        printable(&name.learned.name, 255),
        addresses.join(" ")
    )
}

/// A line of JSON.
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
    /// Seconds.
    ttl: u32,
}

impl Report {
    fn of(name: &NameLearned, clock: Clock) -> Self {
        let NameLearned { process, learned } = name;
        let addresses = learned.addresses.iter().map(|address| AddressFields { ip: address.ip, ttl: address.ttl });
        Self {
            timestamp: clock.wall(learned.time).millis(),
            process: ProcessFields { pid: process.pid, name: process.image.name().map(str::to_owned) },
            name: learned.name.to_string(),
            addresses: addresses.collect(),
            server: learned.server.to_string(),
        }
    }
}
