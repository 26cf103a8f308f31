//! Packets of the small sockets that TCP has during a handshake and after a close, which not every source sees.

use super::*;

/// Whether the flow of a client's connection is marked that has seen these packets besides its handshake.
fn client_is_marked(full_sockets_only: bool, packets: &[(PacketDirection, u8)]) -> bool {
    let mut story = Story::new();
    story.state.set_capabilities(SourceCapabilities { full_sockets_only, ..CAPABILITIES });
    let tuple = tuple(40000, 80);
    story.conversation(CURL, 0xa, tuple);
    for (direction, flags) in packets {
        story.tcp(*direction, if *direction == PacketDirection::Outbound { 0xa } else { 0 }, tuple, 40, *flags);
    }
    story.state_is(0xa, tuple, TcpState::Closed { error: 0 });
    story.wait(6);
    story.only().inexact.unseen_packets
}

#[test]
fn a_fin_that_comes_after_the_close_marks_the_flow() {
    use PacketDirection::{Inbound, Outbound};
    assert!(client_is_marked(true, &[(Outbound, FIN | ACK), (Inbound, ACK)]));
    assert!(!client_is_marked(false, &[(Outbound, FIN | ACK), (Inbound, ACK)]), "the source sees it");
    assert!(!client_is_marked(true, &[(Outbound, FIN | ACK), (Inbound, FIN | ACK)]));
    assert!(!client_is_marked(true, &[(Inbound, FIN | ACK), (Outbound, FIN | ACK)]));
    assert!(!client_is_marked(true, &[(Outbound, FIN | ACK), (Inbound, RST)]));
}

#[test]
fn a_syn_ack_that_was_not_seen_marks_the_flow() {
    for is_seen in [true, false] {
        let mut story = Story::new();
        story.state.set_capabilities(SourceCapabilities { full_sockets_only: true, ..CAPABILITIES });
        let (tuple, listener) = (tuple(80, 40000), 0x1);
        story.say(SERVER, EventKind::SocketCreated { sock: sock_at(listener), user: SocketUser::Program });
        story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN);
        if is_seen {
            story.tcp(PacketDirection::Outbound, listener, tuple, 60, SYN | ACK);
        }
        story.tcp(PacketDirection::Inbound, 0, tuple, 52, ACK);
        story.state_is(0xb, tuple, TcpState::Established);
        story.say(SERVER, EventKind::Accepted { sock: sock_at(0xb), tuple });
        story.tcp(PacketDirection::Inbound, 0, tuple, 52, FIN | ACK);
        story.tcp(PacketDirection::Outbound, 0xb, tuple, 52, FIN | ACK);
        story.state_is(0xb, tuple, TcpState::Closed { error: 0 });
        story.wait(6);
        assert_eq!(story.only().inexact.unseen_packets, !is_seen);
    }
}
