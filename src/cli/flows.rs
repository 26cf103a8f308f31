//! `socktrail flows`: from the monitor to stdout.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use signal_hook::consts::SIGUSR1;
use socktrail::agent::Agent;
use socktrail::ecs::{Context, Directions};
use socktrail::host::Host;
use socktrail::monitor::{Monitor, Options, Received};
use socktrail::output::{Format, Lines};
use socktrail::users::Users;

use super::args::FlowsArgs;
use super::exit::Status;
use super::interrupt::Interrupts;
use super::source::FlowSource;
use super::users;

/// How long a signal or a reader that has gone may go unnoticed.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the command.
pub fn run(args: FlowsArgs, quiet: bool) -> anyhow::Result<Status> {
    let mut interrupts = Interrupts::catch().context("catching signals")?;
    let stdout = io::stdout();
    let format = match args.format {
        Some(format) => format.into(),
        None if stdout.is_terminal() => Format::Text,
        None => Format::Ecs,
    };
    let stats = args.stats.then(Statistics::on_signal).transpose().context("catching SIGUSR1")?;
    let limits = Limits { count: args.count, duration: args.duration.map(Duration::from) };
    let users = users::start()?;
    let monitor = Monitor::builder().options(options(args)).users(users.clone()).start()?;
    announce(&monitor, quiet);

    let mut lines = Lines::new(stdout.lock(), format);
    let written = (if stdout.is_terminal() { lines.header() } else { Ok(()) }).and_then(|()| {
        let interrupts = || {
            stats.iter().for_each(|stats| stats.tell_if_asked(|| monitor.stats()));
            interrupts.count()
        };
        let mut ends = Ends { interrupts, reader_is_gone: || is_gone(&stdout) };
        pump(&monitor, &users, &mut lines, limits, &mut ends)
    });
    stats.iter().for_each(|stats| stats.tell(&monitor.stats()));
    match written {
        Ok(End::Asked) => Ok(Status::Success),
        Ok(End::ByItself) => {
            anyhow::bail!("the monitor ended by itself; this is a bug: please report what was said before")
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Status::Success),
        Err(error) => Err(error).context("writing to stdout"),
    }
}

fn options(args: FlowsArgs) -> Options {
    let mut options = Options::default();
    options.tracefs_path = args.tracefs_path;
    options.enable_ipv6 = args.enable_ipv6;
    options.source = args.source.source;
    options.guess_timeout = args.source.guess_timeout.into();
    options.flow_inactive_timeout = args.flow_inactive_timeout.into();
    options.flow_termination_timeout = args.flow_termination_timeout.into();
    options.socket_inactive_timeout = args.socket_inactive_timeout.into();
    options.ring_size_exponent = args.ring_size_exponent;
    options.flow_report_interval = args.flow_report_interval.map(Duration::from);
    options.perf_queue_size = args.perf_queue_size;
    options.lost_queue_size = args.lost_queue_size;
    options.max_flows = args.max_flows;
    options.max_sockets = args.max_sockets;
    options.max_processes = args.max_processes;
    options.filter = args.filter.into();
    args.dns.apply(&mut options.dns);
    args.without.apply(&mut options);
    options
}

/// Says what is watched. The line that begins with `socktrail: ready` can be waited for.
pub fn announce(monitor: &Monitor, quiet: bool) {
    let summary = monitor.describe();
    for lost in &summary.lost {
        tracing::warn!("not seen: {lost}");
    }
    if !quiet {
        let (probes, cpus) = (summary.features.len(), summary.cpus);
        // Nobody to tell is no failure.
        let _ = writeln!(io::stderr(), "socktrail: ready, watching {probes} probes on {cpus} CPUs");
    }
}

/// `--stats`: a line of JSON on stderr.
pub struct Statistics {
    asked: Arc<AtomicBool>,
}

