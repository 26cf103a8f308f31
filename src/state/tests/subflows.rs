//! MPTCP: programs act on one socket, packets are seen with others.

use super::*;
use crate::model::testing::{since_boot, sock_at};

// MPTCP sockets, which programs hold: a listener, an accepted socket, and one that connects.
const MPTCP_LISTENER: u64 = 0x1000;
const MPTCP_ACCEPTED: u64 = 0x2000;
const MPTCP_CLIENT: u64 = 0x3000;

// TCP sockets, which send and receive: the listener's, the first subflow, and one that joined.
const TCP_LISTENER: u64 = 0x1;
const FIRST: u64 = 0x2;
const JOINED: u64 = 0x3;

/// A thread of the kernel.
const WORKER: u32 = 30;

impl Story {
    fn with_worker() -> Self {
        let mut story = Self::new();
        let process = Process {
            pid: WORKER,
            parent_pid: None,
            start: Some(since_boot(4)),
            kernel: true,
            credentials: None,
            control_groups: None,
            image: Arc::default(),
        };
        story.state.add_preexisting(PreexistingProcess { process, threads: vec![WORKER] });
        story
    }

    fn subflow(&mut self, sock: u64, mptcp: u64, joined: bool) {
        self.say(4_000_000, EventKind::Subflow { sock: sock_at(sock), mptcp: sock_at(mptcp), joined });
    }

    fn listens(&mut self, pid: u32) {
        for sock in [MPTCP_LISTENER, TCP_LISTENER] {
            self.say(pid, EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Program });
        }
    }

    /// The handshake of an incoming connection.
    fn comes_in(&mut self, sock: u64, tuple: Tuple, joined: bool) {
        self.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN);
        self.tcp(PacketDirection::Outbound, TCP_LISTENER, tuple, 60, SYN | ACK);
        self.tcp(PacketDirection::Inbound, 0, tuple, 60, ACK);
        self.subflow(sock, MPTCP_ACCEPTED, joined);
        self.state_is(sock, tuple, TcpState::Established);
    }

    fn accepts(&mut self, pid: u32, tuple: Tuple) {
        self.say(pid, EventKind::Accepted { sock: sock_at(MPTCP_ACCEPTED), tuple });
    }

    /// An outgoing packet of `count` segments, with the socket's counters after it.
    fn segments(&mut self, sock: u64, tuple: Tuple, count: u32, segments: Segments) {
        let (bytes, headers) = (52 + count * 1000, 52);
        let packet = Packet::new(
            PacketDirection::Outbound,
            Transport::Tcp,
            SockAddress::new(sock),
            tuple,
            PacketSize { bytes, headers },
        );
        let packet = Packet { tcp_flags: ACK, segments: Some(segments), ..packet };
        self.say(4_000_000, EventKind::Packet(packet));
    }

    /// The finished flows, by local port.
    fn sorted(&mut self) -> Vec<Flow> {
        self.out.sort_by_key(|flow| (flow.local.port, flow.remote.port));
        std::mem::take(&mut self.out)
    }
}

fn pid(flow: &Flow) -> Option<u32> {
    match &flow.owner {
        Owner::Process(process) => Some(process.pid),
        Owner::Kernel => Some(0),
        Owner::Unknown => None,
    }
}

#[test]
fn an_accepted_socket_that_does_not_send_does_not_change_the_counters() {
    // With and without MPTCP's own events: an accepted SMC socket has none.
    for has_subflow_events in [true, false] {
        let mut story = Story::new();
        let tuple = tuple(80, 40000);
        story.listens(SERVER);
        match has_subflow_events {
            true => story.comes_in(FIRST, tuple, false),
            false => {
                story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN);
                story.state_is(FIRST, tuple, TcpState::Established);
            }
        }
        let before = if has_subflow_events { (1, 2) } else { (0, 1) };
        story.accepts(CURL, tuple);
        story.segments(FIRST, tuple, 10, Segments { received: before.1, sent: 10 });
        let closed = EventKind::TcpState {
            sock: sock_at(FIRST),
            tuple,
            state: TcpState::Closed { error: 0 },
            segments: Some(Segments { received: before.1 + 3, sent: 10 }),
        };
        story.say(0, closed);
        story.wait(6);
        let flow = story.only();
        assert_eq!((pid(&flow), flow.direction, flow.sock), (Some(CURL), Direction::Ingress, SockAddress::new(FIRST)));
        assert_eq!(flow.sent.packets, before.0 + 10);
        assert_eq!(flow.received.packets, u64::from(before.1) + 3);
    }
}

