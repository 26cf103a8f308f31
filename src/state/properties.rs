//! Properties that hold for any events in any order: lost, repeated, late, with reused addresses.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::model::event::{
    Dropped, Fork, Fragmented, Packet, PacketDirection, PacketSize, Segments, SocketUser, TcpState, Tuple,
    UnreadablePacket,
};
use crate::model::flow::{Counters, Endpoint, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::loss::{LossCause, LostFacts};
use crate::model::testing::{monotonic, since_boot, sock_at};
use crate::model::totals::{TcpTotals, Totals};

const SECOND: u64 = 1_000_000_000;
const LIMIT: usize = 12;

/// Few addresses, so that events share them.
fn tuples() -> impl Strategy<Value = Tuple> {
    (0..2_u64, 1..4_u16, 1..4_u16).prop_map(|(net, local, remote)| Tuple {
        net: NetAddress::new(net),
        local: Endpoint::new(Ipv4Addr::LOCALHOST, local),
        remote: Endpoint::new(Ipv4Addr::LOCALHOST, 1000 + remote),
    })
}

/// Few sockets, so that events share them.
fn socks() -> impl Strategy<Value = SockAddress> {
    (1..6_u64).prop_map(sock_at)
}

/// The same, and some are unknown.
fn maybe_socks() -> impl Strategy<Value = Option<SockAddress>> {
    (0..6_u64).prop_map(SockAddress::new)
}

fn packets() -> impl Strategy<Value = EventKind> {
    let direction = prop_oneof![Just(PacketDirection::Outbound), Just(PacketDirection::Inbound)];
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
    let segments = proptest::option::of((any::<u32>(), any::<u32>()));
    let data_len = prop_oneof![Just(0), any::<u32>()];
    let fragment = prop_oneof![4 => Just(0), 1 => any::<u16>()];
    (direction, transport, maybe_socks(), tuples(), 40..2000_u32, any::<u8>(), segments, data_len, fragment).prop_map(
        |(direction, transport, sock, tuple, bytes, tcp_flags, segments, data_len, fragment)| {
            // A datagram always has a socket.
            let sock = if transport == Transport::Udp { sock.or(SockAddress::new(1)) } else { sock };
            let segments = segments.map(|(received, sent)| Segments { received, sent });
            let size = PacketSize { bytes, headers: 40 };
            let packet = Packet::new(direction, transport, sock, tuple, size);
            EventKind::Packet(Packet { tcp_flags, segments, data_len, fragment, ..packet })
        },
    )
}

fn dropped() -> impl Strategy<Value = EventKind> {
    let transport = prop_oneof![Just(None), Just(Some(Transport::Tcp)), Just(Some(Transport::Udp))];
    (maybe_socks(), tuples(), transport, any::<bool>(), any::<u32>(), any::<bool>()).prop_map(
        |(sock, tuple, transport, has_ends, bytes, with_others)| {
            let ends = has_ends.then_some((tuple.local, tuple.remote));
            let other_protocol = transport.is_none() && has_ends;
            let may_have_arrived = bytes % 2 == 0;
            let dropped = Dropped {
                sock,
                transport,
                other_protocol,
                ends,
                bytes,
                with_others,
                may_have_arrived,
                may_be_drivers: bytes % 3 == 0,
            };
            EventKind::Dropped(dropped)
        },
    )
}

fn kinds() -> impl Strategy<Value = EventKind> {
    let users = any::<bool>().prop_map(|program| if program { SocketUser::Program } else { SocketUser::Kernel });
    let states = prop_oneof![Just(TcpState::Established), (0..120).prop_map(|error| TcpState::Closed { error })];
    prop_oneof![
        8 => packets(),
        1 => (1..20_u32, any::<Option<u64>>()).prop_map(|(child, start)| EventKind::Fork(Fork { child, start: start.map(since_boot) })),
        1 => Just(EventKind::Exit),
        2 => (socks(), users).prop_map(|(sock, user)| EventKind::SocketCreated { sock, user }),
        1 => socks().prop_map(|sock| EventKind::UdpGroEnabled { sock }),
        1 => socks().prop_map(|sock| EventKind::UdpGsoEnabled { sock }),
        1 => (maybe_socks(), tuples(), any::<u32>(), any::<u16>()).prop_map(|(sock, tuple, bytes, first)| {
            EventKind::Fragmented(Fragmented { transport: Transport::Udp, sock, tuple, bytes, first })
        }),
        1 => dropped(),
        1 => (socks(), tuples()).prop_map(|(sock, t)| EventKind::ConnectBegins { sock, remote: t.remote }),
        1 => (-120..1).prop_map(|result| EventKind::ConnectReturns { result }),
        1 => (socks(), tuples()).prop_map(|(sock, tuple)| EventKind::Accepted { sock, tuple }),
        1 => (socks(), tuples(), states).prop_map(|(sock, tuple, state)| EventKind::TcpState {
            sock,
            tuple,
            state,
            segments: Some(Segments::default())
        }),
        1 => (socks(), socks(), any::<bool>())
            .prop_map(|(sock, mptcp, joined)| EventKind::Subflow { sock, mptcp, joined }),
        2 => socks().prop_map(|sock| EventKind::SocketReleased { sock }),
        1 => socks().prop_map(|sock| EventKind::SocketFreed { sock }),
        1 => (socks(), 1..120).prop_map(|(sock, error)| EventKind::SocketError { sock, error }),
        1 => (0..1000 * SECOND).prop_map(|since| EventKind::NamesMissed { since: monotonic(since) }),
        1 => (1..9_u64).prop_map(|count| EventKind::Lost { cause: LossCause::Ring { cpu: 0 }, count, since: monotonic(0), facts: LostFacts::ALL }),
        1 => (maybe_socks(), tuples(), any::<bool>()).prop_map(|(sock, tuple, ports)| EventKind::UnreadablePacket(UnreadablePacket {
            net: tuple.net,
            transport: Transport::Tcp,
            sock,
            ports: ports.then_some((tuple.local.port, tuple.remote.port)),
        })),
    ]
}

/// Milliseconds since the event before (negative if it comes late), the process, and what happened.
fn stories() -> impl Strategy<Value = Vec<(i64, u32, EventKind)>> {
    vec((prop_oneof![20 => 0..50_i64, 1 => -20..0_i64, 1 => 0..40_000_i64], 1..20_u32, kinds()), 0..400)
}

impl State {
    /// Panics if the tables contradict each other.
    pub(super) fn check(&self) {
        self.flows.check(&self.sockets);
        self.idle.check(&self.sockets);
        self.questions.check(&self.flows);
    }
}

fn run(story: &[(i64, u32, EventKind)], config: StateConfig) -> (State, Vec<Flow>, MonotonicTime) {
    run_with(State::new(config), story)
}

fn run_with(mut state: State, story: &[(i64, u32, EventKind)]) -> (State, Vec<Flow>, MonotonicTime) {
    let mut flows = Vec::new();
    let mut now = 100 * SECOND;
    for (step, pid, kind) in story {
        now = now.saturating_add_signed(step * 1_000_000);
        state.ingest(&Event { time: monotonic(now), pid: *pid, tid: *pid, kind: kind.clone() });
        state.expire(monotonic(now));
        state.check();
        flows.extend(state.finished());
    }
    (state, flows, monotonic(now))
}

fn small() -> StateConfig {
    StateConfig {
        max_flows: LIMIT,
        max_sockets: LIMIT,
        max_processes: LIMIT,
        flow_report_interval: Some(Duration::from_secs(3)),
        ..StateConfig::default()
    }
}

proptest! {
    #[test]
    fn each_flow_ends_once_and_is_not_reported_after_its_end(story in stories()) {
        let (mut state, mut flows, _) = run(&story, small());
        state.shutdown();
        flows.extend(state.finished());
        let mut last: HashMap<u64, Flow> = HashMap::new();
        for flow in flows {
            prop_assert!(flow.end >= flow.start);
            if let Some(before) = last.get(&flow.number) {
                prop_assert_eq!(before.reason, Reason::Interim, "after the end of {}", flow.number);
                // Packets that were reported as sent may have been dropped since.
                let left = |flow: &Flow| flow.sent.packets + flow.dropped.packets;
                prop_assert!(left(before) <= left(&flow));
                prop_assert!(before.received.packets <= flow.received.packets);
            }
            last.insert(flow.number, flow);
        }
        prop_assert!(last.values().all(|flow| flow.reason != Reason::Interim), "every flow has an end");
        prop_assert_eq!(state.stats().flows_live, 0);
    }

    #[test]
    fn tables_are_bounded_and_empty_once_all_is_quiet(story in stories()) {
        let (mut state, _, mut now) = run(&story, small());
        let stats = state.stats();
        prop_assert!(stats.flows_live <= LIMIT as u64 && stats.sockets_live <= LIMIT as u64);
        prop_assert!(stats.processes_live <= LIMIT as u64);
        for _ in 0..10 {
            now = now.saturating_add(Duration::from_secs(50));
            state.expire(now);
        }
        let stats = state.stats();
        prop_assert_eq!(stats.flows_live, 0);
        prop_assert!(stats.idle_connections_live <= stats.sockets_live, "only connections with a socket are kept");
    }

    /// Each packet is in one flow, except packets without a flow and those of conversations without a socket.
    #[test]
    fn packets_add_up(story in stories()) {
        let plain = |kind: &EventKind| match kind {
            EventKind::Packet(packet) => packet.segments.is_none() && packet.fragment == 0,
            EventKind::Fragmented(_) | EventKind::Dropped(_) => false,
            _ => true,
        };
        let story: Vec<_> = story.into_iter().filter(|(_, _, kind)| plain(kind)).collect();
        let (mut state, mut flows, _) = run(&story, StateConfig::default());
        state.shutdown();
        flows.extend(state.finished());
        let stats = state.stats();
        let counted: u64 = flows.iter().map(|flow| flow.sent.packets + flow.received.packets).sum();
        let expected = stats.packets - stats.packets_without_flow;
        prop_assert!(counted <= expected);
        if stats.flows_without_socket == 0 {
            prop_assert_eq!(counted, expected);
        }
    }

    /// The order in which hash tables are walked has no effect.
    #[test]
    fn the_same_events_give_the_same_flows(story in stories()) {
        let (one, mut other) = (State::new(small()), State::new(small()));
        // Sockets keep 16 bits of these hashes, so with other hashes other connections would be taken for the same.
        other.flows.hash_like(&one.flows);
        prop_assert_eq!(run_with(one, &story).1, run_with(other, &story).1);
    }
}

/// Counts that contradict the events and each other.
fn totals() -> impl Strategy<Value = Totals> {
    let counters = || (0..50_u64, 0..5000_u64).prop_map(|(packets, bytes)| Counters { packets, bytes });
    let tcp = proptest::option::of((proptest::option::of(0..100_u32), any::<(u16, u16)>(), 0..9_u32)).prop_map(|tcp| {
        tcp.map(|(segs_out, received_range, merged_unsure)| TcpTotals {
            segs_out,
            received_range,
            merged_unsure,
            ..TcpTotals::default()
        })
    });
    let times = (100..102_u64, 100..200_u64);
    (socks(), tuples(), counters(), counters(), times, tcp).prop_map(|(sock, tuple, sent, received, times, tcp)| {
        Totals {
            sock,
            transport: if tcp.is_some() { Transport::Tcp } else { Transport::Udp },
            local: tuple.local,
            remote: tuple.remote,
            since: monotonic(times.0 * SECOND),
            sent,
            received,
            last: monotonic(times.1 * SECOND),
            short_datagrams: false,
            nonlinear_datagrams: false,
            tcp,
        }
    })
}

proptest! {
    /// Whatever a source says it has counted, each flow ends once, tables keep their limits, and nothing waits for ever.
    #[test]
    fn contradicting_counts_do_no_harm(story in stories(), counts in vec((totals(), 0..3_u64), 400)) {
        let mut state = State::new(small());
        state.set_capabilities(SourceCapabilities { totals: true, ..SourceCapabilities::default() });
        let (mut now, mut ended) = (100 * SECOND, HashMap::new());
        let mut end = |flow: Flow| flow.reason == Reason::Interim || ended.insert(flow.number, ()).is_none();
        for ((step, pid, kind), (totals, ahead)) in story.iter().zip(&counts) {
            now = now.saturating_add_signed(step * 1_000_000);
            let event = |kind| Event { time: monotonic(now), pid: *pid, tid: *pid, kind };
            if totals.sent.packets % 2 == 0 {
                state.ingest(&event(EventKind::Totals(Box::new(*totals))));
            }
            state.ingest(&event(kind.clone()));
            state.expire(monotonic(now));
            state.check();
            while let Some(question) = state.next_question() {
                let answer = (totals.received.packets % 3 > 0).then_some(Totals { sock: question.conversation.sock, ..*totals });
                state.answer(question, answer, monotonic(now + ahead * SECOND));
                state.check();
            }
            prop_assert!(state.finished().all(&mut end));
        }
        state.ask_all();
        while let Some(question) = state.next_question() {
            state.answer(question, None, monotonic(now));
        }
        state.shutdown();
        prop_assert!(state.finished().all(&mut end));
        prop_assert_eq!(state.stats().flows_live, 0);
        state.check();
    }
}

/// Ten million events of short connections, a tenth of that without optimisation: nothing is left behind.
#[test]
fn memory_stays_flat() {
    const ROUNDS: u64 = if cfg!(debug_assertions) { 125_000 } else { 1_250_000 };
    let mut state = State::new(StateConfig::default());
    let mut now = 100 * SECOND;
    let mut most = 0;
    for round in 0..ROUNDS {
        let port = u16::try_from(round % 60_000).unwrap() + 1;
        let tuple = Tuple {
            net: NetAddress::new(1),
            local: Endpoint::new(Ipv4Addr::LOCALHOST, port),
            remote: Endpoint::new(Ipv4Addr::LOCALHOST, 80),
        };
        let sock = round % 50_000 * 64 + 64;
        let packet = |direction| {
            let size = PacketSize { bytes: 60, headers: 40 };
            let (transport, tcp_flags) = (Transport::Tcp, 0x10);
            EventKind::Packet(Packet {
                tcp_flags,
                ..Packet::new(direction, transport, SockAddress::new(sock), tuple, size)
            })
        };
        for kind in [
            EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program },
            EventKind::ConnectBegins { sock: sock_at(sock), remote: tuple.remote },
            packet(PacketDirection::Outbound),
            EventKind::ConnectReturns { result: 0 },
            packet(PacketDirection::Inbound),
            packet(PacketDirection::Outbound),
            EventKind::SocketReleased { sock: sock_at(sock) },
            EventKind::SocketFreed { sock: sock_at(sock) },
        ] {
            now += 12_500;
            state.ingest(&Event { time: monotonic(now), pid: 7, tid: 7, kind });
        }
        state.expire(monotonic(now));
        state.finished().for_each(drop);
        most = most.max(state.stats().flows_live);
    }
    assert_eq!(state.stats().events, 8 * ROUNDS);
    // 10,000 connections a second that linger for 5 s, and a tick.
    assert!(most <= 52_000, "{most} live flows");
    assert!(state.stats().sockets_live <= 52_000);
}
