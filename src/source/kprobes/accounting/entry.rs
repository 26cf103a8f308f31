//! The entry of a conversation: its bytes in the map and in the ring.

use std::mem::offset_of;
use std::net::Ipv4Addr;

use crate::model::event::PacketDirection;
use crate::model::flow::{Counters, Endpoint, Transport};
use crate::model::kernel_address::SockAddress;
use crate::model::time::MonotonicTime;
use crate::model::totals::{TcpTotals, Totals};
use crate::source::kprobes::{AF_INET, AF_INET6, ipv6_address};

/// What is counted of a conversation. Numbers are in the machine's byte order, times in nanoseconds of the monotonic clock.
///
/// Only BPF programs make one. User space uses this struct for the offsets of its fields: see [`offset!`] and [`totals`].
#[repr(C)]
pub(super) struct Entry {
    /// Always 0. The entry is also written into the ring, where trace events have their id here; none has the id 0.
    pub(super) id: u16,
    /// [`RECORD_KIND`].
    pub(super) record_kind: u16,
    /// 1 if an outgoing packet was sampled since the entry was made or since the last pause.
    pub(super) seen_out: u8,
    /// The same for arriving packets.
    pub(super) seen_in: u8,
    /// 1 once a sent packet of UDP was counted that is no larger than [`Rules::gso_head_len`](super::Rules::gso_head_len): it may
    /// hold several datagrams if its socket uses UDP GSO.
    pub(super) short_sent: u8,
    /// 1 once a received packet of UDP was counted that has a nonlinear part: it may hold several datagrams if its socket is the
    /// kernel's.
    pub(super) nonlinear_received: u8,
    /// When the entry was removed, because its socket ended or it was evicted; 0 before that. The other fields stay as they are
    /// until another conversation gets the entry.
    pub(super) removed: u64,
    /// The address of the `struct sock`.
    pub(super) sock: u64,
    /// When the entry was made.
    pub(super) since: u64,
    /// The address of the `struct net` for TCP; 0 for UDP.
    pub(super) net: u64,
    /// This host's address and the other one, in memory order: 4 bytes each for IPv4, 16 bytes for IPv6, then zeros.
    pub(super) addresses: [u64; 4],
    /// This host's port and the other one, in network byte order.
    pub(super) ports: [u16; 2],
    /// 6 or 17.
    pub(super) protocol: u16,
    /// `AF_INET` or `AF_INET6`.
    pub(super) family: u16,
    /// When the last packet was counted or sampled.
    pub(super) last: u64,
    pub(super) sent_packets: u64,
    pub(super) sent_bytes: u64,
    pub(super) received_packets: u64,
    pub(super) received_bytes: u64,
    /// What `tcp_sock.segs_in` should be if each packet that arrived since the last comparison were one segment, modulo 2³².
    pub(super) expected_segs_in: u64,
    /// How many of `received_packets` no packet has shown, only `tcp_sock.segs_in`: segments that GRO has merged with others.
    pub(super) merged: u64,
    /// `tcp_sock.segs_out` at the last outgoing packet.
    pub(super) segs_out: u32,
    /// The length of the headers (IP and TCP together) of the last received packet without SYN, in bytes; 0 if there was none.
    pub(super) received_headers: u16,
    pub(super) padding: u16,
    /// The shortest and the longest of these lengths since the last outgoing packet; 0 if there was none. Programs clear both at
    /// once.
    pub(super) shortest_headers: u16,
    pub(super) longest_headers: u16,
    /// How many of `merged` may have had headers of another length.
    pub(super) merged_unsure: u32,
    /// The size of the last counted outgoing packet with its headers, in bytes.
    pub(super) last_sent_bytes: u32,
    /// The length of its headers, in bytes.
    pub(super) last_sent_headers: u16,
    /// The number of its segments.
    pub(super) last_sent_segments: u16,
    /// The largest payload of a segment in bytes, estimated from packets of several segments.
    pub(super) full_payload: u32,
    /// Its own number in the array of entries.
    pub(super) number: u32,
    /// The hash of the ends of a TCP connection; 0 if packets cannot be looked up by them.
    pub(super) ends_hash: u64,
    /// Which ways of a UDP socket are in use, a bit for each: see [`WAYS`](super::table::WAYS).
    pub(super) ways: u64,
}

/// The size of an entry in bytes, a multiple of 8.
pub(super) const SIZE: u16 = size_of::<Entry>() as u16;
/// Marks an entry among the records that programs write into the ring.
pub(super) const RECORD_KIND: u16 = 1;
/// The offset of a field of an [`Entry`] in bytes.
macro_rules! offset {
    ($field:ident) => {
        std::mem::offset_of!(crate::source::kprobes::accounting::entry::Entry, $field) as i16
    };
}
pub(super) use offset;

/// The value of a field of the entry in `$bytes`. `$kind` is its type.
macro_rules! number {
    ($bytes:expr, $kind:ty, $field:ident) => {
        <$kind>::from_ne_bytes(*$bytes.get(offset_of!(Entry, $field)..)?.first_chunk()?)
    };
}

