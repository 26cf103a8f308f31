//! Samples of sockets at hooks.

use socktrail_kprobes::{Word, sample};

use crate::model::event::{EventKind, TcpState};
use crate::model::flow::Endpoint;
use crate::source::kprobes::sockets::{
    TCP_CLOSE, TCP_ESTABLISHED, ipv4_address, is_connection, of_connection, samples_with_ends, tuple_of,
};
use crate::source::kprobes::{Decoded, Interpret, ipv6_address};

sample! {
    /// The running task closes the last descriptor of a socket.
    pub struct SockReleased {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
    }

    /// `sock:inet_sock_set_state`, when a TCP socket begins to connect over IPv4.
    pub struct SynSentIpv4 {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// The state that it enters.
        pub state: i32 = "{state}",
        /// Its address family.
        pub family: u16 = "+{sock_common.skc_family}({sk})",
        /// Remote port, in memory order.
        pub port: u16 = "+{sock_common.skc_dport}({sk})",
        /// Remote address, in memory order.
        pub address: u32 = "+{sock_common.skc_daddr}({sk})",
    }

    /// The same over IPv6.
    pub struct SynSentIpv6 {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// The state that it enters.
        pub state: i32 = "{state}",
        /// Its address family.
        pub family: u16 = "+{sock_common.skc_family}({sk})",
        /// Remote port, in memory order.
        pub port: u16 = "+{sock_common.skc_dport}({sk})",
        /// Remote address, in memory order: its first 8 bytes.
        pub address_high: u64 = "+{sock_common.skc_v6_daddr}({sk})",
        /// Its last 8 bytes.
        pub address_low: u64 = "+{sock_common.skc_v6_daddr+8}({sk})",
    }
}

samples_with_ends! {
    /// `sock:inet_sock_set_state`: a TCP socket enters a state. The local port is in memory order. It is read from
    /// `inet_sport`, because `skc_num` is cleared when a socket closes.
    pub struct StateEntered of "{sk}", port "+{inet_sock.inet_sport}" {
        /// The `struct sock`.
        pub sk: Word = "{sk}",
        /// The state that it enters.
        pub state: i32 = "{state}",
        /// `sock.sk_err`.
        pub error: i32 = "+{sock.sk_err}({sk})",
    }

    /// `accept(2)` has returned a descriptor. The local port is in host byte order.
    pub struct AcceptedFile of "+{socket.sk}(+{file.private_data}($file))", port "+{sock_common.skc_num}" {
        /// The `struct sock` of the connection.
        pub sk: Word = "+{socket.sk}(+{file.private_data}($file))",
    }
}

impl Interpret for AcceptedFile {
    fn interpret(&self, _: &[u8]) -> Decoded {
        if !is_connection(self.family, self.dport) {
            return Decoded::Nothing;
        }
        of_connection(self.sk, tuple_of!(self), |sock, tuple| EventKind::Accepted { sock, tuple })
    }
}

impl Interpret for StateEntered {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let state = match self.state {
            TCP_ESTABLISHED => TcpState::Established,
            TCP_CLOSE => TcpState::Closed { error: self.error },
            _ => return Decoded::Nothing,
        };
        if !is_connection(self.family, self.dport) {
            return Decoded::Nothing;
        }
        let ends = Self { num: u16::from_be(self.num), ..*self };
        let event = |sock, tuple| EventKind::TcpState { sock, tuple, state, segments: None };
        of_connection(self.sk, tuple_of!(ends), event)
    }
}

impl Interpret for SockReleased {
    fn interpret(&self, _: &[u8]) -> Decoded {
        Decoded::of_sock(self.sk, |sock| EventKind::SocketReleased { sock })
    }
}

impl Interpret for SynSentIpv4 {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let remote = Endpoint::new(ipv4_address(self.address), u16::from_be(self.port));
        Decoded::of_sock(self.sk, |sock| EventKind::ConnectBegins { sock, remote })
    }
}

impl Interpret for SynSentIpv6 {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let address = ipv6_address([self.address_high, self.address_low]);
        let remote = Endpoint::new(address, u16::from_be(self.port));
        Decoded::of_sock(self.sk, |sock| EventKind::ConnectBegins { sock, remote })
    }
}
