//! The kernel's own counts: which flow they belong to, and when they are asked for.

use super::counting::counted;
use super::*;
use crate::model::event::Dropped;
use crate::model::totals::{TcpTotals, Totals};

const SOCK: u64 = 0xa;

/// A state machine whose source counts, and a socket of curl's.
fn story(config: StateConfig) -> Story {
    let mut story = Story::with(config);
    story.state.set_capabilities(SourceCapabilities { totals: true, ..CAPABILITIES });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(SOCK), user: SocketUser::Program });
    story
}

/// The kernel has counted `sent` and `received` datagrams of 100 bytes between these ends, the last one now.
fn totals(story: &Story, tuple: Tuple, sent: u64, received: u64) -> Totals {
    let Tuple { local, remote, .. } = tuple;
    let (sent, received) = (counters(sent, 100 * sent), counters(received, 100 * received));
    let (since, last) = (monotonic(1), monotonic(story.now));
    let (short_datagrams, nonlinear_datagrams) = (false, false);
    Totals {
        sock: sock_at(SOCK),
        transport: Transport::Udp,
        local,
        remote,
        since,
        sent,
        received,
        last,
        short_datagrams,
        nonlinear_datagrams,
        tcp: None,
    }
}

fn report(story: &mut Story, totals: Totals) {
    story.say(0, EventKind::Totals(Box::new(totals)));
}

/// Answers the next question with `totals`, read now.
fn answer(story: &mut Story, totals: Option<Totals>) {
    let question = story.state.next_question().expect("a question");
    story.state.answer(question, totals, monotonic(story.now));
    story.state.check();
    story.out.extend(story.state.finished());
}

#[test]
fn a_flow_lives_as_long_as_the_kernel_counts() {
    let (mut story, tuple) = (story(StateConfig::default()), tuple(40000, 53));
    story.udp(PacketDirection::Outbound, SOCK, tuple, 100);
    story.wait(20);
    let at_twenty = totals(&story, tuple, 5, 0);
    story.wait(11);
    answer(&mut story, Some(at_twenty));
    assert!(story.state.next_question().is_none() && story.out.is_empty());
    story.wait(20);
    answer(&mut story, Some(at_twenty));
    let flow = story.only();
    assert_eq!((flow.sent, flow.reason, flow.end), (counters(6, 600), Reason::Inactive, at_twenty.last));
    assert_eq!(story.state.stats().packets_counted, 5);
}

#[test]
fn an_answer_that_knows_of_later_packets_waits_for_them() {
    let (mut story, tuple) = (story(StateConfig::default()), tuple(40000, 53));
    story.udp(PacketDirection::Outbound, SOCK, tuple, 100);
    story.wait(31);
    story.now += 50_000_000;
    let later = totals(&story, tuple, 3, 0);
    answer(&mut story, Some(later));
    assert_eq!(story.state.stats().packets_counted, 0, "not yet");
    story.wait(1);
    assert_eq!(story.state.stats().packets_counted, 3);
    assert!(story.out.is_empty());
}

/// The kernel samples the packet because of the pause before it, so the answer would show no packets.
#[test]
fn a_packet_after_a_flow_was_due_begins_another() {
    let (mut story, tuple) = (story(StateConfig::default()), tuple(40000, 53));
    story.udp(PacketDirection::Outbound, SOCK, tuple, 100);
    story.wait(31);
    story.udp(PacketDirection::Outbound, SOCK, tuple, 100);
    assert_eq!((story.only().reason, story.state.stats().flows_started), (Reason::Inactive, 2));
}

#[test]
fn interim_reports_have_what_the_kernel_has_counted() {
    let interval = Some(Duration::from_secs(10));
    let mut story = story(StateConfig { flow_report_interval: interval, ..StateConfig::default() });
    let tuple = tuple(40000, 53);
    story.udp(PacketDirection::Outbound, SOCK, tuple, 100);
    story.wait(5);
    let counted = totals(&story, tuple, 7, 1);
    story.wait(6);
    answer(&mut story, Some(counted));
    let flow = story.only();
    assert_eq!((flow.reason, flow.sent, flow.received), (Reason::Interim, counters(8, 800), counters(1, 100)));
    assert_eq!(flow.outcome, Outcome::Success);
}

