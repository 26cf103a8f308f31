//! Packets that this host drops after they were counted as sent.

use super::counting::counted;
use super::*;
use crate::model::event::Dropped;

/// A packet with these ends is dropped.
fn dropped(sock: u64, transport: Transport, tuple: Tuple, bytes: u32) -> EventKind {
    let ends = Some((tuple.local, tuple.remote));
    EventKind::Dropped(Dropped {
        sock: SockAddress::new(sock),
        transport: Some(transport),
        other_protocol: false,
        ends,
        bytes,
        with_others: false,
        may_have_arrived: false,
        may_be_drivers: false,
    })
}

#[test]
fn a_dropped_packet_is_not_counted_as_sent() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 60);
    story.say(0, dropped(0xa, Transport::Udp, tuple(40000, 53), 60));
    story.say(0, dropped(0xb, Transport::Udp, tuple(40000, 53), 60)); // another socket's
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped), (counters(0, 0), counters(1, 60)));
    assert_eq!((flow.outcome, flow.inexact), (Outcome::Failure(0), Inexact::default()));
}

#[test]
fn a_flow_is_inexact_if_drops_of_drivers_cannot_be_distinguished() {
    for (driver_drops_unclear, may_be_drivers) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut story = Story::new();
        story.state.set_capabilities(SourceCapabilities { driver_drops_unclear, ..CAPABILITIES });
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 60);
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 54), 60);
        let EventKind::Dropped(packet) = dropped(0xa, Transport::Udp, tuple(40000, 53), 60) else { unreachable!() };
        story.say(0, EventKind::Dropped(Dropped { may_be_drivers, ..packet }));
        story.wait(31);
        for flow in &story.out {
            let (is_it, dropped) = (flow.remote.port == 53, flow.dropped.packets);
            assert_eq!((dropped, flow.sent.packets), if is_it { (1, 0) } else { (0, 1) });
            let dropped_locally = is_it && driver_drops_unclear && may_be_drivers;
            assert_eq!(flow.inexact, Inexact { dropped_locally, ..Inexact::default() });
        }
        assert_eq!(story.out.len(), 2);
    }
}

#[test]
fn a_drop_of_an_arriving_packet_is_not_subtracted() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 60);
    let Tuple { net, local, remote } = tuple(40000, 53);
    for ends in [Tuple { net, local: remote, remote: local }, tuple(40000, 53)] {
        let EventKind::Dropped(packet) = dropped(0xa, Transport::Udp, ends, 60) else { unreachable!() };
        story.say(0, EventKind::Dropped(Dropped { may_have_arrived: true, ..packet }));
    }
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped, flow.inexact), (counters(0, 0), counters(1, 60), Inexact::default()));
}

#[test]
fn a_dropped_packet_of_several_segments_is_subtracted_as_several() {
    let tuple = tuple(40000, 80);
    // First three full segments are sent as one packet, then a full and a short one.
    for (bytes, further, is_exact) in [(52 + 1500, 1, false), (52 + 3000, 2, false), (52 + 900, 0, true)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        story.say(CURL, counted(PacketDirection::Outbound, tuple, 60, 60, (SYN, 0, 1)));
        story.state_is(0xa, tuple, TcpState::Established);
        story.say(CURL, counted(PacketDirection::Outbound, tuple, 52 + 3000, 52, (ACK, 1, 4)));
        story.say(CURL, counted(PacketDirection::Outbound, tuple, 52 + 1500, 52, (ACK, 1, 6)));
        story.say(CURL, dropped(0xa, Transport::Tcp, tuple, bytes));
        story.wait(31);
        let flow = story.only();
        let gone = counters(1 + further, u64::from(bytes) + further * 52);
        let all = counters(6, 60 + 3000 + 1500 + 5 * 52);
        assert_eq!((flow.dropped, flow.sent), (gone, counters(all.packets - gone.packets, all.bytes - gone.bytes)));
        assert_eq!(flow.inexact, Inexact { dropped_locally: !is_exact, ..Inexact::default() });
    }
}

