//! Samples of ICMP errors about TCP packets that this host has sent.
//!
//! The kernel reports such an error to the program. But while a call holds the socket, it only stores the error
//! (`sock.sk_err_soft`), as when this host's firewall rejects the packet during `connect(2)`. The program can read and clear
//! the stored error (`SO_ERROR`) before any other probe shows it. So the error is taken from the ICMP packet.

use nix::errno::Errno;
use socktrail_kprobes::{Word, sample};

use super::{IPPROTO_TCP, ipv4, ipv6};
use crate::model::event::{EventKind, Tuple};
use crate::model::flow::Endpoint;
use crate::model::kernel_address::NetAddress;
use crate::source::kprobes::{Decoded, Interpret};

/// Version 4 and a header without options.
const PLAIN_IPV4: u8 = 0x45;

sample! {
    /// `tcp_v4_err`: an ICMP error has arrived. `skb->data` points to the IPv4 header of the packet that it is about, after the
    /// ICMP header.
    pub struct IcmpIpv4 {
        /// `struct net`.
        pub net: Word = "+{net_device.nd_net}(+{sk_buff.dev}({skb}))",
        /// ICMP type and code, in memory order.
        pub kind: u16 = "-8(+{sk_buff.data}({skb}))",
        /// IP version and header length.
        pub version_ihl: u8 = "+0(+{sk_buff.data}({skb}))",
        /// Source and destination address, in memory order.
        pub addresses: u64 = "+12(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order, after a header without options.
        pub ports: u32 = "+20(+{sk_buff.data}({skb}))",
    }

    /// `tcp_v6_err`: an ICMPv6 error has arrived.
    pub struct IcmpIpv6 {
        /// `struct net`.
        pub net: Word = "+{net_device.nd_net}(+{sk_buff.dev}({skb}))",
        /// ICMPv6 type and code, in memory order.
        pub kind: u16 = "-8(+{sk_buff.data}({skb}))",
        /// The next header after the IPv6 header: 6, or an extension header.
        pub next_header: u8 = "+6(+{sk_buff.data}({skb}))",
        /// Source address, in memory order: its first 8 bytes.
        pub source_high: u64 = "+8(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub source_low: u64 = "+16(+{sk_buff.data}({skb}))",
        /// Destination address, in memory order: its first 8 bytes.
        pub destination_high: u64 = "+24(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub destination_low: u64 = "+32(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order, after a header without extensions.
        pub ports: u32 = "+40(+{sk_buff.data}({skb}))",
    }
}

impl Interpret for IcmpIpv4 {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let [kind, code] = self.kind.to_ne_bytes();
        let is_readable = self.version_ihl == PLAIN_IPV4;
        icmp_event(self.net, ipv4(self.addresses, self.ports), icmp_error(kind, code).filter(|_| is_readable))
    }
}

impl Interpret for IcmpIpv6 {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let [kind, code] = self.kind.to_ne_bytes();
        let is_readable = self.next_header == IPPROTO_TCP;
        let ends = ipv6([self.source_high, self.source_low], [self.destination_high, self.destination_low], self.ports);
        icmp_event(self.net, ends, icmpv6_error(kind, code).filter(|_| is_readable))
    }
}

fn icmp_event(net: u64, (local, remote): (Endpoint, Endpoint), error: Option<Errno>) -> Decoded {
    match error {
        Some(error) => {
            let (tuple, error) = (Tuple { net: NetAddress::new(net), local, remote }, error as i32);
            Decoded::Event(EventKind::IcmpError { tuple, error })
        }
        None => Decoded::Nothing,
    }
}

