//! Calls of tasks on sockets, which show who owns a socket and when it ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::flows::{Beginning, FlowId, FlowKey, LiveFlow};
use super::idle::LAST_PACKET_TIMEOUT;
use super::sockets::{Socket, SocketKey, UdpKind};
use super::wheel::Tick;
use super::{State, StateConfig, counting};
use crate::model::event::{Event, Segments, SocketUser, SourceCapabilities, TcpState, Tuple};
use crate::model::flow::{Direction, Endpoint, Outcome, Reason, Transport};
use crate::model::kernel_address::SockAddress;
use crate::model::loss::LostFacts;
use crate::model::process::Process;
use crate::model::time::MonotonicTime;

/// The maximum number of connects in progress, each in a thread of its own.
pub(super) const MAX_CONNECTING: usize = 65_536;

/// A connect in progress.
#[derive(Debug)]
pub struct Connecting {
    socket: SocketKey,
    begun: MonotonicTime,
    /// The address that it connects to.
    remote: Endpoint,
}

/// How a socket ends.
#[derive(Debug, Clone)]
pub enum SocketEnd {
    /// Its last descriptor was closed. The kernel may still use the socket, to send a FIN for instance.
    Released {
        /// The process that closed the descriptor, if it is known and not a kernel thread.
        user: Option<Arc<Process>>,
    },
    /// The kernel has freed the `struct sock`: its address may be another socket's from now on.
    Freed,
}

impl State {
    /// The running task created a socket.
    pub(super) fn created(&mut self, event: &Event, sock: SockAddress, user: SocketUser) {
        let now = event.time;
        self.closed(now, Some(sock), SocketEnd::Freed); // an earlier socket at this address has ended
        let owner = self.processes.process_of_running_thread(event.pid, event.tid);
        let udp_kind = match self.capabilities {
            SourceCapabilities { programs: true, .. } if user == SocketUser::Kernel => UdpKind::Kernel,
            SourceCapabilities { single_datagrams: true, .. } => UdpKind::Single,
            _ => UdpKind::Unknown,
        };
        if let Some(socket) = self.new_socket(now, Some(sock)).and_then(|key| self.sockets.get_mut(key)) {
            socket.created = true;
            socket.udp_kind = udp_kind;
            socket.owner = Some(owner);
            socket.owner_since = now;
        }
    }

    /// A socket asked for UDP GRO.
    pub(super) fn udp_gro_enabled(&mut self, now: MonotonicTime, sock: SockAddress) {
        if let Some(socket) = self.socket_at(now, Some(sock)).and_then(|key| self.sockets.get_mut(key)) {
            socket.udp_kind = UdpKind::Gro;
        }
    }

    /// A socket may use UDP GSO from now on.
    pub(super) fn udp_gso_enabled(&mut self, now: MonotonicTime, sock: SockAddress) {
        if let Some(socket) = self.socket_at(now, Some(sock)).and_then(|key| self.sockets.get_mut(key)) {
            socket.uses_gso = true;
        }
    }

    /// The running task begins to connect a TCP socket.
    pub(super) fn connect_begins(&mut self, event: &Event, sock: SockAddress, remote: Endpoint) {
        let Some(socket_key) = self.socket_at(event.time, Some(sock)) else { return };
        let actor = self.processes.process_of_running_thread(event.pid, event.tid);
        let Some(socket) = self.sockets.get_mut(socket_key) else { return };
        // A socket that was passed to another process keeps its creator as owner. If the creator itself connects, its present
        // program is used. After a loss, the known creator may be that of an earlier socket at this address, so the connecting
        // process becomes the owner. A joined MPTCP subflow is connected on behalf of another process.
        let is_doubtful = self.loss_history.overlaps(LostFacts::OWNERS, socket.owner_since, event.time);
        let is_same_process = socket.owner.as_ref().is_none_or(|owner| owner.pid == actor.pid);
        socket.accepted_as = None; // the connection that it was accepted as has ended
        if !socket.joined && (is_doubtful || is_same_process) {
            socket.owner = Some(actor);
            socket.owner_since = event.time;
        }
        socket.direction = Direction::Egress;
        socket.last = event.time;
        if self.connecting.len() >= MAX_CONNECTING && !self.connecting.contains_key(&event.tid) {
            self.stats.pending_connects_refused += 1;
            return;
        }
        self.connecting.insert(event.tid, Connecting { socket: socket_key, begun: event.time, remote });
    }

