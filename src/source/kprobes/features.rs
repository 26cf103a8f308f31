//! Properties of features: what is lost without them, which facts and events depend on them, and which kernels have them.

use crate::model::event::Execs;
use crate::model::feature::Feature;
use crate::model::loss::LostFacts;
use crate::model::socket_event::Actions;

/// The first kernel release (major, minor) that does not count a read that faults as a missed hit.
pub(super) const FAULTS_ARE_NO_MISSES: (u32, u32) = (5, 14);

impl Feature {
    /// What users do not see if this feature is unavailable.
    pub const fn missing_without(self) -> &'static str {
        match self {
            Self::Ipv4Out => "packets sent over IPv4",
            Self::TcpIpv4In => "packets received by TCP over IPv4",
            Self::UdpIpv4In => "packets received by UDP over IPv4",
            Self::TcpIpv6Out => "packets sent by TCP over IPv6",
            Self::UdpIpv6Out => "packets sent by UDP over IPv6",
            Self::TcpIpv6In => "packets received by TCP over IPv6",
            Self::UdpIpv6In => "packets received by UDP over IPv6",
            Self::Ipv6DestinationOptions => {
                "destination options in packets sent by TCP over IPv6: their bytes are not counted"
            }
            Self::Ipv6RoutingHeaders => {
                "hop-by-hop options and routing headers in packets sent by TCP over IPv6: their bytes are not counted"
            }
            Self::Ipv4Fragments => "fragmentation of outgoing IPv4 packets: the fragments count as one packet",
            Self::Ipv6Fragments => "fragmentation of outgoing IPv6 packets: the fragments count as one packet",
            Self::LocalDrops => "outgoing packets that this host's firewall drops: they count as sent",
            Self::QueueDrops => "outgoing packets that a full queue of this host drops: they count as sent",
            Self::DatagramOptions => {
                "which sockets use UDP GSO or GRO: the segments of one packet count as one datagram"
            }
            Self::ControlMessages => {
                "which sockets set UDP_SEGMENT by a control message: the segments of a small UDP GSO packet count as one datagram"
            }
            Self::SocketCreate => "the owners of UDP sockets and listeners",
            Self::ConnectIpv4 => "the owners of IPv4 connections of sockets older than the monitor",
            Self::ConnectIpv4Result => "IPv4 connects that fail before a packet leaves",
            Self::ConnectIpv6 => "the owners of IPv6 connections of sockets older than the monitor",
            Self::ConnectIpv6Result => "IPv6 connects that fail before a packet leaves",
            Self::Accept => "the owners of accepted connections",
            Self::ConnectionRequest => "the owners of connections that are never accepted",
            Self::TcpState => "why connections failed, and when exactly they ended",
            Self::SocketErrors => "why non-blocking connects failed, if the program has read SO_ERROR, which clears it",
            Self::IcmpErrorIpv4 => "why IPv4 connects failed that this host's firewall rejected",
            Self::IcmpErrorIpv6 => "why IPv6 connects failed that this host's firewall rejected",
            Self::SubflowCreate => "the owners of MPTCP subflows that are never established",
            Self::SubflowEstablish => "the owners of MPTCP subflows other than the first",
            Self::SocketRelease => "when sockets are closed, which ends their flows",
            Self::SocketFree => "when connections that no program accepted are freed",
            Self::ProcessFork => "processes that start after the monitor",
            Self::ProcessExec => {
                "names and arguments of programs that start after the monitor, unless they are still running when /proc is read"
            }
            Self::ProcessFile | Self::ProcessMounts => {
                "the resolved paths of programs (without symbolic links), unless they are still running when /proc is read"
            }
            Self::ProcessExit => "when processes end",
            Self::Credentials => "changes of user and group",
            Self::ControlGroup => {
                "the containers of short-lived processes, and of processes that are moved between containers"
            }
            Self::ControlGroupOfChild => {
                "the containers of processes that start in another container than their parent: the parent's is assumed"
            }
            Self::ControlGroupLookup => {
                "the containers of short-lived processes that start in another container than their parent"
            }
            Self::CreateCall => "the file descriptors of created sockets, and creations that fail",
            Self::CreateSocket => "created sockets",
            Self::CreateResult => "sockets created by system calls",
            // Without its entry, a call ends at the return of the inner function, which io_uring calls as well.
            Self::BindCall | Self::ListenCall | Self::ConnectCall | Self::SetSockOptCall => {
                "the file descriptors of calls; also the events themselves, if the feature for results through io_uring is \
                 missing, too"
            }
            Self::AcceptCall => "the file descriptors of listeners, and accepts that fail",
            Self::BindSocket => "calls of bind(2), and the addresses of AF_UNIX sockets",
            Self::ListenSocket => "calls of listen(2)",
            Self::AcceptSocket | Self::AcceptConnection => "calls of accept(2)",
            Self::ConnectSocket => "calls of connect(2)",
            Self::SetSockOptSocket => "calls of setsockopt(2)",
            Self::ConnectLocal => "the local addresses of sockets that connect by TCP",
            Self::BindResult
            | Self::ListenResult
            | Self::AcceptResult
            | Self::ConnectResult
            | Self::SetSockOptResult => "results of calls",
            Self::CreateUringCall | Self::CreateUringResult => "creations through io_uring that fail",
            Self::AcceptUringResult => "accepts through io_uring that fail",
            Self::BindUringResult
            | Self::ListenUringResult
            | Self::ConnectUringResult
            | Self::SetSockOptUringResult => "results of calls through io_uring",
            Self::SocketClose => "when sockets are closed",
        }
    }

    /// The facts about flows that a missed hit of this feature's probe may make wrong.
    pub const fn facts_lost_by_misses(self) -> LostFacts {
        match self {
            Self::Ipv4Out | Self::Ipv4Fragments => LostFacts::TCP_IPV4.or(LostFacts::UDP_IPV4),
            Self::TcpIpv4In => LostFacts::TCP_IPV4,
            Self::UdpIpv4In => LostFacts::UDP_IPV4,
            Self::TcpIpv6Out | Self::TcpIpv6In | Self::Ipv6DestinationOptions | Self::Ipv6RoutingHeaders => {
                LostFacts::TCP_IPV6
            }
            Self::UdpIpv6Out | Self::UdpIpv6In => LostFacts::UDP_IPV6,
            Self::Ipv6Fragments => LostFacts::TCP_IPV6.or(LostFacts::UDP_IPV6),
            Self::DatagramOptions | Self::ControlMessages => LostFacts::UDP_IPV4.or(LostFacts::UDP_IPV6),
            Self::LocalDrops | Self::QueueDrops => {
                LostFacts::TCP_IPV4.or(LostFacts::UDP_IPV4).or(LostFacts::TCP_IPV6).or(LostFacts::UDP_IPV6)
            }
            Self::TcpState
            | Self::SocketErrors
            | Self::IcmpErrorIpv4
            | Self::IcmpErrorIpv6
            | Self::SocketRelease
            | Self::ConnectIpv4Result
            | Self::ConnectIpv6Result => LostFacts::OUTCOMES,
            Self::Accept => LostFacts::ACCEPTS,
            Self::SubflowCreate | Self::SubflowEstablish => LostFacts::OWNERS,
            Self::ProcessFork
            | Self::ProcessExec
            | Self::ProcessFile
            | Self::ProcessMounts
            | Self::ProcessExit
            | Self::Credentials
            | Self::ControlGroup
            | Self::ControlGroupOfChild
            | Self::ControlGroupLookup => LostFacts::PROCESSES,
            // After a miss, a socket's owner may be unknown, and its flows say so.
            Self::SocketCreate | Self::ConnectIpv4 | Self::ConnectIpv6 | Self::ConnectionRequest => LostFacts::NONE,
            // A new socket at the address of a closed one is recognised even if the free was missed.
            Self::SocketFree => LostFacts::NONE,
            // These are for socket events. Only facts about flows count here.
            Self::CreateCall
            | Self::CreateSocket
            | Self::CreateResult
            | Self::CreateUringCall
            | Self::CreateUringResult
            | Self::BindCall
            | Self::BindSocket
            | Self::BindResult
            | Self::BindUringResult
            | Self::ListenCall
            | Self::ListenSocket
            | Self::ListenResult
            | Self::ListenUringResult
            | Self::AcceptCall
            | Self::AcceptSocket
            | Self::AcceptConnection
            | Self::AcceptResult
            | Self::AcceptUringResult
            | Self::ConnectCall
            | Self::ConnectSocket
            | Self::ConnectLocal
            | Self::ConnectResult
            | Self::ConnectUringResult
            | Self::SetSockOptCall
            | Self::SetSockOptSocket
            | Self::SetSockOptResult
            | Self::SetSockOptUringResult
            | Self::SocketClose => LostFacts::NONE,
        }
    }

    /// The first kernel release (major, minor) whose count of misses can be trusted for this feature's probe. Before it, the
    /// kernel also counted hits whose reads faulted. `None` if reads of this probe (almost) never fault.
    pub(super) const fn misses_reliable_since(self) -> Option<(u32, u32)> {
        match self {
            // `kfree_skb` accepts null. A socket whose creation failed has no `struct sock` when it is closed.
            Self::LocalDrops | Self::QueueDrops | Self::SocketClose => Some(FAULTS_ARE_NO_MISSES),
            // A forwarded packet has no socket, so the read faults. `Ipv4Out` is not listed, because its faults are counted
            // (`Probe::nullable`).
            Self::Ipv4Fragments | Self::Ipv6Fragments => Some(FAULTS_ARE_NO_MISSES),
            // The read of the arguments has a fixed length and may run past their end. Before Linux 5.8, the probed function
            // runs when the stack is already in its final place, so the read reaches a page that is not mapped. Since 5.8 the
            // arguments still lie at the end of user memory, where the kernel stops the read. `ProcessFile` and `ProcessMounts`
            // do not read arguments, but probes on one function share its counter.
            Self::ProcessExec | Self::ProcessFile | Self::ProcessMounts => Some((5, 8)),
            _ => None,
        }
    }

    /// How the feature shows that a process executes another program.
    pub(crate) const fn shows_execs(self) -> Execs {
        match self {
            Self::ProcessExec => Execs::Seen,
            Self::Credentials => Execs::AsCredentials,
            _ => Execs::Unseen,
        }
    }

    /// Whether the feature is only for IPv6.
    pub const fn is_ipv6(self) -> bool {
        matches!(
            self,
            Self::TcpIpv6Out
                | Self::UdpIpv6Out
                | Self::TcpIpv6In
                | Self::UdpIpv6In
                | Self::Ipv6DestinationOptions
                | Self::Ipv6RoutingHeaders
                | Self::Ipv6Fragments
                | Self::ConnectIpv6
                | Self::ConnectIpv6Result
                | Self::IcmpErrorIpv6
        )
    }

    /// The socket events that need this feature; `None` if it is for flows or processes.
    ///
    /// Every event needs the close, after which a socket is forgotten. The address of an `AF_UNIX` socket is known from its
    /// bind only, so listen, accept and close need binds. The close of an accepted connection also needs the accept, which
    /// links it to its listener.
    pub const fn needed_by_actions(self) -> Option<Actions> {
        Some(match self {
            Self::CreateCall
            | Self::CreateSocket
            | Self::CreateResult
            | Self::CreateUringCall
            | Self::CreateUringResult => Actions::CREATE,
            Self::BindCall | Self::BindSocket | Self::BindResult | Self::BindUringResult => {
                Actions::BIND.or(Actions::LISTEN).or(Actions::ACCEPT).or(Actions::CLOSE)
            }
            Self::ListenCall | Self::ListenSocket | Self::ListenResult | Self::ListenUringResult => Actions::LISTEN,
            Self::AcceptSocket | Self::AcceptConnection => Actions::ACCEPT.or(Actions::CLOSE),
            Self::AcceptCall | Self::AcceptResult | Self::AcceptUringResult => Actions::ACCEPT,
            Self::ConnectCall
            | Self::ConnectSocket
            | Self::ConnectLocal
            | Self::ConnectResult
            | Self::ConnectUringResult => Actions::CONNECT,
            Self::SetSockOptCall | Self::SetSockOptSocket | Self::SetSockOptResult | Self::SetSockOptUringResult => {
                Actions::SETSOCKOPT
            }
            Self::SocketClose => Actions::ALL,
            _ => return None,
        })
    }

    /// The socket events that the feature's samples create. If no such feature is available, there are no socket events. The
    /// other features add details, such as the result of a call.
    pub const fn shows_actions(self) -> Actions {
        match self {
            // The result shows creations that fail.
            Self::CreateSocket | Self::CreateResult => Actions::CREATE,
            Self::BindSocket => Actions::BIND,
            Self::ListenSocket => Actions::LISTEN,
            Self::AcceptSocket | Self::AcceptConnection => Actions::ACCEPT,
            Self::ConnectSocket => Actions::CONNECT,
            Self::SetSockOptSocket => Actions::SETSOCKOPT,
            Self::SocketClose => Actions::CLOSE,
            _ => Actions::NONE,
        }
    }

    /// Whether the feature is needed only on kernels that put a small UDP GSO packet into the linear part of its `skb`, where
    /// it looks like a plain datagram.
    pub(super) const fn is_for_linear_gso(self) -> bool {
        matches!(self, Self::ControlMessages)
    }

    /// The first kernel release (major, minor) that has what the feature observes.
    pub(super) const fn since(self) -> (u32, u32) {
        match self {
            // The first release whose `clone3(2)` has CLONE_INTO_CGROUP.
            Self::ControlGroupOfChild | Self::ControlGroupLookup => (5, 7),
            _ => (0, 0),
        }
    }

    /// Whether a kernel that lacks the probed function also lacks what the feature observes. Its absence is then no loss.
    pub const fn is_absent_without_its_function(self) -> bool {
        matches!(
            self,
            Self::SubflowCreate
                | Self::SubflowEstablish
                | Self::CreateUringCall
                | Self::CreateUringResult
                | Self::AcceptUringResult
                | Self::BindUringResult
                | Self::ListenUringResult
                | Self::ConnectUringResult
                | Self::SetSockOptUringResult
        )
    }

    /// Whether the feature reports processes. Such features are always wanted, because flows and socket events name their
    /// process.
    pub const fn reports_processes(self) -> bool {
        matches!(
            self,
            Self::ProcessFork
                | Self::ProcessExec
                | Self::ProcessFile
                | Self::ProcessMounts
                | Self::ProcessExit
                | Self::Credentials
                | Self::ControlGroup
                | Self::ControlGroupOfChild
                | Self::ControlGroupLookup
        )
    }

    /// Whether the feature reports changes of a socket's state that no call has caused. Sending may bind a UDP socket to a
    /// port, so outgoing packets count, too.
    pub(super) const fn reports_state_changes(self) -> bool {
        matches!(self, Self::TcpState | Self::Ipv4Out | Self::UdpIpv6Out)
    }

    /// Whether the feature's samples show flows. If no such feature is available, no flow can be seen.
    pub const fn shows_flows(self) -> bool {
        matches!(
            self,
            Self::Ipv4Out
                | Self::TcpIpv4In
                | Self::UdpIpv4In
                | Self::TcpIpv6Out
                | Self::UdpIpv6Out
                | Self::TcpIpv6In
                | Self::UdpIpv6In
        )
    }
}
