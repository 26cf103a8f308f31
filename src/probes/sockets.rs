//! What tasks do with sockets.

use std::net::{IpAddr, Ipv4Addr};

use socktrail_kprobes::{Word, sample};

use super::{AF_INET, AF_INET6, Decoded, IntoEvent, ipv6_address, known_ipv6};
use crate::event::{Endpoint, EventKind, Segments, TcpState, Tuple};

/// `TCP_ESTABLISHED` of `include/net/tcp_states.h`; part of the ABI through `TCP_INFO`.
pub const TCP_ESTABLISHED: i32 = 1;
/// `TCP_CLOSE`.
pub const TCP_CLOSE: i32 = 7;

/// `sock_common.skc_net_refcnt`: a bit behind four of `skc_reuse`, one of `skc_reuseport` and one of `skc_ipv6only`, on a
/// little-endian machine.
const SKC_NET_REFCNT: u8 = 1 << 6;
/// `MPTCP_EVENT_SUB_ESTABLISHED` of `linux/mptcp.h`; ABI. The filter also passes `MPTCP_EVENT_CREATED`.
const MPTCP_EVENT_SUB_ESTABLISHED: i32 = 10;
/// Of `linux/udp.h`; ABI.
const UDP_GRO: i32 = 104;
/// The same.
const UDP_SEGMENT: i32 = 103;

