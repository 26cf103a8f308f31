//! The table of probes: which feature each of them serves, and which others may take its place.

use std::fmt;

use serde::{Deserialize, Serialize};
use socktrail_kprobes::{Decoder, Error, Fetch, Format, Target};

use crate::socket_event::Actions;

use super::trial::{self, Trial};
use super::{Decode, IntoEvent, packets, processes, sockets};

/// What a probe is for: what is lost when none of its alternatives can be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Feature {
    /// IPv4 packets that leave, TCP and UDP.
    Ipv4Out,
    /// TCP over IPv4 that arrives.
    TcpIpv4In,
    /// UDP over IPv4 that arrives.
    UdpIpv4In,
    /// TCP over IPv6 that leaves.
    TcpIpv6Out,
    /// UDP over IPv6 that leaves.
    UdpIpv6Out,
    /// TCP over IPv6 that arrives.
    TcpIpv6In,
    /// UDP over IPv6 that arrives.
    UdpIpv6In,
    /// Destination options that leave over IPv6.
    Ipv6DestinationOptions,
    /// Hop-by-hop options and routing headers that leave over IPv6.
    Ipv6RoutingHeaders,
    /// IPv4 packets that are cut as they leave.
    Ipv4Fragments,
    /// IPv6 packets that are cut as they leave.
    Ipv6Fragments,
    /// UDP sockets that send several datagrams as one, or take them so.
    DatagramOptions,
    /// UDP sockets that send with control messages, which may ask for the same.
    ControlMessages,
    /// Who made a socket.
    SocketCreate,
    /// Who connects over IPv4, and to whom.
    ConnectIpv4,
    /// Whether that failed at once.
    ConnectIpv4Result,
    /// Who connects over IPv6, and to whom.
    ConnectIpv6,
    /// Whether that failed at once.
    ConnectIpv6Result,
    /// Who accepts a connection.
    Accept,
    /// Connections established and ended.
    TcpState,
    /// Sockets closed.
    SocketRelease,
    /// Sockets freed: when an address may be another socket's.
    SocketFree,
    /// Processes that begin.
    ProcessFork,
    /// Programs that start, with path and arguments.
    ProcessExec,
    /// Processes that end.
    ProcessExit,
    /// Changes of user and group.
    Credentials,
    /// Calls of `socket(2)`.
    CreateCall,
    /// The socket that one made.
    CreateSocket,
    /// What it came back with.
    CreateResult,
    /// Creations by io_uring.
    CreateUringCall,
    /// What one came back with.
    CreateUringResult,
    /// Calls of `bind(2)`.
    BindCall,
    /// The socket and address of one.
    BindSocket,
    /// What it came back with.
    BindResult,
    /// What a bind through io_uring came back with.
    BindUringResult,
    /// Calls of `listen(2)`.
    ListenCall,
    /// The socket of one.
    ListenSocket,
    /// What it came back with.
    ListenResult,
    /// What a listen through io_uring came back with.
    ListenUringResult,
    /// Calls of `accept(2)`.
    AcceptCall,
    /// The listener of one.
    AcceptSocket,
    /// The connection that it got.
    AcceptConnection,
    /// What it came back with.
    AcceptResult,
    /// What an accept through io_uring came back with.
    AcceptUringResult,
    /// Calls of `connect(2)`.
    ConnectCall,
    /// The socket and address of one.
    ConnectSocket,
    /// The socket's own address.
    ConnectLocal,
    /// What it came back with.
    ConnectResult,
    /// What a connect through io_uring came back with.
    ConnectUringResult,
    /// Calls of `setsockopt(2)`.
    SetSockOptCall,
    /// The socket and option of one.
    SetSockOptSocket,
    /// What it came back with.
    SetSockOptResult,
    /// What a setsockopt through io_uring came back with.
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