#[test]
fn a_dropped_packet_with_a_translated_address_belongs_to_a_flow_of_its_socket() {
    for flows in [1_u16, 2] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        for port in 0..flows {
            story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53 + port), 60);
        }
        story.say(0, dropped(0xa, Transport::Udp, tuple(40000, 5353), 60));
        story.wait(31);
        assert_eq!(story.out.len(), usize::from(flows));
        for flow in std::mem::take(&mut story.out) {
            let subtracted = u64::from(flows == 1);
            assert_eq!((flow.sent.packets, flow.dropped.packets), (1 - subtracted, subtracted));
            assert_eq!(flow.inexact, Inexact { dropped_locally: true, ..Inexact::default() });
        }
    }
}

#[test]
fn a_dropped_reply_that_is_no_longer_remembered_marks_its_connection() {
    let mut story = Story::new();
    let (asked, other) = (tuple(80, 40000), tuple(80, 50000));
    for tuple in [asked, other] {
        story.tcp(PacketDirection::Inbound, 0xa, tuple, 60, SYN);
        story.tcp(PacketDirection::Outbound, 0, tuple, 60, SYN | ACK);
    }
    (0..100).for_each(|_| story.tcp(PacketDirection::Outbound, 0, other, 60, SYN | ACK));
    story.say(0, dropped(0, Transport::Tcp, asked, 60));
    story.say(0, dropped(0, Transport::Tcp, other, 60));
    for tuple in [asked, other] {
        story.tcp(PacketDirection::Inbound, 0xa, tuple, 52, ACK);
        story.state_is(0xa, tuple, TcpState::Established);
    }
    story.wait(31);
    let mut drops: Vec<_> = story.out.iter().map(|flow| (flow.remote.port, flow.dropped, flow.inexact)).collect();
    drops.sort_by_key(|(port, ..)| *port);
    let marked = Inexact { dropped_locally: true, ..Inexact::default() };
    assert_eq!(drops, [(40000, counters(0, 0), marked), (50000, counters(1, 60), Inexact::default())]);
}

#[test]
fn a_drop_of_a_packet_from_another_socket_is_subtracted_once() {
    let tuple = tuple(80, 40000);
    // A socket of the kernel's own, and a program's raw socket, which may forge any packet.
    for (made, is_subtracted) in [(None, true), (Some(SocketUser::Kernel), true), (Some(SocketUser::Program), false)] {
        let mut story = Story::new();
        if let Some(user) = made {
            story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xe), user });
        }
        story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN);
        story.tcp(PacketDirection::Outbound, 0xf, tuple, 60, SYN | ACK);
        for _ in 0..2 {
            story.say(0, dropped(0xe, Transport::Tcp, tuple, 60));
        }
        story.wait(31);
        let flow = story.only();
        let wanted = if is_subtracted { (0, 1) } else { (1, 0) };
        assert_eq!((flow.sent.packets, flow.dropped.packets), wanted);
    }
}

#[test]
fn segments_without_a_route_mark_their_connection() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 60, SYN);
    story.say(0, EventKind::Dropped(without_ports(false)));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.inexact.dropped_locally), (counters(1, 60), true));
}

/// A dropped packet of socket 0xa whose ports could not be read: it is of another protocol, or never came to IP.
fn without_ports(other_protocol: bool) -> Dropped {
    Dropped {
        sock: SockAddress::new(0xa),
        transport: None,
        other_protocol,
        ends: None,
        bytes: 0,
        with_others: false,
        may_have_arrived: false,
        may_be_drivers: false,
    }
}

#[test]
fn a_drop_of_an_encapsulated_packet_marks_all_flows_of_its_socket() {
    for (other_protocol, is_marked) in [(true, true), (false, false)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 60);
        story.say(0, EventKind::Dropped(without_ports(other_protocol)));
        story.wait(31);
        let flow = story.only();
        assert_eq!((flow.sent, flow.inexact.dropped_locally), (counters(1, 60), is_marked));
    }
    // ESP in UDP (RFC 3948).
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 60, SYN);
    story.say(0, dropped(0xa, Transport::Udp, tuple(4500, 4500), 120));
    story.wait(31);
    assert!(story.only().inexact.dropped_locally);
}

