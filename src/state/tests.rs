//! Stories: what happened on a host, told as events, and the flows that must come of it.

mod coarse_clock;
mod ends;
mod exactness;
mod losses;
mod sharing;
mod subflows;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::event::{
    Credentials, Endpoint, Exec, Execs, Fork, Packet, Segments, Sight, Size, TcpState, Transport, Tuple, Way, tcp_flags,
};
use crate::flow::{Counters, Direction, Inexact, Outcome, Owner};

const SECOND: u64 = 1_000_000_000;
const NET: u64 = 0xffff_0000;
const SHELL: u32 = 100;
const CURL: u32 = 101;
const SERVER: u32 = 200;

/// A source that tells all that one can.
const SIGHT: Sight = Sight { programs: true, single_datagrams: true, joined_head: 0, moves: true, execs: Execs::Seen };

/// A machine and the moment that the story has reached.
struct Story {
    state: State,
    now: u64,
    out: Vec<Flow>,
}

impl Story {
    fn new() -> Self {
        Self::with(Config { own_pid: 1, ..Config::default() })
    }

    fn with(config: Config) -> Self {
        let mut story = Self { state: State::new(config), now: 100 * SECOND, out: Vec::new() };
        story.state.learn_sight(SIGHT);
        story.say(1, EventKind::Fork(Fork { child: SHELL, start: Some(1) }));
        story.say(SHELL, exec("/bin/sh", b"sh\0"));
        story.say(SHELL, EventKind::Credentials(Credentials { uid: 1000, gid: 1000, euid: 1000, egid: 1000 }));
        story.say(SHELL, EventKind::Fork(Fork { child: CURL, start: Some(2) }));
        story.say(CURL, exec("/usr/bin/curl", b"curl\0http://h/\0"));
        story.say(1, EventKind::Fork(Fork { child: SERVER, start: Some(3) }));
        story.say(SERVER, exec("/usr/sbin/httpd", b"httpd\0"));
        story
    }

    fn say(&mut self, pid: u32, kind: EventKind) {
        self.now += 1000;
        self.state.ingest(&Event { time: self.now, pid, tid: pid, kind });
        self.out.extend(self.state.finished());
    }

    fn packet(&mut self, way: Way, transport: Transport, sock: u64, tuple: Tuple, bytes: u32, flags: u8) {
        let headers = if tuple.local.ip.is_ipv4() { 20 } else { 40 } + if flags == 0 { 8 } else { 20 };
        // Whatever task was interrupted: its pid must not matter.
        let size = Size { bytes, headers };
        let packet = Packet { tcp_flags: flags, ..Packet::new(way, transport, sock, tuple, size) };
        self.say(4_000_000, EventKind::Packet(packet));
    }

    fn tcp(&mut self, way: Way, sock: u64, tuple: Tuple, bytes: u32, flags: u8) {
        self.packet(way, Transport::Tcp, sock, tuple, bytes, flags);
    }

    fn udp(&mut self, way: Way, sock: u64, tuple: Tuple, bytes: u32) {
        self.packet(way, Transport::Udp, sock, tuple, bytes, 0);
    }

    /// A client's whole connection: 3 packets out, 2 in.
    fn conversation(&mut self, pid: u32, sock: u64, tuple: Tuple) {
        self.say(pid, EventKind::SocketCreated { sock, for_program: true });
        self.say(pid, EventKind::ConnectBegins { sock, remote: tuple.remote });
        self.tcp(Way::Out, sock, tuple, 60, SYN);
        self.say(pid, EventKind::ConnectReturns { result: 0 });
        self.tcp(Way::In, 0, tuple, 60, SYN | ACK);
        self.state_is(sock, tuple, TcpState::Established);
        self.tcp(Way::Out, sock, tuple, 100, ACK);
        self.tcp(Way::In, 0, tuple, 500, ACK);
        self.tcp(Way::Out, sock, tuple, 40, FIN | ACK);
        self.say(pid, EventKind::SocketReleased { sock });
    }

    fn state_is(&mut self, sock: u64, tuple: Tuple, state: TcpState) {
        self.say(0, EventKind::TcpState { sock, tuple, state, segments: Some(Segments::default()) });
    }

    fn wait(&mut self, seconds: u64) {
        self.now += seconds * SECOND;
        self.state.expire(self.now);
        self.out.extend(self.state.finished());
    }