impl Feature {
    /// What a user no longer sees without it.
    pub const fn loss(self) -> &'static str {
        match self {
            Self::Ipv4Out => "what is sent over IPv4",
            Self::TcpIpv4In => "what is received by TCP over IPv4",
            Self::UdpIpv4In => "what is received by UDP over IPv4",
            Self::TcpIpv6Out => "what is sent by TCP over IPv6",
            Self::UdpIpv6Out => "what is sent by UDP over IPv6",
            Self::TcpIpv6In => "what is received by TCP over IPv6",
            Self::UdpIpv6In => "what is received by UDP over IPv6",
            Self::Ipv6DestinationOptions => {
                "whether TCP over IPv6 sends destination options, whose bytes are not counted"
            }
            Self::Ipv6RoutingHeaders => "whether TCP over IPv6 sends routing headers, whose bytes are not counted",
            Self::Ipv4Fragments => "which IPv4 packets are cut as they leave: they count as one",
            Self::Ipv6Fragments => "which IPv6 packets are cut as they leave: they count as one",
            Self::DatagramOptions => "which sockets take several datagrams as one: they count as one",
            Self::ControlMessages => {
                "which sockets may send small datagrams as one, by control messages: they count as one"
            }
            Self::SocketCreate => "the owners of UDP sockets and listeners",
            Self::ConnectIpv4 => "the owners of IPv4 connections of sockets older than the monitor",
            Self::ConnectIpv4Result => "IPv4 connects that fail before a packet leaves",
            Self::ConnectIpv6 => "the owners of IPv6 connections of sockets older than the monitor",
            Self::ConnectIpv6Result => "IPv6 connects that fail before a packet leaves",
            Self::Accept => "the owners of accepted connections",
            Self::TcpState => "why connections failed, and their exact end",
            Self::SocketRelease => "the end of flows when their socket is closed",
            Self::SocketFree => "the end of sockets that were never accepted",
            Self::ProcessFork => "processes that start after the monitor",
            Self::ProcessExec => "names and arguments of processes that start after the monitor",
            Self::ProcessExit => "the end of processes",
            Self::Credentials => "changes of user and group",
            Self::CreateCall => "the descriptors of sockets that are made, and creations that fail",
            Self::CreateSocket => "sockets that are made",
            Self::CreateResult => "sockets that are made by a system call",
            Self::BindCall | Self::ListenCall | Self::ConnectCall | Self::SetSockOptCall => {
                "the descriptor that a call is given, and, unless io_uring's results are seen, calls"
            }
            Self::AcceptCall => "the descriptors of listeners, and accepts that fail",
            Self::BindSocket => "binds, and the names of AF_UNIX sockets",
            Self::ListenSocket => "listens",
            Self::AcceptSocket | Self::AcceptConnection => "accepts",
            Self::ConnectSocket => "connects",
            Self::SetSockOptSocket => "options that are set",
            Self::ConnectLocal => "the own addresses of sockets that connect by TCP",
            Self::BindResult
            | Self::ListenResult
            | Self::AcceptResult
            | Self::ConnectResult
            | Self::SetSockOptResult => "what calls come back with",
            Self::CreateUringCall | Self::CreateUringResult => "creations through io_uring that fail",
            Self::AcceptUringResult => "accepts through io_uring that fail",
            Self::BindUringResult
            | Self::ListenUringResult
            | Self::ConnectUringResult
            | Self::SetSockOptUringResult => "what calls through io_uring come back with",
            Self::SocketClose => "the close of sockets",
        }
    }

    /// Whether only IPv6 needs it.
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
        )
    }

    /// The socket events that need it; `None` for what is of flows or processes.
    ///
    /// The close is watched with every event, since what is known of a socket ends with it; binds, and for the close
    /// accepts, with those events that tell the name of an `AF_UNIX` socket, which only its listener's bind said.
    pub const fn serves(self) -> Option<Actions> {
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

    /// Whether it is of use only where the kernel joins small datagrams so that nothing shows it.
    pub(super) const fn is_for_joined_heads(self) -> bool {
        matches!(self, Self::ControlMessages)
    }

    /// Whether a kernel without the function has nothing to see there either.
    pub const fn comes_with_its_function(self) -> bool {
        matches!(
            self,
            Self::CreateUringCall
                | Self::CreateUringResult
                | Self::AcceptUringResult
                | Self::BindUringResult
                | Self::ListenUringResult
                | Self::ConnectUringResult
                | Self::SetSockOptUringResult
        )
    }

    /// Whether it says who is who: whatever is watched needs that.
    pub const fn tells_processes(self) -> bool {
        matches!(self, Self::ProcessFork | Self::ProcessExec | Self::ProcessExit | Self::Credentials)
    }

    /// Whether it says what becomes of a socket without a call.
    pub(super) const fn tells_states(self) -> bool {
        matches!(self, Self::TcpState | Self::Ipv4Out | Self::UdpIpv6Out)
    }

    /// Whether flows can be seen by it: without any of these there is nothing to watch for.
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

/// One way to serve a feature.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Where it sits.
    pub target: Target<'static>,
    /// Which of its hits become samples, in the language of trace event filters.
    pub filter: Option<&'static str>,
    /// The same where only datagrams matter.
    pub datagrams: Option<&'static str>,
    /// Which packets go from a loopback address to the same one: what can be said of it in that language.
    pub loopback: Option<&'static str>,
    /// What it fetches.
    pub fetches: &'static [Fetch<'static>],
    /// What is worse about it than about those before it.
    pub weaker: Option<&'static str>,
    /// How to find out whether the function is ever called, where that is doubtful.
    pub(super) trial: Option<Trial>,
    pub(super) decoder: fn(&Format) -> Result<Box<dyn Decode>, Error>,
}

