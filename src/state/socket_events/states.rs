//! What sockets become without a call: the answer to a connect that did not wait, a reset, the port that sending gives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{SocketEvents, merged};
use crate::event::{Endpoint, Event, KernelAddress, Packet, TcpState, Transport, Tuple, Way};
use crate::socket_event::{
    Action, Actions, Address, CallResult, Family, IpEnd, Socket, SocketEvent, SocketId, SocketState,
};

impl SocketEvents {
    /// The `struct sock` at this address has entered a state, in whatever context. Sockets of which nothing else is
    /// known are left out: nobody has accepted them.
    pub fn tcp_state(&mut self, event: &Event, sock: KernelAddress, tuple: &Tuple, state: TcpState) {
        let Some(socket) = self.by_sock.get(&sock).and_then(|id| self.sockets.get_mut(id)) else { return };
        let entered = match state {
            TcpState::Established => SocketState::ESTABLISHED,
            TcpState::Closed { .. } => SocketState::CLOSE,
        };
        let before = socket.state.replace(entered);
        if before == Some(entered) {
            return;
        }
        if entered == SocketState::ESTABLISHED {
            socket.local = merged(Some(end(tuple.local, socket.family)), socket.local.take());
            socket.remote = merged(Some(end(tuple.remote, socket.family)), socket.remote.take());
        }
        let socket = socket.clone();
        self.tell_state(event, socket, before);
    }

    /// A datagram leaves: a socket that had no port has one now, and one that is connected has an address.
    pub fn datagram(&mut self, event: &Event, packet: &Packet) {
        if (packet.transport, packet.way) != (Transport::Udp, Way::Out) {
            return;
        }
        let Some(socket) = self.by_sock.get(&packet.sock).and_then(|id| self.sockets.get_mut(id)) else { return };
        let known = match &socket.local {
            Some(Address::Ip(end)) if end.port != 0 => return,
            Some(Address::Ip(end)) => Some(end.ip),
            _ => None,
        };
        let local = end(packet.tuple.local, socket.family);
        let ip = match socket.family {
            _ if socket.remote.is_some() => local.ip,
            Family::INET6 => known.unwrap_or(Ipv6Addr::UNSPECIFIED.into()),
            _ => known.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        };
        socket.local = merged(Some(IpEnd::new(ip, local.port)), socket.local.take());
        let (socket, before) = (socket.clone(), socket.state);
        self.tell_state(event, socket, before);
    }

    fn tell_state(&mut self, event: &Event, socket: Socket, before: Option<SocketState>) {
        self.tell(SocketEvent {
            time: event.time,
            action: Action::State,
            result: CallResult::Success,
            fd: None,
            socket,
            before,
            process: None,
            tid: 0,
            thread_name: None,
        });
    }

    /// Where a socket is found by its `struct sock` from now on, if anybody asks for that.
    pub(super) fn index(&mut self, socket: &Socket) {
        if self.wanted.meets(Actions::STATE) && socket.sock != 0 {
            self.by_sock.insert(socket.sock, socket.id);
        }
    }

    /// The address may be another socket's from now on.
    pub(super) fn unindex(&mut self, sock: KernelAddress, id: SocketId) {
        if self.by_sock.get(&sock) == Some(&id) {
            self.by_sock.remove(&sock);
        }
    }

    /// A connect that did not wait may be done by the time that it comes back.
    pub(super) fn catch_up(&self, socket: &mut Socket) {
        let established = Some(SocketState::ESTABLISHED);
        let is_done = self.sockets.get(&socket.id).is_some_and(|known| known.state == established);
        if is_done && socket.state == Some(SocketState::SYN_SENT) {
            socket.state = established;
        }
    }
}

/// An end as a socket of this family has it.
fn end(end: Endpoint, family: Family) -> IpEnd {
    match end.ip {
        IpAddr::V4(ip) if family == Family::INET6 => IpEnd::new(ip.to_ipv6_mapped(), end.port),
        ip => IpEnd::new(ip, end.port),
    }
}
