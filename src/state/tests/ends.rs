//! Packets of a connection that was idle belong to the same owner as before.

use super::*;
use crate::event::Dropped;
use crate::loss::{Harm, LossCause};
use crate::probes::Feature;

const CLIENT: u64 = 0xa;
const SERVER_SOCK: u64 = 0xb;

/// A connection of curl's that was idle for longer than every timeout, after its first flow.
fn idle_client(timeouts: Config) -> Story {
    let mut story = Story::with(timeouts);
    story.say(CURL, EventKind::SocketCreated { sock: CLIENT, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: CLIENT, remote: tuple(40000, 80).remote });
    story.tcp(Way::Out, CLIENT, tuple(40000, 80), 60, SYN);
    story.say(CURL, EventKind::ConnectReturns { result: 0 });
    story.tcp(Way::In, 0, tuple(40000, 80), 60, SYN | ACK);
    story.state_is(CLIENT, tuple(40000, 80), TcpState::Established);
    story.tcp(Way::Out, CLIENT, tuple(40000, 80), 52, ACK);
    story.wait(3600);
    let first = story.only();
    assert_eq!((first.reason, first.complete, owner(&first).0), (Reason::Inactive, true, CURL));
    story
}

/// An accepted connection of the server's, likewise.
fn idle_server() -> Story {
    let mut story = Story::new();
    let tuple = tuple(80, 40000);
    story.tcp(Way::In, 0, tuple, 60, SYN);
    story.tcp(Way::Out, 0x1, tuple, 60, SYN | ACK);
    story.tcp(Way::In, 0, tuple, 52, ACK);
    story.state_is(SERVER_SOCK, tuple, TcpState::Established);
    story.say(SERVER, EventKind::Accepted { sock: SERVER_SOCK, tuple });
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
        Config::default(),
        Config { flow_inactive_timeout: short, socket_inactive_timeout: short, ..Config::default() },
        Config { socket_inactive_timeout: Duration::from_secs(86_400), ..Config::default() },
    ];
    for timeouts in timeouts {
        let mut story = idle_client(timeouts);
        let tuple = tuple(40000, 80);
        story.say(CURL, EventKind::SocketReleased { sock: CLIENT });
        story.tcp(Way::Out, CLIENT, tuple, 52, FIN | ACK);
        story.tcp(Way::In, 0, tuple, 52, FIN | ACK);
        story.state_is(CLIENT, tuple, TcpState::Closed { error: 0 });
        story.say(0, EventKind::SocketFreed { sock: CLIENT });
        story.tcp(Way::Out, 0x99, tuple, 52, ACK);
        story.wait(6);
        let next = next_is(&mut story, CURL, Direction::Egress, (2, 1));
        assert_eq!((next.reason, next.last_user), (Reason::Closed, None));
        assert_eq!((story.state.stats().idle_connections_live, story.state.stats().sockets_live), (0, 0));
    }
}

#[test]
fn a_child_that_closes_an_idle_connection_is_its_last_user() {
    let mut story = idle_client(Config::default());
    story.say(CURL, EventKind::Fork(Fork { child: 998, start: Some(77) }));
    story.say(998, EventKind::SocketReleased { sock: CLIENT });
    story.tcp(Way::Out, CLIENT, tuple(40000, 80), 52, FIN | ACK);
    story.wait(6);
    let next = next_is(&mut story, CURL, Direction::Egress, (1, 0));
    assert_eq!(next.last_user.map(|user| user.pid), Some(998));
}

#[test]
fn the_other_sides_fin_or_reset_ends_an_idle_connection() {
    for flags in [FIN | ACK, RST, RST | ACK] {
        let mut story = idle_client(Config::default());
        story.tcp(Way::In, 0, tuple(40000, 80), 40, flags);
        story.wait(31);
        next_is(&mut story, CURL, Direction::Egress, (0, 1));

        let mut story = idle_server();
        story.tcp(Way::In, 0, tuple(80, 40000), 40, flags);
        story.wait(31);
        next_is(&mut story, SERVER, Direction::Ingress, (0, 1));
    }
}

