//! A monitor connects all parts, from the kernel to flows.
//!
//! ```text
//! kernel --probes--> rings (one per CPU) --> reader thread: decode, order by time --> batches of events
//! AF_PACKET: DNS packets ------------------> reader thread: DNS answers                   |
//!                                                                                         |
//! /proc: existing processes and sockets, details of processes --> state thread: the pipeline with the state machine
//!                                                                                         |
//!         flows, socket events, names, losses --> the caller of Monitor::recv, or a Handler
//! ```
//!
//! The reader thread (`monitor/reader.rs`) owns the source, with its rings and probes; the state thread
//! (`monitor/state_thread.rs`) owns the pipeline with the state machine. Besides channels, they share only the clock, the counters,
//! and the kernel's table of conversations. All channels are bounded. When the state thread falls behind, the reader waits and
//! samples pile up in the rings, where the kernel counts those that find no room. When the caller does not take flows in time, they
//! are dropped and counted.
//!
//! A monitor starts in two steps: [`Prepared`] installs the probes, which needs privileges; starting the threads needs hardly
//! any. Several monitors may run in one process, independently of each other.

use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use crate::model::clock::Clock;
use crate::model::loss::Loss;
use crate::model::names::PrefetchNames;
use crate::pipeline::Pipeline;
use crate::source::{Batch, Error, Source, Waker};

mod as_of;
mod builder;
mod losses;
mod options;
mod prepared;
mod reader;
mod readiness;
mod received;
#[cfg(feature = "recording")]
mod record;
#[cfg(feature = "recording")]
mod replay;
mod state_thread;
mod stats;

pub use crate::model::accounting::Accounting;
pub use crate::model::backend::Backend;
pub use crate::source::MissingFeature;
pub use crate::source::kprobes::switches::DisabledSwitch;
pub use crate::source::kprobes::{Refusal, Traffic};
pub use crate::source::live::Summary;
#[cfg(feature = "recording")]
pub use crate::source::recording::recorder::Recorded;
pub use crate::state::StateStats;
pub use as_of::{ParseReleaseError, Release};
pub use builder::Builder;
pub use options::Options;
pub use prepared::Prepared;
pub use received::{Handler, Iter, Received};
#[cfg(feature = "recording")]
pub use record::record;
pub use socktrail_dns::{NamesOptions, Options as DnsOptions};
pub use socktrail_guess::LayoutSource;
pub use stats::MonitorStats;

use losses::LossReporter;
use reader::{FromReader, Reader};
use readiness::{Readiness, SetOnDrop};
use state_thread::{StateThread, ToCaller};
use stats::SharedCounts;

/// A running monitor. Dropping it removes its probes and ends its threads.
#[derive(Debug)]
pub struct Monitor {
    results: Receiver<Received>,
    losses: Receiver<Loss>,
    readiness: Arc<Readiness>,
    stopping: Arc<AtomicBool>,
    waker: Waker,
    threads: Vec<JoinHandle<()>>,
    counts: Arc<SharedCounts>,
    summary: Summary,
    clock: Arc<Mutex<Clock>>,
}

/// The queue of batches from the reader thread to the state thread.
fn queue(options: &Options) -> (Sender<Batch>, Receiver<Batch>) {
    bounded(options.perf_queue_size.div_ceil(Batch::SIZE))
}

impl Monitor {
    /// A builder with the default options.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts a monitor with these options: see [`Builder::start`].
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start(options: &Options) -> Result<Self, Error> {
        Prepared::new(options, None)?.start()
    }

    /// The next flow, or another requested result. Waits at most `timeout`.
    pub fn recv(&self, timeout: Duration) -> Received {
        if let Ok(loss) = self.losses.try_recv() {
            return Received::Loss(loss);
        }
        match self.results.recv_timeout(timeout) {
            Ok(received) => received,
            Err(RecvTimeoutError::Timeout) => Received::Idle,
            // The state thread may have sent its last losses after the check above.
            Err(RecvTimeoutError::Disconnected) => self.losses.try_recv().map_or(Received::Ended, Received::Loss),
        }
    }

    /// Like [`Monitor::recv`], without waiting. [`Received::Idle`] means that there is no result now, [`Received::Ended`] that
    /// there will be no more results.
    ///
    /// For an event loop, the monitor has a file descriptor ([`AsFd`]). It becomes readable when there may be a
    /// result, and stays so until this function returns [`Received::Idle`]. After the end it is always readable. Use it for
    /// `poll(2)`, `epoll(7)` and the like only: do not read from it.
    ///
    /// ```no_run
    /// use std::os::fd::AsFd;
    /// use socktrail::{Monitor, Received};
    ///
    /// let monitor = Monitor::builder().start()?;
    /// let descriptor = monitor.as_fd(); // give it to epoll(7); whenever it is readable:
    /// loop {
    ///     match monitor.try_recv() {
    ///         Received::Flow(flow) => println!("{} -> {}", flow.local, flow.remote),
    ///         Received::Idle => break, // wait again
    ///         Received::Ended => return Ok(()),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok::<(), socktrail::Error>(())
    /// ```
    pub fn try_recv(&self) -> Received {
        match self.recv(Duration::ZERO) {
            Received::Idle => {
                self.readiness.clear();
                let received = self.recv(Duration::ZERO);
                if !matches!(received, Received::Idle) {
                    self.readiness.set(); // there may be more
                }
                received
            }
            received => received,
        }
    }

