//! What a flow says of its own counters.

use std::net::IpAddr;

use super::*;
use crate::event::{Dropped, Fragmented, Sight, Unreadable};

#[test]
fn what_finds_no_room_is_counted() {
    let mut story = Story::with(Config { max_sockets: 1, max_flows: 1, ..Config::default() });
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.udp(Way::Out, 0xa, tuple(40000, 1), 60);
    story.udp(Way::Out, 0xa, tuple(40000, 2), 60);
    assert_eq!((story.only().reason, story.state.stats().flows_evicted), (Reason::Evicted, 1));
    story.say(SHELL, EventKind::SocketCreated { sock: 0xb, for_program: true });
    story.udp(Way::Out, 0xb, tuple(40001, 1), 60);
    let stats = story.state.stats();
    assert!(stats.sockets_refused > 0);
    assert_eq!((stats.sockets_live, stats.packets_without_flow), (1, 1));
}

/// A packet of TCP whose socket had counted so many segments by then.
fn counted(way: Way, tuple: Tuple, bytes: u32, headers: u16, (flags, received, sent): (u8, u32, u32)) -> EventKind {
    let segments = (way == Way::Out).then_some(Segments { received, sent });
    let (size, sock) = (Size { bytes, headers }, if way == Way::Out { 0xa } else { 0 });
    EventKind::Packet(Packet { tcp_flags: flags, segments, ..Packet::new(way, Transport::Tcp, sock, tuple, size) })
}

#[test]
fn merged_segments_are_exact_unless_their_headers_differ() {
    for (headers, inexact) in [(52, false), (64, true)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
        let tuple = tuple(40000, 80);
        story.say(CURL, counted(Way::Out, tuple, 60, 60, (SYN, 0, 1)));
        // Its header is another's, but it was alone.
        story.say(CURL, counted(Way::In, tuple, 60, 60, (SYN | ACK, 0, 0)));
        story.state_is(0xa, tuple, TcpState::Established);
        story.say(CURL, counted(Way::Out, tuple, 52, 52, (ACK, 1, 2)));
        // Four segments, in two packets.
        story.say(CURL, counted(Way::In, tuple, 52 + 3000, 52, (ACK, 0, 0)));
        story.say(CURL, counted(Way::In, tuple, u32::from(headers), headers, (ACK, 0, 0)));
        story.say(CURL, counted(Way::Out, tuple, 52, 52, (ACK, 5, 3)));
        story.wait(31);
        let flow = story.only();
        assert_eq!(flow.received.packets, 5);
        assert_eq!(flow.inexact, Inexact { merged_segments: inexact, ..Inexact::default() });
    }
}

#[test]
fn data_that_comes_after_the_end_may_have_been_several_segments() {
    for (bytes, late_data) in [(52, false), (53, true)] {
        let mut story = Story::new();
        story.conversation(CURL, 0xa, tuple(40000, 80));
        story.say(0, counted(Way::In, tuple(40000, 80), 3000, 52, (ACK, 0, 0)));
        story.state_is(0xa, tuple(40000, 80), TcpState::Closed { error: 0 });
        story.say(0, counted(Way::In, tuple(40000, 80), bytes, 52, (ACK, 0, 0)));
        story.wait(31);
        assert_eq!(story.only().inexact, Inexact { late_data, ..Inexact::default() });
    }
}

#[test]
fn a_syn_that_comes_twice_is_counted_twice_beside_merged_segments() {
    let mut story = Story::new();
    let tuple = tuple(80, 40000);
    for _ in 0..2 {
        story.say(0, counted(Way::In, tuple, 60, 60, (SYN, 0, 0)));
    }
    story.state_is(0xa, tuple, TcpState::Established);
    story.say(0, counted(Way::In, tuple, 52, 52, (ACK, 0, 0)));
    story.say(0, counted(Way::In, tuple, 52 + 2000, 52, (ACK, 0, 0)));
    // The new socket has counted a SYN, the ACK, and two segments of data.
    story.say(0, counted(Way::Out, tuple, 52, 52, (ACK, 4, 1)));
    story.wait(31);
    let flow = story.only();
    assert_eq!(flow.received, counters(5, 60 + 60 + 52 + 52 + 52 + 2000));
    assert_eq!(flow.inexact, Inexact::default());
}

