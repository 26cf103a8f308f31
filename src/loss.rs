//! What was missed: how much, where, and between which moments.
//!
//! Every sample that found no room is counted ([`Stats`](crate::monitor::Stats)) and marks the flows that were open then
//! ([`Inexact`](crate::flow::Inexact)). A [`Loss`] says the same aloud, as it happens, to whoever takes what a monitor hands
//! out: [`Received::Loss`](crate::monitor::Received::Loss).

use std::fmt;

use serde::Serialize;

use crate::event::KernelTime;

/// What was missed for one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Where it was lost.
    pub cause: LossCause,
    /// How many samples, hits or results.
    pub count: u64,
    /// When the first of them was found to be missing.
    pub first: KernelTime,
    /// When the last was.
    pub last: KernelTime,
}

/// Where something can be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossCause {
    /// Samples found no room in the ring of this CPU; see
    /// [`Options::ring_size_exponent`](crate::monitor::Options::ring_size_exponent).
    Ring {
        /// The CPU.
        cpu: u32,
    },
    /// Probes were hit and could not write a sample: returns of too many calls at once, or a hit within another's.
    Probes,
    /// Flows, names or socket events found no room, because nobody took those before them; see
    /// [`Options::flow_queue_size`](crate::monitor::Options::flow_queue_size).
    Results,
}

impl LossCause {
    /// What it is called in documents: `ring`, `probes`, `results`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring { .. } => "ring",
            Self::Probes => "probes",
            Self::Results => "results",
        }
    }
}

impl fmt::Display for Loss {
    /// What was lost and what helps, in a sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.count;
        match self.cause {
            LossCause::Ring { cpu } => {
                let remedy = "a larger ring_size_exponent gives each ring more room";
                write!(f, "{count} samples found no room in the ring of CPU {cpu}: {remedy}")
            }
            LossCause::Probes => {
                write!(f, "{count} hits of probes were missed: too many calls were in progress at once")
            }
            LossCause::Results => {
                let remedy = "a larger flow_queue_size helps over short bursts";
                write!(f, "{count} flows, names or socket events were not taken in time: {remedy}")
            }
        }
    }
}

impl Serialize for LossCause {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Losses, those of one cause joined into one: as many as there are causes at most.
#[derive(Debug, Default)]
pub(crate) struct Losses(Vec<Loss>);

impl Losses {
    /// Takes in one more.
    pub(crate) fn add(&mut self, loss: Loss) {
        match self.0.iter_mut().find(|known| known.cause == loss.cause) {
            Some(known) => {
                known.count = known.count.saturating_add(loss.count);
                known.first = known.first.min(loss.first);
                known.last = known.last.max(loss.last);
            }
            None => self.0.push(loss),
        }
    }

    /// Takes them out.
    pub(crate) fn drain(&mut self) -> std::vec::Drain<'_, Loss> {
        self.0.drain(..)
    }

    /// Offers each to `take`, and keeps those that it does not take.
    pub(crate) fn offer(&mut self, mut take: impl FnMut(Loss) -> bool) {
        self.0.retain(|loss| !take(*loss));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(cause: LossCause, count: u64, first: u64, last: u64) -> Loss {
        Loss { cause, count, first, last }
    }

    #[test]
    fn of_one_cause_is_one_loss() {
        let mut losses = Losses::default();
        for (cpu, count, at) in [(0, 5, 10), (1, 2, 11), (0, 7, 30), (0, u64::MAX, 20)] {
            losses.add(loss(LossCause::Ring { cpu }, count, at, at));
        }
        losses.add(loss(LossCause::Probes, 1, 12, 12));
        let all: Vec<_> = losses.drain().collect();
        let expected = [
            loss(LossCause::Ring { cpu: 0 }, u64::MAX, 10, 30),
            loss(LossCause::Ring { cpu: 1 }, 2, 11, 11),
            loss(LossCause::Probes, 1, 12, 12),
        ];
        assert_eq!(all, expected);
        assert_eq!(losses.drain().count(), 0);
    }

    #[test]
    fn what_is_not_taken_is_offered_again() {
        let mut losses = Losses::default();
        losses.add(loss(LossCause::Probes, 1, 1, 1));
        losses.offer(|_| false);
        losses.add(loss(LossCause::Probes, 2, 5, 5));
        let mut taken = Vec::new();
        losses.offer(|loss| {
            taken.push(loss);
            true
        });
        assert_eq!(taken, [loss(LossCause::Probes, 3, 1, 5)]);
        assert_eq!(losses.drain().count(), 0);
    }
}