/// An interim report, the end of an inactive flow and its next flow never count a packet twice.
#[test]
fn counts_of_a_socket_are_shared_by_its_flows() {
    let (mut story, tuple) = (story(StateConfig::default()), tuple(40000, 53));
    story.udp(PacketDirection::Outbound, SOCK, tuple, 100);
    let first = totals(&story, tuple, 2, 0);
    story.wait(31);
    answer(&mut story, Some(first));
    assert_eq!(story.only().sent, counters(3, 300));
    report(&mut story, first);
    story.udp(PacketDirection::Outbound, SOCK, tuple, 100);
    let second = totals(&story, tuple, 6, 0);
    report(&mut story, second);
    report(&mut story, first);
    story.say(0, EventKind::SocketFreed { sock: sock_at(SOCK) });
    story.wait(6);
    assert!(story.state.next_question().is_none(), "the last counts of a freed socket have come");
    assert_eq!(story.only().sent, counters(5, 500));
}

#[test]
fn an_answer_about_a_socket_that_was_freed_meanwhile_is_not_used() {
    let (mut story, tuple) = (story(StateConfig::default()), tuple(40000, 53));
    story.udp(PacketDirection::Outbound, SOCK, tuple, 100);
    story.wait(31);
    story.now += 1000;
    let question = story.state.next_question().unwrap();
    let last = totals(&story, tuple, 2, 0);
    story.state.answer(question, Some(last), monotonic(story.now + 1_000_000));
    report(&mut story, last);
    story.say(0, EventKind::SocketFreed { sock: sock_at(SOCK) });
    story.wait(6);
    assert_eq!(story.only().sent, counters(3, 300), "the answer is about the freed socket");
}

#[test]
fn counts_without_a_flow_begin_one_if_their_socket_is_known() {
    let config = StateConfig { max_flows: 1, ..StateConfig::default() };
    let (mut story, one, other) = (story(config), tuple(40000, 53), tuple(40000, 54));
    story.udp(PacketDirection::Outbound, SOCK, one, 100);
    let first = totals(&story, one, 2, 0);
    story.udp(PacketDirection::Outbound, SOCK, other, 100);
    story.wait(1);
    answer(&mut story, Some(first));
    let evicted = story.only();
    assert_eq!((evicted.reason, evicted.sent), (Reason::Evicted, counters(3, 300)));
    let more = totals(&story, one, 5, 0);
    report(&mut story, more);
    story.state.shutdown();
    story.out.extend(story.state.finished());
    let flow = story.out.iter().find(|flow| flow.remote == one.remote).unwrap();
    assert_eq!((flow.sent, flow.complete), (counters(3, 300), false));
}

#[test]
fn counts_without_a_flow_are_packets_without_a_flow_once_the_socket_is_freed() {
    let mut story = story(StateConfig::default());
    let unknown = Totals { sock: sock_at(0xb), transport: Transport::Tcp, ..totals(&story, tuple(40000, 80), 4, 1) };
    report(&mut story, unknown);
    assert_eq!(story.state.stats().packets_without_flow, 0, "its flow may be known later");
    story.say(0, EventKind::SocketFreed { sock: sock_at(0xb) });
    assert_eq!(story.state.stats().packets_without_flow, 5);
}

/// There was no room for the socket at first.
#[test]
fn later_counts_contain_those_that_have_waited() {
    let (mut story, tuple) = (story(StateConfig { max_sockets: 1, ..StateConfig::default() }), tuple(40000, 53));
    let counted = |story: &Story, sent| Totals { sock: sock_at(0xb), ..totals(story, tuple, sent, 0) };
    let first = counted(&story, 2);
    report(&mut story, first);
    story.say(0, EventKind::SocketFreed { sock: sock_at(SOCK) });
    let second = counted(&story, 5);
    report(&mut story, second);
    story.state.shutdown();
    story.out.extend(story.state.finished());
    assert_eq!(story.only().sent, counters(5, 500));
}

