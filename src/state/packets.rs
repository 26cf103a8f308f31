//! Packets: which flow they belong to, and how a flow begins and ends.

use std::sync::Arc;
use std::time::Duration;

use super::flows::{Fins, FlowId, FlowKey, Headers, LastSent, Live, is_same};
use super::idle::Idle;
use super::sockets::{Datagrams, Socket, SocketKey};
use super::unread::Ports;
use super::wheel::Tick;
use super::{State, counting, nanos};
use crate::event::{Fragmented, KernelAddress, KernelTime, Packet, Size, Transport, Unreadable, Way, tcp_flags};
use crate::flow::{Counters, Direction, Flow, Inexact, Outcome, Owner, Reason};
use crate::loss::Harm;

/// How long after its end a flow may still have packets.
const AFTERMATH: Duration = Duration::from_millis(100);

impl State {
    pub(super) fn packet(&mut self, now: KernelTime, packet: &Packet) {
        self.stats.packets += 1;
        let placed = self.in_namespace_of_cause(packet);
        let packet = placed.as_ref().unwrap_or(packet);
        if !self.config.filter.lets_tuple_pass(&packet.tuple) {
            self.stats.packets_filtered += 1;
            return;
        }
        let id = FlowId::of(packet);
        let mut found = self.flows.find(&id);
        if let Some(flow) = found.filter(|flow| self.starts_anew(*flow, packet)) {
            self.finish(flow, Reason::Replaced);
            found = None;
        }
        let Some(flow) = found.or_else(|| self.begin(now, id, packet)) else {
            self.stats.packets_without_flow += 1;
            return;
        };
        if packet.transport == Transport::Tcp && packet.way == Way::Out {
            self.sender(now, flow, packet);
        }
        let by_own_socket =
            packet.sock != 0 && self.flows.get(flow).is_some_and(|live| self.sock_of(live) == packet.sock);
        let may_be_several = self.may_be_several(flow, packet);
        let Some(live) = self.flows.get_mut(flow) else { return };
        counting::add(live, now, packet, by_own_socket);
        if packet.transport == Transport::Tcp && packet.way == Way::Out && !(by_own_socket && live.bound) {
            self.sent_by_others.note(flow);
        }
        live.inexact.datagram_segments |= may_be_several;
        if packet.transport == Transport::Tcp {
            note_flags(live, packet);
        } else if live.sent.packets > 0 && live.received.packets > 0 {
            live.outcome = Outcome::Success;
        }
        if let Some(socket) = live.socket.and_then(|key| self.sockets.get_mut(key)) {
            socket.last = socket.last.max(now);
        }
    }

    /// Whether a datagram may be several that travel through the kernel as one.
    fn may_be_several(&self, flow: FlowKey, packet: &Packet) -> bool {
        let (Transport::Udp, Size { bytes, headers }) = (packet.transport, packet.size) else {
            return false; // TCP's segments are counted
        };
        let Some(socket) = self.flows.get(flow).and_then(|live| self.sockets.get(live.socket?)) else { return false };
        match (packet.way, socket.datagrams) {
            // Not every device that merges leaves them in pieces.
            (Way::In, Datagrams::Merged) => true,
            (_, Datagrams::Kernel | Datagrams::Unknown) if packet.apart > 0 => true,
            (Way::Out, _) => {
                let head = self.sight.joined_head.max(u32::from(headers));
                let is_joined = packet.apart > 0 && bytes.saturating_sub(packet.apart) == head;
                is_joined || (socket.joins && bytes <= self.sight.joined_head)
            }
            _ => false,
        }
    }

    /// A packet that has been counted turns out to travel as several.
    pub(super) fn fragmented(&mut self, packet: &Fragmented) {
        if let Some(live) = self.flows.find(&FlowId::of_fragmented(packet)).and_then(|flow| self.flows.get_mut(flow)) {
            counting::further_fragments(live, packet);
            return;
        }
        // Addresses were translated: it is one of this socket's.
        if let Some(socket) = self.sockets.at(packet.sock).and_then(|key| self.sockets.get_mut(key)) {
            socket.cut = true;
        }
    }

