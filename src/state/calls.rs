//! What tasks do with sockets: who owns a socket, and when it is over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::flows::{FlowId, FlowKey, Live};
use super::idle::LAST_PAUSE;
use super::sockets::{Datagrams, Socket, SocketKey};
use super::wheel::Tick;
use super::{Config, State, counting, nanos};
use crate::event::{Endpoint, Event, KernelAddress, KernelTime, Segments, Sight, TcpState, Transport, Tuple};
use crate::flow::{Direction, Outcome, Reason};
use crate::loss::Harm;
use crate::process::Process;

/// How many connects may be under way at once, each in a thread of its own.
const MAX_CONNECTING: usize = 65_536;

/// A connect under way, by the thread that waits for it.
#[derive(Debug)]
pub struct Connecting {
    socket: SocketKey,
    begun: KernelTime,
    /// Whom it wants.
    remote: Endpoint,
}

impl State {
    pub(super) fn created(&mut self, event: &Event, sock: KernelAddress, for_program: bool) {
        let now = event.time;
        self.closed(now, sock, true, None); // the address is a new socket's: whatever was there is over
        let owner = self.processes.actor(event.pid, event.tid);
        let datagrams = match self.sight {
            Sight { programs: true, .. } if !for_program => Datagrams::Kernel,
            Sight { single_datagrams: true, .. } => Datagrams::Single,
            _ => Datagrams::Unknown,
        };
        if let Some(socket) = self.new_socket(now, sock).and_then(|key| self.sockets.get_mut(key)) {
            socket.created = true;
            socket.datagrams = datagrams;
            socket.owner = Some(owner);
            socket.owner_since = now;
        }
    }

    pub(super) fn takes_merged(&mut self, now: KernelTime, sock: KernelAddress) {
        if let Some(socket) = self.socket_at(now, sock).and_then(|key| self.sockets.get_mut(key)) {
            socket.datagrams = Datagrams::Merged;
        }
    }

    pub(super) fn sends_joined(&mut self, now: KernelTime, sock: KernelAddress) {
        if let Some(socket) = self.socket_at(now, sock).and_then(|key| self.sockets.get_mut(key)) {
            socket.joins = true;
        }
    }

    pub(super) fn connect_begins(&mut self, event: &Event, sock: KernelAddress, remote: Endpoint) {
        let Some(key) = self.socket_at(event.time, sock) else { return };
        let actor = self.processes.actor(event.pid, event.tid);
        let Some(socket) = self.sockets.get_mut(key) else { return };
        // A socket passed to another process keeps its creator as owner; the creator's present program is used. After a
        // loss the known creator may be that of an earlier socket at this address, so the connecting process is taken:
        // it is certain. A joined MPTCP subflow is connected on behalf of another process.
        let is_doubtful = self.history.touches(Harm::OWNERS, socket.owner_since, event.time);
        let is_actors = socket.owner.as_ref().is_none_or(|owner| owner.pid == actor.pid);
        if !socket.joined && (is_doubtful || is_actors) {
            socket.owner = Some(actor);
            socket.owner_since = event.time;
        }
        socket.direction = Direction::Egress;
        socket.last = event.time;
        if self.connecting.len() < MAX_CONNECTING {
            self.connecting.insert(event.tid, Connecting { socket: key, begun: event.time, remote });
        }
    }

    pub(super) fn connect_returns(&mut self, now: KernelTime, tid: u32, result: i32) {
        let Some(Connecting { socket: key, begun, remote }) = self.connecting.remove(&tid) else { return };
        let Some(socket) = self.sockets.get(key).filter(|_| result < 0) else { return };
        let sock = socket.sock;
        // No packet left, or the connect would be in progress: the attempt itself is the flow.
        let local = Endpoint::new(unspecified(remote), 0);
        let id = FlowId { scope: sock, transport: Transport::Tcp, local, remote };
        if self.flows.find(&id).is_none() {
            let flow = self.open(begun, id, 0, Some(key), Direction::Egress, true);
            if let Some(live) = self.flows.get_mut(flow) {
                live.last = now;
                live.outcome = Outcome::Failure(-result);
                live.uncounted = true; // there is no connection that could go on
            }
            self.finish(flow, Reason::Closed);
        }
    }

    /// A SYN arrived at a listener.
    pub(super) fn connection_requested(&mut self, listener: KernelAddress, tuple: &Tuple) {
        let Some(flow) = self.flows.find(&FlowId::tcp(tuple)) else { return };
        let Some(key) = self.sockets.at(listener) else { return };
        let is_new = |live: &Live| live.direction == Direction::Ingress && !live.bound;
        if self.flows.get(flow).is_some_and(is_new) {
            self.give_to_listener(flow, key);
        }
    }

