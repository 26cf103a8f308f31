//! `socktrail events`: calls on sockets, one a line.

mod args;
mod write;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use socktrail::monitor::{Monitor, Options, Received};
use socktrail::socket_event::SocketEvent;
use socktrail::users::Users;

use super::exit::Status;
use super::flows::{Statistics, announce, is_gone};
use super::interrupt::Interrupts;
use super::users;

pub use self::args::EventsArgs;
use self::write::Lines;

/// How long a signal or a reader that has gone may go unnoticed.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the command.
pub fn run(args: EventsArgs, quiet: bool) -> anyhow::Result<Status> {
    let mut interrupts = Interrupts::catch().context("catching signals")?;
    let stdout = io::stdout();
    let form = args.form(stdout.is_terminal());
    let actions = args.actions(form)?;
    let stats = args.stats.then(Statistics::on_signal).transpose().context("catching SIGUSR1")?;
    let condition = args.condition;
    let matches = |event: &SocketEvent| condition.as_ref().is_none_or(|condition| condition.matches(event));
    let (count, duration) = (args.count, args.duration.map(Duration::from));
    let mut options = Options::default();
    options.flows = false;
    options.dns.enabled = false;
    options.socket_events = actions;
    options.tracefs_path = args.tracefs_path;
    options.source = args.source.source;
    options.guess_timeout = args.source.guess_timeout.into();
    options.ring_size_exponent = args.ring_size_exponent;
    options.max_sockets = args.max_sockets;
    args.without.apply(&mut options);
    let users = users::start()?;
    let monitor = Monitor::builder().options(options).users(users.clone()).start()?;
    announce(&monitor, quiet);

    let mut lines = Lines::new(stdout.lock(), form);
    let mut is_over = || {
        stats.iter().for_each(|stats| stats.tell_if_asked(|| monitor.stats()));
        interrupts.count() > 0
    };
    let limits = Limits { count, duration };
    let written = (if stdout.is_terminal() { lines.header() } else { Ok(()) })
        .and_then(|()| pump(&monitor, &users, &mut lines, limits, &mut is_over, || is_gone(&stdout), matches));
    stats.iter().for_each(|stats| stats.tell(&monitor.stats()));
    match written {
        Ok(()) => Ok(Status::Success),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Status::Success),
        Err(error) => Err(error).context("writing to stdout"),
    }
}

/// When to stop by ourselves.
#[derive(Debug, Clone, Copy)]
struct Limits {
    count: Option<u64>,
    duration: Option<Duration>,
}

/// Writes events until it is enough. Lines are flushed as soon as no more wait. At the end what the kernel has seen by
/// then is still written.
fn pump<W: io::Write>(
    monitor: &Monitor,
    users: &Users,
    lines: &mut Lines<W>,
    limits: Limits,
    is_over: &mut impl FnMut() -> bool,
    reader_is_gone: impl Fn() -> bool,
    matches: impl Fn(&SocketEvent) -> bool,
) -> io::Result<()> {
    let start = Instant::now();
    let (mut written, mut stopping) = (0, false);
    loop {
        let now = Instant::now();
        let left = limits.duration.map(|duration| duration.saturating_sub(now - start));
        if !stopping && (left == Some(Duration::ZERO) || is_over()) {
            stopping = true;
            monitor.stop();
        }
        let timeout = match left {
            _ if lines.is_unflushed() => Duration::ZERO,
            Some(left) if !stopping => left.min(PAUSE),
            _ => PAUSE,
        };
        match monitor.recv(timeout) {
            Received::Socket(event) if matches(&event) => {
                written += u64::from(lines.write(&event, monitor.clock(), &users.at(now))?);
                if limits.count == Some(written) {
                    break;
                }
            }
            Received::Idle if lines.is_unflushed() => lines.flush()?,
            Received::Idle if reader_is_gone() => break,
            Received::Ended if stopping => break,
            Received::Ended => {
                let problem = "the monitor ended by itself; this is a bug: please report what was said before";
                return Err(io::Error::other(problem));
            }
            _ => {}
        }
    }
    lines.flush()
}
