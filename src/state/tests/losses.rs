//! Which flows a loss may have affected, and which it has not.

use super::*;
use crate::model::feature::Feature;
use crate::model::loss::{LossCause, LostFacts};
use crate::model::testing::{monotonic, since_boot, sock_at};

/// A full ring lost samples within the last second.
fn ring(story: &Story) -> EventKind {
    EventKind::Lost {
        cause: LossCause::Ring { cpu: 3 },
        count: 7,
        since: monotonic(story.now - SECOND),
        facts: LostFacts::ALL,
    }
}

/// A probe missed a hit within the last second.
fn missed(story: &Story, feature: Feature) -> EventKind {
    let facts = feature.facts_lost_by_misses();
    EventKind::Lost { cause: LossCause::Probes { feature }, count: 1, since: monotonic(story.now - SECOND), facts }
}

/// `/proc` confirms every process that it is asked about.
fn confirm(story: &mut Story) {
    while let Some(process) = story.state.next_wanted() {
        let found = FoundProcess { start: process.start, ..FoundProcess::default() };
        story.state.learn(&process, found);
    }
}

fn closed(story: &mut Story, sock: u64, tuple: Tuple) {
    story.state_is(sock, tuple, TcpState::Closed { error: 0 });
}

#[test]
fn a_full_ring_marks_the_flows_that_were_open() {
    let mut story = Story::new();
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.wait(6);
    assert!(!story.only().inexact.samples_lost);
    story.conversation(CURL, 0xb, tuple(40001, 80));
    story.say(0, ring(&story));
    story.wait(6);
    assert!(story.only().inexact.samples_lost);
    story.conversation(CURL, 0xc, tuple(40002, 80));
    confirm(&mut story);
    story.wait(6);
    assert_eq!(story.only().inexact, Inexact::default());
    assert_eq!(story.state.stats().samples_lost, 7);
    let losses: Vec<_> = story.state.losses().map(|loss| (loss.cause, loss.count)).collect();
    assert_eq!(losses, [(LossCause::Ring { cpu: 3 }, 7)]);
}

#[test]
fn a_flow_that_was_over_before_is_not_marked() {
    let mut story = Story::new();
    story.conversation(CURL, 0xa, tuple(40000, 80));
    closed(&mut story, 0xa, tuple(40000, 80));
    story.wait(2);
    story.say(0, ring(&story));
    story.wait(6);
    assert_eq!(story.only().inexact, Inexact::default());
}

#[test]
fn a_udp_flow_that_begins_after_a_loss_may_lack_its_beginning() {
    // The query is lost and the answer is seen: this must not look as if the other side had begun.
    for (made_before, marked) in [(true, true), (false, false)] {
        let mut story = Story::new();
        let created = EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program };
        if made_before {
            story.say(CURL, created.clone());
        }
        story.say(0, ring(&story));
        if !made_before {
            story.say(CURL, created);
        }
        story.udp(PacketDirection::Inbound, 0xa, tuple(40000, 53), 100);
        confirm(&mut story);
        story.wait(31);
        let flow = story.only();
        assert_eq!((flow.inexact.samples_lost, flow.complete), (marked, !marked));
        assert_eq!(flow.direction, if marked { Direction::Unknown } else { Direction::Ingress });
    }
}

#[test]
fn a_connection_that_is_seen_from_its_middle_may_lack_its_beginning_for_a_while() {
    for (later, marked) in [(5, true), (31, false)] {
        let mut story = Story::new();
        story.say(0, ring(&story));
        story.wait(later);
        story.say(CURL, exec("/usr/bin/curl", b"curl\0"));
        story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 100, ACK);
        story.wait(31);
        assert_eq!(story.only().inexact.samples_lost, marked, "{later} s after");
    }
}

