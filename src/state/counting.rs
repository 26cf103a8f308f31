//! Counts packets and bytes on the wire.
//!
//! The kernel handles several segments as one packet: GSO for outgoing, GRO for incoming ones. A TCP socket's segment counters
//! show how many there were, or the packet itself does. Each further segment repeats the headers of the first.

use std::net::IpAddr;

use super::counted::NewCounts;
use super::flows::{Headers, LastSent, LiveFlow, SegmentBaseline};
use crate::model::event::{Fragmented, Packet, PacketDirection, PacketSize, Segments, tcp_flags};
use crate::model::flow::{Counters, Transport};
use crate::model::time::MonotonicTime;
use crate::model::totals::{MAX_SEGMENT_GROWTH, TcpTotals};

/// The header of an IPv4 fragment without options, in bytes (RFC 791).
const IPV4_FRAGMENT: u32 = 20;
/// The header of an IPv6 fragment, in bytes: IPv6 header and fragment header (RFC 8200).
const IPV6_FRAGMENT: u32 = 40 + 8;

/// The socket that sent a packet, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The flow's socket.
    OwnSocket,
    /// Another socket, such as the kernel's control socket, or none. Also for all received packets.
    Other,
}

/// What a dropped packet may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DroppedAs {
    /// One packet on the wire.
    OnePacket,
    /// One or more TCP segments.
    Segments,
}

/// Adds a packet that was seen at `now` to its flow's counters.
///
/// If the kernel's clock advances by ticks, packets of two CPUs may have the same time, and the sample of the later one may come
/// first. It then counts the segments of the other one, too. They are subtracted when the sample of the other one comes.
///
/// The segment counters of a packet that [another socket](Sender::Other) sent are not the flow's.
pub fn add(flow: &mut LiveFlow, now: MonotonicTime, packet: &Packet, sender: Sender) {
    let is_later = flow.note_time(now);
    let counters = match packet.direction {
        PacketDirection::Outbound => &mut flow.sent,
        PacketDirection::Inbound => &mut flow.received,
    };
    let PacketSize { bytes, headers } = packet.size;
    *counters = counters.plus(1, u64::from(bytes));
    let further = u64::from(packet.gso_segs.saturating_sub(1));
    *counters = counters.plus(further, further * u64::from(headers));
    if packet.fragment > 0 {
        *counters = counters.fragments(bytes, packet.fragment, packet.tuple.remote.ip);
        flow.inexact.fragments = true;
    }
    match (packet.transport, packet.direction) {
        (Transport::Udp, _) => {}
        (Transport::Tcp, PacketDirection::Inbound) => {
            let is_counted = note_received(flow, packet, headers);
            flow.inexact.late_data |= flow.reached_tcp_close && !is_counted && bytes > u32::from(headers);
            flow.syns = flow.syns.saturating_add(u8::from(packet.is_initial_syn() && !flow.has_own_socket));
        }
        (Transport::Tcp, PacketDirection::Outbound) => {
            let further = match packet.segments.filter(|_| sender == Sender::OwnSocket && flow.has_own_socket) {
                Some(counted) if !may_be_overtaken(flow, is_later) || !undo_if_overtaken(flow, counted) => {
                    further_segments(flow, now, packet, counted, headers)
                }
                _ => 0,
            };
            flow.last_sent.note(bytes, headers, further + 1);
        }
    }
}