/// Packets that arrived before the connection's socket was known were counted for that socket.
#[test]
fn counts_wait_for_the_packet_that_shows_their_flow() {
    let (mut story, tuple) = (story(StateConfig::default()), tuple(40000, 80));
    story.tcp(PacketDirection::Inbound, 0, tuple, 100, ACK);
    let tcp = Some(TcpTotals { received_headers: 40, received_range: (40, 40), ..TcpTotals::default() });
    let waiting = Totals { transport: Transport::Tcp, tcp, ..totals(&story, tuple, 0, 2) };
    report(&mut story, waiting);
    // Three packets were seen, so none of the nine that the socket has received is missing.
    story.say(CURL, counted(PacketDirection::Outbound, tuple, 40, 40, (ACK, 9, 5)));
    story.say(CURL, counted(PacketDirection::Outbound, tuple, 40, 40, (ACK | FIN, 10, 6)));
    story.state.shutdown();
    story.out.extend(story.state.finished());
    let flow = story.only();
    assert_eq!((flow.sent, flow.received), (counters(2, 80), counters(4, 100 + 200 + 40)));
}

/// The counters of a closing socket are compared with what was counted until then, which is known only when it is freed.
#[test]
fn a_closing_socket_is_compared_with_all_that_was_counted() {
    let (mut story, tuple) = (story(StateConfig::default()), tuple(40000, 80));
    story.say(CURL, counted(PacketDirection::Outbound, tuple, 60, 60, (SYN, 0, 1)));
    story.say(0, counted(PacketDirection::Inbound, tuple, 60, 60, (SYN | ACK, 0, 0)));
    story.say(CURL, counted(PacketDirection::Outbound, tuple, 52, 52, (ACK, 1, 2)));
    let tcp = Some(TcpTotals { received_headers: 52, received_range: (52, 52), ..TcpTotals::default() });
    let last = Totals { transport: Transport::Tcp, tcp, ..totals(&story, tuple, 0, 2) };
    // Two packets came, one of them with two segments.
    let segments = Some(Segments { received: 4, sent: 2 });
    let state = TcpState::Closed { error: 0 };
    story.say(0, EventKind::TcpState { sock: sock_at(SOCK), tuple, state, segments });
    story.say(0, counted(PacketDirection::Inbound, tuple, 52, 52, (ACK, 0, 0)));
    report(&mut story, last);
    story.say(0, EventKind::SocketFreed { sock: sock_at(SOCK) });
    story.wait(6);
    assert_eq!(story.only().received, counters(5, 60 + 52 + 200 + 52));
}

#[test]
fn a_dropped_packet_is_subtracted_from_what_the_kernel_has_counted() {
    let (mut story, tuple) = (story(StateConfig::default()), tuple(40000, 53));
    story.udp(PacketDirection::Outbound, SOCK, tuple, 50);
    let (transport, ends) = (Some(Transport::Udp), Some((tuple.local, tuple.remote)));
    story.say(
        0,
        EventKind::Dropped(Dropped {
            sock: SockAddress::new(SOCK),
            transport,
            other_protocol: false,
            ends,
            bytes: 100,
            with_others: false,
            may_have_arrived: false,
            may_be_drivers: false,
        }),
    );
    let counted = totals(&story, tuple, 3, 0);
    story.wait(1);
    answer(&mut story, Some(counted));
    story.state.shutdown();
    story.out.extend(story.state.finished());
    let flow = story.only();
    assert_eq!((flow.sent, flow.dropped, flow.inexact), (counters(3, 250), counters(1, 100), Inexact::default()));
}