    /// The only flow that came out since the last look.
    fn only(&mut self) -> Flow {
        assert_eq!(self.out.len(), 1, "{:#?}", self.out);
        self.out.remove(0)
    }
}

const SYN: u8 = tcp_flags::SYN;
const ACK: u8 = tcp_flags::ACK;
const FIN: u8 = tcp_flags::FIN;
const RST: u8 = tcp_flags::RST;

fn exec(path: &str, args: &[u8]) -> EventKind {
    let count = args.iter().filter(|b| **b == 0).count();
    EventKind::Exec(Box::new(Exec {
        filename: path.into(),
        interpreter: path.into(),
        arguments: args.to_vec(),
        argument_count: u32::try_from(count).ok(),
    }))
}

fn tuple(local: u16, remote: u16) -> Tuple {
    let ip = Ipv4Addr::LOCALHOST;
    Tuple { net: NET, local: Endpoint::new(ip, local), remote: Endpoint::new(ip, remote) }
}

fn owner(flow: &Flow) -> (u32, String) {
    match &flow.owner {
        Owner::Process(process) => (process.pid, process.image.name.clone()),
        other => panic!("{other:?}"),
    }
}

fn counters(packets: u64, bytes: u64) -> Counters {
    Counters { packets, bytes }
}

#[test]
fn a_clients_connection_is_one_flow_of_the_client() {
    let mut story = Story::new();
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.wait(4);
    assert!(story.out.is_empty(), "late packets are waited for");
    story.tcp(Way::In, 0, tuple(40000, 80), 40, FIN | ACK);
    story.wait(4);
    assert!(story.out.is_empty(), "a late packet starts the wait again");
    story.wait(2);
    let flow = story.only();
    assert_eq!(owner(&flow), (CURL, "curl".into()));
    assert_eq!((flow.sent, flow.received), (counters(3, 200), counters(3, 600)));
    assert_eq!((flow.direction, flow.outcome), (Direction::Egress, Outcome::Success));
    assert!(flow.complete && flow.is_final && flow.inexact == Inexact::default());
    assert_eq!(flow.reason, Reason::Closed);
    let Owner::Process(process) = flow.owner else { unreachable!() };
    assert_eq!(process.credentials.map(|c| c.uid), Some(1000), "inherited over fork and exec");
    story.wait(100);
    assert!(story.out.is_empty(), "once");
}

#[test]
fn both_ends_on_one_host_are_two_flows() {
    let mut story = Story::new();
    let (client, server) = (tuple(40000, 80), tuple(80, 40000));
    let (a, listener, child) = (0xa, 0x1, 0xb);
    story.say(SERVER, EventKind::SocketCreated { sock: listener, for_program: true });
    story.say(CURL, EventKind::SocketCreated { sock: a, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: a, remote: client.remote });
    story.tcp(Way::Out, a, client, 60, SYN);
    story.tcp(Way::In, 0, server, 60, SYN);
    story.tcp(Way::Out, listener, server, 60, SYN | ACK);
    story.tcp(Way::In, 0, client, 60, SYN | ACK);
    story.tcp(Way::Out, a, client, 52, ACK);
    story.tcp(Way::In, 0, server, 52, ACK);
    story.state_is(child, server, TcpState::Established);
    story.say(SERVER, EventKind::Accepted { sock: child, tuple: server });
    story.tcp(Way::Out, child, server, 152, ACK);
    story.tcp(Way::In, 0, client, 152, ACK);
    story.say(SERVER, EventKind::SocketReleased { sock: child });
    story.say(CURL, EventKind::SocketReleased { sock: a });
    story.wait(6);
    story.out.sort_by_key(|flow| flow.local.port);
    let [served, asked] = &story.out[..] else { panic!("{:#?}", story.out) };
    assert_eq!(owner(served), (SERVER, "httpd".into()));
    assert_eq!((served.direction, served.sock), (Direction::Ingress, child));
    assert_eq!((served.sent, served.received), (counters(2, 212), counters(2, 112)));
    assert_eq!(owner(asked), (CURL, "curl".into()));
    assert_eq!((asked.sent, asked.received), (counters(2, 112), counters(2, 212)));
    assert!(served.complete && asked.complete);
}

