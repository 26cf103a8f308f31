//! What a message costs, and a look-up: `cargo bench -p socktrail-dns`.
//!
//! The first four handle 4,096 packets at a time: their throughput is in packets (items).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use socktrail_dns::{Address, Frame, Learned, Message, Names, NamesOptions, Options, Packet, Tracker};

fn main() {
    divan::main();
}

/// The ethertype of IPv4.
const IPV4: u16 = 0x0800;
/// Conversations that are handled in one go; as many queries wait.
const MANY: u16 = 4096;

/// A recorded packet of IPv4, counted from 0.
fn recorded(number: usize) -> Vec<u8> {
    let lines = include_str!("../tests/data/packets.txt").lines();
    let hex = lines.filter_map(|line| line.strip_prefix("800 ")).nth(number).expect("there are that many");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

/// `dig www.example.test`: a query, and an answer with two aliases and an address.
const ALIASES: [usize; 2] = [0, 1];
/// `dig plain.example.test`: a query, and an answer with an address.
const PLAIN: [usize; 2] = [14, 15];

/// Many copies of a packet, each with an id of its own.
fn copies(number: usize) -> Vec<Vec<u8>> {
    let with_id = |id: u16| {
        let mut bytes = recorded(number);
        // After the IP header's 20 bytes and UDP's 8.
        bytes[28..30].copy_from_slice(&id.to_be_bytes());
        bytes
    };
    (0..MANY).map(with_id).collect()
}

fn ingest(tracker: &mut Tracker, packets: &[Vec<u8>]) {
    for bytes in packets {
        let packet = Packet { time: 1, interface: 1, ethertype: IPV4, length: bytes.len(), bytes };
        tracker.ingest(&packet, &mut |learned: Learned| drop(black_box(learned)));
    }
}

/// From an answer's frame to what is learned, with many queries waiting.
fn answers(bencher: Bencher<'_, '_>, [query, answer]: [usize; 2]) {
    let (queries, answers) = (copies(query), copies(answer));
    let asked = || {
        let mut tracker = Tracker::new(&Options::default());
        ingest(&mut tracker, &queries);
        tracker
    };
    let mut tracker = asked();
    ingest(&mut tracker, &answers);
    assert_eq!(tracker.counters().learned, u64::from(MANY));
    bencher.counter(ItemsCount::new(MANY)).with_inputs(asked).bench_local_refs(|tracker| ingest(tracker, &answers));
}

#[divan::bench]
fn answer_with_an_address(bencher: Bencher<'_, '_>) {
    answers(bencher, PLAIN);
}

#[divan::bench]
fn answer_with_two_aliases(bencher: Bencher<'_, '_>) {
    answers(bencher, ALIASES);
}

/// Queries at the bound: each makes the oldest give way.
#[divan::bench]
fn query(bencher: Bencher<'_, '_>) {
    let queries = copies(PLAIN[0]);
    let mut options = Options::default();
    options.bounds.queries = usize::from(MANY) / 2;
    let mut tracker = Tracker::new(&options);
    bencher.counter(ItemsCount::new(MANY)).bench_local(|| ingest(&mut tracker, &queries));
}

/// A flood: answers that nobody asked for.
#[divan::bench]
fn answer_that_nobody_asked_for(bencher: Bencher<'_, '_>) {
    let answers = copies(PLAIN[1]);
    let mut tracker = Tracker::new(&Options::default());
    bencher.counter(ItemsCount::new(MANY)).bench_local(|| ingest(&mut tracker, &answers));
}

#[divan::bench]
fn frame(bencher: Bencher<'_, '_>) {
    let bytes = recorded(PLAIN[1]);
    let packet = Packet { time: 1, interface: 1, ethertype: IPV4, length: bytes.len(), bytes: &bytes };
    bencher.bench_local(|| Frame::parse(black_box(&packet)).map(|frame| frame.payload.len()));
}

#[divan::bench]
fn message(bencher: Bencher<'_, '_>) {
    let bytes = recorded(PLAIN[1]);
    let mut addresses = Vec::new();
    bencher.bench_local(|| {
        let message = Message::parse(black_box(&bytes[28..])).expect("it is well-formed");
        addresses.clear();
        message.addresses(false, &mut addresses)
    });
}

/// Names of a busy host: 1,000 owners with 50 addresses each.
fn busy() -> (Names<u64>, Vec<IpAddr>) {
    let mut names = Names::new(&NamesOptions::default());
    let addresses: Vec<IpAddr> = (0..50).map(|last| Ipv4Addr::new(192, 0, 2, last).into()).collect();
    for owner in 0..1_000 {
        for &ip in &addresses {
            names.learn(&owner, &Arc::from(format!("host-{ip}.example.org")), Address { ip, ttl: 300 }, 0);
        }
    }
    (names, addresses)
}

#[divan::bench]
fn look_up(bencher: Bencher<'_, '_>) {
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

/// A child begins and ends.
#[divan::bench]
fn inherit_and_forget(bencher: Bencher<'_, '_>) {
    let (mut names, _) = busy();
    bencher.bench_local(|| {
        names.inherit(black_box(&7), &5_000);
        names.forget(&5_000);
    });
}
