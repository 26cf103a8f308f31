//! What tasks do with sockets: who owns a socket, and when it is over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::flows::FlowId;
use super::sockets::{Datagrams, SocketKey};
use super::wheel::Tick;
use super::{State, counting, nanos};
use crate::event::{Endpoint, Event, KernelAddress, KernelTime, Segments, Sight, TcpState, Transport, Tuple};
use crate::flow::{Direction, Outcome, Reason};
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
    pub(super) fn created(&mut self, now: KernelTime, pid: u32, sock: KernelAddress, for_program: bool) {
        self.closed(now, sock, true, None); // the address is a new socket's: whatever was there is over
        let owner = self.processes.actor(pid);
        let datagrams = match self.sight {
            Sight { programs: true, .. } if !for_program => Datagrams::Kernel,
            Sight { single_datagrams: true, .. } => Datagrams::Single,
            _ => Datagrams::Unknown,
        };
        if let Some(socket) = self.new_socket(now, sock).and_then(|key| self.sockets.get_mut(key)) {
            socket.created = true;
            socket.datagrams = datagrams;
            socket.owner = Some(owner);
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
        let actor = self.processes.actor(event.pid);
        let Some(socket) = self.sockets.get_mut(key) else { return };
        // A socket passed on keeps its creator; a creator that changed since is taken as it is now.
        if socket.owner.as_ref().is_none_or(|owner| owner.pid == actor.pid) {
            socket.owner = Some(actor);
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
            }
            self.finish(flow, Reason::Closed);
        }
    }

    pub(super) fn accepted(&mut self, now: KernelTime, pid: u32, sock: KernelAddress, tuple: &Tuple) {
        let actor = self.processes.actor(pid);
        let Some(key) = self.socket_at(now, sock) else { return };
        if let Some(socket) = self.sockets.get_mut(key) {
            socket.direction = Direction::Ingress;
            socket.last = now;
            socket.owner = Some(Arc::clone(&actor));
        }
        let id = FlowId::tcp(tuple);
        let Some(flow) = self.flows.find(&id) else { return }; // its next packet finds the socket
        self.bind(flow, key);
        if let Some(live) = self.flows.get_mut(flow) {
            live.owner = Some(actor);
            live.direction = Direction::Ingress;
            live.outcome = Outcome::Success;
        }
    }

    pub(super) fn tcp_state(
        &mut self,
        now: KernelTime,
        sock: KernelAddress,
        tuple: &Tuple,
        state: TcpState,
        segments: Segments,
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
                if let Some(key) = self.socket_at(now, sock) {
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
                if live.bound {
                    counting::settle(live, segments);
                }
                live.uncounted = true;
                if live.outcome == Outcome::Unknown && error != 0 {
                    live.outcome = Outcome::Failure(error);
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
        let Some(socket) = self.sockets.get_mut(key) else { return };
        socket.closed = true;
        socket.last = now;
        let head = socket.flows;
        if head.is_none() {
            self.sockets.remove(key);
            return;
        }
        let flows: Vec<_> = self.flows.chain(head).collect();
        for flow in flows {
            if let (Some(user), Some(live)) = (&user, self.flows.get_mut(flow)) {
                let is_owner = live.owner.as_ref().is_some_and(|owner| is_same(owner, user));
                let is_kernels = live.owner.as_ref().is_some_and(|owner| owner.kernel);
                live.last_user = (!is_owner && !is_kernels).then(|| Arc::clone(user));
            }
            self.begin_to_close(now, flow);
        }
    }

    /// The socket at an address; a new one, of which nothing is known, where there is none.
    pub(super) fn socket_at(&mut self, now: KernelTime, sock: KernelAddress) -> Option<SocketKey> {
        match self.sockets.at(sock) {
            Some(key) => Some(key),
            None => self.new_socket(now, sock),
        }
    }

    fn new_socket(&mut self, now: KernelTime, sock: KernelAddress) -> Option<SocketKey> {
        let key = self.sockets.insert(sock, now)?;
        self.arm_socket(key);
        Some(key)
    }

    fn arm_socket(&mut self, key: SocketKey) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        let deadline = socket.last.saturating_add(nanos(self.config.socket_inactive_timeout));
        socket.armed = self.socket_timers.set(deadline, key);
    }

    pub(super) fn socket_timer(&mut self, now: KernelTime, tick: Tick, key: SocketKey) {
        let (crowded, timeout) = (self.sockets.crowded(), nanos(self.config.socket_inactive_timeout));
        let Some(socket) = self.sockets.get_mut(key).filter(|socket| socket.armed == tick) else { return };
        let busy = socket.flows.is_some() || socket.last.saturating_add(timeout) > now;
        if !busy && (socket.owner.is_none() || crowded) {
            self.stats.sockets_evicted += 1;
            self.sockets.remove(key);
            return;
        }
        if !busy || socket.flows.is_some() {
            socket.last = now; // an owner is not forgotten for want of traffic
        }
        self.arm_socket(key);
    }
}

fn unspecified(like: Endpoint) -> IpAddr {
    match like.ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Whether both are one process, whatever programs it runs.
fn is_same(one: &Process, other: &Process) -> bool {
    one.pid == other.pid && (one.start == other.start || one.start.is_none() || other.start.is_none())
}
