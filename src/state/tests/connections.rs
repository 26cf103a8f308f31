//! TCP connections and their packets.

use super::*;

#[test]
fn a_clients_connection_is_one_flow_of_the_client() {
    let mut story = Story::new();
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.wait(4);
    assert!(story.out.is_empty(), "late packets are waited for");
    story.tcp(PacketDirection::Inbound, 0, tuple(40000, 80), 40, FIN | ACK);
    story.wait(4);
    assert!(story.out.is_empty(), "a late packet starts the wait again");
    story.wait(2);
    let flow = story.only();
    assert_eq!(story.state.stats().packets, 6);
    assert_eq!(owner(&flow), (CURL, "curl".into()));
    assert_eq!((flow.sent, flow.received), (counters(3, 200), counters(3, 600)));
    assert_eq!((flow.direction, flow.outcome), (Direction::Egress, Outcome::Success));
    assert!(flow.complete && flow.is_final && flow.inexact == Inexact::default());
    assert_eq!(flow.reason, Reason::Closed);
    let Owner::Process(process) = flow.owner else { unreachable!() };
    assert_eq!(process.credentials.map(|c| c.uid), Some(1000), "inherited over fork and exec");
    story.wait(100);
    assert!(story.out.is_empty(), "it is reported once");
}

#[test]
fn both_ends_on_one_host_are_two_flows() {
    let mut story = Story::new();
    let (client, server) = (tuple(40000, 80), tuple(80, 40000));
    let (a, listener, child) = (0xa, 0x1, 0xb);
    story.say(SERVER, EventKind::SocketCreated { sock: sock_at(listener), user: SocketUser::Program });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(a), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(a), remote: client.remote });
    story.tcp(PacketDirection::Outbound, a, client, 60, SYN);
    story.tcp(PacketDirection::Inbound, 0, server, 60, SYN);
    story.tcp(PacketDirection::Outbound, listener, server, 60, SYN | ACK);
    story.tcp(PacketDirection::Inbound, 0, client, 60, SYN | ACK);
    story.tcp(PacketDirection::Outbound, a, client, 52, ACK);
    story.tcp(PacketDirection::Inbound, 0, server, 52, ACK);
    story.state_is(child, server, TcpState::Established);
    story.say(SERVER, EventKind::Accepted { sock: sock_at(child), tuple: server });
    story.tcp(PacketDirection::Outbound, child, server, 152, ACK);
    story.tcp(PacketDirection::Inbound, 0, client, 152, ACK);
    story.say(SERVER, EventKind::SocketReleased { sock: sock_at(child) });
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(a) });
    story.wait(6);
    story.out.sort_by_key(|flow| flow.local.port);
    let [served, asked] = &story.out[..] else { panic!("{:#?}", story.out) };
    assert_eq!(owner(served), (SERVER, "httpd".into()));
    assert_eq!((served.direction, served.sock), (Direction::Ingress, SockAddress::new(child)));
    assert_eq!((served.sent, served.received), (counters(2, 212), counters(2, 112)));
    assert_eq!(owner(asked), (CURL, "curl".into()));
    assert_eq!((asked.sent, asked.received), (counters(2, 112), counters(2, 212)));
    assert!(served.complete && asked.complete);
    assert_eq!([asked.number, served.number, story.state.stats().flows_started], [1, 2, 2]);
}

#[test]
fn the_same_addresses_in_two_namespaces_do_not_mix() {
    let mut story = Story::new();
    let here = tuple(40000, 80);
    let there = Tuple { net: OTHER_NET, ..here };
    story.conversation(CURL, 0xa, here);
    story.conversation(SHELL, 0xb, there);
    story.wait(6);
    let mut owners: Vec<_> = story.out.iter().map(|flow| owner(flow).0).collect();
    owners.sort_unstable();
    assert_eq!(owners, [SHELL, CURL]);
}

#[test]
fn a_reused_address_is_another_flow() {
    let mut story = Story::new();
    story.conversation(CURL, 0xa, tuple(40000, 80));
    // At once, the same ports, the same kernel address, another process.
    story.conversation(SHELL, 0xa, tuple(40000, 80));
    assert_eq!(owner(&story.only()).0, CURL, "the first one is replaced by the second's SYN");
    story.wait(6);
    assert_eq!(owner(&story.only()).0, SHELL);
}

#[test]
fn a_syn_to_a_closed_port_is_not_a_flow() {
    let mut story = Story::new();
    let server = tuple(1, 40000);
    story.tcp(PacketDirection::Inbound, 0, server, 60, SYN);
    story.tcp(PacketDirection::Outbound, 0xcafe, server, 40, RST | ACK);
    story.wait(31);
    assert!(story.out.is_empty());
    assert_eq!(story.state.stats().flows_without_socket, 1);
}

#[test]
fn a_reset_of_an_unknown_connection_is_not_a_flow() {
    let mut story = Story::new();
    for direction in [PacketDirection::Inbound, PacketDirection::Outbound] {
        story.tcp(direction, 0, tuple(40000, 80), 40, RST | ACK);
    }
    let stats = story.state.stats();
    assert_eq!((stats.flows_started, stats.packets_without_flow), (0, 2));
}

#[test]
fn a_connection_that_is_seen_from_its_middle_does_not_show_which_side_began_it() {
    for direction in [PacketDirection::Inbound, PacketDirection::Outbound] {
        let mut story = Story::new();
        story.tcp(direction, 0xa, tuple(40000, 80), 100, ACK);
        story.state_is(0xa, tuple(40000, 80), TcpState::Established);
        story.wait(31);
        let flow = story.only();
        assert_eq!((flow.direction, flow.complete), (Direction::Unknown, false), "{direction:?}");
    }
}

/// The SYN was not seen.
#[test]
fn a_syn_ack_shows_which_side_began() {
    for (answer, direction) in
        [(PacketDirection::Inbound, Direction::Egress), (PacketDirection::Outbound, Direction::Ingress)]
    {
        let mut story = Story::new();
        story.tcp(answer, 0, tuple(40000, 80), 60, SYN | ACK);
        story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 100, ACK);
        story.wait(31);
        let flow = story.only();
        assert_eq!((flow.direction, flow.complete), (direction, false));
    }
}

/// Its socket is older than the monitor.
#[test]
fn a_syn_that_is_not_answered_shows_which_side_began() {
    let mut story = Story::new();
    story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 60, SYN);
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.direction, flow.complete), (Direction::Egress, true));
}

#[test]
fn an_idle_socket_without_a_known_owner_is_forgotten_after_its_timeout() {
    let mut story = Story::new();
    story.now = 200 * SECOND - 1000;
    story.say(0, EventKind::UdpGroEnabled { sock: sock_at(0xa) });
    story.wait(59);
    assert_eq!(story.state.stats().sockets_live, 1);
    story.wait(1);
    assert_eq!((story.state.stats().sockets_live, story.state.stats().sockets_evicted), (0, 1));
}

#[test]
fn a_socket_is_kept_as_long_as_its_flow() {
    let timeout = Duration::from_secs(600);
    let mut story = Story::with(StateConfig { flow_inactive_timeout: timeout, ..StateConfig::default() });
    story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 100, ACK);
    (0..5).for_each(|_| story.wait(100));
    assert_eq!(story.state.stats().sockets_evicted, 0);
    story.wait(101);
    assert_eq!(story.only().sock, SockAddress::new(0xa));
}
