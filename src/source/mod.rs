//! Sources of events.
//!
//! A [`Source`] observes a host and delivers [`Batch`]es of events in order of time. It also answers questions about processes.
//! The live source, which observes this kernel, and recordings are sources; [`proc`] answers questions for the live source.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use socktrail_dns::Packet;
use socktrail_kprobes::Record;

use self::kprobes::{Conversations, Feature, Missed};
use crate::model::clock::Clock;
use crate::model::event::{Event, SourceCapabilities};
use crate::model::flow::Flow;
use crate::model::kernel_address::SockAddress;
use crate::model::process::Process;
use crate::model::socket_event::EventSocket;
use crate::model::time::MonotonicTime;
use crate::model::totals::{Conversation, Totals};
use crate::state::{FoundProcess, PreexistingProcess, PreexistingSocket};

mod capture;
pub(crate) mod cgroup;
mod error;
#[cfg(test)]
pub(crate) mod fake;
pub mod kprobes;
pub(crate) mod live;
mod names;
pub(crate) mod options;
#[cfg(not(fuzzing))]
pub(crate) mod proc;
#[cfg(fuzzing)]
pub mod proc;
#[cfg(feature = "recording")]
pub mod recording;

pub use self::error::{Error, MissingFeature, MissingForPrograms};

/// Observes a host.
pub(crate) trait Source {
    /// Why the source cannot go on.
    type Error;

    /// What it can observe of sockets and datagrams. Known after the call of [`Source::existing`].
    fn capabilities(&self) -> SourceCapabilities;

    /// The time now, by the clock of its events.
    fn now(&self) -> MonotonicTime;

    /// How the times of its events relate to wall time.
    fn clock(&self) -> Clock;

    /// Its counters.
    fn counts(&self) -> Counts;

    /// Processes and sockets that existed before its first event. Sockets for socket events are left out unless wanted.
    ///
    /// # Errors
    /// It cannot go on.
    fn existing(&mut self, event_sockets: EventSockets) -> Result<Existing, Self::Error>;

    /// Waits until there may be something to hand over: for a tenth of a second, or until it is woken.
    fn wait(&mut self) {}

    /// Hands over, one batch after the other, what has happened since the last call. `take` empties each batch, so that it can
    /// be used again. `tap` sees everything as it was before it became an event. Returns [`ControlFlow::Break`] after the last
    /// batch of all.
    ///
    /// # Errors
    /// It cannot go on. Earlier events have been handed over.
    fn hand_over<T: Tap>(
        &mut self,
        tap: &mut T,
        take: &mut dyn FnMut(&mut Batch),
    ) -> Result<ControlFlow<()>, Self::Error>;

    /// Makes the next [`Source::hand_over`] the last one, which hands over everything. A source that ends by itself may ignore
    /// this.
    fn stop(&mut self) {}

    /// Ends a [`Source::wait`].
    fn waker(&self) -> Waker {
        Waker::default()
    }

    /// Whether it answers questions. If not, its answers come in [`Batch::answers`].
    fn can_be_asked(&self) -> bool {
        true
    }

    /// What it knows of a process beyond events; `None` if the process has ended or runs another program by now.
    fn look_up(&mut self, process: &Process) -> Option<FoundProcess>;

    /// Whether a process has certainly ended.
    fn is_gone(&mut self, process: &Process) -> bool;

    /// What the kernel has counted of a conversation until now, or of another one of the same socket if it does not count this
    /// one. Asked only if it has [`SourceCapabilities::totals`].
    fn totals(&mut self, of: &Conversation) -> Option<Totals> {
        let _ = of;
        None
    }

    /// A time after the last answer of [`Source::totals`], by the clock of its events. The answer knows of no packet that came
    /// later.
    fn answered(&self) -> MonotonicTime {
        self.now()
    }

    /// A reader that answers as [`Source::totals`] does, from any thread.
    fn totals_reader(&self) -> TotalsReader {
        TotalsReader::default()
    }

    /// Notes that a flow has ended, so that the source can discard what it keeps for the flow.
    fn forget(&mut self, flow: &Flow) {
        let _ = flow;
    }
}

/// Whether to look for existing sockets, so that later socket events about them are complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventSockets {
    /// To look for them.
    Wanted,
    /// Not to look for them.
    Unwanted,
}

/// Processes and sockets that existed before a source's first event.
#[derive(Debug, Default)]
pub struct Existing {
    /// Processes.
    pub processes: Vec<PreexistingProcess>,
    /// Sockets of these processes.
    pub sockets: Vec<PreexistingSocket>,
    /// Sockets for socket events, with the process that made each, where that is known.
    pub event_sockets: Vec<(EventSocket, Option<u32>)>,
}

impl Existing {
    /// The processes and sockets in `/proc` now. Call it after the source has begun to observe, so that nothing is missed.
    pub(crate) fn here(event_sockets: EventSockets) -> Self {
        Self {
            processes: proc::processes(),
            sockets: proc::sockets(),
            event_sockets: match event_sockets {
                EventSockets::Wanted => proc::existing_sockets(),
                EventSockets::Unwanted => Vec::new(),
            },
        }
    }
}

