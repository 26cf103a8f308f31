//! A kernel that counts packets by itself, as its programs at the packet probes would.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::event::{Packet, PacketDirection, Segments, tcp_flags};
use crate::model::flow::{Counters, Transport};
use crate::model::kernel_address::SockAddress;
use crate::model::time::MonotonicTime;
use crate::model::totals::{Conversation, TcpTotals, Totals};

/// Has an entry for each conversation that had a packet: a TCP socket has one conversation, a UDP socket any number.
#[derive(Debug)]
pub(crate) struct Kernel {
    entries: HashMap<Conversation, Entry>,
    /// A packet that comes at least this long after the last one of its conversation is sampled.
    pause: Duration,
    /// The maximum number of entries.
    room: usize,
}

/// What a program decides about a packet.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// The counts that are reported: those before the packet, if it is sampled and something was counted.
    pub(crate) totals: Vec<Totals>,
    /// Whether the packet is sampled.
    pub(crate) is_sampled: bool,
}

#[derive(Debug)]
struct Entry {
    totals: Totals,
    has_sent: bool,
    has_received: bool,
    /// The packets that arrived since the counts were compared with `tcp_sock.segs_in`, less those that the socket had not
    /// counted.
    unsettled: i64,
    /// `tcp_sock.segs_in` when they were compared.
    segs_in: Option<u32>,
}

impl Kernel {
    pub(crate) fn new(pause: Duration, room: usize) -> Self {
        Self { entries: HashMap::new(), pause, room }
    }

    /// A packet of the socket `sk`, whose segment counters are `counted`. (The sample of an arriving TCP packet names no socket.)
    pub(crate) fn packet(
        &mut self,
        now: MonotonicTime,
        sk: Option<SockAddress>,
        packet: &Packet,
        counted: Segments,
    ) -> Verdict {
        let sampled = Verdict { totals: Vec::new(), is_sampled: true };
        let Some(sk) = sk else { return sampled };
        let of = Conversation { sock: sk, local: packet.tuple.local, remote: packet.tuple.remote };
        let is_others =
            packet.transport == Transport::Tcp && self.totals(&of).is_some_and(|totals| totals.conversation() != of);
        if is_others {
            return sampled;
        }
        let has_room = self.entries.len() < self.room;
        let Some(entry) = self.entries.get_mut(&of) else {
            if has_room {
                let mut entry = Entry::new(now, sk, packet);
                entry.note(now, packet, counted, false);
                self.entries.insert(of, entry);
            }
            return sampled;
        };
        let totals = entry.totals;
        let is_first = match packet.direction {
            PacketDirection::Outbound => !entry.has_sent,
            PacketDirection::Inbound => !entry.has_received,
        };
        let is_special = packet.tcp_flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) != 0
            || packet.data_len > 0
            || packet.fragment > 0;
        let is_late = now.saturating_duration_since(totals.last) >= self.pause;
        let is_sampled = is_first || is_special || is_late;
        entry.note(now, packet, counted, !is_sampled);
        let has_counted = totals.sent.packets + totals.received.packets > 0;
        Verdict { totals: (is_sampled && has_counted).then_some(totals).into_iter().collect(), is_sampled }
    }

    /// The socket is freed. Returns the counts of its conversations.
    pub(crate) fn freed(&mut self, sk: SockAddress) -> Vec<Totals> {
        let mut totals: Vec<_> =
            self.entries.extract_if(|of, _| of.sock == sk).map(|(_, entry)| entry.totals).collect();
        totals.sort_by_key(Totals::conversation);
        totals
    }

    /// The counts of a conversation, or of another one of the same socket if this one has no entry.
    pub(crate) fn totals(&self, of: &Conversation) -> Option<Totals> {
        let others = || self.entries.values().find(|entry| entry.totals.sock == of.sock);
        self.entries.get(of).or_else(others).map(|entry| entry.totals)
    }
}

