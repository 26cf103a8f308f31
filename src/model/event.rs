//! Events: what happened on the host, independent of how a source observed it.
//!
//! The state machine sees only events. They come from [probes](crate::source::kprobes) or from a recording.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use socktrail_dns::Lookup;

use crate::model::flow::{Endpoint, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::loss::{LossCause, LostFacts};
use crate::model::process::{Credentials, ExecutedFile};
use crate::model::socket_event::ThreadName;
use crate::model::socket_event::step::Step;
use crate::model::time::{BootTime, MonotonicTime};
use crate::model::totals::Totals;

/// Something that happened, when, and in which task's context.
#[derive(Debug, Clone)]
pub struct Event {
    /// When it happened.
    pub time: MonotonicTime,
    /// The thread group (what user space calls the process) that was running. Only facts that happen in task context
    /// may be attributed to it: see [`EventKind`].
    pub pid: u32,
    /// The thread that was running.
    pub tid: u32,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
///
/// All kinds but [`Packet`](Self::Packet), [`Fragmented`](Self::Fragmented), [`Dropped`](Self::Dropped),
/// [`UnreadablePacket`](Self::UnreadablePacket), [`ConnectionRequested`](Self::ConnectionRequested), [`TcpState`](Self::TcpState),
/// [`SocketError`](Self::SocketError), [`IcmpError`](Self::IcmpError), [`Subflow`](Self::Subflow),
/// [`Totals`](Self::Totals), [`SocketFreed`](Self::SocketFreed), [`Name`](Self::Name), [`NamesMissed`](Self::NamesMissed) and
/// [`Lost`](Self::Lost) happen in the context of the task that caused them, so [`Event::pid`] is its process. The last three
/// belong to no task. The other exceptions happen in whatever task was interrupted.
#[derive(Debug, Clone)]
pub enum EventKind {
    /// The running task created a process.
    Fork(Fork),
    /// The running task created a thread.
    ThreadStarted(ThreadStarted),
    /// The running task became another program.
    Exec(Box<Exec>),
    /// The file that the running task executed. It comes right before or right after [`Exec`](Self::Exec).
    ExecutedFile(Box<ExecutedFile>),
    /// The running thread ends. If it is the last one of its thread group, the process ends. The main thread may end before
    /// others. An exec ends all threads but the one that calls it, which gets the main thread's id.
    Exit,
    /// The running task creates a process that starts in another control group than its own (`CLONE_INTO_CGROUP` of
    /// `clone3(2)`): the one that it looked up last, see [`ControlGroupLookup`](Self::ControlGroupLookup). The
    /// process's [`Fork`](Self::Fork) follows.
    ForkElsewhere {
        /// The new thread group.
        child: u32,
    },
    /// The running task passed a descriptor of a control group to the kernel, which looked the group up: for a child
    /// that starts there, or for something else.
    ControlGroupLookup(FoundGroup),
    /// The running task moved a task, perhaps itself, into a control group.
    Moved(Box<Moved>),
    /// The running task's credentials are these from now on.
    Credentials(Credentials),
    /// A `struct sock` was made by the running task.
    SocketCreated {
        /// The new `struct sock`.
        sock: SockAddress,
        /// Who it is for. Reliable only if the source has [`SourceCapabilities::programs`].
        user: SocketUser,
    },
    /// The running task set the socket option `UDP_GRO` (`udp(7)`), so the socket receives merged datagrams.
    UdpGroEnabled {
        /// Its `struct sock`.
        sock: SockAddress,
    },
    /// The running task asked, or may have asked, the kernel to split what it writes into several datagrams (UDP GSO,
    /// `UDP_SEGMENT` of `udp(7)`).
    UdpGsoEnabled {
        /// Its `struct sock`.
        sock: SockAddress,
    },
    /// The running task begins to connect a TCP socket.
    ConnectBegins {
        /// The connecting `struct sock`.
        sock: SockAddress,
        /// The address that it connects to.
        remote: Endpoint,
    },
    /// The last connect that the running thread began returns.
    ConnectReturns {
        /// 0 or a negative errno.
        result: i32,
    },
    /// The running task took a TCP connection from a listener's queue.
    Accepted {
        /// The connection's own `struct sock`, not the listener's.
        sock: SockAddress,
        /// Its addresses.
        tuple: Tuple,
    },
    /// A SYN arrived at a listener. The [`Packet`](Self::Packet) event of the SYN comes first.
    ConnectionRequested {
        /// The listener's `struct sock`.
        listener: SockAddress,
        /// The addresses of the connection.
        tuple: Tuple,
    },
    /// A TCP socket became established or closed, in any context.
    TcpState {
        /// The `struct sock`.
        sock: SockAddress,
        /// Its addresses. The local port is 0 if the socket was never bound to one.
        tuple: Tuple,
        /// The state that it enters.
        state: TcpState,
        /// Segments so far, if the source knows them.
        segments: Option<Segments>,
    },
    /// A TCP socket is a subflow of an MPTCP socket (RFC 8684), in any context.
    Subflow {
        /// The `struct sock` of the TCP connection; its packets carry this one.
        sock: SockAddress,
        /// The `struct sock` of the MPTCP socket, which the program holds.
        mptcp: SockAddress,
        /// Whether it joined an existing connection. If not, it may be the first.
        joined: bool,
    },
    /// The running task closed the last descriptor of a socket.
    SocketReleased {
        /// The `struct sock`.
        sock: SockAddress,
    },
    /// The kernel reports an error to a socket's program, in any context: an ICMP error came, or a timer ran out.
    SocketError {
        /// The `struct sock`.
        sock: SockAddress,
        /// `sock.sk_err`: a positive errno.
        error: i32,
    },
    /// An ICMP error about a TCP packet of this host arrived. The kernel either reports it to the program
    /// ([`SocketError`](Self::SocketError) follows), or only notes it, or ignores it.
    IcmpError {
        /// The addresses of the packet.
        tuple: Tuple,
        /// The errno that the kernel would report, positive.
        error: i32,
    },
    /// The kernel frees a `struct sock`. Another socket may get the address from now on.
    SocketFreed {
        /// The `struct sock`.
        sock: SockAddress,
    },
    /// A step of a call on a socket. Only if socket events are wanted.
    Step {
        /// Which step.
        step: Box<Step>,
        /// The running thread's name, if the source knows it.
        thread_name: Option<ThreadName>,
    },
    /// An IP packet left for, or came from, the network.
    Packet(Packet),
    /// An outgoing packet is split into fragments. It was reported as a [`Packet`](Self::Packet) before.
    Fragmented(Fragmented),
    /// This host drops an outgoing packet, which was reported as a [`Packet`](Self::Packet) before.
    Dropped(Dropped),
    /// A packet whose headers could not be read well enough to count it.
    UnreadablePacket(UnreadablePacket),
    /// What the kernel has counted of a conversation until now. It comes before the next [`Packet`](Self::Packet) of the
    /// conversation, and before its socket is [freed](Self::SocketFreed).
    Totals(Box<Totals>),
    /// A DNS query was answered. No task is running then. Answers are reported late, after newer events: only
    /// [`Event::time`] says when they came.
    Name(Arc<Lookup>),
    /// Answers that came between this time and the event's own may have been lost.
    NamesMissed {
        /// The start of that interval.
        since: MonotonicTime,
    },
    /// Samples were lost before this moment.
    Lost {
        /// Where they were lost.
        cause: LossCause,
        /// How many were lost.
        count: u64,
        /// A time before the first of them was lost.
        since: MonotonicTime,
        /// The kinds of facts that the lost samples may have carried.
        facts: LostFacts,
    },
}

/// Who a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketUser {
    /// A program.
    Program,
    /// The kernel itself, for instance for a tunnel.
    Kernel,
}

/// A new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The new thread group.
    pub child: u32,
    /// When it began (`/proc/PID/stat` has the same in ticks). `None` if the layout does not say where the kernel keeps it.
    pub start: Option<BootTime>,
}

