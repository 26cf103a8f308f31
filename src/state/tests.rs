//! Stories: the events of a host, and the flows that must result from them.

mod accepts;
mod clocks;
mod coarse_clock;
mod connections;
mod control_group;
mod counting;
mod datagrams;
mod dropped;
mod idle;
mod losses;
mod names;
mod outcomes;
mod preexisting;
mod reports;
mod sharing;
mod small_sockets;
mod sockless;
mod subflows;
mod totals;
mod unreadable;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::model::event::{
    Exec, Execs, Fork, Packet, PacketDirection, PacketSize, Segments, SocketUser, SourceCapabilities, TcpState, Tuple,
    tcp_flags,
};
use crate::model::flow::{Counters, Direction, Endpoint, Inexact, Outcome, Owner, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::process::Credentials;
use crate::model::testing::{monotonic, since_boot, sock_at};

const SECOND: u64 = 1_000_000_000;
const NET: Option<NetAddress> = NetAddress::new(0xffff_0000);
const OTHER_NET: Option<NetAddress> = NetAddress::new(0xffff_0001);
const SHELL: u32 = 100;
const CURL: u32 = 101;
const SERVER: u32 = 200;

/// A source that observes everything.
const CAPABILITIES: SourceCapabilities = SourceCapabilities {
    programs: true,
    single_datagrams: true,
    gso_head_len: 0,
    driver_drops_unclear: false,
    control_group_moves: true,
    control_group: None,
    full_sockets_only: false,
    totals: false,
    execs: Execs::Seen,
};

/// A state machine, the time now in nanoseconds, and the flows that it has handed out.
struct Story {
    state: State,
    now: u64,
    out: Vec<Flow>,
}

impl Story {
    fn new() -> Self {
        Self::with(StateConfig { own_pid: 1, ..StateConfig::default() })
    }

    fn with(config: StateConfig) -> Self {
        let mut story = Self { state: State::new(config), now: 100 * SECOND, out: Vec::new() };
        story.state.set_capabilities(CAPABILITIES);
        story.say(1, EventKind::Fork(Fork { child: SHELL, start: Some(since_boot(1)) }));
        story.say(SHELL, exec("/bin/sh", b"sh\0"));
        story.say(SHELL, EventKind::Credentials(Credentials { uid: 1000, gid: 1000, euid: 1000, egid: 1000 }));
        story.say(SHELL, EventKind::Fork(Fork { child: CURL, start: Some(since_boot(2)) }));
        story.say(CURL, exec("/usr/bin/curl", b"curl\0http://h/\0"));
        story.say(1, EventKind::Fork(Fork { child: SERVER, start: Some(since_boot(3)) }));
        story.say(SERVER, exec("/usr/sbin/httpd", b"httpd\0"));
        story
    }

    /// An event a microsecond later, in the context of the main thread of `pid`.
    fn say(&mut self, pid: u32, kind: EventKind) {
        self.now += 1000;
        self.state.ingest(&Event { time: monotonic(self.now), pid, tid: pid, kind });
        self.state.check();
        self.out.extend(self.state.finished());
    }

    fn packet(
        &mut self,
        direction: PacketDirection,
        transport: Transport,
        sock: u64,
        tuple: Tuple,
        bytes: u32,
        flags: u8,
    ) {
        let headers = if tuple.local.ip.is_ipv4() { 20 } else { 40 } + if flags == 0 { 8 } else { 20 };
        // Whatever task was interrupted: its pid must not matter.
        let size = PacketSize { bytes, headers };
        let packet =
            Packet { tcp_flags: flags, ..Packet::new(direction, transport, SockAddress::new(sock), tuple, size) };
        self.say(4_000_000, EventKind::Packet(packet));
    }

    fn tcp(&mut self, direction: PacketDirection, sock: u64, tuple: Tuple, bytes: u32, flags: u8) {
        self.packet(direction, Transport::Tcp, sock, tuple, bytes, flags);
    }

    fn udp(&mut self, direction: PacketDirection, sock: u64, tuple: Tuple, bytes: u32) {
        self.packet(direction, Transport::Udp, sock, tuple, bytes, 0);
    }

    /// A client's whole connection: 3 packets out, 2 in.
    fn conversation(&mut self, pid: u32, sock: u64, tuple: Tuple) {
        self.say(pid, EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program });
        self.say(pid, EventKind::ConnectBegins { sock: sock_at(sock), remote: tuple.remote });
        self.tcp(PacketDirection::Outbound, sock, tuple, 60, SYN);
        self.say(pid, EventKind::ConnectReturns { result: 0 });
        self.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN | ACK);
        self.state_is(sock, tuple, TcpState::Established);
        self.tcp(PacketDirection::Outbound, sock, tuple, 100, ACK);
        self.tcp(PacketDirection::Inbound, 0, tuple, 500, ACK);
        self.tcp(PacketDirection::Outbound, sock, tuple, 40, FIN | ACK);
        self.say(pid, EventKind::SocketReleased { sock: sock_at(sock) });
    }

    fn state_is(&mut self, sock: u64, tuple: Tuple, state: TcpState) {
        self.say(0, EventKind::TcpState { sock: sock_at(sock), tuple, state, segments: Some(Segments::default()) });
    }

    fn wait(&mut self, seconds: u64) {
        self.now += seconds * SECOND;
        self.state.expire(monotonic(self.now));
        self.state.check();
        self.out.extend(self.state.finished());
    }

    /// The only flow that was handed out since the last call.
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