#[test]
fn a_drop_of_a_reply_without_a_socket_is_subtracted_over_ipv6_too() {
    let [local, remote]: [Ipv6Addr; 2] = ["2001:db8::1", "2001:db8::2"].map(|ip| ip.parse().unwrap());
    let tuple = Tuple { local: Endpoint::new(local, 80), remote: Endpoint::new(remote, 40000), ..tuple(80, 40000) };
    let mut story = Story::new();
    story.tcp(PacketDirection::Inbound, 0, tuple, 80, SYN);
    story.tcp(PacketDirection::Outbound, 0xf, tuple, 80, SYN | ACK);
    story.tcp(PacketDirection::Outbound, 0xe, tuple, 60, RST);
    story.say(0, dropped(0, Transport::Tcp, tuple, 60));
    story.say(0, dropped(0, Transport::Udp, tuple, 60)); // without a socket it belongs to no flow
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped), (counters(1, 80), counters(1, 60)));
    assert_eq!(flow.inexact, Inexact::default());
}

/// Once the connection's socket is freed, its last acknowledgement leaves without a socket.
#[test]
fn a_drop_without_a_socket_is_subtracted_if_the_connection_has_none_either() {
    let mut story = Story::new();
    let tuple = tuple(40000, 80);
    story.conversation(CURL, 0xa, tuple);
    story.say(0, EventKind::SocketFreed { sock: sock_at(0xa) });
    story.wait(6);
    assert_eq!(story.only().sent.packets, 3);
    story.tcp(PacketDirection::Inbound, 0, tuple, 52, FIN | ACK);
    story.tcp(PacketDirection::Outbound, 0, tuple, 52, ACK);
    story.say(0, dropped(0, Transport::Tcp, tuple, 52));
    story.wait(6);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped), (counters(0, 0), counters(1, 52)));
    assert_eq!((owner(&flow).0, flow.inexact), (CURL, Inexact::default()));
}

/// The others that were dropped with it may belong to any flow of its socket.
#[test]
fn a_packet_dropped_with_others_is_subtracted_and_marks_its_flow() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 60);
    let EventKind::Dropped(packet) = dropped(0xa, Transport::Udp, tuple(40000, 53), 60) else { unreachable!() };
    story.say(0, EventKind::Dropped(Dropped { with_others: true, ..packet }));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.dropped, flow.inexact.dropped_locally), (counters(1, 60), true));
}

#[test]
fn a_dropped_packet_that_is_filtered_out_marks_no_flow() {
    let mut config = StateConfig::default();
    config.filter.ports.exclude = vec![53];
    let mut story = Story::with(config);
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 5353), 60);
    story.say(0, dropped(0xa, Transport::Udp, tuple(40000, 53), 60));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.inexact), (counters(1, 60), Inexact::default()));
}

#[test]
fn a_dropped_packet_from_another_address_does_not_belong_to_the_sockets_only_flow() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 60);
    story.say(0, dropped(0xa, Transport::Udp, tuple(40001, 5353), 60));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped, flow.inexact.dropped_locally), (counters(1, 60), counters(0, 0), true));
}

/// A socket that is not bound to an address sends to itself, from each of two addresses.
#[test]
fn a_drop_between_two_addresses_of_one_socket_is_subtracted_in_the_right_direction() {
    let [one, other] = [1, 2].map(|last| Endpoint::new(Ipv4Addr::new(127, 0, 0, last), 40000));
    let [there, back] = [(one, other), (other, one)].map(|(local, remote)| Tuple { net: NET, local, remote });
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, there, 60);
    story.udp(PacketDirection::Outbound, 0xa, back, 60);
    story.say(0, dropped(0xa, Transport::Udp, there, 60));
    story.wait(31);
    story.out.sort_by_key(|flow| flow.local.ip);
    let packets: Vec<_> = story.out.iter().map(|flow| (flow.sent.packets, flow.dropped.packets)).collect();
    assert_eq!(packets, [(0, 1), (1, 0)]);
}

#[test]
fn a_drop_of_a_packet_to_its_own_socket_is_not_taken_for_an_arriving_one() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 40000), 60);
    let EventKind::Dropped(packet) = dropped(0xa, Transport::Udp, tuple(40000, 40000), 60) else { unreachable!() };
    story.say(0, EventKind::Dropped(Dropped { may_have_arrived: true, ..packet }));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped), (counters(0, 0), counters(1, 60)));
}