/// A datagram of which so much lies apart, and that came in fragments so large.
fn datagram(way: Way, bytes: u32, apart: u32, fragment: u16) -> EventKind {
    let (size, tuple) = (Size { bytes, headers: 28 }, tuple(40000, 53));
    let (sock, transport) = (0xa, Transport::Udp);
    EventKind::Packet(Packet { apart, fragment, ..Packet::new(way, transport, sock, tuple, size) })
}

#[test]
fn a_datagram_in_pieces_may_be_several_where_its_socket_deals_in_such() {
    let made = |for_program| vec![EventKind::SocketCreated { sock: 0xa, for_program }];
    let (program, kernel, older) = (made(true), made(false), Vec::new());
    let merging = [made(true), vec![EventKind::TakesMerged { sock: 0xa }]].concat();
    let joining = [made(true), vec![EventKind::SendsJoined { sock: 0xa }]].concat();
    // What is joined lies apart from headers of 28 bytes; or, where the kernel leaves so many in one piece, from 176 bytes.
    for (before, head, way, bytes, apart, several) in [
        (&program, 0, Way::Out, 1000, 0, false),
        (&program, 0, Way::Out, 1000, 500, false),
        (&program, 0, Way::Out, 1000, 972, true),
        (&program, 176, Way::Out, 1000, 972, false),
        (&program, 176, Way::Out, 1000, 824, true),
        (&program, 176, Way::Out, 170, 0, false),
        (&joining, 176, Way::Out, 170, 0, true),
        (&joining, 176, Way::Out, 180, 0, false),
        (&joining, 0, Way::Out, 170, 0, false),
        (&program, 0, Way::In, 1000, 972, false),
        (&kernel, 0, Way::Out, 1000, 0, false),
        (&kernel, 0, Way::Out, 1000, 500, true),
        (&kernel, 0, Way::In, 1000, 500, true),
        (&older, 0, Way::In, 1000, 0, false),
        (&older, 0, Way::In, 1000, 500, true),
        (&merging, 0, Way::In, 1000, 0, true),
        (&merging, 0, Way::Out, 1000, 500, false),
    ] {
        let mut story = Story::new();
        story.state.learn_sight(Sight { joined_head: head, ..SIGHT });
        before.iter().for_each(|event| story.say(CURL, event.clone()));
        story.say(CURL, datagram(way, bytes, apart, 0));
        story.wait(31);
        let flow = story.only();
        assert_eq!(flow.inexact.datagram_segments, several, "{before:?} {head} {way:?} {bytes} {apart}");
        assert_eq!(flow.inexact.reasons().count(), usize::from(several));
    }
}

#[test]
fn a_datagram_in_pieces_may_be_several_where_it_is_not_seen_who_deals_in_such() {
    let mut story = Story::new();
    story.state.learn_sight(Sight { single_datagrams: false, ..SIGHT });
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.say(CURL, datagram(Way::In, 1000, 500, 0));
    story.wait(31);
    assert_eq!(story.only().inexact, Inexact { datagram_segments: true, ..Inexact::default() });
}

#[test]
fn a_datagram_of_the_kernels_own_socket_is_nobodys() {
    for tells_programs in [true, false] {
        let mut story = Story::new();
        story.state.learn_sight(Sight { programs: tells_programs, ..SIGHT });
        story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: false });
        story.say(0, datagram(Way::Out, 1000, 0, 0));
        story.say(SHELL, EventKind::SocketReleased { sock: 0xa });
        story.wait(31);
        let flow = story.only();
        assert_eq!(flow.owner == Owner::Kernel, tells_programs);
        assert_eq!(flow.last_user.is_none(), tells_programs);
    }
}

#[test]
fn fragments_that_arrive_are_counted() {
    // 4000 bytes over Ethernet, as `tcpdump` shows them: 1480, 1480 and 1048 bytes behind 20 of IPv4.
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.say(CURL, datagram(Way::In, 4028, 2528, 1500));
    story.wait(31);
    let flow = story.only();
    assert_eq!(flow.received, counters(3, 1500 + 1500 + 1068));
    assert_eq!(flow.inexact, Inexact { fragments: true, ..Inexact::default() });
}

