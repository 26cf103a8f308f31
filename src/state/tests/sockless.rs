//! Packets that leave without a socket.

use super::*;

/// Before Linux 4.1, the namespace of a socketless reply is not known.
#[test]
fn a_reply_without_socket_and_namespace_belongs_to_the_connection_that_it_answers() {
    let nowhere = |tuple: Tuple| Tuple { net: None, ..tuple };
    let mut story = Story::new();
    let (client, server) = (tuple(40000, 80), tuple(80, 40000));
    let elsewhere = Tuple { net: OTHER_NET, ..tuple(41000, 81) };
    story.conversation(CURL, 0xa, client);
    story.conversation(CURL, 0xb, elsewhere);
    // In TIME_WAIT the other side's FIN is acknowledged.
    story.tcp(PacketDirection::Inbound, 0, client, 40, FIN | ACK);
    story.tcp(PacketDirection::Outbound, 0, nowhere(client), 40, ACK);
    // A reset, with a packet of another namespace in between.
    story.tcp(PacketDirection::Inbound, 0, elsewhere, 40, ACK);
    story.tcp(PacketDirection::Inbound, 0, server, 60, SYN);
    story.tcp(PacketDirection::Outbound, 0, nowhere(elsewhere), 40, RST);
    story.wait(6);
    let mut flows: Vec<_> = story.out.drain(..).map(|flow| (flow.net, flow.sent, flow.received)).collect();
    flows.sort_by_key(|(net, ..)| *net);
    let of = |net| (net, counters(4, 240), counters(3, 600));
    assert_eq!(flows, [of(NET), of(OTHER_NET)]);
    assert_eq!(story.state.stats().flows_without_socket, 0, "no flow of its own");
}

#[test]
fn a_reply_without_a_socket_stays_in_its_own_namespace() {
    let here = tuple(40000, 80);
    let there = Tuple { net: OTHER_NET, ..here };
    let mut story = Story::new();
    story.conversation(CURL, 0xa, here);
    story.conversation(CURL, 0xb, there);
    story.tcp(PacketDirection::Inbound, 0, here, 40, FIN | ACK);
    story.tcp(PacketDirection::Inbound, 0, there, 40, FIN | ACK);
    story.tcp(PacketDirection::Outbound, 0, here, 40, ACK);
    story.wait(6);
    let mut sent: Vec<_> = story.out.iter().map(|flow| (flow.net, flow.sent.packets)).collect();
    sent.sort_unstable();
    assert_eq!(sent, [(here.net, 4), (there.net, 3)]);
}

/// The kernel answers without a socket when it sends a SYN cookie.
#[test]
fn a_reply_without_a_socket_does_not_take_a_connection_from_its_listener() {
    for flags in [SYN | ACK, ACK] {
        let mut story = Story::new();
        story.say(SERVER, EventKind::SocketCreated { sock: sock_at(0x1), user: SocketUser::Program });
        story.tcp(PacketDirection::Inbound, 0, tuple(80, 40000), 60, SYN);
        story.tcp(PacketDirection::Outbound, 0x1, tuple(80, 40000), 60, SYN | ACK);
        story.tcp(PacketDirection::Outbound, 0, tuple(80, 40000), 60, flags);
        story.wait(31);
        let flow = story.only();
        assert_eq!((owner(&flow).0, flow.sock, flow.sent.packets), (SERVER, SockAddress::new(0x1), 2));
    }
}