/// What a source hands over at once, in the order in which it must be processed.
#[derive(Debug)]
pub struct Batch {
    /// Answers about processes, from a source that [cannot be asked](Source::can_be_asked).
    pub answers: Vec<ProcessAnswer>,
    /// Answers about the kernel's counts, from such a source, in the order in which they were recorded. Each is used when its
    /// question comes up.
    pub totals: Vec<CountedAnswer>,
    /// What happened, in order of time.
    pub events: Vec<Event>,
    /// Answers of name servers from before `complete_until`. A query's flow must be known before its answer.
    pub names: Vec<Event>,
    /// When set, every event before this time has been handed over.
    pub complete_until: Option<MonotonicTime>,
}

impl Batch {
    /// How many events are handed over at once: a batch may have a few more.
    pub const SIZE: usize = 512;
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            answers: Vec::new(),
            totals: Vec::new(),
            events: Vec::with_capacity(Self::SIZE),
            names: Vec::new(),
            complete_until: None,
        }
    }
}

/// What a source knows of a process.
#[derive(Debug)]
pub struct ProcessAnswer {
    /// The process. `None` in older recordings: the answer belongs to the oldest question that has no answer yet.
    pub pid: Option<u32>,
    /// See [`Source::look_up`].
    pub found: Option<FoundProcess>,
}

/// What the kernel had counted of a socket's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountedAnswer {
    /// The `struct sock`.
    pub sock: SockAddress,
    /// See [`Source::answered`].
    pub at: MonotonicTime,
    /// See [`Source::totals`].
    pub totals: Option<Totals>,
}

/// Looks up what the kernel has counted, from any thread. The default is that of a source that counts nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct TotalsReader(Option<Arc<Conversations>>);

impl TotalsReader {
    /// See [`Source::totals`].
    ///
    /// `round` is when the source's latest round began: reports from before it have arrived.
    pub(crate) fn totals(&self, of: &Conversation, round: MonotonicTime) -> Option<Totals> {
        self.0.as_ref()?.totals(of, round)
    }
}

impl From<Option<Arc<Conversations>>> for TotalsReader {
    fn from(conversations: Option<Arc<Conversations>>) -> Self {
        Self(conversations)
    }
}

/// Sees what a source reads, before it becomes events.
pub(crate) trait Tap {
    /// A record of a ring.
    #[inline]
    fn record(&mut self, record: &Record<'_>) {
        let _ = record;
    }

    /// Hits that a probe missed, with the time up to which events have been read.
    fn missed(&mut self, missed: &Missed) {
        let _ = missed;
    }

    /// What the kernel has counted of a conversation, without being asked.
    fn totals(&mut self, time: MonotonicTime, totals: &Totals) {
        let _ = (time, totals);
    }

    /// A packet to or from a name server.
    fn packet(&mut self, packet: &Packet<'_>) {
        let _ = packet;
    }

    /// Packets to or from name servers may have been missed between these times.
    fn packets_missed(&mut self, since: MonotonicTime, until: MonotonicTime) {
        let _ = (since, until);
    }
}

/// Ignores everything.
impl Tap for () {}

/// Passes everything to both.
impl<A: Tap, B: Tap> Tap for (&mut A, &mut B) {
    #[inline]
    fn record(&mut self, record: &Record<'_>) {
        self.0.record(record);
        self.1.record(record);
    }

    fn missed(&mut self, missed: &Missed) {
        self.0.missed(missed);
        self.1.missed(missed);
    }

    fn totals(&mut self, time: MonotonicTime, totals: &Totals) {
        self.0.totals(time, totals);
        self.1.totals(time, totals);
    }

    fn packet(&mut self, packet: &Packet<'_>) {
        self.0.packet(packet);
        self.1.packet(packet);
    }

    fn packets_missed(&mut self, since: MonotonicTime, until: MonotonicTime) {
        self.0.packets_missed(since, until);
        self.1.packets_missed(since, until);
    }
}

/// What a source has counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Samples that could not be decoded.
    pub unreadable: u64,
    /// Samples that came after a later one had been released.
    pub late: u64,
    /// Ring records of impossible size.
    pub malformed: u64,
    /// DNS answers that were dropped because too many were waiting.
    pub names_dropped: u64,
    /// DNS packets that the kernel had no room for.
    pub name_packets_lost: u64,
    /// What the reader of DNS packets has seen.
    pub names: socktrail_dns::Counters,
    /// Samples that did not fit into a ring, by CPU; CPUs that lost none are left out.
    pub lost_by_cpu: BTreeMap<u32, u64>,
    /// Packets that were sampled because the kernel's table of conversations was full.
    pub conversations_refused: u64,
    /// Hits that each probe has missed; probes that missed none are left out.
    pub misses_by_probe: BTreeMap<Feature, u64>,
}

/// Ends a [`Source::wait`], from any thread. The default is that of a source that need not be woken.
#[derive(Debug, Clone, Default)]
pub struct Waker(Option<socktrail_kprobes::Waker>);

impl Waker {
    /// Wakes it.
    pub fn wake(&self) {
        if let Some(waker) = &self.0 {
            waker.wake();
        }
    }
}

impl From<socktrail_kprobes::Waker> for Waker {
    fn from(waker: socktrail_kprobes::Waker) -> Self {
        Self(Some(waker))
    }
}
