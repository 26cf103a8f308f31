//! The table of probes: which feature each of them serves, and which others may take its place.

use socktrail_kprobes::{Decoder, Error, Fetch, Field, Format, Target};

use crate::event::Execs;
use crate::feature::Feature;
use crate::loss::Harm;
use crate::socket_event::Actions;

use super::self_test::Traffic;
use super::{Decode, IntoEvent, child_group, packets, processes, program, sockets};

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
            Self::LocalDrops => "which packets a firewall here drops as they leave: they count as sent",
            Self::QueueDrops => "which packets a full queue here drops as they leave: they count as sent",
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
            Self::ConnectionRequest => "the owners of connections that nobody accepts",
            Self::TcpState => "why connections failed, and their exact end",
            Self::SocketErrors => "why connects in progress failed, where their program asked the kernel first",
            Self::IcmpErrorIpv4 => "the error of IPv4 connects that a rule of this host rejects",
            Self::IcmpErrorIpv6 => "the error of IPv6 connects that a rule of this host rejects",
            Self::SubflowCreate => "the owners of MPTCP subflows that are never established",
            Self::SubflowEstablish => "the owners of MPTCP subflows other than the first",
            Self::SocketRelease => "the end of flows when their socket is closed",
            Self::SocketFree => "the end of sockets that were never accepted",
            Self::ProcessFork => "processes that start after the monitor",
            Self::ProcessExec => "names and arguments of programs that start after the monitor, unless /proc can tell",
            Self::ProcessFile | Self::ProcessMounts => {
                "the paths of programs with links resolved, unless they live until /proc is asked"
            }
            Self::ProcessExit => "the end of processes",
            Self::Credentials => "changes of user and group",
            Self::ControlGroup => {
                "the containers of short-lived processes, and of those that are moved into one or out of it"
            }
            Self::ControlGroupOfChild => {
                "which processes begin in another container than their parent's: they count as in their parent's"
            }
            Self::ControlGroupLookup => {
                "the containers of short-lived processes that start in another container than their parent"
            }
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

    /// Before which kernel release, major and minor, a read of its probe that fails counts as a miss; `None` if none
    /// fails.
    pub(super) const fn faults_count_before(self) -> Option<(u32, u32)> {
        match self {
            // `kfree_skb` takes null for no packet. A socket whose creation failed has no `struct sock` when it is closed.
            Self::LocalDrops | Self::QueueDrops | Self::SocketClose => Some((5, 14)),
            // What is forwarded has no socket either. Packets of `ipv4_out` that have none are rare, and it stays watched.
            Self::Ipv4Fragments | Self::Ipv6Fragments => Some((5, 14)),
            // The arguments end before what is read of them. Until Linux 5.8 the new program has its final stack by then,
            // and there is no memory behind it; from then on they lie at the end of all memory of users, and no read
            // behind that is tried. Each probe of one function counts the faults of all.
            Self::ProcessExec | Self::ProcessFile | Self::ProcessMounts => Some((5, 8)),
            _ => None,
        }
    }

    /// How it shows that a process runs another program.
    pub(crate) const fn shows_execs(self) -> Execs {
        match self {
            Self::ProcessExec => Execs::Seen,
            Self::Credentials => Execs::AsCredentials,
            _ => Execs::Unseen,
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
                | Self::IcmpErrorIpv6
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

    /// The socket events that come by it: without any of these there is nothing to wait for. The others tell more of an
    /// event, such as its result.
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

    /// Whether it is of use only where the kernel joins small datagrams so that nothing shows it.
    pub(super) const fn is_for_joined_heads(self) -> bool {
        matches!(self, Self::ControlMessages)
    }

    /// The first kernel release, major and minor, that has what the probe looks at.
    pub(super) const fn since(self) -> (u32, u32) {
        match self {
            // The first in which `clone3(2)` takes CLONE_INTO_CGROUP.
            Self::ControlGroupOfChild | Self::ControlGroupLookup => (5, 7),
            _ => (0, 0),
        }
    }

    /// Whether a kernel without the function has nothing to see there either.
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

    /// Whether it says who is who: whatever is watched needs that.
    pub const fn tells_processes(self) -> bool {
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
    /// A filter that leaves out packets from a loopback address to the same one, as far as the language can say that.
    pub not_loopback: Option<&'static str>,
    /// What it fetches.
    pub fetches: &'static [Fetch<'static>],
    /// The fields of its samples.
    pub(super) fields: &'static [Field],
    /// What is worse about it than about those before it.
    pub weaker: Option<&'static str>,
    /// Whether it is weaker only where UDP GRO merges datagrams: its function runs before they are split again.
    pub(super) before_gro_split: bool,
    /// The first kernel release, major and minor, on which its samples can be understood.
    pub(super) since: (u32, u32),
    /// Traffic of the self-test. Each kind of it must hit the probe, on every kernel.
    pub(super) hit_by: &'static [Traffic],
    pub(super) decoder: fn(&Format) -> Result<Box<dyn Decode>, Error>,
}

impl Probe {
    pub(super) const fn at<S: IntoEvent + 'static>(target: Target<'static>) -> Self {
        Self {
            target,
            filter: None,
            datagrams: None,
            not_loopback: None,
            fetches: S::FETCHES,
            fields: S::FIELDS,
            weaker: None,
            before_gro_split: false,
            since: (0, 0),
            hit_by: &[],
            decoder: |format| Ok(Box::new(Decoder::<S>::new(format)?)),
        }
    }

    pub(super) const fn entry<S: IntoEvent + 'static>(function: &'static str) -> Self {
        Self::at::<S>(Target::Kprobe { function })
    }

    pub(super) const fn exit<S: IntoEvent + 'static>(function: &'static str) -> Self {
        Self::at::<S>(Target::Kretprobe { function, maxactive: Some(MAXACTIVE) })
    }

    const fn not_loopback(mut self, filter: &'static str) -> Self {
        self.not_loopback = Some(filter);
        self
    }

    const fn before_gro_split(mut self) -> Self {
        self.before_gro_split = true;
        self.but("datagrams that arrive merged count as one")
    }

    pub(super) const fn but(mut self, weaker: &'static str) -> Self {
        self.weaker = Some(weaker);
        self
    }

    const fn since(mut self, major: u32, minor: u32) -> Self {
        self.since = (major, minor);
        self
    }

    /// Packets of TCP and UDP.
    const fn of_tcp_or_udp(mut self) -> Self {
        self.datagrams = Some("protocol==17");
        self.only("protocol==6||protocol==17")
    }

    /// Each traffic of these hits it, on every kernel where it is of use.
    pub(super) const fn hit_by(mut self, traffic: &'static [Traffic]) -> Self {
        self.hit_by = traffic;
        self
    }

    /// It may be inlined into some of its callers. Where it is inlined into all of them, it is not hit.
    const fn unless_inlined(self) -> Self {
        self.but("what is sent by functions that it was inlined into is not seen")
    }

    pub(super) const fn only(mut self, filter: &'static str) -> Self {
        self.filter = Some(filter);
        self
    }
}