    /// Whether a packet with a live flow's addresses belongs to another conversation.
    fn starts_anew(&self, flow: FlowKey, packet: &Packet) -> bool {
        let Some(live) = self.flows.get(flow) else { return false };
        match packet.transport {
            Transport::Udp => live.socket != self.sockets.at(packet.sock),
            Transport::Tcp => {
                let syn = packet.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
                let other_socket = packet.way == Way::Out && live.bound && self.sock_of(live) != packet.sock;
                syn && (live.closing || other_socket)
            }
        }
    }

    /// The `struct sock` of a flow's socket, 0 while that is not known.
    pub(super) fn sock_of(&self, live: &Live) -> KernelAddress {
        live.socket.map_or(0, |key| self.sock(key))
    }

    fn sock(&self, key: SocketKey) -> KernelAddress {
        self.sockets.get(key).map_or(0, |socket| socket.sock)
    }

    /// Begins the flow that a packet is the first of.
    fn begin(&mut self, now: KernelTime, id: FlowId, packet: &Packet) -> Option<FlowKey> {
        let flags = packet.tcp_flags;
        let syn = flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
        if let Some(idle) = self.idle.take(&id).filter(|idle| self.goes_on_with(idle, packet)) {
            return Some(self.resume(now, packet.tuple.net, idle));
        }
        if packet.transport == Transport::Tcp && flags & tcp_flags::RST != 0 {
            return None; // the end of something that nobody watched, or the kernel's answer to a stray
        }
        let socket = match packet.transport {
            Transport::Udp => Some(self.sure_socket_at(now, packet.sock, packet.tuple.local.port)?),
            Transport::Tcp => None, // the sender is looked at for every packet
        };
        // The first packet of a new socket is the first of its flow, unless one before could not be read.
        let young = socket.and_then(|key| self.sockets.get(key)).is_some_and(|socket| socket.created && !socket.unread)
            && !self.was_unread(now, &id, packet.tuple.net);
        let first = match (packet.transport, packet.way) {
            (Transport::Tcp, Way::Out) if syn => Direction::Egress,
            (Transport::Tcp, Way::In) if syn => Direction::Ingress,
            (Transport::Udp, Way::Out) if young => Direction::Egress,
            (Transport::Udp, Way::In) if young => Direction::Ingress,
            _ => Direction::Unknown,
        };
        let flow = self.open(now, id, packet.tuple.net, socket, first, syn || young);
        if let (Some(live), Some(socket)) = (self.flows.get_mut(flow), socket.and_then(|key| self.sockets.get(key))) {
            // Packets of a new socket may have been lost only since it was created.
            let earliest = if young { socket.since } else { 0 };
            live.exposed = earliest.max(now.saturating_sub(nanos(self.config.flow_inactive_timeout)));
        }
        Some(flow)
    }