#[test]
fn fragments_that_leave_are_counted() {
    let cut = |tuple, first| {
        let (transport, sock, bytes) = (Transport::Udp, 0xa, 4028);
        EventKind::Fragmented(Fragmented { transport, sock, tuple, bytes, first })
    };
    // What is not known counts as two; what has other addresses, after a translation, is marked only.
    for (first, port, packets, bytes) in [(1500, 53, 3, 4068), (0, 53, 2, 4048), (1500, 54, 1, 4028)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
        story.say(CURL, datagram(Way::Out, 4028, 2528, 0));
        story.say(CURL, cut(tuple(40000, port), first));
        story.wait(31);
        let flow = story.only();
        assert_eq!(flow.sent, counters(packets, bytes));
        assert_eq!(flow.inexact, Inexact { fragments: true, ..Inexact::default() });
    }
}

#[test]
fn fragments_of_ipv6_have_a_header_more() {
    let (local, remote) = ("2001:db8::1".parse::<IpAddr>().unwrap(), "2001:db8::2".parse::<IpAddr>().unwrap());
    let tuple = Tuple { net: NET, local: Endpoint::new(local, 1), remote: Endpoint::new(remote, 2) };
    // 1448, 1448 and 1112 bytes behind 48; and one fragment that is all there is (RFC 6946).
    for (bytes, largest, packets, on_the_wire) in [(4048, 1496, 3, 1496 + 1496 + 1160), (1240, 1248, 1, 1248)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
        let EventKind::Packet(packet) = datagram(Way::In, bytes, 100, largest) else { unreachable!() };
        story.say(CURL, EventKind::Packet(Packet { tuple, ..packet }));
        story.wait(31);
        assert_eq!(story.only().received, counters(packets, on_the_wire));
    }
}

/// A packet of which only this could be read.
fn unreadable(transport: Transport, sock: u64, ports: Option<(u16, u16)>) -> EventKind {
    EventKind::Unreadable(Unreadable { net: NET, transport, sock, ports })
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
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.say(0, unreadable(Transport::Udp, 0xa, None));
    story.udp(Way::In, 0xa, tuple(40000, 53), 100);
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.direction, flow.complete, flow.inexact.headers_unread), (Direction::Unknown, false, true));
}

#[test]
fn a_connection_of_which_nothing_could_be_read_is_a_flow_all_the_same() {
    let mut story = Story::new();
    let tuple = tuple(40000, 80);
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: 0xa, remote: tuple.remote });
    story.say(0, unreadable(Transport::Tcp, 0xa, Some((40000, 80))));
    story.state_is(0xa, tuple, TcpState::Established);
    story.say(CURL, EventKind::SocketReleased { sock: 0xa });
    story.wait(6);
    let flow = story.only();
    assert_eq!((owner(&flow).0, flow.direction, flow.outcome), (CURL, Direction::Egress, Outcome::Success));
    assert!(!flow.complete && flow.inexact.headers_unread);
}

#[test]
fn a_socket_has_no_part_in_what_its_address_was_before() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.udp(Way::Out, 0xa, tuple(40000, 53), 100);
    story.say(0, unreadable(Transport::Udp, 0xa, None));
    story.say(0, EventKind::SocketFreed { sock: 0xa });
    story.wait(6);
    assert!(story.only().inexact.headers_unread);
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.udp(Way::Out, 0xa, tuple(40001, 53), 100);
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.complete, flow.inexact), (true, Inexact::default()));
}

/// A packet with these ends is dropped.
fn dropped(sock: u64, transport: Transport, tuple: Tuple, bytes: u32) -> EventKind {
    let ends = Some((tuple.local, tuple.remote));
    EventKind::Dropped(Dropped {
        sock,
        transport: Some(transport),
        other_protocol: false,
        ends,
        bytes,
        with_others: false,
        may_have_arrived: false,
    })
}

#[test]
fn what_is_dropped_here_is_not_sent() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.udp(Way::Out, 0xa, tuple(40000, 53), 60);
    story.say(0, dropped(0xa, Transport::Udp, tuple(40000, 53), 60));
    story.say(0, dropped(0xb, Transport::Udp, tuple(40000, 53), 60)); // another socket's
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped), (counters(0, 0), counters(1, 60)));
    assert_eq!((flow.outcome, flow.inexact), (Outcome::Failure(0), Inexact::default()));
}