#[test]
fn subflows_have_the_owner_of_the_accepted_socket_in_any_order_of_events() {
    let (first, joined) = (tuple(80, 40000), tuple(80, 40001));
    for early in [true, false] {
        let mut story = Story::new();
        story.listens(SERVER);
        story.comes_in(FIRST, first, false);
        if early {
            story.accepts(CURL, first);
        }
        story.comes_in(JOINED, joined, true);
        if !early {
            story.accepts(CURL, first);
        }
        story.tcp(PacketDirection::Outbound, JOINED, joined, 1000, ACK);
        story.say(CURL, EventKind::SocketReleased { sock: sock_at(MPTCP_ACCEPTED) });
        story.wait(6);
        let flows = story.sorted();
        assert_eq!(flows.iter().map(pid).collect::<Vec<_>>(), [Some(CURL); 2]);
        assert!(flows.iter().all(|flow| flow.direction == Direction::Ingress && flow.reason == Reason::Closed));
    }
}

#[test]
fn a_connection_that_is_never_accepted_belongs_to_the_listeners_owner() {
    let mut story = Story::new();
    story.listens(SERVER);
    story.comes_in(FIRST, tuple(80, 40000), false);
    story.comes_in(JOINED, tuple(80, 40001), true);
    story.say(0, EventKind::SocketFreed { sock: sock_at(MPTCP_ACCEPTED) });
    story.wait(6);
    assert_eq!(story.sorted().iter().map(pid).collect::<Vec<_>>(), [Some(SERVER); 2]);
}

#[test]
fn a_subflow_that_the_kernel_creates_has_the_owner_of_the_mptcp_socket() {
    let remote = tuple(40000, 80).remote;
    // The MPTCP socket is older than the monitor or not; the subflow is reported when it is created, when it is
    // established, or both.
    for (known, made, answered) in
        [(true, true, true), (true, true, false), (true, false, true), (false, true, false), (false, true, true)]
    {
        let mut story = Story::with_worker();
        if known {
            story.say(CURL, EventKind::SocketCreated { sock: sock_at(MPTCP_CLIENT), user: SocketUser::Program });
            story.conversation_of_subflow(CURL, FIRST, tuple(40000, 80));
        }
        story.say(WORKER, EventKind::SocketCreated { sock: sock_at(JOINED), user: SocketUser::Kernel });
        if made {
            story.subflow(JOINED, MPTCP_CLIENT, false);
        }
        story.say(WORKER, EventKind::ConnectBegins { sock: sock_at(JOINED), remote });
        story.tcp(PacketDirection::Outbound, JOINED, tuple(40001, 80), 60, SYN);
        if answered {
            story.tcp(PacketDirection::Inbound, 0, tuple(40001, 80), 60, SYN | ACK);
            story.subflow(JOINED, MPTCP_CLIENT, true);
            story.state_is(JOINED, tuple(40001, 80), TcpState::Established);
        }
        story.wait(31);
        let flows = story.sorted();
        let joined = flows.last().expect("it is there");
        assert_eq!(joined.local.port, 40001);
        assert_eq!((pid(joined), joined.direction), (known.then_some(CURL), Direction::Egress));
    }
}

/// The kernel goes on with what it was about to do when the program closed its socket.
#[test]
fn a_subflow_that_the_kernel_creates_after_the_close_has_the_owner_of_the_mptcp_socket() {
    for freed in [false, true] {
        let mut story = Story::with_worker();
        story.say(CURL, EventKind::SocketCreated { sock: sock_at(MPTCP_CLIENT), user: SocketUser::Program });
        story.conversation_of_subflow(CURL, FIRST, tuple(40000, 80));
        story.say(CURL, EventKind::SocketReleased { sock: sock_at(MPTCP_CLIENT) });
        if freed {
            story.say(0, EventKind::SocketFreed { sock: sock_at(MPTCP_CLIENT) });
        }
        story.say(WORKER, EventKind::SocketCreated { sock: sock_at(JOINED), user: SocketUser::Kernel });
        story.subflow(JOINED, MPTCP_CLIENT, false);
        story.tcp(PacketDirection::Outbound, JOINED, tuple(40001, 80), 60, SYN);
        story.wait(31);
        let flows = story.sorted();
        assert_eq!(flows.iter().map(pid).collect::<Vec<_>>(), [Some(CURL), (!freed).then_some(CURL)]);
    }
}