/// The kernel takes the port from a connection that is reset, and still has it accepted.
#[test]
fn a_connection_that_is_reset_before_the_accept_belongs_to_who_accepts_it() {
    let mut story = Story::new();
    let (listener, child, server) = (0x1, 0xb, tuple(80, 40000));
    story.tcp(Way::In, 0, server, 60, SYN);
    story.tcp(Way::Out, listener, server, 60, SYN | ACK);
    story.tcp(Way::In, 0, server, 52, ACK);
    story.state_is(child, server, TcpState::Established);
    story.tcp(Way::In, 0, server, 52, RST | ACK);
    story.state_is(child, server, TcpState::Closed { error: 104 });
    let without_port = Tuple { local: Endpoint { port: 0, ..server.local }, ..server };
    story.say(SERVER, EventKind::Accepted { sock: child, tuple: without_port });
    story.say(SERVER, EventKind::SocketReleased { sock: child });
    story.wait(6);
    let flow = story.only();
    assert_eq!((owner(&flow).0, flow.direction, flow.sock), (SERVER, Direction::Ingress, child));
    assert_eq!((flow.sent.packets, flow.received.packets), (1, 3));
}

#[test]
fn the_same_addresses_in_two_namespaces_do_not_mix() {
    let mut story = Story::new();
    let here = tuple(40000, 80);
    let there = Tuple { net: NET + 1, ..here };
    story.conversation(CURL, 0xa, here);
    story.conversation(SHELL, 0xb, there);
    story.wait(6);
    let mut owners: Vec<_> = story.out.iter().map(|flow| owner(flow).0).collect();
    owners.sort_unstable();
    assert_eq!(owners, [SHELL, CURL]);
}

#[test]
fn a_reused_address_is_another_flow() {
    let mut story = Story::new();
    story.conversation(CURL, 0xa, tuple(40000, 80));
    // At once, the same ports, the same kernel address, another process.
    story.conversation(SHELL, 0xa, tuple(40000, 80));
    assert_eq!(owner(&story.only()).0, CURL, "the first one is replaced by the second's SYN");
    story.wait(6);
    assert_eq!(owner(&story.only()).0, SHELL);
}

#[test]
fn a_knock_on_a_closed_port_is_nobodys_flow() {
    let mut story = Story::new();
    let server = tuple(1, 40000);
    story.tcp(Way::In, 0, server, 60, SYN);
    story.tcp(Way::Out, 0xcafe, server, 40, RST | ACK);
    story.wait(31);
    assert!(story.out.is_empty());
    assert_eq!(story.state.stats().flows_without_socket, 1);
}

#[test]
fn a_refused_connect_fails_with_its_reason() {
    let mut story = Story::new();
    let client = tuple(40000, 1);
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: 0xa, remote: client.remote });
    story.tcp(Way::Out, 0xa, client, 60, SYN);
    story.say(CURL, EventKind::ConnectReturns { result: 0 });
    story.tcp(Way::In, 0, client, 40, RST | ACK);
    story.state_is(0xa, client, TcpState::Closed { error: 0 });
    story.say(CURL, EventKind::SocketReleased { sock: 0xa });
    story.wait(6);
    let flow = story.only();
    assert_eq!((flow.outcome, owner(&flow).0), (Outcome::Failure(111), CURL));
}

#[test]
fn a_connect_that_sends_nothing_is_still_a_flow() {
    let mut story = Story::new();
    let remote = Endpoint::new(Ipv6Addr::LOCALHOST, 80);
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: 0xa, remote });
    story.say(CURL, EventKind::ConnectReturns { result: -101 });
    let flow = story.only();
    assert_eq!((flow.outcome, flow.remote, flow.sent), (Outcome::Failure(101), remote, counters(0, 0)));
    assert_eq!(owner(&flow).0, CURL);
}

#[test]
fn a_udp_socket_has_a_flow_for_each_remote_and_who_sent_first_began_it() {
    let mut story = Story::new();
    story.say(SERVER, EventKind::SocketCreated { sock: 0x5, for_program: true });
    story.udp(Way::In, 0x5, tuple(53, 40000), 60);
    story.udp(Way::Out, 0x5, tuple(53, 40000), 90);
    story.udp(Way::Out, 0x5, tuple(53, 50000), 70);
    story.wait(31);
    story.out.sort_by_key(|flow| flow.remote.port);
    let [asked, sent] = &story.out[..] else { panic!("{:#?}", story.out) };
    assert_eq!((asked.direction, asked.outcome), (Direction::Ingress, Outcome::Success));
    assert_eq!((asked.sent, asked.received), (counters(1, 90), counters(1, 60)));
    assert_eq!((sent.direction, sent.outcome), (Direction::Egress, Outcome::Unknown));
    assert_eq!((owner(asked).0, owner(sent).0), (SERVER, SERVER));
    assert_eq!(asked.reason, Reason::Inactive);
}