    /// The last connect that this thread began returns 0 or a negative errno.
    pub(super) fn connect_returns(&mut self, now: MonotonicTime, tid: u32, result: i32) {
        let Some(Connecting { socket: socket_key, begun, remote }) = self.connecting.remove(&tid) else { return };
        let Some(socket) = self.sockets.get(socket_key).filter(|_| result < 0) else { return };
        let sock = socket.sock;
        // An error means that no SYN has left (unless a security module has dropped one), so the attempt itself is the flow.
        let local = Endpoint::new(unspecified(remote), 0);
        let id = FlowId { scope: sock.into(), transport: Transport::Tcp, local, remote };
        if self.flows.find(&id).is_none() {
            let flow_key = self.open(begun, id, None, Some(socket_key), Direction::Egress, Beginning::Seen);
            if let Some(flow) = self.flows.get_mut(flow_key) {
                flow.last = now;
                flow.outcome = Outcome::Failure(-result);
                flow.reached_tcp_close = true; // there is no connection that could go on
            }
            self.finish(flow_key, Reason::Closed);
        }
    }

    /// A SYN arrived at a listener, whose owner has the connection until it is accepted.
    pub(super) fn connection_requested(&mut self, listener: SockAddress, tuple: &Tuple) {
        let Some(flow_key) = self.flows.find(&FlowId::tcp(tuple)) else { return };
        let Some(socket_key) = self.sockets.at(Some(listener)) else { return };
        let is_new = |flow: &LiveFlow| flow.direction == Direction::Ingress && !flow.has_own_socket;
        if self.flows.get(flow_key).is_some_and(is_new) {
            self.set_owner_to_listeners(flow_key, socket_key);
        }
    }

    /// The running task accepted a connection.
    pub(super) fn accepted(&mut self, event: &Event, sock: SockAddress, tuple: &Tuple) {
        let now = event.time;
        let actor = self.processes.process_of_running_thread(event.pid, event.tid);
        let Some(socket_key) = self.living_socket_at(now, Some(sock)) else { return };
        let flow_key = self.flows.find(&FlowId::tcp(tuple)).or_else(|| self.flow_without_port(socket_key, tuple));
        let connection =
            flow_key.and_then(|key| self.flows.get(key)).map_or_else(|| FlowId::tcp(tuple), |flow| flow.id);
        if flow_key.is_none_or(|flow_key| !self.had_address_before(flow_key, socket_key))
            && let Some(socket) = self.sockets.get_mut(socket_key)
        {
            socket.direction = Direction::Ingress;
            socket.last = now;
            socket.owner = Some(Arc::clone(&actor));
            socket.accepted_as = Some(self.flows.hash(&connection));
            socket.owner_since = now;
        }
        self.set_owner_of_subflows(socket_key, &actor);
        let Some(flow_key) = flow_key else { return }; // its next packet attaches the socket to a flow
        // The accepted socket is not always the one that sends and has the counters: with MPTCP and SMC it is not.
        let has_other_socket =
            self.flows.get(flow_key).is_some_and(|flow| flow.has_own_socket && flow.socket != Some(socket_key));
        if !has_other_socket && !self.sockets.has_subflows(socket_key) {
            self.attach_socket(flow_key, socket_key);
        }
        if let Some(flow) = self.flows.get_mut(flow_key) {
            flow.doubtful = self.processes.ask_if_doubtful(&actor);
            flow.set_owner(actor);
            flow.owner_since = now;
            flow.accepted = true;
            flow.direction = Direction::Ingress;
            flow.outcome = Outcome::Success;
        }
    }

    /// Whether the flow's socket had the same address before the socket `now_there`. If each CPU has a clock of its own (before
    /// Linux 4.1), an accept may come after the end of its connection.
    fn had_address_before(&self, flow_key: FlowKey, now_there: SocketKey) -> bool {
        let own = self.flows.get(flow_key).and_then(|flow| flow.socket).filter(|own| *own != now_there);
        own.is_some_and(|own| self.sock(own) == self.sock(now_there))
    }

    /// The flow of a socket that no longer has a local port: a connection that was reset before it was accepted.
    fn flow_without_port(&self, socket_key: SocketKey, tuple: &Tuple) -> Option<FlowKey> {
        let socket = self.sockets.get(socket_key).filter(|_| tuple.local.port == 0)?;
        let is_it = |flow: &LiveFlow| flow.id.transport == Transport::Tcp && flow.id.remote == tuple.remote;
        self.flows.chain(socket.flows).find(|key| self.flows.get(*key).is_some_and(is_it))
    }

