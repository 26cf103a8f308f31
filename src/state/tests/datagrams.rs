//! UDP flows.

use super::counting::datagram;
use super::*;

#[test]
fn a_udp_socket_has_a_flow_for_each_remote_begun_by_the_first_sender() {
    let mut story = Story::new();
    story.say(SERVER, EventKind::SocketCreated { sock: sock_at(0x5), user: SocketUser::Program });
    story.udp(PacketDirection::Inbound, 0x5, tuple(53, 40000), 60);
    story.udp(PacketDirection::Outbound, 0x5, tuple(53, 40000), 90);
    story.udp(PacketDirection::Outbound, 0x5, tuple(53, 50000), 70);
    story.udp(PacketDirection::Inbound, 0x5, tuple(53, 60000), 60);
    story.wait(31);
    story.out.sort_by_key(|flow| flow.remote.port);
    let [asked, sent, received] = &story.out[..] else { panic!("{:#?}", story.out) };
    assert_eq!((asked.direction, asked.outcome), (Direction::Ingress, Outcome::Success));
    assert_eq!((asked.sent, asked.received), (counters(1, 90), counters(1, 60)));
    assert_eq!((sent.direction, sent.outcome), (Direction::Egress, Outcome::Unknown));
    assert_eq!((received.direction, received.outcome), (Direction::Ingress, Outcome::Unknown));
    assert_eq!([asked, sent, received].map(|flow| owner(flow).0), [SERVER; 3]);
    assert_eq!(asked.reason, Reason::Inactive);
}

#[test]
fn the_first_datagram_of_a_socket_that_is_older_than_the_monitor_does_not_show_which_side_began() {
    for direction in [PacketDirection::Inbound, PacketDirection::Outbound] {
        let mut story = Story::new();
        story.udp(direction, 0x5, tuple(53, 40000), 60);
        story.wait(31);
        let flow = story.only();
        assert_eq!((flow.direction, flow.complete), (Direction::Unknown, false), "{direction:?}");
    }
}

#[test]
fn a_datagram_for_two_sockets_counts_for_each() {
    let mut story = Story::new();
    for (pid, sock) in [(SERVER, 0x5), (SHELL, 0x6)] {
        story.say(pid, EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program });
    }
    for sock in [0x5, 0x6] {
        story.udp(PacketDirection::Inbound, sock, tuple(5353, 40000), 60);
    }
    story.wait(31);
    let mut got: Vec<_> = story.out.iter().map(|flow| (owner(flow).0, flow.received.packets)).collect();
    got.sort_unstable();
    assert_eq!(got, [(SHELL, 1), (SERVER, 1)]);
}

#[test]
fn a_datagram_of_a_kernel_socket_belongs_to_the_kernel() {
    for distinguishes_programs in [true, false] {
        let mut story = Story::new();
        story.state.set_capabilities(SourceCapabilities { programs: distinguishes_programs, ..CAPABILITIES });
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Kernel });
        story.say(0, datagram(PacketDirection::Outbound, 1000, 0, 0));
        story.say(SHELL, EventKind::SocketReleased { sock: sock_at(0xa) });
        story.wait(31);
        let flow = story.only();
        assert_eq!(flow.owner == Owner::Kernel, distinguishes_programs);
        assert_eq!(flow.last_user.is_none(), distinguishes_programs);
    }
}