#[test]
fn a_datagram_for_two_sockets_counts_for_each() {
    let mut story = Story::new();
    for (pid, sock) in [(SERVER, 0x5), (SHELL, 0x6)] {
        story.say(pid, EventKind::SocketCreated { sock, for_program: true });
    }
    for sock in [0x5, 0x6] {
        story.udp(Way::In, sock, tuple(5353, 40000), 60);
    }
    story.wait(31);
    let mut got: Vec<_> = story.out.iter().map(|flow| (owner(flow).0, flow.received.packets)).collect();
    got.sort_unstable();
    assert_eq!(got, [(SHELL, 1), (SERVER, 1)]);
}

#[test]
fn an_idle_socket_keeps_its_owner() {
    let mut story = Story::new();
    story.say(SERVER, EventKind::SocketCreated { sock: 0x5, for_program: true });
    story.wait(100_000);
    story.udp(Way::In, 0x5, tuple(53, 40000), 60);
    story.wait(31);
    assert_eq!(owner(&story.only()).0, SERVER);
}

#[test]
fn a_socket_older_than_the_monitor_has_an_unknown_owner_and_leaves_the_cache() {
    let mut story = Story::new();
    story.udp(Way::In, 0x7, tuple(53, 40000), 60);
    story.tcp(Way::In, 0, tuple(22, 41000), 100, ACK);
    story.tcp(Way::Out, 0x8, tuple(22, 41000), 100, ACK);
    story.wait(31);
    for flow in std::mem::take(&mut story.out) {
        assert_eq!((&flow.owner, flow.direction), (&Owner::Unknown, Direction::Unknown));
        assert!(!flow.complete);
    }
    story.wait(100);
    assert_eq!(story.state.stats().sockets_live, 0);
}

#[test]
fn a_passed_on_socket_keeps_its_creator() {
    let mut story = Story::new();
    story.say(SHELL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: 0xa, remote: tuple(40000, 80).remote });
    story.tcp(Way::Out, 0xa, tuple(40000, 80), 60, SYN);
    story.wait(31);
    assert_eq!(owner(&story.only()).0, SHELL);
}

#[test]
fn the_monitors_own_traffic_is_not_reported() {
    let mut story = Story::with(Config { own_pid: CURL, ..Config::default() });
    story.conversation(CURL, 0xa, tuple(40000, 9200));
    story.wait(6);
    assert!(story.out.is_empty());
    assert_eq!(story.state.stats().flows_own, 1);
}

#[test]
fn live_flows_are_handed_out_at_the_end_and_are_not_final() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.tcp(Way::Out, 0xa, tuple(40000, 80), 60, SYN);
    story.conversation(SHELL, 0xb, tuple(40001, 80));
    story.state.shutdown();
    story.out.extend(story.state.finished());
    story.out.sort_by_key(|flow| flow.local.port);
    let finals: Vec<_> = story.out.iter().map(|flow| flow.is_final).collect();
    assert_eq!(finals, [false, true], "what was closed already is final");
    assert_eq!(story.state.stats().flows_live, 0);
}

#[test]
fn a_full_table_reports_early_instead_of_growing() {
    let mut story = Story::with(Config { max_flows: 2, ..Config::default() });
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    for port in 1..=3 {
        story.udp(Way::Out, 0xa, tuple(40000, port), 60);
        story.wait(1);
    }
    let flow = story.only();
    assert_eq!((flow.reason, flow.remote.port), (Reason::Evicted, 1));
    assert_eq!(story.state.stats().flows_live, 2);
}

