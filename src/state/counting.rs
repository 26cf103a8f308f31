//! How packets become wire packets and wire bytes.
//!
//! The kernel carries several segments as one packet (GSO out, GRO in). A TCP socket's own segment counters tell how
//! many there were; every further segment repeats the headers of the first.

use super::flows::{Headers, LastSent, Live, Watched};
use crate::event::{Fragmented, KernelTime, Packet, Segments, Size, Transport, Way, tcp_flags};
use crate::flow::Counters;

/// More segments than this between two samples is no super-packet but another socket's counter: 2 MB of 32-byte
/// segments.
const PLAUSIBLE: u32 = 1 << 16;

/// IP headers of fragments, in bytes: IPv4's without options (RFC 791); IPv6's with a fragment header (RFC 8200).
const IPV4_FRAGMENT: u32 = 20;
/// See [`IPV4_FRAGMENT`].
const IPV6_FRAGMENT: u32 = 40 + 8;

/// Adds a packet that was seen at `now` to its flow's counters.
///
/// Where the kernel's clock advances by ticks, two packets of two CPUs have the same time, and the later one may come first.
/// What the socket's counters said of the other one is then taken back.
///
/// Sent by another socket than the flow's, such as the kernel's own, which sends the last words of connections that have none
/// any more, it tells nothing of the flow's segments.
pub fn add(live: &mut Live, now: KernelTime, packet: &Packet, by_own_socket: bool) {
    let is_later = live.note_time(now);
    let counters = match packet.way {
        Way::Out => &mut live.sent,
        Way::In => &mut live.received,
    };
    let Size { bytes, headers } = packet.size;
    *counters = counters.plus(1, u64::from(bytes));
    if packet.fragment > 0 {
        *counters = counters.fragments(bytes, packet.fragment, packet.tuple.remote.ip.is_ipv4());
        live.inexact.fragments = true;
    }
    match (packet.transport, packet.way) {
        (Transport::Udp, _) => {}
        (Transport::Tcp, Way::In) => {
            let is_counted = note_received(live, packet, headers);
            let first = packet.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
            live.inexact.late_data |= live.uncounted && !is_counted && bytes > u32::from(headers);
            live.syns = live.syns.saturating_add(u8::from(first && !live.bound));
        }
        (Transport::Tcp, Way::Out) => {
            let further = match packet.segments.filter(|_| by_own_socket && live.bound) {
                Some(counted) if is_later || !is_overtaken(live, counted) => {
                    further_segments(live, now, packet, counted, headers)
                }
                _ => 0,
            };
            live.last_sent.note(bytes, headers, further + 1);
        }
    }
}

/// Counts what a packet that was counted as one becomes when it is cut.
pub fn further_fragments(live: &mut Live, packet: &Fragmented) {
    live.sent = live.sent.fragments(packet.bytes, packet.first, packet.tuple.remote.ip.is_ipv4());
    live.inexact.fragments = true;
}

/// Subtracts a packet that was counted as sent and dropped later. A TCP packet may stand for several segments.
pub fn take_back(live: &mut Live, bytes: u32, may_be_several: bool) {
    let LastSent { headers, .. } = live.last_sent;
    let (segments, is_exact) = if may_be_several { live.last_sent.segments_of(bytes) } else { (1, true) };
    let further = u64::from(segments) - 1;
    let all = Counters { packets: 1 + further, bytes: u64::from(bytes) + further * u64::from(headers) };
    live.inexact.dropped_locally |= !is_exact || live.sent.packets < all.packets || live.sent.bytes < all.bytes;
    live.dropped = live.dropped.plus(all.packets, all.bytes);
    live.sent = live.sent.minus(all);
}

/// Notes the headers of a received packet. Says whether the socket's counters have shown it before its sample came.
///
/// If so, it is one of the segments that were counted early. The others are taken to have its headers.
fn note_received(live: &mut Live, packet: &Packet, headers: u16) -> bool {
    let supposed = live.received_headers.last;
    // A SYN is never merged with others, and has options that others do not have.
    live.received_headers.note(headers, packet.tcp_flags & tcp_flags::SYN == 0);
    let Some(watched) = live.segments.as_mut().filter(|watched| watched.early > 0) else { return false };
    let early = u64::from(watched.early);
    watched.early -= 1;
    live.received = live.received.minus(Counters { packets: early, bytes: early * u64::from(supposed) });
    live.received = live.received.plus(early - 1, (early - 1) * u64::from(live.received_headers.last));
    true
}

