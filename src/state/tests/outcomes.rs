//! Outcomes of connections: success, or failure with an errno.

use super::super::calls::MAX_CONNECTING;
use super::*;
use crate::model::event::Dropped;

const CLIENT: u64 = 0xa;

#[test]
fn a_refused_connect_fails_with_its_reason() {
    let mut story = Story::new();
    let client = tuple(40000, 1);
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(0xa), remote: client.remote });
    story.tcp(PacketDirection::Outbound, 0xa, client, 60, SYN);
    story.say(CURL, EventKind::ConnectReturns { result: 0 });
    story.tcp(PacketDirection::Inbound, 0, client, 40, RST | ACK);
    story.state_is(0xa, client, TcpState::Closed { error: 0 });
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(0xa) });
    story.wait(6);
    let flow = story.only();
    assert_eq!((flow.outcome, owner(&flow).0), (Outcome::Failure(111), CURL));
}

#[test]
fn a_connect_that_was_answered_has_not_failed() {
    let mut story = Story::new();
    story.tcp(PacketDirection::Outbound, CLIENT, tuple(40000, 80), 60, SYN);
    story.tcp(PacketDirection::Inbound, 0, tuple(40000, 80), 60, SYN | ACK);
    story.wait(31);
    assert_eq!(story.only().outcome, Outcome::Unknown, "whether it was established was not seen");
}

/// Its SYN was not seen, so an answer may not have been seen either.
#[test]
fn a_connect_that_is_seen_from_its_middle_has_not_failed_for_lack_of_an_answer() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(CLIENT), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(CLIENT), remote: tuple(40000, 80).remote });
    story.tcp(PacketDirection::Outbound, CLIENT, tuple(40000, 80), 100, ACK);
    story.state_is(CLIENT, tuple(40000, 80), TcpState::Closed { error: 0 });
    story.wait(6);
    let flow = story.only();
    assert_eq!((flow.direction, flow.outcome), (Direction::Egress, Outcome::Unknown));
}

#[test]
fn a_connect_that_sends_nothing_is_still_a_flow() {
    let mut story = Story::new();
    let remote = Endpoint::new(Ipv6Addr::LOCALHOST, 80);
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(0xa), remote });
    story.say(CURL, EventKind::ConnectReturns { result: -101 });
    let flow = story.only();
    assert_eq!((flow.outcome, flow.remote, flow.sent), (Outcome::Failure(101), remote, counters(0, 0)));
    assert_eq!(owner(&flow).0, CURL);
}

#[test]
fn a_connect_that_finds_no_room_is_counted_and_makes_no_flow() {
    let mut story = Story::new();
    let say =
        |story: &mut Story, tid, kind| story.state.ingest(&Event { time: monotonic(story.now), pid: CURL, tid, kind });
    let threads = 1000..=1000 + MAX_CONNECTING as u32;
    for tid in threads.clone() {
        let remote = tuple(40000, 80).remote;
        say(&mut story, tid, EventKind::ConnectBegins { sock: sock_at(CLIENT), remote });
    }
    assert_eq!(story.state.stats().pending_connects_refused, 1);
    say(&mut story, *threads.end(), EventKind::ConnectReturns { result: -101 });
    assert_eq!(story.state.finished().count(), 0);
    // A thread with a pending connect begins another one, which takes its place.
    let other = Endpoint::new(Ipv4Addr::LOCALHOST, 81);
    say(&mut story, *threads.start(), EventKind::ConnectBegins { sock: sock_at(CLIENT), remote: other });
    say(&mut story, *threads.start(), EventKind::ConnectReturns { result: -101 });
    assert_eq!(story.state.finished().map(|flow| flow.remote).collect::<Vec<_>>(), [other]);
}

#[test]
fn a_connect_that_failed_leaves_nothing_behind() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(CLIENT), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(CLIENT), remote: tuple(40000, 80).remote });
    story.say(CURL, EventKind::ConnectReturns { result: -101 });
    assert_eq!(story.only().outcome, Outcome::Failure(101));
    assert_eq!(story.state.stats().idle_connections_live, 0);
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(CLIENT) });
    assert_eq!(story.state.stats().sockets_live, 0);
}

