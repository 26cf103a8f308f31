//! What was missed: how much, where, and between which moments.
//!
//! Every sample that found no room is counted ([`Stats`](crate::monitor::Stats)) and marks the flows that were open then
//! ([`Inexact`](crate::flow::Inexact)). A [`Loss`] says the same aloud, as it happens, to whoever takes what a monitor hands
//! out: [`Received::Loss`](crate::monitor::Received::Loss).

use std::fmt;

use serde::Serialize;

use crate::event::{KernelTime, Transport};
use crate::feature::Feature;

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
    /// A probe was hit and could not write a sample: too many probed calls were in progress at once, or an interrupt
    /// hit it during another probe's hit.
    Probes {
        /// What the probe is for.
        feature: Feature,
    },
    /// Flows, names or socket events found no room, because nobody took those before them; see
    /// [`Options::flow_queue_size`](crate::monitor::Options::flow_queue_size).
    Results,
}

impl LossCause {
    /// What it is called in documents: `ring`, `probes`, `results`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring { .. } => "ring",
            Self::Probes { .. } => "probes",
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
            LossCause::Probes { feature } => {
                let why = "an interrupt came within another probe's hit, or too many calls were in progress at once";
                write!(f, "{count} hits of the probe {feature} were missed: {why}")
            }
            LossCause::Results => {
                let remedy = "a larger flow_queue_size helps over short bursts";
                write!(f, "{count} flows, names or socket events were not taken in time: {remedy}")
            }
        }
    }
}

/// The kinds of facts that a loss may affect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Harm(u8);

impl Harm {
    /// Nothing that flows report.
    pub const NONE: Self = Self(0);
    /// Packets of TCP over IPv4.
    pub const TCP_IPV4: Self = Self(1);
    /// Packets of UDP over IPv4.
    pub const UDP_IPV4: Self = Self(1 << 1);
    /// Packets of TCP over IPv6.
    pub const TCP_IPV6: Self = Self(1 << 2);
    /// Packets of UDP over IPv6.
    pub const UDP_IPV6: Self = Self(1 << 3);
    /// The outcome of a connection, and when its socket was closed.
    pub const OUTCOMES: Self = Self(1 << 4);
    /// Who owns a socket, and whether another socket has its address by now.
    pub const OWNERS: Self = Self(1 << 5);
    /// Which program a process runs, and as which user.
    pub const PROCESSES: Self = Self(1 << 6);
    /// Which process accepts a connection.
    pub const ACCEPTS: Self = Self(1 << 7);
    /// Everything.
    pub const ALL: Self = Self(u8::MAX);

    /// Both.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the two have anything in common.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Packets of this transport, over IPv4 or IPv6.
    pub const fn packets(transport: Transport, is_ipv4: bool) -> Self {
        match (transport, is_ipv4) {
            (Transport::Tcp, true) => Self::TCP_IPV4,
            (Transport::Udp, true) => Self::UDP_IPV4,
            (Transport::Tcp, false) => Self::TCP_IPV6,
            (Transport::Udp, false) => Self::UDP_IPV6,
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

    const PROBES: LossCause = LossCause::Probes { feature: Feature::Accept };

    fn loss(cause: LossCause, count: u64, first: u64, last: u64) -> Loss {
        Loss { cause, count, first, last }
    }

    #[test]
    fn of_one_cause_is_one_loss() {
        let mut losses = Losses::default();
        for (cpu, count, at) in [(0, 5, 10), (1, 2, 11), (0, 7, 30), (0, u64::MAX, 20)] {
            losses.add(loss(LossCause::Ring { cpu }, count, at, at));
        }
        losses.add(loss(PROBES, 1, 12, 12));
        let all: Vec<_> = losses.drain().collect();
        let expected = [
            loss(LossCause::Ring { cpu: 0 }, u64::MAX, 10, 30),
            loss(LossCause::Ring { cpu: 1 }, 2, 11, 11),
            loss(PROBES, 1, 12, 12),
        ];
        assert_eq!(all, expected);
        assert_eq!(losses.drain().count(), 0);
    }

    #[test]
    fn what_is_not_taken_is_offered_again() {
        let mut losses = Losses::default();
        losses.add(loss(PROBES, 1, 1, 1));
        losses.offer(|_| false);
        losses.add(loss(PROBES, 2, 5, 5));
        let mut taken = Vec::new();
        losses.offer(|loss| {
            taken.push(loss);
            true
        });
        assert_eq!(taken, [loss(PROBES, 3, 1, 5)]);
        assert_eq!(losses.drain().count(), 0);
    }
}
