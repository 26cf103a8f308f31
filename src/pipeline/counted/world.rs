//! A host with connections and datagrams, and what would be on the wire.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use crate::model::event::{
    Dropped, Event, EventKind, Packet, PacketDirection, PacketSize, Segments, SocketUser, TcpState, Tuple, tcp_flags,
};
use crate::model::flow::{Counters, Endpoint, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::testing::{monotonic, sock_at};
use crate::source::fake::Scripted;

pub(super) const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;
/// The resolution of timers in nanoseconds.
const TICK: u64 = 100 * MILLISECOND;
/// The payload of a full segment in bytes.
const FULL: u32 = 1000;
/// The listener of all accepted connections.
const LISTENER: u64 = 0xf000;
const PID: u32 = 77;
const SLOTS: usize = 4;

const SYN: u8 = tcp_flags::SYN;
const ACK: u8 = tcp_flags::ACK;
const FIN: u8 = tcp_flags::FIN;
const RST: u8 = tcp_flags::RST;

/// Something that happens on the host. Slots are the ends of connections, or the sockets of datagrams.
#[derive(Debug, Clone)]
pub(super) enum Action {
    /// A connection begins; an earlier one between the same ends is closed before, and its socket lives on.
    Open { slot: usize, accepted: bool },
    /// A packet of so many segments leaves, which is dropped or not.
    Send { slot: usize, segments: u32, payload: u32, dropped: bool },
    /// A packet of so many segments arrives, and may be acknowledged. With more than one it is.
    Receive { slot: usize, segments: u32, options: bool, acknowledged: bool },
    /// One side ends its part.
    Fin { slot: usize, outbound: bool },
    /// One side resets the connection, which is closed then.
    Reset { slot: usize, outbound: bool },
    /// The connection is closed, and its socket lives on.
    Shut { slot: usize },
    /// The connection is closed, and its socket is freed.
    Close { slot: usize },
    /// All sockets of earlier connections are freed.
    FreeOld,
    /// A datagram leaves for, or comes from, one of two peers. The socket is made if there is none.
    Datagram { slot: usize, peer: u16, outbound: bool, payload: u32, nonlinear: bool, dropped: bool },
    /// The socket of a slot's datagrams is freed.
    CloseDatagrams { slot: usize },
    /// All samples so far are taken in.
    Mark,
    /// Nothing happens for so many milliseconds.
    Wait { millis: u64 },
}

impl Action {
    /// Whether sockets are closed or freed.
    pub(super) fn closes(&self) -> bool {
        matches!(
            self,
            Self::Fin { .. }
                | Self::Reset { .. }
                | Self::Shut { .. }
                | Self::Close { .. }
                | Self::FreeOld
                | Self::CloseDatagrams { .. }
        )
    }
}

pub(super) fn actions() -> impl Strategy<Value = Vec<Action>> {
    let slot = || 0..SLOTS;
    let payload = || prop_oneof![Just(0), 1..FULL, Just(FULL)];
    let waits = prop_oneof![
        4 => 0..3000_u64,
        2 => prop::sample::select(vec![4_990, 5_000, 5_010, 29_990, 30_000, 30_010, 30_050, 34_000]),
        1 => 0..70_000_u64,
    ];
    let action = prop_oneof![
        4 => (slot(), any::<bool>()).prop_map(|(slot, accepted)| Action::Open { slot, accepted }),
        10 => (slot(), 1..5_u32, payload(), prop::bool::weighted(0.1))
            .prop_map(|(slot, segments, payload, dropped)| Action::Send { slot, segments, payload, dropped }),
        10 => (slot(), 1..5_u32, any::<bool>(), any::<bool>()).prop_map(|(slot, segments, options, acknowledged)| {
            Action::Receive { slot, segments, options, acknowledged }
        }),
        1 => (slot(), any::<bool>()).prop_map(|(slot, outbound)| Action::Fin { slot, outbound }),
        1 => (slot(), any::<bool>()).prop_map(|(slot, outbound)| Action::Reset { slot, outbound }),
        1 => slot().prop_map(|slot| Action::Shut { slot }),
        1 => slot().prop_map(|slot| Action::Close { slot }),
        1 => Just(Action::FreeOld),
        12 => (slot(), 0..2_u16, any::<bool>(), payload(), prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
            |(slot, peer, outbound, payload, nonlinear, dropped)| Action::Datagram {
                slot, peer, outbound, payload, nonlinear, dropped,
            }
        ),
        1 => slot().prop_map(|slot| Action::CloseDatagrams { slot }),
        3 => Just(Action::Mark),
        4 => waits.prop_map(|millis| Action::Wait { millis }),
    ];
    proptest::collection::vec(action, 0..150)
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    sock: u64,
    tuple: Tuple,
    counted: Segments,
    /// When it began.
    since: u64,
    is_unacknowledged: bool,
}

/// The host.
#[derive(Debug)]
pub(super) struct World {
    now: u64,
    /// What was seen of it.
    pub(super) said: Vec<Scripted>,
    connections: [Option<Connection>; SLOTS],
    datagrams: [Option<u64>; SLOTS],
    /// Sockets of earlier connections.
    old: Vec<u64>,
    /// Addresses of freed sockets: the last one is used next.
    free: Vec<u64>,
    next: u64,
    /// What was on the wire.
    pub(super) sent: Counters,
    pub(super) received: Counters,
    /// Whether all of it can be known.
    pub(super) is_exact: bool,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            now: 100 * SECOND,
            said: Vec::new(),
            connections: [None; SLOTS],
            datagrams: [None; SLOTS],
            old: Vec::new(),
            free: Vec::new(),
            next: 0x1000,
            sent: Counters::default(),
            received: Counters::default(),
            is_exact: true,
        }
    }

    pub(super) fn play(&mut self, actions: &[Action]) {
        for action in actions {
            self.act(action);
        }
        self.mark();
    }

    pub(super) fn act(&mut self, action: &Action) {
        match *action {
            Action::Open { slot, accepted } => self.open(slot, accepted),
            Action::Send { slot, segments, payload, dropped } => self.send(slot, segments, payload, dropped),
            Action::Receive { slot, segments, options, acknowledged } => {
                self.receive(slot, segments, if options { 64 } else { 52 }, ACK);
                if acknowledged || segments > 1 {
                    self.send(slot, 1, 0, false);
                }
            }
            Action::Fin { slot, outbound: true } => self.send_with(slot, 1, 0, FIN | ACK, false),
            Action::Fin { slot, outbound: false } => self.receive(slot, 1, 52, FIN | ACK),
            Action::Reset { slot, outbound } => {
                match outbound {
                    true => self.send_with(slot, 1, 0, RST | ACK, false),
                    false => self.receive(slot, 1, 52, RST | ACK),
                }
                self.shut(slot);
            }
            Action::Shut { slot } => self.shut(slot),
            Action::Close { slot } => {
                self.shut(slot);
                self.free_old();
            }
            Action::FreeOld => self.free_old(),
            Action::Datagram { slot, peer, outbound, payload, nonlinear, dropped } => {
                self.datagram(slot, peer, outbound, (payload, nonlinear), dropped);
            }
            Action::CloseDatagrams { slot } => {
                if let Some(sock) = self.datagrams[slot].take() {
                    self.free_socket(sock);
                }
            }
            Action::Mark => self.mark(),
            Action::Wait { millis } => self.wait(millis),
        }
    }

    /// A mark every second, and at the end. TCP acknowledges data before such a pause.
    fn wait(&mut self, millis: u64) {
        for slot in 0..SLOTS {
            if self.connections[slot].is_some_and(|connection| connection.is_unacknowledged) {
                self.send(slot, 1, 0, false);
            }
        }
        let until = self.now + millis * MILLISECOND;
        let mut mark = self.now.next_multiple_of(TICK);
        while mark <= until {
            self.now = mark;
            self.mark();
            mark = (mark + SECOND).min((until / TICK * TICK).max(mark + TICK));
        }
        self.now = until;
    }

    /// Marks are where timers come up: a flow whose deadline is between two ticks may end at any mark from then to the second.
    fn mark(&mut self) {
        self.now = self.now.next_multiple_of(TICK);
        self.said.push(Scripted::EndRound(monotonic(self.now)));
    }

    fn say(&mut self, kind: EventKind) {
        self.now += MILLISECOND;
        let event = Event { time: monotonic(self.now), pid: PID, tid: PID, kind };
        self.said.push(Scripted::Event(event));
    }

    fn hit(&mut self, kind: EventKind, sk: Option<u64>, counted: Segments) {
        self.now += MILLISECOND;
        let event = Event { time: monotonic(self.now), pid: PID, tid: PID, kind };
        self.said.push(Scripted::Hit { event, sk: sk.and_then(SockAddress::new), counted });
    }

    fn new_socket(&mut self) -> u64 {
        let sock = self.free.pop().unwrap_or_else(|| {
            self.next += 64;
            self.next
        });
        self.say(EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program });
        sock
    }

    fn free_socket(&mut self, sock: u64) {
        self.say(EventKind::SocketReleased { sock: sock_at(sock) });
        self.hit(EventKind::SocketFreed { sock: sock_at(sock) }, None, Segments::default());
        self.free.push(sock);
    }

    fn free_old(&mut self) {
        for sock in std::mem::take(&mut self.old) {
            self.free_socket(sock);
        }
    }

    /// A TCP packet of the socket `sk`; the sample of an arriving one does not show it.
    fn segments(
        &mut self,
        direction: PacketDirection,
        sk: Option<u64>,
        (tuple, counted): (Tuple, Segments),
        (segments, payload, headers): (u32, u32, u16),
        flags: u8,
    ) {
        let bytes = payload * segments + u32::from(headers);
        let is_sent = direction == PacketDirection::Outbound;
        let size = PacketSize { bytes, headers };
        let sock = sk.filter(|_| is_sent).and_then(SockAddress::new);
        let packet = Packet::new(direction, Transport::Tcp, sock, tuple, size);
        let packet = Packet { tcp_flags: flags, segments: is_sent.then_some(counted), ..packet };
        let on_wire = u64::from(bytes) + u64::from(segments - 1) * u64::from(headers);
        self.count(direction, segments.into(), on_wire);
        self.hit(EventKind::Packet(packet), sk, counted);
    }

    fn count(&mut self, direction: PacketDirection, packets: u64, bytes: u64) {
        let counters = if direction == PacketDirection::Outbound { &mut self.sent } else { &mut self.received };
        counters.packets += packets;
        counters.bytes += bytes;
    }

    fn open(&mut self, slot: usize, accepted: bool) {
        self.shut(slot);
        let end = |port| Endpoint::new(Ipv4Addr::LOCALHOST, port);
        let tuple = Tuple { net: NetAddress::new(1), local: end(4000 + slot as u16), remote: end(80) };
        let connection = if accepted { self.accept(tuple) } else { self.connect(tuple) };
        self.connections[slot] = Some(connection);
    }

    fn connect(&mut self, tuple: Tuple) -> Connection {
        use PacketDirection::{Inbound, Outbound};
        let sock = self.new_socket();
        let counted = |received, sent| (tuple, Segments { received, sent });
        self.say(EventKind::ConnectBegins { sock: sock_at(sock), remote: tuple.remote });
        self.segments(Outbound, Some(sock), counted(0, 1), (1, 0, 60), SYN);
        self.say(EventKind::ConnectReturns { result: 0 });
        self.segments(Inbound, Some(sock), counted(0, 1), (1, 0, 60), SYN | ACK);
        let (state, segments) = (TcpState::Established, Some(Segments { received: 1, sent: 1 }));
        self.say(EventKind::TcpState { sock: sock_at(sock), tuple, state, segments });
        self.segments(Outbound, Some(sock), counted(1, 2), (1, 0, 52), ACK);
        Connection {
            sock,
            tuple,
            counted: Segments { received: 1, sent: 2 },
            since: self.now,
            is_unacknowledged: false,
        }
    }

    fn accept(&mut self, tuple: Tuple) -> Connection {
        use PacketDirection::{Inbound, Outbound};
        let none = (tuple, Segments::default());
        self.segments(Inbound, None, none, (1, 0, 60), SYN);
        self.segments(Outbound, Some(LISTENER), none, (1, 0, 60), SYN | ACK);
        self.segments(Inbound, None, none, (1, 0, 52), ACK);
        let sock = self.free.pop().unwrap_or_else(|| {
            self.next += 64;
            self.next
        });
        let counted = Segments { received: 2, sent: 0 };
        let (state, segments) = (TcpState::Established, Some(counted));
        self.say(EventKind::TcpState { sock: sock_at(sock), tuple, state, segments });
        self.say(EventKind::Accepted { sock: sock_at(sock), tuple });
        Connection { sock, tuple, counted, since: self.now, is_unacknowledged: false }
    }

    fn send(&mut self, slot: usize, segments: u32, payload: u32, dropped: bool) {
        let payload = if segments > 1 { FULL } else { payload };
        self.send_with(slot, segments, payload, ACK, dropped);
    }

    fn send_with(&mut self, slot: usize, segments: u32, payload: u32, flags: u8, dropped: bool) {
        let Some(connection) = &mut self.connections[slot] else { return };
        // If the flow has ended before the connection's socket has sent anything, nothing shows how many segments are the first.
        let is_exact = connection.counted.sent > 0 || self.now - connection.since < 4 * SECOND;
        self.is_exact &= is_exact;
        connection.counted.sent += segments;
        connection.is_unacknowledged = false;
        let Connection { sock, tuple, counted, .. } = *connection;
        let direction = PacketDirection::Outbound;
        self.segments(direction, Some(sock), (tuple, counted), (segments, payload, 52), flags);
        if dropped && is_exact {
            let bytes = payload * segments + 52;
            self.drop_packet(Transport::Tcp, sock, tuple, bytes);
            self.sent.packets -= u64::from(segments);
            self.sent.bytes -= u64::from(bytes + (segments - 1) * 52);
        }
    }

    fn drop_packet(&mut self, transport: Transport, sock: u64, tuple: Tuple, bytes: u32) {
        self.say(EventKind::Dropped(Dropped {
            sock: SockAddress::new(sock),
            transport: Some(transport),
            other_protocol: false,
            ends: Some((tuple.local, tuple.remote)),
            bytes,
            with_others: false,
            may_have_arrived: false,
            may_be_drivers: false,
        }));
    }

    fn receive(&mut self, slot: usize, segments: u32, headers: u16, flags: u8) {
        let Some(Connection { sock, tuple, counted, .. }) = self.connections[slot] else { return };
        let payload = if flags == ACK { 500 } else { 0 };
        let what = (segments, payload, headers);
        self.segments(PacketDirection::Inbound, Some(sock), (tuple, counted), what, flags);
        if let Some(connection) = &mut self.connections[slot] {
            connection.counted.received += segments;
            connection.is_unacknowledged = true;
        }
    }

    fn shut(&mut self, slot: usize) {
        let Some(Connection { sock, tuple, counted, .. }) = self.connections[slot].take() else { return };
        let (state, segments) = (TcpState::Closed { error: 0 }, Some(counted));
        self.say(EventKind::TcpState { sock: sock_at(sock), tuple, state, segments });
        self.old.push(sock);
    }

    fn datagram(&mut self, slot: usize, peer: u16, outbound: bool, (payload, nonlinear): (u32, bool), dropped: bool) {
        let sock = match self.datagrams[slot] {
            Some(sock) => sock,
            None => self.new_socket(),
        };
        self.datagrams[slot] = Some(sock);
        let end = |port| Endpoint::new(Ipv4Addr::LOCALHOST, port);
        let tuple = Tuple { net: NetAddress::new(1), local: end(5000 + slot as u16), remote: end(53 + peer) };
        let direction = if outbound { PacketDirection::Outbound } else { PacketDirection::Inbound };
        let size = PacketSize { bytes: payload + 28, headers: 28 };
        let packet = Packet::new(direction, Transport::Udp, SockAddress::new(sock), tuple, size);
        let packet = Packet { data_len: if nonlinear { payload / 2 } else { 0 }, ..packet };
        self.count(direction, 1, size.bytes.into());
        self.hit(EventKind::Packet(packet), Some(sock), Segments::default());
        if outbound && dropped {
            self.drop_packet(Transport::Udp, sock, tuple, size.bytes);
            self.sent.packets -= 1;
            self.sent.bytes -= u64::from(size.bytes);
        }
    }
}