#[test]
fn what_arrives_and_is_dropped_was_not_sent() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.udp(Way::Out, 0xa, tuple(40000, 53), 60);
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
fn of_segments_that_travel_as_one_all_are_dropped() {
    let tuple = tuple(40000, 80);
    // First three full segments are sent as one packet, then a full and a short one.
    for (bytes, further, is_exact) in [(52 + 1500, 1, false), (52 + 3000, 2, false), (52 + 900, 0, true)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
        story.say(CURL, counted(Way::Out, tuple, 60, 60, (SYN, 0, 1)));
        story.state_is(0xa, tuple, TcpState::Established);
        story.say(CURL, counted(Way::Out, tuple, 52 + 3000, 52, (ACK, 1, 4)));
        story.say(CURL, counted(Way::Out, tuple, 52 + 1500, 52, (ACK, 1, 6)));
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
fn what_was_translated_is_one_of_its_sockets() {
    for flows in [1, 2] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
        for port in 0..flows {
            story.udp(Way::Out, 0xa, tuple(40000, 53 + port), 60);
        }
        story.say(0, dropped(0xa, Transport::Udp, tuple(40000, 5353), 60));
        story.wait(31);
        for flow in std::mem::take(&mut story.out) {
            let taken_back = u64::from(flows == 1);
            assert_eq!((flow.sent.packets, flow.dropped.packets), (1 - taken_back, taken_back));
            assert_eq!(flow.inexact, Inexact { dropped_locally: true, ..Inexact::default() });
        }
    }
}

#[test]
fn an_answer_that_is_not_known_any_more_marks_its_connection() {
    let mut story = Story::new();
    let (asked, other) = (tuple(80, 40000), tuple(80, 50000));
    for tuple in [asked, other] {
        story.tcp(Way::In, 0xa, tuple, 60, SYN);
        story.tcp(Way::Out, 0, tuple, 60, SYN | ACK);
    }
    (0..100).for_each(|_| story.tcp(Way::Out, 0, other, 60, SYN | ACK));
    story.say(0, dropped(0, Transport::Tcp, asked, 60));
    story.say(0, dropped(0, Transport::Tcp, other, 60));
    for tuple in [asked, other] {
        story.tcp(Way::In, 0xa, tuple, 52, ACK);
        story.state_is(0xa, tuple, TcpState::Established);
    }
    story.wait(31);
    let mut told: Vec<_> = story.out.iter().map(|flow| (flow.remote.port, flow.dropped, flow.inexact)).collect();
    told.sort_by_key(|(port, ..)| *port);
    let marked = Inexact { dropped_locally: true, ..Inexact::default() };
    assert_eq!(told, [(40000, counters(0, 0), marked), (50000, counters(1, 60), Inexact::default())]);
}

#[test]
fn what_another_socket_sends_for_a_connection_is_dropped_once() {
    let tuple = tuple(80, 40000);
    // A socket of the kernel's own, and a program's raw socket, which may forge any packet.
    for (made, is_taken_back) in [(None, true), (Some(false), true), (Some(true), false)] {
        let mut story = Story::new();
        if let Some(for_program) = made {
            story.say(CURL, EventKind::SocketCreated { sock: 0xe, for_program });
        }
        story.tcp(Way::In, 0, tuple, 60, SYN);
        story.tcp(Way::Out, 0xf, tuple, 60, SYN | ACK);
        for _ in 0..2 {
            story.say(0, dropped(0xe, Transport::Tcp, tuple, 60));
        }
        story.wait(31);
        let flow = story.only();
        let wanted = if is_taken_back { (0, 1) } else { (1, 0) };
        assert_eq!((flow.sent.packets, flow.dropped.packets), wanted);
    }
}

#[test]
fn segments_without_a_route_mark_their_connection() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.tcp(Way::Out, 0xa, tuple(40000, 80), 60, SYN);
    story.say(0, EventKind::Dropped(without_ports(false)));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.inexact.dropped_locally), (counters(1, 60), true));
}

/// What is dropped of socket 0xa without ports that could be read: of another protocol, or before it came to IP.
fn without_ports(other_protocol: bool) -> Dropped {
    Dropped {
        sock: 0xa,
        transport: None,
        other_protocol,
        ends: None,
        bytes: 0,
        with_others: false,
        may_have_arrived: false,
    }
}