impl Story {
    /// The first subflow of [`MPTCP_CLIENT`], already established.
    fn conversation_of_subflow(&mut self, pid: u32, sock: u64, tuple: Tuple) {
        self.say(pid, EventKind::SocketCreated { sock: sock_at(sock), user: SocketUser::Kernel });
        self.subflow(sock, MPTCP_CLIENT, false);
        self.say(pid, EventKind::ConnectBegins { sock: sock_at(sock), remote: tuple.remote });
        self.tcp(PacketDirection::Outbound, sock, tuple, 60, SYN);
        self.say(pid, EventKind::ConnectReturns { result: 0 });
        self.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN | ACK);
        self.subflow(sock, MPTCP_CLIENT, false);
        self.state_is(sock, tuple, TcpState::Established);
    }
}

#[test]
fn the_process_that_closes_an_mptcp_socket_is_reported_for_all_subflows() {
    let mut story = Story::with_worker();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(MPTCP_CLIENT), user: SocketUser::Program });
    story.conversation_of_subflow(CURL, FIRST, tuple(40000, 80));
    story.say(WORKER, EventKind::SocketCreated { sock: sock_at(JOINED), user: SocketUser::Kernel });
    story.subflow(JOINED, MPTCP_CLIENT, false);
    story.tcp(PacketDirection::Outbound, JOINED, tuple(40001, 80), 60, SYN);
    story.say(SHELL, EventKind::SocketReleased { sock: sock_at(MPTCP_CLIENT) });
    // Its last packets belong to the same flow.
    story.tcp(PacketDirection::Outbound, JOINED, tuple(40001, 80), 52, FIN | ACK);
    story.subflow(JOINED, MPTCP_CLIENT, true);
    story.wait(6);
    let flows = story.sorted();
    assert_eq!(flows.iter().map(pid).collect::<Vec<_>>(), [Some(CURL); 2]);
    assert!(flows.iter().all(|flow| flow.last_user.as_ref().is_some_and(|user| user.pid == SHELL)));
    assert_eq!(flows[1].sent, counters(2, 112));
}

#[test]
fn an_mptcp_socket_at_a_reused_address_is_a_new_one() {
    let mut story = Story::new();
    let (old, new) = (tuple(80, 40000), tuple(80, 40002));
    story.listens(SERVER);
    story.comes_in(FIRST, old, false);
    story.accepts(CURL, old);
    // Its end was not seen.
    story.comes_in(JOINED + 1, new, false);
    story.comes_in(JOINED, tuple(80, 40001), true);
    story.wait(6);
    assert_eq!(pid(&story.only()), Some(CURL), "the old one is over");
    story.accepts(SHELL, new);
    story.wait(40);
    assert_eq!(story.sorted().iter().map(pid).collect::<Vec<_>>(), [Some(SHELL); 2]);
}

#[test]
fn a_socket_at_the_address_of_a_subflow_that_is_gone_is_not_closed_with_the_others() {
    let mut story = Story::with_worker();
    let tuple = tuple(80, 40000);
    story.listens(SERVER);
    story.comes_in(0xb, tuple, false);
    story.accepts(SERVER, tuple);
    story.say(0, EventKind::SocketFreed { sock: sock_at(0xb) });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xb), user: SocketUser::Program });
    story.udp(PacketDirection::Outbound, 0xb, super::tuple(5001, 7), 60);
    story.say(SERVER, EventKind::SocketReleased { sock: sock_at(MPTCP_ACCEPTED) });
    story.wait(6);
    story.out.retain(|flow| flow.transport == Transport::Udp);
    assert!(story.out.is_empty(), "another socket's flow goes on: {:?}", story.out);
}

/// A connection belongs to the program that established it, even if the process runs another one when the kernel shows that it
/// is a subflow.
#[test]
fn a_subflow_belongs_to_the_program_that_connected() {
    let mut story = Story::new();
    let (of_mptcp, plain) = (tuple(40000, 80), tuple(40001, 80));
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(MPTCP_CLIENT), user: SocketUser::Program });
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(FIRST), user: SocketUser::Kernel });
    story.subflow(FIRST, MPTCP_CLIENT, false);
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(0xa), user: SocketUser::Program });
    for (sock, tuple) in [(FIRST, of_mptcp), (0xa, plain)] {
        story.say(CURL, EventKind::ConnectBegins { sock: sock_at(sock), remote: tuple.remote });
        story.tcp(PacketDirection::Outbound, sock, tuple, 60, SYN);
    }
    for (sock, tuple) in [(FIRST, of_mptcp), (0xa, plain)] {
        story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN | ACK);
        story.state_is(sock, tuple, TcpState::Established);
    }
    story.say(CURL, exec("/usr/bin/wget", b"wget\0"));
    story.subflow(FIRST, MPTCP_CLIENT, false);
    story.wait(31);
    assert_eq!(story.sorted().iter().map(owner).collect::<Vec<_>>(), [(CURL, "curl".into()), (CURL, "curl".into())]);
}

