//! What the kernel counts of conversations by itself, without a sample of each packet.
//!
//! A program at the packet probes keeps an entry for each conversation. It samples a packet that says something new: the first of
//! each direction, those with SYN, FIN or RST, those that it cannot count, and the first after a pause. It counts all others.
//! [`Totals`] are such an entry's counts.
//!
//! Totals are reported before the next sample of the same entry, and when the socket is freed. In between, the source can be
//! asked. They are cumulative, so it does not matter how often they are read.

use serde::{Deserialize, Serialize};

use crate::model::flow::{Counters, Endpoint, Transport};
use crate::model::kernel_address::SockAddress;
use crate::model::time::MonotonicTime;

/// A conversation: the packets of one socket between its two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conversation {
    /// The `struct sock`.
    pub sock: SockAddress,
    /// This host's end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
}

/// What the kernel has counted of a conversation without a sample, since its entry was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// The `struct sock` that sent or received the packets.
    pub sock: SockAddress,
    /// Their transport.
    pub transport: Transport,
    /// This host's end, from the packets' own headers.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// When the entry was made: tells it from an earlier one of the same socket address.
    pub since: MonotonicTime,
    /// What left, without the packets that were sampled. Only grows.
    pub sent: Counters,
    /// What arrived, without the packets that were sampled. Only grows.
    pub received: Counters,
    /// The last packet's time, counted or sampled.
    pub last: MonotonicTime,
    /// Whether a sent packet of UDP was counted that is no larger than
    /// [`gso_head_len`](crate::model::event::SourceCapabilities::gso_head_len): it may hold several datagrams if its socket uses
    /// UDP GSO.
    pub short_datagrams: bool,
    /// Whether a received packet of UDP was counted that has a nonlinear part: it may hold several datagrams if its socket is the
    /// kernel's.
    pub nonlinear_datagrams: bool,
    /// Further counts for TCP; `None` for UDP.
    pub tcp: Option<TcpTotals>,
}

/// The segment counters of a socket grow by less than this between two of its packets: 2 MB of 32-byte segments. If one has grown
/// by more, it is another socket's.
pub(crate) const MAX_SEGMENT_GROWTH: u32 = 1 << 16;

/// Further counts of a TCP entry, as of its last packet. The sizes of sampled packets are taken into account as well.
///
/// An outgoing packet is counted as the number of segments by which `tcp_sock.segs_out` has grown since the outgoing packet
/// before, sampled or not. At each outgoing packet, the packets that have arrived are compared with `tcp_sock.segs_in`, and
/// missing ones are counted with the headers of the last one. At a sampled outgoing packet, the state machine counts its segments
/// and the missing packets, so the program adds them to neither `sent` nor `received`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TcpTotals {
    /// `tcp_sock.segs_out` at the last outgoing packet, modulo 2³²; `None` if there was none.
    pub segs_out: Option<u32>,
    /// IP and TCP header of the last packet that arrived, in bytes. A SYN's only until another packet arrives.
    pub received_headers: u16,
    /// The shortest and the longest of these headers since the packets were last compared with `tcp_sock.segs_in`; 0 for none.
    pub received_range: (u16, u16),
    /// What `tcp_sock.segs_in` will be, modulo 2³², once the socket has counted all packets that arrived: its value when the
    /// entry was made, and all segments since then, sampled or not. Packets that arrived before, but had not been counted by the
    /// socket yet, are missing in it.
    pub expected_segs_in: u32,
    /// How many of the segments counted as received are known only from `tcp_sock.segs_in`, not from a packet. Only grows.
    pub merged: u64,
    /// How many segments were counted as received whose headers may have had another length. Only grows.
    pub merged_unsure: u32,
    /// The size of the last outgoing packet, in bytes with its headers.
    pub sent_bytes: u32,
    /// Its IP and TCP header, in bytes.
    pub sent_headers: u16,
    /// The number of segments that it was split into.
    pub sent_segments: u16,
    /// The payload of a full segment in bytes, from packets that were split: of all of them, the largest quotient of payload
    /// and segments, rounded up; 0 if there were none.
    pub sent_full: u16,
}

impl Totals {
    /// Whose packets are counted.
    pub fn conversation(&self) -> Conversation {
        let Self { sock, local, remote, .. } = *self;
        Conversation { sock, local, remote }
    }

    /// The totals of an entry with these ends that has counted nothing yet.
    pub(crate) fn none_of(other: &Self) -> Self {
        let none = Counters::default();
        Self { sent: none, received: none, last: other.since, tcp: other.tcp.map(|_| TcpTotals::default()), ..*other }
    }

    /// Whether they are of the same entry.
    pub(crate) fn is_of_entry(&self, other: &Self) -> bool {
        let entry = |totals: &Self| (totals.sock, totals.transport, totals.local, totals.remote, totals.since);
        entry(self) == entry(other)
    }
}