/// Adds what the kernel has counted by itself since it was last asked.
///
/// Afterwards, the flow is as if each of these packets had been [added](add), so the next packet finds the right counters
/// of segments. The samples of all other packets up to the last one of these should have come before. Segments whose samples are
/// late are counted here as further segments, as [`add`] does.
pub fn add_totals(flow: &mut LiveFlow, new: &NewCounts) {
    flow.note_time(new.last);
    flow.sent = flow.sent.plus(new.sent.packets, new.sent.bytes);
    flow.received = flow.received.plus(new.received.packets, new.received.bytes);
    let Some(tcp) = new.tcp else { return };
    subtract_sampled(flow, new.merged, &tcp);
    if new.received.packets > 0 {
        flow.received_headers.last = tcp.received_headers;
        flow.inexact.merged_segments |= new.merged_unsure;
    }
    // At each outgoing packet, what had arrived was compared with the socket's count: earlier headers no longer matter.
    flow.received_headers.range = match new.sent.packets {
        // Samples of packets that the kernel has no entry for may have come before.
        0 => union(flow.received_headers.range, tcp.received_range),
        _ => tcp.received_range,
    };
    if new.sent.packets == 0 {
        return;
    }
    if let (Some(baseline), Some(segs_out)) = (&mut flow.segments, tcp.segs_out) {
        let step = segs_out.wrapping_sub(baseline.sent);
        let late = u64::from(step.wrapping_sub(new.sent.packets as u32));
        let late = if late < u64::from(MAX_SEGMENT_GROWTH) { late } else { 0 };
        let by_flow = new.sent.packets.saturating_add(late);
        baseline.sent_by_flow = baseline.sent_by_flow.saturating_add(u16::try_from(by_flow).unwrap_or(u16::MAX));
        baseline.late = baseline.late.saturating_add(u16::try_from(late).unwrap_or(u16::MAX));
        baseline.sent = segs_out;
        flow.sent = flow.sent.plus(late, late * u64::from(flow.last_sent.headers));
    }
    let TcpTotals { sent_bytes: bytes, sent_headers: headers, sent_segments: segments, sent_full: full, .. } = tcp;
    flow.last_sent = LastSent { bytes, headers, segments, full: full.max(flow.last_sent.full) };
}

/// Subtracts segments that were counted twice: here by their samples, and by the kernel as merged segments.
///
/// A packet is sampled if the program in the kernel does not find its entry, or before the entry exists. If the socket counts the
/// packet only after the entry was made, the entry takes it for a merged segment. In that case, more segments have been counted
/// here than the kernel expects the socket to count.
fn subtract_sampled(flow: &mut LiveFlow, merged: u64, tcp: &TcpTotals) {
    let Some(baseline) = flow.segments.filter(|_| merged > 0) else { return };
    let counted = baseline.received_before.wrapping_add(flow.received.packets as u32);
    let more = counted.wrapping_sub(tcp.expected_segs_in);
    if more == 0 || more >= MAX_SEGMENT_GROWTH {
        return;
    }
    let twice = merged.min(more.into());
    flow.received = flow.received.minus(Counters { packets: twice, bytes: twice * u64::from(tcp.received_headers) });
    flow.inexact.merged_segments |= tcp.received_headers != flow.received_headers.last;
}

/// Counts the further fragments of a packet that was counted as one.
pub fn further_fragments(flow: &mut LiveFlow, packet: &Fragmented) {
    flow.sent = flow.sent.fragments(packet.bytes, packet.first, packet.tuple.remote.ip);
    flow.inexact.fragments = true;
}

/// Subtracts a packet that was counted as sent and dropped later. `bytes` is its size with headers.
pub fn subtract_dropped(flow: &mut LiveFlow, bytes: u32, dropped_as: DroppedAs) {
    let LastSent { headers, .. } = flow.last_sent;
    let (segments, is_exact) = match dropped_as {
        DroppedAs::Segments => flow.last_sent.segments_of(bytes),
        DroppedAs::OnePacket => (1, true),
    };
    let further = u64::from(segments) - 1;
    let all = Counters { packets: 1 + further, bytes: u64::from(bytes) + further * u64::from(headers) };
    flow.inexact.dropped_locally |= !is_exact || flow.sent.packets < all.packets || flow.sent.bytes < all.bytes;
    flow.dropped = flow.dropped.plus(all.packets, all.bytes);
    flow.sent = flow.sent.minus(all);
}