/// A firewall's reset has no socket (`nf_send_reset`).
#[test]
fn a_reset_without_a_socket_is_an_idle_connections() {
    let mut story = idle_client(Config::default());
    story.tcp(Way::Out, 0, tuple(40000, 80), 40, RST);
    story.wait(31);
    next_is(&mut story, CURL, Direction::Egress, (1, 0));
}

#[test]
fn a_failed_keepalive_ends_an_idle_connection() {
    let mut story = idle_server();
    let tuple = tuple(80, 40000);
    for _ in 0..3 {
        story.tcp(Way::Out, SERVER_SOCK, tuple, 52, ACK);
        story.wait(75);
        next_is(&mut story, SERVER, Direction::Ingress, (1, 0));
    }
    story.tcp(Way::Out, SERVER_SOCK, tuple, 40, RST | ACK);
    story.state_is(SERVER_SOCK, tuple, TcpState::Closed { error: 110 });
    story.wait(6);
    assert_eq!(next_is(&mut story, SERVER, Direction::Ingress, (1, 0)).reason, Reason::Closed);
}

#[test]
fn a_fin_that_is_sent_again_after_a_long_pause_is_still_the_owners() {
    let mut story = idle_client(Config::default());
    let tuple = tuple(40000, 80);
    story.say(CURL, EventKind::SocketReleased { sock: CLIENT });
    for pause in [7, 14, 28, 56, 112] {
        story.tcp(Way::Out, CLIENT, tuple, 52, FIN | ACK);
        story.wait(pause);
        next_is(&mut story, CURL, Direction::Egress, (1, 0));
    }
    story.wait(200);
    assert_eq!((story.state.stats().idle_connections_live, story.state.stats().sockets_live), (0, 0));
}

#[test]
fn a_half_closed_connections_last_fin_is_still_the_owners() {
    let mut story = idle_client(Config::default());
    let tuple = tuple(40000, 80);
    story.say(CURL, EventKind::SocketReleased { sock: CLIENT });
    story.tcp(Way::Out, CLIENT, tuple, 52, FIN | ACK);
    story.tcp(Way::In, 0, tuple, 52, ACK);
    // The kernel waits for the other side's FIN without the socket (FIN_WAIT2 as a timewait socket).
    story.state_is(CLIENT, tuple, TcpState::Closed { error: 0 });
    story.say(0, EventKind::SocketFreed { sock: CLIENT });
    story.wait(40);
    next_is(&mut story, CURL, Direction::Egress, (1, 1));
    story.tcp(Way::In, 0, tuple, 52, FIN | ACK);
    story.tcp(Way::Out, 0x99, tuple, 52, ACK);
    story.wait(6);
    next_is(&mut story, CURL, Direction::Egress, (1, 1));
    assert_eq!(story.state.stats().idle_connections_live, 0);
}

/// Some samples of a sort were lost, and nothing else, within the last second.
fn lose(story: &mut Story, harm: Harm) {
    let since = story.now - SECOND / 2;
    story.say(0, EventKind::Lost { cause: LossCause::Ring { cpu: 0 }, count: 1, since, harm });
}

/// Sends the FIN of an idle connection, and waits until its socket is gone and its flow is over. Another FIN is to come.
fn half_close(story: &mut Story, pid: u32, sock: u64, tuple: Tuple) {
    story.say(pid, EventKind::SocketReleased { sock });
    story.tcp(Way::Out, sock, tuple, 52, FIN | ACK);
    story.tcp(Way::In, 0, tuple, 52, ACK);
    story.state_is(sock, tuple, TcpState::Closed { error: 0 });
    story.say(0, EventKind::SocketFreed { sock });
    story.wait(40);
    assert!(!story.only().inexact.samples_lost);
}

/// The owner was certain when the last socket sent its FIN.
#[test]
fn a_connection_without_a_socket_has_an_owner_as_certain_as_when_it_had_one() {
    for (lost_before, marked) in [(true, false), (false, true)] {
        let (mut story, tuple) = (idle_client(Config::default()), tuple(40000, 80));
        if lost_before {
            lose(&mut story, Harm::OWNERS);
            story.wait(2);
        }
        half_close(&mut story, CURL, CLIENT, tuple);
        if !lost_before {
            lose(&mut story, Harm::OWNERS);
        }
        story.tcp(Way::In, 0, tuple, 52, FIN | ACK);
        story.wait(6);
        assert_eq!(next_is(&mut story, CURL, Direction::Egress, (0, 1)).inexact.samples_lost, marked, "{lost_before}");
    }
}

