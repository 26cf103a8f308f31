//! Events: what a source of facts about the host says, freed from how it learned it.
//!
//! The state machine knows events and nothing of probes. Today's source is [`probes`](crate::probes); a recording or
//! a kernel program that adds up counters for itself speaks the same language.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
pub use socktrail_dns::Endpoint;
use socktrail_dns::Learned;

use crate::loss::{Harm, LossCause};
use crate::socket_event::ThreadName;
use crate::socket_event::step::Step;

/// Nanoseconds on the kernel's trace clock (`CLOCK_MONOTONIC` where the kernel takes it). Not wall time.
pub type KernelTime = u64;

/// The address of a kernel object (`struct sock`, `struct net`). It identifies the object while that lives; zero
/// stands for "not known".
pub type KernelAddress = u64;

/// One thing that happened, when, and in which task's context.
#[derive(Debug, Clone)]
pub struct Event {
    /// When.
    pub time: KernelTime,
    /// The thread group (what user space calls the process) that was running. Only facts that happen in task context
    /// may be charged to it: see [`EventKind`].
    pub pid: u32,
    /// The thread that was running.
    pub tid: u32,
    /// What.
    pub kind: EventKind,
}

/// What happened.
///
/// All kinds but [`Packet`](Self::Packet), [`Fragmented`](Self::Fragmented), [`Dropped`](Self::Dropped),
/// [`Unreadable`](Self::Unreadable), [`ConnectionRequested`](Self::ConnectionRequested), [`TcpState`](Self::TcpState),
/// [`SocketError`](Self::SocketError), [`IcmpError`](Self::IcmpError), [`Subflow`](Self::Subflow) and
/// [`SocketFreed`](Self::SocketFreed) happen in the context of the task that caused them, so that [`Event::pid`] names the
/// actor. Those ten run in whatever task was interrupted.
#[derive(Debug, Clone)]
pub enum EventKind {
    /// The running task created a process.
    Fork(Fork),
    /// The running task created a thread.
    ThreadStarted(ThreadStarted),
    /// The running task became another program.
    Exec(Box<Exec>),
    /// The file that the running task executed. It comes right before or right after [`Exec`](Self::Exec).
    Ran(Box<Ran>),
    /// The running thread ends. If it is the last one of its thread group, the process ends. The leading thread may end
    /// before others. An exec ends all threads but the one that calls it, which takes the leading one's id.
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
        sock: KernelAddress,
        /// Whether it is for a program, not for the kernel itself, as a tunnel's is; see [`Sight::programs`].
        for_program: bool,
    },
    /// The running task asked for datagrams as GRO merged them (`UDP_GRO` of `udp(7)`).
    TakesMerged {
        /// Its `struct sock`.
        sock: KernelAddress,
    },
    /// The running task asked the kernel to send what it writes as several datagrams (`UDP_SEGMENT` of `udp(7)`), or may have.
    SendsJoined {
        /// Its `struct sock`.
        sock: KernelAddress,
    },
    /// The running task begins to connect a TCP socket.
    ConnectBegins {
        /// The connecting `struct sock`.
        sock: KernelAddress,
        /// Whom it wants to reach.
        remote: Endpoint,
    },
    /// What the connect that the running thread began last came back with.
    ConnectReturns {
        /// 0 or a negative errno.
        result: i32,
    },
    /// The running task took a TCP connection from a listener's queue.
    Accepted {
        /// The connection's own `struct sock`, not the listener's.
        sock: KernelAddress,
        /// Its addresses.
        tuple: Tuple,
    },
    /// A SYN arrived at a listener. The [`Packet`](Self::Packet) event of the SYN comes first.
    ConnectionRequested {
        /// The listener's `struct sock`.
        listener: KernelAddress,
        /// The addresses of the connection.
        tuple: Tuple,
    },
    /// A TCP socket became established or closed, in any context.
    TcpState {
        /// The `struct sock`.
        sock: KernelAddress,
        /// Its addresses. The local port of a socket that never got that far is 0.
        tuple: Tuple,
        /// The state that it enters.
        state: TcpState,
        /// Segments so far, where the source knows them.
        segments: Option<Segments>,
    },
    /// A TCP socket is a subflow of an MPTCP socket (RFC 8684), in any context.
    Subflow {
        /// The `struct sock` of the TCP connection, which its packets are seen with.
        sock: KernelAddress,
        /// The `struct sock` of the MPTCP socket, the one that the program has.
        mptcp: KernelAddress,
        /// Whether it joined an existing connection. If not, it may be the first.
        joined: bool,
    },
    /// The running task gave up the last descriptor of a socket.
    SocketReleased {
        /// The `struct sock`.
        sock: KernelAddress,
    },
    /// The kernel reports an error to a socket's program, in any context: an ICMP error came, or a timer ran out.
    SocketError {
        /// The `struct sock`.
        sock: KernelAddress,
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
    /// The kernel frees a `struct sock`: the address may be another socket's from now on.
    SocketFreed {
        /// The `struct sock`.
        sock: KernelAddress,
    },
    /// A step of a call on a socket; only where socket events are asked for.
    Step {
        /// Which.
        step: Box<Step>,
        /// The running thread's name, if the source knows it.
        thread_name: Option<ThreadName>,
    },
    /// An IP packet left for, or came from, the network.
    Packet(Packet),
    /// A packet that left is cut into fragments. It has been told as a [`Packet`](Self::Packet) before.
    Fragmented(Fragmented),
    /// This host drops an outgoing packet, which was reported as a [`Packet`](Self::Packet) before.
    Dropped(Dropped),
    /// A packet passed of which too little could be read to count it.
    Unreadable(Unreadable),
    /// A query for a name was answered. It happens to the host, not in a task. Answers are reported somewhat late,
    /// after other events that are newer: only [`Event::time`] says when they came.
    Name(Arc<Learned>),
    /// Answers that came between this time and the event's own may have been lost.
    NamesMissed {
        /// Since when.
        since: KernelTime,
    },
    /// Samples were lost before this moment.
    Lost {
        /// Where.
        cause: LossCause,
        /// How many.
        count: u64,
        /// The last time at which nothing had been lost.
        since: KernelTime,
        /// What the lost samples would have been about.
        harm: Harm,
    },
}

