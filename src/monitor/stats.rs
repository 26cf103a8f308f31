//! The counters of a monitor.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use super::Summary;
use crate::model::clock::monotonic;
use crate::model::time::MonotonicTime;
use crate::source;
use crate::source::kprobes::Feature;
use crate::state::StateStats;

/// The counters of a monitor and of its state machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct MonitorStats {
    /// The counters of the state machine.
    #[serde(flatten)]
    pub state: StateStats,
    /// The number of features without a probe, or with an inferior one: [`Summary::missing`](super::Summary::missing) lists
    /// them.
    pub features_lost: usize,
    /// 1 if the kernel counts packets, 0 if each of them is sampled: [`Summary::sampled_because`](super::Summary::sampled_because)
    /// says why.
    pub kernel_accounting: usize,
    /// Samples that could not be decoded.
    pub samples_unreadable: u64,
    /// Samples that arrived after a later one had been released.
    pub samples_late: u64,
    /// Ring records of impossible size.
    pub records_malformed: u64,
    /// Flows, names and socket events that were not received in time.
    pub flows_dropped: u64,
    /// DNS answers that were dropped because too many were waiting to be processed.
    pub names_dropped: u64,
    /// DNS packets that the kernel's ring had no room for.
    pub name_packets_lost: u64,
    /// DNS packets and messages that violate their format, so that nothing was learned from them.
    pub names_malformed: u64,
    /// DNS queries and TCP streams that were forgotten to make room for newer ones: their answers are not known.
    pub name_queries_evicted: u64,
    /// DNS streams over TCP that were given up, because segments were missing or a message could not be found.
    pub name_streams_broken: u64,
    /// Packets that were sampled because the kernel's table of conversations was full
    /// ([`Options::max_conversations`](super::Options::max_conversations)).
    pub conversations_refused: u64,
    /// Hits that probes missed (`kprobe_profile` in tracefs): too many probed calls were in progress, or an interrupt came during
    /// another hit.
    pub probe_misses: u64,
    /// The same by feature. Features without misses are left out.
    pub misses_by_probe: BTreeMap<Feature, u64>,
    /// Samples that did not fit the ring, by CPU. CPUs without losses are left out.
    pub lost_by_cpu: BTreeMap<u32, u64>,
}

/// The counters of the threads, for [`Monitor::stats`](super::Monitor::stats).
#[derive(Debug, Default)]
pub(super) struct SharedCounts {
    /// When the reader's latest round began, in nanoseconds of [`MonotonicTime`].
    round: AtomicU64,
    /// The same by the monotonic clock.
    monotonic_round: AtomicU64,
    /// Results that were not received in time.
    pub(super) dropped: AtomicU64,
    pub(super) source: Mutex<source::Counts>,
    pub(super) state: Mutex<StateStats>,
}

impl SharedCounts {
    /// Notes that the reader's next round begins.
    pub(super) fn begin_round(&self, now: MonotonicTime) {
        self.round.store(now.as_nanos(), Ordering::Release);
        self.monotonic_round.store(monotonic().as_nanos(), Ordering::Release);
    }

    /// The time now, by the clock of the samples, which only the reader can read before Linux 4.1. If the reader begins a round
    /// meanwhile, it may be too late by one round.
    pub(super) fn now(&self) -> MonotonicTime {
        let begun = self.monotonic_round.load(Ordering::Acquire);
        let elapsed = monotonic().as_nanos().saturating_sub(begun);
        self.round().saturating_add(Duration::from_nanos(elapsed))
    }

    /// When the reader's latest round began.
    pub(super) fn round(&self) -> MonotonicTime {
        MonotonicTime::from_nanos(self.round.load(Ordering::Acquire))
    }

    /// The counters so far. `summary` has those that do not change.
    pub(super) fn read(&self, summary: &Summary) -> MonitorStats {
        let source = self.source.lock().clone();
        MonitorStats {
            state: *self.state.lock(),
            features_lost: summary.missing.len(),
            kernel_accounting: usize::from(summary.sampled_because.is_none()),
            samples_unreadable: source.unreadable,
            samples_late: source.late,
            records_malformed: source.malformed,
            flows_dropped: self.dropped.load(Ordering::Relaxed),
            names_dropped: source.names_dropped,
            name_packets_lost: source.name_packets_lost,
            names_malformed: source.names.malformed_packets + source.names.malformed_messages,
            name_queries_evicted: source.names.evicted_queries + source.names.tcp.evicted_streams,
            name_streams_broken: source.names.tcp.broken_streams,
            conversations_refused: source.conversations_refused,
            probe_misses: source.misses_by_probe.values().sum(),
            misses_by_probe: source.misses_by_probe,
            lost_by_cpu: source.lost_by_cpu,
        }
    }
}
