use std::net::IpAddr;

use super::*;
use crate::testing::{a, cname, end, packet, query, recorded, response, tcp, udp};
use crate::{Options, Tracker};

const SECOND: u64 = 1_000_000_000;
const CLIENT: &str = "192.0.2.1:40000";
const SERVER: &str = "192.0.2.53:53";

/// A tracker and what it learned.
struct Host {
    tracker: Tracker,
    now: u64,
    learned: Vec<Learned>,
}

impl Host {
    fn new() -> Self {
        Self::with(&Options::default())
    }

    fn with(options: &Options) -> Self {
        Self { tracker: Tracker::new(options), now: SECOND, learned: Vec::new() }
    }

    fn sees(&mut self, (ethertype, bytes): &(u16, Vec<u8>)) {
        self.tracker.ingest(&packet(self.now, *ethertype, bytes), &mut |learned| self.learned.push(learned));
    }

    fn udp(&mut self, from: &str, to: &str, message: &[u8]) {
        self.sees(&udp(end(from), end(to), message));
    }

    fn counters(&self) -> Counters {
        self.tracker.counters()
    }

    /// Name and addresses, one line for each answer.
    fn names(&self) -> Vec<String> {
        let line = |learned: &Learned| {
            let addresses: Vec<String> = learned.addresses.iter().map(|address| address.ip.to_string()).collect();
            format!("{} {}", learned.name, addresses.join(" "))
        };
        self.learned.iter().map(line).collect()
    }
}

fn answer() -> Vec<u8> {
    response(7, "w.example", Kind::A, &[a("w.example", "198.51.100.1")])
}

#[test]
fn recorded_conversations_name_what_dig_printed() {
    let mut options = Options::default();
    options.ports.push(5300);
    let mut host = Host::with(&options);
    for packet in recorded() {
        host.now += 1_000;
        host.sees(&packet);
    }
    let mut names = host.names();
    // A truncated answer names what it has, and the one over TCP all 120.
    for (at, count) in [(2, 29), (3, 120)] {
        assert_eq!(names[at].split(' ').count(), 1 + count);
        names[at].truncate("big.example.test 192.0.3.".len());
    }
    let expected = [
        "www.example.test 192.0.2.10",
        "www.example.test 2001:db8::10",
        "big.example.test 192.0.3.",
        "big.example.test 192.0.3.",
        "plain.example.test 192.0.2.10",
        "h.ub.test 198.51.100.9 198.51.100.10 2001:db8:7::9",
        "a.ub.test 198.51.100.7",
        "mixed.ub.test 198.51.100.8",
        r"sp\032ace\.dot.ub.test 198.51.100.11",
    ];
    assert_eq!(names, expected);
    let first = &host.learned[0];
    assert_eq!((first.client, first.server), (end("10.9.0.1:34023"), end("10.9.0.2:53")));
    assert_eq!((first.asked, first.time), (SECOND + 1_000, SECOND + 2_000));
    let counters = host.counters();
    assert_eq!((counters.learned, counters.negative, counters.truncated), (9, 4, 1));
    assert_eq!((counters.unasked, counters.bad_messages, counters.bad_packets), (0, 0, 0));
    assert_eq!(counters.tcp, crate::TcpCounters::default());
}