#[test]
fn a_missed_accept_does_not_matter_to_an_idle_connection_that_was_accepted() {
    let (mut story, tuple) = (idle_server(), tuple(80, 40000));
    half_close(&mut story, SERVER, SERVER_SOCK, tuple);
    lose(&mut story, Harm::ACCEPTS);
    story.tcp(Way::In, 0, tuple, 52, FIN | ACK);
    story.wait(6);
    assert!(!next_is(&mut story, SERVER, Direction::Ingress, (0, 1)).inexact.samples_lost);
}

#[test]
fn an_idle_connection_keeps_its_name() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "before", "127.0.0.1");
    story.say(CURL, EventKind::SocketCreated { sock: CLIENT, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: CLIENT, remote: tuple(40000, 80).remote });
    story.tcp(Way::Out, CLIENT, tuple(40000, 80), 60, SYN);
    story.state_is(CLIENT, tuple(40000, 80), TcpState::Established);
    story.wait(3600);
    story.out.clear();
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "after", "127.0.0.1");
    story.tcp(Way::In, 0, tuple(40000, 80), 40, RST);
    story.wait(31);
    assert_eq!(domains(&mut story), [Some("before".to_owned())]);
}

#[test]
fn a_new_connection_between_the_same_ends_is_another() {
    let mut story = idle_client(Config::default());
    let tuple = tuple(40000, 80);
    story.say(SHELL, EventKind::SocketCreated { sock: 0xc, for_program: true });
    story.say(SHELL, EventKind::ConnectBegins { sock: 0xc, remote: tuple.remote });
    story.tcp(Way::Out, 0xc, tuple, 60, SYN);
    story.wait(31);
    let next = story.only();
    assert_eq!((owner(&next).0, next.complete), (SHELL, true));
}

#[test]
fn merged_segments_after_an_idle_time_are_counted() {
    let mut story = Story::new();
    let tuple = tuple(40000, 80);
    let mut segments = Segments::default();
    let mut sent = |story: &mut Story, received: u32, bytes: u32, flags: u8| {
        segments = Segments { sent: segments.sent + 1, received: segments.received + received };
        let size = Size { bytes, headers: 40 };
        let packet = Packet {
            tcp_flags: flags,
            segments: Some(segments),
            ..Packet::new(Way::Out, Transport::Tcp, CLIENT, tuple, size)
        };
        story.say(0, EventKind::Packet(packet));
    };
    story.say(CURL, EventKind::SocketCreated { sock: CLIENT, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: CLIENT, remote: tuple.remote });
    sent(&mut story, 0, 60, SYN);
    story.tcp(Way::In, 0, tuple, 60, SYN | ACK);
    story.state_is(CLIENT, tuple, TcpState::Established);
    sent(&mut story, 1, 40, ACK);
    story.wait(31);
    assert_eq!(story.only().received, Counters { packets: 1, bytes: 60 });
    // Three segments of 100 bytes that arrive as one packet.
    story.tcp(Way::In, 0, tuple, 340, ACK);
    sent(&mut story, 3, 40, ACK);
    story.wait(31);
    assert_eq!(story.only().received, Counters { packets: 3, bytes: 420 });
}

#[test]
fn connects_that_are_given_up_have_failed() {
    for (error, code) in [(None, 0), (Some(111), 111)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: CLIENT, for_program: true });
        story.say(CURL, EventKind::ConnectBegins { sock: CLIENT, remote: tuple(40000, 80).remote });
        story.tcp(Way::Out, CLIENT, tuple(40000, 80), 60, SYN);
        story.say(CURL, EventKind::ConnectReturns { result: 0 });
        if let Some(error) = error {
            story.say(0, EventKind::SocketError { sock: CLIENT, error });
        }
        story.say(CURL, EventKind::SocketReleased { sock: CLIENT });
        story.state_is(CLIENT, tuple(40000, 80), TcpState::Closed { error: 0 });
        story.wait(6);
        assert_eq!(story.only().outcome, Outcome::Failure(code));
    }
}

