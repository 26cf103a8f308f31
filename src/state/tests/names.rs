//! DNS names of flows.

use super::*;
use crate::state::unclaimed::MAX_ADDRESSES;

pub(super) fn answer(story: &mut Story, client: Tuple, name: &str, address: &str) {
    answer_from(story, story.now, client, name, address);
}

/// An answer that came at `time` and is reported only now.
pub(super) fn answer_from(story: &mut Story, time: u64, client: Tuple, name: &str, address: &str) {
    let learned = socktrail_dns::Lookup {
        time,
        query_time: time,
        client: client.local,
        server: client.remote,
        transport: socktrail_dns::Transport::Udp,
        interface: 1,
        id: time as u16,
        name: name.into(),
        query_type: socktrail_dns::QueryType::A,
        addresses: [socktrail_dns::Address { ip: address.parse().unwrap(), ttl: 300 }].into(),
    };
    story.say(0, EventKind::Name(Arc::new(learned)));
}

/// A process that sends its queries from port 5001.
pub(super) fn asker(story: &mut Story, pid: u32) {
    story.say(pid, EventKind::SocketCreated { sock: sock_at(0x51), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0x51, tuple(5001, 53), 60);
}

/// The names of the finished TCP flows, in order of their ports.
pub(super) fn domains(story: &mut Story) -> Vec<Option<String>> {
    story.wait(6);
    story.out.retain(|flow| flow.transport == Transport::Tcp);
    story.out.sort_by_key(|flow| flow.local.port);
    story.out.drain(..).map(|flow| flow.domain.map(|name| name.to_string())).collect()
}

#[test]
fn a_flow_has_the_name_that_its_own_owner_looked_up() {
    let mut story = Story::new();
    for (pid, sock, port, name) in [(CURL, 0x51, 5001, "a.example"), (SHELL, 0x52, 5002, "b.example")] {
        story.say(pid, EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, sock, tuple(port, 53), 60);
        answer(&mut story, tuple(port, 53), name, "127.0.0.1");
    }
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.conversation(SHELL, 0xb, tuple(40001, 80));
    story.conversation(SERVER, 0xc, tuple(40002, 80));
    // A child knows what its parent knew.
    story.say(CURL, EventKind::Fork(Fork { child: 999, start: Some(since_boot(77)) }));
    story.conversation(999, 0xd, tuple(40003, 80));
    story.wait(6);
    story.out.retain(|flow| flow.transport == Transport::Tcp);
    story.out.sort_by_key(|flow| flow.local.port);
    let names: Vec<_> = story.out.iter().map(|flow| flow.domain.as_deref()).collect();
    assert_eq!(names, [Some("a.example"), Some("b.example"), None, Some("a.example")]);
    assert_eq!(story.state.stats().names_learned, 2);
}

/// The sample of a query was missed: any process may have asked, even one that knew another name.
#[test]
fn after_an_answer_without_a_known_asker_no_earlier_name_is_used() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "a.example", "127.0.0.1");
    story.conversation(CURL, 0xa, tuple(40000, 80));
    answer(&mut story, tuple(5002, 53), "b.example", "127.0.0.1");
    story.conversation(CURL, 0xb, tuple(40001, 80));
    assert_eq!(domains(&mut story), [Some("a.example".to_owned()), None]);
    assert_eq!(story.state.stats().names_without_owner, 1);
}

#[test]
fn answers_without_a_known_asker_that_found_no_room_are_counted() {
    let mut story = Story::new();
    for number in 0..=MAX_ADDRESSES as u32 {
        answer(&mut story, tuple(5001, 53), "a.example", &Ipv4Addr::from_bits(number).to_string());
    }
    let stats = story.state.stats();
    assert_eq!(stats.names_without_owner, MAX_ADDRESSES as u64 + 1);
    assert_eq!(stats.names_without_owner_forgotten, MAX_ADDRESSES as u64);
}

