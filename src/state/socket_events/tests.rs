//! Calls, step by step, as samples show them.

use super::*;
use crate::model::event::{EventKind, Segments, TcpState, Tuple};
use crate::model::flow::Endpoint;
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::socket_event::UnixName;
use crate::model::testing::{monotonic, sock_at};

const PID: u32 = 100;
const ANY: Option<Address> = None;

struct Machine {
    events: SocketEvents,
    processes: Processes,
    time: u64,
    /// The thread's name in the next step.
    thread_name: Option<ThreadName>,
}

impl Machine {
    fn new(wanted: Actions) -> Self {
        Self { events: SocketEvents::new(wanted, 1, 4), processes: Processes::new(100), time: 0, thread_name: None }
    }

    fn step(&mut self, tid: u32, step: Step) {
        self.time += 1;
        let event = Event { time: monotonic(self.time), pid: PID, tid, kind: EventKind::Exit };
        self.events.step(&event, &step, self.thread_name.take(), &mut self.processes);
    }

    fn enter(&mut self, call: Call, fd: i32) {
        self.step(7, Step::Entered(Entered::Other { call, fd }));
    }

    fn returns(&mut self, call: Call, layer: Layer, value: i64) {
        self.step(7, Step::Returned { call, layer, value });
    }

    fn emitted(&mut self) -> Vec<SocketEvent> {
        self.events.events().collect()
    }

    /// The only event.
    fn one(&mut self) -> SocketEvent {
        let mut emitted = self.emitted();
        assert_eq!(emitted.len(), 1, "{emitted:#?}");
        emitted.remove(0)
    }
}

fn tcp(id: u64) -> SocketSnapshot {
    SocketSnapshot {
        id: SocketId(id),
        sock: SockAddress::new(id * 64),
        family: Family::INET,
        kind: SocketType::STREAM,
        protocol: Some(6),
        state: SocketState::CLOSE,
        local: None,
        remote: None,
    }
}

fn unix(id: u64) -> SocketSnapshot {
    SocketSnapshot { family: Family::UNIX, protocol: Some(0), ..tcp(id) }
}

fn end(port: u16) -> IpEnd {
    IpEnd::new([127, 0, 0, 1], port)
}

fn reach(socket: SocketSnapshot, operation: Operation) -> Step {
    Step::Reached { socket, operation }
}

fn path(name: &[u8]) -> Address {
    Address::Unix(UnixName::Path(name.into()))
}

#[test]
fn a_creation_has_the_descriptor() {
    let mut machine = Machine::new(Actions::ALL);
    machine.step(
        7,
        Step::Entered(Entered::Create { layer: Layer::SystemCall, family: 2, kind: 1 | 0o2_000_000, protocol: 0 }),
    );
    machine.step(7, reach(tcp(5), Operation::Create { protocol: 0 }));
    machine.returns(Call::Create, Layer::SystemCall, 3);
    let event = machine.one();
    assert_eq!(
        (&event.action, event.result, event.fd),
        (&Action::Create { protocol: 0 }, CallResult::Success, Some(3))
    );
    assert_eq!((event.socket.id, event.socket.owner.unwrap().pid), (SocketId(5), PID));
    assert_eq!((event.before, event.process.unwrap().pid, event.tid), (None, PID, 7));
}

#[test]
fn a_failed_creation_has_the_requested_family_type_and_protocol() {
    let mut machine = Machine::new(Actions::ALL);
    machine
        .step(7, Step::Entered(Entered::Create { layer: Layer::SystemCall, family: 2, kind: 3 | 0o4000, protocol: 1 }));
    machine.returns(Call::Create, Layer::SystemCall, -1);
    let event = machine.one();
    assert_eq!((event.result, event.fd, event.socket.id), (CallResult::Failure(1), None, SocketId(0)));
    assert_eq!((event.socket.kind, event.socket.protocol), (Some(SocketType::RAW), Some(1)));
    assert_eq!(machine.events.len(), 0);
}

#[test]
fn the_creations_of_a_socketpair_have_no_descriptors() {
    let mut machine = Machine::new(Actions::ALL);
    machine.step(7, reach(unix(5), Operation::Create { protocol: 0 }));
    machine.step(7, reach(unix(6), Operation::Create { protocol: 0 }));
    let emitted = machine.emitted();
    assert_eq!(emitted.iter().map(|event| (event.socket.id.0, event.fd)).collect::<Vec<_>>(), [(5, None), (6, None)]);
}

