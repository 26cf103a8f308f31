//! `socktrail sensors` and `socktrail unlock`.

mod args;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use socktrail::control::{self, Control, Reply, Request};
use socktrail::monitor::{self, Monitor, Received};
use socktrail::output::JsonFormatter;
use socktrail::sensors::{self, Engine, Limits, Resolver, Sensor, SensorEvent};

use super::exit::Status;
use super::flows::{Statistics, announce, is_gone};
use super::interrupt::Interrupts;

pub use self::args::{SensorsArgs, UnlockArgs};

/// How long a signal, a client of the control socket or the name of a host may go unnoticed.
const PAUSE: Duration = Duration::from_millis(100);
/// How much is kept before it is written though more is coming, in bytes.
const ENOUGH: usize = 64 * 1024;

/// Runs `socktrail sensors`.
pub fn run(args: &SensorsArgs, quiet: bool) -> anyhow::Result<Status> {
    let mut interrupts = Interrupts::catch().context("catching signals")?;
    let mut sensors = sensors::read(&args.file)?;
    sensors.retain(|sensor| sensor.is_of(&args.profile));
    anyhow::ensure!(!sensors.is_empty(), "{} has no sensor of this profile", args.file.display());
    let stats = args.stats.then(Statistics::on_signal).transpose().context("catching SIGUSR1")?;
    let stdout = io::stdout();
    let monitor = Monitor::start(&args.options())?;
    let mut desk = Desk::new(sensors, args, stdout.lock())?;
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
        let timeout = if desk.buffer.is_empty() { PAUSE } else { Duration::ZERO };
        let received = monitor.recv(timeout);
        let is_idle = matches!(received, Received::Idle);
        match desk.take(&received, now) {
            Ok(End::Limit) => break Ok(()),
            Ok(End::Source) if stopping => break Ok(()),
            Ok(End::Source) => anyhow::bail!("the monitor ended by itself; this is a bug: please report it"),
            Ok(End::NotYet) if interrupts.count() > 1 || (is_idle && is_gone(&stdout)) => break Ok(()),
            Ok(End::NotYet) => {}
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
    fn of<W>(monitor: &Monitor, desk: &Desk<W>) -> Self {
        Self { monitor: monitor.stats(), sensors: desk.engine.stats() }
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

/// The sensors, and what they deal with outside: the names of hosts, who unlocks, and the reader.
struct Desk<W> {
    engine: Engine,
    resolver: Option<Resolver>,
    control: Option<Control>,
    /// When the control socket was last looked at.
    served: Instant,
    out: W,
    buffer: Vec<u8>,
    /// How many events may still be written.
    left: u64,
}

impl<W: Write> Desk<W> {
    fn new(sensors: Vec<Sensor>, args: &SensorsArgs, out: W) -> anyhow::Result<Self> {
        let limits = Limits { sockets: args.max_sockets, ..Limits::default() };
        Ok(Self {
            resolver: sensors.iter().any(|sensor| sensor.dns.is_some()).then(Resolver::start).transpose()?,
            control: sensors.iter().any(|sensor| sensor.locked).then(|| Control::listen(&args.control)).transpose()?,
            engine: Engine::new(sensors, std::process::id(), limits),
            served: Instant::now(),
            out,
            buffer: Vec::with_capacity(ENOUGH),
            left: args.count.unwrap_or(u64::MAX),
        })
    }

    /// Takes in what the monitor says, and does what is due.
    fn take(&mut self, received: &Received, now: Instant) -> io::Result<End> {
        match received {
            Received::Existing(sockets) => self.engine.existing(sockets, now),
            Received::Socket(event) => self.engine.ingest(event, now),
            Received::Ended => self.engine.finish(),
            _ => {}
        }
        self.ask_for_names(now);
        self.serve(now);
        for event in self.engine.take_events() {
            self.write(&event)?;
            if self.left == 0 {
                self.flush()?;
                return Ok(End::Limit);
            }
        }
        let is_end = matches!(received, Received::Ended);
        if is_end || matches!(received, Received::Idle) || self.buffer.len() >= ENOUGH {
            self.flush()?;
        }
        Ok(if is_end { End::Source } else { End::NotYet })
    }

    fn ask_for_names(&mut self, now: Instant) {
        let Some(resolver) = &self.resolver else { return };
        for (ip, name) in resolver.answers() {
            self.engine.answer(ip, name, now);
        }
        self.engine.expire(now);
        for ip in self.engine.take_wanted() {
            if !resolver.ask(ip) {
                self.engine.refuse(ip);
            }
        }
    }

    fn serve(&mut self, now: Instant) {
        let Some(control) = self.control.as_ref().filter(|_| now - self.served >= PAUSE) else { return };
        self.served = now;
        let engine = &mut self.engine;
        control.serve(|Request::Unlock(text)| match engine.unlock(&text) {
            Ok(count) => Reply::Unlocked(count),
            Err(error) => Reply::Refused(error.to_string()),
        });
    }

    fn write(&mut self, event: &SensorEvent) -> io::Result<()> {
        event.serialize(&mut serde_json::Serializer::with_formatter(&mut self.buffer, JsonFormatter))?;
        self.buffer.push(b'\n');
        self.left -= 1;
        Ok(())
    }

    /// What was buffered is gone after this, also when it could not be written: no line is ever written twice.
    fn flush(&mut self) -> io::Result<()> {
        let written = self.out.write_all(&self.buffer).and_then(|()| self.out.flush());
        self.buffer.clear();
        written
    }
}