    /// Asks the monitor to stop. It processes the samples so far, ends all live flows and returns them. After the last one,
    /// [`Monitor::recv`] returns [`Received::Ended`].
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// The clock that converts times of flows to wall time. Call this again for each received flow, because the wall clock may
    /// be set.
    pub fn clock(&self) -> Clock {
        *self.clock.lock()
    }

    /// What this monitor observes, and what it cannot.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The counters so far. Those of the state machine are updated after each batch.
    pub fn stats(&self) -> MonitorStats {
        self.counts.read(&self.summary)
    }

    /// Connects the threads by channels and starts them.
    fn spawn<S>(
        options: &Options,
        user_names: Option<Arc<dyn PrefetchNames>>,
        source: S,
        summary: Summary,
    ) -> Result<Self, Error>
    where
        S: Source<Error: Display> + Send + 'static,
    {
        let (to_state, batches) = queue(options);
        // Emptied batches go back to the reader for reuse. The channel has room for every batch of the queue and for the one
        // that the state thread is processing.
        let (return_batch, returned_batches) = bounded(options.perf_queue_size.div_ceil(Batch::SIZE) + 1);
        let (to_caller, results) = bounded(options.flow_queue_size);
        let (losses_to_caller, losses) = bounded(options.lost_queue_size);
        let (ready_guard, ready) = bounded(0);
        let stopping = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(SharedCounts::default());
        let clock = Arc::new(Mutex::new(source.clock()));
        let waker = source.waker();
        let readiness = Arc::new(Readiness::new().map_err(Error::EventFd)?);

        let state_thread = StateThread {
            pipeline: Pipeline::new(options.into(), user_names),
            source: FromReader {
                batches,
                return_batch,
                capabilities: source.capabilities(),
                counts: Arc::clone(&counts),
                clock: Arc::clone(&clock),
                totals: source.totals_reader(),
                next: None,
            },
            to_caller: ToCaller {
                results: to_caller,
                losses: LossReporter::new(losses_to_caller),
                counts: Arc::clone(&counts),
                readiness: SetOnDrop(Arc::clone(&readiness)),
            },
            ready_guard,
        };
        let reader = Reader {
            source,
            to_state,
            returned_batches,
            stopping: Arc::clone(&stopping),
            counts: Arc::clone(&counts),
            clock: Arc::clone(&clock),
        };

        let mut monitor =
            Self { results, losses, readiness, stopping, waker, threads: Vec::new(), counts, summary, clock };
        monitor.threads.push(thread("socktrail-state", move || state_thread.run())?);
        monitor.threads.push(thread("socktrail-reader", move || reader.run())?);
        // Nothing is ever sent on this channel. It closes when the state thread knows the existing processes and
        // sockets.
        let _ = ready.recv();
        Ok(monitor)
    }
}