#[test]
fn an_error_is_not_the_outcome_of_a_conversation() {
    let mut story = idle_client(Config::default());
    story.tcp(Way::Out, CLIENT, tuple(40000, 80), 100, ACK);
    story.say(0, EventKind::SocketError { sock: CLIENT, error: 113 });
    story.wait(31);
    next_is(&mut story, CURL, Direction::Egress, (1, 0));
    // If a UDP socket has two peers, it is not known which one an error is about.
    story.say(CURL, EventKind::SocketCreated { sock: 0x51, for_program: true });
    story.udp(Way::Out, 0x51, tuple(5001, 7), 60);
    story.udp(Way::Out, 0x51, tuple(5001, 8), 60);
    story.say(0, EventKind::SocketError { sock: 0x51, error: 111 });
    story.wait(31);
    assert!(story.out.drain(..).all(|flow| flow.outcome == Outcome::Unknown));
}

/// A loss of everything, that began and ended just now.
fn loss(story: &Story) -> EventKind {
    EventKind::Lost { cause: LossCause::Ring { cpu: 0 }, count: 1, since: story.now, harm: Harm::ALL }
}

/// A packet that leaves, with the socket's counters.
fn segment(story: &mut Story, segments: Segments) {
    let size = Size { bytes: 140, headers: 40 };
    let packet = Packet::new(Way::Out, Transport::Tcp, CLIENT, tuple(40000, 80), size);
    story.say(0, EventKind::Packet(Packet { tcp_flags: ACK, segments: Some(segments), ..packet }));
}

#[test]
fn segments_that_were_lost_or_never_left_while_idle_are_not_the_next_flows() {
    type Meanwhile = fn(&mut Story);
    let meanwhile: [(Meanwhile, u64); 3] = [
        (|_| {}, 8),
        (|story| story.say(0, loss(story)), 1),
        (
            |story| {
                let never = Dropped {
                    sock: CLIENT,
                    transport: None,
                    other_protocol: false,
                    ends: None,
                    bytes: 0,
                    with_others: false,
                    may_have_arrived: false,
                };
                story.say(0, EventKind::Dropped(never));
            },
            1,
        ),
    ];
    for (meanwhile, expected) in meanwhile {
        let mut story = idle_client(Config::default());
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
    let harm = Feature::Accept.feeds();
    let cause = LossCause::Probes { feature: Feature::Accept };
    story.say(0, EventKind::Lost { cause, count: 1, since: story.now, harm });
    story.tcp(Way::In, 0, tuple(80, 40000), 52, ACK);
    story.tcp(Way::Out, SERVER_SOCK, tuple(80, 40000), 52, ACK);
    story.wait(31);
    let next = next_is(&mut story, SERVER, Direction::Ingress, (1, 1));
    assert!(!next.inexact.samples_lost);
}

#[test]
fn a_connection_whose_accept_was_missed_stays_marked_after_it_was_idle() {
    let mut story = Story::new();
    let tuple = tuple(80, 40000);
    story.say(SERVER, EventKind::SocketCreated { sock: 0x1, for_program: true });
    story.tcp(Way::In, 0, tuple, 60, SYN);
    story.tcp(Way::Out, 0x1, tuple, 60, SYN | ACK);
    story.tcp(Way::In, 0, tuple, 52, ACK);
    story.state_is(SERVER_SOCK, tuple, TcpState::Established);
    let cause = LossCause::Probes { feature: Feature::Accept };
    story.say(0, EventKind::Lost { cause, count: 1, since: story.now, harm: Feature::Accept.feeds() });
    story.wait(60);
    assert!(story.only().inexact.samples_lost);
    story.tcp(Way::Out, SERVER_SOCK, tuple, 52, ACK);
    story.wait(60);
    assert!(story.only().inexact.samples_lost);
}

#[test]
fn a_connect_that_failed_leaves_nothing_behind() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: CLIENT, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: CLIENT, remote: tuple(40000, 80).remote });
    story.say(CURL, EventKind::ConnectReturns { result: -101 });
    assert_eq!(story.only().outcome, Outcome::Failure(101));
    assert_eq!(story.state.stats().idle_connections_live, 0);
    story.say(CURL, EventKind::SocketReleased { sock: CLIENT });
    assert_eq!(story.state.stats().sockets_live, 0);
}

