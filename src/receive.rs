//! The loop that receives flows and events from a monitor or a recording, and passes them to a [`Consumer`]: a command that
//! prints them, or the agent.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use socktrail::clock::Clock;
use socktrail::monitor::{Monitor, Received};

/// The maximum delay until a signal or a closed pipe is noticed.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A source of flows and events: a monitor or a recording.
pub trait FlowSource {
    /// The next result. Waits at most `timeout`.
    fn recv(&self, timeout: Duration) -> Received;
    /// Asks the source to end. Live flows are still handed out.
    fn stop(&self);
    /// How the times of flows relate to wall time.
    fn clock(&self) -> Clock;
    /// Called when the source has ended by itself. An error if it should have gone on.
    fn check_end(&self) -> anyhow::Result<()>;
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

    fn check_end(&self) -> anyhow::Result<()> {
        anyhow::bail!(
            "the monitor ended unexpectedly; this is a bug: please report it, with the messages before this one"
        )
    }
}

/// The consumer of the results.
pub trait Consumer {
    /// Called at least ten times a second, for periodic work. Returns the number of requests to end (signals) so far. After the
    /// first, live flows are still taken; after the second, they are discarded.
    fn tick(&mut self, now: Instant) -> anyhow::Result<usize>;

    /// Called when the source is asked to end. Returns the deadline for the remaining results; `None`: no deadline.
    fn stopping(&mut self, _now: Instant) -> Option<Instant> {
        None
    }

    /// Whether the consumer can take a result now.
    fn has_room(&self) -> bool {
        true
    }

    /// Takes a result. Returns how many lines of output it made, at most `max_lines`. They count against [`Limits::count`].
    fn take(&mut self, received: &Received, now: Instant, max_lines: u64) -> anyhow::Result<u64>;

    /// Whether there is something to flush.
    fn is_unflushed(&self) -> bool;

    /// Flushes everything that was taken.
    fn flush(&mut self) -> anyhow::Result<()>;

    /// Whether the process at the other end of standard output is gone.
    fn output_is_closed(&self) -> bool {
        false
    }
}

/// When to end without a signal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Ends after this many lines, without the live flows.
    pub count: Option<u64>,
    /// Ends after this time, with the live flows.
    pub duration: Option<Duration>,
}

