//! Connections that go on after their flow has ended: their later packets belong to the same owner.

use super::names::{answer, asker, domains};
use super::*;
use crate::model::event::Dropped;
use crate::model::feature::Feature;
use crate::model::loss::{LossCause, LostFacts};

const CLIENT: u64 = 0xa;
const SERVER_SOCK: u64 = 0xb;

/// A connection of curl's that was idle for longer than every timeout, after its first flow.
fn idle_client(timeouts: StateConfig) -> Story {
    let mut story = Story::with(timeouts);
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(CLIENT), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(CLIENT), remote: tuple(40000, 80).remote });
    story.tcp(PacketDirection::Outbound, CLIENT, tuple(40000, 80), 60, SYN);
    story.say(CURL, EventKind::ConnectReturns { result: 0 });
    story.tcp(PacketDirection::Inbound, 0, tuple(40000, 80), 60, SYN | ACK);
    story.state_is(CLIENT, tuple(40000, 80), TcpState::Established);
    story.tcp(PacketDirection::Outbound, CLIENT, tuple(40000, 80), 52, ACK);
    story.wait(3600);
    let first = story.only();
    assert_eq!((first.reason, first.complete, owner(&first).0), (Reason::Inactive, true, CURL));
    story
}

/// An accepted connection of the server's that was idle in the same way.
fn idle_server() -> Story {
    let mut story = Story::new();
    let tuple = tuple(80, 40000);
    story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN);
    story.tcp(PacketDirection::Outbound, 0x1, tuple, 60, SYN | ACK);
    story.tcp(PacketDirection::Inbound, 0, tuple, 52, ACK);
    story.state_is(SERVER_SOCK, tuple, TcpState::Established);
    story.say(SERVER, EventKind::Accepted { sock: sock_at(SERVER_SOCK), tuple });
    story.wait(3600);
    let first = story.only();
    assert_eq!((first.reason, owner(&first).0, first.direction), (Reason::Inactive, SERVER, Direction::Ingress));
    story
}

/// The next flow has the same owner and direction, and is not complete.
fn next_is(story: &mut Story, pid: u32, direction: Direction, packets: (u64, u64)) -> Flow {
    let next = story.only();
    assert_eq!((owner(&next).0, next.direction, next.complete), (pid, direction, false), "{next:#?}");
    assert_eq!((next.sent.packets, next.received.packets), packets);
    assert_eq!(next.outcome, Outcome::Success);
    next
}

#[test]
fn its_own_fin_ends_an_idle_connection() {
    let short = Duration::from_millis(1);
    let timeouts = [
        StateConfig::default(),
        StateConfig { flow_inactive_timeout: short, socket_inactive_timeout: short, ..StateConfig::default() },
        StateConfig { socket_inactive_timeout: Duration::from_secs(86_400), ..StateConfig::default() },
    ];
    for timeouts in timeouts {
        let mut story = idle_client(timeouts);
        let tuple = tuple(40000, 80);
        story.say(CURL, EventKind::SocketReleased { sock: sock_at(CLIENT) });
        story.tcp(PacketDirection::Outbound, CLIENT, tuple, 52, FIN | ACK);
        story.tcp(PacketDirection::Inbound, 0, tuple, 52, FIN | ACK);
        story.state_is(CLIENT, tuple, TcpState::Closed { error: 0 });
        story.say(0, EventKind::SocketFreed { sock: sock_at(CLIENT) });
        story.tcp(PacketDirection::Outbound, 0x99, tuple, 52, ACK);
        story.wait(6);
        let next = next_is(&mut story, CURL, Direction::Egress, (2, 1));
        assert_eq!((next.reason, next.last_user), (Reason::Closed, None));
        assert_eq!((story.state.stats().idle_connections_live, story.state.stats().sockets_live), (0, 0));
    }
}

#[test]
fn a_child_that_closes_an_idle_connection_is_its_last_user() {
    let mut story = idle_client(StateConfig::default());
    story.say(CURL, EventKind::Fork(Fork { child: 998, start: Some(since_boot(77)) }));
    story.say(998, EventKind::SocketReleased { sock: sock_at(CLIENT) });
    story.tcp(PacketDirection::Outbound, CLIENT, tuple(40000, 80), 52, FIN | ACK);
    story.wait(6);
    let next = next_is(&mut story, CURL, Direction::Egress, (1, 0));
    assert_eq!(next.last_user.map(|user| user.pid), Some(998));
}

#[test]
fn the_other_sides_fin_or_reset_ends_an_idle_connection() {
    for flags in [FIN | ACK, RST, RST | ACK] {
        let mut story = idle_client(StateConfig::default());
        story.tcp(PacketDirection::Inbound, 0, tuple(40000, 80), 40, flags);
        story.wait(31);
        next_is(&mut story, CURL, Direction::Egress, (0, 1));

        let mut story = idle_server();
        story.tcp(PacketDirection::Inbound, 0, tuple(80, 40000), 40, flags);
        story.wait(31);
        next_is(&mut story, SERVER, Direction::Ingress, (0, 1));
    }
}

