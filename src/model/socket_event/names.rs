//! Names for numbers of the kernel's interface.

use std::borrow::Cow;
use std::fmt;

/// An address family: the number, as in `bits/socket.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Family(pub u16);

/// The families that have names, by number: all of Linux 7.
#[rustfmt::skip]
const FAMILIES: [&str; 46] = [
    "AF_UNSPEC", "AF_UNIX", "AF_INET", "AF_AX25", "AF_IPX", "AF_APPLETALK", "AF_NETROM", "AF_BRIDGE", "AF_ATMPVC",
    "AF_X25", "AF_INET6", "AF_ROSE", "AF_DECnet", "AF_NETBEUI", "AF_SECURITY", "AF_KEY", "AF_NETLINK", "AF_PACKET",
    "AF_ASH", "AF_ECONET", "AF_ATMSVC", "AF_RDS", "AF_SNA", "AF_IRDA", "AF_PPPOX", "AF_WANPIPE", "AF_LLC", "AF_IB",
    "AF_MPLS", "AF_CAN", "AF_TIPC", "AF_BLUETOOTH", "AF_IUCV", "AF_RXRPC", "AF_ISDN", "AF_PHONET", "AF_IEEE802154",
    "AF_CAIF", "AF_ALG", "AF_NFC", "AF_VSOCK", "AF_KCM", "AF_QIPCRTR", "AF_SMC", "AF_XDP", "AF_MCTP",
];

impl Family {
    /// `AF_UNIX`.
    pub const UNIX: Self = Self(1);
    /// `AF_INET`.
    pub const INET: Self = Self(2);
    /// `AF_INET6`.
    pub const INET6: Self = Self(10);

    /// The name, such as `AF_INET`; the number if it has no name.
    pub fn name(self) -> Cow<'static, str> {
        match FAMILIES.get(usize::from(self.0)) {
            Some(name) => Cow::Borrowed(name),
            None => self.0.to_string().into(),
        }
    }

    /// Whether the family is `AF_INET` or `AF_INET6`.
    pub const fn is_ip(self) -> bool {
        matches!(self, Self::INET | Self::INET6)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// A type of socket: the number, without the flags that `socket(2)` takes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketType(pub u16);

impl SocketType {
    /// `SOCK_STREAM`.
    pub const STREAM: Self = Self(1);
    /// `SOCK_DGRAM`.
    pub const DGRAM: Self = Self(2);
    /// `SOCK_RAW`.
    pub const RAW: Self = Self(3);
    /// `SOCK_SEQPACKET`.
    pub const SEQPACKET: Self = Self(5);

    /// The name, such as `SOCK_STREAM`; the number if it has no name.
    pub fn name(self) -> Cow<'static, str> {
        Cow::Borrowed(match self.0 {
            1 => "SOCK_STREAM",
            2 => "SOCK_DGRAM",
            3 => "SOCK_RAW",
            4 => "SOCK_RDM",
            5 => "SOCK_SEQPACKET",
            6 => "SOCK_DCCP",
            10 => "SOCK_PACKET",
            number => return number.to_string().into(),
        })
    }
}

/// The state of a socket (`sk_state`). All families use TCP's numbers (`include/net/tcp_states.h`).
///
/// A datagram socket is [`ESTABLISHED`](Self::ESTABLISHED) when it is connected, else [`CLOSE`](Self::CLOSE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketState(pub u8);

impl SocketState {
    /// `TCP_ESTABLISHED`.
    pub const ESTABLISHED: Self = Self(1);
    /// `TCP_SYN_SENT`.
    pub const SYN_SENT: Self = Self(2);
    /// `TCP_CLOSE`: not connected, or not any more.
    pub const CLOSE: Self = Self(7);
    /// `TCP_CLOSE_WAIT`: the other end has closed.
    pub const CLOSE_WAIT: Self = Self(8);
    /// `TCP_LISTEN`.
    pub const LISTEN: Self = Self(10);

    /// The kernel's name without `TCP_`: `ESTABLISHED`, `SYN_SENT`, `SYN_RECV`, `FIN_WAIT1`, `FIN_WAIT2`, `TIME_WAIT`, `CLOSE`,
    /// `CLOSE_WAIT`, `LAST_ACK`, `LISTEN`, `CLOSING`, `NEW_SYN_RECV`. The number if it has no name.
    pub fn name(self) -> Cow<'static, str> {
        Cow::Borrowed(match self.0 {
            1 => "ESTABLISHED",
            2 => "SYN_SENT",
            3 => "SYN_RECV",
            4 => "FIN_WAIT1",
            5 => "FIN_WAIT2",
            6 => "TIME_WAIT",
            7 => "CLOSE",
            8 => "CLOSE_WAIT",
            9 => "LAST_ACK",
            10 => "LISTEN",
            11 => "CLOSING",
            12 => "NEW_SYN_RECV",
            number => return number.to_string().into(),
        })
    }
}

/// The usual name of an IP protocol (`IPPROTO_*` of `include/uapi/linux/in.h`); `None` if it is not in this list.
pub const fn protocol_name(number: u16) -> Option<&'static str> {
    Some(match number {
        1 => "ICMP",
        2 => "IGMP",
        6 => "TCP",
        17 => "UDP",
        33 => "DCCP",
        47 => "GRE",
        50 => "ESP",
        51 => "AH",
        58 => "ICMPv6",
        132 => "SCTP",
        136 => "UDPLite",
        255 => "RAW",
        262 => "MPTCP",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockType};

    use super::*;

    #[test]
    fn families_and_types_have_the_numbers_of_the_c_library() {
        for (family, name) in [
            (AddressFamily::Unix, "AF_UNIX"),
            (AddressFamily::Inet, "AF_INET"),
            (AddressFamily::Inet6, "AF_INET6"),
            (AddressFamily::Netlink, "AF_NETLINK"),
            (AddressFamily::Packet, "AF_PACKET"),
            (AddressFamily::Alg, "AF_ALG"),
            (AddressFamily::Vsock, "AF_VSOCK"),
        ] {
            assert_eq!(Family(family as u16).name(), name);
        }
        for (kind, name) in [
            (SockType::Stream, "SOCK_STREAM"),
            (SockType::Datagram, "SOCK_DGRAM"),
            (SockType::Raw, "SOCK_RAW"),
            (SockType::SeqPacket, "SOCK_SEQPACKET"),
        ] {
            assert_eq!(SocketType(kind as u16).name(), name);
        }
    }

    #[test]
    fn a_number_without_a_name_is_shown_as_a_number() {
        assert_eq!(Family(999).name(), "999");
        assert_eq!(SocketType(77).name(), "77");
        assert_eq!(SocketState(99).name(), "99");
        assert_eq!(protocol_name(253), None);
    }
}
