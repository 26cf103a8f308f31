//! Packets: which flow and which socket they belong to.

mod lifetime;
mod report;

use super::counting::Sender;
use super::flows::{Beginning, FlowId, FlowKey, LiveFlow, is_same};
use super::idle::Idle;
use super::sockets::{Socket, SocketKey, UdpKind};
use super::unreadable::Ports;
use super::{State, counting};
use crate::model::event::{Fragmented, Packet, PacketDirection, PacketSize, UnreadablePacket, tcp_flags};
use crate::model::flow::{Direction, Outcome, Reason, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::loss::LostFacts;
use crate::model::time::MonotonicTime;

impl State {
    /// A packet left or arrived: counts it in its flow, which may begin with it.
    pub(super) fn packet(&mut self, now: MonotonicTime, packet: &Packet) {
        self.stats.packets += 1;
        let with_namespace = self.in_namespace_of_connection(packet);
        let packet = with_namespace.as_ref().unwrap_or(packet);
        if !self.config.filter.accepts(&packet.tuple) {
            self.stats.packets_filtered += 1;
            return;
        }
        let id = FlowId::of(packet);
        let mut found = self.flows.find(&id);
        if let Some(flow_key) = found.filter(|flow_key| self.has_ended(*flow_key)) {
            self.flow_is_due(self.horizon, flow_key);
            found = None;
        }
        if let Some(flow_key) = found.filter(|flow_key| self.begins_new_conversation(*flow_key, packet)) {
            self.finish(flow_key, Reason::Replaced);
            found = None;
        }
        let Some(flow_key) = found.or_else(|| self.begin(now, id, packet)) else {
            self.stats.packets_without_flow += 1;
            return;
        };
        if packet.direction == PacketDirection::Outbound {
            self.attach_sender(now, flow_key, packet);
        }
        let is_own_socket =
            packet.sock.is_some() && self.flows.get(flow_key).is_some_and(|flow| self.sock_of(flow) == packet.sock);
        let sender = if is_own_socket { Sender::OwnSocket } else { Sender::Other };
        let may_hold_several = self.may_hold_several(flow_key, packet);
        let Some(flow) = self.flows.get_mut(flow_key) else { return };
        counting::add(flow, now, packet, sender);
        if packet.transport == Transport::Tcp
            && packet.direction == PacketDirection::Outbound
            && !(is_own_socket && flow.has_own_socket)
        {
            self.sent_by_others.note(flow_key);
        }
        flow.inexact.datagram_segments |= may_hold_several;
        if packet.transport == Transport::Tcp {
            note_flags(flow, packet);
        } else if flow.sent.packets > 0 && flow.received.packets > 0 {
            flow.outcome = Outcome::Success;
        }
        if let Some(socket) = flow.socket.and_then(|key| self.sockets.get_mut(key)) {
            socket.last = socket.last.max(now);
        }
    }

    /// Whether a packet may hold several datagrams, which the kernel handles as one.
    fn may_hold_several(&self, flow_key: FlowKey, packet: &Packet) -> bool {
        let (Transport::Udp, PacketSize { bytes, headers }) = (packet.transport, packet.size) else {
            return false; // TCP's segments are counted
        };
        let Some(socket) = self.flows.get(flow_key).and_then(|flow| self.sockets.get(flow.socket?)) else {
            return false;
        };
        match (packet.direction, socket.udp_kind) {
            // Some devices merge datagrams into a linear packet.
            (PacketDirection::Inbound, UdpKind::Gro) => true,
            (_, UdpKind::Kernel | UdpKind::Unknown) if packet.data_len > 0 => true,
            (PacketDirection::Outbound, _) => {
                let head = self.capabilities.gso_head_len.max(u32::from(headers));
                let is_gso = packet.data_len > 0 && bytes.saturating_sub(packet.data_len) == head;
                is_gso || (socket.uses_gso && bytes <= self.capabilities.gso_head_len)
            }
            _ => false,
        }
    }

    /// A packet that was counted before is split into fragments.
    pub(super) fn fragmented(&mut self, packet: &Fragmented) {
        if let Some(flow) = self.flows.find(&FlowId::of_fragmented(packet)).and_then(|key| self.flows.get_mut(key)) {
            counting::further_fragments(flow, packet);
            return;
        }
        // Address translation (NAT) has changed its addresses; it belongs to some flow of this socket.
        if let Some(socket) = self.sockets.at(packet.sock).and_then(|key| self.sockets.get_mut(key)) {
            socket.fragmented = true;
        }
    }

    /// Whether a packet with a live flow's addresses belongs to another conversation.
    fn begins_new_conversation(&self, flow_key: FlowKey, packet: &Packet) -> bool {
        let Some(flow) = self.flows.get(flow_key) else { return false };
        match packet.transport {
            Transport::Udp => flow.socket != self.sockets.at(packet.sock),
            Transport::Tcp => {
                let other_socket = packet.direction == PacketDirection::Outbound
                    && flow.has_own_socket
                    && self.sock_of(flow) != packet.sock;
                packet.is_initial_syn() && (flow.closing || other_socket)
            }
        }
    }

    /// The `struct sock` of a flow's socket; `None` while that is not known.
    pub(super) fn sock_of(&self, flow: &LiveFlow) -> Option<SockAddress> {
        flow.socket.and_then(|key| self.sock(key))
    }

    pub(super) fn sock(&self, socket_key: SocketKey) -> Option<SockAddress> {
        self.sockets.get(socket_key).and_then(|socket| socket.sock)
    }

    /// Begins a flow with its first packet.
    fn begin(&mut self, now: MonotonicTime, id: FlowId, packet: &Packet) -> Option<FlowKey> {
        let syn = packet.is_initial_syn();
        if let Some(idle) = self.take_idle(&id).filter(|idle| self.continues(idle, packet)) {
            return Some(self.resume(now, packet.tuple.net, idle));
        }
        if packet.transport == Transport::Tcp && packet.tcp_flags & tcp_flags::RST != 0 {
            return None; // the end of a connection that was not seen, or the kernel's answer to a stray packet
        }
        let socket_key = match packet.transport {
            Transport::Udp => Some(self.verified_socket_at(now, packet.sock, packet.tuple.local.port)?),
            Transport::Tcp => None, // `attach_sender` attaches it
        };
        // The first packet of a new socket is the first of its flow, unless one before could not be read.
        let is_new_socket = socket_key
            .and_then(|key| self.sockets.get(key))
            .is_some_and(|socket| socket.created && !socket.had_unreadable_packets)
            && !self.had_unreadable_packets(now, &id, packet.tuple.net);
        let first = match (packet.transport, packet.direction) {
            (Transport::Tcp, PacketDirection::Outbound) if syn => Direction::Egress,
            (Transport::Tcp, PacketDirection::Inbound) if syn => Direction::Ingress,
            (Transport::Udp, PacketDirection::Outbound) if is_new_socket => Direction::Egress,
            (Transport::Udp, PacketDirection::Inbound) if is_new_socket => Direction::Ingress,
            _ => Direction::Unknown,
        };
        let beginning = if syn || is_new_socket { Beginning::Seen } else { Beginning::Missed };
        let flow_key = self.open(now, id, packet.tuple.net, socket_key, first, beginning);
        if let (Some(flow), Some(socket)) =
            (self.flows.get_mut(flow_key), socket_key.and_then(|key| self.sockets.get(key)))
        {
            // Packets of a new socket may have been lost only since it was created.
            let earliest = if is_new_socket { socket.since } else { MonotonicTime::ZERO };
            flow.may_miss_packets_since = earliest.max(now.saturating_sub(self.config.flow_inactive_timeout));
        }
        Some(flow_key)
    }

    /// The UDP socket at an address. After a loss, another socket may have this address by now. A socket with the same local
    /// port is taken for the same socket, and one with another port for a new socket.
    pub(super) fn verified_socket_at(
        &mut self,
        now: MonotonicTime,
        sock: Option<SockAddress>,
        port: u16,
    ) -> Option<SocketKey> {
        let socket_key = self.socket_at(now, sock)?;
        let socket = self.sockets.get_mut(socket_key)?;
        if !self.loss_history.overlaps(LostFacts::OWNERS, socket.owner_since, now) {
            socket.port = port;
        } else if socket.port == port {
            socket.owner_since = now;
        } else if socket.port != 0 {
            self.sockets.unmap(socket_key);
            return self.socket_at(now, sock);
        }
        Some(socket_key)
    }

    /// Whether a packet belongs to this idle connection, and not to a new one between the same ends.
    fn continues(&self, idle: &Idle, packet: &Packet) -> bool {
        let sender = idle.socket.and_then(|key| self.sock(key));
        let other_socket = packet.direction == PacketDirection::Outbound
            && sender.zip(packet.sock).is_some_and(|(known, sender)| known != sender);
        packet.tcp_flags & tcp_flags::SYN == 0 && !other_socket
    }

    /// Begins the next flow of a connection that was idle. It has the owner, outcome and name of the flow before.
    pub(super) fn resume(&mut self, now: MonotonicTime, net: Option<NetAddress>, idle: Idle) -> FlowKey {
        let socket_key = idle.socket.filter(|key| self.sockets.get(*key).is_some());
        let is_closed = socket_key.and_then(|key| self.sockets.get(key)).is_none_or(|socket| socket.closed);
        if let Some(socket) =
            socket_key.and_then(|key| self.sockets.get_mut(key)).filter(|socket| socket.owner.is_some())
        {
            socket.owner_since = now; // the same ends show that it is the same connection, so the owner is the same
        }
        // If samples were lost meanwhile, their segments are not this flow's.
        let facts = LostFacts::packets(Transport::Tcp, idle.id.remote.ip);
        let nothing_lost = !self.loss_history.overlaps(facts, idle.last, now);
        let flow_key = self.open(now, idle.id, net, socket_key, idle.direction, Beginning::Missed);
        let Some(flow) = self.flows.get_mut(flow_key) else { return flow_key };
        if is_same(flow.owner.as_deref(), idle.owner.as_deref()) || flow.owner.is_none() {
            flow.domain = idle.domain;
        }
        if let Some(owner) = idle.owner.filter(|_| flow.owner.is_none()) {
            flow.doubtful = self.processes.ask_if_doubtful(&owner);
            flow.owner = Some(self.processes.latest(&owner));
            (flow.owner_since, flow.accepted) = (idle.owner_since, idle.accepted);
        }
        flow.has_own_socket = true;
        flow.last_user = idle.last_user;
        flow.outcome = idle.outcome;
        flow.segments = idle.segments.filter(|_| nothing_lost);
        flow.fins = idle.fins;
        if is_closed {
            self.begin_to_close(now, flow_key);
        }
        flow_key
    }

    /// A packet could not be read: marks the flows that it may belong to.
    pub(super) fn unreadable_packet(&mut self, now: MonotonicTime, packet: &UnreadablePacket) {
        if let Some(ports) = Ports::of(packet) {
            self.unreadable.note(now, ports);
            return;
        }
        let Some(socket) = self.sockets.at(packet.sock).and_then(|key| self.sockets.get_mut(key)) else { return };
        socket.had_unreadable_packets = true;
        let flows: Vec<_> = self.flows.chain(socket.flows).collect();
        for flow_key in flows {
            if let Some(flow) = self.flows.get_mut(flow_key) {
                flow.inexact.headers_unread = true;
            }
        }
    }

    /// Whether a packet of a conversation that begins at `start` could not be read, then or shortly before.
    pub(super) fn had_unreadable_packets(&self, start: MonotonicTime, id: &FlowId, net: Option<NetAddress>) -> bool {
        let since = start.saturating_sub(self.config.flow_inactive_timeout);
        self.unreadable.had_packet_since(Ports::of_flow(id, net), since)
    }

    /// Attaches the socket that sends the packets to its flow. The kernel may send a reset, or the last packet of a connection,
    /// through a socket of its own. A flow that has its own socket, as a UDP flow has from its beginning, keeps it.
    fn attach_sender(&mut self, now: MonotonicTime, flow_key: FlowKey, packet: &Packet) {
        let Some(flow) = self.flows.get(flow_key) else { return };
        if packet.sock.is_none()
            || flow.has_own_socket
            || self.sock_of(flow) == packet.sock
            || packet.tcp_flags & tcp_flags::RST != 0
        {
            return;
        }
        let Some(socket_key) = self.socket_at(now, packet.sock) else { return };
        if packet.is_syn_ack() {
            // The SYN-ACK of a connection without a socket is sent by the listener or by a request socket.
            self.flows.link(flow_key, socket_key, &mut self.sockets);
            self.set_owner_to_listeners(flow_key, socket_key);
        } else {
            self.attach_socket(flow_key, socket_key);
        }
    }

    /// Until a connection is accepted, it belongs to its listener's owner. This does not hold if the kernel made the listener for
    /// an MPTCP socket: further subflows may arrive there, of connections that other processes have accepted.
    pub(super) fn set_owner_to_listeners(&mut self, flow_key: FlowKey, listener: SocketKey) {
        let is_program_socket = |listener: &&Socket| listener.udp_kind != UdpKind::Kernel;
        let Some(listener) = self.sockets.get(listener).filter(is_program_socket) else { return };
        let (Some(flow), Some(owner)) = (self.flows.get_mut(flow_key), &listener.owner) else { return };
        flow.set_owner(self.processes.latest(owner));
        flow.owner_since = listener.owner_since;
        flow.doubtful = self.processes.ask_if_doubtful(owner);
    }

    /// Attaches a flow's own socket, and gives the flow the socket's owner.
    pub(super) fn attach_socket(&mut self, flow_key: FlowKey, socket_key: SocketKey) {
        self.flows.link(flow_key, socket_key, &mut self.sockets);
        let hash = self.flows.get(flow_key).map(|flow| self.flows.hash(&flow.id));
        let (Some(flow), Some(socket)) = (self.flows.get_mut(flow_key), self.sockets.get_mut(socket_key)) else {
            return;
        };
        if let Some(before) = socket.idle.take() {
            self.idle.remove(before); // it is this flow's connection, or this flow replaces it
        }
        flow.has_own_socket = true;
        flow.inexact.headers_unread |= socket.had_unreadable_packets;
        if flow.id.transport == Transport::Udp && socket.udp_kind == UdpKind::Kernel {
            // The socket of a tunnel, for instance, was created by the process that set the tunnel up, but is the kernel's. TCP
            // sockets of the kernel may belong to a program (MPTCP).
            flow.set_owner(self.processes.process_of_running_thread(0, 0));
        } else if let Some(owner) = socket.owner.as_ref().filter(|_| [None, hash].contains(&socket.accepted_as)) {
            flow.set_owner(self.processes.latest(owner));
            flow.owner_since = socket.owner_since;
            flow.accepted = true;
            flow.doubtful = self.processes.ask_if_doubtful(owner);
        } else if socket.joined {
            flow.set_owner(None);
        }
        if socket.direction != Direction::Unknown {
            flow.direction = socket.direction;
        }
        self.take_waiting_totals(flow_key, socket_key);
    }
}

/// Updates a flow by a TCP packet's flags.
fn note_flags(flow: &mut LiveFlow, packet: &Packet) {
    match packet.direction {
        PacketDirection::Outbound => {
            flow.fins.sent |= packet.tcp_flags & tcp_flags::FIN != 0;
            flow.syn_acked |= packet.is_syn_ack();
        }
        PacketDirection::Inbound => flow.fins.received |= packet.tcp_flags & (tcp_flags::FIN | tcp_flags::RST) != 0,
    }
    if flow.direction == Direction::Unknown && packet.is_syn_ack() {
        flow.direction = match packet.direction {
            PacketDirection::Outbound => Direction::Ingress,
            PacketDirection::Inbound => Direction::Egress,
        };
    }
    let refused = packet.tcp_flags & tcp_flags::RST != 0
        && packet.direction == PacketDirection::Inbound
        && flow.direction == Direction::Egress;
    if refused && flow.outcome == Outcome::Unknown && flow.complete && flow.received.packets == 1 {
        flow.outcome = Outcome::Failure(ECONNREFUSED);
    }
}

/// `ECONNREFUSED` of `errno(3)` on all supported architectures.
const ECONNREFUSED: i32 = 111;
