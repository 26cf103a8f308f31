//! Each CPU has a clock of its own (kernels before 4.1), so that events of two CPUs may come in any order.

use proptest::prelude::*;

use super::*;
use crate::model::testing::sock_at;

/// The address of both connections' sockets, one after the other.
const CHILD: u64 = 0xb;
const LISTENER: u64 = 0x1;

/// Two connections to one listener. The second one's socket has the address that the first one's had.
fn two_connections() -> Vec<(u32, EventKind)> {
    let connection = |pid, port| {
        let server = tuple(80, port);
        let packet = |direction, sock, flags| {
            let size = PacketSize { bytes: 60, headers: 40 };
            let packet = Packet { tcp_flags: flags, ..Packet::new(direction, Transport::Tcp, sock, server, size) };
            (0, EventKind::Packet(packet))
        };
        let established = TcpState::Established;
        [
            packet(PacketDirection::Inbound, None, SYN),
            packet(PacketDirection::Outbound, SockAddress::new(LISTENER), SYN | ACK),
            packet(PacketDirection::Inbound, None, ACK),
            (0, EventKind::TcpState { sock: sock_at(CHILD), tuple: server, state: established, segments: None }),
            (pid, EventKind::Accepted { sock: sock_at(CHILD), tuple: server }),
            packet(PacketDirection::Outbound, SockAddress::new(CHILD), FIN | ACK),
            (pid, EventKind::SocketReleased { sock: sock_at(CHILD) }),
            packet(PacketDirection::Inbound, None, FIN | ACK),
            (0, EventKind::SocketFreed { sock: sock_at(CHILD) }),
        ]
    };
    [connection(SHELL, 40000), connection(CURL, 40001)].concat()
}

/// The owners of the flows, in the order of their remote ports.
fn owners(story: &mut Story) -> Vec<Option<u32>> {
    story.wait(200);
    story.out.sort_by_key(|flow| flow.remote.port);
    let pid = |flow: Flow| if let Owner::Process(process) = flow.owner { Some(process.pid) } else { None };
    story.out.drain(..).map(pid).collect()
}

#[test]
fn a_late_accept_does_not_take_the_socket_that_another_process_has_made_at_the_address() {
    let (mut story, server, client) = (Story::new(), tuple(80, 40000), tuple(5000, 40001));
    story.tcp(PacketDirection::Inbound, 0, server, 60, SYN);
    story.tcp(PacketDirection::Outbound, LISTENER, server, 60, SYN | ACK);
    story.state_is(CHILD, server, TcpState::Established);
    story.tcp(PacketDirection::Inbound, 0, server, 40, RST);
    story.say(0, EventKind::SocketFreed { sock: sock_at(CHILD) });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(CHILD), user: SocketUser::Program });
    story.say(SERVER, EventKind::Accepted { sock: sock_at(CHILD), tuple: server });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(CHILD), remote: client.remote });
    story.tcp(PacketDirection::Outbound, CHILD, client, 60, SYN);
    assert_eq!(owners(&mut story), [Some(SERVER), Some(CURL)]);
}

/// A connection that is reset loses its port, so the accept shows only the remote endpoint.
#[test]
fn a_late_accept_of_a_connection_without_a_port_is_not_that_of_the_next_one_at_the_address() {
    let mut story = Story::new();
    for port in [40000, 40001] {
        let server = tuple(80, port);
        story.tcp(PacketDirection::Inbound, 0, server, 60, SYN);
        story.tcp(PacketDirection::Outbound, LISTENER, server, 60, SYN | ACK);
        story.state_is(CHILD, server, TcpState::Established);
    }
    let server = tuple(80, 40000);
    let without_port = Tuple { local: Endpoint { port: 0, ..server.local }, ..server };
    story.say(SERVER, EventKind::Accepted { sock: sock_at(CHILD), tuple: without_port });
    assert_eq!(owners(&mut story), [Some(SERVER), None]);
}

proptest! {
    /// A connection's owner is the process that accepted it, or unknown, for instance if the accept comes first.
    #[test]
    fn a_connection_never_gets_the_owner_of_another_one(on_second_cpu in any::<u32>(), mut second_first in any::<u64>()) {
        let (mut second, mut first): (Vec<_>, Vec<_>) =
            two_connections().into_iter().enumerate().partition(|(number, _)| on_second_cpu >> number & 1 == 1);
        first.reverse();
        second.reverse();
        let mut story = Story::new();
        while let Some((_, (pid, kind))) = {
            let is_seconds = second_first & 1 == 1;
            second_first >>= 1;
            let [preferred, other] = if is_seconds { [&mut second, &mut first] } else { [&mut first, &mut second] };
            preferred.pop().or_else(|| other.pop())
        } {
            story.say(pid, kind);
        }
        story.wait(200);
        for flow in &story.out {
            let accepting = if flow.remote.port == 40000 { SHELL } else { CURL };
            match &flow.owner {
                Owner::Process(process) => prop_assert_eq!(process.pid, accepting, "{:?}", flow),
                Owner::Unknown => {}
                Owner::Kernel => prop_assert!(false, "{:?}", flow),
            }
        }
    }
}