/// A firewall's reset has no socket (`nf_send_reset`).
#[test]
fn a_reset_without_a_socket_belongs_to_the_idle_connection() {
    let mut story = idle_client(StateConfig::default());
    story.tcp(PacketDirection::Outbound, 0, tuple(40000, 80), 40, RST);
    story.wait(31);
    next_is(&mut story, CURL, Direction::Egress, (1, 0));
}

#[test]
fn a_failed_keepalive_ends_an_idle_connection() {
    let mut story = idle_server();
    let tuple = tuple(80, 40000);
    for _ in 0..3 {
        story.tcp(PacketDirection::Outbound, SERVER_SOCK, tuple, 52, ACK);
        story.wait(75);
        next_is(&mut story, SERVER, Direction::Ingress, (1, 0));
    }
    story.tcp(PacketDirection::Outbound, SERVER_SOCK, tuple, 40, RST | ACK);
    story.state_is(SERVER_SOCK, tuple, TcpState::Closed { error: 110 });
    story.wait(6);
    assert_eq!(next_is(&mut story, SERVER, Direction::Ingress, (1, 0)).reason, Reason::Closed);
}

#[test]
fn a_fin_that_is_sent_again_after_a_long_pause_still_belongs_to_the_owner() {
    let mut story = idle_client(StateConfig::default());
    let tuple = tuple(40000, 80);
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(CLIENT) });
    for pause in [7, 14, 28, 56, 112] {
        story.tcp(PacketDirection::Outbound, CLIENT, tuple, 52, FIN | ACK);
        story.wait(pause);
        next_is(&mut story, CURL, Direction::Egress, (1, 0));
    }
    story.wait(200);
    assert_eq!((story.state.stats().idle_connections_live, story.state.stats().sockets_live), (0, 0));
}

#[test]
fn the_last_fin_of_a_half_closed_connection_still_belongs_to_the_owner() {
    let mut story = idle_client(StateConfig::default());
    let tuple = tuple(40000, 80);
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(CLIENT) });
    story.tcp(PacketDirection::Outbound, CLIENT, tuple, 52, FIN | ACK);
    story.tcp(PacketDirection::Inbound, 0, tuple, 52, ACK);
    // The kernel waits for the other side's FIN without the socket (FIN_WAIT2 as a timewait socket).
    story.state_is(CLIENT, tuple, TcpState::Closed { error: 0 });
    story.say(0, EventKind::SocketFreed { sock: sock_at(CLIENT) });
    story.wait(40);
    next_is(&mut story, CURL, Direction::Egress, (1, 1));
    story.tcp(PacketDirection::Inbound, 0, tuple, 52, FIN | ACK);
    story.tcp(PacketDirection::Outbound, 0x99, tuple, 52, ACK);
    story.wait(6);
    next_is(&mut story, CURL, Direction::Egress, (1, 1));
    assert_eq!(story.state.stats().idle_connections_live, 0);
}

/// Samples with these facts, and no others, were lost within the last half second.
fn lose(story: &mut Story, facts: LostFacts) {
    let since = story.now - SECOND / 2;
    story.say(0, EventKind::Lost { cause: LossCause::Ring { cpu: 0 }, count: 1, since: monotonic(since), facts });
}

/// Sends the FIN of an idle connection, and waits until its socket is gone and its flow is over. The other
/// side's FIN is still to come.
fn half_close(story: &mut Story, pid: u32, sock: u64, tuple: Tuple) {
    story.say(pid, EventKind::SocketReleased { sock: sock_at(sock) });
    story.tcp(PacketDirection::Outbound, sock, tuple, 52, FIN | ACK);
    story.tcp(PacketDirection::Inbound, 0, tuple, 52, ACK);
    story.state_is(sock, tuple, TcpState::Closed { error: 0 });
    story.say(0, EventKind::SocketFreed { sock: sock_at(sock) });
    story.wait(40);
    assert!(!story.only().inexact.samples_lost);
}

/// The FIN that its socket sends confirms the owner.
#[test]
fn a_connection_without_a_socket_has_an_owner_as_certain_as_when_it_had_one() {
    for (lost_before, marked) in [(true, false), (false, true)] {
        let (mut story, tuple) = (idle_client(StateConfig::default()), tuple(40000, 80));
        if lost_before {
            lose(&mut story, LostFacts::OWNERS);
            story.wait(2);
        }
        half_close(&mut story, CURL, CLIENT, tuple);
        if !lost_before {
            lose(&mut story, LostFacts::OWNERS);
        }
        story.tcp(PacketDirection::Inbound, 0, tuple, 52, FIN | ACK);
        story.wait(6);
        assert_eq!(next_is(&mut story, CURL, Direction::Egress, (0, 1)).inexact.samples_lost, marked, "{lost_before}");
    }
}