/// A new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The new thread group.
    pub child: u32,
    /// Nanoseconds since boot (`CLOCK_BOOTTIME`) when it began; what `/proc/PID/stat` gives in ticks. `None` where it is
    /// not known where the kernel keeps that.
    pub start: Option<u64>,
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
    /// The container that the new group's path names.
    pub container: Option<String>,
}

/// The container of a control group that the kernel looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundGroup {
    /// Its path names this container.
    InContainer(String),
    /// Its path names no container.
    OutsideContainers,
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
    /// How many of the strings in `arguments` are arguments, where the source knows.
    pub argument_count: Option<u32>,
}

/// The file that a process runs: for a script, its interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ran {
    /// Its path at the exec, as in `/proc/PID/exe`: links resolved, from the root of its mount namespace, with `
    /// (deleted)` at the end if the file had been removed. A file in memory only is `/memfd:NAME (deleted)`.
    Path(PathBuf),
    /// Its path has more parts, or longer ones, than are captured.
    TooDeep,
}

/// Who a task acts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective user.
    pub euid: u32,
    /// Effective group.
    pub egid: u32,
}

/// One IP packet, or several of one conversation that the kernel carries as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Which way it goes.
    pub way: Way,
    /// Its transport.
    pub transport: Transport,
    /// The `struct sock` that sends or gets it, 0 where it is not known.
    pub sock: KernelAddress,
    /// From and to, as the packet's own headers say.
    pub tuple: Tuple,
    /// How much of it there is.
    pub size: Size,
    /// TCP's flags byte ([`tcp_flags`]), 0 for UDP.
    pub tcp_flags: u8,
    /// The socket's segment counters when the packet was seen, where the source knows them.
    pub segments: Option<Segments>,
    /// How much of it lies apart from the piece of memory with its headers, in bytes: what the kernel carries as one and is
    /// several does not lie in one piece. Of TCP it does not matter.
    pub apart: u32,
    /// The largest of the fragments that it arrived in, in bytes with its IP header; 0 when it came whole.
    pub fragment: u16,
}

