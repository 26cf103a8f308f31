//! Packets and bytes: merged segments, UDP GSO and GRO, fragments.

use std::net::IpAddr;

use super::*;
use crate::model::event::Fragmented;

/// A TCP packet, with its flags and the segments that its socket had received and sent by then.
pub(super) fn counted(
    direction: PacketDirection,
    tuple: Tuple,
    bytes: u32,
    headers: u16,
    (flags, received, sent): (u8, u32, u32),
) -> EventKind {
    let segments = (direction == PacketDirection::Outbound).then_some(Segments { received, sent });
    let (size, sock) = (PacketSize { bytes, headers }, if direction == PacketDirection::Outbound { 0xa } else { 0 });
    EventKind::Packet(Packet {
        tcp_flags: flags,
        segments,
        ..Packet::new(direction, Transport::Tcp, SockAddress::new(sock), tuple, size)
    })
}

#[test]
fn super_packets_count_as_the_segments_that_they_carry() {
    let mut story = Story::new();
    let client = tuple(40000, 80);
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(0xa), remote: client.remote });
    let send_by = |story: &mut Story, sock, bytes, flags, sent, received| {
        let size = PacketSize { bytes, headers: 40 };
        let segments = Some(Segments { sent, received });
        let packet = Packet::new(PacketDirection::Outbound, Transport::Tcp, sock, client, size);
        let packet = Packet { tcp_flags: flags, segments, ..packet };
        story.say(0, EventKind::Packet(packet));
    };
    let send = |story: &mut Story, bytes, flags, sent, received| {
        send_by(story, SockAddress::new(0xa), bytes, flags, sent, received);
    };
    // A failed attempt of the same socket has left its counters at 5 and 3.
    send(&mut story, 60, SYN, 6, 3);
    story.tcp(PacketDirection::Inbound, 0, client, 60, SYN | ACK);
    send(&mut story, 40, ACK, 7, 4);
    // 3 segments of 1000 bytes leave as one.
    send(&mut story, 3040, ACK, 10, 4);
    // 4 segments of 500 bytes arrive as one; the next packet to leave shows it.
    story.tcp(PacketDirection::Inbound, 0, client, 2040, ACK);
    send(&mut story, 40, ACK, 11, 8);
    // One of the kernel's own sockets repeats the last ACK. The values in place of its counters mean nothing.
    send_by(&mut story, SockAddress::new(0xf), 40, ACK, 60_000, 50_000);
    story.wait(31);
    let flow = story.only();
    assert_eq!(flow.sent, counters(7, 60 + 40 + (3000 + 3 * 40) + 40 + 40));
    assert_eq!(flow.received, counters(5, 60 + 2000 + 4 * 40));
}

#[test]
fn merged_segments_are_exact_unless_their_headers_differ() {
    for (headers, inexact) in [(52, false), (64, true)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        let tuple = tuple(40000, 80);
        story.say(CURL, counted(PacketDirection::Outbound, tuple, 60, 60, (SYN, 0, 1)));
        // The headers of a SYN-ACK are longer, but it is never merged.
        story.say(CURL, counted(PacketDirection::Inbound, tuple, 60, 60, (SYN | ACK, 0, 0)));
        story.state_is(0xa, tuple, TcpState::Established);
        story.say(CURL, counted(PacketDirection::Outbound, tuple, 52, 52, (ACK, 1, 2)));
        // Four segments, in two packets.
        story.say(CURL, counted(PacketDirection::Inbound, tuple, 52 + 3000, 52, (ACK, 0, 0)));
        story.say(CURL, counted(PacketDirection::Inbound, tuple, u32::from(headers), headers, (ACK, 0, 0)));
        story.say(CURL, counted(PacketDirection::Outbound, tuple, 52, 52, (ACK, 5, 3)));
        story.wait(31);
        let flow = story.only();
        assert_eq!(flow.received.packets, 5);
        assert_eq!(flow.inexact, Inexact { merged_segments: inexact, ..Inexact::default() });
    }
}

/// A connection of curl's up to the end of its handshake: one packet of 60 bytes was received.
fn connected() -> Story {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    sends(&mut story, 60, (SYN, 0, 1));
    receives(&mut story, 0, 60, SYN | ACK);
    sends(&mut story, 52, (ACK, 1, 2));
    story
}

/// An empty packet leaves, with the counts of received and sent segments by then.
fn sends(story: &mut Story, headers: u16, counts: (u8, u32, u32)) {
    story.say(CURL, counted(PacketDirection::Outbound, tuple(40000, 80), headers.into(), headers, counts));
}

fn receives(story: &mut Story, payload: u32, headers: u16, flags: u8) {
    let bytes = payload + u32::from(headers);
    story.say(CURL, counted(PacketDirection::Inbound, tuple(40000, 80), bytes, headers, (flags, 0, 0)));
}

