//! The loop that receives flows and events from a monitor or a recording, and passes them to a [`Receiver`]: a command that
//! prints them, or the agent.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use socktrail::clock::Clock;
use socktrail::monitor::{Monitor, Received};

/// The maximum delay until a signal or a closed pipe is noticed.
const PAUSE: Duration = Duration::from_millis(100);

/// A source of flows and events: a monitor or a recording.
pub trait FlowSource {
    /// The next result. Waits at most `timeout`.
    fn recv(&self, timeout: Duration) -> Received;
    /// Asks the source to end. Live flows are still handed out.
    fn stop(&self);
    /// How the times of flows relate to wall time.
    fn clock(&self) -> Clock;
    /// An error if the source has ended without being asked to and should not have.
    fn ended(&self) -> anyhow::Result<()>;
}

impl FlowSource for Monitor {
    fn recv(&self, timeout: Duration) -> Received {
        self.recv(timeout)
    }

    fn stop(&self) {
        self.stop();
    }

    fn clock(&self) -> Clock {
        self.clock()
    }

    fn ended(&self) -> anyhow::Result<()> {
        anyhow::bail!(
            "the monitor ended unexpectedly; this is a bug: please report it, with the messages before this one"
        )
    }
}

/// The consumer of the results.
pub trait Receiver {
    /// Does periodic work, at least ten times a second. Returns how many signals have asked to end so far: after the first,
    /// live flows are still taken; after the second, they are discarded.
    fn tick(&mut self, now: Instant) -> anyhow::Result<usize>;

    /// Called when the source is asked to end. Returns the deadline for the remaining results; `None` if there is none.
    fn stopping(&mut self, _now: Instant) -> Option<Instant> {
        None
    }

    /// Whether the receiver can take a result now.
    fn has_room(&self) -> bool {
        true
    }

    /// Takes a result, as at most `most` lines. Returns the number of lines.
    fn take(&mut self, received: &Received, now: Instant, most: u64) -> anyhow::Result<u64>;

    /// Whether there is something to flush.
    fn is_unflushed(&self) -> bool;

    /// Flushes everything that was taken.
    fn flush(&mut self) -> anyhow::Result<()>;

    /// Whether the reader has closed its end.
    fn reader_is_gone(&self) -> bool {
        false
    }
}

/// When to end without a signal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// After this number of lines. Live flows are then discarded.
    pub count: Option<u64>,
    /// After this time. Live flows are then still taken.
    pub duration: Option<Duration>,
}