#[test]
fn forged_answers_name_nothing() {
    type Case<'a> = (&'a str, &'a str, &'a str, Vec<u8>);
    let with_id = |id| response(id, "w.example", Kind::A, &[a("w.example", "198.51.100.1")]);
    let cases: [Case<'_>; 7] = [
        ("wrong id", SERVER, CLIENT, with_id(8)),
        ("wrong question", SERVER, CLIENT, response(7, "v.example", Kind::A, &[a("v.example", "198.51.100.1")])),
        ("wrong type", SERVER, CLIENT, response(7, "w.example", Kind::Any, &[a("w.example", "198.51.100.1")])),
        ("wrong server", "192.0.2.54:53", CLIENT, answer()),
        ("wrong client", SERVER, "192.0.2.2:40000", answer()),
        ("wrong port of the client", SERVER, "192.0.2.1:40001", answer()),
        ("from the client", CLIENT, SERVER, answer()),
    ];
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", Kind::A));
    for (what, from, to, message) in cases {
        host.udp(from, to, &message);
        assert!(host.learned.is_empty(), "{what}");
    }
    assert_eq!((host.counters().unasked, host.counters().uninteresting), (6, 1));
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!(host.names(), ["w.example 198.51.100.1"], "and the true one is still taken");
}

#[test]
fn an_answer_over_another_transport_names_nothing() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", Kind::A));
    let length = u16::try_from(answer().len()).unwrap().to_be_bytes();
    host.sees(&tcp(end(SERVER), end(CLIENT), 0, 2, &[]));
    host.sees(&tcp(end(SERVER), end(CLIENT), 1, 0x18, &[&length[..], &answer()].concat()));
    assert_eq!((host.learned.len(), host.counters().unasked), (0, 1));
}

#[test]
fn letters_of_any_case_are_the_same_question() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "W.eXaMpLe", Kind::A));
    host.udp(SERVER, CLIENT, &response(7, "w.ExAmPlE", Kind::A, &[a("w.EXAMPLE", "198.51.100.1")]));
    assert_eq!(host.names(), ["w.example 198.51.100.1"]);
}

#[test]
fn the_name_asked_for_is_given_to_all_that_aliases_lead_to() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w", Kind::A));
    let records = [a("evil", "192.0.2.66"), cname("w", "x"), a("x", "198.51.100.1"), a("x", "198.51.100.2")];
    host.udp(SERVER, CLIENT, &response(7, "w", Kind::A, &records));
    assert_eq!(host.names(), ["w 198.51.100.1 198.51.100.2"]);
    assert_eq!(host.counters().stray_addresses, 1);
}

#[test]
fn only_the_first_answer_counts() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", Kind::A));
    host.udp(SERVER, CLIENT, &answer());
    host.udp(SERVER, CLIENT, &response(7, "w.example", Kind::A, &[a("w.example", "192.0.2.66")]));
    assert_eq!((host.learned.len(), host.counters().repeated_responses), (1, 1));
    host.now += SECOND;
    host.udp(CLIENT, SERVER, &query(7, "w.example", Kind::A));
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!(host.learned[1].asked, 2 * SECOND, "asked again, with the same id");
}

#[test]
fn a_query_sent_again_was_asked_when_it_was_sent_first() {
    let mut host = Host::new();
    for _ in 0..3 {
        host.udp(CLIENT, SERVER, &query(7, "w.example", Kind::A));
        host.now += 25 * SECOND;
    }
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!((host.learned[0].asked, host.counters().repeated_queries), (SECOND, 2));
}

#[test]
fn late_answers_name_nothing() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", Kind::A));
    host.now += 30 * SECOND + 1;
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!((host.learned.len(), host.counters().late), (0, 1));
    host.tracker.expire(host.now);
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!((host.learned.len(), host.counters().unasked, host.counters().unanswered), (0, 1, 1));
    assert_eq!(host.tracker.queries(), 0);
}

#[test]
fn an_answer_before_its_query_names_nothing() {
    let mut host = Host::new();
    host.udp(SERVER, CLIENT, &answer());
    host.udp(CLIENT, SERVER, &query(7, "w.example", Kind::A));
    assert_eq!((host.learned.len(), host.counters().unasked), (0, 1));
}

#[test]
fn negative_answers_name_nothing() {
    for rcode in 1..16 {
        let mut host = Host::new();
        host.udp(CLIENT, SERVER, &query(7, "w.example", Kind::A));
        let mut message = answer();
        message[3] |= rcode;
        host.udp(SERVER, CLIENT, &message);
        assert_eq!((host.learned.len(), host.counters().negative), (0, 1), "rcode {rcode}");
    }
}