/// Whether a packet was sent before another whose sample came first. It was then counted as a further segment of the other, and
/// that is taken back.
fn is_overtaken(live: &mut Live, counted: Segments) -> bool {
    let Some(watched) = live.segments else { return false };
    let behind = watched.sent.wrapping_sub(counted.sent);
    if behind > 0 && behind < u32::from(watched.sent_by_flow) {
        live.sent = live.sent.minus(Counters { packets: 1, bytes: live.last_sent.headers.into() });
    }
    behind > 0 && behind < PLAUSIBLE
}

/// Counts the further segments that an outgoing packet carries, and those that have arrived meanwhile. Returns how many
/// further segments were sent.
fn further_segments(live: &mut Live, now: KernelTime, packet: &Packet, counted: Segments, headers: u16) -> u64 {
    let watched = live.segments.unwrap_or_else(|| first_seen(live, packet, counted));
    let step = since(watched.sent, counted.sent);
    let sent_by_flow = watched.sent_by_flow.saturating_add(u16::try_from(step).unwrap_or(u16::MAX));
    live.segments = Some(Watched { sent: counted.sent, sent_by_flow, ..watched });
    let more = step.saturating_sub(1);
    live.sent = live.sent.plus(more, more * u64::from(headers));
    settle(live, now, counted);
    more
}

/// Where a socket's counters stood before its flow began: a SYN is one segment and finds them as the attempt before
/// left them; an accepted connection's begin at zero (its SYN counts as received, once, however often it came:
/// `tcp_create_openreq_child`).
fn first_seen(live: &Live, packet: &Packet, now: Segments) -> Watched {
    if packet.tcp_flags & tcp_flags::SYN != 0 {
        Watched::since(now.sent.wrapping_sub(1), now.received)
    } else if live.complete {
        let repeated = u32::from(live.syns.saturating_sub(1));
        Watched::since(0, 0_u32.wrapping_sub(repeated))
    } else {
        let seen = u32::try_from(live.received.packets).unwrap_or(u32::MAX);
        Watched::since(now.sent.wrapping_sub(1), now.received.wrapping_sub(seen))
    }
}

/// Brings what was received up to the socket's own count at `now`.
pub fn settle(live: &mut Live, now: KernelTime, counted: Segments) {
    let Some(watched) = &mut live.segments else { return };
    let arrived = counted.received.wrapping_sub(watched.received_before);
    let missing = u64::from(arrived).saturating_sub(live.received.packets);
    if missing > 0 && missing < u64::from(PLAUSIBLE) && live.received.packets > 0 {
        let Headers { last, range: (shortest, longest) } = live.received_headers;
        // A sample that is late itself says nothing of those that are still to come.
        if now == live.last {
            watched.early = watched.early.saturating_add(u16::try_from(missing).unwrap_or(u16::MAX));
        }
        live.received = live.received.plus(missing, missing * u64::from(last));
        // Which of the packets were several is not known: they may all have been one with other headers.
        live.inexact.merged_segments |= shortest != longest;
    }
    live.received_headers.range = (0, 0);
}

impl Headers {
    /// What `may_merge` is among packets of which some were several.
    fn note(&mut self, headers: u16, may_merge: bool) {
        if may_merge || self.last == 0 {
            self.last = headers;
        }
        if !may_merge {
            return;
        }
        self.range = match self.range {
            (0, 0) => (headers, headers),
            (shortest, longest) => (shortest.min(headers), longest.max(headers)),
        };
    }
}

impl LastSent {
    fn note(&mut self, bytes: u32, headers: u16, segments: u64) {
        let segments = u16::try_from(segments).unwrap_or(u16::MAX).max(1);
        if segments > 1 {
            // The last segment may be shorter, so a full one has at least this many bytes.
            let each = bytes.saturating_sub(headers.into()).div_ceil(segments.into());
            self.full = self.full.max(u16::try_from(each).unwrap_or(u16::MAX));
        }
        *self = Self { bytes, headers, segments, full: self.full };
    }

    /// How many segments a packet of this size stands for, and whether that is certain, not an estimate.
    fn segments_of(&self, bytes: u32) -> (u32, bool) {
        let payload = bytes.saturating_sub(self.headers.into());
        if bytes == self.bytes {
            (self.segments.into(), self.segments == 1)
        } else if self.full == 0 || payload <= self.full.into() {
            (1, true)
        } else {
            (payload.div_ceil(self.full.into()), false)
        }
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

    fn minus(self, other: Self) -> Self {
        let Self { packets, bytes } = other;
        Self { packets: self.packets.saturating_sub(packets), bytes: self.bytes.saturating_sub(bytes) }
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