#[test]
fn connects_that_are_given_up_have_failed() {
    for (error, code) in [(None, 0), (Some(111), 111)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(CLIENT), user: SocketUser::Program });
        story.say(CURL, EventKind::ConnectBegins { sock: sock_at(CLIENT), remote: tuple(40000, 80).remote });
        story.tcp(PacketDirection::Outbound, CLIENT, tuple(40000, 80), 60, SYN);
        story.say(CURL, EventKind::ConnectReturns { result: 0 });
        if let Some(error) = error {
            story.say(0, EventKind::SocketError { sock: sock_at(CLIENT), error });
        }
        story.say(CURL, EventKind::SocketReleased { sock: sock_at(CLIENT) });
        story.state_is(CLIENT, tuple(40000, 80), TcpState::Closed { error: 0 });
        story.wait(6);
        assert_eq!(story.only().outcome, Outcome::Failure(code));
    }
}

/// A connect of curl's whose SYN leaves, and is answered by an ICMP error while the call holds the socket.
fn connect_with_icmp_error(tuple: Tuple) -> Story {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(CLIENT), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(CLIENT), remote: tuple.remote });
    story.tcp(PacketDirection::Outbound, CLIENT, tuple, 60, SYN);
    story.say(0, EventKind::IcmpError { tuple, error: 111 });
    story.say(CURL, EventKind::ConnectReturns { result: 0 });
    story
}

#[test]
fn an_error_that_the_kernel_only_noted_is_why_a_connect_failed() {
    let tuple = tuple(40000, 80);
    let mut story = connect_with_icmp_error(tuple);
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(CLIENT) });
    story.state_is(CLIENT, tuple, TcpState::Closed { error: 0 });
    story.wait(6);
    assert_eq!(story.only().outcome, Outcome::Failure(111));

    // The kernel drops the rejected SYN only after it has answered it. The monitor stops before the connect ends.
    let mut story = connect_with_icmp_error(tuple);
    let ends = Some((tuple.local, tuple.remote));
    let rejected = Dropped {
        sock: SockAddress::new(CLIENT),
        transport: Some(Transport::Tcp),
        ends,
        bytes: 60,
        with_others: false,
        may_have_arrived: false,
        may_be_drivers: false,
        other_protocol: false,
    };
    story.say(CURL, EventKind::Dropped(rejected));
    story.state.shutdown();
    story.wait(0);
    let flow = story.only();
    assert_eq!((flow.outcome, flow.sent.packets), (Outcome::Failure(111), 0));
}

#[test]
fn a_reported_error_takes_precedence_over_a_noted_one() {
    let tuple = tuple(40000, 80);
    let mut story = connect_with_icmp_error(tuple);
    story.tcp(PacketDirection::Outbound, CLIENT, tuple, 60, SYN);
    story.say(0, EventKind::SocketError { sock: sock_at(CLIENT), error: 110 });
    story.state_is(CLIENT, tuple, TcpState::Closed { error: 110 });
    story.wait(6);
    assert_eq!(story.only().outcome, Outcome::Failure(110));

    let mut story = connect_with_icmp_error(tuple);
    story.tcp(PacketDirection::Outbound, CLIENT, tuple, 60, SYN);
    story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN | ACK);
    story.state_is(CLIENT, tuple, TcpState::Established);
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(CLIENT) });
    story.state_is(CLIENT, tuple, TcpState::Closed { error: 0 });
    story.wait(6);
    assert_eq!(story.only().outcome, Outcome::Success);
}

#[test]
fn an_icmp_error_is_not_the_outcome_of_another_connection() {
    let here = tuple(40000, 80);
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(CLIENT), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(CLIENT), remote: here.remote });
    story.tcp(PacketDirection::Outbound, CLIENT, here, 60, SYN);
    for other in [tuple(40001, 80), Tuple { net: OTHER_NET, ..here }] {
        story.say(0, EventKind::IcmpError { tuple: other, error: 111 });
    }
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(CLIENT) });
    story.state_is(CLIENT, here, TcpState::Closed { error: 0 });
    story.wait(6);
    assert_eq!(story.only().outcome, Outcome::Failure(0));
}

/// Its beginning was not seen, so nothing but its end shows its outcome.
#[test]
fn a_connection_that_ends_by_an_error_has_failed() {
    for (error, outcome) in [(110, Outcome::Failure(110)), (0, Outcome::Unknown)] {
        let mut story = Story::new();
        story.tcp(PacketDirection::Outbound, CLIENT, tuple(40000, 80), 100, ACK);
        story.state_is(CLIENT, tuple(40000, 80), TcpState::Closed { error });
        story.wait(6);
        assert_eq!(story.only().outcome, outcome);
    }
}