#[test]
fn names_that_are_forgotten_to_make_room_are_counted() {
    let mut names = NamesOptions::default();
    (names.owners, names.per_owner) = (1, 2);
    let mut story = Story::with(StateConfig { names, ..StateConfig::default() });
    let ask = |story: &mut Story, pid, sock, port, addresses: &[&str]| {
        story.say(pid, EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, sock, tuple(port, 53), 60);
        addresses.iter().for_each(|address| answer(story, tuple(port, 53), "a.example", address));
    };
    let forgotten = |story: &Story| {
        let stats = story.state.stats();
        (stats.name_owners_evicted, stats.name_addresses_evicted)
    };
    ask(&mut story, CURL, 0x51, 5001, &["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    assert_eq!(forgotten(&story), (0, 1), "curl knows too many");
    ask(&mut story, SHELL, 0x52, 5002, &["192.0.2.1"]);
    assert_eq!(forgotten(&story), (1, 1), "too many processes know names");
}

#[test]
fn an_answer_that_comes_again_with_a_known_asker_does_not_undo_an_earlier_doubt() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    for (connection, port, name) in [(0, 5001, "a"), (1, 5001, "b"), (2, 5002, "a"), (3, 5001, "a")] {
        answer(&mut story, tuple(port, 53), name, "127.0.0.1");
        story.conversation(CURL, 0xa + connection, tuple(40000 + connection as u16, 80));
    }
    let named = |name: &str| Some(name.to_owned());
    assert_eq!(domains(&mut story), [named("a"), named("b"), None, named("a")]);
}

#[test]
fn the_names_of_a_process_are_forgotten_after_its_end() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "a.example", "127.0.0.1");
    story.conversation(CURL, 0xa, tuple(40000, 80));
    assert_eq!(domains(&mut story), [Some("a.example".to_owned())]);
    story.say(CURL, EventKind::Exit);
    story.wait(5);
    assert_eq!(story.state.name_tracker.knowing(), 1, "a late event may name the process");
    story.wait(10);
    assert_eq!(story.state.name_tracker.knowing(), 0);
}

#[test]
fn a_late_answer_still_names_the_flow() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    let answered = story.now;
    story.conversation(CURL, 0xa, tuple(40000, 80));
    answer_from(&mut story, answered, tuple(5001, 53), "late.example", "127.0.0.1");
    assert_eq!(domains(&mut story), [Some("late.example".to_owned())]);
}

#[test]
fn an_answer_after_the_connect_does_not_name_the_flow() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    story.conversation(CURL, 0xa, tuple(40000, 80));
    answer(&mut story, tuple(5001, 53), "after.example", "127.0.0.1");
    assert_eq!(domains(&mut story), [None]);
}

#[test]
fn names_that_share_an_address_stay_apart_even_if_answers_are_late() {
    const NAMES: [&str; 6] = ["a", "b", "a", "c", "b", "a"];
    for in_time in [true, false] {
        let mut story = Story::new();
        asker(&mut story, CURL);
        let mut late_answers = Vec::new();
        for (port, name) in (40_000..).zip(NAMES) {
            match in_time {
                true => answer(&mut story, tuple(5001, 53), name, "127.0.0.1"),
                false => late_answers.push((story.now, name)),
            }
            story.conversation(CURL, 0x1000 + u64::from(port), tuple(port, 80));
        }
        for (time, name) in late_answers {
            answer_from(&mut story, time, tuple(5001, 53), name, "127.0.0.1");
        }
        assert_eq!(domains(&mut story), NAMES.map(|name| Some(name.to_owned())), "{in_time}");
    }
}

#[test]
fn a_flow_that_is_over_at_once_has_its_name() {
    let mut story = Story::with(StateConfig { flow_termination_timeout: Duration::ZERO, ..StateConfig::default() });
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "a", "127.0.0.1");
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.state.expire(monotonic(story.now + 1));
    let answered = story.now;
    story.now += 1000;
    answer_from(&mut story, answered, tuple(5001, 53), "b", "127.0.0.1");
    assert_eq!(domains(&mut story), [Some("a".to_owned())]);
}

#[test]
fn a_child_knows_what_was_answered_before_it_was_made() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    let before = story.now;
    story.say(CURL, EventKind::Fork(Fork { child: 998, start: Some(since_boot(77)) }));
    story.say(998, EventKind::Fork(Fork { child: 999, start: Some(since_boot(78)) }));
    let after = story.now;
    story.conversation(999, 0xa, tuple(40000, 80));
    answer_from(&mut story, before, tuple(5001, 53), "before.example", "127.0.0.1");
    answer_from(&mut story, after, tuple(5001, 53), "after.example", "127.0.0.1");
    assert_eq!(domains(&mut story), [Some("before.example".to_owned())]);
}

#[test]
fn after_answers_were_missed_only_later_ones_count() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "a", "127.0.0.1");
    story.conversation(CURL, 0xa, tuple(40000, 80));
    let since = story.now;
    story.say(0, EventKind::NamesMissed { since: monotonic(since) });
    story.conversation(CURL, 0xb, tuple(40001, 80));
    answer(&mut story, tuple(5001, 53), "b", "127.0.0.1");
    story.conversation(CURL, 0xc, tuple(40002, 80));
    assert_eq!(domains(&mut story), [Some("a".to_owned()), None, Some("b".to_owned())]);
}

