//! Programs, run in an interpreter, count the same packets as the state machine does from samples of all packets.

mod at_hook;
mod filter;
mod machine;
mod packet;
mod tcp;
mod udp;

use std::collections::HashMap;

use proptest::prelude::*;
use socktrail_kprobes::bpf::{Array, Map, Program};

use self::machine::{Machine, all_programs};
use self::packet::{Conversation, Wire};
use super::Rules;
use super::entry::SIZE;
use super::table::{BUCKET_SIZE, Table};
use crate::model::event::PacketDirection;
use crate::model::filter::{Choice, Filter, Network};
use crate::model::flow::Transport;
use crate::model::testing::monotonic;
use crate::model::totals::Totals;
use crate::source::kprobes::Feature;
use crate::state::counted::NewCounts;
use crate::state::counting::{self, Sender};
use crate::state::flows::{FlowId, LiveFlow};

/// The first packet after this many nanoseconds without packets is sampled.
const PAUSE: u64 = 30_000_000_000;
/// The rules without a filter.
fn rules() -> Rules {
    Rules { pause_nanos: PAUSE, gso_head_len: 200, filter: Filter::default(), consumed: Some(1) }
}

/// The rules that leave out loopback.
fn without_loopback() -> Rules {
    Rules { filter: Filter { exclude_loopback: true, ..Filter::default() }, ..rules() }
}

/// One flow, counted twice. Both results must be equal.
struct Both {
    of: Conversation,
    /// Counted from all packets, except those with IP options.
    expected: LiveFlow,
    /// Counted from samples, and from the totals of packets that became none.
    combined: LiveFlow,
    /// The last totals that were taken in, by the time when their entry was made.
    taken: HashMap<u64, Totals>,
    samples: usize,
    /// Whether another socket has sent a packet of this conversation, which is not in order with the counts of this socket's
    /// packets, or hooks have seen them. Then the last packet's size is not compared.
    has_others: bool,
}

impl Both {
    fn new(of: Conversation) -> Self {
        let flow = || {
            let wire = Wire::new(of, PacketDirection::Outbound, 0).packet();
            let mut live = LiveFlow::new(FlowId::of(&wire), monotonic(0));
            (live.has_own_socket, live.complete) = (true, true);
            live
        };
        Self { of, expected: flow(), combined: flow(), taken: HashMap::new(), samples: 0, has_others: false }
    }

    /// Hits the probe with this packet, at the time `now`.
    fn play(&mut self, machine: &Machine, now: u64, wire: Wire) {
        machine.set_time(now);
        let (is_sample, reported) = wire.hit(machine);
        reported.iter().for_each(|totals| self.take(totals));
        self.add_hit(now, wire, is_sample);
    }

    /// Hits the hook with this packet, at the time `now`.
    fn play_at_hook(&mut self, machine: &Machine, now: u64, wire: Wire) {
        machine.set_time(now);
        let (is_sample, reported) = wire.hit_at_hook(machine);
        reported.iter().for_each(|totals| self.take(totals));
        self.samples += usize::from(is_sample);
        // Entries do not have the size of the last packet, because hooks see no drops.
        self.has_others = true;
        counting::add(&mut self.expected, monotonic(now), &wire.packet_at_hook(), Sender::Other);
        if is_sample {
            counting::add(&mut self.combined, monotonic(now), &wire.packet_at_hook(), Sender::Other);
        }
    }

    /// Adds a packet that has hit the probe, unless it has IP options: such a packet is always sampled, but its sample cannot be
    /// read.
    fn add_hit(&mut self, now: u64, wire: Wire, is_sample: bool) {
        if wire.ip_options {
            assert!(is_sample);
            return;
        }
        self.add(now, wire, is_sample);
    }

    /// A packet whose program did not find the entry, because another CPU was making it at that moment.
    fn play_without_entry(&mut self, now: u64, wire: Wire) {
        self.add(now, wire, true);
    }

