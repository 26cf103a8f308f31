//! Samples of sockets: their creation, connections, states and end.

use std::net::Ipv4Addr;

use socktrail_kprobes::{Word, sample};

use super::{AF_INET, AF_INET6, Decoded, Interpret, ipv6_address};
use crate::model::event::{EventKind, Segments, SocketUser, TcpState, Tuple};
use crate::model::flow::Endpoint;
use crate::model::kernel_address::SockAddress;

/// `TCP_ESTABLISHED` of `include/net/tcp_states.h`; part of the ABI through `TCP_INFO`.
pub const TCP_ESTABLISHED: i32 = 1;
/// `TCP_CLOSE`.
pub const TCP_CLOSE: i32 = 7;

/// `sock_common.skc_net_refcnt`: the bit after four of `skc_reuse`, one of `skc_reuseport` and one of `skc_ipv6only`, on a
/// little-endian machine.
const SKC_NET_REFCNT: u8 = 1 << 6;
/// `MPTCP_EVENT_SUB_ESTABLISHED` of `linux/mptcp.h`; ABI. The filter also passes `MPTCP_EVENT_CREATED`.
const MPTCP_EVENT_SUB_ESTABLISHED: i32 = 10;
/// `UDP_GRO` of `linux/udp.h`; ABI.
const UDP_GRO: i32 = 104;
/// `UDP_SEGMENT` of `linux/udp.h`; ABI.
const UDP_SEGMENT: i32 = 103;