    /// A TCP socket became established or closed.
    pub(super) fn tcp_state(
        &mut self,
        now: MonotonicTime,
        sock: SockAddress,
        tuple: &Tuple,
        state: TcpState,
        segments: Option<Segments>,
    ) {
        let id = FlowId::tcp(tuple);
        let mut found = self.flows.find(&id);
        let had_unreadable_packets = || {
            let socket = self.sockets.at(Some(sock)).and_then(|key| self.sockets.get(key));
            socket.is_some_and(|socket| socket.had_unreadable_packets)
                || self.had_unreadable_packets(now, &id, tuple.net)
        };
        if found.is_none() && state == TcpState::Established && had_unreadable_packets() {
            // None of its packets could be read, so only this event shows the connection.
            found = Some(self.open(now, id, tuple.net, None, Direction::Unknown, Beginning::Missed));
        }
        let Some(flow_key) = found else { return };
        match state {
            TcpState::Established => {
                if let Some(socket_key) = self.living_socket_at(now, Some(sock)) {
                    self.attach_socket(flow_key, socket_key);
                }
                if let Some(flow) = self.flows.get_mut(flow_key) {
                    flow.outcome = Outcome::Success;
                }
            }
            TcpState::Closed { error } => {
                if self.flows.get(flow_key).is_none_or(|flow| self.sock_of(flow) != Some(sock)) {
                    return;
                }
                let Some(flow) = self.flows.get_mut(flow_key) else { return };
                flow.note_time(now);
                let segments = segments.filter(|_| flow.has_own_socket);
                if let Some(segments) = segments
                    && !self.defer_settle(now, flow_key, segments)
                    && let Some(flow) = self.flows.get_mut(flow_key)
                {
                    counting::settle(flow, now, segments);
                }
                let Some(flow) = self.flows.get_mut(flow_key) else { return };
                flow.reached_tcp_close = true;
                // A connect that was abandoned before an answer came has failed, though the kernel has no error for it.
                if is_unanswered(flow) || (error != 0 && flow.outcome == Outcome::Unknown) {
                    flow.outcome = Outcome::Failure(if error == 0 { flow.soft_error.into() } else { error });
                }
                self.begin_to_close(now, flow_key);
            }
        }
    }

    /// A task closes a socket's last descriptor.
    pub(super) fn released(&mut self, now: MonotonicTime, pid: u32, sock: SockAddress) {
        // A kernel thread closes descriptors in flight (SCM_RIGHTS) that no process received. It is not a user of the socket.
        let user = self.processes.known(pid).filter(|user| !user.kernel);
        self.closed(now, Some(sock), SocketEnd::Released { user });
    }