#[test]
fn a_missed_accept_does_not_matter_to_an_idle_connection_that_was_accepted() {
    let (mut story, tuple) = (idle_server(), tuple(80, 40000));
    half_close(&mut story, SERVER, SERVER_SOCK, tuple);
    lose(&mut story, LostFacts::ACCEPTS);
    story.tcp(PacketDirection::Inbound, 0, tuple, 52, FIN | ACK);
    story.wait(6);
    assert!(!next_is(&mut story, SERVER, Direction::Ingress, (0, 1)).inexact.samples_lost);
}

#[test]
fn an_idle_connection_keeps_its_name() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "before", "127.0.0.1");
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(CLIENT), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(CLIENT), remote: tuple(40000, 80).remote });
    story.tcp(PacketDirection::Outbound, CLIENT, tuple(40000, 80), 60, SYN);
    story.state_is(CLIENT, tuple(40000, 80), TcpState::Established);
    story.wait(3600);
    story.out.clear();
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "after", "127.0.0.1");
    story.tcp(PacketDirection::Inbound, 0, tuple(40000, 80), 40, RST);
    story.wait(31);
    assert_eq!(domains(&mut story), [Some("before".to_owned())]);
}

#[test]
fn a_new_connection_between_the_same_ends_is_another() {
    // Its SYN may not have been seen.
    for (flags, complete) in [(SYN, true), (ACK, false)] {
        let mut story = idle_client(StateConfig::default());
        let tuple = tuple(40000, 80);
        story.say(SHELL, EventKind::SocketCreated { sock: sock_at(0xc), user: SocketUser::Program });
        story.say(SHELL, EventKind::ConnectBegins { sock: sock_at(0xc), remote: tuple.remote });
        story.tcp(PacketDirection::Outbound, 0xc, tuple, 60, flags);
        story.wait(31);
        let next = story.only();
        assert_eq!((owner(&next).0, next.complete), (SHELL, complete));
    }
}

/// The other side's FIN cannot come any more.
#[test]
fn a_connection_that_this_host_has_reset_does_not_go_on() {
    let (mut story, tuple) = (Story::new(), tuple(40000, 80));
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(CLIENT), user: SocketUser::Program });
    story.tcp(PacketDirection::Outbound, CLIENT, tuple, 60, SYN);
    story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN | ACK);
    story.state_is(CLIENT, tuple, TcpState::Established);
    story.tcp(PacketDirection::Outbound, CLIENT, tuple, 40, RST | ACK);
    story.state_is(CLIENT, tuple, TcpState::Closed { error: 0 });
    story.say(0, EventKind::SocketFreed { sock: sock_at(CLIENT) });
    story.wait(6);
    assert_eq!(story.only().reason, Reason::Closed);
    assert_eq!((story.state.stats().idle_connections_live, story.state.stats().sockets_live), (0, 0));
}

/// The other host has restarted, and uses the port again.
#[test]
fn a_syn_between_the_ends_of_an_idle_connection_begins_another() {
    let mut story = idle_server();
    story.tcp(PacketDirection::Inbound, 0, tuple(80, 40000), 60, SYN);
    story.tcp(PacketDirection::Outbound, 0x2, tuple(80, 40000), 60, SYN | ACK);
    story.wait(31);
    let next = story.only();
    assert_eq!((next.complete, next.owner, next.outcome), (true, Owner::Unknown, Outcome::Unknown));
}

#[test]
fn merged_segments_after_an_idle_time_are_counted() {
    let mut story = Story::new();
    let tuple = tuple(40000, 80);
    let mut segments = Segments::default();
    let mut sent = |story: &mut Story, received: u32, bytes: u32, flags: u8| {
        segments = Segments { sent: segments.sent + 1, received: segments.received + received };
        let size = PacketSize { bytes, headers: 40 };
        let packet = Packet {
            tcp_flags: flags,
            segments: Some(segments),
            ..Packet::new(PacketDirection::Outbound, Transport::Tcp, SockAddress::new(CLIENT), tuple, size)
        };
        story.say(0, EventKind::Packet(packet));
    };
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(CLIENT), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(CLIENT), remote: tuple.remote });
    sent(&mut story, 0, 60, SYN);
    story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN | ACK);
    story.state_is(CLIENT, tuple, TcpState::Established);
    sent(&mut story, 1, 40, ACK);
    story.wait(31);
    assert_eq!(story.only().received, Counters { packets: 1, bytes: 60 });
    // Three segments of 100 bytes that arrive as one packet.
    story.tcp(PacketDirection::Inbound, 0, tuple, 340, ACK);
    sent(&mut story, 3, 40, ACK);
    story.wait(31);
    assert_eq!(story.only().received, Counters { packets: 3, bytes: 420 });
}

