//! A simulated host: its connections and datagrams, the events that they cause, and what is on the wire.

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
/// The resolution of the state machine's timers in nanoseconds.
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

/// Something that happens on the host. Each slot has at most one open connection and one UDP socket, always at the same ends.
/// An action on a connection that is not open does nothing.
#[derive(Debug, Clone)]
pub(super) enum Action {
    /// A connection begins. If the slot has one, it is closed first. Its socket is not freed.
    Open { slot: usize, accepted: bool },
    /// A packet of this many segments leaves. This host may drop it.
    Send { slot: usize, segments: u32, payload: u32, dropped: bool },
    /// A packet of this many segments arrives, with or without further TCP options. It is acknowledged at once if `acknowledged`,
    /// or if it has several segments.
    Receive { slot: usize, segments: u32, options: bool, acknowledged: bool },
    /// One side sends a FIN.
    Fin { slot: usize, outbound: bool },
    /// One side sends a RST, and the connection is closed. Its socket is not freed.
    Reset { slot: usize, outbound: bool },
    /// The connection is closed. Its socket is not freed.
    Close { slot: usize },
    /// The connection is closed, and all sockets of closed connections are freed.
    CloseAndFree { slot: usize },
    /// All sockets of closed connections are freed.
    FreeClosed,
    /// A datagram leaves for, or comes from, one of two peers. If the slot has no UDP socket, one is created.
    Datagram { slot: usize, peer: u16, outbound: bool, payload: u32, nonlinear: bool, dropped: bool },
    /// The slot's UDP socket is freed.
    FreeUdpSocket { slot: usize },
    /// The source hands over all events so far.
    EndRound,
    /// Nothing happens for this many milliseconds.
    Wait { millis: u64 },
}