/// The counts in a record of the ring. `None` if the record is not an entry.
pub(in crate::source) fn of_record(raw: &[u8]) -> Option<Totals> {
    if number!(raw, u16, id) != 0 || number!(raw, u16, record_kind) != RECORD_KIND {
        return None;
    }
    totals(raw)
}

/// The counts of an entry. `None` if the bytes are too few, or not those of a conversation.
pub(super) fn totals(bytes: &[u8]) -> Option<Totals> {
    if bytes.len() < usize::from(SIZE) {
        return None;
    }
    let transport = match number!(bytes, u16, protocol) {
        6 => Transport::Tcp,
        17 => Transport::Udp,
        _ => return None,
    };
    let (local, remote) = ends(bytes)?;
    Some(Totals {
        sock: SockAddress::new(number!(bytes, u64, sock))?,
        transport,
        local,
        remote,
        since: MonotonicTime::from_nanos(number!(bytes, u64, since)),
        sent: Counters { packets: number!(bytes, u64, sent_packets), bytes: number!(bytes, u64, sent_bytes) },
        received: Counters {
            packets: number!(bytes, u64, received_packets),
            bytes: number!(bytes, u64, received_bytes),
        },
        last: MonotonicTime::from_nanos(number!(bytes, u64, last)),
        short_datagrams: number!(bytes, u8, short_sent) != 0,
        nonlinear_datagrams: number!(bytes, u8, nonlinear_received) != 0,
        tcp: if transport == Transport::Tcp { Some(tcp(bytes)?) } else { None },
    })
}

fn tcp(bytes: &[u8]) -> Option<TcpTotals> {
    let full = number!(bytes, u32, full_payload);
    Some(TcpTotals {
        segs_out: Some(number!(bytes, u32, segs_out)),
        received_headers: number!(bytes, u16, received_headers),
        received_range: (number!(bytes, u16, shortest_headers), number!(bytes, u16, longest_headers)),
        expected_segs_in: number!(bytes, u64, expected_segs_in) as u32,
        merged: number!(bytes, u64, merged),
        merged_unsure: number!(bytes, u32, merged_unsure),
        sent_bytes: number!(bytes, u32, last_sent_bytes),
        sent_headers: number!(bytes, u16, last_sent_headers),
        sent_segments: number!(bytes, u16, last_sent_segments),
        sent_full: u16::try_from(full).unwrap_or(u16::MAX),
    })
}

fn ends(bytes: &[u8]) -> Option<(Endpoint, Endpoint)> {
    let addresses = bytes.get(offset_of!(Entry, addresses)..)?.first_chunk::<32>()?;
    let ports = bytes.get(offset_of!(Entry, ports)..)?.first_chunk::<4>()?;
    let [local, remote] = [[ports[0], ports[1]], [ports[2], ports[3]]].map(u16::from_be_bytes);
    let word = |at: usize| addresses[at..].first_chunk().map(|word| u64::from_ne_bytes(*word));
    match number!(bytes, u16, family) {
        AF_INET => {
            let [a, b, c, d, e, f, g, h, ..] = *addresses;
            Some((Endpoint::new(Ipv4Addr::new(a, b, c, d), local), Endpoint::new(Ipv4Addr::new(e, f, g, h), remote)))
        }
        AF_INET6 => Some((
            Endpoint::new(ipv6_address([word(0)?, word(8)?]), local),
            Endpoint::new(ipv6_address([word(16)?, word(24)?]), remote),
        )),
        _ => None,
    }
}

/// The ways of a socket that are in use, from the bytes of its first entry.
pub(super) fn ways(bytes: &[u8]) -> Option<u64> {
    Some(number!(bytes, u64, ways))
}

/// The number of words at the beginning of an entry that contain [`Entry::removed`].
pub(super) const WORDS_WITH_REMOVED: usize = offset_of!(Entry, removed) / 8 + 1;

/// When an entry was removed; 0 if it was not. From its first words.
pub(super) const fn removed(words: [u64; WORDS_WITH_REMOVED]) -> MonotonicTime {
    MonotonicTime::from_nanos(words[WORDS_WITH_REMOVED - 1])
}

/// The number of packets that were sampled for lack of room in the table, from the bytes of the entry that counts them.
pub(super) fn refused_packets(bytes: &[u8]) -> Option<u64> {
    Some(number!(bytes, u64, sent_packets))
}

/// The offsets of the fields in which packets of one direction are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct DirectionFields {
    pub(super) seen: i16,
    pub(super) packets: i16,
    pub(super) bytes: i16,
}

impl DirectionFields {
    pub(super) const fn of(direction: PacketDirection) -> Self {
        match direction {
            PacketDirection::Outbound => {
                Self { seen: offset!(seen_out), packets: offset!(sent_packets), bytes: offset!(sent_bytes) }
            }
            PacketDirection::Inbound => {
                Self { seen: offset!(seen_in), packets: offset!(received_packets), bytes: offset!(received_bytes) }
            }
        }
    }
}
