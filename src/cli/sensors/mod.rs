//! `socktrail sensors` and `socktrail unlock`.

mod args;
mod desk;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use socktrail::control::{self, Reply, Request};
use socktrail::monitor::{self, Monitor, Received};
use socktrail::output::LineBuffer;
use socktrail::sensors::{self, SensorEvent};

use super::exit::Status;
use super::flows::{Statistics, announce, is_gone};
use super::interrupt::Interrupts;

pub use self::args::{SensorsArgs, UnlockArgs};
pub use self::desk::Desk;

/// How long a signal may go unnoticed.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs `socktrail sensors`.
pub fn run(args: &SensorsArgs, quiet: bool) -> anyhow::Result<Status> {
    let mut interrupts = Interrupts::catch().context("catching signals")?;
    let mut sensors = sensors::read(&args.file)?;
    sensors.retain(|sensor| sensor.is_of(&args.profile));
    anyhow::ensure!(!sensors.is_empty(), "{} has no sensor of this profile", args.file.display());
    let stats = args.stats.then(Statistics::on_signal).transpose().context("catching SIGUSR1")?;
    let stdout = io::stdout();
    let monitor = Monitor::start(&args.options())?;
    let mut desk = Desk::open(sensors, &args.control, args.max_sockets)?;
    let mut writer = Writer { lines: LineBuffer::new(stdout.lock()), left: args.count.unwrap_or(u64::MAX) };
    announce(&monitor, quiet);

    let start = Instant::now();
    let mut stopping = false;
    let written = loop {
        let now = Instant::now();
        let is_over = args.duration.is_some_and(|duration| now - start >= duration.into());
        if !stopping && (is_over || interrupts.count() > 0) {
            stopping = true;
            monitor.stop();
        }
        stats.iter().for_each(|stats| stats.tell_if_asked(|| Counted::of(&monitor, &desk)));
        let timeout = if writer.lines.is_unflushed() { Duration::ZERO } else { PAUSE };
        let received = monitor.recv(timeout);
        match writer.write(&desk.take(&received, now), &received) {
            Ok(End::Limit) => break Ok(()),
            Ok(End::Source) if stopping => break Ok(()),
            Ok(End::Source) => anyhow::bail!("the monitor ended by itself; this is a bug: please report it"),
            Ok(End::NotYet) => {
                let is_idle = matches!(received, Received::Idle);
                if interrupts.count() > 1 || (is_idle && is_gone(&stdout)) {
                    break Ok(());
                }
            }
            Err(error) => break Err(error),
        }
    };
    stats.iter().for_each(|stats| stats.tell(&Counted::of(&monitor, &desk)));
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("writing to stdout"),
        _ => Ok(Status::Success),
    }
}

/// Runs `socktrail unlock`.
pub fn unlock(args: UnlockArgs, mut out: impl Write) -> anyhow::Result<Status> {
    match control::ask(&args.control, &Request::Unlock(args.eid.clone()))? {
        Reply::Unlocked(0) => anyhow::bail!("no event is locked that is, or matches, {:?}", args.eid),
        Reply::Unlocked(count) => writeln!(out, "{count} unlocked").context("writing to stdout")?,
        Reply::Refused(why) => anyhow::bail!("refused: {why}"),
    }
    Ok(Status::Success)
}

/// What `--stats` tells.
#[derive(Serialize)]
struct Counted {
    #[serde(flatten)]
    monitor: monitor::Stats,
    #[serde(flatten)]
    sensors: sensors::Stats,
}

impl Counted {
    fn of(monitor: &Monitor, desk: &Desk) -> Self {
        Self { monitor: monitor.stats(), sensors: desk.stats() }
    }
}

/// Whether that was all.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It was not.
    NotYet,
    /// As many events as were asked for.
    Limit,
    /// Nothing comes any more.
    Source,
}

/// Writes events, up to a number of them.
struct Writer<W: Write> {
    lines: LineBuffer<W>,
    /// How many may still be written.
    left: u64,
}

impl<W: Write> Writer<W> {
    /// Writes what the sensors say to what was received. Lines are flushed as soon as no more wait.
    fn write(&mut self, events: &[SensorEvent], received: &Received) -> io::Result<End> {
        for event in events {
            self.lines.json(event)?;
            self.left -= 1;
            if self.left == 0 {
                self.lines.flush()?;
                return Ok(End::Limit);
            }
        }
        let is_end = matches!(received, Received::Ended);
        if is_end || matches!(received, Received::Idle) {
            self.lines.flush()?;
        }
        Ok(if is_end { End::Source } else { End::NotYet })
    }
}