impl Probe {
    pub(super) const fn at<S: IntoEvent + 'static>(target: Target<'static>) -> Self {
        Self {
            target,
            filter: None,
            datagrams: None,
            loopback: None,
            fetches: S::FETCHES,
            weaker: None,
            trial: None,
            decoder: |format| Ok(Box::new(Decoder::<S>::new(format)?)),
        }
    }

    pub(super) const fn entry<S: IntoEvent + 'static>(function: &'static str) -> Self {
        Self::at::<S>(Target::Kprobe { function })
    }

    pub(super) const fn exit<S: IntoEvent + 'static>(function: &'static str) -> Self {
        Self::at::<S>(Target::Kretprobe { function, maxactive: Some(MAXACTIVE) })
    }

    const fn loopback(mut self, loopback: &'static str) -> Self {
        self.loopback = Some(loopback);
        self
    }

    pub(super) const fn but(mut self, weaker: &'static str) -> Self {
        self.weaker = Some(weaker);
        self
    }

    /// Packets of TCP and UDP.
    const fn of_tcp_or_udp(mut self) -> Self {
        self.datagrams = Some("protocol==17");
        self.only("protocol==6||protocol==17")
    }

    /// Not every kernel that has the function passes by there.
    pub(super) const fn tried_by(mut self, trial: Trial) -> Self {
        self.trial = Some(trial);
        self
    }

    /// It may be inlined into some of its callers, or into all of them.
    const fn unless_inlined(self, trial: Trial) -> Self {
        self.tried_by(trial).but("what is sent by functions that it was inlined into is not seen")
    }

    pub(super) const fn only(mut self, filter: &'static str) -> Self {
        self.filter = Some(filter);
        self
    }
}

/// How many tasks may be inside a function whose return is probed. Connects are short, accepts may block for ever.
const MAXACTIVE: u32 = 1024;

/// What it means to see datagrams before those are cut again that came merged.
pub(super) const MERGED: &str = "datagrams that arrive merged count as one";

