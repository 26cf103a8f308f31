//! The plan of a round: for each number a step, which is one client. The plan depends only on the seed.

use std::net::SocketAddr;

use super::hosts::{Family, HOSTS, REJECTED, UDP_BLOCKED, first_address, loopback, neighbour};
use super::random::Random;

/// One client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) kind: &'static str,
    /// The host that it runs on.
    pub(super) host: usize,
    /// Whether it runs as the unprivileged user.
    pub(super) by_user: bool,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
}

/// A port without a listener.
const CLOSED: u16 = 7999;
/// The port of the MPTCP servers.
pub(super) const MPTCP: u16 = 7006;

/// The address of the test's name server.
pub(super) const RESOLVER: &str = "127.0.0.1:53";
/// The directory of the programs that workloads execute.
pub(super) const PROGRAMS: &str = "/usr/local/torture";

/// A server of each host: role, address and arguments.
pub(super) struct Server {
    pub(super) role: &'static str,
    pub(super) at: fn(usize) -> SocketAddr,
    pub(super) arguments: &'static [&'static str],
}

fn any(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => ([0, 0, 0, 0], port).into(),
        Family::V6 => ([0_u16; 8], port).into(),
    }
}

/// The servers of each host.
pub(super) const SERVERS: &[Server] = &[
    Server { role: "tcp-server", at: |_| any(Family::V6, 7001), arguments: &["serve=threads"] },
    Server { role: "tcp-server", at: |_| any(Family::V4, 7002), arguments: &["serve=prefork"] },
    Server { role: "tcp-server", at: |_| any(Family::V6, 7003), arguments: &["serve=reuseport"] },
    Server { role: "tcp-server", at: |_| any(Family::V6, 7004), arguments: &["serve=leaderless"] },
    Server { role: "tcp-server", at: |_| any(Family::V4, 7005), arguments: &["serve=forks"] },
    Server { role: "tcp-server", at: |_| any(Family::V6, MPTCP), arguments: &["serve=threads", "proto=mptcp"] },
    Server { role: "udp-server", at: |host| (first_address(host, Family::V4), 7101).into(), arguments: &["serve=one"] },
    Server { role: "udp-server", at: |host| (first_address(host, Family::V6), 7102).into(), arguments: &["serve=one"] },
    Server { role: "udp-server", at: |_| (loopback(Family::V4), 7103).into(), arguments: &["serve=one"] },
    Server {
        role: "udp-server",
        at: |host| (first_address(host, Family::V4), 7104).into(),
        arguments: &["serve=reuseport"],
    },
    Server { role: "udp-server", at: |host| (first_address(host, Family::V4), 7105).into(), arguments: &["serve=one"] },
    Server { role: "udp-server", at: |_| (loopback(Family::V6), 7103).into(), arguments: &["serve=one"] },
    Server {
        role: "udp-server",
        at: |host| (first_address(host, Family::V6), 7104).into(),
        arguments: &["serve=reuseport"],
    },
    Server { role: "udp-server", at: |host| (first_address(host, Family::V6), 7105).into(), arguments: &["serve=one"] },
];

type Make = fn(&mut Random, usize, u64) -> Vec<String>;

/// The kinds of steps, each with its relative frequency.
pub(super) const KINDS: &[(&str, usize, Make)] = &[
    ("tcp", 30, tcp),
    ("shapes", 24, shapes),
    ("cloned-threads", 6, cloned_threads),
    ("late", 4, late),
    ("mptcp", 10, mptcp),
    ("bulk", 5, bulk),
    ("idle", 5, idle),
    ("refused", 6, refused),
    ("rejected", 5, rejected),
    ("steady", 4, steady),
    ("reuse", 4, reuse),
    ("names", 10, names),
    ("nameless", 3, nameless),
    ("connections", 2, connections),
    ("udp", 20, udp),
    ("udp-idle", 2, udp_idle),
    ("udp-many", 4, udp_many),
    ("datagrams", 2, datagrams),
    ("udp-segments", 3, udp_segments),
    ("udp-rejected", 3, udp_rejected),
];

/// The value of `--without` that switches [`offloads`] off. The other values are the names of [`KINDS`].
const OFFLOADS: &str = "offloads";

/// Whether GSO and GRO are on, for each pair of hosts.
pub(super) fn offloads(seed: u64, without: &[String]) -> [bool; HOSTS / 2] {
    let mut random = Random::new(seed, u64::MAX);
    let are_on = without.iter().all(|without| without != OFFLOADS);
    std::array::from_fn(|_| random.once_in(2) && are_on)
}