/// How many tasks may be inside a function whose return is probed. Connects are short, accepts may block for ever.
const MAXACTIVE: u32 = 1024;

/// Traffic of the self-test that hits probes on sending, receiving and closing.
pub(super) const UDP_IPV4: &[Traffic] = &[Traffic::UdpIpv4];
/// Traffic of the self-test that hits probes on connecting, accepting and resets.
pub(super) const TCP_IPV4: &[Traffic] = &[Traffic::TcpIpv4];
const UDP_IPV6: &[Traffic] = &[Traffic::UdpIpv6];
const TCP_IPV6: &[Traffic] = &[Traffic::TcpIpv6];
const SENT_IPV4: &[Traffic] = &[Traffic::UdpIpv4, Traffic::TcpIpv4];

/// Every feature with the probes that can serve it, the best first.
pub const TABLE: &[(Feature, &[Probe])] = {
    use child_group::GroupLookup;
    use packets::{
        IcmpIpv4, IcmpIpv6, Ipv4Cut, Ipv4CutOfSender, Ipv4Out, Ipv4OutOfSender, Ipv4OutWithoutNet, Ipv6Cut,
        Ipv6CutOfSender, Ipv6Headers, PacketDropped, PacketDroppedForReason, PacketFreed, PacketFreedForReason,
        PacketsFreed, TcpIpv4In, TcpIpv6In, TcpIpv6Out, UdpIpv4In, UdpIpv6In, UdpIpv6Out, UdpIpv6OutOfSender,
    };
    use processes::{Attached, Committed, Credited, Exited, Grouped, Woken};
    use program::{RanFile, RanMounts};
    use sockets::{
        AcceptReturned, Accepted, ConnectIpv4, ConnectIpv6, ConnectReturned, Created, DatagramOption, Failed, Freed,
        Released, Requested, SendsControl, StateSet, SubflowEstablished, SubflowMade,
    };
    // Extension headers: routing, fragment, destination options (RFC 8200). Hop-by-hop options are those of multicast's
    // own messages.
    const UDP_OR_EXTENSION: &str = "next_header==17||next_header==43||next_header==44||next_header==60";
    // 127.0.0.1 twice, as it lies in the memory of a little-endian machine; ::1 twice. Filters have no `!` before Linux 3.19.
    const NOT_LOOPBACK_IPV4: &str = "addresses!=0x0100007f0100007f";
    const NOT_LOOPBACK_IPV6: &str =
        "(source_high!=0||source_low!=0x0100000000000000||destination_high!=0||destination_low!=0x0100000000000000)";
    // What is forwarded has no socket.
    const OF_A_SOCKET: &str = "sk!=0";
    // Packets that have not come to a device yet (no `sk_buff.mac_header`). This excludes packets that a driver has
    // sent and now frees, and all that have arrived, forwarded ones included. The kernel's own resets and answers (TCP
    // over IPv6, SYN cookies) have no sending socket, but they have a protocol (the lowest 16 bits).
    macro_rules! before_device {
        () => {
            "places>=0xffff000000000000&&(sk!=0||places&0xffff)"
        };
    }
    const BEFORE_DEVICE: &str = concat!("skb!=0&&", before_device!());
    // On RHEL 7's 3.10, where filters have no `&`.
    const BEFORE_DEVICE_OF_SOCKET: &str = "skb!=0&&sk!=0&&places>=0xffff000000000000";
    // What a queue has not handed to its driver: as far as a filter can tell, see `AtDevice`. A segment that was cut for the
    // driver has the size of the whole packet, which is mostly larger than a frame. The decoder compares it.
    macro_rules! before_driver {
        () => {
            "((mac_len==0&&prev==0)||(mac_len!=0&&(pkt_len<10000||len>=10000)))"
        };
    }
    // Sent by this host, not forwarded: the packet has a socket, or it is a reply that the kernel made without one. A
    // forwarded packet has a `mac_len` from the device that it came in by, a reply has none. Clones are left out: the copies
    // that a packet socket gets look the same.
    macro_rules! made_here {
        () => {
            "(sk!=0||(mac_len==0&&!(cloned&1)&&places<0xffff000000000000))"
        };
    }
    // Drivers free sent packets without a reason, or as consumed (up to 2 in `enum skb_drop_reason`); from 5.18 on, filters
    // always give one. Without a queue there is no enqueue time.
    const DROPPED: &str = concat!(
        "skb!=0&&((",
        before_device!(),
        ")||(",
        made_here!(),
        "&&({from_drop_function}||(enqueued!=0&&",
        before_driver!(),
        "))))"
    );
    const DROPPED_OR_FOR_REASON: &str = concat!(
        "skb!=0&&((",
        before_device!(),
        ")||(",
        made_here!(),
        "&&(reason>2||{from_drop_function}||(enqueued!=0&&",
        before_driver!(),
        "))))"
    );
    // The same where function addresses are hidden.
    const DROPPED_WITHOUT_CALLERS: &str =
        concat!("skb!=0&&((", before_device!(), ")||(sk!=0&&", before_driver!(), "))");
    const DROPPED_OR_FOR_REASON_WITHOUT_CALLERS: &str =
        concat!("skb!=0&&((", before_device!(), ")||(sk!=0&&reason>2)||(sk!=0&&enqueued!=0&&", before_driver!(), "))");
    const BEFORE_DEVICE_OR_FOR_REASON: &str = concat!("skb!=0&&((", before_device!(), ")||(sk!=0&&reason>2))");
    const REMOVED_QUEUES_UNSEEN: &str = "packets in a removed queue, and packets without a socket that a device's filter, or a \
                                         queue after accepting them, drops, count as sent";
    const DRIVER_DROPS_SUBTRACTED: &str = "packets that the driver of a device without a queue drops are subtracted, although \
                                           they count as sent elsewhere; packets without a socket that a device's filter \
                                           drops count as sent";
    // Lists of packets that have not come to a device are left to the function for single packets, which older kernels call for
    // each of them.
    // Forwarded packets count as sent by the host or container that made them.
    const AT_DEVICE: &str = concat!("skb!=0&&places<0xffff000000000000&&", made_here!());
    // Before Linux 3.19, where filters have no `!`.
    const AT_DEVICE_OF_SOCKET: &str = "skb!=0&&sk!=0&&places<0xffff000000000000";
    const AT_DEVICE_UNSEEN: &str =
        "packets that tc filters drop, or that a queue drops after it has accepted them, count as sent";
    const BEFORE_4_2: &str = "IPv4 packets count as one that arrive in fragments without the DF flag";
    // UDP_SEGMENT, UDP_GRO.
    const JOINED_OR_MERGED: &str = "optname==103||optname==104";
    // CLONE_INTO_CGROUP.
    const INTO_CGROUP: &str = "flags&0x200000000";
    const INET: &str = "family==2||family==10";
    // MPTCP_EVENT_CREATED, MPTCP_EVENT_SUB_ESTABLISHED.
    const ESTABLISHED: &str = "kind==1||kind==10";
    &[
        // Processes first: a socket's owner is better known before its socket.
        (Feature::ProcessFork, &[Probe::entry::<Woken>("wake_up_new_task")]),
        (Feature::ProcessExec, &[Probe::entry::<Committed>("security_bprm_committed_creds")]),
        (Feature::ProcessFile, &[Probe::entry::<RanFile>("security_bprm_committed_creds")]),
        (Feature::ProcessMounts, &[Probe::entry::<RanMounts>("security_bprm_committed_creds")]),
        (
            Feature::ProcessExit,
            &[
                Probe::at::<Exited>(Target::Tracepoint { category: "sched", name: "sched_process_exit" }),
                Probe::entry::<Exited>("do_exit"),
            ],
        ),
        (Feature::Credentials, &[Probe::entry::<Credited>("commit_creds")]),
        (
            Feature::ControlGroup,
            &[Probe::at::<Attached>(Target::Tracepoint { category: "cgroup", name: "cgroup_attach_task" })],
        ),
        (Feature::ControlGroupOfChild, &[Probe::entry::<Grouped>("cgroup_post_fork").only(INTO_CGROUP)]),
        (Feature::ControlGroupLookup, &[Probe::entry::<GroupLookup>("css_tryget_online_from_dir").only("ss==0")]),
        (Feature::SocketCreate, &[Probe::entry::<Created>("sock_init_data").hit_by(UDP_IPV4).only(INET)]),
        (Feature::ConnectIpv4, &[Probe::entry::<ConnectIpv4>("tcp_v4_connect").hit_by(TCP_IPV4)]),
        (Feature::ConnectIpv4Result, &[Probe::exit::<ConnectReturned>("tcp_v4_connect").hit_by(TCP_IPV4)]),
        (Feature::ConnectIpv6, &[Probe::entry::<ConnectIpv6>("tcp_v6_connect").hit_by(TCP_IPV6)]),
        (Feature::ConnectIpv6Result, &[Probe::exit::<ConnectReturned>("tcp_v6_connect").hit_by(TCP_IPV6)]),
        (
            Feature::Accept,
            &[
                Probe::entry::<Accepted>("security_sock_graft").hit_by(TCP_IPV4).only(INET),
                Probe::exit::<AcceptReturned>("inet_csk_accept")
                    .hit_by(TCP_IPV4)
                    .but("accepts are missed when more tasks wait in accept(2) than the kernel sets returns aside for"),
            ],
        ),
        (Feature::ConnectionRequest, &[Probe::entry::<Requested>("security_inet_conn_request").hit_by(TCP_IPV4)]),
        (Feature::TcpState, &[Probe::entry::<StateSet>("tcp_set_state").hit_by(TCP_IPV4).only("state==1||state==7")]),
        (Feature::SocketErrors, &[Probe::entry::<Failed>("sock_def_error_report").hit_by(TCP_IPV4).only("error!=0")]),
        (Feature::IcmpErrorIpv4, &[Probe::entry::<IcmpIpv4>("tcp_v4_err")]),
        (Feature::IcmpErrorIpv6, &[Probe::entry::<IcmpIpv6>("tcp_v6_err")]),
        (
            Feature::SubflowCreate,
            &[
                Probe::entry::<SubflowMade>("security_mptcp_add_subflow"),
                // For kernels before 6.6, where it is called only for subflows that join.
                Probe::entry::<SubflowMade>("mptcp_sockopt_sync"),
            ],
        ),
        (Feature::SubflowEstablish, &[Probe::entry::<SubflowEstablished>("mptcp_event").only(ESTABLISHED)]),
        (Feature::SocketRelease, &[Probe::entry::<Released>("inet_release").hit_by(UDP_IPV4)]),
        (Feature::SocketFree, &[Probe::entry::<Freed>("inet_sock_destruct").hit_by(TCP_IPV4)]),
        (
            Feature::Ipv4Out,
            &[
                // The outer function is small enough to be inlined into some of its callers (on 6.1 where SYN-ACKs
                // are sent), the inner one is not.
                Probe::entry::<Ipv4Out>("__ip_local_out")
                    .hit_by(SENT_IPV4)
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .of_tcp_or_udp(),
                Probe::entry::<Ipv4OutWithoutNet>("__ip_local_out_sk")
                    .hit_by(SENT_IPV4)
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .of_tcp_or_udp(),
                Probe::entry::<Ipv4OutOfSender>("__ip_local_out")
                    .hit_by(SENT_IPV4)
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .of_tcp_or_udp(),
                Probe::entry::<Ipv4Out>("ip_local_out")
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .of_tcp_or_udp()
                    .hit_by(SENT_IPV4)
                    .unless_inlined(),
                Probe::entry::<Ipv4OutWithoutNet>("ip_local_out_sk")
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .of_tcp_or_udp()
                    .hit_by(SENT_IPV4)
                    .unless_inlined(),
            ],
        ),
        (
            Feature::TcpIpv4In,
            &[Probe::entry::<TcpIpv4In>("tcp_v4_rcv").hit_by(TCP_IPV4).not_loopback(NOT_LOOPBACK_IPV4)],
        ),
        (
            Feature::UdpIpv4In,
            &[
                Probe::entry::<UdpIpv4In>("udp_queue_rcv_one_skb").hit_by(UDP_IPV4).not_loopback(NOT_LOOPBACK_IPV4),
                Probe::entry::<UdpIpv4In>("udp_queue_rcv_skb")
                    .hit_by(UDP_IPV4)
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .before_gro_split(),
            ],
        ),
        (
            Feature::TcpIpv6Out,
            &[Probe::entry::<TcpIpv6Out>("ip6_xmit")
                .hit_by(TCP_IPV6)
                .not_loopback(NOT_LOOPBACK_IPV6)
                .only("protocol==6")],
        ),
        (
            Feature::UdpIpv6Out,
            &[
                Probe::entry::<UdpIpv6Out>("__ip6_local_out")
                    .hit_by(UDP_IPV6)
                    .not_loopback(NOT_LOOPBACK_IPV6)
                    .only(UDP_OR_EXTENSION),
                Probe::entry::<UdpIpv6OutOfSender>("__ip6_local_out")
                    .hit_by(UDP_IPV6)
                    .not_loopback(NOT_LOOPBACK_IPV6)
                    .only(UDP_OR_EXTENSION),
                Probe::entry::<UdpIpv6Out>("ip6_local_out")
                    .not_loopback(NOT_LOOPBACK_IPV6)
                    .only(UDP_OR_EXTENSION)
                    .hit_by(UDP_IPV6)
                    .unless_inlined(),
            ],
        ),
        (
            Feature::TcpIpv6In,
            &[Probe::entry::<TcpIpv6In>("tcp_v6_rcv").hit_by(TCP_IPV6).not_loopback(NOT_LOOPBACK_IPV6)],
        ),
        (
            Feature::UdpIpv6In,
            &[
                Probe::entry::<UdpIpv6In>("udpv6_queue_rcv_one_skb").hit_by(UDP_IPV6).not_loopback(NOT_LOOPBACK_IPV6),
                Probe::entry::<UdpIpv6In>("udpv6_queue_rcv_skb")
                    .hit_by(UDP_IPV6)
                    .not_loopback(NOT_LOOPBACK_IPV6)
                    .before_gro_split(),
            ],
        ),
        // Next to never called: no sample for each packet is spent on headers that hardly any has.
        (Feature::Ipv6DestinationOptions, &[Probe::entry::<Ipv6Headers>("ipv6_push_frag_opts")]),
        (Feature::Ipv6RoutingHeaders, &[Probe::entry::<Ipv6Headers>("ipv6_push_nfrag_opts")]),
        (
            Feature::Ipv4Fragments,
            &[
                Probe::entry::<Ipv4Cut>("ip_do_fragment").not_loopback(NOT_LOOPBACK_IPV4).only(OF_A_SOCKET),
                Probe::entry::<Ipv4CutOfSender>("ip_do_fragment").not_loopback(NOT_LOOPBACK_IPV4).only(OF_A_SOCKET),
                Probe::entry::<Ipv4Cut>("ip_fragment")
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .only(OF_A_SOCKET)
                    .but(BEFORE_4_2),
                Probe::entry::<Ipv4CutOfSender>("ip_fragment")
                    .not_loopback(NOT_LOOPBACK_IPV4)
                    .only(OF_A_SOCKET)
                    .but(BEFORE_4_2),
            ],
        ),
        (
            Feature::Ipv6Fragments,
            &[
                Probe::entry::<Ipv6Cut>("ip6_fragment").not_loopback(NOT_LOOPBACK_IPV6).only(OF_A_SOCKET),
                Probe::entry::<Ipv6CutOfSender>("ip6_fragment").not_loopback(NOT_LOOPBACK_IPV6).only(OF_A_SOCKET),
            ],
        ),
        (
            Feature::LocalDrops,
            &[
                Probe::entry::<PacketDroppedForReason>("sk_skb_reason_drop").only(DROPPED_OR_FOR_REASON),
                Probe::entry::<PacketDroppedForReason>("sk_skb_reason_drop")
                    .only(DROPPED_OR_FOR_REASON_WITHOUT_CALLERS)
                    .but(REMOVED_QUEUES_UNSEEN),
                Probe::entry::<PacketFreedForReason>("sk_skb_reason_drop")
                    .only(BEFORE_DEVICE_OR_FOR_REASON)
                    .but(AT_DEVICE_UNSEEN),
                Probe::entry::<PacketDroppedForReason>("kfree_skb_reason").only(DROPPED_OR_FOR_REASON),
                Probe::entry::<PacketDroppedForReason>("kfree_skb_reason")
                    .only(DROPPED_OR_FOR_REASON_WITHOUT_CALLERS)
                    .but(REMOVED_QUEUES_UNSEEN),
                Probe::entry::<PacketFreed>("kfree_skb_reason").only(BEFORE_DEVICE).but(AT_DEVICE_UNSEEN),
                Probe::entry::<PacketDropped>("kfree_skb").only(DROPPED).since(3, 18),
                Probe::entry::<PacketDropped>("kfree_skb")
                    .only(DROPPED_WITHOUT_CALLERS)
                    .since(3, 18)
                    .but(DRIVER_DROPS_SUBTRACTED),
                Probe::entry::<PacketFreed>("kfree_skb").only(BEFORE_DEVICE).but(AT_DEVICE_UNSEEN),
                Probe::entry::<PacketFreed>("kfree_skb").only(BEFORE_DEVICE_OF_SOCKET).but(
                    "packets without a socket, those that tc filters drop, and those that a queue drops after it has \
                     accepted them, count as sent",
                ),
            ],
        ),
        (
            Feature::QueueDrops,
            &[
                Probe::entry::<PacketsFreed>("kfree_skb_list_reason").only(AT_DEVICE),
                Probe::entry::<PacketsFreed>("kfree_skb_list").only(AT_DEVICE),
                Probe::entry::<PacketsFreed>("kfree_skb_list")
                    .only(AT_DEVICE_OF_SOCKET)
                    .but("packets without a socket that a queue drops count as sent"),
            ],
        ),
        (Feature::ControlMessages, &[Probe::entry::<SendsControl>("udp_cmsg_send")]),
        (Feature::DatagramOptions, &[Probe::entry::<DatagramOption>("udp_lib_setsockopt").only(JOINED_OR_MERGED)]),
    ]
};
