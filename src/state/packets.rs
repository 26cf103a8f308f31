//! Packets: which flow and which socket they belong to.

mod lifetime;
mod report;

use super::counting::Sender;
use super::flows::{Beginning, FlowId, FlowKey, LiveFlow, is_same};
use super::idle::Idle;
use super::sockets::{Socket, SocketKey, UdpKind};
use super::unparsed::Ports;
use super::{State, counting};
use crate::model::event::{Fragmented, Packet, PacketDirection, PacketSize, Unreadable, tcp_flags};
use crate::model::flow::{Direction, Outcome, Reason, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::loss::Harm;
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
        if let Some(flow) = found.filter(|flow| self.has_ended(*flow)) {
            self.flow_is_due(self.horizon, flow);
            found = None;
        }
        if let Some(flow) = found.filter(|flow| self.begins_new_conversation(*flow, packet)) {
            self.finish(flow, Reason::Replaced);
            found = None;
        }
        let Some(flow) = found.or_else(|| self.begin(now, id, packet)) else {
            self.stats.packets_without_flow += 1;
            return;
        };
        if packet.direction == PacketDirection::Outbound {
            self.bind_to_sender(now, flow, packet);
        }
        let is_own_socket =
            packet.sock.is_some() && self.flows.get(flow).is_some_and(|live| self.sock_of(live) == packet.sock);
        let sender = if is_own_socket { Sender::OwnSocket } else { Sender::Other };
        let may_hold_several = self.may_hold_several(flow, packet);
        let Some(live) = self.flows.get_mut(flow) else { return };
        counting::add(live, now, packet, sender);
        if packet.transport == Transport::Tcp
            && packet.direction == PacketDirection::Outbound
            && !(is_own_socket && live.bound)
        {
            self.sent_by_others.note(flow);
        }
        live.inexact.datagram_segments |= may_hold_several;
        if packet.transport == Transport::Tcp {
            note_flags(live, packet);
        } else if live.sent.packets > 0 && live.received.packets > 0 {
            live.outcome = Outcome::Success;
        }
        if let Some(socket) = live.socket.and_then(|key| self.sockets.get_mut(key)) {
            socket.last = socket.last.max(now);
        }
    }

    /// Whether a datagram may be several that the kernel handles as one.
    fn may_hold_several(&self, flow: FlowKey, packet: &Packet) -> bool {
        let (Transport::Udp, PacketSize { bytes, headers }) = (packet.transport, packet.size) else {
            return false; // TCP's segments are counted
        };
        let Some(socket) = self.flows.get(flow).and_then(|live| self.sockets.get(live.socket?)) else { return false };
        match (packet.direction, socket.udp_kind) {
            // Some devices merge datagrams into a linear packet.
            (PacketDirection::Inbound, UdpKind::Gro) => true,
            (_, UdpKind::Kernel | UdpKind::Unknown) if packet.data_len > 0 => true,
            (PacketDirection::Outbound, _) => {
                let head = self.capabilities.gso_head_len.max(u32::from(headers));
                let is_joined = packet.data_len > 0 && bytes.saturating_sub(packet.data_len) == head;
                is_joined || (socket.uses_gso && bytes <= self.capabilities.gso_head_len)
            }
            _ => false,
        }
    }

    /// A packet that was counted before is split into fragments.
    pub(super) fn fragmented(&mut self, packet: &Fragmented) {
        if let Some(live) = self.flows.find(&FlowId::of_fragmented(packet)).and_then(|flow| self.flows.get_mut(flow)) {
            counting::further_fragments(live, packet);
            return;
        }
        // Address translation (NAT) has changed its addresses; it belongs to some flow of this socket.
        if let Some(socket) = self.sockets.at(packet.sock).and_then(|key| self.sockets.get_mut(key)) {
            socket.fragmented = true;
        }
    }

    /// Whether a packet with a live flow's addresses belongs to another conversation.
    fn begins_new_conversation(&self, flow: FlowKey, packet: &Packet) -> bool {
        let Some(live) = self.flows.get(flow) else { return false };
        match packet.transport {
            Transport::Udp => live.socket != self.sockets.at(packet.sock),
            Transport::Tcp => {
                let other_socket =
                    packet.direction == PacketDirection::Outbound && live.bound && self.sock_of(live) != packet.sock;
                packet.is_initial_syn() && (live.closing || other_socket)
            }
        }
    }

    /// The `struct sock` of a flow's socket; `None` while that is not known.
    pub(super) fn sock_of(&self, live: &LiveFlow) -> Option<SockAddress> {
        live.socket.and_then(|key| self.sock(key))
    }

    pub(super) fn sock(&self, key: SocketKey) -> Option<SockAddress> {
        self.sockets.get(key).and_then(|socket| socket.sock)
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
        let socket = match packet.transport {
            Transport::Udp => Some(self.verified_socket_at(now, packet.sock, packet.tuple.local.port)?),
            Transport::Tcp => None, // `bind_to_sender` binds it
        };
        // The first packet of a new socket is the first of its flow, unless one before could not be read.
        let is_new_socket = socket
            .and_then(|key| self.sockets.get(key))
            .is_some_and(|socket| socket.created && !socket.had_unparsed_packets)
            && !self.had_unparsed_packets(now, &id, packet.tuple.net);
        let first = match (packet.transport, packet.direction) {
            (Transport::Tcp, PacketDirection::Outbound) if syn => Direction::Egress,
            (Transport::Tcp, PacketDirection::Inbound) if syn => Direction::Ingress,
            (Transport::Udp, PacketDirection::Outbound) if is_new_socket => Direction::Egress,
            (Transport::Udp, PacketDirection::Inbound) if is_new_socket => Direction::Ingress,
            _ => Direction::Unknown,
        };
        let beginning = if syn || is_new_socket { Beginning::Seen } else { Beginning::Missed };
        let flow = self.open(now, id, packet.tuple.net, socket, first, beginning);
        if let (Some(live), Some(socket)) = (self.flows.get_mut(flow), socket.and_then(|key| self.sockets.get(key))) {
            // Packets of a new socket may have been lost only since it was created.
            let earliest = if is_new_socket { socket.since } else { MonotonicTime::ZERO };
            live.exposed = earliest.max(now.saturating_sub(self.config.flow_inactive_timeout));
        }
        Some(flow)
    }

    /// The UDP socket at an address. After a loss, another socket may have this address by now. A socket with the same local
    /// port is taken for the same socket, and one with another port for a new socket.
    pub(super) fn verified_socket_at(
        &mut self,
        now: MonotonicTime,
        sock: Option<SockAddress>,
        port: u16,
    ) -> Option<SocketKey> {
        let key = self.socket_at(now, sock)?;
        let socket = self.sockets.get_mut(key)?;
        if !self.loss_history.overlaps(Harm::OWNERS, socket.owner_since, now) {
            socket.port = port;
        } else if socket.port == port {
            socket.owner_since = now;
        } else if socket.port != 0 {
            self.sockets.unmap(key);
            return self.socket_at(now, sock);
        }
        Some(key)
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
        let socket = idle.socket.filter(|key| self.sockets.get(*key).is_some());
        let is_closed = socket.and_then(|key| self.sockets.get(key)).is_none_or(|socket| socket.closed);
        if let Some(socket) = socket.and_then(|key| self.sockets.get_mut(key)).filter(|socket| socket.owner.is_some()) {
            socket.owner_since = now; // the same ends show that it is the same connection, so the owner is the same
        }
        // If samples were lost meanwhile, their segments are not this flow's.
        let harm = Harm::packets(Transport::Tcp, idle.id.remote.ip);
        let nothing_lost = !self.loss_history.overlaps(harm, idle.last, now);
        let flow = self.open(now, idle.id, net, socket, idle.direction, Beginning::Missed);
        let Some(live) = self.flows.get_mut(flow) else { return flow };
        if is_same(live.owner.as_deref(), idle.owner.as_deref()) || live.owner.is_none() {
            live.domain = idle.domain;
        }
        if let Some(owner) = idle.owner.filter(|_| live.owner.is_none()) {
            live.doubtful = self.processes.confirm(&owner);
            live.owner = Some(self.processes.latest(&owner));
            (live.owner_since, live.accepted) = (idle.owner_since, idle.accepted);
        }
        live.bound = true;
        live.last_user = idle.last_user;
        live.outcome = idle.outcome;
        live.segments = idle.segments.filter(|_| nothing_lost);
        live.fins = idle.fins;
        if is_closed {
            self.begin_to_close(now, flow);
        }
        flow
    }

    /// A packet could not be read: marks the flows that it may belong to.
    pub(super) fn unreadable(&mut self, now: MonotonicTime, packet: &Unreadable) {
        if let Some(ports) = Ports::of(packet) {
            self.unparsed.note(now, ports);
            return;
        }
        let Some(socket) = self.sockets.at(packet.sock).and_then(|key| self.sockets.get_mut(key)) else { return };
        socket.had_unparsed_packets = true;
        let flows: Vec<_> = self.flows.chain(socket.flows).collect();
        for flow in flows {
            if let Some(live) = self.flows.get_mut(flow) {
                live.inexact.headers_unread = true;
            }
        }
    }

    /// Whether a packet of a conversation that begins at `start` could not be read, then or shortly before.
    pub(super) fn had_unparsed_packets(&self, start: MonotonicTime, id: &FlowId, net: Option<NetAddress>) -> bool {
        let since = start.saturating_sub(self.config.flow_inactive_timeout);
        self.unparsed.had_packet_since(Ports::of_flow(id, net), since)
    }

    /// Binds a flow to the socket that sends its packets. The kernel may send a reset, or the last packet of a connection,
    /// through a socket of its own. A flow that has a socket, as a UDP flow has from its beginning, is not bound to that.
    fn bind_to_sender(&mut self, now: MonotonicTime, flow: FlowKey, packet: &Packet) {
        let Some(live) = self.flows.get(flow) else { return };
        if packet.sock.is_none()
            || live.bound
            || self.sock_of(live) == packet.sock
            || packet.tcp_flags & tcp_flags::RST != 0
        {
            return;
        }
        let Some(key) = self.socket_at(now, packet.sock) else { return };
        if packet.is_syn_ack() {
            // A connection that has no socket yet is answered by the listener or its request.
            self.flows.link(flow, key, &mut self.sockets);
            self.set_owner_to_listeners(flow, key);
        } else {
            self.bind(flow, key);
        }
    }

    /// Until a connection is accepted, it belongs to its listener's owner. The kernel makes listeners of its own for
    /// MPTCP sockets. Further subflows may arrive there, of connections that other processes have accepted.
    pub(super) fn set_owner_to_listeners(&mut self, flow: FlowKey, listener: SocketKey) {
        let is_programs = |listener: &&Socket| listener.udp_kind != UdpKind::Kernel;
        let Some(listener) = self.sockets.get(listener).filter(is_programs) else { return };
        let (Some(live), Some(owner)) = (self.flows.get_mut(flow), &listener.owner) else { return };
        live.set_owner(self.processes.latest(owner));
        live.owner_since = listener.owner_since;
        live.doubtful = self.processes.confirm(owner);
    }

    /// Binds a flow to its own socket, and gives it the socket's owner.
    pub(super) fn bind(&mut self, flow: FlowKey, key: SocketKey) {
        self.flows.link(flow, key, &mut self.sockets);
        let hash = self.flows.get(flow).map(|live| self.flows.hash(&live.id));
        let (Some(live), Some(socket)) = (self.flows.get_mut(flow), self.sockets.get_mut(key)) else { return };
        if let Some(before) = socket.idle.take() {
            self.idle.remove(before); // it is this flow's connection, or this flow replaces it
        }
        live.bound = true;
        live.inexact.headers_unread |= socket.had_unparsed_packets;
        if live.id.transport == Transport::Udp && socket.udp_kind == UdpKind::Kernel {
            // The socket of a tunnel, for instance, was created by the process that set the tunnel up, but is the kernel's. TCP
            // sockets of the kernel may belong to a program (MPTCP).
            live.set_owner(self.processes.process_of_running_thread(0, 0));
        } else if let Some(owner) = socket.owner.as_ref().filter(|_| [None, hash].contains(&socket.accepted_as)) {
            live.set_owner(self.processes.latest(owner));
            live.owner_since = socket.owner_since;
            live.accepted = true;
            live.doubtful = self.processes.confirm(owner);
        } else if socket.joined {
            live.set_owner(None);
        }
        if socket.direction != Direction::Unknown {
            live.direction = socket.direction;
        }
        self.take_waiting_totals(flow, key);
    }
}

/// Updates a flow by a TCP packet's flags.
fn note_flags(live: &mut LiveFlow, packet: &Packet) {
    match packet.direction {
        PacketDirection::Outbound => live.fins.sent |= packet.tcp_flags & tcp_flags::FIN != 0,
        PacketDirection::Inbound => live.fins.received |= packet.tcp_flags & (tcp_flags::FIN | tcp_flags::RST) != 0,
    }
    if live.direction == Direction::Unknown && packet.is_syn_ack() {
        live.direction = match packet.direction {
            PacketDirection::Outbound => Direction::Ingress,
            PacketDirection::Inbound => Direction::Egress,
        };
    }
    let refused = packet.tcp_flags & tcp_flags::RST != 0
        && packet.direction == PacketDirection::Inbound
        && live.direction == Direction::Egress;
    if refused && live.outcome == Outcome::Unknown && live.complete && live.received.packets == 1 {
        live.outcome = Outcome::Failure(ECONNREFUSED);
    }
}

/// `ECONNREFUSED` of `errno(3)` on all supported architectures.
const ECONNREFUSED: i32 = 111;