impl Statistics {
    /// Lets SIGUSR1 ask for them.
    pub fn on_signal() -> io::Result<Self> {
        let asked = Arc::default();
        signal_hook::flag::register(SIGUSR1, Arc::clone(&asked))?;
        Ok(Self { asked })
    }

    /// Tells what was counted if a signal has asked since.
    pub fn tell_if_asked<T: Serialize>(&self, stats: impl FnOnce() -> T) {
        if self.asked.swap(false, Ordering::Relaxed) {
            self.tell(&stats());
        }
    }

    /// Tells what was counted.
    pub fn tell(&self, stats: &impl Serialize) {
        let line = serde_json::to_string(stats).unwrap_or_default();
        // Nobody to tell is no failure.
        let _ = writeln!(io::stderr(), "socktrail: stats {line}");
    }
}

/// Whether the other end of stdout was closed. A terminal or a file never is.
pub fn is_gone(stdout: &io::Stdout) -> bool {
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let ready = poll(&mut fds, PollTimeout::ZERO).unwrap_or(0);
    ready > 0 && fds.iter().filter_map(PollFd::revents).any(|events| events.contains(PollFlags::POLLERR))
}

/// When to stop by ourselves.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    count: Option<u64>,
    duration: Option<Duration>,
}

/// What may end the work from outside.
struct Ends<I, R> {
    /// How many signals have asked to end: at the first, what is alive is still written; at the second it is not.
    interrupts: I,
    /// Whether nobody reads any more.
    reader_is_gone: R,
}

/// Why the work ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// A limit was reached, a signal came, or the reader went.
    Asked,
    /// The source ended though nobody asked it to.
    ByItself,
}

