use std::net::IpAddr;

use super::*;
use crate::testing::{a, cname, endpoint, packet, query, recorded_packets, response, tcp, udp};
use crate::{Options, Tracker};

const SECOND: u64 = 1_000_000_000;
const CLIENT: &str = "192.0.2.1:40000";
const SERVER: &str = "192.0.2.53:53";

/// A tracker and its lookups.
struct Host {
    tracker: Tracker,
    now: u64,
    lookups: Vec<Lookup>,
}

impl Host {
    fn new() -> Self {
        Self::with(&Options::default())
    }

    fn with(options: &Options) -> Self {
        Self { tracker: Tracker::new(options), now: SECOND, lookups: Vec::new() }
    }

    fn sees(&mut self, (ethertype, bytes): &(u16, Vec<u8>)) {
        self.tracker.ingest(&packet(self.now, *ethertype, bytes), &mut |lookup| self.lookups.push(lookup));
    }

    fn udp(&mut self, from: &str, to: &str, message: &[u8]) {
        self.sees(&udp(endpoint(from), endpoint(to), message));
    }

    fn counters(&self) -> Counters {
        self.tracker.counters()
    }

    /// Name and addresses, one line for each answer.
    fn names(&self) -> Vec<String> {
        let line = |lookup: &Lookup| {
            let addresses: Vec<String> = lookup.addresses.iter().map(|address| address.ip.to_string()).collect();
            format!("{} {}", lookup.name, addresses.join(" "))
        };
        self.lookups.iter().map(line).collect()
    }
}

fn answer() -> Vec<u8> {
    response(7, "w.example", QueryType::A, &[a("w.example", "198.51.100.1")])
}

#[test]
fn recorded_conversations_give_the_addresses_that_dig_printed() {
    let mut options = Options::default();
    options.ports.push(5300);
    let mut host = Host::with(&options);
    for packet in recorded_packets() {
        host.now += 1_000;
        host.sees(&packet);
    }
    let mut names = host.names();
    // The truncated answer gives the addresses that fit, and the one over TCP all 120.
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
    let first = &host.lookups[0];
    assert_eq!((first.client, first.server), (endpoint("10.9.0.1:34023"), endpoint("10.9.0.2:53")));
    assert_eq!((first.query_time, first.time), (SECOND + 1_000, SECOND + 2_000));
    let counters = host.counters();
    assert_eq!((counters.lookups, counters.negative_responses, counters.truncated_responses), (9, 4, 1));
    assert_eq!((counters.unsolicited_responses, counters.malformed_messages, counters.malformed_packets), (0, 0, 0));
    assert_eq!(counters.tcp, crate::TcpCounters::default());
}

#[test]
fn forged_answers_give_no_lookup() {
    type Case<'a> = (&'a str, &'a str, &'a str, Vec<u8>);
    let with_id = |id| response(id, "w.example", QueryType::A, &[a("w.example", "198.51.100.1")]);
    let cases: [Case<'_>; 7] = [
        ("wrong id", SERVER, CLIENT, with_id(8)),
        ("wrong question", SERVER, CLIENT, response(7, "v.example", QueryType::A, &[a("v.example", "198.51.100.1")])),
        ("wrong type", SERVER, CLIENT, response(7, "w.example", QueryType::Any, &[a("w.example", "198.51.100.1")])),
        ("wrong server", "192.0.2.54:53", CLIENT, answer()),
        ("wrong client", SERVER, "192.0.2.2:40000", answer()),
        ("wrong port of the client", SERVER, "192.0.2.1:40001", answer()),
        ("from the client", CLIENT, SERVER, answer()),
    ];
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
    for (what, from, to, message) in cases {
        host.udp(from, to, &message);
        assert!(host.lookups.is_empty(), "{what}");
    }
    assert_eq!((host.counters().unsolicited_responses, host.counters().other_messages), (6, 1));
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!(host.names(), ["w.example 198.51.100.1"], "the genuine answer still counts");
}

#[test]
fn an_answer_over_another_transport_gives_no_lookup() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
    let length = u16::try_from(answer().len()).unwrap().to_be_bytes();
    host.sees(&tcp(endpoint(SERVER), endpoint(CLIENT), 0, 2, &[]));
    host.sees(&tcp(endpoint(SERVER), endpoint(CLIENT), 1, 0x18, &[&length[..], &answer()].concat()));
    assert_eq!((host.lookups.len(), host.counters().unsolicited_responses), (0, 1));
}

#[test]
fn letter_case_does_not_matter() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "W.eXaMpLe", QueryType::A));
    host.udp(SERVER, CLIENT, &response(7, "w.ExAmPlE", QueryType::A, &[a("w.EXAMPLE", "198.51.100.1")]));
    assert_eq!(host.names(), ["w.example 198.51.100.1"]);
}