impl Entry {
    fn new(now: MonotonicTime, sock: SockAddress, packet: &Packet) -> Self {
        let none = Counters::default();
        let (transport, local, remote) = (packet.transport, packet.tuple.local, packet.tuple.remote);
        let tcp = (transport == Transport::Tcp).then(TcpTotals::default);
        let (short_datagrams, nonlinear_datagrams) = (false, false);
        let (since, last, sent, received) = (now, now, none, none);
        let totals = Totals {
            sock,
            transport,
            local,
            remote,
            since,
            sent,
            received,
            last,
            short_datagrams,
            nonlinear_datagrams,
            tcp,
        };
        Self { totals, has_sent: false, has_received: false, unsettled: 0, segs_in: None }
    }

    /// Notes a packet, and counts it if it `is_counted`.
    fn note(&mut self, now: MonotonicTime, packet: &Packet, counted: Segments, is_counted: bool) {
        self.totals.last = now;
        let (bytes, headers) = (u64::from(packet.size.bytes), packet.size.headers);
        match packet.direction {
            PacketDirection::Inbound => {
                self.has_received = true;
                self.unsettled += 1;
                if is_counted {
                    add(&mut self.totals.received, 1, bytes);
                }
                self.note_headers(headers, packet.tcp_flags & tcp_flags::SYN != 0);
            }
            PacketDirection::Outbound => {
                self.has_sent = true;
                let segments = self.segments_of(packet, counted);
                if is_counted {
                    add(&mut self.totals.sent, segments, bytes + (segments - 1) * u64::from(headers));
                }
                self.settle(packet, counted, is_counted);
            }
        }
    }

    fn note_headers(&mut self, headers: u16, is_syn: bool) {
        let Some(tcp) = &mut self.totals.tcp else { return };
        if is_syn {
            if tcp.received_headers == 0 {
                tcp.received_headers = headers;
            }
            return;
        }
        tcp.received_headers = headers;
        let (shortest, longest) = tcp.received_range;
        let shortest = if shortest == 0 { headers } else { shortest.min(headers) };
        tcp.received_range = (shortest, longest.max(headers));
    }

    /// The number of segments of an outgoing packet.
    fn segments_of(&mut self, packet: &Packet, counted: Segments) -> u64 {
        let Some(tcp) = &mut self.totals.tcp else { return 1 };
        let segments = tcp.segs_out.map_or(1, |before| counted.sent.wrapping_sub(before)).max(1);
        let payload = packet.size.bytes - u32::from(packet.size.headers);
        tcp.segs_out = Some(counted.sent);
        tcp.sent_bytes = packet.size.bytes;
        tcp.sent_headers = packet.size.headers;
        tcp.sent_segments = segments as u16;
        if segments > 1 {
            tcp.sent_full = tcp.sent_full.max(payload.div_ceil(segments) as u16);
        }
        segments.into()
    }

    /// Compares what arrived with the socket's own count.
    fn settle(&mut self, packet: &Packet, counted: Segments, is_counted: bool) {
        let Some(tcp) = &mut self.totals.tcp else { return };
        let is_syn = packet.tcp_flags & tcp_flags::SYN != 0;
        let (shortest, longest) = std::mem::take(&mut tcp.received_range);
        let Some(before) = self.segs_in.replace(counted.received).filter(|_| !is_syn) else {
            self.unsettled = 0; // the state machine counts what there was before
            return;
        };
        self.unsettled -= i64::from(counted.received.wrapping_sub(before));
        let missing = u64::try_from(-self.unsettled).unwrap_or(0);
        self.unsettled = self.unsettled.max(0);
        if missing > 0 && is_counted {
            add(&mut self.totals.received, missing, missing * u64::from(tcp.received_headers));
            tcp.merged_unsure += u32::from(shortest != longest);
        }
    }
}

fn add(counters: &mut Counters, packets: u64, bytes: u64) {
    *counters = Counters { packets: counters.packets + packets, bytes: counters.bytes + bytes };
}