#[test]
fn super_packets_count_as_the_segments_that_they_carry() {
    let mut story = Story::new();
    let client = tuple(40000, 80);
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.say(CURL, EventKind::ConnectBegins { sock: 0xa, remote: client.remote });
    let send_by = |story: &mut Story, sock, bytes, flags, sent, received| {
        let size = Size { bytes, headers: 40 };
        let segments = Some(Segments { sent, received });
        let packet = Packet::new(Way::Out, Transport::Tcp, sock, client, size);
        let packet = Packet { tcp_flags: flags, segments, ..packet };
        story.say(0, EventKind::Packet(packet));
    };
    let send = |story: &mut Story, bytes, flags, sent, received| send_by(story, 0xa, bytes, flags, sent, received);
    // A failed attempt of the same socket has left its counters at 5 and 3.
    send(&mut story, 60, SYN, 6, 3);
    story.tcp(Way::In, 0, client, 60, SYN | ACK);
    send(&mut story, 40, ACK, 7, 4);
    // 3 segments of 1000 bytes leave as one.
    send(&mut story, 3040, ACK, 10, 4);
    // 4 segments of 500 bytes arrive as one; the next packet to leave tells.
    story.tcp(Way::In, 0, client, 2040, ACK);
    send(&mut story, 40, ACK, 11, 8);
    // The kernel's own socket repeats the last word; where counters would be it has something else.
    send_by(&mut story, 0xf, 40, ACK, 60_000, 50_000);
    story.wait(31);
    let flow = story.only();
    assert_eq!(flow.sent, counters(7, 60 + 40 + (3000 + 3 * 40) + 40 + 40));
    assert_eq!(flow.received, counters(5, 60 + 2000 + 4 * 40));
}

#[test]
fn a_long_flow_is_reported_while_it_lives_and_the_last_report_agrees() {
    let interval = Some(Duration::from_secs(10));
    let mut story = Story::with(Config { flow_report_interval: interval, ..Config::default() });
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    for _ in 0..25 {
        story.udp(Way::Out, 0xa, tuple(40000, 53), 100);
        story.wait(1);
    }
    story.wait(40);
    let reports: Vec<_> = story.out.iter().map(|flow| (flow.is_final, flow.sent.packets)).collect();
    let [(false, first), (false, second), .., (true, last)] = reports[..] else { panic!("{reports:?}") };
    assert!(first < second && second <= last, "{reports:?}");
    assert_eq!(last, 25);
    assert!(story.out.iter().all(|flow| flow.number == story.out[0].number));
    assert!(reports.len() <= 4, "nothing is reported when there is no news: {reports:?}");
}

#[test]
fn what_the_filter_leaves_out_is_counted() {
    let mut config = Config::default();
    config.filter.ports.exclude = vec![80];
    config.filter.pids.exclude = vec![CURL];
    let mut story = Story::with(config);
    story.conversation(SHELL, 0xa, tuple(40000, 80));
    story.conversation(CURL, 0xb, tuple(40001, 81));
    story.conversation(SHELL, 0xc, tuple(40002, 81));
    story.wait(6);
    assert_eq!(owner(&story.only()).0, SHELL);
    let stats = story.state.stats();
    assert_eq!((stats.packets_filtered, stats.flows_filtered), (5, 1));
}

fn answer(story: &mut Story, client: Tuple, name: &str, address: &str) {
    answer_from(story, story.now, client, name, address);
}

/// An answer that came at `time` and is reported only now.
fn answer_from(story: &mut Story, time: u64, client: Tuple, name: &str, address: &str) {
    let learned = socktrail_dns::Learned {
        time,
        asked: time,
        client: client.local,
        server: client.remote,
        transport: socktrail_dns::Transport::Udp,
        interface: 1,
        name: name.into(),
        kind: socktrail_dns::Kind::A,
        addresses: [socktrail_dns::Address { ip: address.parse().unwrap(), ttl: 300 }].into(),
    };
    story.say(0, EventKind::Name(Arc::new(learned)));
}

#[test]
fn a_flow_has_the_name_that_its_owner_looked_up_and_nobody_elses() {
    let mut story = Story::new();
    for (pid, sock, port, name) in [(CURL, 0x51, 5001, "a.example"), (SHELL, 0x52, 5002, "b.example")] {
        story.say(pid, EventKind::SocketCreated { sock, for_program: true });
        story.udp(Way::Out, sock, tuple(port, 53), 60);
        answer(&mut story, tuple(port, 53), name, "127.0.0.1");
    }
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.conversation(SHELL, 0xb, tuple(40001, 80));
    story.conversation(SERVER, 0xc, tuple(40002, 80));
    // A child knows what its parent knew.
    story.say(CURL, EventKind::Fork(Fork { child: 999, start: Some(77) }));
    story.conversation(999, 0xd, tuple(40003, 80));
    story.wait(6);
    story.out.retain(|flow| flow.transport == Transport::Tcp);
    story.out.sort_by_key(|flow| flow.local.port);
    let names: Vec<_> = story.out.iter().map(|flow| flow.domain.as_deref()).collect();
    assert_eq!(names, [Some("a.example"), Some("b.example"), None, Some("a.example")]);
}