#[test]
fn a_dropped_fragment_does_not_stand_for_several_segments() {
    let tuple = tuple(40000, 80);
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.say(CURL, counted(PacketDirection::Outbound, tuple, 60, 60, (SYN, 0, 1)));
    story.state_is(0xa, tuple, TcpState::Established);
    // Two segments; a fragment of an earlier packet happens to be as long as both.
    story.say(CURL, counted(PacketDirection::Outbound, tuple, 52 + 1000, 52, (ACK, 1, 3)));
    let EventKind::Dropped(packet) = dropped(0xa, Transport::Tcp, tuple, 52 + 1000) else { unreachable!() };
    story.say(CURL, EventKind::Dropped(Dropped { ends: None, ..packet }));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.dropped, flow.inexact.dropped_locally), (counters(1, 52 + 1000), true));
}

/// A fragment of a datagram that the connection's segments are encapsulated in (RFC 3948).
#[test]
fn a_dropped_fragment_of_another_transport_does_not_belong_to_the_flow() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 60, SYN);
    let EventKind::Dropped(packet) = dropped(0xa, Transport::Udp, tuple(4500, 4500), 50) else { unreachable!() };
    story.say(0, EventKind::Dropped(Dropped { ends: None, ..packet }));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped, flow.inexact.dropped_locally), (counters(1, 60), counters(0, 0), true));
}

#[test]
fn of_two_connections_with_the_same_addresses_the_drop_is_the_last_senders() {
    let here = tuple(80, 40000);
    let there = Tuple { net: OTHER_NET, ..here };
    let mut story = Story::new();
    for tuple in [here, there] {
        story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN);
        story.tcp(PacketDirection::Outbound, 0xf, tuple, 60, SYN | ACK);
    }
    story.say(0, dropped(0xe, Transport::Tcp, here, 60));
    story.wait(31);
    let mut drops: Vec<_> = story.out.iter().map(|flow| (flow.net, flow.dropped.packets)).collect();
    drops.sort_unstable();
    assert_eq!(drops, [(here.net, 0), (there.net, 1)]);
}

#[test]
fn a_flow_is_inexact_if_more_of_it_is_dropped_than_was_sent() {
    for (drops, is_marked) in [(&[100, 60][..], false), (&[150, 60], true), (&[40, 40, 40], true)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 100);
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 60);
        drops.iter().for_each(|bytes| story.say(0, dropped(0xa, Transport::Udp, tuple(40000, 53), *bytes)));
        story.wait(31);
        assert_eq!(story.only().inexact, Inexact { dropped_locally: is_marked, ..Inexact::default() }, "{drops:?}");
    }
}

/// The connection is older than its flow, so it is not known how many segments the flow's first packet carried.
#[test]
fn the_first_packet_of_a_flow_does_not_show_how_long_segments_are() {
    let (mut story, tuple) = (Story::new(), tuple(40000, 80));
    for (payload, sent) in [(3000, 10), (2000, 12), (100, 13)] {
        story.say(CURL, counted(PacketDirection::Outbound, tuple, 52 + payload, 52, (ACK, 1, sent)));
    }
    story.say(0, dropped(0xa, Transport::Tcp, tuple, 52 + 2000));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.dropped, flow.inexact.dropped_locally), (counters(2, 2000 + 2 * 52), true));
}

#[test]
fn a_flow_has_failed_only_if_all_that_it_sent_was_dropped_and_nothing_arrived() {
    type Also = fn(&mut Story);
    let also: [(Also, Outcome); 3] = [
        (|_| {}, Outcome::Failure(0)),
        (|story| story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 60), Outcome::Unknown),
        (|story| story.udp(PacketDirection::Inbound, 0xa, tuple(40000, 53), 60), Outcome::Unknown),
    ];
    for (also, outcome) in also {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 60);
        story.say(0, dropped(0xa, Transport::Udp, tuple(40000, 53), 60));
        also(&mut story);
        story.wait(31);
        assert_eq!(story.only().outcome, outcome);
    }
}