/// A connect of curl's whose SYN leaves, and is answered by an ICMP error while the call holds the socket.
fn connect_with_icmp_error(tuple: Tuple) -> Story {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: CLIENT, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: CLIENT, remote: tuple.remote });
    story.tcp(Way::Out, CLIENT, tuple, 60, SYN);
    story.say(0, EventKind::IcmpError { tuple, error: 111 });
    story.say(CURL, EventKind::ConnectReturns { result: 0 });
    story
}

#[test]
fn an_error_that_the_kernel_only_noted_is_why_a_connect_failed() {
    let tuple = tuple(40000, 80);
    let mut story = connect_with_icmp_error(tuple);
    story.say(CURL, EventKind::SocketReleased { sock: CLIENT });
    story.state_is(CLIENT, tuple, TcpState::Closed { error: 0 });
    story.wait(6);
    assert_eq!(story.only().outcome, Outcome::Failure(111));

    // The kernel drops the rejected SYN only after it has answered it. The monitor stops before the connect ends.
    let mut story = connect_with_icmp_error(tuple);
    let ends = Some((tuple.local, tuple.remote));
    let rejected = Dropped {
        sock: CLIENT,
        transport: Some(Transport::Tcp),
        ends,
        bytes: 60,
        with_others: false,
        may_have_arrived: false,
        other_protocol: false,
    };
    story.say(CURL, EventKind::Dropped(rejected));
    story.state.shutdown();
    story.wait(0);
    let flow = story.only();
    assert_eq!((flow.outcome, flow.sent.packets), (Outcome::Failure(111), 0));
}

#[test]
fn what_the_kernel_reports_later_counts_more_than_what_it_noted() {
    let tuple = tuple(40000, 80);
    let mut story = connect_with_icmp_error(tuple);
    story.tcp(Way::Out, CLIENT, tuple, 60, SYN);
    story.say(0, EventKind::SocketError { sock: CLIENT, error: 110 });
    story.state_is(CLIENT, tuple, TcpState::Closed { error: 110 });
    story.wait(6);
    assert_eq!(story.only().outcome, Outcome::Failure(110));

    let mut story = connect_with_icmp_error(tuple);
    story.tcp(Way::Out, CLIENT, tuple, 60, SYN);
    story.tcp(Way::In, 0, tuple, 60, SYN | ACK);
    story.state_is(CLIENT, tuple, TcpState::Established);
    story.say(CURL, EventKind::SocketReleased { sock: CLIENT });
    story.state_is(CLIENT, tuple, TcpState::Closed { error: 0 });
    story.wait(6);
    assert_eq!(story.only().outcome, Outcome::Success);
}

#[test]
fn an_icmp_error_is_not_the_outcome_of_another_connection() {
    let here = tuple(40000, 80);
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: CLIENT, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: CLIENT, remote: here.remote });
    story.tcp(Way::Out, CLIENT, here, 60, SYN);
    for other in [tuple(40001, 80), Tuple { net: NET + 1, ..here }] {
        story.say(0, EventKind::IcmpError { tuple: other, error: 111 });
    }
    story.say(CURL, EventKind::SocketReleased { sock: CLIENT });
    story.state_is(CLIENT, here, TcpState::Closed { error: 0 });
    story.wait(6);
    assert_eq!(story.only().outcome, Outcome::Failure(0));
}

/// A connection to the server's listener, up to the end of its handshake. The SYN-ACK is sent by the request's own
/// `struct request_sock`.
fn waiting_to_be_accepted(for_program: bool) -> Story {
    let (mut story, tuple) = (Story::new(), tuple(80, 40000));
    story.say(SERVER, EventKind::SocketCreated { sock: 0x1, for_program });
    story.tcp(Way::In, 0, tuple, 60, SYN);
    story.say(4_000_000, EventKind::ConnectionRequested { listener: 0x1, tuple });
    story.tcp(Way::Out, 0x77, tuple, 60, SYN | ACK);
    story.tcp(Way::In, 0, tuple, 52, ACK);
    story.state_is(SERVER_SOCK, tuple, TcpState::Established);
    story
}