sample! {
    /// `sock_init_data`: a `struct sock` is made for a `struct socket`.
    pub struct Created {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// Its address family.
        pub family: u16 = "+{sock_common.skc_family}({sk})",
        /// The bits behind `skc_state`, which follows the family: `skc_net_refcnt` among them.
        pub bits: u8 = "+{sock_common.skc_family+3}({sk})",
    }

    /// `setsockopt(2)` of a UDP socket's own options, `udp_lib_setsockopt`.
    pub struct DatagramOption {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// Which option.
        pub optname: i32 = "{optname}",
    }

    /// `udp_cmsg_send`: a datagram is sent with control messages.
    pub struct SendsControl {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
    }

    /// `tcp_v4_connect`: a connect begins; the `sockaddr_in` is in kernel memory by then.
    pub struct ConnectIpv4 {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// Port, as it lies in memory.
        pub port: u16 = "+{sockaddr_in.sin_port}({uaddr})",
        /// Address, as it lies in memory.
        pub address: u32 = "+{sockaddr_in.sin_addr}({uaddr})",
    }

    /// `tcp_v6_connect`: the same with a `sockaddr_in6`.
    pub struct ConnectIpv6 {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// Port, as it lies in memory.
        pub port: u16 = "+{sockaddr_in6.sin6_port}({uaddr})",
        /// Address, as it lies in memory.
        pub address_high: u64 = "+{sockaddr_in6.sin6_addr}({uaddr})",
        /// Its second half.
        pub address_low: u64 = "+{sockaddr_in6.sin6_addr+8}({uaddr})",
    }

    /// The return of `tcp_v4_connect` or `tcp_v6_connect`.
    pub struct ConnectReturned {
        /// 0 or a negative errno.
        pub result: i32 = "$retval",
    }

    /// `security_sock_graft`: an accepted connection gets its `struct socket`, in the context of who accepts.
    pub struct Accepted {
        /// The connection's `struct sock`.
        pub sk: Word = "{sk}",
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}({sk})",
        /// Its address family.
        pub family: u16 = "+{sock_common.skc_family}({sk})",
        /// Local port, host byte order.
        pub num: u16 = "+{sock_common.skc_num}({sk})",
        /// Remote port, as it lies in memory.
        pub dport: u16 = "+{sock_common.skc_dport}({sk})",
        /// Local IPv4 address, as it lies in memory.
        pub rcv_saddr: u32 = "+{sock_common.skc_rcv_saddr}({sk})",
        /// Remote IPv4 address, as it lies in memory.
        pub daddr: u32 = "+{sock_common.skc_daddr}({sk})",
        /// Local IPv6 address, as it lies in memory.
        pub v6_rcv_saddr_high: Option<u64> = "+{sock_common.skc_v6_rcv_saddr}({sk})",
        /// Its second half.
        pub v6_rcv_saddr_low: Option<u64> = "+{sock_common.skc_v6_rcv_saddr+8}({sk})",
        /// Remote IPv6 address, as it lies in memory.
        pub v6_daddr_high: Option<u64> = "+{sock_common.skc_v6_daddr}({sk})",
        /// Its second half.
        pub v6_daddr_low: Option<u64> = "+{sock_common.skc_v6_daddr+8}({sk})",
    }

    /// The return of `inet_csk_accept`: where [`Accepted`] cannot be had. A null pointer means that nothing was accepted.
    pub struct AcceptReturned {
        /// The connection's `struct sock`.
        pub sk: Word = "$retval",
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}($retval)",
        /// Its address family.
        pub family: u16 = "+{sock_common.skc_family}($retval)",
        /// Local port, host byte order.
        pub num: u16 = "+{sock_common.skc_num}($retval)",
        /// Remote port, as it lies in memory.
        pub dport: u16 = "+{sock_common.skc_dport}($retval)",
        /// Local IPv4 address, as it lies in memory.
        pub rcv_saddr: u32 = "+{sock_common.skc_rcv_saddr}($retval)",
        /// Remote IPv4 address, as it lies in memory.
        pub daddr: u32 = "+{sock_common.skc_daddr}($retval)",
        /// Local IPv6 address, as it lies in memory.
        pub v6_rcv_saddr_high: Option<u64> = "+{sock_common.skc_v6_rcv_saddr}($retval)",
        /// Its second half.
        pub v6_rcv_saddr_low: Option<u64> = "+{sock_common.skc_v6_rcv_saddr+8}($retval)",
        /// Remote IPv6 address, as it lies in memory.
        pub v6_daddr_high: Option<u64> = "+{sock_common.skc_v6_daddr}($retval)",
        /// Its second half.
        pub v6_daddr_low: Option<u64> = "+{sock_common.skc_v6_daddr+8}($retval)",
    }

    /// `security_inet_conn_request`: a SYN has found its listener. The fields are those of the `struct request_sock`, which
    /// begins with a `struct sock_common`.
    pub struct Requested {
        /// The listener's `struct sock`.
        pub sk: Word = "{sk}",
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}({req})",
        /// Its address family.
        pub family: u16 = "+{sock_common.skc_family}({req})",
        /// Local port, host byte order.
        pub num: u16 = "+{sock_common.skc_num}({req})",
        /// Remote port, as it lies in memory.
        pub dport: u16 = "+{sock_common.skc_dport}({req})",
        /// Local IPv4 address, as it lies in memory.
        pub rcv_saddr: u32 = "+{sock_common.skc_rcv_saddr}({req})",
        /// Remote IPv4 address, as it lies in memory.
        pub daddr: u32 = "+{sock_common.skc_daddr}({req})",
        /// Local IPv6 address, as it lies in memory.
        pub v6_rcv_saddr_high: Option<u64> = "+{sock_common.skc_v6_rcv_saddr}({req})",
        /// Its second half.
        pub v6_rcv_saddr_low: Option<u64> = "+{sock_common.skc_v6_rcv_saddr+8}({req})",
        /// Remote IPv6 address, as it lies in memory.
        pub v6_daddr_high: Option<u64> = "+{sock_common.skc_v6_daddr}({req})",
        /// Its second half.
        pub v6_daddr_low: Option<u64> = "+{sock_common.skc_v6_daddr+8}({req})",
    }

    /// `tcp_set_state`: a TCP socket enters a state.
    pub struct StateSet {
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
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}({sk})",
        /// Its address family.
        pub family: u16 = "+{sock_common.skc_family}({sk})",
        /// Local port, host byte order.
        pub num: u16 = "+{sock_common.skc_num}({sk})",
        /// Remote port, as it lies in memory.
        pub dport: u16 = "+{sock_common.skc_dport}({sk})",
        /// Local IPv4 address, as it lies in memory.
        pub rcv_saddr: u32 = "+{sock_common.skc_rcv_saddr}({sk})",
        /// Remote IPv4 address, as it lies in memory.
        pub daddr: u32 = "+{sock_common.skc_daddr}({sk})",
        /// Local IPv6 address, as it lies in memory.
        pub v6_rcv_saddr_high: Option<u64> = "+{sock_common.skc_v6_rcv_saddr}({sk})",
        /// Its second half.
        pub v6_rcv_saddr_low: Option<u64> = "+{sock_common.skc_v6_rcv_saddr+8}({sk})",
        /// Remote IPv6 address, as it lies in memory.
        pub v6_daddr_high: Option<u64> = "+{sock_common.skc_v6_daddr}({sk})",
        /// Its second half.
        pub v6_daddr_low: Option<u64> = "+{sock_common.skc_v6_daddr+8}({sk})",
    }

    /// `sock_def_error_report`: an error is reported to a socket's program; the next call that asks for it clears it.
    pub struct Failed {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// `sock.sk_err`, a positive errno.
        pub error: i32 = "+{sock.sk_err}({sk})",
    }

    /// `security_mptcp_add_subflow`, `mptcp_sockopt_sync`: a TCP socket is created for an MPTCP socket.
    pub struct SubflowMade {
        /// The `struct sock` of the MPTCP socket.
        pub sk: Word = "{sk}",
        /// That of the TCP socket.
        pub ssk: Word = "{ssk}",
    }

    /// `mptcp_event`: a subflow of an MPTCP socket is established, the first or a further one.
    pub struct SubflowEstablished {
        /// `enum mptcp_event_type`.
        pub kind: i32 = "{type}",
        /// The `struct sock` of the MPTCP socket.
        pub sk: Word = "{sk}",
        /// That of the TCP socket.
        pub ssk: Word = "{ssk}",
    }

    /// `inet_release`: the last descriptor of a `struct socket` is gone.
    pub struct Released {
        /// The `struct sock`; null when the socket never had one.
        pub sk: Word = "+{socket.sk}({sock})",
    }

    /// `inet_sock_destruct`: a `struct sock` is freed.
    pub struct Freed {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
    }
}