#[test]
fn a_broken_answer_leaves_the_query_waiting() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", Kind::A));
    host.udp(SERVER, CLIENT, &answer()[..answer().len() - 1]);
    assert_eq!((host.learned.len(), host.counters().bad_messages), (0, 1));
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!(host.learned.len(), 1);
}

#[test]
fn what_a_short_capture_left_of_an_answer_counts() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", Kind::A));
    let records = [a("w.example", "198.51.100.1"), a("w.example", "198.51.100.2")];
    let (ethertype, bytes) = udp(end(SERVER), end(CLIENT), &response(7, "w.example", Kind::A, &records));
    let short = crate::Packet { length: bytes.len(), ..packet(host.now, ethertype, &bytes[..bytes.len() - 2]) };
    host.tracker.ingest(&short, &mut |learned| host.learned.push(learned));
    assert_eq!(host.names(), ["w.example 198.51.100.1"]);
    assert_eq!(host.counters().cut, 1);
}

#[test]
fn members_of_a_group_answer_for_themselves() {
    let mut options = Options::default();
    options.ports.push(5355);
    for (client, group, member) in [
        ("192.0.2.1:40000", "224.0.0.252:5355", "192.0.2.9:5355"),
        ("[fe80::1]:40000", "[ff02::1:3]:5355", "[fe80::9]:5355"),
    ] {
        let mut host = Host::with(&options);
        host.udp(client, group, &query(7, "printer", Kind::A));
        host.udp(member.replace("5355", "53").as_str(), client, &response(7, "printer", Kind::A, &[]));
        let answer = response(7, "printer", Kind::A, &[a("printer", "192.0.2.9")]);
        host.udp(member, client, &answer);
        assert_eq!(host.names(), ["printer 192.0.2.9"]);
        assert_eq!(host.learned[0].server, end(member));
    }
}

#[test]
fn the_nearest_interface_is_told() {
    let mut host = Host::new();
    for interface in [5, 3] {
        let (ethertype, bytes) = udp(end(CLIENT), end(SERVER), &query(7, "w.example", Kind::A));
        let packet = crate::Packet { interface, ..packet(host.now, ethertype, &bytes) };
        host.tracker.ingest(&packet, &mut |_: Learned| {});
    }
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!(host.learned[0].interface, 5);
}

#[test]
fn a_flood_of_answers_grows_nothing() {
    let mut host = Host::new();
    for at in 0..100_000_u32 {
        let client = Endpoint::new(IpAddr::from((0x0a00_0000 + at).to_be_bytes()), 40_000);
        let (ethertype, bytes) = udp(end(SERVER), client, &answer());
        host.tracker.ingest(&packet(host.now, ethertype, &bytes), &mut |learned| host.learned.push(learned));
    }
    assert_eq!((host.tracker.queries(), host.learned.len()), (0, 0));
    assert_eq!((host.counters().packets, host.counters().unasked), (100_000, 100_000));
}

#[test]
fn a_flood_of_queries_is_bounded_and_the_newest_stay() {
    let mut host = Host::new();
    let client = |at: u32| Endpoint::new(IpAddr::from((0x0a00_0000 + at).to_be_bytes()), 40_000);
    for at in 0..100_000 {
        let (ethertype, bytes) = udp(client(at), end(SERVER), &query(7, "w.example", Kind::A));
        host.sees(&(ethertype, bytes));
        assert!(host.tracker.queries() <= 10_000);
    }
    assert_eq!(host.counters().evicted_queries, 90_000);
    host.sees(&udp(end(SERVER), client(89_999), &answer()));
    host.sees(&udp(end(SERVER), client(90_000), &answer()));
    assert_eq!((host.learned.len(), host.counters().unasked), (1, 1));
}