/// Declares samples that contain a socket's ends. `of` is the template of the object that begins with its `struct sock_common`, `port`
/// that of the local port; other fields come first.
macro_rules! samples_with_ends {
    ($( $(#[$meta:meta])* pub struct $name:ident of $sock:literal, port $port:literal { $($first:tt)* } )*) => {
        socktrail_kprobes::sample! {$(
            $(#[$meta])*
            pub struct $name {
                $($first)*
                /// `struct net`.
                pub net: socktrail_kprobes::Word = concat!("+{sock_common.skc_net}(", $sock, ")"),
                /// Its address family.
                pub family: u16 = concat!("+{sock_common.skc_family}(", $sock, ")"),
                /// Local port, in host byte order unless the sample says otherwise.
                pub num: u16 = concat!($port, "(", $sock, ")"),
                /// Remote port, in memory order.
                pub dport: u16 = concat!("+{sock_common.skc_dport}(", $sock, ")"),
                /// Local IPv4 address, in memory order.
                pub rcv_saddr: u32 = concat!("+{sock_common.skc_rcv_saddr}(", $sock, ")"),
                /// Remote IPv4 address, in memory order.
                pub daddr: u32 = concat!("+{sock_common.skc_daddr}(", $sock, ")"),
                /// Local IPv6 address, in memory order: its first 8 bytes.
                pub v6_rcv_saddr_high: Option<u64> = concat!("+{sock_common.skc_v6_rcv_saddr}(", $sock, ")"),
                /// Its last 8 bytes.
                pub v6_rcv_saddr_low: Option<u64> = concat!("+{sock_common.skc_v6_rcv_saddr+8}(", $sock, ")"),
                /// Remote IPv6 address, in memory order: its first 8 bytes.
                pub v6_daddr_high: Option<u64> = concat!("+{sock_common.skc_v6_daddr}(", $sock, ")"),
                /// Its last 8 bytes.
                pub v6_daddr_low: Option<u64> = concat!("+{sock_common.skc_v6_daddr+8}(", $sock, ")"),
            }
        )*}
    };
}

pub(in crate::source) use samples_with_ends;

samples_with_ends! {
    /// `security_sock_graft`: an accepted connection gets its `struct socket`, in the context of the accepting task.
    pub struct SockGraft of "{sk}", port "+{sock_common.skc_num}" {
        /// The connection's `struct sock`.
        pub sk: Word = "{sk}",
    }

    /// The return of `inet_csk_accept`, for kernels without [`SockGraft`]. A null pointer means that nothing was accepted.
    pub struct CskAcceptReturn of "$retval", port "+{sock_common.skc_num}" {
        /// The connection's `struct sock`.
        pub sk: Word = "$retval",
    }

    /// `security_inet_conn_request`: a SYN has found its listener. The fields are those of the `struct request_sock`, which
    /// begins with a `struct sock_common`.
    pub struct ConnRequest of "{req}", port "+{sock_common.skc_num}" {
        /// The listener's `struct sock`.
        pub sk: Word = "{sk}",
    }

    /// `tcp_set_state`: a TCP socket enters a state.
    pub struct SetState of "{sk}", port "+{sock_common.skc_num}" {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// The state that it enters.
        pub state: i32 = "{state}",
        /// `sock.sk_err`.
        pub error: i32 = "+{sock.sk_err}({sk})",
        /// Segments received.
        pub segs_in: Option<u32> = "+{tcp_sock.segs_in}({sk})",
        /// Segments sent.
        pub segs_out: Option<u32> = "+{tcp_sock.segs_out}({sk})",
    }
}

sample! {
    /// `sock_init_data`: a `struct sock` is created for a `struct socket`.
    pub struct SockInitData {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// Its address family.
        pub family: u16 = "+{sock_common.skc_family}({sk})",
        /// The bits after `skc_state`, which follows the family: `skc_net_refcnt` among them.
        pub bits: u8 = "+{sock_common.skc_family+3}({sk})",
    }

    /// `setsockopt(2)` of a UDP socket's own options, `udp_lib_setsockopt`.
    pub struct DatagramOption {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// The option.
        pub optname: i32 = "{optname}",
    }

    /// `udp_cmsg_send`: a datagram is sent with control messages.
    pub struct ControlMessage {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
    }

    /// `tcp_v4_connect`: a connect begins; the `sockaddr_in` is in kernel memory by then.
    pub struct ConnectIpv4 {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// Port, in memory order.
        pub port: u16 = "+{sockaddr_in.sin_port}({uaddr})",
        /// Address, in memory order.
        pub address: u32 = "+{sockaddr_in.sin_addr}({uaddr})",
    }

    /// `tcp_v6_connect`: the same with a `sockaddr_in6`.
    pub struct ConnectIpv6 {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// Port, in memory order.
        pub port: u16 = "+{sockaddr_in6.sin6_port}({uaddr})",
        /// Address, in memory order: its first 8 bytes.
        pub address_high: u64 = "+{sockaddr_in6.sin6_addr}({uaddr})",
        /// Its last 8 bytes.
        pub address_low: u64 = "+{sockaddr_in6.sin6_addr+8}({uaddr})",
    }

    /// The return of `tcp_v4_connect` or `tcp_v6_connect`.
    pub struct TcpConnectReturn {
        /// 0 or a negative errno.
        pub result: i32 = "$retval",
    }

    /// `sock_def_error_report`: an error is reported to a socket's program; the next call that asks for it clears it.
    pub struct ErrorReport {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// `sock.sk_err`, a positive errno.
        pub error: i32 = "+{sock.sk_err}({sk})",
    }

    /// `security_mptcp_add_subflow`, `mptcp_sockopt_sync`: a TCP socket is created for an MPTCP socket.
    pub struct AddSubflow {
        /// The `struct sock` of the MPTCP socket.
        pub sk: Word = "{sk}",
        /// The `struct sock` of the TCP socket.
        pub ssk: Word = "{ssk}",
    }

    /// `mptcp_event`: a subflow of an MPTCP socket is established, the first or a further one.
    pub struct SubflowEvent {
        /// `enum mptcp_event_type`.
        pub kind: i32 = "{type}",
        /// The `struct sock` of the MPTCP socket.
        pub sk: Word = "{sk}",
        /// The `struct sock` of the TCP socket.
        pub ssk: Word = "{ssk}",
    }

    /// `inet_release`: the last file descriptor of a `struct socket` is closed.
    pub struct InetRelease {
        /// The `struct sock`; null when the socket never had one.
        pub sk: Word = "+{socket.sk}({sock})",
    }

    /// `inet_sock_destruct`: a `struct sock` is freed.
    pub struct SockDestruct {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
    }
}

impl Interpret for SockInitData {
    fn interpret(&self, _: &[u8]) -> Decoded {
        // A socket of the kernel does not keep its network namespace alive. The bit exists since Linux 4.2.
        let user = if self.bits & SKC_NET_REFCNT != 0 { SocketUser::Program } else { SocketUser::Kernel };
        Decoded::of_sock(self.sk, |sock| EventKind::SocketCreated { sock, user })
    }
}

impl Interpret for DatagramOption {
    fn interpret(&self, _: &[u8]) -> Decoded {
        match self.optname {
            UDP_GRO => Decoded::of_sock(self.sk, |sock| EventKind::UdpGroEnabled { sock }),
            UDP_SEGMENT => Decoded::of_sock(self.sk, |sock| EventKind::UdpGsoEnabled { sock }),
            _ => Decoded::Nothing,
        }
    }
}

impl Interpret for ControlMessage {
    fn interpret(&self, _: &[u8]) -> Decoded {
        // The contents of the messages are not read.
        Decoded::of_sock(self.sk, |sock| EventKind::UdpGsoEnabled { sock })
    }
}

impl Interpret for ConnectIpv4 {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let remote = Endpoint::new(ipv4_address(self.address), u16::from_be(self.port));
        Decoded::of_sock(self.sk, |sock| EventKind::ConnectBegins { sock, remote })
    }
}

impl Interpret for ConnectIpv6 {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let address = ipv6_address([self.address_high, self.address_low]);
        let remote = Endpoint::new(address, u16::from_be(self.port));
        Decoded::of_sock(self.sk, |sock| EventKind::ConnectBegins { sock, remote })
    }
}

impl Interpret for TcpConnectReturn {
    fn interpret(&self, _: &[u8]) -> Decoded {
        Decoded::Event(EventKind::ConnectReturns { result: self.result })
    }
}

/// Both endpoints of a `struct sock`, from the fields of its address family. `None` if the sample does not have these fields.
macro_rules! tuple_of {
    ($sample:expr) => {{
        let sample = $sample;
        let [local, remote]: [Option<std::net::IpAddr>; 2] = match sample.family {
            $crate::source::kprobes::AF_INET => [sample.rcv_saddr, sample.daddr]
                .map(|address| Some($crate::source::kprobes::sockets::ipv4_address(address).into())),
            _ => [[sample.v6_rcv_saddr_high, sample.v6_rcv_saddr_low], [sample.v6_daddr_high, sample.v6_daddr_low]]
                .map(|address| $crate::source::kprobes::ipv6_if_known(address).map(std::net::IpAddr::from)),
        };
        local.zip(remote).map(|(local, remote)| $crate::model::event::Tuple {
            net: $crate::model::kernel_address::NetAddress::new(sample.net),
            local: $crate::model::flow::Endpoint::new(local, sample.num),
            remote: $crate::model::flow::Endpoint::new(remote, u16::from_be(sample.dport)),
        })
    }};
}

pub(in crate::source) use tuple_of;

/// The event about the connection of the `struct sock` at this address; nothing if the address is null or the ends are unknown.
pub(in crate::source) fn of_connection(
    address: u64,
    tuple: Option<Tuple>,
    kind: impl FnOnce(SockAddress, Tuple) -> EventKind,
) -> Decoded {
    tuple.map_or(Decoded::Nothing, |tuple| Decoded::of_sock(address, |sock| kind(sock, tuple)))
}

/// Whether a socket of this family and remote port is a connection.
pub(in crate::source) fn is_connection(family: u16, dport: u16) -> bool {
    matches!(family, AF_INET | AF_INET6) && dport != 0
}

impl Interpret for SockGraft {
    fn interpret(&self, _: &[u8]) -> Decoded {
        if !is_connection(self.family, self.dport) {
            return Decoded::Nothing;
        }
        of_connection(self.sk, tuple_of!(self), |sock, tuple| EventKind::Accepted { sock, tuple })
    }
}

impl Interpret for CskAcceptReturn {
    fn interpret(&self, _: &[u8]) -> Decoded {
        if !is_connection(self.family, self.dport) {
            return Decoded::Nothing;
        }
        of_connection(self.sk, tuple_of!(self), |sock, tuple| EventKind::Accepted { sock, tuple })
    }
}

impl Interpret for ConnRequest {
    fn interpret(&self, _: &[u8]) -> Decoded {
        if !is_connection(self.family, self.dport) {
            return Decoded::Nothing;
        }
        of_connection(self.sk, tuple_of!(self), |listener, tuple| EventKind::ConnectionRequested { listener, tuple })
    }
}

impl Interpret for SetState {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let state = match self.state {
            TCP_ESTABLISHED => TcpState::Established,
            TCP_CLOSE => TcpState::Closed { error: self.error },
            _ => return Decoded::Nothing,
        };
        if !is_connection(self.family, self.dport) {
            return Decoded::Nothing;
        }
        let counters = self.segs_in.zip(self.segs_out);
        let segments = counters.map(|(received, sent)| Segments { received, sent });
        of_connection(self.sk, tuple_of!(self), |sock, tuple| EventKind::TcpState { sock, tuple, state, segments })
    }
}