    /// The socket at this address ends.
    pub(super) fn closed(&mut self, now: MonotonicTime, sock: Option<SockAddress>, end: SocketEnd) {
        if let (SocketEnd::Freed, Some(sock)) = (&end, sock) {
            self.forget_totals(now, sock);
        }
        let Some(socket_key) = self.sockets.at(sock) else { return };
        let (freed, user) = match end {
            SocketEnd::Released { user } => (false, user),
            SocketEnd::Freed => (true, None),
        };
        if freed {
            self.sockets.unmap(socket_key);
        }
        // The kernel may still create a subflow, which belongs to this socket's owner as well.
        let may_get_subflows = !freed && self.sockets.has_subflows(socket_key);
        self.close_subflows(now, socket_key, user.as_ref());
        let Some(socket) = self.sockets.get_mut(socket_key) else { return };
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
            if !may_get_subflows {
                self.forget_socket(now, socket_key);
            }
            return;
        }
        let flows: Vec<_> = self.flows.chain(head).collect();
        for flow_key in flows {
            if let (Some(user), Some(flow)) = (&user, self.flows.get_mut(flow_key)) {
                flow.last_user = Some(user).filter(|user| is_another(flow.owner.as_deref(), user)).cloned();
            }
            self.begin_to_close(now, flow_key);
        }
    }

    /// The kernel reported an error to a socket's program.
    pub(super) fn socket_error(&mut self, sock: SockAddress, error: i32) {
        let Some(socket) = self.sockets.at(Some(sock)).and_then(|key| self.sockets.get(key)) else { return };
        let mut flows = self.flows.chain(socket.flows);
        // If the socket has several flows, it is not known which one failed.
        let (Some(flow_key), None) = (flows.next(), flows.next()) else { return };
        drop(flows);
        if let Some(flow) = self.flows.get_mut(flow_key).filter(|flow| is_unanswered(flow)) {
            flow.outcome = Outcome::Failure(error);
        }
    }

    /// An ICMP error about a TCP packet of this host arrived. A connect may still succeed, or fail with another error:
    /// the kernel sends the SYN again.
    pub(super) fn icmp_error(&mut self, tuple: &Tuple, error: i32) {
        let Some(flow_key) = self.flows.find(&FlowId::tcp(tuple)) else { return };
        if let Some(flow) = self.flows.get_mut(flow_key).filter(|flow| is_unanswered(flow)) {
            // The kernel's numbers of errors are smaller than 4096 (`MAX_ERRNO`).
            flow.soft_error = u16::try_from(error).unwrap_or(0);
        }
    }

    /// Forgets a socket. Its connection ends with it, unless the other side's FIN is still to come.
    pub(super) fn forget_socket(&mut self, now: MonotonicTime, socket_key: SocketKey) {
        if let Some(idle) = self.sockets.remove(socket_key).and_then(|socket| socket.idle) {
            self.idle.lose_socket(idle, now);
        }
    }

    /// The socket at an address. If none is known, a new one is added.
    pub(super) fn socket_at(&mut self, now: MonotonicTime, sock: Option<SockAddress>) -> Option<SocketKey> {
        match self.sockets.at(sock) {
            Some(socket_key) => Some(socket_key),
            None => self.new_socket(now, sock),
        }
    }

    /// The open socket at an address. If the socket that is known there was closed, it has been freed unseen, and a new one
    /// is added.
    fn living_socket_at(&mut self, now: MonotonicTime, sock: Option<SockAddress>) -> Option<SocketKey> {
        if let Some(gone) = self.sockets.at(sock).filter(|key| self.sockets.get(*key).is_some_and(|it| it.closed)) {
            self.sockets.unmap(gone);
        }
        self.socket_at(now, sock)
    }

    fn new_socket(&mut self, now: MonotonicTime, sock: Option<SockAddress>) -> Option<SocketKey> {
        let socket_key = self.sockets.insert(sock, now)?;
        self.arm_socket(socket_key);
        Some(socket_key)
    }

    fn arm_socket(&mut self, socket_key: SocketKey) {
        let Some(socket) = self.sockets.get_mut(socket_key) else { return };
        let deadline = socket.last.saturating_add(idle_timeout(socket, &self.config));
        socket.armed = self.socket_timers.set(socket.last, deadline, socket_key);
    }

    pub(super) fn socket_timer_fired(&mut self, now: MonotonicTime, tick: Tick, socket_key: SocketKey) {
        let (crowded, has_subflows) = (self.sockets.crowded(), self.sockets.has_subflows(socket_key));
        let Some(socket) = self.sockets.get_mut(socket_key).filter(|socket| socket.armed == tick) else { return };
        let in_use = has_subflows || socket.flows.is_some();
        let busy = in_use || socket.last.saturating_add(idle_timeout(socket, &self.config)) > now;
        let idle_has_owner =
            || socket.idle.and_then(|idle| self.idle.get(idle)).is_some_and(|idle| idle.owner.is_some());
        let is_worth_keeping = !socket.closed && (socket.owner.is_some() || idle_has_owner());
        if !busy && (!is_worth_keeping || crowded) {
            self.stats.sockets_evicted += 1;
            if let Some(idle) = self.sockets.remove(socket_key).and_then(|socket| socket.idle) {
                self.idle.remove(idle);
            }
            return;
        }
        if !busy || in_use {
            socket.last = now; // a socket with a known owner is kept, however long it is idle
        }
        self.arm_socket(socket_key);
    }
}

/// How long a socket without flows is kept. A closed one may still have to send its last packet.
fn idle_timeout(socket: &Socket, config: &StateConfig) -> Duration {
    let timeout = config.socket_inactive_timeout;
    if socket.closed { timeout.max(LAST_PACKET_TIMEOUT) } else { timeout }
}

/// Whether this is an outgoing connection, seen from its start, with no answer and no outcome yet.
fn is_unanswered(flow: &LiveFlow) -> bool {
    let is_begun_here = flow.complete && flow.direction == Direction::Egress;
    is_begun_here && flow.outcome == Outcome::Unknown && flow.received.packets == 0
}

/// The unspecified address of the same family.
fn unspecified(like: Endpoint) -> IpAddr {
    match like.ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Whether the process that closed a socket is not its owner. Which programs they run does not matter.
fn is_another(owner: Option<&Process>, user: &Process) -> bool {
    owner.is_none_or(|owner| {
        let other_start = owner.start.is_some() && user.start.is_some() && owner.start != user.start;
        !owner.kernel && (owner.pid != user.pid || other_start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::since_boot;

    #[test]
    fn processes_are_distinguished_by_id_and_start() {
        let process = |(pid, start): (u32, Option<u64>)| Process { start: start.map(since_boot), ..Process::new(pid) };
        for (owner, user, expected) in [
            ((7, Some(1)), (7, Some(1)), false),
            ((7, None), (7, Some(1)), false),
            ((7, Some(1)), (7, Some(2)), true),
            ((7, Some(1)), (8, Some(1)), true),
            ((7, None), (8, None), true),
        ] {
            assert_eq!(is_another(Some(&process(owner)), &process(user)), expected, "{owner:?} {user:?}");
        }
        assert!(is_another(None, &process((7, None))), "the owner is not known");
        assert!(!is_another(Some(&Process { kernel: true, ..Process::new(0) }), &process((7, None))));
    }
}