/// Receives until a limit is reached, a signal arrives or the reader closes its end. Results are flushed as soon as no
/// more are waiting.
///
/// # Errors
/// The receiver fails, or the source ended unexpectedly.
pub fn receive(source: &impl FlowSource, limits: Limits, receiver: &mut impl Receiver) -> anyhow::Result<()> {
    let start = Instant::now();
    let (mut left, mut stopping, mut deadline) = (limits.count.unwrap_or(u64::MAX), false, None);
    while left > 0 {
        let now = Instant::now();
        let signals = receiver.tick(now)?;
        if signals > 1 || deadline.is_some_and(|deadline| now >= deadline) {
            break;
        }
        let time = limits.duration.map(|duration| duration.saturating_sub(now - start));
        if !stopping && (signals > 0 || time == Some(Duration::ZERO)) {
            (stopping, deadline) = (true, receiver.stopping(now));
            source.stop();
        }
        if !receiver.has_room() {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let timeout = match time {
            _ if receiver.is_unflushed() => Duration::ZERO,
            Some(time) if !stopping => time.min(PAUSE),
            _ => PAUSE,
        };
        let received = source.recv(timeout);
        left -= receiver.take(&received, now, left)?;
        match received {
            Received::Idle if receiver.is_unflushed() => receiver.flush()?,
            Received::Idle if receiver.reader_is_gone() => break,
            Received::Ended if stopping => break,
            Received::Ended => {
                receiver.flush()?;
                return source.ended();
            }
            _ => {}
        }
    }
    receiver.flush()
}

/// Prints that the monitor is ready, and logs which features are missing. Programs can wait for the line that begins with
/// `socktrail: ready`.
pub fn announce(monitor: &Monitor, quiet: bool) {
    let summary = monitor.describe();
    for lost in &summary.lost {
        tracing::warn!("not seen: {lost}");
    }
    if !quiet {
        let (probes, cpus) = (summary.features.len(), summary.cpus);
        // A closed stderr is not a failure.
        let _ = writeln!(io::stderr(), "socktrail: ready, watching {probes} probes on {cpus} CPUs");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use socktrail::clock::{Readings, Timestamp};
    use socktrail::{BootTime, MonotonicTime};

    use super::*;

    /// Hands out scripted results, and `live` lines after it was stopped.
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
                    line()
                }
            }
        }

        fn stop(&self) {
            self.stopped.set(true);
        }

        fn clock(&self) -> Clock {
            Clock::from_readings(Readings {
                kernel: MonotonicTime::ZERO,
                boot: BootTime::ZERO,
                wall: Timestamp::default(),
            })
        }

        fn ended(&self) -> anyhow::Result<()> {
            anyhow::bail!("by itself")
        }
    }

    /// A result that makes one line.
    fn line() -> Received {
        Received::Existing(Box::default())
    }

    fn script(before: Vec<Received>, live: u64) -> Script {
        Script { before: RefCell::new(before.into()), live: Cell::new(live), stopped: Cell::new(false) }
    }

    /// Counts lines.
    #[derive(Default)]
    struct Counter {
        signals: usize,
        taken: u64,
        flushed: u64,
        reader_goes_after: Option<u64>,
        /// The deadline after a stop.
        patience: Option<Duration>,
        rounds_without_room: Cell<u32>,
    }

    impl Receiver for Counter {
        fn tick(&mut self, _now: Instant) -> anyhow::Result<usize> {
            Ok(self.signals)
        }

        fn stopping(&mut self, now: Instant) -> Option<Instant> {
            self.patience.map(|patience| now + patience)
        }

        fn has_room(&self) -> bool {
            let left = self.rounds_without_room.get();
            self.rounds_without_room.set(left.saturating_sub(1));
            left == 0
        }

        fn take(&mut self, received: &Received, _now: Instant, most: u64) -> anyhow::Result<u64> {
            let lines = most.min(matches!(received, Received::Existing(_)).into());
            self.taken += lines;
            Ok(lines)
        }

        fn is_unflushed(&self) -> bool {
            self.flushed < self.taken
        }

        fn flush(&mut self) -> anyhow::Result<()> {
            self.flushed = self.taken;
            Ok(())
        }

        fn reader_is_gone(&self) -> bool {
            self.reader_goes_after.is_some_and(|lines| self.flushed >= lines)
        }
    }

    /// Whether it succeeded, and the number of flushed lines.
    fn received(script: &Script, limits: Limits, mut counter: Counter) -> (bool, u64) {
        let ended = receive(script, limits, &mut counter);
        (ended.is_ok(), counter.flushed)
    }

    #[test]
    fn a_count_ends_without_the_rest() {
        let limits = Limits { count: Some(2), ..Limits::default() };
        let script = script(vec![line(), Received::Idle, line(), line()], 5);
        assert_eq!(received(&script, limits, Counter::default()), (true, 2));
    }

    #[test]
    fn a_duration_ends_with_what_is_alive() {
        let limits = Limits { duration: Some(Duration::from_millis(20)), ..Limits::default() };
        assert_eq!(received(&script(vec![line()], 3), limits, Counter::default()), (true, 4));
    }

    #[test]
    fn the_first_signal_takes_in_what_is_alive_and_the_second_does_not() {
        let signals = |signals| Counter { signals, ..Counter::default() };
        assert_eq!(received(&script(vec![], 3), Limits::default(), signals(1)), (true, 3));
        assert_eq!(received(&script(vec![line()], 3), Limits::default(), signals(2)), (true, 0));
    }

    #[test]
    fn results_that_take_too_long_at_the_end_are_discarded() {
        let patience = Some(Duration::ZERO);
        let counter = Counter { signals: 1, patience, ..Counter::default() };
        let limits = Limits::default();
        assert_eq!(received(&script(vec![], u64::MAX), limits, counter), (true, 1));
    }

    #[test]
    fn an_unexpected_end_is_reported_after_the_remaining_results() {
        let script = script(vec![line(), Received::Ended], 0);
        assert_eq!(received(&script, Limits::default(), Counter::default()), (false, 1));
    }

    #[test]
    fn lines_are_flushed_when_no_more_wait() {
        let script = script(vec![line()], 0);
        // The reader leaves once it has its line. If the line were held back, this test would not end.
        let counter = Counter { reader_goes_after: Some(1), ..Counter::default() };
        assert_eq!(received(&script, Limits::default(), counter), (true, 1));
        assert!(!script.stopped.get());
    }

    #[test]
    fn nothing_is_taken_in_while_there_is_no_room() {
        let counter = Counter { rounds_without_room: Cell::new(3), ..Counter::default() };
        let (script, limits) = (script(vec![line(), line()], 0), Limits { count: Some(2), ..Limits::default() });
        assert_eq!(received(&script, limits, counter), (true, 2));
    }
}