#[test]
fn what_is_dropped_encapsulated_marks_all_flows_of_its_socket() {
    for (other_protocol, is_marked) in [(true, true), (false, false)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
        story.udp(Way::Out, 0xa, tuple(40000, 53), 60);
        story.say(0, EventKind::Dropped(without_ports(other_protocol)));
        story.wait(31);
        let flow = story.only();
        assert_eq!((flow.sent, flow.inexact.dropped_locally), (counters(1, 60), is_marked));
    }
    // In a datagram of ESP's (RFC 3948).
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.tcp(Way::Out, 0xa, tuple(40000, 80), 60, SYN);
    story.say(0, dropped(0xa, Transport::Udp, tuple(4500, 4500), 120));
    story.wait(31);
    assert!(story.only().inexact.dropped_locally);
}

#[test]
fn what_the_kernel_sends_without_a_socket_is_taken_back_over_ipv6_too() {
    let [local, remote]: [Ipv6Addr; 2] = ["2001:db8::1", "2001:db8::2"].map(|ip| ip.parse().unwrap());
    let tuple = Tuple { local: Endpoint::new(local, 80), remote: Endpoint::new(remote, 40000), ..tuple(80, 40000) };
    let mut story = Story::new();
    story.tcp(Way::In, 0, tuple, 80, SYN);
    story.tcp(Way::Out, 0xf, tuple, 80, SYN | ACK);
    story.tcp(Way::Out, 0xe, tuple, 60, RST);
    story.say(0, dropped(0, Transport::Tcp, tuple, 60));
    story.say(0, dropped(0, Transport::Udp, tuple, 60)); // nobody's
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped), (counters(1, 80), counters(1, 60)));
    assert_eq!(flow.inexact, Inexact::default());
}

/// Where the connection's socket is freed, the last acknowledgement leaves without one, which is not the connection's own.
#[test]
fn what_leaves_without_a_socket_is_taken_back_when_the_connection_has_none_either() {
    let mut story = Story::new();
    let tuple = tuple(40000, 80);
    story.conversation(CURL, 0xa, tuple);
    story.say(0, EventKind::SocketFreed { sock: 0xa });
    story.wait(6);
    assert_eq!(story.only().sent.packets, 3);
    story.tcp(Way::In, 0, tuple, 52, FIN | ACK);
    story.tcp(Way::Out, 0, tuple, 52, ACK);
    story.say(0, dropped(0, Transport::Tcp, tuple, 52));
    story.wait(6);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped), (counters(0, 0), counters(1, 52)));
    assert_eq!((owner(&flow).0, flow.inexact), (CURL, Inexact::default()));
}

/// The others that were dropped with it may belong to any flow of its socket.
#[test]
fn a_packet_dropped_with_others_is_taken_back_and_marks_its_flow() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.udp(Way::Out, 0xa, tuple(40000, 53), 60);
    let EventKind::Dropped(packet) = dropped(0xa, Transport::Udp, tuple(40000, 53), 60) else { unreachable!() };
    story.say(0, EventKind::Dropped(Dropped { with_others: true, ..packet }));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.dropped, flow.inexact.dropped_locally), (counters(1, 60), true));
    // Segments without a route are TCP's: datagrams have none.
    story.udp(Way::Out, 0xa, tuple(40000, 53), 60);
    story.say(
        0,
        EventKind::Dropped(Dropped {
            sock: 0xa,
            transport: None,
            ends: None,
            bytes: 0,
            with_others: false,
            may_have_arrived: false,
            other_protocol: false,
        }),
    );
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.inexact), (counters(1, 60), Inexact::default()));
}

#[test]
fn a_dropped_packet_that_is_filtered_out_marks_no_flow() {
    let mut config = Config::default();
    config.filter.ports.exclude = vec![53];
    let mut story = Story::with(config);
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.udp(Way::Out, 0xa, tuple(40000, 5353), 60);
    story.say(0, dropped(0xa, Transport::Udp, tuple(40000, 53), 60));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.inexact), (counters(1, 60), Inexact::default()));
}

#[test]
fn a_dropped_packet_from_another_address_is_not_the_sockets_only_flows() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.udp(Way::Out, 0xa, tuple(40000, 53), 60);
    story.say(0, dropped(0xa, Transport::Udp, tuple(40001, 5353), 60));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped, flow.inexact.dropped_locally), (counters(1, 60), counters(0, 0), true));
}