/// The step with this number. Steps `2n` and `2n + 1` are often the same, on hosts with the same addresses.
pub(super) fn step(seed: u64, number: u64, without: &[String]) -> Step {
    let twins = Random::new(seed, number / 2).once_in(2);
    let mut random = Random::new(seed, if twins { number / 2 } else { (1 << 32) + number });
    let mut host = random.below(HOSTS);
    if twins && number % 2 == 1 {
        host ^= 2;
    }
    // Before Linux 6.2, `PACKET_VNET_HDR` cannot describe UDP GSO packets.
    let is_single = !offloads(seed, without)[host / 2];
    let is_left_out = |name: &str| without.iter().any(|without| without == name);
    let kinds: Vec<_> =
        KINDS.iter().filter(|(name, ..)| !is_left_out(name) && (is_single || *name != "udp-segments")).collect();
    let mut choice = random.below(kinds.iter().map(|(_, weight, _)| weight).sum());
    let (kind, _, make) = kinds
        .into_iter()
        .find(|(_, weight, _)| {
            let is_chosen = choice < *weight;
            choice = choice.saturating_sub(*weight);
            is_chosen
        })
        .expect("the choice is below the sum of all weights");
    // The monitor sees DNS packets of the first host only.
    if matches!(*kind, "names" | "nameless") && random.once_in(2) {
        host = 0;
    }
    let port = if twins { 20_000 + number / 2 % 10_000 } else { 10_000 + number % 10_000 };
    let by_user = random.once_in(3);
    let mut arguments = make(&mut random, host, port);
    arguments.push(format!("step={number}"));
    let by_user = by_user && !arguments.iter().any(|argument| argument.ends_with("user"));
    Step { kind, host, by_user, arguments }
}

fn argument(key: &str, value: impl std::fmt::Display) -> String {
    format!("{key}={value}")
}

/// An address and port to connect to; sometimes as an IPv4-mapped IPv6 address.
fn target(random: &mut Random, host: usize, ports: &[u16]) -> Vec<String> {
    let port = *random.pick(ports);
    let is_v4 = matches!(port, 7002 | 7005) || random.once_in(2);
    let family = if is_v4 { Family::V4 } else { Family::V6 };
    let address = match random.below(4) {
        0 => loopback(family),
        1 => first_address(host, family),
        _ => first_address(neighbour(host), family),
    };
    let mut arguments = vec![argument("to", SocketAddr::new(address, port))];
    if is_v4 && random.once_in(4) {
        arguments.push("mapped=yes".to_owned());
    }
    arguments
}

const TCP: &[u16] = &[7001, 7002, 7003, 7004, 7005];
/// Ports of servers that serve several clients at once.
const CONCURRENT: &[u16] = &[7001, 7004, 7005];

fn conversation(random: &mut Random) -> Vec<String> {
    vec![
        argument("connect", random.pick(&["blocking", "nonblocking"])),
        argument("rounds", random.below(4)),
        argument("up", random.pick(&[0, 1, 100, 1500, 20_000])),
        argument("down", random.pick(&[0, 1, 100, 1500, 20_000])),
        argument("gap", random.pick(&[0, 0, 0, 10, 300])),
        argument("end", random.pick(&["close", "close", "half", "reset", "server-close", "server-reset"])),
    ]
}

fn tcp(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let arguments = [target(random, host, TCP), conversation(random)].concat();
    let shape = *random.pick(&["plain", "plain", "child", "thread"]);
    [arguments, vec![argument("shape", shape)]].concat()
}

fn shapes(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    const SHAPES: &[&str] = &[
        "orphan",
        "leaderless",
        "exec",
        "child-exec",
        "thread-exec",
        "user",
        "effective-user",
        "socket-child",
        "socket-passed",
        "socket-exec",
        "socket-orphan",
        "spawn",
        "shared-memory",
        "shared-files",
    ];
    let shape = argument("shape", random.pick(SHAPES));
    [target(random, host, TCP), conversation(random), vec![shape, program(random)]].concat()
}

/// Connects in a thread that is made by `clone(2)`, without the C library.
fn cloned_threads(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    const SHAPES: &[&str] =
        &["cloned-thread", "cloned-thread-own-files", "cloned-thread-leaderless", "cloned-thread-exec"];
    let shape = argument("shape", random.pick(SHAPES));
    [target(random, host, TCP), conversation(random), vec![shape, program(random)]].concat()
}

fn program(random: &mut Random) -> String {
    argument("program", format_args!("{PROGRAMS}/{}", random.pick(&["one", "two"])))
}

const LATE: &[&str] =
    &["leaderless", "thread-exec", "exec", "orphan", "thread", "spawn", "shared-memory", "shared-files"];

/// Connects long after the client was started.
fn late(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let shape = argument("shape", random.pick(LATE));
    let late = argument("late", 11 + random.below(3));
    [target(random, host, CONCURRENT), conversation(random), vec![shape, program(random), late]].concat()
}