    fn add(&mut self, now: u64, wire: Wire, is_sample: bool) {
        let leaves = wire.direction == PacketDirection::Outbound;
        let sender = if leaves && wire.sender == wire.of.sock { Sender::OwnSocket } else { Sender::Other };
        self.has_others |= leaves && sender == Sender::Other && wire.flags & 0x02 == 0;
        counting::add(&mut self.expected, monotonic(now), &wire.packet(), sender);
        if is_sample {
            self.samples += 1;
            counting::add(&mut self.combined, monotonic(now), &wire.packet(), sender);
        }
    }

    /// The socket ends.
    fn end(&mut self, machine: &Machine, feature: Feature) {
        let (is_sample, reported) = machine.hit(feature, [self.of.sock, 7, 0]);
        assert!(is_sample && machine.look_up(self.of.sock).is_none());
        reported.iter().for_each(|totals| self.take(totals));
    }

    /// Adds what is new in these totals.
    fn take(&mut self, totals: &Totals) {
        assert!(self.of.is_of(totals), "{totals:?}");
        let none = Totals::none_of(totals);
        let before = self.taken.insert(totals.since.as_nanos(), *totals).unwrap_or(none);
        if let Some(new) = NewCounts::between(&before, totals) {
            counting::add_totals(&mut self.combined, &new);
        }
        self.combined.last = self.combined.last.max(totals.last);
    }

    /// Both results, as text.
    fn counted(&self) -> [String; 2] {
        [&self.expected, &self.combined].map(|live| {
            let LiveFlow { sent, received, last, inexact, last_sent, segments, .. } = live;
            let segments = segments.map(|baseline| (baseline.sent, baseline.received_before));
            let last_sent = Some(last_sent).filter(|_| !self.has_others);
            format!("{sent:?} {received:?} {last:?} {inexact:?} {last_sent:?} {segments:?}")
        })
    }
}

#[test]
fn calls_that_drop_nothing_are_not_sampled() {
    for consumed in [Some(1), None] {
        let machine = Machine::new(&Rules { consumed, ..rules() }, 100);
        let sampled = [(0, 2), (64, 1), (64, 2), (64, 7)]
            .map(|(skb, reason)| machine.hit(Feature::LocalDrops, [0, skb, reason]).0);
        assert_eq!(sampled, [false, consumed.is_none(), true, true]);
    }
}

/// With `cargo test accounting -- --ignored --nocapture`: the verifier of the running kernel accepts all programs. It needs
/// privileges, but no kprobes.
#[test]
#[ignore = "needs CAP_BPF"]
fn the_running_kernel_accepts_all_programs() {
    let table = Table::of(100);
    let buckets = |name| Array::new(name, BUCKET_SIZE, table.buckets()).unwrap();
    let entries = Array::new("entries", SIZE.into(), table.entries()).unwrap();
    let (sockets, ends, outputs) = (buckets("sockets"), buckets("ends"), Map::outputs("outputs").unwrap());
    for rules in [rules(), without_loopback()] {
        for (_, name, code) in all_programs(&rules, table) {
            Program::load(name, &code, &[sockets.as_ref(), entries.as_ref(), ends.as_ref(), &outputs]).unwrap();
        }
    }
}

/// The size of a program should change only on purpose: each instruction costs every packet.
#[test]
#[cfg(target_arch = "x86_64")]
fn programs_have_these_sizes() {
    let sizes: Vec<_> = all_programs(&rules(), Table::of(100))
        .iter()
        .map(|(_, name, code)| (*name, code.instructions().len()))
        .collect();
    let expected = [
        ("socket_create", 295),
        ("tcp_state", 147),
        ("socket_free", 295),
        ("ipv4_out", 1066),
        ("tcp_ipv4_in", 252),
        ("udp_ipv4_in", 578),
        ("tcp_ipv6_out", 577),
        ("udp_ipv6_out", 596),
        ("tcp_ipv6_in", 279),
        ("udp_ipv6_in", 613),
        ("local_drops", 13),
    ];
    assert_eq!(sizes, expected);
}
