//! What a monitor counts of itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use crate::probes::Feature;
use crate::state;

/// Numbers of the monitor itself, beside those of its state machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Stats {
    /// The state machine's.
    #[serde(flatten)]
    pub state: state::Stats,
    /// How many features are lost or served less well: [`Summary::lost`](super::Summary::lost) says which and why.
    pub features_lost: usize,
    /// Samples that could not be decoded.
    pub samples_unreadable: u64,
    /// Samples that came after a later one had been released.
    pub samples_late: u64,
    /// Ring records of impossible size.
    pub records_malformed: u64,
    /// Flows, names and socket events that nobody took in time.
    pub flows_dropped: u64,
    /// Answers with names that found no room.
    pub names_dropped: u64,
    /// Packets with names that the kernel had no room for.
    pub name_packets_lost: u64,
    /// Hits that probes missed (`kprobe_profile`): returns of too many calls at once, or a hit during another's.
    pub probe_misses: u64,
    /// The same by feature; probes that missed none are left out.
    pub misses_by_probe: BTreeMap<Feature, u64>,
    /// Samples that found no room, by CPU; CPUs that lost none are left out.
    pub lost_by_cpu: BTreeMap<u32, u64>,
}

/// What the threads count for [`Monitor::stats`](super::Monitor::stats).
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// When the reader's latest round began.
    pub(super) round: AtomicU64,
    pub(super) unreadable: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) names_dropped: AtomicU64,
    pub(super) name_packets_lost: AtomicU64,
    pub(super) lost: Mutex<BTreeMap<u32, u64>>,
    pub(super) misses: Mutex<BTreeMap<Feature, u64>>,
    pub(super) state: Mutex<state::Stats>,
}

impl Counts {
    /// The numbers so far, where so many features are lost.
    pub(super) fn read(&self, features_lost: usize) -> Stats {
        let misses_by_probe = self.misses.lock().clone();
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            state: *self.state.lock(),
            features_lost,
            samples_unreadable: read(&self.unreadable),
            samples_late: read(&self.late),
            records_malformed: read(&self.malformed),
            flows_dropped: read(&self.dropped),
            names_dropped: read(&self.names_dropped),
            name_packets_lost: read(&self.name_packets_lost),
            probe_misses: misses_by_probe.values().sum(),
            misses_by_probe,
            lost_by_cpu: self.lost.lock().clone(),
        }
    }
}
