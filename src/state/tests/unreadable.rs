//! Packets whose headers could not be read.

use super::*;
use crate::model::event::UnreadablePacket;

/// A packet whose other fields could not be read.
fn unreadable(transport: Transport, sock: u64, ports: Option<(u16, u16)>) -> EventKind {
    EventKind::UnreadablePacket(UnreadablePacket { net: NET, transport, sock: SockAddress::new(sock), ports })
}

#[test]
fn a_packet_that_cannot_be_read_marks_its_flow_and_no_other() {
    let mut story = Story::new();
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.conversation(CURL, 0xb, tuple(40001, 80));
    story.say(0, unreadable(Transport::Tcp, 0, Some((40001, 80))));
    story.wait(6);
    for flow in &story.out {
        assert_eq!(flow.inexact.headers_unread, flow.local.port == 40001, "{flow:#?}");
        assert_eq!(flow.inexact.reasons().count(), usize::from(flow.inexact.headers_unread));
    }
    assert_eq!(story.out.len(), 2);
}

#[test]
fn a_datagram_after_one_that_could_not_be_read_is_not_the_first() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.say(0, unreadable(Transport::Udp, 0xa, None));
    story.udp(PacketDirection::Inbound, 0xa, tuple(40000, 53), 100);
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.direction, flow.complete, flow.inexact.headers_unread), (Direction::Unknown, false, true));
}

#[test]
fn a_connection_whose_packets_could_not_be_read_is_still_a_flow() {
    let mut story = Story::new();
    let tuple = tuple(40000, 80);
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(0xa), remote: tuple.remote });
    story.say(0, unreadable(Transport::Tcp, 0xa, Some((40000, 80))));
    story.state_is(0xa, tuple, TcpState::Established);
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(0xa) });
    story.wait(6);
    let flow = story.only();
    assert_eq!((owner(&flow).0, flow.direction, flow.outcome), (CURL, Direction::Egress, Outcome::Success));
    assert!(!flow.complete && flow.inexact.headers_unread);
}

#[test]
fn a_new_socket_is_not_affected_by_an_earlier_one_at_its_address() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 100);
    story.say(0, unreadable(Transport::Udp, 0xa, None));
    story.say(0, EventKind::SocketFreed { sock: sock_at(0xa) });
    story.wait(6);
    assert!(story.only().inexact.headers_unread);
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, tuple(40001, 53), 100);
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.complete, flow.inexact), (true, Inexact::default()));
}