#[test]
fn a_miss_marks_only_flows_that_need_its_probe() {
    // For each probe: whether a connection that ends, one that stays open, and datagrams are marked.
    for (feature, marked) in [
        (Feature::TcpIpv4In, [true, true, false]),
        (Feature::Ipv4Out, [true, true, true]),
        (Feature::UdpIpv4In, [false, false, true]),
        (Feature::TcpIpv6In, [false, false, false]),
        (Feature::TcpState, [false, true, true]),
        (Feature::SocketFree, [false, false, false]),
        (Feature::SocketCreate, [false, false, false]),
        (Feature::AcceptResult, [false, false, false]),
    ] {
        let mut story = Story::new();
        story.conversation(CURL, 0xa, tuple(40000, 80));
        story.conversation(CURL, 0xb, tuple(40001, 80));
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xc), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, 0xc, tuple(40002, 53), 100);
        story.say(0, missed(&story, feature));
        closed(&mut story, 0xa, tuple(40000, 80));
        story.wait(31);
        story.out.sort_by_key(|flow| flow.local.port);
        let lossy: Vec<_> = story.out.iter().map(|flow| flow.inexact.samples_lost).collect();
        assert_eq!(lossy, marked, "{feature}");
    }
}

#[test]
fn a_missed_accept_marks_the_connections_without_a_seen_accept() {
    let mut story = Story::new();
    story.say(SERVER, EventKind::SocketCreated { sock: sock_at(0x1), user: SocketUser::Program });
    // The call may have begun long before the connection.
    story.say(0, missed(&story, Feature::Accept));
    story.wait(31);
    for (port, is_seen) in [(50000, true), (50001, false)] {
        let served = tuple(80, port);
        story.tcp(PacketDirection::Inbound, 0, served, 60, SYN);
        story.tcp(PacketDirection::Outbound, 0x1, served, 60, SYN | ACK);
        story.tcp(PacketDirection::Inbound, 0, served, 52, ACK);
        story.state_is(port.into(), served, TcpState::Established);
        if is_seen {
            story.say(SERVER, EventKind::Accepted { sock: sock_at(port.into()), tuple: served });
        }
        story.tcp(PacketDirection::Outbound, port.into(), served, 100, ACK);
        closed(&mut story, port.into(), served);
    }
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.wait(31);
    story.out.sort_by_key(|flow| flow.remote.port);
    let lossy: Vec<_> = story.out.iter().map(|flow| (flow.remote.port, flow.inexact.samples_lost)).collect();
    assert_eq!(lossy, [(80, false), (50000, false), (50001, true)]);
}

#[test]
fn a_missed_accept_marks_no_datagrams() {
    let mut story = Story::new();
    let (local, transport) = (tuple(53, 0).local, Transport::Udp);
    let server = PreexistingSocket { namespace: 1, transport, local, remote: None, pid: SERVER };
    story.state.add_preexisting_socket(&server);
    story.udp(PacketDirection::Inbound, 0x7, tuple(53, 40000), 60);
    story.say(0, missed(&story, Feature::Accept));
    story.wait(31);
    let flow = story.only();
    assert_eq!((owner(&flow).0, flow.inexact.samples_lost), (SERVER, false));
}

#[test]
fn a_miss_marks_no_flow_that_was_over_before_or_that_begins_after_it() {
    let mut story = Story::new();
    story.conversation(CURL, 0xa, tuple(40000, 80));
    closed(&mut story, 0xa, tuple(40000, 80));
    story.wait(2);
    story.say(0, missed(&story, Feature::Ipv4Out));
    story.conversation(CURL, 0xb, tuple(40001, 80));
    story.wait(6);
    assert!(story.out.iter().all(|flow| flow.inexact == Inexact::default()), "{:#?}", story.out);
    assert_eq!(story.out.len(), 2);
}

#[test]
fn after_a_loss_a_udp_socket_with_the_same_port_keeps_its_owner() {
    for (port, known) in [(40000, true), (40001, false)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 100);
        story.wait(31);
        story.only();
        // Its end, and the creation of another socket at its address, may be among the lost events.
        story.say(0, ring(&story));
        story.wait(31);
        story.udp(PacketDirection::Outbound, 0xa, tuple(port, 53), 100);
        confirm(&mut story);
        story.wait(31);
        let flow = story.only();
        assert_eq!(flow.owner == Owner::Unknown, !known, "{:?}", flow.owner);
        assert_eq!(flow.inexact, Inexact::default());
    }
}