#[test]
fn an_answer_to_an_earlier_socket_at_the_port_names_no_flow() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    let asked = story.now;
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(0x51) });
    story.say(SHELL, EventKind::SocketCreated { sock: sock_at(0x52), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0x52, tuple(5001, 53), 60);
    answer_from(&mut story, asked, tuple(5001, 53), "curls.example", "127.0.0.1");
    story.conversation(SHELL, 0xa, tuple(40000, 80));
    assert_eq!(domains(&mut story), [None]);
    answer(&mut story, tuple(5001, 53), "shells.example", "127.0.0.1");
    story.conversation(SHELL, 0xb, tuple(40001, 80));
    assert_eq!(domains(&mut story), [Some("shells.example".to_owned())]);
}

#[test]
fn when_two_namespaces_ask_from_the_same_ends_no_process_learns_the_name() {
    let mut story = Story::new();
    for (pid, sock) in [(CURL, 0x51), (SHELL, 0x52)] {
        story.say(pid, EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, sock, tuple(5001, 53), 60);
    }
    answer(&mut story, tuple(5001, 53), "whose.example", "127.0.0.1");
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.wait(6);
    assert_eq!(story.only().domain, None);
    assert_eq!(story.state.stats().names_without_owner, 1);
}

#[test]
fn two_namespaces_that_ask_from_the_same_ends_stay_ambiguous_after_one_closes_its_socket() {
    let mut story = Story::new();
    let ask = |story: &mut Story, pid, sock| {
        story.say(pid, EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program });
        story.udp(PacketDirection::Outbound, sock, tuple(5001, 53), 60);
    };
    ask(&mut story, CURL, 0x51);
    ask(&mut story, SHELL, 0x52);
    story.say(SHELL, EventKind::SocketReleased { sock: sock_at(0x52) });
    story.wait(6);
    story.out.clear();
    // The first one goes on, and a third one begins.
    ask(&mut story, SERVER, 0x53);
    story.udp(PacketDirection::Outbound, 0x51, tuple(5001, 53), 60);
    answer(&mut story, tuple(5001, 53), "whose.example", "127.0.0.1");
    story.conversation(SERVER, 0xa, tuple(40000, 80));
    assert_eq!(domains(&mut story), [None]);
    assert_eq!(story.state.stats().names_without_owner, 1);
}

#[test]
fn a_flow_waits_for_late_answers() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    let before = story.now;
    story.say(CURL, EventKind::Fork(Fork { child: 999, start: Some(since_boot(77)) }));
    for (pid, sock, port) in [(CURL, 0xa, 40000), (999, 0xb, 40001)] {
        story.conversation(pid, sock, tuple(port, 80));
    }
    story.now += 50_000_000;
    story.state.expire(monotonic(story.now));
    answer_from(&mut story, before, tuple(5001, 53), "a.example", "127.0.0.1");
    assert_eq!(domains(&mut story), [Some("a.example".into()), Some("a.example".into())]);
}

#[test]
fn a_query_port_that_is_reused_by_another_process_names_the_flows_of_that_one() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    story.say(CURL, EventKind::SocketReleased { sock: sock_at(0x51) });
    story.wait(31);
    story.say(SHELL, EventKind::SocketCreated { sock: sock_at(0x61), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0x61, tuple(5001, 53), 60);
    answer(&mut story, tuple(5001, 53), "a.example", "127.0.0.1");
    story.conversation(SHELL, 0xa, tuple(40000, 80));
    assert_eq!(domains(&mut story), [Some("a.example".into())]);
}

#[test]
fn a_connection_that_began_before_its_flow_has_no_name() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "a.example", "127.0.0.1");
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 100, ACK);
    story.wait(31);
    assert!(story.out.iter().any(|flow| flow.transport == Transport::Tcp && owner(flow).0 == CURL));
    assert_eq!(domains(&mut story), [None], "it may have been made before the answer");
}

/// Another process may have had its id before.
#[test]
fn a_process_whose_start_is_not_known_has_no_names() {
    let mut story = Story::new();
    asker(&mut story, 5000);
    answer(&mut story, tuple(5001, 53), "a.example", "127.0.0.1");
    story.conversation(5000, 0xa, tuple(40000, 80));
    assert_eq!(domains(&mut story), [None]);
}

#[test]
fn a_long_connection_keeps_the_name_of_a_late_answer() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    let before = story.now;
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    story.tcp(PacketDirection::Outbound, 0xa, tuple(40000, 80), 60, SYN);
    story.now += 50_000_000;
    story.state.expire(monotonic(story.now));
    answer_from(&mut story, before, tuple(5001, 53), "a.example", "127.0.0.1");
    for name in ["b.example", "c.example"] {
        story.wait(5);
        answer(&mut story, tuple(5001, 53), name, "127.0.0.1");
    }
    story.wait(31);
    assert_eq!(domains(&mut story), [Some("a.example".into())]);
}
