//! Properties of features: what is lost without them, which facts and events depend on them, and which kernels have them.

use crate::model::event::Execs;
use crate::model::feature::Feature;
use crate::model::loss::Harm;
use crate::model::socket_event::Actions;

impl Feature {
    /// What users do not see without this feature.
    pub const fn loss(self) -> &'static str {
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
            Self::Ipv6RoutingHeaders => "routing headers in packets sent by TCP over IPv6: their bytes are not counted",
            Self::Ipv4Fragments => "fragmentation of outgoing IPv4 packets: the fragments count as one packet",
            Self::Ipv6Fragments => "fragmentation of outgoing IPv6 packets: the fragments count as one packet",
            Self::LocalDrops => "outgoing packets that this host's firewall drops: they count as sent",
            Self::QueueDrops => "outgoing packets that a full queue of this host drops: they count as sent",
            Self::DatagramOptions => "which sockets use UDP GSO or GRO: joined datagrams count as one",
            Self::ControlMessages => {
                "which sockets may send small datagrams joined by UDP GSO with control messages: they count as one"
            }
            Self::SocketCreate => "the owners of UDP sockets and listeners",
            Self::ConnectIpv4 => "the owners of IPv4 connections of sockets older than the monitor",
            Self::ConnectIpv4Result => "IPv4 connects that fail before a packet leaves",
            Self::ConnectIpv6 => "the owners of IPv6 connections of sockets older than the monitor",
            Self::ConnectIpv6Result => "IPv6 connects that fail before a packet leaves",
            Self::Accept => "the owners of accepted connections",
            Self::ConnectionRequest => "the owners of connections that are never accepted",
            Self::TcpState => "why connections failed, and when exactly they ended",
            Self::SocketErrors => "why non-blocking connects failed, if their program asked the kernel first",
            Self::IcmpErrorIpv4 => "the error of IPv4 connects that this host's firewall rejects",
            Self::IcmpErrorIpv6 => "the error of IPv6 connects that this host's firewall rejects",
            Self::SubflowCreate => "the owners of MPTCP subflows that are never established",
            Self::SubflowEstablish => "the owners of MPTCP subflows other than the first",
            Self::SocketRelease => "when sockets are closed, which ends their flows",
            Self::SocketFree => "when sockets that were never accepted are freed",
            Self::ProcessFork => "processes that start after the monitor",
            Self::ProcessExec => {
                "names and arguments of programs that start after the monitor, unless they run until /proc is read"
            }
            Self::ProcessFile | Self::ProcessMounts => {
                "the paths of programs with links resolved, unless they run until /proc is read"
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
            Self::BindCall | Self::ListenCall | Self::ConnectCall | Self::SetSockOptCall => {
                "the file descriptors of calls, and, unless io_uring's results are seen, the calls"
            }
            Self::AcceptCall => "the file descriptors of listeners, and accepts that fail",
            Self::BindSocket => "binds, and the addresses of AF_UNIX sockets",
            Self::ListenSocket => "listens",
            Self::AcceptSocket | Self::AcceptConnection => "accepts",
            Self::ConnectSocket => "connects",
            Self::SetSockOptSocket => "calls of setsockopt",
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

    /// The facts about flows that depend on this feature's samples: a missed hit of its probe may affect these.
    pub const fn feeds(self) -> Harm {
        match self {
            Self::Ipv4Out | Self::Ipv4Fragments => Harm::TCP_IPV4.or(Harm::UDP_IPV4),
            Self::TcpIpv4In => Harm::TCP_IPV4,
            Self::UdpIpv4In => Harm::UDP_IPV4,
            Self::TcpIpv6Out | Self::TcpIpv6In | Self::Ipv6DestinationOptions | Self::Ipv6RoutingHeaders => {
                Harm::TCP_IPV6
            }
            Self::UdpIpv6Out | Self::UdpIpv6In => Harm::UDP_IPV6,
            Self::Ipv6Fragments => Harm::TCP_IPV6.or(Harm::UDP_IPV6),
            Self::DatagramOptions | Self::ControlMessages => Harm::UDP_IPV4.or(Harm::UDP_IPV6),
            Self::LocalDrops | Self::QueueDrops => {
                Harm::TCP_IPV4.or(Harm::UDP_IPV4).or(Harm::TCP_IPV6).or(Harm::UDP_IPV6)
            }
            Self::TcpState
            | Self::SocketErrors
            | Self::IcmpErrorIpv4
            | Self::IcmpErrorIpv6
            | Self::SocketRelease
            | Self::ConnectIpv4Result
            | Self::ConnectIpv6Result => Harm::OUTCOMES,
            Self::Accept => Harm::ACCEPTS,
            Self::SubflowCreate | Self::SubflowEstablish => Harm::OWNERS,
            Self::ProcessFork
            | Self::ProcessExec
            | Self::ProcessFile
            | Self::ProcessMounts
            | Self::ProcessExit
            | Self::Credentials
            | Self::ControlGroup
            | Self::ControlGroupOfChild
            | Self::ControlGroupLookup => Harm::PROCESSES,
            // A connection whose request was missed has an unknown owner until it is accepted, and says so.
            Self::ConnectionRequest => Harm::NONE,
            // A socket whose creation was missed has an unknown owner, and its flows say so. A new socket at the
            // address of a closed one is recognised even if the free was missed. The other features are for socket
            // events only.
            _ => Harm::NONE,
        }
    }

    /// The kernel release (major, minor) before which a failed read of its probe counts as a missed hit; `None` if its reads do
    /// not fail.
    pub(super) const fn faults_count_before(self) -> Option<(u32, u32)> {
        match self {
            // `kfree_skb` accepts null. A socket whose creation failed has no `struct sock` when it is closed.
            Self::LocalDrops | Self::QueueDrops | Self::SocketClose => Some((5, 14)),
            // Forwarded packets have no socket. (Packets of `ipv4_out` without a socket are rare.)
            Self::Ipv4Fragments | Self::Ipv6Fragments => Some((5, 14)),
            // The reads go beyond the end of the arguments. Before Linux 5.8, the new program already has its final stack, and
            // there is no memory after it. Since then, the arguments are at the end of user memory, and no read beyond is tried.
            // All probes on this function share the count of faults.
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

    /// Whether it is only for IPv6.
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
    /// All events need the close, which ends the record of a socket. Events with the address of an `AF_UNIX` socket need binds,
    /// and closes also accepts, because only the bind of the listener has the address.
    pub const fn needed_for_actions(self) -> Option<Actions> {
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

    /// The socket events that its samples create. If no such feature is available, there are no socket events. The other features
    /// add details, such as the result of a call.
    pub const fn shows_events(self) -> Actions {
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

    /// Whether it is needed only on kernels where a small UDP GSO packet is all linear, and so looks like an ordinary datagram.
    pub(super) const fn is_for_gso_heads(self) -> bool {
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

    /// Whether a kernel without the feature's function does not have what the feature observes either, so that nothing is missing.
    pub const fn comes_with_its_function(self) -> bool {
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

    /// Whether it reports processes, which all other features need.
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

    /// Whether it reports changes of a socket's state that no call has caused.
    pub(super) const fn reports_states(self) -> bool {
        matches!(self, Self::TcpState | Self::Ipv4Out | Self::UdpIpv6Out)
    }

    /// Whether its samples show flows. If no such feature is available, no flow can be seen.
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
