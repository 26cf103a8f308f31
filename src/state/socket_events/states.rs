//! Changes of sockets that no call reports: the result of a nonblocking connect, a reset, the port of a socket that sends without
//! a bind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{SocketEvents, merged_address};
use crate::model::event::{Event, Packet, PacketDirection, TcpState, Tuple};
use crate::model::flow::{Endpoint, Transport};
use crate::model::kernel_address::SockAddress;
use crate::model::socket_event::{
    Action, Actions, Address, CallResult, EventSocket, Family, IpEnd, SocketEvent, SocketId, SocketState,
};

impl SocketEvents {
    /// A TCP socket has entered a state. The event may come from any thread, so its process is not used. Unknown sockets are
    /// ignored: they have not been accepted yet.
    pub fn tcp_state(&mut self, event: &Event, sock: SockAddress, tuple: &Tuple, state: TcpState) {
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
            socket.local = merged_address(Some(end(tuple.local, socket.family)), socket.local.take());
            socket.remote = merged_address(Some(end(tuple.remote, socket.family)), socket.remote.take());
        }
        let socket = socket.clone();
        self.emit_state(event, socket, before);
    }

    /// A datagram leaves. If the socket had no local port, it has one now. If it is connected, it has a local address, too.
    pub fn datagram(&mut self, event: &Event, packet: &Packet) {
        if (packet.transport, packet.direction) != (Transport::Udp, PacketDirection::Outbound) {
            return;
        }
        let Some(socket) = packet.sock.and_then(|sock| self.by_sock.get(&sock)).and_then(|id| self.sockets.get_mut(id))
        else {
            return;
        };
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
        socket.local = merged_address(Some(IpEnd::new(ip, local.port)), socket.local.take());
        let (socket, before) = (socket.clone(), socket.state);
        self.emit_state(event, socket, before);
    }

    fn emit_state(&mut self, event: &Event, socket: EventSocket, before: Option<SocketState>) {
        self.emit(SocketEvent {
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

    /// Adds a socket to the index by `struct sock`, if changes of state are wanted.
    pub(super) fn index(&mut self, socket: &EventSocket) {
        if let Some(sock) = socket.sock.filter(|_| self.wanted.intersects(Actions::STATE)) {
            self.by_sock.insert(sock, socket.id);
        }
    }

    /// Removes a socket from the index by `struct sock`. Its address may be another socket's from now on.
    pub(super) fn unindex(&mut self, sock: Option<SockAddress>, id: SocketId) {
        if let Some(sock) = sock.filter(|sock| self.by_sock.get(sock) == Some(&id)) {
            self.by_sock.remove(&sock);
        }
    }

    /// Keeps the state of a socket whose nonblocking connect was established before the call returned.
    pub(super) fn keep_established(&self, socket: &mut EventSocket) {
        let established = Some(SocketState::ESTABLISHED);
        let is_done = self.sockets.get(&socket.id).is_some_and(|known| known.state == established);
        if is_done && socket.state == Some(SocketState::SYN_SENT) {
            socket.state = established;
        }
    }
}

/// An endpoint as an address of this family: an IPv4 address is mapped for `AF_INET6`.
fn end(end: Endpoint, family: Family) -> IpEnd {
    match end.ip {
        IpAddr::V4(ip) if family == Family::INET6 => IpEnd::new(ip.to_ipv6_mapped(), end.port),
        ip => IpEnd::new(ip, end.port),
    }
}
