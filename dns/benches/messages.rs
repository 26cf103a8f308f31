//! The cost of a message and of finding a name: `cargo bench -p socktrail-dns`.
//!
//! `answer_with_an_address`, `answer_with_two_aliases`, `query` and `unsolicited_answer` handle 4,096 packets in each
//! iteration. Their throughput is in packets (items).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use socktrail_dns::{
    Address, Completeness, KnownNames, Lookup, Message, NamesOptions, Options, Packet, ParsedPacket, Tracker,
};

fn main() {
    divan::main();
}

/// The ethertype of IPv4.
const IPV4: u16 = 0x0800;
/// How many packets one iteration handles, and how many queries wait while it handles answers.
const PACKETS: u16 = 4096;

/// The recorded IPv4 packet of this number, counted from 0.
fn recorded(number: usize) -> Vec<u8> {
    let lines = include_str!("../tests/data/packets.txt").lines();
    let hex = lines.filter_map(|line| line.strip_prefix("800 ")).nth(number).expect("there are enough packets");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// `dig www.example.test`: a query, and an answer with two aliases and an address.
const ALIASES: [usize; 2] = [0, 1];
/// `dig plain.example.test`: a query, and an answer with an address.
const PLAIN: [usize; 2] = [14, 15];

/// Copies of a packet, each with its own DNS id.
fn copies(number: usize) -> Vec<Vec<u8>> {
    let with_id = |id: u16| {
        let mut bytes = recorded(number);
        // After the IP header's 20 bytes and UDP's 8.
        bytes[28..30].copy_from_slice(&id.to_be_bytes());
        bytes
    };
    (0..PACKETS).map(with_id).collect()
}

fn ingest(tracker: &mut Tracker, packets: &[Vec<u8>]) {
    for bytes in packets {
        let packet = Packet { time: 1, interface: 1, ethertype: IPV4, length: bytes.len(), bytes };
        tracker.ingest(&packet, &mut |lookup: Lookup| drop(black_box(lookup)));
    }
}

/// From the packet of an answer to the lookup, while many queries wait.
fn answers(bencher: Bencher<'_, '_>, [query, answer]: [usize; 2]) {
    let (queries, answers) = (copies(query), copies(answer));
    let asked = || {
        let mut tracker = Tracker::new(&Options::default());
        ingest(&mut tracker, &queries);
        tracker
    };
    let mut tracker = asked();
    ingest(&mut tracker, &answers);
    assert_eq!(tracker.counters().lookups, u64::from(PACKETS));
    bencher.counter(ItemsCount::new(PACKETS)).with_inputs(asked).bench_local_refs(|tracker| ingest(tracker, &answers));
}

#[divan::bench]
fn answer_with_an_address(bencher: Bencher<'_, '_>) {
    answers(bencher, PLAIN);
}

#[divan::bench]
fn answer_with_two_aliases(bencher: Bencher<'_, '_>) {
    answers(bencher, ALIASES);
}

/// Queries when the table is full: each evicts the oldest.
#[divan::bench]
fn query(bencher: Bencher<'_, '_>) {
    let queries = copies(PLAIN[0]);
    let mut options = Options::default();
    options.bounds.queries = usize::from(PACKETS) / 2;
    let mut tracker = Tracker::new(&options);
    bencher.counter(ItemsCount::new(PACKETS)).bench_local(|| ingest(&mut tracker, &queries));
}

/// A flood of answers without queries.
#[divan::bench]
fn unsolicited_answer(bencher: Bencher<'_, '_>) {
    let answers = copies(PLAIN[1]);
    let mut tracker = Tracker::new(&Options::default());
    bencher.counter(ItemsCount::new(PACKETS)).bench_local(|| ingest(&mut tracker, &answers));
}

#[divan::bench]
fn packet_headers(bencher: Bencher<'_, '_>) {
    let bytes = recorded(PLAIN[1]);
    let packet = Packet { time: 1, interface: 1, ethertype: IPV4, length: bytes.len(), bytes: &bytes };
    bencher.bench_local(|| ParsedPacket::parse(black_box(&packet)).map(|parsed| parsed.payload.len()));
}

#[divan::bench]
fn message(bencher: Bencher<'_, '_>) {
    let bytes = recorded(PLAIN[1]);
    let mut addresses = Vec::new();
    bencher.bench_local(|| {
        let message = Message::parse(black_box(&bytes[28..])).expect("it is well-formed");
        addresses.clear();
        message.addresses(Completeness::Complete, &mut addresses)
    });
}

/// The names of a busy host: 1,000 owners with 50 addresses each.
fn busy() -> (KnownNames<u64>, Vec<IpAddr>) {
    let mut names = KnownNames::new(&NamesOptions::default());
    let addresses: Vec<IpAddr> = (0..50).map(|last| Ipv4Addr::new(192, 0, 2, last).into()).collect();
    for owner in 0..1_000 {
        for &ip in &addresses {
            names.learn(&owner, &Arc::from(format!("host-{ip}.example.org")), Address { ip, ttl: 300 }, 0);
        }
    }
    (names, addresses)
}

#[divan::bench]
fn find(bencher: Bencher<'_, '_>) {
    let (names, addresses) = busy();
    let mut at = 0_u64;
    bencher.bench_local(|| {
        at = at.wrapping_add(7_919);
        names.find(black_box(&(at % 1_000)), black_box(addresses[(at % 50) as usize]), 1).is_some()
    });
}

#[divan::bench]
fn learn(bencher: Bencher<'_, '_>) {
    let (mut names, addresses) = busy();
    let name = Arc::from("host.example.org");
    let mut at = 0_u64;
    bencher.bench_local(|| {
        at = at.wrapping_add(7_919);
        names.learn(&(at % 1_000), &name, Address { ip: addresses[(at % 50) as usize], ttl: 300 }, 1);
    });
}

/// A child process starts and ends.
#[divan::bench]
fn inherit_and_forget(bencher: Bencher<'_, '_>) {
    let (mut names, _) = busy();
    bencher.bench_local(|| {
        names.inherit(black_box(&7), &5_000);
        names.forget(&5_000);
    });
}