#[test]
fn packets_that_were_not_merged_are_exact_whatever_headers_they_have() {
    let mut story = connected();
    receives(&mut story, 100, 52, ACK);
    receives(&mut story, 100, 64, ACK);
    sends(&mut story, 52, (ACK, 3, 3));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.received, flow.inexact), (counters(3, 60 + 152 + 164), Inexact::default()));
}

#[test]
fn merged_segments_have_the_headers_of_the_packet_that_they_came_in() {
    let mut story = connected();
    receives(&mut story, 100, 52, ACK);
    sends(&mut story, 52, (ACK, 2, 3));
    // Three segments, with a further option.
    receives(&mut story, 300, 64, ACK);
    sends(&mut story, 52, (ACK, 5, 4));
    story.wait(31);
    let flow = story.only();
    assert_eq!((flow.received, flow.inexact), (counters(5, 60 + 152 + 300 + 3 * 64), Inexact::default()));
}

#[test]
fn a_counter_that_cannot_be_the_connections_is_not_used() {
    let mut story = connected();
    receives(&mut story, 100, 52, ACK);
    sends(&mut story, 52, (ACK, 1_000_000, 3));
    story.wait(31);
    assert_eq!(story.only().received, counters(2, 60 + 152));
}

/// Their size is not known.
#[test]
fn segments_are_not_counted_while_no_packet_was_seen() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    sends(&mut story, 60, (SYN, 0, 1));
    sends(&mut story, 52, (ACK, 1, 2));
    story.wait(31);
    assert_eq!(story.only().received, counters(0, 0));
}

#[test]
fn data_that_comes_after_the_end_may_have_been_several_segments() {
    for (bytes, late_data) in [(52, false), (53, true)] {
        let mut story = Story::new();
        story.conversation(CURL, 0xa, tuple(40000, 80));
        story.say(0, counted(PacketDirection::Inbound, tuple(40000, 80), 3000, 52, (ACK, 0, 0)));
        story.state_is(0xa, tuple(40000, 80), TcpState::Closed { error: 0 });
        story.say(0, counted(PacketDirection::Inbound, tuple(40000, 80), bytes, 52, (ACK, 0, 0)));
        story.wait(31);
        assert_eq!(story.only().inexact, Inexact { late_data, ..Inexact::default() });
    }
}

#[test]
fn a_syn_that_comes_twice_is_counted_twice_beside_merged_segments() {
    let mut story = Story::new();
    let tuple = tuple(80, 40000);
    for _ in 0..2 {
        story.say(0, counted(PacketDirection::Inbound, tuple, 60, 60, (SYN, 0, 0)));
    }
    story.state_is(0xa, tuple, TcpState::Established);
    story.say(0, counted(PacketDirection::Inbound, tuple, 52, 52, (ACK, 0, 0)));
    story.say(0, counted(PacketDirection::Inbound, tuple, 52 + 2000, 52, (ACK, 0, 0)));
    // The new socket has counted a SYN, the ACK, and two segments of data.
    story.say(0, counted(PacketDirection::Outbound, tuple, 52, 52, (ACK, 4, 1)));
    story.wait(31);
    let flow = story.only();
    assert_eq!(flow.received, counters(5, 60 + 60 + 52 + 52 + 52 + 2000));
    assert_eq!(flow.inexact, Inexact::default());
}

/// A datagram with a nonlinear part and fragments of these sizes.
pub(super) fn datagram(direction: PacketDirection, bytes: u32, data_len: u32, fragment: u16) -> EventKind {
    let (size, tuple) = (PacketSize { bytes, headers: 28 }, tuple(40000, 53));
    let (sock, transport) = (0xa, Transport::Udp);
    EventKind::Packet(Packet {
        data_len,
        fragment,
        ..Packet::new(direction, transport, SockAddress::new(sock), tuple, size)
    })
}