#[test]
fn a_lookup_has_the_name_of_the_query_not_of_its_aliases() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w", QueryType::A));
    let records = [a("evil", "192.0.2.66"), cname("w", "x"), a("x", "198.51.100.1"), a("x", "198.51.100.2")];
    host.udp(SERVER, CLIENT, &response(7, "w", QueryType::A, &records));
    assert_eq!(host.names(), ["w 198.51.100.1 198.51.100.2"]);
    assert_eq!(host.counters().unrelated_addresses, 1);
}

#[test]
fn only_the_first_answer_counts() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
    host.udp(SERVER, CLIENT, &answer());
    host.udp(SERVER, CLIENT, &response(7, "w.example", QueryType::A, &[a("w.example", "192.0.2.66")]));
    assert_eq!((host.lookups.len(), host.counters().repeated_responses), (1, 1));
    host.now += SECOND;
    host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!(host.lookups[1].query_time, 2 * SECOND, "a new query with the same id");
}

#[test]
fn a_repeated_query_has_the_time_of_the_first() {
    let mut host = Host::new();
    for _ in 0..3 {
        host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
        host.now += 25 * SECOND;
    }
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!((host.lookups[0].query_time, host.counters().repeated_queries), (SECOND, 2));
}

#[test]
fn late_answers_give_no_lookup() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
    host.now += 30 * SECOND + 1;
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!((host.lookups.len(), host.counters().late_responses), (0, 1));
    host.tracker.expire(host.now);
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!(
        (host.lookups.len(), host.counters().unsolicited_responses, host.counters().unanswered_queries),
        (0, 1, 1)
    );
    assert_eq!(host.tracker.queries(), 0);
}

#[test]
fn an_answer_before_its_query_gives_no_lookup() {
    let mut host = Host::new();
    host.udp(SERVER, CLIENT, &answer());
    host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
    assert_eq!((host.lookups.len(), host.counters().unsolicited_responses), (0, 1));
}

#[test]
fn negative_answers_give_no_lookup() {
    for rcode in 1..16 {
        let mut host = Host::new();
        host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
        let mut message = answer();
        message[3] |= rcode;
        host.udp(SERVER, CLIENT, &message);
        assert_eq!((host.lookups.len(), host.counters().negative_responses), (0, 1), "rcode {rcode}");
    }
}

#[test]
fn after_a_malformed_answer_the_query_still_waits() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
    host.udp(SERVER, CLIENT, &answer()[..answer().len() - 1]);
    assert_eq!((host.lookups.len(), host.counters().malformed_messages), (0, 1));
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!(host.lookups.len(), 1);
}

#[test]
fn the_captured_beginning_of_an_answer_counts() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
    let records = [a("w.example", "198.51.100.1"), a("w.example", "198.51.100.2")];
    let (ethertype, bytes) = udp(endpoint(SERVER), endpoint(CLIENT), &response(7, "w.example", QueryType::A, &records));
    let truncated = crate::Packet { length: bytes.len(), ..packet(host.now, ethertype, &bytes[..bytes.len() - 2]) };
    host.tracker.ingest(&truncated, &mut |lookup| host.lookups.push(lookup));
    assert_eq!(host.names(), ["w.example 198.51.100.1"]);
    assert_eq!(host.counters().partial_messages, 1);
}

#[test]
fn members_of_a_multicast_group_answer_from_their_own_addresses() {
    let mut options = Options::default();
    options.ports.push(5355);
    for (client, group, member) in [
        ("192.0.2.1:40000", "224.0.0.252:5355", "192.0.2.9:5355"),
        ("[fe80::1]:40000", "[ff02::1:3]:5355", "[fe80::9]:5355"),
    ] {
        let mut host = Host::with(&options);
        host.udp(client, group, &query(7, "printer", QueryType::A));
        host.udp(member.replace("5355", "53").as_str(), client, &response(7, "printer", QueryType::A, &[]));
        let answer = response(7, "printer", QueryType::A, &[a("printer", "192.0.2.9")]);
        host.udp(member, client, &answer);
        assert_eq!(host.names(), ["printer 192.0.2.9"]);
        assert_eq!(host.lookups[0].server, endpoint(member));
    }
}

#[test]
fn answers_of_further_members_of_a_multicast_group_are_repeated_ones() {
    let (group, members) = ("224.0.0.252:5355", ["192.0.2.9:5355", "192.0.2.10:5355", "192.0.2.10:5355"]);
    let mut options = Options::default();
    options.ports.push(5355);
    let mut host = Host::with(&options);
    host.udp(CLIENT, group, &query(7, "printer", QueryType::A));
    let answer = |id| response(id, "printer", QueryType::A, &[a("printer", "192.0.2.9")]);
    for member in members {
        host.udp(member, CLIENT, &answer(7));
    }
    host.udp(members[1], CLIENT, &answer(8));
    let counters = host.counters();
    assert_eq!((host.lookups.len(), counters.repeated_responses, counters.unsolicited_responses), (1, 2, 1));
}