impl IntoEvent for Created {
    fn event(&self, _: &[u8]) -> Decoded {
        // A socket of the kernel's own does not keep its network namespace alive. The bit is there since Linux 4.2.
        let for_program = self.bits & SKC_NET_REFCNT != 0;
        Decoded::Event(EventKind::SocketCreated { sock: self.sk, for_program })
    }
}

impl IntoEvent for DatagramOption {
    fn event(&self, _: &[u8]) -> Decoded {
        match self.optname {
            UDP_GRO => Decoded::Event(EventKind::TakesMerged { sock: self.sk }),
            UDP_SEGMENT => Decoded::Event(EventKind::SendsJoined { sock: self.sk }),
            _ => Decoded::Nothing,
        }
    }
}

impl IntoEvent for SendsControl {
    fn event(&self, _: &[u8]) -> Decoded {
        // What they ask for is not looked at.
        Decoded::Event(EventKind::SendsJoined { sock: self.sk })
    }
}

impl IntoEvent for ConnectIpv4 {
    fn event(&self, _: &[u8]) -> Decoded {
        let remote = Endpoint::new(ipv4_address(self.address), u16::from_be(self.port));
        Decoded::Event(EventKind::ConnectBegins { sock: self.sk, remote })
    }
}

impl IntoEvent for ConnectIpv6 {
    fn event(&self, _: &[u8]) -> Decoded {
        let address = ipv6_address([self.address_high, self.address_low]);
        let remote = Endpoint::new(address, u16::from_be(self.port));
        Decoded::Event(EventKind::ConnectBegins { sock: self.sk, remote })
    }
}

impl IntoEvent for ConnectReturned {
    fn event(&self, _: &[u8]) -> Decoded {
        Decoded::Event(EventKind::ConnectReturns { result: self.result })
    }
}