impl Action {
    /// Whether it begins to close a connection, or frees a socket.
    pub(super) fn closes(&self) -> bool {
        matches!(
            self,
            Self::Fin { .. }
                | Self::Reset { .. }
                | Self::Close { .. }
                | Self::CloseAndFree { .. }
                | Self::FreeClosed
                | Self::FreeUdpSocket { .. }
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
        1 => slot().prop_map(|slot| Action::Close { slot }),
        1 => slot().prop_map(|slot| Action::CloseAndFree { slot }),
        1 => Just(Action::FreeClosed),
        12 => (slot(), 0..2_u16, any::<bool>(), payload(), prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
            |(slot, peer, outbound, payload, nonlinear, dropped)| Action::Datagram {
                slot, peer, outbound, payload, nonlinear, dropped,
            }
        ),
        1 => slot().prop_map(|slot| Action::FreeUdpSocket { slot }),
        3 => Just(Action::EndRound),
        4 => waits.prop_map(|millis| Action::Wait { millis }),
    ];
    proptest::collection::vec(action, 0..150)
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    sock: u64,
    tuple: Tuple,
    /// The socket's segment counters.
    counted: Segments,
    /// When it was established.
    since: u64,
    /// Whether a packet has arrived since the last one was sent.
    is_unacknowledged: bool,
}

/// The simulated host.
#[derive(Debug)]
pub(super) struct World {
    now: u64,
    /// The script for the fake source.
    pub(super) script: Vec<Scripted>,
    connections: [Option<Connection>; SLOTS],
    udp_sockets: [Option<u64>; SLOTS],
    /// Sockets of closed connections, not freed yet.
    closed: Vec<u64>,
    /// Addresses of freed sockets: the last one is used next.
    free: Vec<u64>,
    /// The highest address that a socket has had.
    newest_address: u64,
    /// The packets that left for the wire, and those that came from it.
    pub(super) sent: Counters,
    pub(super) received: Counters,
    /// Whether the events show all packets and bytes on the wire.
    pub(super) is_exact: bool,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            now: 100 * SECOND,
            script: Vec::new(),
            connections: [None; SLOTS],
            udp_sockets: [None; SLOTS],
            closed: Vec::new(),
            free: Vec::new(),
            newest_address: 0x1000,
            sent: Counters::default(),
            received: Counters::default(),
            is_exact: true,
        }
    }

    pub(super) fn play(&mut self, actions: &[Action]) {
        for action in actions {
            self.act(action);
        }
        self.end_round();
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
                self.close(slot);
            }
            Action::Close { slot } => self.close(slot),
            Action::CloseAndFree { slot } => {
                self.close(slot);
                self.free_closed();
            }
            Action::FreeClosed => self.free_closed(),
            Action::Datagram { slot, peer, outbound, payload, nonlinear, dropped } => {
                self.datagram(slot, peer, outbound, (payload, nonlinear), dropped);
            }
            Action::FreeUdpSocket { slot } => {
                if let Some(sock) = self.udp_sockets[slot].take() {
                    self.free_socket(sock);
                }
            }
            Action::EndRound => self.end_round(),
            Action::Wait { millis } => self.wait(millis),
        }
    }

    /// Ends a round every second, and at the last tick of the wait. TCP acknowledges within a fraction of a second, so the host
    /// acknowledges what has arrived before it waits.
    fn wait(&mut self, millis: u64) {
        for slot in 0..SLOTS {
            if self.connections[slot].is_some_and(|connection| connection.is_unacknowledged) {
                self.send(slot, 1, 0, false);
            }
        }
        let until = self.now + millis * MILLISECOND;
        let mut end = self.now.next_multiple_of(TICK);
        while end <= until {
            self.now = end;
            self.end_round();
            end = (end + SECOND).min((until / TICK * TICK).max(end + TICK));
        }
        self.now = until;
    }

    /// Ends a round, at the next tick.
    ///
    /// The state machine ends due flows when a round ends. A flow whose deadline is between two ticks ends at the later one, but
    /// a timer that was set for the earlier tick may end it sooner if a round ends between them. Which timers are set depends on
    /// whether the kernel counts packets, so no round ends between two ticks.
    fn end_round(&mut self) {
        self.now = self.now.next_multiple_of(TICK);
        self.script.push(Scripted::EndRound(monotonic(self.now)));
    }

    /// An event that the kernel does not count.
    fn event(&mut self, kind: EventKind) {
        self.now += MILLISECOND;
        let event = Event { time: monotonic(self.now), pid: PID, tid: PID, kind };
        self.script.push(Scripted::Event(event));
    }

    /// A packet of the socket `sk`, or the end of a socket, which the kernel may count instead of sampling it.
    fn hit(&mut self, kind: EventKind, sk: Option<u64>, counted: Segments) {
        self.now += MILLISECOND;
        let event = Event { time: monotonic(self.now), pid: PID, tid: PID, kind };
        self.script.push(Scripted::Hit { event, sk: sk.and_then(SockAddress::new), counted });
    }

    fn allocate(&mut self) -> u64 {
        self.free.pop().unwrap_or_else(|| {
            self.newest_address += 64;
            self.newest_address
        })
    }

    fn create_socket(&mut self) -> u64 {
        let sock = self.allocate();
        self.event(EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program });
        sock
    }

    fn free_socket(&mut self, sock: u64) {
        self.event(EventKind::SocketReleased { sock: sock_at(sock) });
        self.hit(EventKind::SocketFreed { sock: sock_at(sock) }, None, Segments::default());
        self.free.push(sock);
    }

    fn free_closed(&mut self) {
        for sock in std::mem::take(&mut self.closed) {
            self.free_socket(sock);
        }
    }

    /// A TCP packet of the socket `sk`. Only the sample of an outgoing packet has the socket and its segment counters.
    fn tcp_packet(
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
        self.close(slot);
        let end = |port| Endpoint::new(Ipv4Addr::LOCALHOST, port);
        let tuple = Tuple { net: NetAddress::new(1), local: end(4000 + slot as u16), remote: end(80) };
        let connection = if accepted { self.accept(tuple) } else { self.connect(tuple) };
        self.connections[slot] = Some(connection);
    }

    fn connect(&mut self, tuple: Tuple) -> Connection {
        use PacketDirection::{Inbound, Outbound};
        let sock = self.create_socket();
        let counted = |received, sent| (tuple, Segments { received, sent });
        self.event(EventKind::ConnectBegins { sock: sock_at(sock), remote: tuple.remote });
        self.tcp_packet(Outbound, Some(sock), counted(0, 1), (1, 0, 60), SYN);
        self.event(EventKind::ConnectReturns { result: 0 });
        self.tcp_packet(Inbound, Some(sock), counted(0, 1), (1, 0, 60), SYN | ACK);
        let (state, segments) = (TcpState::Established, Some(Segments { received: 1, sent: 1 }));
        self.event(EventKind::TcpState { sock: sock_at(sock), tuple, state, segments });
        self.tcp_packet(Outbound, Some(sock), counted(1, 2), (1, 0, 52), ACK);
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
        self.tcp_packet(Inbound, None, none, (1, 0, 60), SYN);
        self.tcp_packet(Outbound, Some(LISTENER), none, (1, 0, 60), SYN | ACK);
        self.tcp_packet(Inbound, None, none, (1, 0, 52), ACK);
        let sock = self.allocate();
        let counted = Segments { received: 2, sent: 0 };
        let (state, segments) = (TcpState::Established, Some(counted));
        self.event(EventKind::TcpState { sock: sock_at(sock), tuple, state, segments });
        self.event(EventKind::Accepted { sock: sock_at(sock), tuple });
        Connection { sock, tuple, counted, since: self.now, is_unacknowledged: false }
    }

    fn send(&mut self, slot: usize, segments: u32, payload: u32, dropped: bool) {
        let payload = if segments > 1 { FULL } else { payload };
        self.send_with(slot, segments, payload, ACK, dropped);
    }

    fn send_with(&mut self, slot: usize, segments: u32, payload: u32, flags: u8, dropped: bool) {
        let Some(connection) = &mut self.connections[slot] else { return };
        // If the flow of an accepted connection has ended before its socket sends anything, the state machine has no earlier count of
        // segments to compare with. Then it takes the first packet for one segment. No flow ends within 4 s.
        let is_exact = connection.counted.sent > 0 || self.now - connection.since < 4 * SECOND;
        self.is_exact &= is_exact;
        connection.counted.sent += segments;
        connection.is_unacknowledged = false;
        let Connection { sock, tuple, counted, .. } = *connection;
        let direction = PacketDirection::Outbound;
        self.tcp_packet(direction, Some(sock), (tuple, counted), (segments, payload, 52), flags);
        if dropped && is_exact {
            let bytes = payload * segments + 52;
            self.drop_packet(Transport::Tcp, sock, tuple, bytes);
            self.sent.packets -= u64::from(segments);
            self.sent.bytes -= u64::from(bytes + (segments - 1) * 52);
        }
    }

    fn drop_packet(&mut self, transport: Transport, sock: u64, tuple: Tuple, bytes: u32) {
        self.event(EventKind::Dropped(Dropped {
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
        let size = (segments, payload, headers);
        self.tcp_packet(PacketDirection::Inbound, Some(sock), (tuple, counted), size, flags);
        // The kernel counts an arriving packet after its probe was hit.
        if let Some(connection) = &mut self.connections[slot] {
            connection.counted.received += segments;
            connection.is_unacknowledged = true;
        }
    }

    fn close(&mut self, slot: usize) {
        let Some(Connection { sock, tuple, counted, .. }) = self.connections[slot].take() else { return };
        let (state, segments) = (TcpState::Closed { error: 0 }, Some(counted));
        self.event(EventKind::TcpState { sock: sock_at(sock), tuple, state, segments });
        self.closed.push(sock);
    }

    fn datagram(&mut self, slot: usize, peer: u16, outbound: bool, (payload, nonlinear): (u32, bool), dropped: bool) {
        let sock = match self.udp_sockets[slot] {
            Some(sock) => sock,
            None => self.create_socket(),
        };
        self.udp_sockets[slot] = Some(sock);
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