impl Interpret for ErrorReport {
    fn interpret(&self, _: &[u8]) -> Decoded {
        Decoded::of_sock(self.sk, |sock| EventKind::SocketError { sock, error: self.error })
    }
}

impl Interpret for AddSubflow {
    fn interpret(&self, _: &[u8]) -> Decoded {
        subflow(self.ssk, self.sk, false)
    }
}

impl Interpret for SubflowEvent {
    fn interpret(&self, _: &[u8]) -> Decoded {
        subflow(self.ssk, self.sk, self.kind == MPTCP_EVENT_SUB_ESTABLISHED)
    }
}

fn subflow(sock: u64, mptcp: u64, joined: bool) -> Decoded {
    match SockAddress::new(mptcp) {
        Some(mptcp) => Decoded::of_sock(sock, |sock| EventKind::Subflow { sock, mptcp, joined }),
        None => Decoded::Nothing,
    }
}

impl Interpret for InetRelease {
    fn interpret(&self, _: &[u8]) -> Decoded {
        Decoded::of_sock(self.sk, |sock| EventKind::SocketReleased { sock })
    }
}

impl Interpret for SockDestruct {
    fn interpret(&self, _: &[u8]) -> Decoded {
        Decoded::of_sock(self.sk, |sock| EventKind::SocketFreed { sock })
    }
}

pub(in crate::source) fn ipv4_address(memory: u32) -> Ipv4Addr {
    Ipv4Addr::from(memory.to_ne_bytes())
}