/// Readable while there may be a result to receive: see [`Monitor::try_recv`].
impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readiness.as_fd()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop();
        // The state thread never blocks on a full queue of results, so it ends even if no results are received.
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
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::model::event::{Event, EventKind, Packet, PacketDirection, PacketSize, Tuple};
    use crate::model::flow::{Endpoint, Reason, Transport};
    use crate::model::kernel_address::{NetAddress, SockAddress};
    use crate::model::testing::monotonic;
    use crate::model::time::MonotonicTime;
    use crate::source::fake::{Fake, Scripted};

    const SECOND: u64 = 1_000_000_000;
    /// How long to wait for something that must come.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn at(second: u64) -> MonotonicTime {
        monotonic(second * SECOND)
    }

    /// A datagram to this port.
    fn datagram(second: u64, port: u16) -> Scripted {
        let end = |port| Endpoint::new([192, 0, 2, 1], port);
        let tuple = Tuple { net: NetAddress::new(1), local: end(4000), remote: end(port) };
        let size = PacketSize { bytes: 100, headers: 28 };
        let packet =
            Packet::new(PacketDirection::Outbound, Transport::Udp, SockAddress::new(u64::from(port) * 64), tuple, size);
        Scripted::Event(Event { time: at(second), pid: 0, tid: 0, kind: EventKind::Packet(packet) })
    }

    fn start(source: Fake) -> Monitor {
        let summary = Summary {
            features: Vec::new(),
            missing: Vec::new(),
            cpus: 0,
            ipv6: false,
            sampled_because: None,
            bpf: false,
        };
        Monitor::spawn(&Options::default(), None, source, summary).unwrap()
    }

    #[test]
    fn events_become_flows() {
        let mut source = Fake::new([
            datagram(1, 1),
            datagram(2, 2),
            Scripted::EndRound(at(3)),
            Scripted::EndBatch,
            datagram(20, 2),
            Scripted::Lost { since: at(20), time: at(21), count: 3 },
            Scripted::EndRound(at(40)),
        ]);
        source.ends = false;
        let monitor = start(source);
        let key = |flow: crate::model::flow::Flow| (flow.remote.port, flow.sent.packets, flow.reason);
        assert_eq!(monitor.flows().next().map(key), Some((1, 1, Reason::Inactive)));
        monitor.stop();
        let mut flows = Vec::new();
        for received in &monitor {
            match received {
                Received::Flow(flow) => flows.push(key(*flow)),
                Received::Loss(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(flows, [(2, 2, Reason::Shutdown)]);
        assert_eq!(monitor.stats().state.samples_lost, 3);
    }

    #[test]
    fn more_events_than_fit_the_queue_all_arrive() {
        let port = |number: u64| (number % 50_000 + 1) as u16;
        let mut script: Vec<_> = (0..20_000).map(|number| datagram(number / 1000, port(number))).collect();
        (0..script.len()).step_by(Batch::SIZE).rev().for_each(|at| script.insert(at, Scripted::EndBatch));
        script.push(Scripted::EndRound(at(21)));
        let monitor = start(Fake::new(script));
        assert_eq!(monitor.flows().count(), 20_000);
        assert_eq!(monitor.stats().state.packets, 20_000);
    }

    /// Waits at most `timeout` for the descriptor to become readable. Returns whether it is.
    fn is_readable(monitor: &Monitor, timeout: Duration) -> bool {
        let mut waited_for = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
        poll(&mut waited_for, PollTimeout::try_from(timeout).unwrap()).unwrap() > 0
    }

    #[test]
    fn the_descriptor_is_readable_while_there_may_be_a_result() {
        let mut source = Fake::new([datagram(1, 1), Scripted::EndRound(at(2)), Scripted::EndBatch, datagram(2, 2)]);
        source.ends = false;
        let monitor = start(source);
        assert!(matches!(monitor.try_recv(), Received::Idle));
        assert!(!is_readable(&monitor, Duration::from_millis(20)), "no flow has ended yet");
        monitor.stop();
        let mut flows = 0;
        while is_readable(&monitor, PATIENCE) {
            match monitor.try_recv() {
                Received::Flow(_) => flows += 1,
                Received::Idle => {}
                Received::Ended => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(flows, 2);
        assert!(is_readable(&monitor, Duration::ZERO), "`Ended` can be received repeatedly");
        assert!(matches!(monitor.try_recv(), Received::Ended));
    }

    /// A loop that only waits for the descriptor receives everything, including losses and the end.
    #[test]
    fn waiting_for_the_descriptor_alone_misses_nothing() {
        let port = |number: u64| (number % 50_000 + 1) as u16;
        let rounds = (0..400_u64).flat_map(|round| {
            let datagrams = (0..5).map(move |number| datagram(40 * round, port(5 * round + number)));
            let lost = Scripted::Lost { since: at(40 * round), time: at(40 * round), count: 1 };
            datagrams.chain([lost, Scripted::EndRound(at(40 * round + 39))])
        });
        let monitor = start(Fake::new(rounds.collect::<Vec<_>>()));
        let (mut flows, mut lost) = (0, 0);
        'all: loop {
            assert!(is_readable(&monitor, PATIENCE), "{flows} flows");
            loop {
                match monitor.try_recv() {
                    Received::Flow(_) => flows += 1,
                    Received::Loss(loss) => lost += loss.count,
                    Received::Idle => break,
                    Received::Ended => break 'all,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!((flows, lost), (2000, 400));
    }

    #[test]
    fn many_results_are_signalled_once_until_they_are_received() {
        let mut script: Vec<_> = (0..1000).map(|port| datagram(1, port + 1)).collect();
        // The flows end with the second round.
        script.extend([Scripted::EndRound(at(2)), Scripted::EndRound(at(40))]);
        let monitor = start(Fake::new(script));
        assert!(is_readable(&monitor, PATIENCE));
        while monitor.stats().state.flows_reported < 1000 {
            std::thread::yield_now();
        }
        // An eventfd holds the sum of what was written to it (`eventfd(2)`), so 1 means that `set` wrote once.
        let mut written = [0; 8];
        nix::unistd::read(monitor.as_fd(), &mut written).unwrap();
        assert_eq!(u64::from_ne_bytes(written), 1);
        assert_eq!(monitor.flows().count(), 1000);
    }

    #[test]
    fn the_queue_of_samples_is_bounded() {
        for (perf_queue_size, bound) in [(1, Batch::SIZE), (4096, 4096), (5000, 5120)] {
            let (to_state, _from_reader) = queue(&Options { perf_queue_size, ..Options::default() });
            let taken = (0..).take_while(|_| to_state.try_send(Batch::default()).is_ok()).count();
            assert_eq!(taken * Batch::SIZE, bound, "the limit is rounded up to whole batches");
        }
    }
}