/// Notes the header length of a received packet. Returns whether the packet was already counted, because the socket's counters
/// had shown it before its sample came.
///
/// If so, it is one of the segments that were counted early. The others are assumed to have the same headers.
fn note_received(flow: &mut LiveFlow, packet: &Packet, headers: u16) -> bool {
    let assumed = flow.received_headers.last;
    // A SYN is never merged with others, and has options that others do not have.
    flow.received_headers.note(headers, packet.tcp_flags & tcp_flags::SYN == 0);
    let Some(baseline) = flow.segments.as_mut().filter(|baseline| baseline.early > 0) else { return false };
    let early = u64::from(baseline.early);
    baseline.early -= 1;
    flow.received = flow.received.minus(Counters { packets: early, bytes: early * u64::from(assumed) });
    flow.received = flow.received.plus(early - 1, (early - 1) * u64::from(flow.received_headers.last));
    true
}

/// Whether a packet may have been sent before another one that was counted. Even if it is later than all packets that were
/// sampled (`is_later`), the kernel's own count may include later packets, whose samples are still to come.
fn may_be_overtaken(flow: &LiveFlow, is_later: bool) -> bool {
    !is_later || flow.segments.is_some_and(|baseline| baseline.late > 0)
}

/// Returns whether a packet was sent before another one whose sample came first. If it was counted as a further segment of the
/// other one, undoes this.
fn undo_if_overtaken(flow: &mut LiveFlow, counted: Segments) -> bool {
    let Some(baseline) = &mut flow.segments else { return false };
    let behind = baseline.sent.wrapping_sub(counted.sent);
    if (behind == 0 && baseline.late == 0) || behind >= MAX_SEGMENT_GROWTH {
        return false;
    }
    baseline.late = baseline.late.saturating_sub(1);
    if behind < u32::from(baseline.sent_by_flow) {
        flow.sent = flow.sent.minus(Counters { packets: 1, bytes: flow.last_sent.headers.into() });
    }
    true
}

/// Counts the further segments of an outgoing packet, and the segments that have arrived meanwhile. Returns the number of the
/// former.
fn further_segments(flow: &mut LiveFlow, now: MonotonicTime, packet: &Packet, counted: Segments, headers: u16) -> u64 {
    let baseline = flow.segments.unwrap_or_else(|| baseline_before(flow, packet, counted));
    let step = segments_between(baseline.sent, counted.sent);
    let sent_by_flow = baseline.sent_by_flow.saturating_add(u16::try_from(step).unwrap_or(u16::MAX));
    flow.segments = Some(SegmentBaseline { sent: counted.sent, sent_by_flow, ..baseline });
    let more = step.saturating_sub(1);
    flow.sent = flow.sent.plus(more, more * u64::from(headers));
    settle(flow, now, counted);
    more
}

/// A socket's counters before its flow began, computed from those at the flow's first packet.
///
/// A SYN is one segment, and the counters go on from an earlier connection attempt of the socket. The counters of an accepted
/// connection begin at zero; they count its SYN once, however often it came (`tcp_create_openreq_child`).
fn baseline_before(flow: &LiveFlow, packet: &Packet, now: Segments) -> SegmentBaseline {
    if packet.tcp_flags & tcp_flags::SYN != 0 {
        SegmentBaseline::since(now.sent.wrapping_sub(1), now.received)
    } else if flow.complete {
        let repeated = u32::from(flow.syns.saturating_sub(1));
        SegmentBaseline::since(0, 0_u32.wrapping_sub(repeated))
    } else {
        let seen = u32::try_from(flow.received.packets).unwrap_or(u32::MAX);
        SegmentBaseline::since(now.sent.wrapping_sub(1), now.received.wrapping_sub(seen))
    }
}

/// Raises the count of received segments to the socket's own count at `now`.
pub fn settle(flow: &mut LiveFlow, now: MonotonicTime, counted: Segments) {
    settle_with(flow, now, counted, flow.received.packets);
}