#[test]
fn a_nonlinear_datagram_may_be_several_if_its_socket_uses_gso_or_gro() {
    let made = |user| vec![EventKind::SocketCreated { sock: sock_at(0xa), user }];
    let (program, kernel, older) = (made(SocketUser::Program), made(SocketUser::Kernel), Vec::new());
    let gro = [made(SocketUser::Program), vec![EventKind::UdpGroEnabled { sock: sock_at(0xa) }]].concat();
    let gso = [made(SocketUser::Program), vec![EventKind::UdpGsoEnabled { sock: sock_at(0xa) }]].concat();
    // In a GSO packet, the linear part is the headers alone (28 bytes), or 176 bytes where the kernel keeps so many there.
    for (before, head, direction, bytes, data_len, several) in [
        (&program, 0, PacketDirection::Outbound, 1000, 0, false),
        (&program, 0, PacketDirection::Outbound, 28, 0, false), // an empty one
        (&program, 176, PacketDirection::Outbound, 176, 0, false),
        (&program, 0, PacketDirection::Outbound, 1000, 500, false),
        (&program, 0, PacketDirection::Outbound, 1000, 972, true),
        (&program, 176, PacketDirection::Outbound, 1000, 972, false),
        (&program, 176, PacketDirection::Outbound, 1000, 824, true),
        (&program, 176, PacketDirection::Outbound, 170, 0, false),
        (&gso, 176, PacketDirection::Outbound, 170, 0, true),
        (&gso, 176, PacketDirection::Outbound, 180, 0, false),
        (&gso, 0, PacketDirection::Outbound, 170, 0, false),
        (&program, 0, PacketDirection::Inbound, 1000, 972, false),
        (&kernel, 0, PacketDirection::Outbound, 1000, 0, false),
        (&kernel, 0, PacketDirection::Outbound, 1000, 500, true),
        (&kernel, 0, PacketDirection::Inbound, 1000, 500, true),
        (&older, 0, PacketDirection::Inbound, 1000, 0, false),
        (&older, 0, PacketDirection::Inbound, 1000, 500, true),
        (&gro, 0, PacketDirection::Inbound, 1000, 0, true),
        (&gro, 0, PacketDirection::Outbound, 1000, 500, false),
    ] {
        let mut story = Story::new();
        story.state.set_capabilities(SourceCapabilities { gso_head_len: head, ..CAPABILITIES });
        before.iter().for_each(|event| story.say(CURL, event.clone()));
        story.say(CURL, datagram(direction, bytes, data_len, 0));
        story.wait(31);
        let flow = story.only();
        assert_eq!(flow.inexact.datagram_segments, several, "{before:?} {head} {direction:?} {bytes} {data_len}");
        assert_eq!(flow.inexact.reasons().count(), usize::from(several));
    }
}

#[test]
fn a_nonlinear_datagram_may_be_several_if_requests_for_gro_are_not_seen() {
    let mut story = Story::new();
    story.state.set_capabilities(SourceCapabilities { single_datagrams: false, ..CAPABILITIES });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.say(CURL, datagram(PacketDirection::Inbound, 1000, 500, 0));
    story.wait(31);
    assert_eq!(story.only().inexact, Inexact { datagram_segments: true, ..Inexact::default() });
}

#[test]
fn fragments_that_arrive_are_counted() {
    // 4000 bytes over Ethernet, as `tcpdump` shows them: 1480, 1480 and 1048 bytes after 20 of IPv4.
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.say(CURL, datagram(PacketDirection::Inbound, 4028, 2528, 1500));
    story.wait(31);
    let flow = story.only();
    assert_eq!(flow.received, counters(3, 1500 + 1500 + 1068));
    assert_eq!(flow.inexact, Inexact { fragments: true, ..Inexact::default() });
}

/// A datagram of 4028 bytes from socket 0xa is fragmented.
fn fragmented(tuple: Tuple, first: u16) -> EventKind {
    let (transport, sock, bytes) = (Transport::Udp, SockAddress::new(0xa), 4028);
    EventKind::Fragmented(Fragmented { transport, sock, tuple, bytes, first })
}

/// Its address was translated, so it is not known which of the socket's flows it belongs to.
#[test]
fn a_fragmented_datagram_marks_the_live_flows_of_its_socket() {
    let interval = Some(Duration::from_secs(10));
    let mut story = Story::with(StateConfig { flow_report_interval: interval, ..StateConfig::default() });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    for _ in 0..2 {
        story.wait(6);
        story.say(CURL, datagram(PacketDirection::Outbound, 4028, 2528, 0));
    }
    story.say(CURL, fragmented(tuple(40000, 54), 1500));
    story.wait(6);
    let flow = story.only();
    assert_eq!((flow.reason, flow.inexact.fragments), (Reason::Interim, true));
}

#[test]
fn fragments_that_leave_are_counted() {
    // If the size of the first fragment is not known, there are two. If the address was translated, the flow is only marked.
    for (first, port, packets, bytes) in [(1500, 53, 3, 4068), (0, 53, 2, 4048), (1500, 54, 1, 4028)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        story.say(CURL, datagram(PacketDirection::Outbound, 4028, 2528, 0));
        story.say(CURL, fragmented(tuple(40000, port), first));
        story.wait(31);
        let flow = story.only();
        assert_eq!(flow.sent, counters(packets, bytes));
        assert_eq!(flow.inexact, Inexact { fragments: true, ..Inexact::default() });
    }
}

#[test]
fn ipv6_fragments_have_a_further_header() {
    let (local, remote) = ("2001:db8::1".parse::<IpAddr>().unwrap(), "2001:db8::2".parse::<IpAddr>().unwrap());
    let tuple = Tuple { net: NET, local: Endpoint::new(local, 1), remote: Endpoint::new(remote, 2) };
    // 1448, 1448 and 1112 bytes after headers of 48 bytes; and an atomic fragment (RFC 6946).
    for (bytes, largest, packets, on_the_wire) in [(4048, 1496, 3, 1496 + 1496 + 1160), (1240, 1248, 1, 1248)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        let EventKind::Packet(packet) = datagram(PacketDirection::Inbound, bytes, 100, largest) else { unreachable!() };
        story.say(CURL, EventKind::Packet(Packet { tuple, ..packet }));
        story.wait(31);
        assert_eq!(story.only().received, counters(packets, on_the_wire));
    }
}