/// A process that sends its queries from port 5001.
fn asker(story: &mut Story, pid: u32) {
    story.say(pid, EventKind::SocketCreated { sock: 0x51, for_program: true });
    story.udp(Way::Out, 0x51, tuple(5001, 53), 60);
}

/// The names of the finished TCP flows, in order of their ports.
fn domains(story: &mut Story) -> Vec<Option<String>> {
    story.wait(6);
    story.out.retain(|flow| flow.transport == Transport::Tcp);
    story.out.sort_by_key(|flow| flow.local.port);
    story.out.drain(..).map(|flow| flow.domain.map(|name| name.to_string())).collect()
}

#[test]
fn an_answer_that_is_told_late_still_names_the_flow() {
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
fn names_that_share_an_address_stay_apart_however_late_they_are_told() {
    const NAMES: [&str; 6] = ["a", "b", "a", "c", "b", "a"];
    for in_time in [true, false] {
        let mut story = Story::new();
        asker(&mut story, CURL);
        let mut told_late = Vec::new();
        for (port, name) in (40_000..).zip(NAMES) {
            match in_time {
                true => answer(&mut story, tuple(5001, 53), name, "127.0.0.1"),
                false => told_late.push((story.now, name)),
            }
            story.conversation(CURL, 0x1000 + u64::from(port), tuple(port, 80));
        }
        for (time, name) in told_late {
            answer_from(&mut story, time, tuple(5001, 53), name, "127.0.0.1");
        }
        assert_eq!(domains(&mut story), NAMES.map(|name| Some(name.to_owned())), "{in_time}");
    }
}

#[test]
fn a_flow_that_is_over_at_once_has_its_name() {
    let mut story = Story::with(Config { flow_termination_timeout: Duration::ZERO, ..Config::default() });
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "a", "127.0.0.1");
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.state.expire(story.now + 1);
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
    story.say(CURL, EventKind::Fork(Fork { child: 998, start: Some(77) }));
    story.say(998, EventKind::Fork(Fork { child: 999, start: Some(78) }));
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
    story.say(0, EventKind::NamesMissed { since });
    story.conversation(CURL, 0xb, tuple(40001, 80));
    answer(&mut story, tuple(5001, 53), "b", "127.0.0.1");
    story.conversation(CURL, 0xc, tuple(40002, 80));
    assert_eq!(domains(&mut story), [Some("a".to_owned()), None, Some("b".to_owned())]);
}

#[test]
fn an_answer_to_a_socket_that_had_the_port_before_names_nobodys_flow() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    let asked = story.now;
    story.say(CURL, EventKind::SocketReleased { sock: 0x51 });
    story.say(SHELL, EventKind::SocketCreated { sock: 0x52, for_program: true });
    story.udp(Way::Out, 0x52, tuple(5001, 53), 60);
    answer_from(&mut story, asked, tuple(5001, 53), "curls.example", "127.0.0.1");
    story.conversation(SHELL, 0xa, tuple(40000, 80));
    assert_eq!(domains(&mut story), [None]);
    answer(&mut story, tuple(5001, 53), "shells.example", "127.0.0.1");
    story.conversation(SHELL, 0xb, tuple(40001, 80));
    assert_eq!(domains(&mut story), [Some("shells.example".to_owned())]);
}

#[test]
fn when_two_namespaces_ask_from_the_same_ends_nobody_is_named() {
    let mut story = Story::new();
    for (pid, sock) in [(CURL, 0x51), (SHELL, 0x52)] {
        story.say(pid, EventKind::SocketCreated { sock, for_program: true });
        story.udp(Way::Out, sock, tuple(5001, 53), 60);
    }
    answer(&mut story, tuple(5001, 53), "whose.example", "127.0.0.1");
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.wait(6);
    assert_eq!(story.only().domain, None);
    assert_eq!(story.state.stats().names_without_owner, 1);
}