#[test]
fn an_error_is_not_the_outcome_of_a_conversation() {
    let mut story = idle_client(StateConfig::default());
    story.tcp(PacketDirection::Outbound, CLIENT, tuple(40000, 80), 100, ACK);
    story.say(0, EventKind::SocketError { sock: sock_at(CLIENT), error: 113 });
    story.wait(31);
    next_is(&mut story, CURL, Direction::Egress, (1, 0));
    // If a UDP socket has two peers, it is not known which one an error is about.
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0x51), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0x51, tuple(5001, 7), 60);
    story.udp(PacketDirection::Outbound, 0x51, tuple(5001, 8), 60);
    story.say(0, EventKind::SocketError { sock: sock_at(0x51), error: 111 });
    story.wait(31);
    assert_eq!(story.out.len(), 2);
    assert!(story.out.drain(..).all(|flow| flow.outcome == Outcome::Unknown));
}

/// A loss of any facts, which began and ended just now.
fn loss(story: &Story) -> EventKind {
    EventKind::Lost { cause: LossCause::Ring { cpu: 0 }, count: 1, since: monotonic(story.now), facts: LostFacts::ALL }
}

/// A packet that leaves, with the socket's counters.
fn segment(story: &mut Story, segments: Segments) {
    let size = PacketSize { bytes: 140, headers: 40 };
    let packet =
        Packet::new(PacketDirection::Outbound, Transport::Tcp, SockAddress::new(CLIENT), tuple(40000, 80), size);
    story.say(0, EventKind::Packet(Packet { tcp_flags: ACK, segments: Some(segments), ..packet }));
}

#[test]
fn segments_that_were_lost_or_never_left_while_idle_do_not_count_for_the_next_flow() {
    type Meanwhile = fn(&mut Story);
    let meanwhile: [(Meanwhile, u64); 3] = [
        (|_| {}, 8),
        (|story| story.say(0, loss(story)), 1),
        (
            |story| {
                let never = Dropped {
                    sock: SockAddress::new(CLIENT),
                    transport: None,
                    other_protocol: false,
                    ends: None,
                    bytes: 0,
                    with_others: false,
                    may_have_arrived: false,
                    may_be_drivers: false,
                };
                story.say(0, EventKind::Dropped(never));
            },
            1,
        ),
    ];
    for (meanwhile, expected) in meanwhile {
        let mut story = idle_client(StateConfig::default());
        segment(&mut story, Segments { sent: 3, received: 1 });
        story.wait(40);
        story.out.clear();
        meanwhile(&mut story);
        story.wait(40);
        segment(&mut story, Segments { sent: 11, received: 1 });
        story.wait(40);
        assert_eq!(story.only().sent.packets, expected);
    }
}

#[test]
fn a_missed_accept_marks_no_connection_that_was_accepted_before_and_was_idle() {
    let mut story = idle_server();
    let facts = Feature::Accept.facts_lost_by_misses();
    let cause = LossCause::Probes { feature: Feature::Accept };
    story.say(0, EventKind::Lost { cause, count: 1, since: monotonic(story.now), facts });
    story.tcp(PacketDirection::Inbound, 0, tuple(80, 40000), 52, ACK);
    story.tcp(PacketDirection::Outbound, SERVER_SOCK, tuple(80, 40000), 52, ACK);
    story.wait(31);
    let next = next_is(&mut story, SERVER, Direction::Ingress, (1, 1));
    assert!(!next.inexact.samples_lost);
}

#[test]
fn a_connection_whose_accept_was_missed_stays_marked_after_it_was_idle() {
    let mut story = Story::new();
    let tuple = tuple(80, 40000);
    story.say(SERVER, EventKind::SocketCreated { sock: sock_at(0x1), user: SocketUser::Program });
    story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN);
    story.tcp(PacketDirection::Outbound, 0x1, tuple, 60, SYN | ACK);
    story.tcp(PacketDirection::Inbound, 0, tuple, 52, ACK);
    story.state_is(SERVER_SOCK, tuple, TcpState::Established);
    let cause = LossCause::Probes { feature: Feature::Accept };
    story.say(
        0,
        EventKind::Lost { cause, count: 1, since: monotonic(story.now), facts: Feature::Accept.facts_lost_by_misses() },
    );
    story.wait(60);
    assert!(story.only().inexact.samples_lost);
    story.tcp(PacketDirection::Outbound, SERVER_SOCK, tuple, 52, ACK);
    story.wait(60);
    assert!(story.only().inexact.samples_lost);
}