/// The sample of a FIN comes late, after the kernel's count that has taken it into account.
#[test]
fn a_late_sample_is_not_counted_twice() {
    let (mut story, tuple) = (story(StateConfig::default()), tuple(40000, 80));
    story.say(CURL, counted(PacketDirection::Outbound, tuple, 60, 60, (SYN, 0, 1)));
    story.say(0, counted(PacketDirection::Inbound, tuple, 60, 60, (SYN | ACK, 0, 0)));
    story.say(CURL, counted(PacketDirection::Outbound, tuple, 52, 52, (ACK, 1, 2)));
    let sent = |segs_out, headers| TcpTotals {
        segs_out: Some(segs_out),
        sent_bytes: 52,
        sent_headers: headers,
        sent_segments: 1,
        ..TcpTotals::default()
    };
    // Two packets were counted; the fifth segment is the FIN.
    let tcp = Some(sent(5, 52));
    let counted_two = Totals { sent: counters(2, 104), transport: Transport::Tcp, tcp, ..totals(&story, tuple, 0, 0) };
    report(&mut story, counted_two);
    story.say(CURL, counted(PacketDirection::Outbound, tuple, 52, 52, (FIN | ACK, 1, 5)));
    story.state.shutdown();
    story.out.extend(story.state.finished());
    assert_eq!(story.only().sent, counters(5, 60 + 4 * 52));
}

#[test]
fn counts_of_an_earlier_socket_at_the_address_are_not_used() {
    let (mut story, tuple) = (story(StateConfig::default()), tuple(40000, 53));
    story.udp(PacketDirection::Outbound, SOCK, tuple, 100);
    let new = Totals { since: monotonic(story.now), ..totals(&story, tuple, 1, 0) };
    report(&mut story, new);
    let old = totals(&story, tuple, 9, 9);
    report(&mut story, old);
    story.state.shutdown();
    story.out.extend(story.state.finished());
    assert_eq!((story.only().sent, story.state.stats().totals_outdated), (counters(2, 200), 1));
}

#[test]
fn counts_that_the_filter_rejects_are_in_no_flow() {
    let filter = Filter { exclude_loopback: true, ..Default::default() };
    let mut story = story(StateConfig { filter, ..StateConfig::default() });
    let rejected = totals(&story, tuple(40000, 53), 3, 1);
    report(&mut story, rejected);
    let stats = story.state.stats();
    assert_eq!((stats.packets_filtered, stats.packets_counted, stats.flows_started), (4, 0, 0));
}

#[test]
fn counts_that_find_no_room_mark_their_flow() {
    let config = StateConfig { max_flows: 2, max_sockets: 2, ..StateConfig::default() };
    let mut story = story(config);
    for port in 1..=4 {
        let one = totals(&story, tuple(port, 53), 0, 0);
        report(&mut story, one);
    }
    story.udp(PacketDirection::Outbound, SOCK, tuple(5, 53), 100);
    let refused = totals(&story, tuple(5, 53), 3, 0);
    report(&mut story, refused);
    assert_eq!(story.state.stats().totals_refused, 1);
    story.state.shutdown();
    story.out.extend(story.state.finished());
    let flow = story.only();
    assert_eq!((flow.sent, flow.inexact.samples_lost), (counters(1, 100), true));
}

/// It has no packets, but this host dropped none.
#[test]
fn a_flow_that_begins_with_counts_without_room_has_not_failed() {
    let mut story = story(StateConfig { max_flows: 1, max_sockets: 1, ..StateConfig::default() });
    for port in 1..=2 {
        let one = totals(&story, tuple(port, 53), 0, 0);
        report(&mut story, one);
    }
    let refused = totals(&story, tuple(3, 53), 3, 0);
    report(&mut story, refused);
    story.state.shutdown();
    story.out.extend(story.state.finished());
    let flow = story.only();
    assert_eq!((flow.sent, flow.inexact.samples_lost, flow.outcome), (counters(0, 0), true, Outcome::Unknown));
}