    /// The UDP socket at an address. After a loss another socket may have this address. It is taken for the same if its
    /// port is the same, and for another otherwise.
    fn sure_socket_at(&mut self, now: KernelTime, sock: KernelAddress, port: u16) -> Option<SocketKey> {
        let key = self.socket_at(now, sock)?;
        let socket = self.sockets.get_mut(key)?;
        if !self.history.touches(Harm::OWNERS, socket.owner_since, now) {
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
    fn goes_on_with(&self, idle: &Idle, packet: &Packet) -> bool {
        let sender = idle.socket.and_then(|key| self.sockets.get(key)).map_or(0, |socket| socket.sock);
        let other_socket = packet.way == Way::Out && ![0, packet.sock].contains(&sender) && packet.sock != 0;
        packet.tcp_flags & tcp_flags::SYN == 0 && !other_socket
    }

    /// Begins the next flow of a connection that was idle.
    fn resume(&mut self, now: KernelTime, net: KernelAddress, idle: Idle) -> FlowKey {
        let socket = idle.socket.filter(|key| self.sockets.get(*key).is_some());
        let is_closed = socket.and_then(|key| self.sockets.get(key)).is_none_or(|socket| socket.closed);
        if let Some(socket) = socket.and_then(|key| self.sockets.get_mut(key)).filter(|socket| socket.owner.is_some()) {
            socket.owner_since = now; // the same ends are the same connection, and so is its owner
        }
        // Segments that were lost meanwhile are not this flow's.
        let harm = Harm::packets(Transport::Tcp, idle.id.remote.ip.is_ipv4());
        let nothing_lost = !self.history.touches(harm, idle.last, now);
        let flow = self.open(now, idle.id, net, socket, idle.direction, false);
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

    /// A packet was seen, and no more can be said than whose it may be.
    pub(super) fn unreadable(&mut self, now: KernelTime, packet: &Unreadable) {
        if let Some(ports) = Ports::of(packet) {
            self.unread.note(now, ports);
            return;
        }
        let Some(socket) = self.sockets.at(packet.sock).and_then(|key| self.sockets.get_mut(key)) else { return };
        socket.unread = true;
        let flows: Vec<_> = self.flows.chain(socket.flows).collect();
        for flow in flows {
            if let Some(live) = self.flows.get_mut(flow) {
                live.inexact.headers_unread = true;
            }
        }
    }

    /// Whether a packet of a conversation that begins at `start` could not be read, then or shortly before.
    pub(super) fn was_unread(&self, start: KernelTime, id: &FlowId, net: KernelAddress) -> bool {
        let since = start.saturating_sub(nanos(self.config.flow_inactive_timeout));
        self.unread.touches(Ports::of_flow(id, net), since)
    }

    /// Whether its socket had a packet cut of which the flow is not known.
    fn may_be_cut(&self, live: &Live) -> bool {
        live.socket.and_then(|key| self.sockets.get(key)).is_some_and(|socket| socket.cut)
    }

    /// Whether something of the flow may have been lost.
    fn may_lack_samples(&self, live: &Live) -> bool {
        let packets = Harm::packets(live.id.transport, live.id.remote.ip.is_ipv4());
        let end_is_known = match live.id.transport {
            Transport::Tcp => live.uncounted && live.outcome != Outcome::Unknown,
            Transport::Udp => live.closing,
        };
        // Little follows a flow's end: an acknowledgement, and packets that were in flight.
        let to = if end_is_known { live.last.saturating_add(nanos(AFTERMATH)) } else { KernelTime::MAX };
        self.history.touches(packets, live.exposed, to)
            || (!end_is_known && self.history.touches(Harm::OUTCOMES, live.start, KernelTime::MAX))
            || (live.owner.is_some() && self.may_have_other_owner(live))
    }

    /// Whether the owner may be out of date because of a loss.
    fn may_have_other_owner(&self, live: &Live) -> bool {
        // Until it is accepted, a connection belongs to the listener's owner.
        let is_listeners = live.id.transport == Transport::Tcp && live.direction != Direction::Egress;
        let is_accepted = !is_listeners || live.accepted;
        self.history.touches(Harm::OWNERS, live.owner_since, live.start)
            || (!is_accepted && self.history.touches(Harm::ACCEPTS, live.owner_since, KernelTime::MAX))
            || (live.doubtful && live.owner.as_ref().is_some_and(|owner| self.processes.is_doubtful(owner)))
    }

    /// Whether its first packets may have been lost, so that it is not known how it began.
    fn may_lack_beginning(&self, live: &Live) -> bool {
        let packets = Harm::packets(live.id.transport, live.id.remote.ip.is_ipv4());
        live.exposed < live.start && self.history.touches(packets, live.exposed, live.start - 1)
    }

    fn inexact(&self, live: &Live) -> Inexact {
        Inexact {
            fragments: live.inexact.fragments || self.may_be_cut(live),
            samples_lost: self.may_lack_samples(live),
            headers_unread: live.inexact.headers_unread || self.was_unread(live.start, &live.id, live.net),
            ..live.inexact
        }
    }

    /// Ties a TCP flow to the socket that sends its packets. A reset or the last word of a connection may come from
    /// a socket of the kernel's own: it does not take over a flow that has one.
    fn sender(&mut self, now: KernelTime, flow: FlowKey, packet: &Packet) {
        let Some(live) = self.flows.get(flow) else { return };
        if packet.sock == 0 || live.bound || self.sock_of(live) == packet.sock || packet.tcp_flags & tcp_flags::RST != 0
        {
            return;
        }
        let syn_ack = tcp_flags::SYN | tcp_flags::ACK;
        let Some(key) = self.socket_at(now, packet.sock) else { return };
        if packet.tcp_flags & syn_ack == syn_ack {
            // The listener speaks for a connection that has no socket yet, in this way or the other.
            self.flows.link(flow, key, &mut self.sockets);
            self.give_to_listener(flow, key);
        } else {
            self.bind(flow, key);
        }
    }

    /// Until a connection is accepted, it belongs to its listener's owner. The kernel makes listeners of its own for
    /// MPTCP sockets. Further subflows may arrive there whose connection another process accepted.
    pub(super) fn give_to_listener(&mut self, flow: FlowKey, listener: SocketKey) {
        let is_programs = |listener: &&Socket| listener.datagrams != Datagrams::Kernel;
        let Some(listener) = self.sockets.get(listener).filter(is_programs) else { return };
        let (Some(live), Some(owner)) = (self.flows.get_mut(flow), &listener.owner) else { return };
        live.give_to(self.processes.latest(owner));
        live.owner_since = listener.owner_since;
        live.doubtful = self.processes.confirm(owner);
    }

    /// A flow has found its own socket.
    pub(super) fn bind(&mut self, flow: FlowKey, key: SocketKey) {
        self.flows.link(flow, key, &mut self.sockets);
        let (Some(live), Some(socket)) = (self.flows.get_mut(flow), self.sockets.get_mut(key)) else { return };
        if let Some(before) = socket.idle.take() {
            self.idle.remove(before); // it goes on, or another connection takes its place
        }
        live.bound = true;
        live.inexact.headers_unread |= socket.unread;
        if live.id.transport == Transport::Udp && socket.datagrams == Datagrams::Kernel {
            // Made by whoever set a tunnel up. The kernel's own sockets for TCP may be a program's all the same (MPTCP).
            live.give_to(self.processes.actor(0, 0));
        } else if let Some(owner) = &socket.owner {
            live.give_to(self.processes.latest(owner));
            live.owner_since = socket.owner_since;
            live.accepted = true;
            live.doubtful = self.processes.confirm(owner);
        } else if socket.joined {
            live.give_to(None);
        }
        if socket.direction != Direction::Unknown {
            live.direction = socket.direction;
        } else if live.id.transport == Transport::Tcp {
            socket.direction = live.direction; // what its first packet said holds as long as it lives
        }
    }

    pub(super) fn open(
        &mut self,
        now: KernelTime,
        id: FlowId,
        net: KernelAddress,
        socket: Option<SocketKey>,
        direction: Direction,
        complete: bool,
    ) -> FlowKey {
        self.make_room();
        self.stats.flows_started += 1;
        let flow = self.flows.insert(Live {
            id,
            net,
            number: self.stats.flows_started,
            socket: None,
            bound: false,
            owner: None,
            direction,
            start: now,
            exposed: if complete { now } else { now.saturating_sub(nanos(self.config.flow_inactive_timeout)) },
            owner_since: now,
            accepted: false,
            doubtful: false,
            last: now,
            reported: now,
            closing: false,
            sent: Counters::default(),
            received: Counters::default(),
            dropped: Counters::default(),
            last_sent: LastSent::default(),
            segments: None,
            uncounted: false,
            received_headers: Headers::default(),
            syns: 0,
            fins: Fins::default(),
            inexact: Inexact::default(),
            complete,
            outcome: Outcome::Unknown,
            noted_error: 0,
            last_user: None,
            domain: None,
            armed: Tick::default(),
            previous: None,
            next: None,
        });
        if let Some(key) = socket {
            self.bind(flow, key);
            if let Some(live) = self.flows.get_mut(flow).filter(|_| id.transport == Transport::Udp) {
                live.direction = direction;
            }
        }
        self.look_among_old(flow, complete);
        self.correlation.begins(flow, &self.flows);
        self.arm_flow(flow);
        flow
    }

    /// A flow of a socket older than the monitor: somebody may have been found to hold it.
    fn look_among_old(&mut self, flow: FlowKey, complete: bool) {
        let Some(live) = self.flows.get_mut(flow).filter(|live| live.owner.is_none()) else { return };
        // A connection that begins now is not an old one, but may be an old listener's.
        if complete && live.direction != Direction::Ingress {
            return;
        }
        live.owner = self.adopted.owner(&live.id).map(|owner| self.processes.latest(&owner));
        if live.direction == Direction::Unknown && self.adopted.listens(&live.id) {
            live.direction = Direction::Ingress;
        }
    }

    fn make_room(&mut self) {
        while self.flows.len() >= self.config.max_flows.max(1) {
            let Some((tick, key)) = self.flow_timers.pop_earliest() else { return };
            if self.flows.get(key).is_some_and(|live| live.armed == tick) {
                self.stats.flows_evicted += 1;
                self.finish(key, Reason::Evicted);
            }
        }
    }

    pub(super) fn begin_to_close(&mut self, now: KernelTime, flow: FlowKey) {
        if let Some(live) = self.flows.get_mut(flow) {
            live.closing = true;
            live.note_time(now);
            self.arm_flow(flow);
        }
    }

    /// When a flow is over if nothing more is heard of it.
    fn deadline(&self, live: &Live) -> KernelTime {
        let timeout = match live.closing {
            true => self.config.flow_termination_timeout.min(self.config.flow_inactive_timeout),
            false => self.config.flow_inactive_timeout,
        };
        live.last.saturating_add(nanos(timeout))
    }

    /// When its next report while it lives is due.
    fn report_due(&self, live: &Live) -> KernelTime {
        let interval = self.config.flow_report_interval.filter(|_| !live.closing);
        interval.map_or(KernelTime::MAX, |interval| live.reported.saturating_add(nanos(interval)))
    }

    fn arm_flow(&mut self, flow: FlowKey) {
        let due = |live| self.deadline(live).min(self.report_due(live));
        let Some(due) = self.flows.get(flow).map(due) else { return };
        let tick = self.flow_timers.set(due, flow);
        if let Some(live) = self.flows.get_mut(flow) {
            live.armed = tick;
        }
    }

    pub(super) fn flow_timer(&mut self, now: KernelTime, tick: Tick, flow: FlowKey) {
        if self.flows.get(flow).is_none_or(|live| live.armed != tick) {
            return;
        }
        let Some(live) = self.flows.get(flow) else { return };
        if self.deadline(live) <= now {
            let reason = if live.closing { Reason::Closed } else { Reason::Inactive };
            self.finish(flow, reason);
            return;
        }
        if self.report_due(live) <= now {
            let news = live.last > live.reported;
            if news && self.is_of_interest(live) {
                let report = self.report(live, self.sock_of(live), Reason::Interim);
                self.stats.flows_reported += 1;
                self.finished.push(report);
            }
            if let Some(live) = self.flows.get_mut(flow) {
                live.reported = now;
            }
        }
        self.arm_flow(flow);
    }

    /// Whether it is the monitor's own.
    fn is_own(&self, live: &Live) -> bool {
        live.owner.as_ref().is_some_and(|owner| owner.pid == self.config.own_pid && !owner.kernel)
    }

    /// Whether anybody wants to know of a flow.
    fn is_of_interest(&self, live: &Live) -> bool {
        has_socket(live) && !self.is_own(live) && self.config.filter.lets_owner_pass(live.owner.as_deref())
    }

    /// Takes a flow out of the tables and, if it is anybody's business, hands it out.
    pub(super) fn finish(&mut self, flow: FlowKey, reason: Reason) {
        let Some(live) = self.flows.get(flow) else { return };
        let (socket, sock, cut) = (live.socket, self.sock_of(live), self.may_be_cut(live));
        let Some(mut live) = self.flows.remove(flow, &mut self.sockets) else { return };
        live.inexact.fragments |= cut;
        self.correlation.ends(flow, &live);
        let goes_on = reason != Reason::Replaced && self.goes_on(&live, socket);
        if goes_on {
            self.rest(&live, socket);
        }
        if let Some(key) = socket
            && self
                .sockets
                .get(key)
                .is_some_and(|socket| socket.closed && socket.flows.is_none() && socket.idle.is_none())
        {
            self.forget_socket(live.last, key);
        }
        if socket.is_none() && !has_socket(&live) {
            self.stats.flows_without_socket += 1;
        } else if self.is_own(&live) {
            self.stats.flows_own += 1;
        } else if !self.config.filter.lets_owner_pass(live.owner.as_deref()) {
            self.stats.flows_filtered += 1;
        } else {
            self.stats.flows_reported += 1;
            let report = self.report(&live, sock, reason);
            self.finished.push(report);
        }
    }

    /// Whether a flow's connection may go on after the flow has ended.
    fn goes_on(&self, live: &Live, socket: Option<SocketKey>) -> bool {
        let has_socket = || socket.is_some_and(|key| self.sockets.at(self.sock(key)) == Some(key));
        let is_connection = live.id.transport == Transport::Tcp && live.bound;
        is_connection && (live.fins.is_half_closed() || (!live.uncounted && has_socket()))
    }

    fn rest(&mut self, live: &Live, socket: Option<SocketKey>) {
        let socket = socket.filter(|key| self.sockets.at(self.sock(*key)) == Some(*key));
        let idle = self.idle.insert(Idle::after(live, socket), live.last);
        let socket = socket.and_then(|key| self.sockets.get_mut(key));
        if let Some(before) = socket.and_then(|socket| socket.idle.replace(idle)) {
            self.idle.remove(before); // a socket has one connection at a time
        }
    }

    fn report(&self, live: &Live, sock: KernelAddress, reason: Reason) -> Flow {
        let owner = match &live.owner {
            Some(process) if process.kernel => Owner::Kernel,
            Some(process) => Owner::Process(Arc::clone(process)),
            None => Owner::Unknown,
        };
        // If the first packets may be missing, it is not known which side began, except with TCP, where a handshake or
        // a call shows it.
        let (direction, complete) = match live.id.transport {
            Transport::Udp if self.may_lack_beginning(live) => (Direction::Unknown, false),
            _ => (live.direction, live.complete),
        };
        Flow {
            number: live.number,
            transport: live.id.transport,
            local: live.id.local,
            remote: live.id.remote,
            sock,
            net: live.net,
            direction,
            owner,
            last_user: live.last_user.clone(),
            start: live.start,
            end: live.last.max(live.start),
            sent: live.sent,
            received: live.received,
            dropped: live.dropped,
            complete,
            is_final: !matches!(reason, Reason::Shutdown | Reason::Interim),
            domain: live.domain.as_deref().cloned(),
            outcome: outcome(live),
            reason,
            inexact: self.inexact(live),
        }
    }
}

/// Whether the flow belongs to a socket of this host. A bound flow may have outlived its socket.
fn has_socket(live: &Live) -> bool {
    live.socket.is_some() || live.bound
}

/// The outcome of a flow. It has also failed if nothing arrived and this host dropped everything that it sent.
fn outcome(live: &Live) -> Outcome {
    let nothing = live.sent.packets == 0 && live.received.packets == 0;
    match live.outcome {
        Outcome::Unknown if nothing && live.dropped.packets > 0 => Outcome::Failure(live.noted_error),
        outcome => outcome,
    }
}

/// What a TCP packet's flags say of its flow.
fn note_flags(live: &mut Live, packet: &Packet) {
    match packet.way {
        Way::Out => live.fins.sent |= packet.tcp_flags & tcp_flags::FIN != 0,
        Way::In => live.fins.received |= packet.tcp_flags & (tcp_flags::FIN | tcp_flags::RST) != 0,
    }
    let syn_ack = tcp_flags::SYN | tcp_flags::ACK;
    if live.direction == Direction::Unknown && packet.tcp_flags & syn_ack == syn_ack {
        live.direction = match packet.way {
            Way::Out => Direction::Ingress,
            Way::In => Direction::Egress,
        };
    }
    let refused =
        packet.tcp_flags & tcp_flags::RST != 0 && packet.way == Way::In && live.direction == Direction::Egress;
    if refused && live.outcome == Outcome::Unknown && live.complete && live.received.packets == 1 {
        live.outcome = Outcome::Failure(ECONNREFUSED);
    }
}

/// `errno(3)` on every architecture that is supported.
const ECONNREFUSED: i32 = 111;