/// Like [`settle`]. The flow had received `received` packets when the socket's count was read.
pub fn settle_with(flow: &mut LiveFlow, now: MonotonicTime, counted: Segments, received: u64) {
    let Some(baseline) = &mut flow.segments else { return };
    let arrived = counted.received.wrapping_sub(baseline.received_before);
    let missing = u64::from(arrived).saturating_sub(received);
    if missing > 0 && missing < u64::from(MAX_SEGMENT_GROWTH) && flow.received.packets > 0 {
        let Headers { last, range: (shortest, longest) } = flow.received_headers;
        // A late sample says nothing about the samples still to come.
        if now == flow.last {
            baseline.early = baseline.early.saturating_add(u16::try_from(missing).unwrap_or(u16::MAX));
        }
        flow.received = flow.received.plus(missing, missing * u64::from(last));
        // It is not known which of the packets were merged; their headers may have had any of these lengths.
        flow.inexact.merged_segments |= shortest != longest;
    }
    flow.received_headers.range = (0, 0);
}

impl Headers {
    /// Notes a packet's header length. Packets that `may_merge` with others determine the headers of merged segments.
    fn note(&mut self, headers: u16, may_merge: bool) {
        if may_merge || self.last == 0 {
            self.last = headers;
        }
        if !may_merge {
            return;
        }
        self.range = union(self.range, (headers, headers));
    }
}

/// The range that contains both; 0 stands for none.
fn union(one: (u16, u16), other: (u16, u16)) -> (u16, u16) {
    match (one, other) {
        ((0, 0), range) | (range, (0, 0)) => range,
        _ => (one.0.min(other.0), one.1.max(other.1)),
    }
}

impl LastSent {
    /// Notes an outgoing packet of `bytes` with its headers, which was split into this number of segments.
    fn note(&mut self, bytes: u32, headers: u16, segments: u64) {
        let segments = u16::try_from(segments).unwrap_or(u16::MAX).max(1);
        if segments > 1 {
            // The last segment may be shorter, so a full one has at least this many bytes.
            let each = bytes.saturating_sub(headers.into()).div_ceil(segments.into());
            self.full = self.full.max(u16::try_from(each).unwrap_or(u16::MAX));
        }
        *self = Self { bytes, headers, segments, full: self.full };
    }

    /// The number of segments in a packet of this size, and whether that is certain (`true`) or an estimate.
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

/// The number of segments between two values of a counter; 1 if the second value cannot be of the same socket.
fn segments_between(before: u32, now: u32) -> u64 {
    let segments = now.wrapping_sub(before);
    if segments < MAX_SEGMENT_GROWTH { u64::from(segments) } else { 1 }
}

impl Counters {
    fn plus(self, packets: u64, bytes: u64) -> Self {
        Self { packets: self.packets.saturating_add(packets), bytes: self.bytes.saturating_add(bytes) }
    }

    fn minus(self, other: Self) -> Self {
        let Self { packets, bytes } = other;
        Self { packets: self.packets.saturating_sub(packets), bytes: self.bytes.saturating_sub(bytes) }
    }

    /// Adds the further fragments of a packet of `bytes`, whose largest fragment has `largest` bytes (0: not known, so two
    /// fragments are assumed). All fragments but the last have that size. An atomic fragment (RFC 6946) counts as one packet.
    fn fragments(self, bytes: u32, largest: u16, remote: IpAddr) -> Self {
        let (plain, header) =
            if remote.is_ipv4() { (IPV4_FRAGMENT, IPV4_FRAGMENT) } else { (IPV6_FRAGMENT - 8, IPV6_FRAGMENT) };
        let payload = bytes.saturating_sub(plain);
        let each = u32::from(largest).saturating_sub(header);
        let count = if each == 0 { 2 } else { payload.div_ceil(each).max(1) };
        self.plus(u64::from(count - 1), u64::from(count) * u64::from(header) - u64::from(plain))
    }
}