fn mptcp(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let proto = argument("proto", random.pick(&["mptcp", "mptcp", "tcp"]));
    let port = *random.pick(&[MPTCP, MPTCP, 7001]);
    let end = argument("end", random.pick(&["close", "half", "server-close"]));
    // Further subflows join while the connection goes on.
    let rounds = argument("rounds", 1 + random.below(6));
    let shape = argument("shape", random.pick(&["plain", "child", "thread", "orphan", "exec", "leaderless"]));
    [target(random, host, &[port]), conversation(random), vec![proto, end, rounds, shape, program(random)]].concat()
}

/// Exchanges data for several report intervals, with pauses below the inactivity timeout.
fn steady(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let lengths = [argument("up", random.pick(&[100, 20_000])), argument("down", random.pick(&[10, 20_000]))];
    let rounds = vec![argument("rounds", 4 + random.below(3)), argument("gap", 2500)];
    [target(random, host, CONCURRENT), lengths.to_vec(), rounds].concat()
}

fn bulk(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let lengths = [argument("up", random.pick(&[0, 300_000])), argument("down", random.pick(&[10, 300_000]))];
    [target(random, host, TCP), lengths.to_vec(), vec![argument("rounds", 1 + random.below(2))]].concat()
}

/// Is idle for longer than the inactivity timeout, before the end or in between.
fn idle(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let end = argument("end", random.pick(&["close", "reset", "half", "server-close"]));
    let rounds = argument("rounds", 1 + random.below(2));
    let arguments = vec![rounds, argument("gap", 7000 + 1000 * random.below(6)), end];
    [target(random, host, CONCURRENT), arguments].concat()
}

fn refused(random: &mut Random, host: usize, port: u64) -> Vec<String> {
    let mut arguments = target(random, host, &[CLOSED]);
    let to: SocketAddr = arguments[0][3..].parse().expect("the address was written here");
    // The source address is a loopback address if the destination is one, and otherwise the link's.
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let own = if to.ip().is_loopback() { to.ip() } else { first_address(host, family) };
    arguments.extend([
        argument("own", own),
        argument("from", port),
        argument("connect", random.pick(&["blocking", "nonblocking"])),
    ]);
    arguments
}

/// Connects to a TCP port that nftables rejects, on this host or the other.
fn rejected(random: &mut Random, host: usize, port: u64) -> Vec<String> {
    let to_port = *random.pick(&REJECTED);
    let family = *random.pick(&[Family::V4, Family::V6]);
    let to = SocketAddr::new(first_address(neighbour(host), family), to_port);
    let connect = argument("connect", random.pick(&["blocking", "nonblocking"]));
    vec![argument("to", to), argument("own", first_address(host, family)), argument("from", port), connect]
}

/// Uses the same addresses and ports again, as soon as they are free.
fn reuse(random: &mut Random, host: usize, port: u64) -> Vec<String> {
    let arguments = vec![argument("from", port), argument("times", 2 + random.below(9)), argument("end", "reset")];
    [target(random, host, &[7001, 7003]), arguments].concat()
}

/// Looks a name up and connects at once, again and again; several names have one address.
fn names(random: &mut Random, _: usize, _: u64) -> Vec<String> {
    let names: Vec<_> = (0..1 + random.below(4)).map(|_| format!("n{}.torture.test", random.below(16))).collect();
    let to = match random.once_in(3) {
        true => any(Family::V6, *random.pick(&[7001, 7003])),
        false => any(Family::V4, *random.pick(&[7001, 7002])),
    };
    let times = argument("times", names.len() + random.below(3));
    vec![argument("to", to), argument("names", names.join(",")), argument("resolver", RESOLVER), times]
}

/// Connects to addresses of names without looking them up.
fn nameless(random: &mut Random, _: usize, _: u64) -> Vec<String> {
    let to = SocketAddr::from(([127, 0, 1, 1 + random.below(4) as u8], 7001));
    vec![argument("to", to)]
}

fn connections(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    [target(random, host, &[7001, 7002, 7003]), vec![argument("times", 30 + random.below(40))]].concat()
}

/// Addresses of datagrams; the client's own address is of the same kind.
fn udp_target(random: &mut Random, host: usize) -> Vec<String> {
    let family = *random.pick(&[Family::V4, Family::V6]);
    let (to, from) = match random.below(6) {
        0 => (SocketAddr::new(loopback(family), 7103), loopback(family)),
        1 => (SocketAddr::new(first_address(host, Family::V4), 7101), first_address(host, Family::V4)),
        2 | 3 => (SocketAddr::new(first_address(neighbour(host), Family::V6), 7102), first_address(host, Family::V6)),
        4 => (SocketAddr::new(first_address(neighbour(host), family), 7104), first_address(host, family)),
        _ => (SocketAddr::new(first_address(neighbour(host), Family::V4), 7101), first_address(host, Family::V4)),
    };
    vec![argument("proto", "udp"), argument("to", to), argument("own", from)]
}