/// The errno that TCP reports for an ICMP type and code, if any: the kernel's `icmp_err_convert` (types of RFC 792 and
/// RFC 1812). "Fragmentation needed" (3, 4) is not an error, because TCP then sends smaller packets.
fn icmp_error(kind: u8, code: u8) -> Option<Errno> {
    Some(match (kind, code) {
        (3, 0 | 6 | 9 | 11) => Errno::ENETUNREACH,
        (3, 1 | 10 | 12..=15) | (11, _) => Errno::EHOSTUNREACH,
        (3, 2) => Errno::ENOPROTOOPT,
        (3, 3) => Errno::ECONNREFUSED,
        (3, 5) => Errno::EOPNOTSUPP,
        (3, 7) => Errno::EHOSTDOWN,
        (3, 8) => Errno::ENONET,
        (12, _) => Errno::EPROTO,
        _ => return None,
    })
}

/// The same for ICMPv6 (RFC 4443): the kernel's `icmpv6_err_convert`.
fn icmpv6_error(kind: u8, code: u8) -> Option<Errno> {
    Some(match (kind, code) {
        (1, 0) => Errno::ENETUNREACH,
        (1, 1 | 5 | 6) => Errno::EACCES,
        (1, 2 | 3) | (3, _) => Errno::EHOSTUNREACH,
        (1, 4) => Errno::ECONNREFUSED,
        (1 | 4, _) => Errno::EPROTO,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn error(decoded: Decoded) -> Option<(Tuple, i32)> {
        match decoded {
            Decoded::Event(EventKind::IcmpError { tuple, error }) => Some((tuple, error)),
            _ => None,
        }
    }

    /// What `nft … reject with icmpx port-unreachable` answered to a SYN from 10.9.1.2:40000 to 10.9.2.2:81.
    fn rejected() -> IcmpIpv4 {
        IcmpIpv4 {
            net: 1,
            kind: u16::from_ne_bytes([3, 3]),
            version_ihl: 0x45,
            addresses: u64::from_ne_bytes([10, 9, 1, 2, 10, 9, 2, 2]),
            ports: u32::from_ne_bytes([0x9c, 0x40, 0, 81]),
        }
    }

    #[test]
    fn an_error_is_about_the_packet_that_the_icmp_message_quotes() {
        let (tuple, errno) = error(rejected().interpret(&[])).unwrap();
        assert_eq!(
            (tuple.local, tuple.remote),
            (Endpoint::new(Ipv4Addr::new(10, 9, 1, 2), 40000), Endpoint::new(Ipv4Addr::new(10, 9, 2, 2), 81),)
        );
        assert_eq!((tuple.net, errno), (NetAddress::new(1), 111));
        let with_options = IcmpIpv4 { version_ihl: 0x46, ..rejected() };
        assert_eq!(error(with_options.interpret(&[])), None, "the ports are elsewhere");
        let [high, low] =
            [0, 8].map(|at| u64::from_ne_bytes(Ipv6Addr::LOCALHOST.octets()[at..at + 8].try_into().unwrap()));
        let v6 = IcmpIpv6 {
            net: 2,
            kind: u16::from_ne_bytes([1, 4]),
            next_header: 6,
            source_high: high,
            source_low: low,
            destination_high: high,
            destination_low: low,
            ports: rejected().ports,
        };
        let (tuple, errno) = error(v6.interpret(&[])).unwrap();
        assert_eq!((tuple.local, errno), (Endpoint::new(Ipv6Addr::LOCALHOST, 40000), 111));
        assert_eq!(error(IcmpIpv6 { next_header: 60, ..v6 }.interpret(&[])), None, "an extension header comes first");
    }

    #[test]
    fn icmp_messages_that_tcp_does_not_report_are_no_errors() {
        // Fragmentation needed, a redirect, source quench, and an unknown code.
        for (kind, code) in [(3, 4), (5, 0), (4, 0), (3, 16)] {
            assert_eq!(icmp_error(kind, code), None);
        }
        assert_eq!([icmpv6_error(2, 0), icmpv6_error(137, 0)], [None, None]);
        assert_eq!([icmp_error(3, 13), icmp_error(11, 0)], [Some(Errno::EHOSTUNREACH); 2]);
    }
}