    pub(super) fn accepted(&mut self, event: &Event, sock: KernelAddress, tuple: &Tuple) {
        let now = event.time;
        let actor = self.processes.actor(event.pid, event.tid);
        let Some(key) = self.living_socket_at(now, sock) else { return };
        if let Some(socket) = self.sockets.get_mut(key) {
            socket.direction = Direction::Ingress;
            socket.last = now;
            socket.owner = Some(Arc::clone(&actor));
            socket.owner_since = now;
        }
        self.give_to_subflows(key, &actor);
        let flow = self.flows.find(&FlowId::tcp(tuple)).or_else(|| self.flow_without_port(key, tuple));
        let Some(flow) = flow else { return }; // its next packet finds the socket
        // The accepted socket is not always the one that sends and has the counters: with MPTCP and SMC it is not.
        let is_others = self.flows.get(flow).is_some_and(|live| live.bound && live.socket != Some(key));
        if !is_others && !self.sockets.has_subflows(key) {
            self.bind(flow, key);
        }
        if let Some(live) = self.flows.get_mut(flow) {
            live.doubtful = self.processes.confirm(&actor);
            live.give_to(actor);
            live.owner_since = now;
            live.accepted = true;
            live.direction = Direction::Ingress;
            live.outcome = Outcome::Success;
        }
    }

    /// The flow of a socket that no longer has a local port: a connection that was reset before it was accepted.
    fn flow_without_port(&self, key: SocketKey, tuple: &Tuple) -> Option<FlowKey> {
        let socket = self.sockets.get(key).filter(|_| tuple.local.port == 0)?;
        let is_it = |live: &Live| live.id.transport == Transport::Tcp && live.id.remote == tuple.remote;
        self.flows.chain(socket.flows).find(|flow| self.flows.get(*flow).is_some_and(is_it))
    }

    pub(super) fn tcp_state(
        &mut self,
        now: KernelTime,
        sock: KernelAddress,
        tuple: &Tuple,
        state: TcpState,
        segments: Option<Segments>,
    ) {
        let id = FlowId::tcp(tuple);
        let mut found = self.flows.find(&id);
        let was_unread = || {
            let socket = self.sockets.at(sock).and_then(|key| self.sockets.get(key));
            socket.is_some_and(|socket| socket.unread) || self.was_unread(now, &id, tuple.net)
        };
        if found.is_none() && state == TcpState::Established && was_unread() {
            // None of its packets could be read: this is what is known of it.
            found = Some(self.open(now, id, tuple.net, None, Direction::Unknown, false));
        }
        let Some(flow) = found else { return };
        match state {
            TcpState::Established => {
                if let Some(key) = self.living_socket_at(now, sock) {
                    self.bind(flow, key);
                }
                if let Some(live) = self.flows.get_mut(flow) {
                    live.outcome = Outcome::Success;
                }
            }
            TcpState::Closed { error } => {
                let Some(live) = self
                    .flows
                    .get(flow)
                    .filter(|live| self.sock_of(live) == sock)
                    .is_some()
                    .then(|| self.flows.get_mut(flow))
                    .flatten()
                else {
                    return;
                };
                live.note_time(now);
                if let Some(segments) = segments.filter(|_| live.bound) {
                    counting::settle(live, now, segments);
                }
                live.uncounted = true;
                // A connect that was given up before it was answered has failed, though the kernel has no error for it.
                if is_unanswered(live) || (error != 0 && live.outcome == Outcome::Unknown) {
                    live.outcome = Outcome::Failure(if error == 0 { live.noted_error } else { error });
                }
                self.begin_to_close(now, flow);
            }
        }
    }

    /// A task gives up a socket's last descriptor.
    pub(super) fn released(&mut self, now: KernelTime, pid: u32, sock: KernelAddress) {
        // Descriptors on their way to nobody are closed by a thread of the kernel, which has used nothing.
        let user = self.processes.known(pid).filter(|user| !user.kernel);
        self.closed(now, sock, false, user);
    }

    /// A socket's last descriptor is gone, given up by `user`; when `freed`, its address too.
    pub(super) fn closed(&mut self, now: KernelTime, sock: KernelAddress, freed: bool, user: Option<Arc<Process>>) {
        let Some(key) = self.sockets.at(sock) else { return };
        if freed {
            self.sockets.unmap(key);
        }
        self.close_subflows(now, key, user.as_ref());
        let Some(socket) = self.sockets.get_mut(key) else { return };
        socket.closed = true;
        socket.last = now;
        let (head, idle) = (socket.flows, socket.idle);
        if let Some(idle) = idle.filter(|_| !freed).and_then(|key| self.idle.get_mut(key)) {
            if let Some(user) = user {
                idle.last_user = Some(user).filter(|user| is_another(idle.owner.as_deref(), user));
            }
            return; // its FIN is still to come
        }
        if head.is_none() {
            self.forget_socket(now, key);
            return;
        }
        let flows: Vec<_> = self.flows.chain(head).collect();
        for flow in flows {
            if let (Some(user), Some(live)) = (&user, self.flows.get_mut(flow)) {
                live.last_user = Some(user).filter(|user| is_another(live.owner.as_deref(), user)).cloned();
            }
            self.begin_to_close(now, flow);
        }
    }