/// Every feature with the probes that can serve it, the best first.
pub const TABLE: &[(Feature, &[Probe])] = {
    use packets::{
        Ipv4Cut, Ipv4CutOfSender, Ipv4Out, Ipv4OutOfSender, Ipv4OutWithoutNet, Ipv6Cut, Ipv6CutOfSender, Ipv6Headers,
        TcpIpv4In, TcpIpv6In, TcpIpv6Out, UdpIpv4In, UdpIpv6In, UdpIpv6Out, UdpIpv6OutOfSender,
    };
    use processes::{Committed, Credited, Exited, Woken};
    use sockets::{
        AcceptReturned, Accepted, ConnectIpv4, ConnectIpv6, ConnectReturned, Created, DatagramOption, Freed, Released,
        SendsControl, StateSet,
    };
    // Extension headers: routing, fragment, destination options (RFC 8200). Hop-by-hop options are those of multicast's
    // own messages.
    const UDP_OR_EXTENSION: &str = "next_header==17||next_header==43||next_header==44||next_header==60";
    // 127.0.0.1 twice, as it lies in the memory of a little-endian machine; ::1 twice.
    const LOOPBACK_IPV4: &str = "addresses==0x0100007f0100007f";
    const LOOPBACK_IPV6: &str =
        "source_high==0&&source_low==0x0100000000000000&&destination_high==0&&destination_low==0x0100000000000000";
    // What is forwarded has no socket.
    const OF_A_SOCKET: &str = "sk!=0";
    const BEFORE_4_2: &str = "IPv4 packets count as one that arrive in fragments without the DF flag";
    // UDP_SEGMENT, UDP_GRO.
    const JOINED_OR_MERGED: &str = "optname==103||optname==104";
    const INET: &str = "family==2||family==10";
    &[
        // Processes first: a socket's owner is better known before its socket.
        (Feature::ProcessFork, &[Probe::entry::<Woken>("wake_up_new_task")]),
        (Feature::ProcessExec, &[Probe::entry::<Committed>("security_bprm_committed_creds")]),
        (
            Feature::ProcessExit,
            &[
                Probe::at::<Exited>(Target::Tracepoint { category: "sched", name: "sched_process_exit" }),
                Probe::entry::<Exited>("do_exit"),
            ],
        ),
        (Feature::Credentials, &[Probe::entry::<Credited>("commit_creds")]),
        (Feature::SocketCreate, &[Probe::entry::<Created>("sock_init_data").only(INET)]),
        (Feature::ConnectIpv4, &[Probe::entry::<ConnectIpv4>("tcp_v4_connect")]),
        (Feature::ConnectIpv4Result, &[Probe::exit::<ConnectReturned>("tcp_v4_connect")]),
        (Feature::ConnectIpv6, &[Probe::entry::<ConnectIpv6>("tcp_v6_connect")]),
        (Feature::ConnectIpv6Result, &[Probe::exit::<ConnectReturned>("tcp_v6_connect")]),
        (
            Feature::Accept,
            &[
                Probe::entry::<Accepted>("security_sock_graft").only(INET),
                Probe::exit::<AcceptReturned>("inet_csk_accept")
                    .but("accepts are missed when more tasks wait in accept(2) than the kernel sets returns aside for"),
            ],
        ),
        (Feature::TcpState, &[Probe::entry::<StateSet>("tcp_set_state").only("state==1||state==7")]),
        (Feature::SocketRelease, &[Probe::entry::<Released>("inet_release")]),
        (Feature::SocketFree, &[Probe::entry::<Freed>("inet_sock_destruct")]),
        (
            Feature::Ipv4Out,
            &[
                // The outer function is small enough to be inlined into some of its callers (on 6.1 where SYN-ACKs
                // are sent), the inner one is not.
                Probe::entry::<Ipv4Out>("__ip_local_out").loopback(LOOPBACK_IPV4).of_tcp_or_udp(),
                Probe::entry::<Ipv4OutWithoutNet>("__ip_local_out_sk").loopback(LOOPBACK_IPV4).of_tcp_or_udp(),
                Probe::entry::<Ipv4OutOfSender>("__ip_local_out").loopback(LOOPBACK_IPV4).of_tcp_or_udp(),
                Probe::entry::<Ipv4Out>("ip_local_out")
                    .loopback(LOOPBACK_IPV4)
                    .of_tcp_or_udp()
                    .unless_inlined(trial::send_ipv4),
                Probe::entry::<Ipv4OutWithoutNet>("ip_local_out_sk")
                    .loopback(LOOPBACK_IPV4)
                    .of_tcp_or_udp()
                    .unless_inlined(trial::send_ipv4),
            ],
        ),
        (Feature::TcpIpv4In, &[Probe::entry::<TcpIpv4In>("tcp_v4_rcv").loopback(LOOPBACK_IPV4)]),
        (
            Feature::UdpIpv4In,
            &[
                Probe::entry::<UdpIpv4In>("udp_queue_rcv_one_skb").loopback(LOOPBACK_IPV4),
                Probe::entry::<UdpIpv4In>("udp_queue_rcv_skb").loopback(LOOPBACK_IPV4).but(MERGED),
            ],
        ),
        (Feature::TcpIpv6Out, &[Probe::entry::<TcpIpv6Out>("ip6_xmit").loopback(LOOPBACK_IPV6).only("protocol==6")]),
        (
            Feature::UdpIpv6Out,
            &[
                Probe::entry::<UdpIpv6Out>("__ip6_local_out").loopback(LOOPBACK_IPV6).only(UDP_OR_EXTENSION),
                Probe::entry::<UdpIpv6OutOfSender>("__ip6_local_out").loopback(LOOPBACK_IPV6).only(UDP_OR_EXTENSION),
                Probe::entry::<UdpIpv6Out>("ip6_local_out")
                    .loopback(LOOPBACK_IPV6)
                    .only(UDP_OR_EXTENSION)
                    .unless_inlined(trial::send_udp_ipv6),
            ],
        ),
        (Feature::TcpIpv6In, &[Probe::entry::<TcpIpv6In>("tcp_v6_rcv").loopback(LOOPBACK_IPV6)]),
        (
            Feature::UdpIpv6In,
            &[
                Probe::entry::<UdpIpv6In>("udpv6_queue_rcv_one_skb").loopback(LOOPBACK_IPV6),
                Probe::entry::<UdpIpv6In>("udpv6_queue_rcv_skb").loopback(LOOPBACK_IPV6).but(MERGED),
            ],
        ),
        // Next to never called: no sample for each packet is spent on headers that hardly any has.
        (Feature::Ipv6DestinationOptions, &[Probe::entry::<Ipv6Headers>("ipv6_push_frag_opts")]),
        (Feature::Ipv6RoutingHeaders, &[Probe::entry::<Ipv6Headers>("ipv6_push_nfrag_opts")]),
        (
            Feature::Ipv4Fragments,
            &[
                Probe::entry::<Ipv4Cut>("ip_do_fragment").loopback(LOOPBACK_IPV4).only(OF_A_SOCKET),
                Probe::entry::<Ipv4CutOfSender>("ip_do_fragment").loopback(LOOPBACK_IPV4).only(OF_A_SOCKET),
                Probe::entry::<Ipv4Cut>("ip_fragment").loopback(LOOPBACK_IPV4).only(OF_A_SOCKET).but(BEFORE_4_2),
                Probe::entry::<Ipv4CutOfSender>("ip_fragment")
                    .loopback(LOOPBACK_IPV4)
                    .only(OF_A_SOCKET)
                    .but(BEFORE_4_2),
            ],
        ),
        (
            Feature::Ipv6Fragments,
            &[
                Probe::entry::<Ipv6Cut>("ip6_fragment").loopback(LOOPBACK_IPV6).only(OF_A_SOCKET),
                Probe::entry::<Ipv6CutOfSender>("ip6_fragment").loopback(LOOPBACK_IPV6).only(OF_A_SOCKET),
            ],
        ),
        (Feature::ControlMessages, &[Probe::entry::<SendsControl>("udp_cmsg_send")]),
        (Feature::DatagramOptions, &[Probe::entry::<DatagramOption>("udp_lib_setsockopt").only(JOINED_OR_MERGED)]),
    ]
};