/// A socket that is bound to no address sends to itself from either of two.
#[test]
fn what_a_socket_sends_both_ways_between_two_addresses_is_taken_back_where_it_was_sent() {
    let [one, other] = [1, 2].map(|last| Endpoint::new(Ipv4Addr::new(127, 0, 0, last), 40000));
    let [there, back] = [(one, other), (other, one)].map(|(local, remote)| Tuple { net: NET, local, remote });
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.udp(Way::Out, 0xa, there, 60);
    story.udp(Way::Out, 0xa, back, 60);
    story.say(0, dropped(0xa, Transport::Udp, there, 60));
    story.wait(31);
    story.out.sort_by_key(|flow| flow.local.ip);
    let told: Vec<_> = story.out.iter().map(|flow| (flow.sent.packets, flow.dropped.packets)).collect();
    assert_eq!(told, [(0, 1), (1, 0)]);
}

#[test]
fn what_a_socket_sends_to_its_own_port_and_is_dropped_has_not_arrived() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.udp(Way::Out, 0xa, tuple(40000, 40000), 60);
    let EventKind::Dropped(packet) = dropped(0xa, Transport::Udp, tuple(40000, 40000), 60) else { unreachable!() };
    story.say(0, EventKind::Dropped(Dropped { may_have_arrived: true, ..packet }));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped), (counters(0, 0), counters(1, 60)));
}

#[test]
fn a_fragment_is_no_packet_of_several_segments() {
    let tuple = tuple(40000, 80);
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.say(CURL, counted(Way::Out, tuple, 60, 60, (SYN, 0, 1)));
    story.state_is(0xa, tuple, TcpState::Established);
    // Two segments; a fragment of an earlier packet happens to be as long as both.
    story.say(CURL, counted(Way::Out, tuple, 52 + 1000, 52, (ACK, 1, 3)));
    let EventKind::Dropped(packet) = dropped(0xa, Transport::Tcp, tuple, 52 + 1000) else { unreachable!() };
    story.say(CURL, EventKind::Dropped(Dropped { ends: None, ..packet }));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.dropped, flow.inexact.dropped_locally), (counters(1, 52 + 1000), true));
}

/// A fragment of a datagram that the connection's segments are encapsulated in (RFC 3948).
#[test]
fn a_fragment_of_another_transport_is_not_the_flows() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.tcp(Way::Out, 0xa, tuple(40000, 80), 60, SYN);
    let EventKind::Dropped(packet) = dropped(0xa, Transport::Udp, tuple(4500, 4500), 50) else { unreachable!() };
    story.say(0, EventKind::Dropped(Dropped { ends: None, ..packet }));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped, flow.inexact.dropped_locally), (counters(1, 60), counters(0, 0), true));
}

#[test]
fn of_the_same_addresses_in_two_namespaces_the_last_sender_is_dropped() {
    let here = tuple(80, 40000);
    let there = Tuple { net: NET + 1, ..here };
    let mut story = Story::new();
    for tuple in [here, there] {
        story.tcp(Way::In, 0, tuple, 60, SYN);
        story.tcp(Way::Out, 0xf, tuple, 60, SYN | ACK);
    }
    story.say(0, dropped(0xe, Transport::Tcp, here, 60));
    story.wait(31);
    let mut told: Vec<_> = story.out.iter().map(|flow| (flow.net, flow.dropped.packets)).collect();
    told.sort_unstable();
    assert_eq!(told, [(here.net, 0), (there.net, 1)]);
}

/// The kernel answers without a socket when it sends a SYN cookie.
#[test]
fn an_answer_without_a_socket_leaves_a_connection_with_its_listener() {
    for flags in [SYN | ACK, ACK] {
        let mut story = Story::new();
        story.say(SERVER, EventKind::SocketCreated { sock: 0x1, for_program: true });
        story.tcp(Way::In, 0, tuple(80, 40000), 60, SYN);
        story.tcp(Way::Out, 0x1, tuple(80, 40000), 60, SYN | ACK);
        story.tcp(Way::Out, 0, tuple(80, 40000), 60, flags);
        story.wait(31);
        let flow = story.only();
        assert_eq!((owner(&flow).0, flow.sock, flow.sent.packets), (SERVER, 0x1, 2));
    }
}