#[test]
fn a_subflow_that_the_kernel_creates_belongs_to_the_owners_present_program() {
    let mut story = Story::with_worker();
    let tuple = tuple(40001, 80);
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(MPTCP_CLIENT), user: SocketUser::Program });
    story.say(CURL, exec("/usr/bin/wget", b"wget\0"));
    story.say(WORKER, EventKind::SocketCreated { sock: sock_at(JOINED), user: SocketUser::Kernel });
    story.say(WORKER, EventKind::ConnectBegins { sock: sock_at(JOINED), remote: tuple.remote });
    story.tcp(PacketDirection::Outbound, JOINED, tuple, 60, SYN);
    story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN | ACK);
    story.subflow(JOINED, MPTCP_CLIENT, true);
    story.wait(31);
    assert_eq!(owner(&story.only()), (CURL, "wget".into()));
}

/// The kernel closes a subflow, which is idle when its MPTCP socket is accepted. Its last packet comes when it has no socket.
#[test]
fn an_idle_subflow_has_the_owner_of_the_accepted_socket() {
    let mut story = Story::new();
    let (first, joined) = (tuple(80, 40000), tuple(80, 40001));
    story.listens(SERVER);
    story.comes_in(FIRST, first, false);
    story.comes_in(JOINED, joined, true);
    story.tcp(PacketDirection::Outbound, JOINED, joined, 52, FIN | ACK);
    story.tcp(PacketDirection::Inbound, 0, joined, 52, ACK);
    story.wait(40);
    assert_eq!(story.sorted().iter().map(pid).collect::<Vec<_>>(), [Some(SERVER); 2], "it has not been accepted yet");
    story.accepts(CURL, first);
    story.state_is(JOINED, joined, TcpState::Closed { error: 0 });
    story.say(0, EventKind::SocketFreed { sock: sock_at(JOINED) });
    story.tcp(PacketDirection::Inbound, 0, joined, 52, FIN | ACK);
    story.wait(31);
    assert_eq!(pid(&story.only()), Some(CURL));
}

/// A subflow is reported when the kernel creates it, and again when it is established.
#[test]
fn a_first_subflow_that_is_reported_twice_goes_on() {
    let (made, accepted) = (tuple(40000, 80), tuple(80, 40000));
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(MPTCP_CLIENT), user: SocketUser::Program });
    story.conversation_of_subflow(CURL, FIRST, made);
    story.listens(SERVER);
    for _ in 0..2 {
        story.comes_in(JOINED, accepted, false);
    }
    story.wait(6);
    assert!(story.out.is_empty(), "neither is closed: {:#?}", story.out);
}

/// The kernel makes the first subflow in the task that connects.
#[test]
fn an_mptcp_socket_that_was_passed_on_still_belongs_to_its_creator() {
    let mut story = Story::new();
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(MPTCP_CLIENT), user: SocketUser::Program });
    story.conversation_of_subflow(SHELL, FIRST, tuple(40000, 80));
    story.wait(31);
    assert_eq!(pid(&story.only()), Some(CURL));
}

#[test]
fn a_subflow_of_the_kernel_that_is_reported_twice_before_it_connects_does_not_belong_to_the_kernel() {
    let mut story = Story::with_worker();
    let tuple = tuple(40001, 80);
    story.say(WORKER, EventKind::SocketCreated { sock: sock_at(JOINED), user: SocketUser::Kernel });
    for _ in 0..2 {
        story.subflow(JOINED, MPTCP_CLIENT, false);
    }
    story.say(WORKER, EventKind::ConnectBegins { sock: sock_at(JOINED), remote: tuple.remote });
    story.tcp(PacketDirection::Outbound, JOINED, tuple, 60, SYN);
    story.wait(31);
    assert_eq!(pid(&story.only()), None);
}

#[test]
fn a_subflow_that_joins_an_idle_one_has_the_same_owner() {
    let mut story = Story::new();
    story.listens(SERVER);
    story.comes_in(FIRST, tuple(80, 40000), false);
    story.wait(40);
    assert_eq!(pid(&story.only()), Some(SERVER));
    story.comes_in(JOINED, tuple(80, 40001), true);
    story.wait(40);
    assert_eq!(pid(&story.only()), Some(SERVER));
}
