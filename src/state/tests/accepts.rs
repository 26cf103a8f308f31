//! Accepted connections, and connections that are not accepted.

use super::*;

const SERVER_SOCK: u64 = 0xb;

/// A connection to the server's listener, up to the end of its handshake. The SYN-ACK is sent by the request's own
/// `struct request_sock`.
fn waiting_to_be_accepted(user: SocketUser) -> Story {
    let (mut story, tuple) = (Story::new(), tuple(80, 40000));
    story.say(SERVER, EventKind::SocketCreated { sock: sock_at(0x1), user });
    story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN);
    story.say(4_000_000, EventKind::ConnectionRequested { listener: sock_at(0x1), tuple });
    story.tcp(PacketDirection::Outbound, 0x77, tuple, 60, SYN | ACK);
    story.tcp(PacketDirection::Inbound, 0, tuple, 52, ACK);
    story.state_is(SERVER_SOCK, tuple, TcpState::Established);
    story
}

#[test]
fn a_connection_that_is_not_accepted_belongs_to_the_listeners_owner() {
    let mut story = waiting_to_be_accepted(SocketUser::Program);
    story.state_is(SERVER_SOCK, tuple(80, 40000), TcpState::Closed { error: 0 });
    story.wait(6);
    let flow = story.only();
    assert_eq!((owner(&flow).0, flow.direction), (SERVER, Direction::Ingress));
}

#[test]
fn the_accepting_process_is_the_owner() {
    let mut story = waiting_to_be_accepted(SocketUser::Program);
    story.say(SHELL, EventKind::Accepted { sock: sock_at(SERVER_SOCK), tuple: tuple(80, 40000) });
    story.wait(31);
    assert_eq!(owner(&story.only()).0, SHELL);
}

/// The event that it is established was lost, and it sends nothing.
#[test]
fn a_connection_is_closed_with_the_socket_that_was_accepted() {
    let (mut story, tuple) = (Story::new(), tuple(80, 40000));
    story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN);
    story.tcp(PacketDirection::Outbound, 0x1, tuple, 60, SYN | ACK);
    story.tcp(PacketDirection::Inbound, 0, tuple, 52, ACK);
    story.say(SERVER, EventKind::Accepted { sock: sock_at(SERVER_SOCK), tuple });
    story.say(SERVER, EventKind::SocketReleased { sock: sock_at(SERVER_SOCK) });
    story.wait(6);
    let flow = story.only();
    assert_eq!((owner(&flow).0, flow.sock, flow.reason), (SERVER, SockAddress::new(SERVER_SOCK), Reason::Closed));
}

#[test]
fn a_listener_of_the_kernel_does_not_show_the_owner_of_a_connection() {
    let mut story = waiting_to_be_accepted(SocketUser::Kernel);
    // Over IPv6 the listener's own socket sends the SYN-ACK.
    let other = tuple(80, 40001);
    story.tcp(PacketDirection::Inbound, 0, other, 60, SYN);
    story.tcp(PacketDirection::Outbound, 0x1, other, 60, SYN | ACK);
    story.tcp(PacketDirection::Inbound, 0, other, 52, ACK);
    story.wait(31);
    let owners: Vec<_> = std::mem::take(&mut story.out).into_iter().map(|flow| flow.owner).collect();
    assert_eq!(owners, [Owner::Unknown, Owner::Unknown]);
}

#[test]
fn a_request_does_not_take_a_connection_from_its_owner() {
    let mut story = waiting_to_be_accepted(SocketUser::Program);
    let tuple = tuple(80, 40000);
    story.say(SHELL, EventKind::Accepted { sock: sock_at(SERVER_SOCK), tuple });
    story.say(4_000_000, EventKind::ConnectionRequested { listener: sock_at(0x1), tuple });
    story.wait(31);
    assert_eq!(owner(&story.only()).0, SHELL);
}

/// A connection that is reset loses its port, but can still be accepted.
#[test]
fn a_connection_that_is_reset_before_the_accept_belongs_to_the_accepting_process() {
    let mut story = Story::new();
    let (listener, child, server) = (0x1, 0xb, tuple(80, 40000));
    story.tcp(PacketDirection::Inbound, 0, server, 60, SYN);
    story.tcp(PacketDirection::Outbound, listener, server, 60, SYN | ACK);
    story.tcp(PacketDirection::Inbound, 0, server, 52, ACK);
    story.state_is(child, server, TcpState::Established);
    story.tcp(PacketDirection::Inbound, 0, server, 52, RST | ACK);
    story.state_is(child, server, TcpState::Closed { error: 104 });
    let without_port = Tuple { local: Endpoint { port: 0, ..server.local }, ..server };
    story.say(SERVER, EventKind::Accepted { sock: sock_at(child), tuple: without_port });
    story.say(SERVER, EventKind::SocketReleased { sock: sock_at(child) });
    story.wait(6);
    let flow = story.only();
    assert_eq!((owner(&flow).0, flow.direction, flow.sock), (SERVER, Direction::Ingress, SockAddress::new(child)));
    assert_eq!((flow.sent.packets, flow.received.packets), (1, 3));
}