#[test]
fn a_bind_that_fails_leaves_the_socket_without_an_address() {
    let mut machine = Machine::new(Actions::ALL);
    for (name, value) in [(b"/a", -98), (b"/b", 0)] {
        machine.enter(Call::Bind, 4);
        machine.step(7, reach(unix(5), Operation::Bind(Some(path(name)))));
        machine.returns(Call::Bind, Layer::Socket, value);
        machine.returns(Call::Bind, Layer::SystemCall, value);
        let event = machine.one();
        assert_eq!((event.result, event.fd), (CallResult::of(value), Some(4)));
        assert_eq!(event.socket.local, Some(path(name)));
    }
    machine.step(7, Step::Released { socket: unix(5) });
    assert_eq!(machine.one().socket.local, Some(path(b"/b")));
}

#[test]
fn a_call_through_io_uring_ends_when_it_returns_to_io_uring() {
    let mut machine = Machine::new(Actions::ALL);
    machine.step(7, reach(tcp(5), Operation::Connect(Some(Address::Ip(end(80))))));
    machine.step(7, Step::Connecting { local: Some(end(4000)) });
    machine.returns(Call::Connect, Layer::Socket, -115);
    let event = machine.one();
    assert_eq!((event.fd, event.result), (None, CallResult::Failure(115)));
    assert_eq!((event.before, event.socket.state), (Some(SocketState::CLOSE), Some(SocketState::SYN_SENT)));
    assert_eq!(event.socket.local, Some(Address::Ip(end(4000))));
    assert_eq!(event.socket.remote, Some(Address::Ip(end(80))));
}

#[test]
fn a_refused_connect_has_the_remote_address_but_its_socket_does_not() {
    let mut machine = Machine::new(Actions::ALL);
    machine.enter(Call::Connect, 3);
    machine.step(7, reach(tcp(5), Operation::Connect(Some(Address::Ip(end(1))))));
    machine.step(7, Step::Connecting { local: Some(end(4000)) });
    machine.returns(Call::Connect, Layer::SystemCall, -111);
    let event = machine.one();
    assert_eq!(event.socket.remote, Some(Address::Ip(end(1))));
    assert_eq!(event.socket.state, Some(SocketState::CLOSE));
    machine.step(7, Step::Released { socket: tcp(5) });
    let event = machine.one();
    assert_eq!((event.socket.local, event.socket.remote), (None, None));
}

#[test]
fn an_accept_has_the_connection_and_its_listener() {
    let mut machine = Machine::new(Actions::ALL);
    machine.step(7, Step::Entered(Entered::Listen { fd: 3, backlog: 9999 }));
    let listener = SocketSnapshot { local: Some(end(80)), ..tcp(5) };
    machine.step(7, reach(listener, Operation::Listen { backlog: 4096 }));
    machine.returns(Call::Listen, Layer::SystemCall, 0);
    let event = machine.one();
    assert_eq!(event.action, Action::Listen { backlog: 9999 });
    assert_eq!(event.socket.state, Some(SocketState::LISTEN));

    machine.enter(Call::Accept, 3);
    machine.step(7, reach(SocketSnapshot { state: SocketState::LISTEN, ..listener }, Operation::Accept));
    let connection = SocketSnapshot { state: SocketState::ESTABLISHED, remote: Some(end(4000)), ..listener };
    machine.step(7, Step::Accepted { socket: SocketSnapshot { id: SocketId(6), ..connection } });
    machine.returns(Call::Accept, Layer::SystemCall, 8);
    let event = machine.one();
    let of = Listener { id: SocketId(5), local: Some(Address::Ip(end(80))) };
    assert_eq!(event.action, Action::Accept { listener: of, accepted: Some(8) });
    assert_eq!((event.fd, event.socket.id, event.before), (Some(3), SocketId(6), None));
    assert_eq!(event.socket.remote, Some(Address::Ip(end(4000))));
    assert_eq!(event.socket.owner.unwrap().pid, PID);
}

#[test]
fn a_failed_accept_has_the_listener() {
    let mut machine = Machine::new(Actions::ALL);
    machine.enter(Call::Accept, 3);
    machine.step(7, reach(SocketSnapshot { state: SocketState::LISTEN, ..tcp(5) }, Operation::Accept));
    machine.returns(Call::Accept, Layer::SystemCall, -11);
    machine.step(7, Step::Released { socket: SocketSnapshot { sock: None, ..tcp(6) } });
    let event = machine.one();
    assert_eq!((event.result, event.socket.id), (CallResult::Failure(11), SocketId(5)));
    assert!(matches!(event.action, Action::Accept { accepted: None, .. }));
}