fn udp(random: &mut Random, host: usize, port: u64) -> Vec<String> {
    let shape =
        random.pick(&["plain", "child", "thread", "orphan", "exec", "child-exec", "thread-exec", "user", "leaderless"]);
    let arguments = vec![
        argument("shape", shape),
        program(random),
        argument("mode", random.pick(&["connected", "unconnected"])),
        argument("count", 1 + random.below(5)),
        argument("size", random.pick(&[1, 100, 1400])),
    ];
    let from = if random.once_in(2) { vec![argument("from", port)] } else { Vec::new() };
    [udp_target(random, host), arguments, from].concat()
}

fn udp_idle(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let arguments =
        vec![argument("count", 2), argument("gap", 7000 + 1000 * random.below(6)), argument("mode", "connected")];
    [udp_target(random, host), arguments].concat()
}

/// One socket, many remotes.
fn udp_many(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let (family, listening) = *random.pick(&[(Family::V4, 7101), (Family::V6, 7102)]);
    let there = |port| SocketAddr::new(first_address(neighbour(host), family), port).to_string();
    let closed = 7200..7205 + random.below(20) as u16;
    let to = std::iter::once(listening).chain(closed).map(there).collect::<Vec<_>>().join(",");
    let arguments =
        vec![argument("mode", random.pick(&["many", "unconnected"])), argument("answers", 0), argument("count", 3)];
    [vec![argument("proto", "udp"), argument("to", to), argument("own", first_address(host, family))], arguments]
        .concat()
}

/// More datagrams at once than fit into a socket's buffer.
fn datagrams(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let family = *random.pick(&[Family::V4, Family::V6]);
    let there = SocketAddr::new(first_address(*random.pick(&[host, neighbour(host)]), family), 7105);
    let arguments = vec![argument("answers", 0), argument("count", 500 + random.below(1500)), argument("size", 200)];
    [vec![argument("proto", "udp"), argument("to", there), argument("own", first_address(host, family))], arguments]
        .concat()
}

/// Several datagrams in one call, by UDP GSO.
fn udp_segments(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let family = *random.pick(&[Family::V4, Family::V6]);
    let there = SocketAddr::new(first_address(neighbour(host), family), 7105);
    let (segment, size) = *random.pick(&[(1000, 10_300), (300, 3000), (1200, 1000)]);
    let mode = argument("mode", random.pick(&["connected", "unconnected"]));
    let arguments = vec![argument("answers", 0), argument("count", 1 + random.below(5)), argument("size", size), mode];
    let ends = vec![argument("proto", "udp"), argument("to", there), argument("own", first_address(host, family))];
    [ends, arguments, vec![argument("segment", segment)]].concat()
}

/// Sends to a UDP port that nftables blocks, on this host or the other.
fn udp_rejected(random: &mut Random, host: usize, _: u64) -> Vec<String> {
    let family = *random.pick(&[Family::V4, Family::V6]);
    let there = SocketAddr::new(first_address(neighbour(host), family), *random.pick(&UDP_BLOCKED));
    let mode = argument("mode", random.pick(&["connected", "unconnected"]));
    let arguments = vec![argument("answers", 0), argument("count", 1 + random.below(5)), argument("size", 200), mode];
    [vec![argument("proto", "udp"), argument("to", there), argument("own", first_address(host, family))], arguments]
        .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_determines_the_plan() {
        let plan = |seed| (0..200).map(|number| step(seed, number, &[])).collect::<Vec<_>>();
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
    }

    #[test]
    fn offloads_are_on_for_any_hosts_and_can_be_left_out() {
        let all: HashSet<_> = (0..64).map(|seed| offloads(seed, &[])).collect();
        assert_eq!(all.len(), 4);
        assert!((0..64).all(|seed| offloads(seed, &[OFFLOADS.to_owned()]) == [false; 2]));
        let seed = (0..64).find(|seed| offloads(*seed, &[]) == [true, false]).unwrap();
        let segmented = (0..3000).map(|number| step(seed, number, &[])).filter(|step| step.kind == "udp-segments");
        let used_hosts: HashSet<_> = segmented.map(|step| step.host).collect();
        assert_eq!(used_hosts, [2, 3].into(), "only hosts without offloads");
    }

    #[test]
    fn every_kind_is_planned_and_can_be_left_out() {
        let kinds =
            |without: &[String]| (0..3000).map(|number| step(number % 8, number, without).kind).collect::<Vec<_>>();
        for (kind, ..) in KINDS {
            assert!(kinds(&[]).contains(kind), "{kind}");
            assert!(!kinds(&[(*kind).to_owned()]).contains(kind), "{kind}");
        }
    }
}