/// Both ends out of a `struct sock`: the fields of that family count. `None` where those are not known.
macro_rules! tuple_of {
    ($sample:expr) => {{
        let sample = $sample;
        let [local, remote]: [Option<IpAddr>; 2] = match sample.family {
            AF_INET => [sample.rcv_saddr, sample.daddr].map(|address| Some(ipv4_address(address).into())),
            _ => [[sample.v6_rcv_saddr_high, sample.v6_rcv_saddr_low], [sample.v6_daddr_high, sample.v6_daddr_low]]
                .map(|address| known_ipv6(address).map(IpAddr::from)),
        };
        local.zip(remote).map(|(local, remote)| Tuple {
            net: sample.net,
            local: Endpoint::new(local, sample.num),
            remote: Endpoint::new(remote, u16::from_be(sample.dport)),
        })
    }};
}

/// What this says of a connection; nothing where its ends are not known.
fn of_connection(tuple: Option<Tuple>, kind: impl FnOnce(Tuple) -> EventKind) -> Decoded {
    tuple.map_or(Decoded::Nothing, |tuple| Decoded::Event(kind(tuple)))
}

/// Whether a socket of this family and remote port is a connection.
fn is_connection(family: u16, dport: u16) -> bool {
    matches!(family, AF_INET | AF_INET6) && dport != 0
}

impl IntoEvent for Accepted {
    fn event(&self, _: &[u8]) -> Decoded {
        if !is_connection(self.family, self.dport) {
            return Decoded::Nothing;
        }
        of_connection(tuple_of!(self), |tuple| EventKind::Accepted { sock: self.sk, tuple })
    }
}

impl IntoEvent for AcceptReturned {
    fn event(&self, _: &[u8]) -> Decoded {
        if self.sk == 0 || !is_connection(self.family, self.dport) {
            return Decoded::Nothing;
        }
        of_connection(tuple_of!(self), |tuple| EventKind::Accepted { sock: self.sk, tuple })
    }
}

impl IntoEvent for Requested {
    fn event(&self, _: &[u8]) -> Decoded {
        if !is_connection(self.family, self.dport) {
            return Decoded::Nothing;
        }
        of_connection(tuple_of!(self), |tuple| EventKind::ConnectionRequested { listener: self.sk, tuple })
    }
}

impl IntoEvent for StateSet {
    fn event(&self, _: &[u8]) -> Decoded {
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
        of_connection(tuple_of!(self), |tuple| EventKind::TcpState { sock: self.sk, tuple, state, segments })
    }
}

impl IntoEvent for Failed {
    fn event(&self, _: &[u8]) -> Decoded {
        Decoded::Event(EventKind::SocketError { sock: self.sk, error: self.error })
    }
}

impl IntoEvent for SubflowMade {
    fn event(&self, _: &[u8]) -> Decoded {
        subflow(self.ssk, self.sk, false)
    }
}

impl IntoEvent for SubflowEstablished {
    fn event(&self, _: &[u8]) -> Decoded {
        subflow(self.ssk, self.sk, self.kind == MPTCP_EVENT_SUB_ESTABLISHED)
    }
}

fn subflow(sock: u64, mptcp: u64, joined: bool) -> Decoded {
    match (sock, mptcp) {
        (0, _) | (_, 0) => Decoded::Nothing,
        _ => Decoded::Event(EventKind::Subflow { sock, mptcp, joined }),
    }
}

impl IntoEvent for Released {
    fn event(&self, _: &[u8]) -> Decoded {
        match self.sk {
            0 => Decoded::Nothing,
            sock => Decoded::Event(EventKind::SocketReleased { sock }),
        }
    }
}

impl IntoEvent for Freed {
    fn event(&self, _: &[u8]) -> Decoded {
        Decoded::Event(EventKind::SocketFreed { sock: self.sk })
    }
}

fn ipv4_address(memory: u32) -> Ipv4Addr {
    Ipv4Addr::from(memory.to_ne_bytes())
}