#[test]
fn a_connection_that_nobody_accepts_is_the_listeners_owners() {
    let mut story = waiting_to_be_accepted(true);
    story.state_is(SERVER_SOCK, tuple(80, 40000), TcpState::Closed { error: 0 });
    story.wait(6);
    let flow = story.only();
    assert_eq!((owner(&flow).0, flow.direction), (SERVER, Direction::Ingress));
}

#[test]
fn who_accepts_is_the_owner_whoever_listens() {
    let mut story = waiting_to_be_accepted(true);
    story.say(SHELL, EventKind::Accepted { sock: SERVER_SOCK, tuple: tuple(80, 40000) });
    story.wait(31);
    assert_eq!(owner(&story.only()).0, SHELL);
}

#[test]
fn a_listener_of_the_kernels_own_does_not_say_whose_a_connection_is() {
    let mut story = waiting_to_be_accepted(false);
    // Over IPv6 the listener's own socket sends the SYN-ACK.
    let other = tuple(80, 40001);
    story.tcp(Way::In, 0, other, 60, SYN);
    story.tcp(Way::Out, 0x1, other, 60, SYN | ACK);
    story.tcp(Way::In, 0, other, 52, ACK);
    story.wait(31);
    let owners: Vec<_> = std::mem::take(&mut story.out).into_iter().map(|flow| flow.owner).collect();
    assert_eq!(owners, [Owner::Unknown, Owner::Unknown]);
}

#[test]
fn a_request_does_not_take_a_connection_from_its_owner() {
    let mut story = waiting_to_be_accepted(true);
    let tuple = tuple(80, 40000);
    story.say(SHELL, EventKind::Accepted { sock: SERVER_SOCK, tuple });
    story.say(4_000_000, EventKind::ConnectionRequested { listener: 0x1, tuple });
    story.wait(31);
    assert_eq!(owner(&story.only()).0, SHELL);
}

/// Before Linux 4.1 what the kernel answers without a socket has no namespace of its own.
#[test]
fn an_answer_without_socket_and_namespace_belongs_to_what_it_answers() {
    const OTHER_NET: u64 = 0xeeee_0000;
    let nowhere = |tuple: Tuple| Tuple { net: 0, ..tuple };
    let mut story = Story::new();
    let (client, server) = (tuple(40000, 80), tuple(80, 40000));
    let elsewhere = Tuple { net: OTHER_NET, ..tuple(41000, 81) };
    story.conversation(CURL, 0xa, client);
    story.conversation(CURL, 0xb, elsewhere);
    // In TIME_WAIT the other side's FIN is acknowledged.
    story.tcp(Way::In, 0, client, 40, FIN | ACK);
    story.tcp(Way::Out, 0, nowhere(client), 40, ACK);
    // A reset, with a packet of another namespace in between.
    story.tcp(Way::In, 0, elsewhere, 40, ACK);
    story.tcp(Way::In, 0, server, 60, SYN);
    story.tcp(Way::Out, 0, nowhere(elsewhere), 40, RST);
    story.wait(6);
    let mut told: Vec<_> = story.out.drain(..).map(|flow| (flow.net, flow.sent, flow.received)).collect();
    told.sort_by_key(|(net, ..)| *net);
    let of = |net| (net, counters(4, 240), counters(3, 600));
    assert_eq!(told, [of(OTHER_NET), of(NET)]);
    assert_eq!(story.state.stats().flows_without_socket, 0, "no flow of its own");
}

#[test]
fn an_answer_without_a_socket_stays_in_the_namespace_that_it_has() {
    let here = tuple(40000, 80);
    let there = Tuple { net: NET + 1, ..here };
    let mut story = Story::new();
    story.conversation(CURL, 0xa, here);
    story.conversation(CURL, 0xb, there);
    story.tcp(Way::In, 0, here, 40, FIN | ACK);
    story.tcp(Way::In, 0, there, 40, FIN | ACK);
    story.tcp(Way::Out, 0, here, 40, ACK);
    story.wait(6);
    let mut told: Vec<_> = story.out.iter().map(|flow| (flow.net, flow.sent.packets)).collect();
    told.sort_unstable();
    assert_eq!(told, [(here.net, 4), (there.net, 3)]);
}
