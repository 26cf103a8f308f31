//! `socktrail sensors` and `socktrail unlock`.

mod args;

use std::io::{self, StdoutLock, Write};
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;
use socktrail::control::{self, Reply, Request};
use socktrail::monitor::{self, Monitor, Options, Received};
use socktrail::output::LineBuffer;
use socktrail::sensors;
use socktrail::socket_event::Actions;

use super::exit::Status;
use super::print::{Print, Signals, print};
use crate::agent::RunningSensors;
use crate::receive::announce;

pub use self::args::{SensorsArgs, UnlockArgs};

/// Runs `socktrail sensors`.
pub fn run(args: &SensorsArgs, mut options: Options, quiet: bool) -> anyhow::Result<Status> {
    let mut sensors = sensors::read(&args.file)?;
    sensors.retain(|sensor| sensor.belongs_to(&args.profile));
    anyhow::ensure!(!sensors.is_empty(), "{} has no sensor with this profile", args.file.display());
    let signals = Signals::catch(args.limits.stats)?;
    // Only the results that sensors use.
    (options.flows, options.dns.enabled, options.socket_events) = (false, false, Actions::SENSORS);
    args.without.apply(&mut options);
    let monitor = Monitor::start(&options)?;
    let sensors = RunningSensors::start(sensors, &args.control, options.max_sockets)?;
    announce(&monitor, quiet);
    let lines = LineBuffer::new(io::stdout().lock());
    print(&monitor, (&args.limits).into(), signals, SensorEvents { monitor: &monitor, sensors, lines })
}

/// Prints the events of sensors.
struct SensorEvents<'a> {
    monitor: &'a Monitor,
    sensors: RunningSensors,
    lines: LineBuffer<StdoutLock<'a>>,
}

impl Print for SensorEvents<'_> {
    fn print(&mut self, received: &Received, now: Instant, max_lines: u64) -> io::Result<u64> {
        let mut written = 0;
        for event in self.sensors.take(received, now).iter().take(usize::try_from(max_lines).unwrap_or(usize::MAX)) {
            self.lines.json(event)?;
            written += 1;
        }
        Ok(written)
    }

    fn is_unflushed(&self) -> bool {
        self.lines.is_unflushed()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }

    fn stats(&self) -> Value {
        let counted = Counted { monitor: self.monitor.stats(), sensors: self.sensors.stats() };
        serde_json::to_value(counted).unwrap_or_default()
    }
}

/// Runs `socktrail unlock`.
pub fn unlock(args: UnlockArgs, mut out: impl Write) -> anyhow::Result<Status> {
    match control::ask(&args.control, &Request::Unlock(args.eid.clone()))? {
        Reply::Unlocked(0) => anyhow::bail!("no locked event matches {:?}", args.eid),
        Reply::Unlocked(count) => writeln!(out, "{count} unlocked").context("writing to stdout")?,
        Reply::Refused(why) => anyhow::bail!("refused: {why}"),
    }
    Ok(Status::Success)
}

/// The output of `--stats`.
#[derive(Serialize)]
struct Counted {
    #[serde(flatten)]
    monitor: monitor::MonitorStats,
    #[serde(flatten)]
    sensors: sensors::SensorStats,
}