impl Packet {
    /// One that came or goes whole and in one piece, with no flags, of a socket whose counters are not known.
    pub const fn new(way: Way, transport: Transport, sock: KernelAddress, tuple: Tuple, size: Size) -> Self {
        Self { way, transport, sock, tuple, size, tcp_flags: 0, segments: None, apart: 0, fragment: 0 }
    }
}

/// What a source can tell of sockets and datagrams: learnt when it begins, and the same for all of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sight {
    /// Whether it tells sockets of programs from the kernel's own.
    pub programs: bool,
    /// Whether a socket that did not ask for more takes single datagrams: what comes merged is counted when it has been cut
    /// again, and it is seen who asks for more.
    pub single_datagrams: bool,
    /// How many bytes, headers included, the kernel leaves in one piece of datagrams that `UDP_SEGMENT` joins; 0 where that
    /// is the headers alone.
    pub joined_head: u32,
    /// Whether moves of processes into other control groups are seen.
    #[serde(default)]
    pub moves: bool,
    /// How it shows that a process runs another program. Not part of a recording, whose events tell it.
    #[serde(skip)]
    pub execs: Execs,
}

/// How a source shows that a process runs another program; the best way is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Execs {
    /// Nothing shows it.
    Unseen,
    /// Only new credentials are events. The kernel commits some at each exec (`commit_creds`), even if they are equal
    /// to the old ones.
    AsCredentials,
    /// Each exec is an event.
    #[default]
    Seen,
}

/// A packet that is cut into fragments as it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragmented {
    /// Its transport.
    pub transport: Transport,
    /// The `struct sock` that sends it.
    pub sock: KernelAddress,
    /// From and to, as its headers say by then: a translation of addresses may have come before.
    pub tuple: Tuple,
    /// IP header, transport header and payload, in bytes.
    pub bytes: u32,
    /// The first fragment, in bytes with its IP header; 0 where that is not known.
    pub first: u16,
}

/// An outgoing packet that this host drops, because of a firewall, a queue, or a neighbour that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// The `struct sock` that sent it. 0 for some of the kernel's own resets and answers.
    pub sock: KernelAddress,
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
    /// Whether more packets were dropped together with it, which are not reported.
    pub with_others: bool,
    /// Whether it may be an arriving packet: without a link header the two look alike. Its addresses decide.
    pub may_have_arrived: bool,
}

/// What is known of a packet with IP options or IPv6 extension headers: its addresses or its ports are not where they
/// were looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable {
    /// The `struct net` of this host's end.
    pub net: KernelAddress,
    /// Its transport.
    pub transport: Transport,
    /// The `struct sock` that sends or gets it, 0 where it is not known.
    pub sock: KernelAddress,
    /// The ports of this host's and of the other end, where they are known.
    pub ports: Option<(u16, u16)>,
}

/// The size of one kernel packet. The segments that it will become repeat its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// IP header, transport header and payload, in bytes.
    pub bytes: u32,
    /// IP and transport header, in bytes.
    pub headers: u16,
}

/// How many wire segments a TCP socket has seen (`tcp_sock.segs_in`, `tcp_sock.segs_out`), modulo 2³².
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
    /// `TCP_CLOSE`: the connection is over, or never came to be.
    Closed {
        /// `sock.sk_err`: why, as a positive errno; 0 when nothing went wrong or the source does not know.
        error: i32,
    },
}

/// Which way a packet goes, seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// It leaves.
    Out,
    /// It arrives.
    In,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The IANA protocol number.
    pub const fn iana_number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The name, as ECS writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Both ends of a conversation and the network namespace that they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The `struct net` of this host's end.
    pub net: KernelAddress,
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
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}
