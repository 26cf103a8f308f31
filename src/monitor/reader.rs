//! The reader thread: rings to batches of events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use socktrail_kprobes::{Clock as RingClock, Drained, Horizon, Record};

use super::names::Names;
use super::prepared::Watch;
use super::stats::Counts;
use super::{BATCH, Batch};
use crate::clock::{Clock, Readings, TimeSource};
use crate::event::{Event, KernelTime};
use crate::probes::Missed;

/// How long samples may rest in a ring that has not reached its watermark.
const ROUND: Duration = Duration::from_millis(100);
/// How long to wait for more when a ring still holds much that is too young to be released.
const SHORT_ROUND: Duration = Duration::from_millis(1);
/// How often to look for CPUs that came online, to ask the kernel what it missed while nothing came, and to remove what
/// dead monitors left: well within the time for which a closed flow is kept.
const CHECK: Duration = Duration::from_secs(1);
/// How often to ask the kernel what it missed while samples come. A miss marks all flows that were open since it was
/// asked before.
const ASK: Duration = ROUND;

/// Owns the rings and the probes.
pub(super) struct Reader {
    pub(super) watch: Watch,
    /// The capture of DNS packets, if names are wanted.
    pub(super) names: Option<Names>,
    pub(super) to_state: Sender<Batch>,
    pub(super) spare: Receiver<Vec<Event>>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) counts: Arc<Counts>,
    pub(super) clock: Arc<Mutex<Clock>>,
    pub(super) time: TimeSource,
    pub(super) max_drift: Duration,
    /// Missed probe hits that were not reported yet.
    pub(super) missed: Vec<Missed>,
}

impl Reader {
    pub(super) fn run(mut self) {
        let mut horizon = Horizon::default();
        let mut pause = ROUND;
        let mut checked = Instant::now();
        let (mut asked, mut is_busy) = (checked, false);
        loop {
            if let Err(error) = self.watch.rings.wait(Some(pause)) {
                tracing::warn!(%error, "waiting for samples");
                std::thread::sleep(pause);
            }
            self.watch.sync.compare(&mut self.watch.rings, &self.watch.probes);
            self.follow_clock();
            let stopping = self.stopping.load(Ordering::Acquire);
            let now = self.watch.rings.now();
            self.counts.round.store(now, Ordering::Release);
            let until = if stopping { u64::MAX } else { horizon.next(now) };
            let is_due = stopping || checked.elapsed() >= CHECK;
            if is_due || (is_busy && asked.elapsed() >= ASK) {
                asked = Instant::now();
                self.count_misses();
            }
            if is_due {
                checked = Instant::now();
                self.follow_cpus();
                self.watch.group.sweep_again();
            }
            let handed_over = self.round(until);
            self.count_losses();
            let Some(drained) = handed_over else { return };
            is_busy = drained.records > 0;
            if stopping {
                if self.watch.rings.settle() {
                    self.round(u64::MAX);
                    self.count_losses();
                }
                return;
            }
            pause = if drained.backlog { SHORT_ROUND } else { ROUND };
        }
    }

    /// Hands over what the rings hold from before `until`, and the hits that probes had missed by then. `None` if the
    /// receiver is gone.
    fn round(&mut self, until: KernelTime) -> Option<Drained> {
        let Watch { rings, probes, .. } = &mut self.watch;
        let mut events = fresh(&self.spare);
        let mut gone = false;
        let unreadable = probes.unreadable;
        let drained = rings.drain(until, &mut |record: Record<'_>| {
            events.extend(probes.event(&record));
            if events.len() >= BATCH {
                let full = std::mem::replace(&mut events, fresh(&self.spare));
                gone |= self.to_state.send(Batch { events: full, answers: Vec::new(), until: None }).is_err();
            }
        });
        self.counts.unreadable.fetch_add(probes.unreadable - unreadable, Ordering::Relaxed);
        self.counts.late.fetch_add(drained.late, Ordering::Relaxed);
        self.counts.malformed.fetch_add(drained.malformed, Ordering::Relaxed);
        let until = if until == u64::MAX { rings.now() } else { until };
        // After the rings: every packet from before `until` is in the capture by now.
        let answers = self.names.as_mut().map_or_else(Vec::new, |names| {
            names.drain(&mut |_| {});
            names.count(&self.counts);
            names.answers(until).collect()
        });
        // A miss concerns all flows that began before it was noticed, so it is handed over only after their events.
        events.extend(
            self.missed
                .extract_if(.., |missed| missed.time <= until)
                .map(|missed| Event { time: until, ..missed.into() }),
        );
        gone |= self.to_state.send(Batch { events, answers, until: Some(until) }).is_err();
        (!gone).then_some(drained)
    }

    /// Reading clocks costs next to nothing, so it is done every round: a step is noticed within one.
    fn follow_clock(&self) {
        if self.watch.rings.now() == 0 {
            return; // no sample has shown the kernel's clock yet
        }
        let Ok(readings) = Readings::by(&self.time, || self.watch.rings.now()) else { return };
        let follow = match self.watch.rings.clock() {
            RingClock::Local => Clock::follow_shown,
            _ => Clock::follow,
        };
        if let Some(moved) = follow(&mut self.clock.lock(), readings, self.max_drift) {
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
        *self.counts.lost.lock() = lost;
    }

    /// Asks the kernel how many hits probes have missed.
    fn count_misses(&mut self) {
        let Watch { misses, group, rings, .. } = &mut self.watch;
        match misses.ask(group, || rings.now()) {
            Ok(missed) if missed.is_empty() => {}
            Ok(missed) => {
                self.missed.extend(missed);
                *self.counts.misses.lock() = self.watch.misses.so_far();
            }
            Err(error) => tracing::debug!(%error, "misses of probes are not known"),
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
