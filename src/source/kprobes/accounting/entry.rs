//! The entry of a conversation, as it lies in the map and in the ring.

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
/// It is never made in this program: its fields are the offsets for programs and for [`totals`].
#[repr(C)]
pub(super) struct Entry {
    /// 0, which is the id of no trace event: the entry is also a record in the ring.
    pub(super) id: u16,
    /// [`KIND`].
    pub(super) kind: u16,
    /// 1 once a packet of this direction was sampled, since the entry was made or since the last pause.
    pub(super) seen_out: u8,
    pub(super) seen_in: u8,
    /// 1 once a sent datagram was counted that may be several joined ones, judged by its size.
    pub(super) short_sent: u8,
    /// 1 once a received datagram was counted that has a nonlinear part.
    pub(super) nonlinear_received: u8,
    /// The `struct sock`.
    pub(super) sock: u64,
    /// When the entry was made.
    pub(super) since: u64,
    /// The `struct net` of TCP; 0 for UDP.
    pub(super) net: u64,
    /// This host's address and the other one, in memory order: 4 bytes each for IPv4, 16 bytes for IPv6, then zeros.
    pub(super) addresses: [u64; 4],
    /// This host's port and the other one, in network byte order.
    pub(super) ports: [u16; 2],
    /// 6 or 17.
    pub(super) protocol: u16,
    /// `AF_INET` or `AF_INET6`.
    pub(super) family: u16,
    /// The last packet, counted or sampled.
    pub(super) last: u64,
    pub(super) sent_packets: u64,
    pub(super) sent_bytes: u64,
    pub(super) received_packets: u64,
    pub(super) received_bytes: u64,
    /// What `tcp_sock.segs_in` should be if each packet that has arrived were one segment, modulo 2³².
    pub(super) expected: u64,
    /// How many of `received_packets` are segments that only `tcp_sock.segs_in` has shown.
    pub(super) merged: u64,
    /// `tcp_sock.segs_out` at the last outgoing packet.
    pub(super) segs_out: u32,
    /// IP and TCP header of the last received packet without SYN, in bytes; 0 if there was none.
    pub(super) received_headers: u16,
    pub(super) padding: u16,
    /// The shortest and the longest since the last outgoing packet; 0 if there was none.
    pub(super) received_shortest: u16,
    pub(super) received_longest: u16,
    /// How many of `merged` may have had headers of another length.
    pub(super) merged_unsure: u32,
    /// The last counted outgoing packet, in bytes with its headers.
    pub(super) last_sent_bytes: u32,
    /// Its headers in bytes.
    pub(super) last_sent_headers: u16,
    /// Its segments.
    pub(super) last_sent_segments: u16,
    /// The largest payload of a segment in bytes, estimated from packets of several segments.
    pub(super) full: u32,
    /// Its own number in the array of entries.
    pub(super) number: u32,
    /// The hash of the ends of a TCP connection; 0 if packets cannot be looked up by them.
    pub(super) ends_hash: u64,
    /// When its socket ended, and nothing led to the entry any more; 0 before that. The rest stays until the entry is made anew.
    pub(super) removed: u64,
}

/// The size of an entry in bytes, a multiple of 8.
pub(super) const SIZE: u16 = size_of::<Entry>() as u16;
/// The kind of record that an entry is in the ring.
pub(super) const KIND: u16 = 1;
/// The offset of a field of an [`Entry`] in bytes.
macro_rules! offset {
    ($field:ident) => {
        std::mem::offset_of!(crate::source::kprobes::accounting::entry::Entry, $field) as i16
    };
}
pub(super) use offset;

/// The number in a field of the entry in `$bytes`.
macro_rules! number {
    ($bytes:expr, $kind:ty, $field:ident) => {
        <$kind>::from_ne_bytes(*$bytes.get(offset_of!(Entry, $field)..)?.first_chunk()?)
    };
}

/// The entry of a record of the ring. `None` if it is of another kind, or if no conversation is in it.
pub(in super::super) fn of_record(raw: &[u8]) -> Option<Totals> {
    if number!(raw, u16, id) != 0 || number!(raw, u16, kind) != KIND {
        return None;
    }
    totals(raw)
}

/// What an entry says. `None` if it is too short, or not of a conversation.
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
    let full = number!(bytes, u32, full);
    Some(TcpTotals {
        segs_out: Some(number!(bytes, u32, segs_out)),
        received_headers: number!(bytes, u16, received_headers),
        received_range: (number!(bytes, u16, received_shortest), number!(bytes, u16, received_longest)),
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

/// The socket of an entry, and when it was removed.
pub(super) fn removed(bytes: &[u8]) -> Option<(u64, MonotonicTime)> {
    Some((number!(bytes, u64, sock), MonotonicTime::from_nanos(number!(bytes, u64, removed))))
}

/// The packets of conversations that found no room, from the bytes of the entry that counts them.
pub(super) fn without_room(bytes: &[u8]) -> Option<u64> {
    Some(number!(bytes, u64, sent_packets))
}

/// The fields that packets of a direction are counted in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    pub(super) seen: i16,
    pub(super) packets: i16,
    pub(super) bytes: i16,
}

impl Side {
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
