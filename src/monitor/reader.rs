//! The reader thread: rings to batches of events.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use socktrail_kprobes::{Horizon, Record};

use super::prepared::Watch;
use super::stats::{Counts, locked};
use super::{BATCH, Batch};
use crate::clock::{Clock, Readings, TimeSource};
use crate::event::{Event, EventKind, KernelTime};
use crate::loss::LossCause;
use crate::probes::Feature;

/// How long samples may rest in a ring that has not reached its watermark.
const ROUND: Duration = Duration::from_millis(100);
/// How long to wait for more when a ring still holds much that is too young to be released.
const SHORT_ROUND: Duration = Duration::from_millis(1);
/// How often to look for CPUs that came online and to ask the kernel what it missed: well within the time for which a
/// closed flow is kept.
const CHECK: Duration = Duration::from_secs(1);

/// Owns the rings and the probes.
pub(super) struct Reader {
    pub(super) watch: Watch,
    pub(super) to_state: Sender<Batch>,
    pub(super) spare: Receiver<Vec<Event>>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) counts: Arc<Counts>,
    pub(super) clock: Arc<Mutex<Clock>>,
    pub(super) time: TimeSource,
    pub(super) max_drift: Duration,
}

impl Reader {
    pub(super) fn run(mut self) {
        let mut horizon = Horizon::default();
        let mut pause = ROUND;
        let mut checked = Instant::now();
        loop {
            if let Err(error) = self.watch.rings.wait(Some(pause)) {
                tracing::warn!(%error, "waiting for samples");
                std::thread::sleep(pause);
            }
            self.watch.sync.compare(&mut self.watch.rings, &self.watch.probes);
            self.follow_clock();
            let stopping = self.stopping.load(Ordering::Acquire);
            let until = if stopping { u64::MAX } else { horizon.next(self.watch.rings.now()) };
            let mut missed = 0;
            if stopping || checked.elapsed() >= CHECK {
                checked = Instant::now();
                missed = self.count_misses();
                self.follow_cpus();
            }
            let handed_over = self.round(until, missed);
            self.count_losses();
            let Some(backlog) = handed_over else { return };
            if stopping {
                return;
            }
            pause = if backlog { SHORT_ROUND } else { ROUND };
        }
    }

    /// Hands over what the rings hold from before `until`, and that probes have `missed` something. `None` when nobody
    /// is there to take it.
    fn round(&mut self, until: KernelTime, missed: u64) -> Option<bool> {
        let Watch { rings, probes, .. } = &mut self.watch;
        let mut events = fresh(&self.spare);
        let mut gone = false;
        let unreadable = probes.unreadable;
        let drained = rings.drain(until, &mut |record: Record<'_>| {
            events.extend(probes.event(&record));
            if events.len() >= BATCH {
                let full = std::mem::replace(&mut events, fresh(&self.spare));
                gone |= self.to_state.send(Batch { events: full, until: None }).is_err();
            }
        });
        self.counts.unreadable.fetch_add(probes.unreadable - unreadable, Ordering::Relaxed);
        self.counts.late.fetch_add(drained.late, Ordering::Relaxed);
        self.counts.malformed.fetch_add(drained.malformed, Ordering::Relaxed);
        let until = if until == u64::MAX { rings.now() } else { until };
        if missed > 0 {
            let kind = EventKind::Lost { cause: LossCause::Probes, count: missed };
            events.push(Event { time: until, pid: 0, tid: 0, kind });
        }
        gone |= self.to_state.send(Batch { events, until: Some(until) }).is_err();
        (!gone).then_some(drained.backlog)
    }

    /// Reading clocks costs next to nothing, so it is done every round: a step is noticed within one.
    fn follow_clock(&self) {
        let Ok(readings) = Readings::by(&self.time, || self.watch.rings.now()) else { return };
        if let Some(moved) = locked(&self.clock).follow(readings, self.max_drift) {
            tracing::info!(seconds = moved as f64 / 1e9, "the wall clock was set, or the machine slept");
        }
    }

    /// What the rings have told so far of what they had no room for.
    fn count_losses(&self) {
        let losses = || self.watch.rings.losses().filter(|loss| loss.records > 0);
        if losses().next().is_none() {
            return;
        }
        let mut lost = BTreeMap::new();
        for loss in losses() {
            *lost.entry(loss.cpu.unwrap_or_default()).or_default() += loss.records;
        }
        *locked(&self.counts.lost) = lost;
    }

    /// How often probes have missed since this was last asked.
    fn count_misses(&self) -> u64 {
        match self.watch.group.misses() {
            Ok(misses) => {
                // A socket that never came to be has no sock to read from, and before Linux 5.14 a read that faults counts
                // as a hit that was missed.
                let faults = Feature::SocketClose.to_string();
                let all: u64 = misses.iter().filter(|probe| probe.name != faults).map(|probe| probe.misses).sum();
                all.saturating_sub(self.counts.misses.swap(all, Ordering::Relaxed))
            }
            Err(error) => {
                tracing::debug!(%error, "misses of probes are not known");
                0
            }
        }
    }

    fn follow_cpus(&mut self) {
        match self.watch.rings.follow_cpus() {
            Ok(changes) if changes != Default::default() => tracing::info!(?changes, "CPUs changed"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "CPUs that came online are not watched"),
        }
    }
}

/// An empty list of events, used before if there is one.
fn fresh(spare: &Receiver<Vec<Event>>) -> Vec<Event> {
    spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(BATCH))
}
