//! Merges the records of several rings into one stream, ordered by time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::mem;
use std::time::Duration;

use crate::ring::{MAX_RECORD_SIZE, Memory, Ring};

/// A record lent by [`Rings::drain`](crate::Rings::drain).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record<'a> {
    /// A probe fired.
    Sample {
        /// Its time, in nanoseconds of the rings' [`clock`](crate::Rings::clock).
        time: u64,
        /// The CPU that it happened on.
        cpu: u32,
        /// The process (thread group) that this CPU was running, as numbered in our pid namespace. In an interrupt this
        /// is the interrupted process.
        pid: u32,
        /// The thread, numbered in the same way.
        tid: u32,
        /// The event: [`Installed::id`](crate::Installed::id).
        id: u16,
        /// The record, `common_type` first, for a [`Decoder`](crate::Decoder). Up to 7 bytes of padding follow its last
        /// field.
        raw: &'a [u8],
    },
    /// A ring was full.
    Lost {
        /// The time of the last record before the loss, in nanoseconds of the rings' clock; 0 if there was none.
        since: u64,
        /// The time when the kernel could write again.
        time: u64,
        /// The CPU of the ring.
        cpu: u32,
        /// The number of records that were lost.
        count: u64,
    },
}

/// The result of one round of [`Rings::drain`](crate::Rings::drain).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Records lent.
    pub records: u64,
    /// How many of these were older than a record lent before, in this round or an earlier one.
    pub late: u64,
    /// The number of malformed records. The rest of such a ring is skipped. Never seen with a sound kernel.
    pub malformed: u64,
    /// Whether more than the watermark is left in a ring. Then the next round should begin within a millisecond or so.
    pub backlog: bool,
}

/// Records that one CPU's ring lost since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Losses {
    /// The CPU; `None` for the ring of a thread.
    pub cpu: Option<u32>,
    /// Records that did not fit, as reported in the records read so far.
    pub records: u64,
}

/// The time up to which a round may lend records: the beginning of the previous round, or now minus the slack if that is
/// earlier. A sample that is still being written while its ring is read is newer than the horizon, so no sample after it is
/// lent yet.
///
/// Writing a sample takes a microsecond, but a hypervisor may stop a virtual CPU in the middle for milliseconds. The
/// slack allows for that. A sample that arrives even later is lent all the same, and counted in [`Drained::late`].
///
/// ```
/// # use std::time::Duration;
/// # use socktrail_kprobes::Horizon;
/// let mut horizon = Horizon::with_slack(Duration::from_nanos(100));
/// assert_eq!(horizon.next(1_000), 0);
/// assert_eq!(horizon.next(1_250), 1_000);
/// assert_eq!(horizon.next(1_260), 1_160);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Horizon {
    previous: u64,
    slack: u64,
}

impl Horizon {
    /// A horizon that stays `slack` behind the clock. Rings must have room for the samples of that time.
    pub fn with_slack(slack: Duration) -> Self {
        Self { previous: 0, slack: u64::try_from(slack.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// The horizon of the round that begins at `now` ([`Rings::now`](crate::Rings::now)).
    pub fn next(&mut self, now: u64) -> u64 {
        let previous = mem::replace(&mut self.previous, now);
        previous.min(now.saturating_sub(self.slack))
    }
}

impl Default for Horizon {
    /// A slack of 10 ms.
    fn default() -> Self {
        Self::with_slack(Duration::from_millis(10))
    }
}

/// Merges rings. Allocates only when the number of rings grows.
#[derive(Debug)]
pub(crate) struct Merge {
    /// The time of each ring's next record, smallest on top.
    heads: BinaryHeap<Reverse<(u64, usize)>>,
    /// For records that wrap.
    scratch: Box<[u8]>,
    /// The greatest time lent so far.
    lent: u64,
    /// The greatest time of any ring's next record in the last round.
    seen: u64,
}

impl Merge {
    pub(crate) fn new() -> Self {
        Self { heads: BinaryHeap::new(), scratch: vec![0; MAX_RECORD_SIZE].into(), lent: 0, seen: 0 }
    }

    /// The greatest time that the last round has seen; 0 if it has seen no record.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    /// Lends all records older than `horizon`, oldest first, then releases their space to the kernel, even if `f`
    /// panics.
    pub(crate) fn drain<M: Memory>(
        &mut self,
        rings: &mut [Ring<M>],
        horizon: u64,
        watermark: u64,
        f: &mut impl FnMut(Record<'_>),
    ) -> Drained {
        let rings = Commit(rings);
        let mut drained = Drained::default();
        self.seen = 0;
        self.heads.clear();
        for (index, ring) in rings.0.iter_mut().enumerate() {
            ring.refresh();
            if let Some(time) = ring.peek() {
                self.seen = self.seen.max(time);
                self.heads.push(Reverse((time, index)));
            }
        }
        while let Some(mut top) = self.heads.peek_mut() {
            let Reverse((time, index)) = *top;
            if time >= horizon {
                break;
            }
            drained.records += 1;
            drained.late += u64::from(time < self.lent);
            self.lent = self.lent.max(time);
            let ring = &mut rings.0[index];
            ring.take(&mut self.scratch, f);
            match ring.peek() {
                Some(time) => {
                    self.seen = self.seen.max(time);
                    *top = Reverse((time, index));
                }
                None => drop(PeekMut::pop(top)),
            }
        }
        for ring in rings.0.iter_mut() {
            drained.malformed += ring.take_malformed();
            drained.backlog |= ring.refresh() > watermark;
        }
        drained
    }
}

/// Releases the records that were read, in every ring, when it is dropped.
struct Commit<'a, M: Memory>(&'a mut [Ring<M>]);

impl<M: Memory> Drop for Commit<'_, M> {
    fn drop(&mut self) {
        for ring in self.0.iter_mut() {
            ring.commit();
        }
    }
}

#[cfg(test)]
mod tests;