#[test]
fn calls_without_a_socket_and_unwanted_actions_make_no_event() {
    let mut machine = Machine::new(Actions::CLOSE);
    machine.enter(Call::Bind, 99);
    machine.returns(Call::Bind, Layer::SystemCall, -9);
    machine.enter(Call::Bind, 4);
    machine.step(7, reach(unix(5), Operation::Bind(Some(path(b"/b")))));
    machine.returns(Call::Bind, Layer::SystemCall, 0);
    assert!(machine.emitted().is_empty());
    machine.step(7, Step::Released { socket: unix(5) });
    let event = machine.one();
    assert_eq!((event.before, event.socket.state), (Some(SocketState::CLOSE), Some(SocketState::CLOSE)));
    assert_eq!(event.socket.local, Some(path(b"/b")));
}

#[test]
fn a_call_with_a_missed_return_is_reported_with_the_next_call_and_counted() {
    let mut machine = Machine::new(Actions::ALL);
    machine.enter(Call::Connect, 3);
    machine.step(7, reach(tcp(5), Operation::Connect(ANY)));
    machine.enter(Call::Bind, 3);
    assert_eq!(machine.one().result, CallResult::Unknown);
    assert_eq!(machine.events.unfinished, 1);
}

#[test]
fn threads_do_not_disturb_each_other() {
    let mut machine = Machine::new(Actions::ALL);
    for tid in [7, 8] {
        machine.step(tid, Step::Entered(Entered::Other { call: Call::Connect, fd: tid as i32 }));
        let to = Some(Address::Ip(end(tid as u16)));
        machine.step(tid, reach(tcp(u64::from(tid)), Operation::Connect(to)));
    }
    for tid in [8, 7] {
        machine.step(tid, Step::Returned { call: Call::Connect, layer: Layer::SystemCall, value: 0 });
    }
    let emitted: Vec<_> = machine.emitted().iter().map(|event| (event.fd, event.socket.id.0)).collect();
    assert_eq!(emitted, [(Some(8), 8), (Some(7), 7)]);
}

#[test]
fn preexisting_sockets_are_known_and_marked() {
    let mut machine = Machine::new(Actions::ALL);
    let old = EventSocket { existing: true, local: Some(path(b"/old")), ..from_snapshot(&unix(5)) };
    machine.events.add_preexisting(old);
    assert!(machine.emitted().is_empty());
    machine.step(7, Step::Released { socket: unix(5) });
    let event = machine.one();
    assert!(event.socket.existing);
    assert_eq!(event.socket.local, Some(path(b"/old")));
}

#[test]
fn a_socket_that_proc_shows_before_its_creation_event_comes_is_new() {
    let mut machine = Machine::new(Actions::ALL);
    machine.events.add_preexisting(EventSocket { existing: true, ..from_snapshot(&unix(5)) });
    machine.step(7, reach(unix(5), Operation::Create { protocol: 0 }));
    assert!(!machine.one().socket.existing);
    machine.step(7, Step::Released { socket: unix(5) });
    assert!(!machine.one().socket.existing);
}

#[test]
fn sockets_that_found_no_room_still_have_events() {
    let mut machine = Machine::new(Actions::ALL);
    for id in 1..=6 {
        machine.step(7, reach(unix(id), Operation::Create { protocol: 0 }));
    }
    assert_eq!((machine.emitted().len(), machine.events.len(), machine.events.not_remembered), (6, 4, 2));
    machine.step(7, Step::Released { socket: unix(6) });
    assert_eq!(machine.one().socket.id, SocketId(6));
}

#[test]
fn a_known_scope_id_and_the_port_of_a_closed_connection_are_kept() {
    let known = IpEnd { ip: "fe80::1".parse().unwrap(), port: 80, scope_id: 2, flow_info: 0 };
    let now = |port| Some(IpEnd { scope_id: 0, port, ..known });
    assert_eq!(merged_address(now(80), Some(Address::Ip(known))), Some(Address::Ip(known)));
    assert_eq!(merged_address(now(0), Some(Address::Ip(known))), Some(Address::Ip(known)));
    assert_eq!(merged_address(now(81), Some(Address::Ip(known))), Some(Address::Ip(IpEnd { port: 81, ..known })));
    assert_eq!(merged_address(Some(end(9)), Some(Address::Ip(known))), Some(Address::Ip(end(9))));
}