/// A new thread of an existing process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadStarted {
    /// Its thread group.
    pub process: u32,
    /// Its own id.
    pub thread: u32,
}

/// A task is moved into another control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The thread that is moved; if it is the thread group leader, the process is moved.
    pub tid: u32,
    /// The number of the hierarchy: 0 for cgroup v2, see `cgroups(7)`.
    pub hierarchy: u32,
    /// The path of its new group in the hierarchy.
    pub path: Vec<u8>,
}

/// A control group (v2) that the kernel looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundGroup {
    /// Its path in the hierarchy.
    At(Vec<u8>),
    /// Its path is deeper, or has longer parts, than is captured; or samples were lost.
    Unknown,
}

/// A program starts in an existing process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The path given to `execve(2)`, possibly relative.
    pub filename: Vec<u8>,
    /// The program that really runs: differs from `filename` for scripts.
    pub interpreter: Vec<u8>,
    /// The new argument area, NUL-terminated strings. Environment strings may follow the arguments.
    pub arguments: Vec<u8>,
    /// How many of the strings in `arguments` are arguments, if the source knows.
    pub argument_count: Option<u32>,
}

/// An IP packet, or several packets of one conversation that the kernel handles as one (GSO, GRO).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Outbound or inbound.
    pub direction: PacketDirection,
    /// Its transport.
    pub transport: Transport,
    /// The `struct sock` that sends or receives it; `None` if it is not known.
    pub sock: Option<SockAddress>,
    /// Its addresses and ports, from the packet's own headers.
    pub tuple: Tuple,
    /// Its size.
    pub size: PacketSize,
    /// TCP's flags byte ([`tcp_flags`]), 0 for UDP.
    pub tcp_flags: u8,
    /// The socket's segment counters when the packet was sampled, if the source knows them.
    pub segments: Option<Segments>,
    /// The size of its nonlinear part, in bytes (`sk_buff.data_len`). A packet that stands for several has such a part.
    /// Not used for TCP.
    pub data_len: u32,
    /// The largest of the fragments that it arrived in or will leave in, in bytes with its IP header; 0 if it is not fragmented.
    pub fragment: u16,
    /// How many packets on the wire it stands for, each with headers of its own (`skb_shared_info.gso_segs`); 0 if there is one, or
    /// if this is not known.
    pub gso_segs: u16,
}