    /// The kernel reported an error to a socket's program.
    pub(super) fn socket_error(&mut self, sock: KernelAddress, error: i32) {
        let Some(socket) = self.sockets.at(sock).and_then(|key| self.sockets.get(key)) else { return };
        let mut flows = self.flows.chain(socket.flows);
        // If the socket has several flows, it is not known which one failed.
        let (Some(flow), None) = (flows.next(), flows.next()) else { return };
        drop(flows);
        if let Some(live) = self.flows.get_mut(flow).filter(|live| is_unanswered(live)) {
            live.outcome = Outcome::Failure(error);
        }
    }

    /// An ICMP error about a TCP packet of this host arrived. A connect may still succeed, or fail with another error:
    /// the kernel sends the SYN again.
    pub(super) fn icmp_error(&mut self, tuple: &Tuple, error: i32) {
        let Some(flow) = self.flows.find(&FlowId::tcp(tuple)) else { return };
        if let Some(live) = self.flows.get_mut(flow).filter(|live| is_unanswered(live)) {
            live.noted_error = error;
        }
    }

    /// Forgets a socket. Its connection ends with it, unless the other side's FIN is still to come.
    pub(super) fn forget_socket(&mut self, now: KernelTime, key: SocketKey) {
        if let Some(idle) = self.sockets.remove(key).and_then(|socket| socket.idle) {
            self.idle.lose_socket(idle, now);
        }
    }

    /// The socket at an address; a new one, of which nothing is known, where there is none.
    pub(super) fn socket_at(&mut self, now: KernelTime, sock: KernelAddress) -> Option<SocketKey> {
        match self.sockets.at(sock) {
            Some(key) => Some(key),
            None => self.new_socket(now, sock),
        }
    }

    /// The same for a new socket: if a closed one is known at this address, it has been freed, although that was not
    /// seen.
    fn living_socket_at(&mut self, now: KernelTime, sock: KernelAddress) -> Option<SocketKey> {
        if let Some(gone) = self.sockets.at(sock).filter(|key| self.sockets.get(*key).is_some_and(|it| it.closed)) {
            self.sockets.unmap(gone);
        }
        self.socket_at(now, sock)
    }

    fn new_socket(&mut self, now: KernelTime, sock: KernelAddress) -> Option<SocketKey> {
        let key = self.sockets.insert(sock, now)?;
        self.arm_socket(key);
        Some(key)
    }

    fn arm_socket(&mut self, key: SocketKey) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        let deadline = socket.last.saturating_add(patience(socket, &self.config));
        socket.armed = self.socket_timers.set(deadline, key);
    }

    pub(super) fn socket_timer(&mut self, now: KernelTime, tick: Tick, key: SocketKey) {
        let (crowded, has_subflows) = (self.sockets.crowded(), self.sockets.has_subflows(key));
        let Some(socket) = self.sockets.get_mut(key).filter(|socket| socket.armed == tick) else { return };
        let in_use = has_subflows || socket.flows.is_some();
        let busy = in_use || socket.last.saturating_add(patience(socket, &self.config)) > now;
        let of_somebody = || socket.idle.and_then(|idle| self.idle.get(idle)).is_some_and(|idle| idle.owner.is_some());
        let is_of_use = !socket.closed && (socket.owner.is_some() || of_somebody());
        if !busy && (!is_of_use || crowded) {
            self.stats.sockets_evicted += 1;
            if let Some(idle) = self.sockets.remove(key).and_then(|socket| socket.idle) {
                self.idle.remove(idle);
            }
            return;
        }
        if !busy || in_use {
            socket.last = now; // an owner is not forgotten for want of traffic
        }
        self.arm_socket(key);
    }
}

/// How long a socket without flows is kept, in nanoseconds. A closed one may still have to send its last packet.
fn patience(socket: &Socket, config: &Config) -> KernelTime {
    let timeout = nanos(config.socket_inactive_timeout);
    if socket.closed { timeout.max(LAST_PAUSE) } else { timeout }
}

/// Whether this is an outgoing connection, seen from its start, with no answer and no outcome yet.
fn is_unanswered(live: &Live) -> bool {
    let is_begun_here = live.complete && live.direction == Direction::Egress;
    is_begun_here && live.outcome == Outcome::Unknown && live.received.packets == 0
}

fn unspecified(like: Endpoint) -> IpAddr {
    match like.ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Whether the process that closed a socket is another one than its owner, whatever programs they run.
fn is_another(owner: Option<&Process>, user: &Process) -> bool {
    owner.is_none_or(|owner| {
        let other_start = owner.start.is_some() && user.start.is_some() && owner.start != user.start;
        !owner.kernel && (owner.pid != user.pid || other_start)
    })
}