/// The `struct sock` at this address enters a state, while something else runs.
fn enters(machine: &mut Machine, sock: SockAddress, state: TcpState) {
    let tuple = Tuple {
        net: NetAddress::new(1),
        local: Endpoint::new([127, 0, 0, 1], 9),
        remote: Endpoint::new([127, 0, 0, 1], 80),
    };
    machine.time += 1;
    let kind = EventKind::TcpState { sock, tuple, state, segments: Some(Segments::default()) };
    let event = Event { time: monotonic(machine.time), pid: 0, tid: 0, kind };
    machine.events.tcp_state(&event, sock, &tuple, state);
}

/// Makes socket 5 and begins to connect it.
fn connecting(wanted: Actions) -> Machine {
    let mut machine = Machine::new(wanted);
    machine.step(7, reach(tcp(5), Operation::Create { protocol: 0 }));
    machine.enter(Call::Connect, 3);
    machine.step(7, reach(tcp(5), Operation::Connect(Some(Address::Ip(end(80))))));
    machine
}

fn emitted_states(machine: &mut Machine) -> Vec<(&'static str, Option<SocketState>, Option<SocketState>)> {
    machine.emitted().into_iter().map(|event| (event.action.name(), event.before, event.socket.state)).collect()
}

const STATES: Actions = Actions::CONNECT.or(Actions::STATE);
const CLOSE: Option<SocketState> = Some(SocketState::CLOSE);
const SYN_SENT: Option<SocketState> = Some(SocketState::SYN_SENT);
const ESTABLISHED: Option<SocketState> = Some(SocketState::ESTABLISHED);

#[test]
fn a_nonblocking_connect_is_established_later() {
    let mut machine = connecting(STATES);
    machine.returns(Call::Connect, Layer::SystemCall, -115);
    enters(&mut machine, sock_at(5 * 64), TcpState::Established);
    let emitted = machine.emitted();
    let [connect, state] = &emitted[..] else { panic!("{emitted:#?}") };
    assert_eq!((connect.socket.state, &connect.action), (SYN_SENT, &Action::Connect));
    assert_eq!((state.before, state.socket.state, &state.action), (SYN_SENT, ESTABLISHED, &Action::State));
    assert_eq!(state.socket.remote, Some(Address::Ip(end(80))));
    assert_eq!(state.socket.local, Some(Address::Ip(end(9))));
    assert_eq!(state.socket.owner.as_ref().map(|owner| owner.pid), Some(PID));
    assert!(state.process.is_none(), "the event may come from any thread");
}

#[test]
fn a_nonblocking_connect_may_be_established_before_the_call_returns() {
    let mut machine = connecting(STATES);
    enters(&mut machine, sock_at(5 * 64), TcpState::Established);
    machine.returns(Call::Connect, Layer::SystemCall, -115);
    enters(&mut machine, sock_at(5 * 64), TcpState::Closed { error: 104 });
    let expected = [("state", CLOSE, ESTABLISHED), ("connect", CLOSE, ESTABLISHED), ("state", ESTABLISHED, CLOSE)];
    assert_eq!(emitted_states(&mut machine), expected);
}

#[test]
fn states_of_unknown_sockets_make_no_event() {
    let mut machine = connecting(STATES);
    enters(&mut machine, sock_at(6 * 64), TcpState::Established);
    machine.returns(Call::Connect, Layer::SystemCall, 0);
    machine.step(7, Step::Released { socket: tcp(5) });
    enters(&mut machine, sock_at(5 * 64), TcpState::Closed { error: 0 });
    assert_eq!(emitted_states(&mut machine), [("connect", CLOSE, ESTABLISHED)]);
    assert!(machine.events.by_sock.is_empty());
}

#[test]
fn sockets_are_not_indexed_unless_states_are_wanted() {
    let mut machine = connecting(Actions::CONNECT);
    enters(&mut machine, sock_at(5 * 64), TcpState::Established);
    machine.returns(Call::Connect, Layer::SystemCall, -115);
    assert_eq!(emitted_states(&mut machine), [("connect", CLOSE, SYN_SENT)]);
    assert!(machine.events.by_sock.is_empty());
}

#[test]
fn an_accept_that_began_before_the_monitor_has_no_listener() {
    let mut machine = Machine::new(Actions::ALL);
    machine.step(
        7,
        Step::Accepted { socket: SocketSnapshot { state: SocketState::ESTABLISHED, local: Some(end(80)), ..tcp(6) } },
    );
    let event = machine.one();
    let listener = Listener { id: SocketId(0), local: None };
    assert_eq!((event.action, event.fd, event.before), (Action::Accept { listener, accepted: None }, None, None));
    assert_eq!((event.socket.id, event.socket.owner.map(|owner| owner.pid)), (SocketId(6), Some(PID)));
    assert_eq!(machine.events.len(), 1);
}