impl Packet {
    /// A packet that is neither fragmented nor nonlinear, without TCP flags or segment counters.
    pub const fn new(
        direction: PacketDirection,
        transport: Transport,
        sock: Option<SockAddress>,
        tuple: Tuple,
        size: PacketSize,
    ) -> Self {
        Self {
            direction,
            transport,
            sock,
            tuple,
            size,
            tcp_flags: 0,
            segments: None,
            data_len: 0,
            fragment: 0,
            gso_segs: 0,
        }
    }

    /// Whether the packet requests a TCP connection: a SYN without ACK.
    pub(crate) const fn is_initial_syn(&self) -> bool {
        self.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    }

    /// Whether the packet answers the request for a TCP connection: SYN and ACK.
    pub(crate) const fn is_syn_ack(&self) -> bool {
        let both = tcp_flags::SYN | tcp_flags::ACK;
        self.tcp_flags & both == both
    }
}

/// What a source can observe of sockets and datagrams. It finds this out at its start, and it holds for all of its events.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SourceCapabilities {
    /// Whether it distinguishes sockets of programs from the kernel's own.
    pub programs: bool,
    /// Whether a received datagram is a single one unless its socket has asked for UDP GRO: merged datagrams are sampled
    /// after they were split again, and the source sees which sockets ask for GRO.
    pub single_datagrams: bool,
    /// The size of the linear part of a UDP GSO packet, in bytes with its headers; 0 if it is the headers alone.
    #[serde(rename = "joined_head")]
    pub gso_head_len: u32,
    /// Whether packets that a driver frees look like packets that are dropped before they reach a driver: see
    /// [`Dropped::may_be_drivers`].
    #[serde(default)]
    pub driver_drops_unclear: bool,
    /// Whether moves of processes into other control groups are seen.
    #[serde(default, rename = "moves")]
    pub control_group_moves: bool,
    /// Whether the kernel counts packets: not every packet is an event, and the source can be asked for
    /// [totals](crate::model::totals::Totals).
    #[serde(default)]
    pub totals: bool,
    /// Whether it sees only the packets of full sockets, not those of the small ones that TCP has during a handshake
    /// (`TCP_NEW_SYN_RECV`) and after a close (`TCP_TIME_WAIT`).
    #[serde(default)]
    pub full_sockets_only: bool,
    /// The path of the control group (v2) to which what is reported is restricted, if the source observes more than its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_group: Option<String>,
    /// How it shows execs. Not part of a recording, because the recorded probes show it.
    #[serde(skip)]
    pub execs: Execs,
}

