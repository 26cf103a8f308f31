//! A monitor: everything wired together, from the kernel to flows.
//!
//! ```text
//! kernel --probes--> rings (one per CPU) --> reader thread: decode, order by time --> batches of events
//! wire: packets of name servers -----------> the same: answers to queries                 |
//!                                                                                         |
//! /proc: what was there before, details ----------------------------------------> state thread: the state machine
//!                                                                                         |
//!                                   flows, losses --> whoever calls Monitor::recv, or is a Handler
//! ```
//!
//! The reader thread (`monitor/reader.rs`) owns the rings and the probes; the state thread (`monitor/keeper.rs`) owns the state machine, so
//! there are no locks. All channels are bounded. When the state thread falls behind, the reader waits and samples pile up
//! in the rings, where the kernel counts what finds no room; when nobody takes the flows, they are dropped and counted.
//!
//! It is started in two steps: [`Prepared`] puts the probes in place, which takes privileges; starting the threads takes
//! few. Several monitors may run in one process, and know nothing of each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use socktrail_dns::Capture;
use socktrail_kprobes::Waker;

use crate::clock::Clock;
use crate::error::Error;
use crate::event::{Event, KernelTime};
use crate::loss::Loss;
use crate::state::{Config, State};
use crate::users::Users;

mod as_of;
mod builder;
mod keeper;
mod losses;
pub(crate) mod names;
mod options;
mod prepared;
mod reader;
mod received;
mod stats;
pub(crate) mod sync;

pub use as_of::{NoRelease, Release};
pub use builder::Builder;
pub use options::Options;
pub use prepared::{Prepared, Summary};
pub(crate) use prepared::{layout, tracefs};
pub use received::{Handler, Iter, Received};
pub use stats::Stats;

use keeper::Keeper;
use losses::Teller;
use names::Names;
use prepared::Watch;
use reader::Reader;
use stats::Counts;

/// The first part of the names of our groups of probes.
pub(crate) const GROUP: &str = "socktrail";
/// How many events go from thread to thread at once.
const BATCH: usize = 512;

/// A running monitor. Dropping it removes its probes and ends its threads.
#[derive(Debug)]
pub struct Monitor {
    results: Receiver<Received>,
    losses: Receiver<Loss>,
    stopping: Arc<AtomicBool>,
    waker: Waker,
    threads: Vec<JoinHandle<()>>,
    counts: Arc<Counts>,
    summary: Summary,
    clock: Arc<Mutex<Clock>>,
}

/// What the reader hands to the state thread.
struct Batch {
    events: Vec<Event>,
    /// Answers that came before `until`; they must be handled after the events.
    answers: Vec<Event>,
    /// When set, every event before this time has been handed over.
    until: Option<KernelTime>,
}

/// The way from the reader to the state thread.
fn samples(options: &Options) -> (Sender<Batch>, Receiver<Batch>) {
    bounded(options.perf_queue_size.div_ceil(BATCH))
}

impl Monitor {
    /// Says step by step how to monitor.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// [`Builder::start`] with all options at once.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start(options: &Options) -> Result<Self, Error> {
        Prepared::new(options, None)?.start()
    }

    /// The next flow, or what else was asked for, waited for at most `timeout`.
    pub fn recv(&self, timeout: Duration) -> Received {
        if let Ok(loss) = self.losses.try_recv() {
            return Received::Loss(loss);
        }
        match self.results.recv_timeout(timeout) {
            Ok(received) => received,
            Err(RecvTimeoutError::Timeout) => Received::Idle,
            // The last losses are told at the very end.
            Err(RecvTimeoutError::Disconnected) => self.losses.try_recv().map_or(Received::Ended, Received::Loss),
        }
    }

    /// Asks the monitor to stop: what the kernel has seen so far is taken in, live flows are handed out, and after
    /// the last one [`Monitor::recv`] says that it has [ended](Received::Ended).
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// How the times of flows relate to wall time; with every flow that was received, ask again.
    pub fn clock(&self) -> Clock {
        *self.clock.lock()
    }

    /// What is watched.
    pub fn describe(&self) -> &Summary {
        &self.summary
    }

    /// The numbers so far; those of the state machine are of a moment ago.
    pub fn stats(&self) -> Stats {
        self.counts.read(self.summary.lost.len())
    }

    /// Wires the threads together and starts them.
    fn spawn(
        options: &Options,
        users: Option<Users>,
        watch: Watch,
        capture: Option<Capture>,
        summary: Summary,
        clock: Clock,
    ) -> Result<Self, Error> {
        let (to_state, from_reader) = samples(options);
        let (to_reader, from_state) = bounded(options.perf_queue_size.div_ceil(BATCH) + 1);
        let (to_user, results) = bounded(options.flow_queue_size);
        let (losses_to_user, losses) = bounded(options.lost_queue_size);
        let (learning, is_ready) = bounded(0);
        let stopping = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let clock = Arc::new(Mutex::new(clock));
        let waker = watch.rings.waker();
        let sight = watch.probes.sight;

        let reader = Reader {
            watch,
            names: capture.map(|capture| Names::new(capture, &options.dns)),
            to_state,
            spare: from_state,
            stopping: Arc::clone(&stopping),
            counts: Arc::clone(&counts),
            clock: Arc::clone(&clock),
            time: options.time.clone(),
            max_drift: options.clock_max_drift,
            missed: Vec::new(),
        };
        let config = Config {
            flow_inactive_timeout: options.flow_inactive_timeout,
            flow_termination_timeout: options.flow_termination_timeout,
            flow_report_interval: options.flow_report_interval,
            socket_inactive_timeout: options.socket_inactive_timeout,
            max_flows: options.max_flows,
            max_sockets: options.max_sockets,
            max_processes: options.max_processes,
            own_pid: if options.own_process { 0 } else { std::process::id() },
            filter: options.filter.clone(),
            dns_ports: options.dns.ports.clone(),
            names: options.names.clone(),
            report_names: options.report_names,
            socket_events: options.socket_events,
            flows: options.flows,
        };
        let mut state = State::new(config);
        state.learn_sight(sight);
        let keeper = Keeper {
            state,
            events: from_reader,
            spare: to_reader,
            watches_calls: !options.socket_events.is_empty(),
            results: to_user,
            losses: Teller::new(losses_to_user),
            counts: Arc::clone(&counts),
            learning: Some(learning),
            users,
        };

        let mut monitor = Self { results, losses, stopping, waker, threads: Vec::new(), counts, summary, clock };
        monitor.threads.push(thread("socktrail-state", move || keeper.run())?);
        monitor.threads.push(thread("socktrail-rings", move || reader.run())?);
        // Nothing is ever sent: it ends when the state thread has learned what was there before.
        let _ = is_ready.recv();
        Ok(monitor)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop();
        // The state thread never waits for whoever receives, so it comes to its end.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn thread(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|source| Error::Thread { name, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_samples_wait_than_may() {
        for (perf_queue_size, most) in [(1, BATCH), (4096, 4096), (5000, 5120)] {
            let (to_state, _from_reader) = samples(&Options { perf_queue_size, ..Options::default() });
            let batch = || Batch { events: Vec::with_capacity(BATCH), answers: Vec::new(), until: None };
            let taken = (0..).take_while(|_| to_state.try_send(batch()).is_ok()).count();
            assert_eq!(taken * BATCH, most, "whole batches travel");
        }
    }
}