#[test]
fn failed_creations_and_accepts_by_io_uring_are_reported() {
    let mut machine = Machine::new(Actions::ALL);
    let create = Entered::Create { layer: Layer::Socket, family: 2, kind: 3, protocol: 1 };
    machine.step(7, Step::Entered(create));
    machine.returns(Call::Create, Layer::Socket, -93);
    let event = machine.one();
    assert_eq!((event.result, event.fd, event.socket.kind), (CallResult::Failure(93), None, Some(SocketType::RAW)));

    machine.step(7, Step::Entered(create));
    machine.step(7, Step::Reached { socket: tcp(5), operation: Operation::Create { protocol: 1 } });
    machine.returns(Call::Create, Layer::Socket, 0);
    let event = machine.one();
    assert_eq!((event.result, event.fd, event.socket.id), (CallResult::Success, None, SocketId(5)));

    for (value, emitted) in [(-11, None), (-22, Some(CallResult::Failure(22)))] {
        machine.step(7, Step::Reached { socket: tcp(6), operation: Operation::Accept });
        machine.returns(Call::Accept, Layer::Socket, value);
        assert_eq!(machine.emitted().first().map(|event| event.result), emitted);
    }
}

/// A datagram leaves from this port of 192.0.2.1.
fn sends(machine: &mut Machine, sock: u64, port: u16) {
    use crate::model::event::{Packet, PacketDirection, PacketSize};
    use crate::model::flow::Transport;
    let address = |port| Endpoint { ip: "192.0.2.1".parse().unwrap(), port };
    let tuple = Tuple { net: NetAddress::new(1), local: address(port), remote: address(53) };
    let packet = Packet::new(
        PacketDirection::Outbound,
        Transport::Udp,
        SockAddress::new(sock),
        tuple,
        PacketSize { bytes: 60, headers: 28 },
    );
    let event = Event { time: monotonic(99), pid: 0, tid: 0, kind: EventKind::Packet(packet) };
    machine.events.datagram(&event, &packet);
}

#[test]
fn sending_gives_a_port_and_to_a_connected_socket_an_address() {
    let udp = |id, remote| SocketSnapshot { kind: SocketType::DGRAM, protocol: Some(17), remote, ..tcp(id) };
    let mut machine = Machine::new(Actions::CREATE.or(Actions::STATE));
    for (id, remote, ip) in [(5, None, "0.0.0.0"), (6, Some(end(53)), "192.0.2.1")] {
        machine.step(7, Step::Reached { socket: udp(id, remote), operation: Operation::Create { protocol: 17 } });
        sends(&mut machine, id * 64, 4000);
        sends(&mut machine, id * 64, 4000);
        let emitted = machine.emitted();
        let [create, state] = &emitted[..] else { panic!("{emitted:#?}") };
        assert_eq!((&create.socket.local, &state.action), (&ANY, &Action::State));
        assert_eq!(state.socket.local, Some(Address::Ip(IpEnd::new(ip.parse::<std::net::IpAddr>().unwrap(), 4000))));
        assert_eq!(state.socket.owner.as_ref().map(|owner| owner.pid), Some(PID));
    }
    sends(&mut machine, 7 * 64, 4000);
    assert!(machine.emitted().is_empty(), "the socket is not known");
}

#[test]
fn an_event_has_the_name_of_the_thread() {
    let mut machine = Machine::new(Actions::ALL);
    let name = |name: &[u8]| ThreadName::new(name);
    machine.enter(Call::Connect, 5);
    machine.thread_name = name(b"worker");
    machine.step(7, reach(tcp(5), Operation::Connect(ANY)));
    machine.returns(Call::Connect, Layer::SystemCall, 0);
    assert_eq!(machine.one().thread_name, name(b"worker"));

    // A call that fails before it reaches a socket.
    machine.thread_name = name(b"other");
    machine.step(7, Step::Entered(Entered::Create { layer: Layer::SystemCall, family: 2, kind: 1, protocol: 9 }));
    machine.returns(Call::Create, Layer::SystemCall, -93);
    assert_eq!(machine.one().thread_name, name(b"other"));

    machine.step(7, Step::Released { socket: tcp(5) });
    assert_eq!(machine.one().thread_name, None, "no step has shown it");
}
