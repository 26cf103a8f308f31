//! Losses: how much was missed, where, and when.
//!
//! Every sample that found no room is counted ([`MonitorStats`](crate::monitor::MonitorStats)) and marks the flows that were live
//! then ([`Inexact`](crate::model::flow::Inexact)). A consumer of a monitor also gets each [`Loss`] soon after it happened, as
//! [`Received::Loss`](crate::monitor::Received::Loss).

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::model::feature::Feature;
use crate::model::flow::Transport;
use crate::model::time::MonotonicTime;

/// What was lost by one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Where it was lost.
    pub cause: LossCause,
    /// The number of samples, probe hits or results.
    pub count: u64,
    /// When the first one was noticed.
    pub first: MonotonicTime,
    /// When the last one was noticed.
    pub last: MonotonicTime,
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
    /// A probe was hit and could neither write a sample nor count: too many probed calls were in progress, or an interrupt
    /// came while another probe or another BPF program was running.
    Probes {
        /// What the probe is for.
        feature: Feature,
    },
    /// Flows, names or socket events were dropped because the queue of results was full; see
    /// [`Options::flow_queue_size`](crate::monitor::Options::flow_queue_size).
    Results,
}

impl LossCause {
    /// The name in documents: `ring`, `probes`, `results`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring { .. } => "ring",
            Self::Probes { .. } => "probes",
            Self::Results => "results",
        }
    }
}

impl fmt::Display for Loss {
    /// What was lost, the cause, and a remedy if there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.count;
        match self.cause {
            LossCause::Ring { cpu } => {
                let remedy = "a larger ring_size_exponent gives each ring more room";
                write!(f, "{count} samples found no room in the ring of CPU {cpu}: {remedy}")
            }
            LossCause::Probes { feature } => {
                let why = "an interrupt came while another probe or another BPF program was running, or too many calls were in \
                           progress at once";
                write!(f, "{count} hits of the probe {feature} were missed: {why}")
            }
            LossCause::Results => {
                let remedy = "use a faster output, or exclude flows";
                write!(f, "{count} flows, names or socket events were not received in time: {remedy}")
            }
        }
    }
}

/// The kinds of facts that a loss may affect.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostFacts(u8);

impl LostFacts {
    /// No facts that flows report.
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
    /// Which process owns a socket, and whether another socket has its address by now.
    pub const OWNERS: Self = Self(1 << 5);
    /// Which program a process runs, and its users and groups.
    pub const PROCESSES: Self = Self(1 << 6);
    /// Which process accepts a connection.
    pub const ACCEPTS: Self = Self(1 << 7);
    /// Everything.
    pub const ALL: Self = Self(u8::MAX);

    /// The union of both.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the two have anything in common.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Packets of this transport, over the IP version of the remote address.
    pub const fn packets(transport: Transport, remote: IpAddr) -> Self {
        match (transport, remote.is_ipv4()) {
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

/// Losses, added up by cause: at most one for each cause.
#[derive(Debug, Default)]
pub(crate) struct Losses(Vec<Loss>);

impl Losses {
    /// Adds a loss.
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

    /// Takes all losses out.
    pub(crate) fn drain(&mut self) -> std::vec::Drain<'_, Loss> {
        self.0.drain(..)
    }

    /// Offers each loss to `take`, and keeps those that it refuses.
    pub(crate) fn offer(&mut self, mut take: impl FnMut(Loss) -> bool) {
        self.0.retain(|loss| !take(*loss));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::monotonic;

    const PROBES: LossCause = LossCause::Probes { feature: Feature::Accept };

    fn loss(cause: LossCause, count: u64, first: u64, last: u64) -> Loss {
        Loss { cause, count, first: monotonic(first), last: monotonic(last) }
    }

    #[test]
    fn losses_of_one_cause_are_added_up() {
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
    fn a_refused_loss_is_offered_again() {
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