#[test]
fn a_socket_without_a_known_port_stays_in_doubt() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.say(0, ring(&story));
    story.wait(31);
    for _ in 0..2 {
        story.udp(PacketDirection::Outbound, 0xa, tuple(40000, 53), 100);
        confirm(&mut story);
        story.wait(31);
        assert!(story.only().inexact.samples_lost);
    }
}

#[test]
fn after_a_loss_the_connecting_process_owns_the_socket() {
    for (lost, expected) in [(true, SHELL), (false, CURL)] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        if lost {
            story.say(0, ring(&story));
        }
        let tuple = tuple(40000, 80);
        story.say(SHELL, EventKind::ConnectBegins { sock: sock_at(0xa), remote: tuple.remote });
        story.tcp(PacketDirection::Outbound, 0xa, tuple, 60, SYN);
        confirm(&mut story);
        story.wait(31);
        let flow = story.only();
        assert_eq!((owner(&flow).0, flow.inexact.samples_lost), (expected, false));
    }
}

#[test]
fn a_program_from_before_a_loss_is_in_doubt_until_it_is_confirmed() {
    for confirmed in [true, false] {
        let mut story = Story::new();
        story.say(0, ring(&story));
        story.conversation(CURL, 0xa, tuple(40000, 80));
        // Its child is in doubt as well; a program that starts now is not.
        story.say(CURL, EventKind::Fork(Fork { child: 300, start: Some(since_boot(9)) }));
        story.conversation(300, 0xb, tuple(40001, 80));
        story.say(CURL, EventKind::Fork(Fork { child: 301, start: Some(since_boot(10)) }));
        story.say(301, exec("/usr/bin/wget", b"wget\0"));
        story.conversation(301, 0xc, tuple(40002, 80));
        if confirmed {
            confirm(&mut story);
        }
        story.wait(6);
        story.out.sort_by_key(|flow| flow.local.port);
        let lossy: Vec<_> = story.out.iter().map(|flow| flow.inexact.samples_lost).collect();
        assert_eq!(lossy, [!confirmed, !confirmed, false]);
    }
}

#[test]
fn a_socket_at_the_address_of_a_closed_one_is_another_though_the_end_was_missed() {
    let mut story = Story::new();
    let (old, new) = (tuple(40000, 80), tuple(8080, 50000));
    story.conversation(CURL, 0xa, old);
    // No process accepts it.
    story.say(SERVER, EventKind::SocketCreated { sock: sock_at(0x1), user: SocketUser::Program });
    story.tcp(PacketDirection::Inbound, 0, new, 60, SYN);
    story.tcp(PacketDirection::Outbound, 0x1, new, 60, SYN | ACK);
    story.tcp(PacketDirection::Inbound, 0, new, 52, ACK);
    story.state_is(0xa, new, TcpState::Established);
    story.wait(31);
    story.out.sort_by_key(|flow| flow.local.port);
    let [served, _] = &story.out[..] else { panic!("{:#?}", story.out) };
    assert_eq!(owner(served), (SERVER, "httpd".into()));
    assert_eq!(served.direction, Direction::Ingress);
}

#[test]
fn the_result_of_a_connect_is_not_taken_for_that_of_one_that_was_lost() {
    for lost in [true, false] {
        let mut story = Story::new();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
        story.say(CURL, EventKind::ConnectBegins { sock: sock_at(0xa), remote: tuple(0, 80).remote });
        if lost {
            story.say(0, missed(&story, Feature::ConnectIpv4Result));
        }
        story.say(CURL, EventKind::ConnectReturns { result: -101 });
        assert_eq!(story.out.len(), usize::from(!lost));
    }
}