/// Writes what comes until it is enough. Lines are flushed as soon as no more wait.
fn pump<W: Write>(
    source: &impl FlowSource,
    users: &Users,
    lines: &mut Lines<W>,
    limits: Limits,
    ends: &mut Ends<impl FnMut() -> usize, impl FnMut() -> bool>,
) -> io::Result<End> {
    let host = Host::gather();
    let agent = Agent::of(&host);
    let start = Instant::now();
    let mut stopping = false;
    let mut written = 0;
    loop {
        let now = Instant::now();
        let left = limits.duration.map(|duration| duration.saturating_sub(now - start));
        let interrupts = (ends.interrupts)();
        if interrupts > 1 {
            break;
        }
        if !stopping && (interrupts > 0 || left == Some(Duration::ZERO)) {
            stopping = true;
            source.stop();
        }
        let timeout = match left {
            _ if lines.is_unflushed() => Duration::ZERO,
            Some(left) if !stopping => left.min(PAUSE),
            _ => PAUSE,
        };
        match source.recv(timeout) {
            Received::Flow(flow) => {
                let (clock, names) = (source.clock(), users.at(now));
                let directions = Directions::default();
                lines.write(&flow, &Context { host: &host, agent: &agent, clock, names: &names, directions })?;
                written += 1;
                if limits.count == Some(written) {
                    break;
                }
            }
            Received::Idle if lines.is_unflushed() => lines.flush()?,
            Received::Idle if (ends.reader_is_gone)() => break,
            Received::Idle | Received::Name(_) | Received::Socket(_) | Received::Existing(_) | Received::Loss(_) => {}
            Received::Ended if stopping => break,
            Received::Ended => {
                lines.flush()?;
                return Ok(End::ByItself);
            }
        }
    }
    lines.flush()?;
    Ok(End::Asked)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use socktrail::clock::{Clock, Readings, Timestamp};
    use socktrail::event::{Endpoint, Transport};
    use socktrail::flow::{Counters, Direction, Flow, Inexact, Outcome, Owner, Reason};

    use super::*;

    /// Hands out a script; live flows after it was stopped.
    #[derive(Default)]
    struct Script {
        before: RefCell<VecDeque<Received>>,
        live: Cell<u64>,
        stopped: Cell<bool>,
    }

    impl FlowSource for Script {
        fn recv(&self, timeout: Duration) -> Received {
            if let Some(received) = self.before.borrow_mut().pop_front() {
                return received;
            }
            match (self.stopped.get(), self.live.get()) {
                (false, _) => {
                    std::thread::sleep(timeout);
                    Received::Idle
                }
                (true, 0) => Received::Ended,
                (true, live) => {
                    self.live.set(live - 1);
                    flow()
                }
            }
        }

        fn stop(&self) {
            self.stopped.set(true);
        }

        fn clock(&self) -> Clock {
            Clock::from_readings(Readings { kernel: 0, boot: 0, wall: Timestamp::default() })
        }
    }

    fn flow() -> Received {
        Received::Flow(Box::new(Flow {
            number: 1,
            transport: Transport::Udp,
            local: Endpoint::new([192, 0, 2, 1], 4000),
            remote: Endpoint::new([192, 0, 2, 2], 53),
            sock: 1,
            net: 1,
            direction: Direction::Egress,
            owner: Owner::Unknown,
            start: 0,
            end: 0,
            sent: Counters::default(),
            received: Counters::default(),
            dropped: Counters::default(),
            complete: true,
            is_final: true,
            outcome: Outcome::Success,
            reason: Reason::Inactive,
            inexact: Inexact::default(),
            last_user: None,
            domain: None,
        }))
    }

    fn script(before: Vec<Received>, live: u64) -> Script {
        Script { before: RefCell::new(before.into()), live: Cell::new(live), stopped: Cell::new(false) }
    }

    /// The end and the number of lines.
    fn pumped(script: &Script, limits: Limits, interrupts: impl FnMut() -> usize) -> (End, usize) {
        let mut written = Vec::new();
        let mut lines = Lines::new(&mut written, Format::Ecs);
        let end = pump(script, &Users::new(), &mut lines, limits, &mut Ends { interrupts, reader_is_gone: || false })
            .unwrap();
        drop(lines);
        (end, written.iter().filter(|&&byte| byte == b'\n').count())
    }

    #[test]
    fn a_count_ends_without_the_rest() {
        let limits = Limits { count: Some(2), ..Limits::default() };
        assert_eq!(pumped(&script(vec![flow(), Received::Idle, flow(), flow()], 5), limits, || 0), (End::Asked, 2));
    }

    #[test]
    fn a_duration_ends_with_what_is_alive() {
        let limits = Limits { duration: Some(Duration::from_millis(20)), ..Limits::default() };
        assert_eq!(pumped(&script(vec![flow()], 3), limits, || 0), (End::Asked, 4));
    }

    #[test]
    fn the_first_signal_flushes_and_the_second_does_not() {
        assert_eq!(pumped(&script(vec![], 3), Limits::default(), || 1), (End::Asked, 3));
        assert_eq!(pumped(&script(vec![flow()], 3), Limits::default(), || 2), (End::Asked, 0));
    }

    #[test]
    fn an_end_that_nobody_asked_for_is_told_after_what_was_there() {
        let script = script(vec![flow(), Received::Ended], 0);
        assert_eq!(pumped(&script, Limits::default(), || 0), (End::ByItself, 1));
    }

    #[test]
    fn lines_are_flushed_when_no_more_wait() {
        struct Watched<'a>(&'a Cell<usize>);
        impl Write for Watched<'_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.set(self.0.get() + bytes.len());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (script, written) = (script(vec![flow()], 0), Cell::new(0));
        let mut lines = Lines::new(Watched(&written), Format::Ecs);
        // The reader goes once it has got its line: were that kept back, this would not end.
        let mut ends = Ends { interrupts: || 0, reader_is_gone: || written.get() > 0 };
        assert_eq!(pump(&script, &Users::new(), &mut lines, Limits::default(), &mut ends).unwrap(), End::Asked);
        assert!(!script.stopped.get());
    }

    #[test]
    fn a_closed_pipe_is_noticed_and_an_open_one_is_open() {
        assert!(!is_gone(&io::stdout()));
    }
}
