//! Prints results as lines on stdout, until a limit is reached, a signal arrives or the output is closed.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use signal_hook::consts::SIGUSR1;
use socktrail::monitor::Received;

use super::exit::Status;
use super::interrupt::Interrupts;
use crate::receive::{Consumer, FlowSource, Limits, receive};

/// Prints the results of one command.
pub trait Print {
    /// Prints a result as at most `max_lines` lines. Returns the number of lines.
    fn print(&mut self, received: &Received, now: Instant, max_lines: u64) -> io::Result<u64>;
    /// Whether there are lines to flush.
    fn is_unflushed(&self) -> bool;
    /// Flushes all lines.
    fn flush(&mut self) -> io::Result<()>;
    /// The statistics for `--stats`.
    fn stats(&self) -> Value;
}

/// The signals that a command handles. They are caught before the monitor starts.
#[derive(Debug)]
pub struct Signals {
    interrupts: Interrupts,
    /// Set when SIGUSR1 asks for statistics; `None` without `--stats`.
    stats_requested: Option<Arc<AtomicBool>>,
}

impl Signals {
    /// Catches the signals that ask to end and, if `stats` is set, SIGUSR1.
    pub fn catch(stats: bool) -> anyhow::Result<Self> {
        let interrupts = Interrupts::catch().context("catching signals")?;
        let stats_requested = stats.then(Arc::<AtomicBool>::default);
        if let Some(stats_requested) = &stats_requested {
            signal_hook::flag::register(SIGUSR1, Arc::clone(stats_requested)).context("catching SIGUSR1")?;
        }
        Ok(Self { interrupts, stats_requested })
    }
}

/// Prints the results of the source to stdout.
pub fn print(source: &impl FlowSource, limits: Limits, signals: Signals, print: impl Print) -> anyhow::Result<Status> {
    let mut printing = Printing { signals, print };
    let ended = receive(source, limits, &mut printing);
    if printing.signals.stats_requested.is_some() {
        printing.print_stats();
    }
    ended.map(|()| Status::Success)
}

struct Printing<P> {
    signals: Signals,
    print: P,
}

impl<P: Print> Printing<P> {
    /// Prints a line of JSON to stderr.
    fn print_stats(&self) {
        // A closed stderr is not a failure.
        let _ = writeln!(io::stderr(), "socktrail: stats {}", self.print.stats());
    }
}

impl<P: Print> Consumer for Printing<P> {
    fn tick(&mut self, _now: Instant) -> anyhow::Result<usize> {
        if self
            .signals
            .stats_requested
            .as_ref()
            .is_some_and(|stats_requested| stats_requested.swap(false, Ordering::Relaxed))
        {
            self.print_stats();
        }
        Ok(self.signals.interrupts.count())
    }

    fn take(&mut self, received: &Received, now: Instant, max_lines: u64) -> anyhow::Result<u64> {
        self.print.print(received, now, max_lines).context("writing to stdout")
    }

    fn is_unflushed(&self) -> bool {
        self.print.is_unflushed()
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.print.flush().context("writing to stdout")
    }

    fn output_is_closed(&self) -> bool {
        is_gone(io::stdout())
    }
}

/// Whether this is a pipe or socket whose other end is closed.
fn is_gone(written_to: impl AsFd) -> bool {
    let mut fds = [PollFd::new(written_to.as_fd(), PollFlags::empty())];
    let ready = poll(&mut fds, PollTimeout::ZERO).unwrap_or(0);
    ready > 0 && fds.iter().filter_map(PollFd::revents).any(|events| events.contains(PollFlags::POLLERR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pipe_without_a_reader_is_gone() {
        let (reader, writer) = io::pipe().unwrap();
        assert!(!is_gone(&writer));
        drop(reader);
        assert!(is_gone(&writer));
    }
}