/// How a source shows that a process executes another program, from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Execs {
    /// Not at all.
    Unseen,
    /// Only new credentials are events. The kernel commits some at each exec (`commit_creds`), even if they are equal
    /// to the old ones.
    AsCredentials,
    /// Each exec is an event.
    #[default]
    Seen,
}

/// An outgoing packet that is split into fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragmented {
    /// Its transport.
    pub transport: Transport,
    /// The `struct sock` that sends it.
    pub sock: Option<SockAddress>,
    /// Its addresses and ports, from its headers. Address translation (NAT) may have changed them before.
    pub tuple: Tuple,
    /// IP header, transport header and payload, in bytes.
    pub bytes: u32,
    /// The size of the first fragment, in bytes with its IP header; 0 if it is not known.
    pub first: u16,
}

/// An outgoing packet that this host drops, because of a firewall, a queue, or a neighbour that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// The `struct sock` that sent it. `None` for some of the kernel's own resets and answers.
    pub sock: Option<SockAddress>,
    /// Its transport; `None` if it is of another protocol (`other_protocol`), or was dropped before it came to IP, and
    /// so was never reported as a [`Packet`].
    pub transport: Option<Transport>,
    /// Whether something other than TCP or UDP follows its IP header, such as ESP (RFC 4303) or an IPv6 extension
    /// header. Its ports are then not known.
    pub other_protocol: bool,
    /// Source and destination in its headers, which address translation (NAT) may have changed by then. `None` if they
    /// could not be read, as in a fragment that is not the first.
    pub ends: Option<(Endpoint, Endpoint)>,
    /// IP header, transport header and payload, in bytes.
    pub bytes: u32,
    /// Whether other packets were dropped with it that are not reported.
    pub with_others: bool,
    /// Whether it may be an arriving packet: without a link header, an outgoing packet looks the same. Its addresses decide.
    pub may_have_arrived: bool,
    /// Whether it was freed at a device without a drop reason, by a function that drivers also call for packets that they have
    /// sent.
    pub may_be_drivers: bool,
}

/// What is known of a packet with IP options or IPv6 extension headers, which move the addresses or ports to a place that
/// the probe does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnreadablePacket {
    /// The `struct net` of this host's end.
    pub net: Option<NetAddress>,
    /// Its transport.
    pub transport: Transport,
    /// The `struct sock` that sends or receives it; `None` if it is not known.
    pub sock: Option<SockAddress>,
    /// The ports of this host's end and of the other end, if they are known.
    pub ports: Option<(u16, u16)>,
}

/// The size of a packet as the kernel handles it. Each segment that it is split into repeats its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketSize {
    /// IP header, transport header and payload, in bytes.
    pub bytes: u32,
    /// IP and transport header, in bytes.
    pub headers: u16,
}

/// How many segments a TCP socket has received and sent (`tcp_sock.segs_in`, `tcp_sock.segs_out`), modulo 2³².
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segments {
    /// Received.
    pub received: u32,
    /// Sent.
    pub sent: u32,
}

/// The TCP states that matter to a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// `TCP_ESTABLISHED`: the handshake is done.
    Established,
    /// `TCP_CLOSE`: the connection has ended, or was never established.
    Closed {
        /// `sock.sk_err`, a positive errno; 0 if there was no error or the source does not know.
        error: i32,
    },
}

/// The direction of a packet, seen from this host. Which side began a flow is [`Direction`](crate::flow::Direction).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PacketDirection {
    /// This host sends it.
    Outbound,
    /// This host receives it.
    Inbound,
}

/// Both ends of a conversation and the network namespace that they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The `struct net` of this host's end.
    pub net: Option<NetAddress>,
    /// This host's end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
}

/// The bits of TCP's flags byte (RFC 9293, section 3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is valid.
    pub const ACK: u8 = 0x10;
}
