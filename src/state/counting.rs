//! How packets become wire packets and wire bytes.
//!
//! The kernel carries several segments as one packet (GSO out, GRO in). A TCP socket's own segment counters tell how
//! many there were; every further segment repeats the headers of the first.

use super::flows::{Headers, Live, Watched};
use crate::event::{Fragmented, Packet, Segments, Size, Transport, Way, tcp_flags};
use crate::flow::Counters;

/// More segments than this between two samples is no super-packet but another socket's counter: 2 MB of 32-byte
/// segments.
const PLAUSIBLE: u32 = 1 << 16;

/// IP headers of fragments, in bytes: IPv4's without options (RFC 791); IPv6's with a fragment header (RFC 8200).
const IPV4_FRAGMENT: u32 = 20;
/// See [`IPV4_FRAGMENT`].
const IPV6_FRAGMENT: u32 = 40 + 8;

/// Adds a packet to its flow's counters.
///
/// Sent by another socket than the flow's, such as the kernel's own, which sends the last words of connections that have none
/// any more, it tells nothing of the flow's segments.
pub fn add(live: &mut Live, packet: &Packet, by_own_socket: bool) {
    let counters = match packet.way {
        Way::Out => &mut live.sent,
        Way::In => &mut live.received,
    };
    match packet.size {
        Size::Total { packets, bytes } => {
            counters.packets = counters.packets.max(packets);
            counters.bytes = counters.bytes.max(bytes);
        }
        Size::Packet { bytes, headers } => {
            *counters = counters.plus(1, u64::from(bytes));
            if packet.fragment > 0 {
                *counters = counters.fragments(bytes, packet.fragment, packet.tuple.remote.ip.is_ipv4());
                live.inexact.fragments = true;
            }
            match (packet.transport, packet.way) {
                (Transport::Udp, _) => {}
                (Transport::Tcp, Way::In) => {
                    live.received_headers.note(headers, packet.tcp_flags & tcp_flags::SYN == 0);
                    let first = packet.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
                    live.inexact.late_data |= live.uncounted && bytes > u32::from(headers);
                    live.syns = live.syns.saturating_add(u8::from(first && !live.bound));
                }
                (Transport::Tcp, Way::Out) if by_own_socket => further_segments(live, packet, headers),
                (Transport::Tcp, Way::Out) => {}
            }
        }
    }
}

/// Counts what a packet that was counted as one becomes when it is cut.
pub fn further_fragments(live: &mut Live, packet: &Fragmented) {
    live.sent = live.sent.fragments(packet.bytes, packet.first, packet.tuple.remote.ip.is_ipv4());
    live.inexact.fragments = true;
}

/// Counts what else a packet that leaves carries, and what has arrived meanwhile.
fn further_segments(live: &mut Live, packet: &Packet, headers: u16) {
    let Some(now) = packet.segments.filter(|_| live.bound) else { return };
    if live.segments.is_none() {
        live.segments = first_seen(live, packet, now);
    }
    if let Some(before) = live.segments {
        let more = since(before.last.sent, now.sent).saturating_sub(1);
        live.sent = live.sent.plus(more, more * u64::from(headers));
    }
    settle(live, now);
}

/// Where a socket's counters stood before its flow began: a SYN is one segment and finds them as the attempt before
/// left them; an accepted connection's begin at zero (its SYN counts as received, once, however often it came:
/// `tcp_create_openreq_child`).
fn first_seen(live: &Live, packet: &Packet, now: Segments) -> Option<Watched> {
    if packet.tcp_flags & tcp_flags::SYN != 0 {
        let last = Segments { sent: now.sent.wrapping_sub(1), received: now.received };
        Some(Watched { last, received_before: now.received })
    } else if live.complete {
        let repeated = u32::from(live.syns.saturating_sub(1));
        Some(Watched { last: Segments::default(), received_before: 0_u32.wrapping_sub(repeated) })
    } else {
        let last = Segments { sent: now.sent.wrapping_sub(1), ..now };
        let seen = u32::try_from(live.received.packets).unwrap_or(u32::MAX);
        Some(Watched { last, received_before: now.received.wrapping_sub(seen) })
    }
}

/// Brings what was received up to the socket's own count.
pub fn settle(live: &mut Live, now: Segments) {
    let Some(watched) = &mut live.segments else { return };
    watched.last = now;
    let arrived = now.received.wrapping_sub(watched.received_before);
    let missing = u64::from(arrived).saturating_sub(live.received.packets);
    if missing > 0 && missing < u64::from(PLAUSIBLE) && live.received.packets > 0 {
        let Headers { last, range: (shortest, longest) } = live.received_headers;
        live.received = live.received.plus(missing, missing * u64::from(last));
        // Which of the packets were several is not known: they may all have been one with other headers.
        live.inexact.merged_segments |= shortest != longest;
    }
    live.received_headers.range = (0, 0);
}

impl Headers {
    /// What `may_merge` is among packets of which some were several.
    fn note(&mut self, headers: u16, may_merge: bool) {
        self.last = headers;
        if !may_merge {
            return;
        }
        self.range = match self.range {
            (0, 0) => (headers, headers),
            (shortest, longest) => (shortest.min(headers), longest.max(headers)),
        };
    }
}

fn since(before: u32, now: u32) -> u64 {
    let segments = now.wrapping_sub(before);
    if segments < PLAUSIBLE { u64::from(segments) } else { 1 }
}

impl Counters {
    fn plus(self, packets: u64, bytes: u64) -> Self {
        Self { packets: self.packets.saturating_add(packets), bytes: self.bytes.saturating_add(bytes) }
    }

    /// Adds to a packet of `bytes`, of which the largest fragment has `largest` bytes, all but the first. All are as large
    /// as the largest, but the last. Two, where it is not known how large that is; one, for a fragment that is all there is.
    fn fragments(self, bytes: u32, largest: u16, ipv4: bool) -> Self {
        let (plain, header) = if ipv4 { (IPV4_FRAGMENT, IPV4_FRAGMENT) } else { (IPV6_FRAGMENT - 8, IPV6_FRAGMENT) };
        let payload = bytes.saturating_sub(plain);
        let each = u32::from(largest).saturating_sub(header);
        let count = if each == 0 { 2 } else { payload.div_ceil(each).max(1) };
        self.plus(u64::from(count - 1), u64::from(count) * u64::from(header) - u64::from(plain))
    }
}