/// Receives until a limit is reached, a signal arrives or the output is closed. Results are flushed as soon as no
/// more are waiting.
///
/// # Errors
/// The consumer fails, or the source ended unexpectedly.
pub fn receive(source: &impl FlowSource, limits: Limits, consumer: &mut impl Consumer) -> anyhow::Result<()> {
    let start = Instant::now();
    let (mut left, mut stopping, mut deadline) = (limits.count.unwrap_or(u64::MAX), false, None);
    while left > 0 {
        let now = Instant::now();
        let signals = consumer.tick(now)?;
        if signals > 1 || deadline.is_some_and(|deadline| now >= deadline) {
            break;
        }
        let remaining = limits.duration.map(|duration| duration.saturating_sub(now - start));
        if !stopping && (signals > 0 || remaining == Some(Duration::ZERO)) {
            (stopping, deadline) = (true, consumer.stopping(now));
            source.stop();
        }
        if !consumer.has_room() {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let timeout = if consumer.is_unflushed() {
            Duration::ZERO
        } else {
            remaining.filter(|_| !stopping).map_or(POLL_INTERVAL, |remaining| remaining.min(POLL_INTERVAL))
        };
        let received = source.recv(timeout);
        left -= consumer.take(&received, now, left)?;
        match received {
            Received::Idle if consumer.is_unflushed() => consumer.flush()?,
            Received::Idle if consumer.output_is_closed() => break,
            Received::Ended if stopping => break,
            Received::Ended => {
                consumer.flush()?;
                return source.check_end();
            }
            _ => {}
        }
    }
    consumer.flush()
}

/// Prints that the monitor is ready, and logs what is missing. Programs can wait for the line that begins with
/// `socktrail: ready`.
pub fn announce(monitor: &Monitor, quiet: bool) {
    let summary = monitor.summary();
    for missing in &summary.missing {
        tracing::warn!("missing or limited: {missing}");
    }
    if !quiet {
        let (probes, cpus) = (summary.features.len(), summary.cpus);
        // A closed stderr is not a failure.
        let _ = writeln!(io::stderr(), "socktrail: ready, with {probes} probes on {cpus} CPUs");
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
        until_stopped: RefCell<VecDeque<Received>>,
        live: Cell<u64>,
        stopped: Cell<bool>,
    }

    impl FlowSource for Script {
        fn recv(&self, timeout: Duration) -> Received {
            if let Some(received) = self.until_stopped.borrow_mut().pop_front() {
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

        fn check_end(&self) -> anyhow::Result<()> {
            anyhow::bail!("ended by itself")
        }
    }

    /// A result that `Counter` counts as one line.
    fn line() -> Received {
        Received::Existing(Box::default())
    }

    fn script(until_stopped: Vec<Received>, live: u64) -> Script {
        Script { until_stopped: RefCell::new(until_stopped.into()), live: Cell::new(live), stopped: Cell::new(false) }
    }

    /// Counts lines.
    #[derive(Default)]
    struct Counter {
        signals: usize,
        taken: u64,
        flushed: u64,
        closes_output_after: Option<u64>,
        /// The time from the stop to the deadline.
        patience: Option<Duration>,
        rounds_without_room: Cell<u32>,
        may_take: Cell<bool>,
    }

    impl Consumer for Counter {
        fn tick(&mut self, _now: Instant) -> anyhow::Result<usize> {
            Ok(self.signals)
        }

        fn stopping(&mut self, now: Instant) -> Option<Instant> {
            self.patience.map(|patience| now + patience)
        }

        fn has_room(&self) -> bool {
            let left = self.rounds_without_room.get();
            self.rounds_without_room.set(left.saturating_sub(1));
            self.may_take.set(left == 0);
            left == 0
        }

        fn take(&mut self, received: &Received, _now: Instant, max_lines: u64) -> anyhow::Result<u64> {
            assert!(self.may_take.take(), "there is no room");
            let lines = max_lines.min(matches!(received, Received::Existing(_)).into());
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

        fn output_is_closed(&self) -> bool {
            self.closes_output_after.is_some_and(|lines| self.flushed >= lines)
        }
    }

    /// Runs `receive`. Returns whether it succeeded, and the number of flushed lines.
    fn run(script: &Script, limits: Limits, mut counter: Counter) -> (bool, u64) {
        let ended = receive(script, limits, &mut counter);
        (ended.is_ok(), counter.flushed)
    }

    #[test]
    fn live_flows_are_discarded_after_count_lines() {
        let limits = Limits { count: Some(2), ..Limits::default() };
        let script = script(vec![line(), Received::Idle, line(), line()], 5);
        assert_eq!(run(&script, limits, Counter::default()), (true, 2));
    }

    #[test]
    fn live_flows_are_taken_after_the_duration() {
        let limits = Limits { duration: Some(Duration::from_millis(20)), ..Limits::default() };
        assert_eq!(run(&script(vec![line()], 3), limits, Counter::default()), (true, 4));
    }

    #[test]
    fn live_flows_are_taken_after_one_signal_and_discarded_after_two() {
        let signals = |signals| Counter { signals, ..Counter::default() };
        assert_eq!(run(&script(vec![], 3), Limits::default(), signals(1)), (true, 3));
        assert_eq!(run(&script(vec![line()], 3), Limits::default(), signals(2)), (true, 0));
    }

    #[test]
    fn results_that_take_too_long_at_the_end_are_discarded() {
        let patience = Some(Duration::ZERO);
        let counter = Counter { signals: 1, patience, ..Counter::default() };
        let limits = Limits::default();
        // One round: the deadline is checked at the next one.
        assert_eq!(run(&script(vec![], u64::MAX), limits, counter), (true, 1));
    }

    #[test]
    fn an_unexpected_end_is_reported_after_the_remaining_results() {
        let script = script(vec![line(), Received::Ended], 0);
        assert_eq!(run(&script, Limits::default(), Counter::default()), (false, 1));
    }

    #[test]
    fn lines_are_flushed_when_no_more_wait() {
        let script = script(vec![line()], 0);
        // The output is closed once it has its line. If the line were held back, this test would not end.
        let counter = Counter { closes_output_after: Some(1), ..Counter::default() };
        assert_eq!(run(&script, Limits::default(), counter), (true, 1));
        assert!(!script.stopped.get());
    }

    #[test]
    fn results_wait_until_there_is_room() {
        let counter = Counter { rounds_without_room: Cell::new(3), ..Counter::default() };
        let (script, limits) = (script(vec![line(), line()], 0), Limits { count: Some(2), ..Limits::default() });
        assert_eq!(run(&script, limits, counter), (true, 2));
    }
}