#[test]
fn an_answered_multicast_query_is_forgotten_after_1024_others() {
    let mut options = Options::default();
    options.ports.push(5355);
    let mut host = Host::with(&options);
    let (group, member) = ("224.0.0.252:5355", "192.0.2.9:5355");
    host.udp(CLIENT, group, &query(7, "printer", QueryType::A));
    host.udp(member, CLIENT, &response(7, "printer", QueryType::A, &[a("printer", "192.0.2.9")]));
    for id in 0..1024 {
        host.udp(CLIENT, SERVER, &query(id, "w.example", QueryType::A));
        host.udp(SERVER, CLIENT, &response(id, "w.example", QueryType::A, &[a("w.example", "198.51.100.1")]));
    }
    host.udp("192.0.2.10:5355", CLIENT, &response(7, "printer", QueryType::A, &[a("printer", "192.0.2.9")]));
    let counters = host.counters();
    assert_eq!((host.lookups.len(), counters.repeated_responses, counters.unsolicited_responses), (1025, 0, 1));
}

#[test]
fn a_lookup_has_the_interface_nearest_to_the_client() {
    let mut host = Host::new();
    for interface in [5, 3] {
        let (ethertype, bytes) = udp(endpoint(CLIENT), endpoint(SERVER), &query(7, "w.example", QueryType::A));
        let packet = crate::Packet { interface, ..packet(host.now, ethertype, &bytes) };
        host.tracker.ingest(&packet, &mut |_: Lookup| {});
    }
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!(host.lookups[0].interface, 5);
}

#[test]
fn a_flood_of_answers_takes_no_memory() {
    let mut host = Host::new();
    for at in 0..100_000_u32 {
        let client = Endpoint::new(IpAddr::from((0x0a00_0000 + at).to_be_bytes()), 40_000);
        let (ethertype, bytes) = udp(endpoint(SERVER), client, &answer());
        host.tracker.ingest(&packet(host.now, ethertype, &bytes), &mut |lookup| host.lookups.push(lookup));
    }
    assert_eq!((host.tracker.queries(), host.lookups.len()), (0, 0));
    assert_eq!((host.counters().packets, host.counters().unsolicited_responses), (100_000, 100_000));
}

#[test]
fn in_a_flood_of_queries_the_newest_stay() {
    let mut host = Host::new();
    let client = |at: u32| Endpoint::new(IpAddr::from((0x0a00_0000 + at).to_be_bytes()), 40_000);
    for at in 0..100_000 {
        let (ethertype, bytes) = udp(client(at), endpoint(SERVER), &query(7, "w.example", QueryType::A));
        host.sees(&(ethertype, bytes));
        assert!(host.tracker.queries() <= 10_000);
    }
    assert_eq!(host.counters().evicted_queries, 90_000);
    host.sees(&udp(endpoint(SERVER), client(89_999), &answer()));
    host.sees(&udp(endpoint(SERVER), client(90_000), &answer()));
    assert_eq!((host.lookups.len(), host.counters().unsolicited_responses), (1, 1));
}

#[test]
fn queries_and_answers_are_counted() {
    let mut host = Host::new();
    for id in [7, 8] {
        host.udp(CLIENT, SERVER, &query(id, "w.example", QueryType::A));
    }
    assert_eq!((host.counters().queries, host.tracker.queries()), (2, 2));
    for _ in 0..2 {
        host.udp(SERVER, CLIENT, &answer());
    }
    assert_eq!((host.counters().responses, host.tracker.queries()), (2, 1));
}

#[test]
fn an_answer_at_the_very_end_of_the_timeout_counts() {
    let mut host = Host::new();
    host.udp(CLIENT, SERVER, &query(7, "w.example", QueryType::A));
    host.now += 30 * SECOND;
    host.tracker.expire(host.now);
    host.udp(SERVER, CLIENT, &answer());
    assert_eq!((host.lookups.len(), host.counters().late_responses), (1, 0));
}

#[test]
fn an_answered_query_is_forgotten_after_1024_others() {
    let mut host = Host::new();
    for id in 0..1024 {
        host.udp(CLIENT, SERVER, &query(id, "w.example", QueryType::A));
        host.udp(SERVER, CLIENT, &response(id, "w.example", QueryType::A, &[a("w.example", "198.51.100.1")]));
    }
    let first = response(0, "w.example", QueryType::A, &[a("w.example", "198.51.100.1")]);
    host.udp(SERVER, CLIENT, &first);
    assert_eq!((host.counters().repeated_responses, host.counters().unsolicited_responses), (1, 0));
    host.udp(CLIENT, SERVER, &query(1024, "w.example", QueryType::A));
    host.udp(SERVER, CLIENT, &response(1024, "w.example", QueryType::A, &[a("w.example", "198.51.100.1")]));
    host.udp(SERVER, CLIENT, &first);
    assert_eq!((host.counters().repeated_responses, host.counters().unsolicited_responses), (1, 1));
}