#[test]
fn a_socket_older_than_the_monitor_is_its_holders() {
    let mut story = Story::new();
    let old = |local: Endpoint, remote: Option<Endpoint>, transport, pid| OldSocket {
        namespace: 1,
        transport,
        local,
        remote,
        pid,
    };
    let ssh = tuple(22, 41000);
    let any = Endpoint::new(Ipv6Addr::UNSPECIFIED, 53);
    story.state.adopt_socket(&old(ssh.local, Some(ssh.remote), Transport::Tcp, SHELL));
    story.state.adopt_socket(&old(any, None, Transport::Udp, SERVER));
    // One address in two namespaces: nobody's.
    story.state.adopt_socket(&old(tuple(9, 1).local, None, Transport::Udp, SERVER));
    story.state.adopt_socket(&old(tuple(9, 1).local, None, Transport::Udp, CURL));
    story.tcp(Way::In, 0, ssh, 100, ACK);
    story.tcp(Way::Out, 0x8, ssh, 100, ACK);
    story.udp(Way::In, 0x7, tuple(53, 40000), 60);
    story.udp(Way::In, 0x9, tuple(9, 40000), 60);
    story.wait(31);
    story.out.sort_by_key(|flow| flow.local.port);
    let [shared, shell, asked] = &story.out[..] else { panic!("{:#?}", story.out) };
    assert_eq!(shared.owner, Owner::Unknown);
    assert_eq!((owner(asked).0, asked.direction), (SERVER, Direction::Ingress));
    assert_eq!((owner(shell).0, shell.complete), (SHELL, false));
}

#[test]
fn a_new_socket_with_an_old_ones_addresses_is_not_the_old_ones() {
    let mut story = Story::new();
    let old = OldSocket {
        namespace: 1,
        transport: Transport::Tcp,
        local: tuple(40000, 80).local,
        remote: Some(tuple(40000, 80).remote),
        pid: SERVER,
    };
    story.state.adopt_socket(&old);
    story.conversation(CURL, 0xa, tuple(40000, 80));
    story.tcp(Way::Out, 0x77, tuple(40000, 80), 60, SYN);
    story.wait(31);
    let owners: Vec<_> = story.out.iter().map(|flow| matches!(flow.owner, Owner::Unknown)).collect();
    assert_eq!(owners, [false, true]);
}

#[test]
fn a_flow_waits_for_answers_that_are_told_late() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    let before = story.now;
    story.say(CURL, EventKind::Fork(Fork { child: 999, start: Some(77) }));
    for (pid, sock, port) in [(CURL, 0xa, 40000), (999, 0xb, 40001)] {
        story.conversation(pid, sock, tuple(port, 80));
    }
    story.now += 50_000_000;
    story.state.expire(story.now);
    answer_from(&mut story, before, tuple(5001, 53), "a.example", "127.0.0.1");
    assert_eq!(domains(&mut story), [Some("a.example".into()), Some("a.example".into())]);
}

#[test]
fn a_port_that_asks_again_for_another_process_asks_for_that_one() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    story.say(CURL, EventKind::SocketReleased { sock: 0x51 });
    story.wait(31);
    story.say(SHELL, EventKind::SocketCreated { sock: 0x61, for_program: true });
    story.udp(Way::Out, 0x61, tuple(5001, 53), 60);
    answer(&mut story, tuple(5001, 53), "a.example", "127.0.0.1");
    story.conversation(SHELL, 0xa, tuple(40000, 80));
    assert_eq!(domains(&mut story), [Some("a.example".into())]);
}

#[test]
fn a_connection_older_than_its_flow_has_no_name_of_later() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    answer(&mut story, tuple(5001, 53), "a.example", "127.0.0.1");
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.tcp(Way::Out, 0xa, tuple(40000, 80), 100, ACK);
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
fn a_long_connection_keeps_the_name_that_was_told_late_over_later_ones() {
    let mut story = Story::new();
    asker(&mut story, CURL);
    let before = story.now;
    story.say(CURL, EventKind::SocketCreated { sock: 0xa, for_program: true });
    story.tcp(Way::Out, 0xa, tuple(40000, 80), 60, SYN);
    story.now += 50_000_000;
    story.state.expire(story.now);
    answer_from(&mut story, before, tuple(5001, 53), "a.example", "127.0.0.1");
    for name in ["b.example", "c.example"] {
        story.wait(5);
        answer(&mut story, tuple(5001, 53), name, "127.0.0.1");
    }
    story.wait(31);
    assert_eq!(domains(&mut story), [Some("a.example".into())]);
}
