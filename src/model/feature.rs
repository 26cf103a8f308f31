//! The features that probes serve. `src/source/kprobes/table.rs` has the probes and properties of each.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One kind of thing that probes can see. It is lost if none of the alternative probes can be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Feature {
    /// Outgoing IPv4 packets of TCP and UDP.
    Ipv4Out,
    /// Incoming TCP over IPv4.
    TcpIpv4In,
    /// Incoming UDP over IPv4.
    UdpIpv4In,
    /// Outgoing TCP over IPv6.
    TcpIpv6Out,
    /// Outgoing UDP over IPv6.
    UdpIpv6Out,
    /// Incoming TCP over IPv6.
    TcpIpv6In,
    /// Incoming UDP over IPv6.
    UdpIpv6In,
    /// Destination options of outgoing IPv6 packets.
    Ipv6DestinationOptions,
    /// Hop-by-hop options and routing headers of outgoing IPv6 packets.
    Ipv6RoutingHeaders,
    /// Outgoing IPv4 packets that are fragmented.
    Ipv4Fragments,
    /// Outgoing IPv6 packets that are fragmented.
    Ipv6Fragments,
    /// Outgoing packets that are dropped.
    LocalDrops,
    /// Outgoing packets that queues drop.
    QueueDrops,
    /// UDP sockets that ask for UDP GSO (`UDP_SEGMENT`) or UDP GRO (`UDP_GRO`) by `setsockopt(2)`.
    DatagramOptions,
    /// UDP sockets that send with control messages, which may ask for UDP GSO.
    ControlMessages,
    /// The process that creates a socket.
    SocketCreate,
    /// The process that connects over IPv4, and the address.
    ConnectIpv4,
    /// Whether `tcp_v4_connect` failed at once.
    ConnectIpv4Result,
    /// The process that connects over IPv6, and the address.
    ConnectIpv6,
    /// Whether `tcp_v6_connect` failed at once.
    ConnectIpv6Result,
    /// The process that accepts a connection.
    Accept,
    /// The listeners that connections arrive at.
    ConnectionRequest,
    /// Connections established and ended.
    TcpState,
    /// Socket errors that arise while no call waits for them.
    SocketErrors,
    /// ICMP errors about TCP packets over IPv4 that this host sent.
    IcmpErrorIpv4,
    /// ICMPv6 errors about TCP packets over IPv6 that this host sent.
    IcmpErrorIpv6,
    /// TCP sockets that are created for an MPTCP socket.
    SubflowCreate,
    /// Established subflows of an MPTCP socket.
    SubflowEstablish,
    /// Sockets closed.
    SocketRelease,
    /// Sockets freed: from then on another socket may have the address.
    SocketFree,
    /// Processes that begin.
    ProcessFork,
    /// Programs that start, with path and arguments.
    ProcessExec,
    /// The files of programs that start: the part of the path within their mount.
    ProcessFile,
    /// The rest of those paths: where that mount is mounted.
    ProcessMounts,
    /// Processes that end.
    ProcessExit,
    /// Changes of user and group.
    Credentials,
    /// Processes that are moved into another control group, such as a container's.
    ControlGroup,
    /// Processes that begin in another control group than their parent's.
    ControlGroupOfChild,
    /// The control group that such a process starts in.
    ControlGroupLookup,
    /// Calls of `socket(2)`.
    CreateCall,
    /// The socket that `socket(2)` made.
    CreateSocket,
    /// The result of `socket(2)`.
    CreateResult,
    /// Sockets created through io_uring.
    CreateUringCall,
    /// The result of a creation through io_uring.
    CreateUringResult,
    /// Calls of `bind(2)`.
    BindCall,
    /// The socket and address of a `bind(2)`.
    BindSocket,
    /// The result of `bind(2)`.
    BindResult,
    /// The result of a bind through io_uring.
    BindUringResult,
    /// Calls of `listen(2)`.
    ListenCall,
    /// The socket of a `listen(2)`.
    ListenSocket,
    /// The result of `listen(2)`.
    ListenResult,
    /// The result of a listen through io_uring.
    ListenUringResult,
    /// Calls of `accept(2)`.
    AcceptCall,
    /// The listener of an `accept(2)`.
    AcceptSocket,
    /// The connection that an `accept(2)` took.
    AcceptConnection,
    /// The result of `accept(2)`.
    AcceptResult,
    /// The result of an accept through io_uring.
    AcceptUringResult,
    /// Calls of `connect(2)`.
    ConnectCall,
    /// The socket and address of a `connect(2)`.
    ConnectSocket,
    /// The local address of the socket of a `connect(2)`.
    ConnectLocal,
    /// The result of `connect(2)`.
    ConnectResult,
    /// The result of a connect through io_uring.
    ConnectUringResult,
    /// Calls of `setsockopt(2)`.
    SetSockOptCall,
    /// The socket and option of a `setsockopt(2)`.
    SetSockOptSocket,
    /// The result of `setsockopt(2)`.
    SetSockOptResult,
    /// The result of a setsockopt through io_uring.
    SetSockOptUringResult,
    /// The end of sockets of all families.
    SocketClose,
}

impl fmt::Display for Feature {
    /// `tcp_ipv4_in`, as it is serialized.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
