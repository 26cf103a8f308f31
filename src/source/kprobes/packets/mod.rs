//! Samples of packets: outgoing ones where they are passed to IP, incoming ones where they come from it.
//!
//! The packet's own headers identify its flow: a socket may have no remote address (UDP), and packets that a listener or the
//! kernel's control socket sends belong to other conversations. Outgoing packets are sampled before netfilter's hooks, incoming
//! ones after them, so that the addresses are the socket's and not translated ones (NAT).

mod arriving;
mod dropped;
mod errors;
mod fragmenting;
mod freed;
mod leaving;

use std::net::Ipv4Addr;

pub(in crate::source) use self::arriving::Headers;
pub(super) use self::arriving::{TcpIpv4In, TcpIpv6In, UdpIpv4In, UdpIpv6In};
pub(super) use self::dropped::{
    EarlyPacketFreed, EarlyPacketsFreed, PacketDropped, PacketDroppedForReason, PacketFreed, PacketFreedForReason,
    PacketsFreed,
};
pub(super) use self::errors::{IcmpIpv4, IcmpIpv6};
pub(super) use self::fragmenting::{
    Ipv4Fragmented, Ipv4FragmentedWithoutSk, Ipv6Fragmented, Ipv6FragmentedWithoutSk, Ipv6Headers,
};
pub(super) use self::freed::{FreedBy, ListFreeFunction};
pub(super) use self::leaving::{
    Ipv4Out, Ipv4OutWithoutNet, Ipv4OutWithoutSk, TcpIpv6Out, UdpIpv6Out, UdpIpv6OutWithoutNet, UdpIpv6OutWithoutSk,
};
use super::Decoded;
use crate::model::event::{EventKind, Packet, PacketDirection, PacketSize, Segments, Tuple};
use crate::model::flow::{Endpoint, Transport};
use crate::model::kernel_address::SockAddress;

pub(super) const IPV4_HEADER: u16 = 20;
pub(super) const IPV6_HEADER: u16 = 40;
const UDP_HEADER: u16 = 8;
pub(in crate::source) const IPPROTO_TCP: u8 = 6;
pub(in crate::source) const IPPROTO_UDP: u8 = 17;

/// Facts from the transport header, and from the socket of TCP.
pub(in crate::source) struct TransportHeader {
    len: u16,
    flags: u8,
    segments: Option<Segments>,
}

impl TransportHeader {
    pub const UDP: Self = Self { len: UDP_HEADER, flags: 0, segments: None };

    /// From the two bytes of TCP's data offset and flags, and the socket's counters.
    pub fn tcp(memory: u16, counters: Option<(u32, u32)>) -> Self {
        let [offset, flags] = memory.to_ne_bytes();
        let segments = counters.map(|(received, sent)| Segments { received, sent });
        Self { len: u16::from(offset >> 4) * 4, flags, segments }
    }

    /// Its length in bytes.
    pub const fn len(&self) -> u16 {
        self.len
    }

    /// TCP's flags; 0 for UDP.
    pub const fn flags(&self) -> u8 {
        self.flags
    }
}

/// `sk_buff.len` and `sk_buff.data_len`, two adjacent numbers of 4 bytes: the size of a packet, and the size of its
/// nonlinear part.
pub(super) struct Lengths {
    pub len: u32,
    pub data_len: u32,
}

impl Lengths {
    /// In memory order.
    pub fn of(memory: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = memory.to_ne_bytes();
        Self { len: u32::from_ne_bytes([a, b, c, d]), data_len: u32::from_ne_bytes([e, f, g, h]) }
    }

    /// The size of the linear part, which has the headers.
    fn linear(&self) -> u32 {
        self.len.saturating_sub(self.data_len)
    }
}

/// A linear packet that is not fragmented.
pub(super) fn packet(
    direction: PacketDirection,
    transport: Transport,
    sock: Option<SockAddress>,
    tuple: Tuple,
    bytes: u32,
    ip_header: u16,
    transport_header: TransportHeader,
) -> Packet {
    let TransportHeader { len, flags: tcp_flags, segments } = transport_header;
    let size = PacketSize { bytes, headers: ip_header + len };
    // Without a socket, as for a firewall's reset, reading the socket's fields fails, and the record has the values of an earlier
    // one.
    let segments = segments.filter(|_| sock.is_some());
    Packet { tcp_flags, segments, ..Packet::new(direction, transport, sock, tuple, size) }
}

pub(in crate::source) fn packet_event(packet: Packet) -> Decoded {
    Decoded::Event(EventKind::Packet(packet))
}

/// Source and destination from memory: two addresses and two ports, in network byte order.
pub(in crate::source) fn ipv4(addresses: u64, ports: u32) -> (Endpoint, Endpoint) {
    let [a, b, c, d, e, f, g, h] = addresses.to_ne_bytes();
    let (from, to) = split_ports(ports);
    (Endpoint::new(Ipv4Addr::new(a, b, c, d), from), Endpoint::new(Ipv4Addr::new(e, f, g, h), to))
}

pub(in crate::source) fn ipv6(source: [u64; 2], destination: [u64; 2], ports: u32) -> (Endpoint, Endpoint) {
    let (from, to) = split_ports(ports);
    (Endpoint::new(super::ipv6_address(source), from), Endpoint::new(super::ipv6_address(destination), to))
}

fn split_ports(ports: u32) -> (u16, u16) {
    let [a, b, c, d] = ports.to_ne_bytes();
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::model::event::{Fragmented, UnreadablePacket};
    use crate::model::kernel_address::NetAddress;
    use crate::source::kprobes::Interpret;

    fn decoded(sample: &impl Interpret) -> Packet {
        match sample.interpret(&[]) {
            Decoded::Event(EventKind::Packet(packet)) => packet,
            other => panic!("{other:?}"),
        }
    }

    /// A SYN from curl to 127.0.0.1:80, as `tcpdump -x` showed it.
    const SYN: &[u8] = &[
        0x45, 0x00, 0x00, 0x3c, 0x4e, 0x4a, 0x40, 0x00, 0x40, 0x06, 0xee, 0x6f, 0x7f, 0x00, 0x00, 0x01, 0x7f, 0x00,
        0x00, 0x01, 0xa8, 0x0c, 0x00, 0x50, 0x0c, 0xe1, 0x2b, 0x67, 0x00, 0x00, 0x00, 0x00, 0xa0, 0x02, 0xff, 0xd7,
    ];

    fn at<const N: usize>(offset: usize) -> [u8; N] {
        SYN[offset..offset + N].try_into().unwrap()
    }

    /// `sk_buff.len` and `sk_buff.data_len` in memory order.
    fn nonlinear(len: u32, data_len: u32) -> u64 {
        let mut memory = [0; 8];
        memory[..4].copy_from_slice(&len.to_ne_bytes());
        memory[4..].copy_from_slice(&data_len.to_ne_bytes());
        u64::from_ne_bytes(memory)
    }

    /// `sk_buff.transport_header` and `sk_buff.network_header` in memory order.
    fn headers(transport: u16, network: u16) -> u32 {
        let mut memory = [0; 4];
        memory[..2].copy_from_slice(&transport.to_ne_bytes());
        memory[2..].copy_from_slice(&network.to_ne_bytes());
        u32::from_ne_bytes(memory)
    }

    fn linear(len: u32) -> u64 {
        nonlinear(len, 0)
    }

    /// A datagram from port 1 to port 2, with an IP header of 20 bytes.
    fn datagram(lengths: u64) -> Ipv4Out {
        let mut behind = [0; 8];
        behind[..4].copy_from_slice(&[0, 1, 0, 2]);
        Ipv4Out {
            net: 1,
            sk: 2,
            lengths,
            version_ihl: 0x45,
            protocol: 17,
            addresses: u64::from_ne_bytes(at(12)),
            behind: u64::from_ne_bytes(behind),
            further_behind: 0,
            segs_in: Some(0),
            segs_out: Some(0),
        }
    }

    #[test]
    fn the_nonlinear_part_is_reported() {
        for (len, data_len) in [(1028, 0), (1028, 500)] {
            let packet = decoded(&datagram(nonlinear(len, data_len)));
            assert_eq!((packet.size, packet.data_len), (PacketSize { bytes: len, headers: 28 }, data_len));
        }
    }

    #[test]
    fn a_fragmented_packet_shows_the_size_of_the_first_fragment() {
        let ports = u32::from_ne_bytes([0, 1, 0, 2]);
        let whole = |lengths| Ipv4Fragmented {
            net: 1,
            sk: 2,
            lengths,
            protocol: 17,
            addresses: u64::from_ne_bytes(at(12)),
            ports,
        };
        let of = |decoded: Decoded| match decoded {
            Decoded::Event(EventKind::Fragmented(fragmented)) => fragmented,
            other => panic!("{other:?}"),
        };
        let Fragmented { transport, sock, tuple, bytes, first } = of(whole(nonlinear(4028, 2528)).interpret(&[]));
        assert_eq!((transport, sock, bytes, first), (Transport::Udp, SockAddress::new(2), 4028, 1500));
        assert_eq!((tuple.net, tuple.local.port, tuple.remote.port), (NetAddress::new(1), 1, 2));
        assert_eq!(of(whole(linear(4028)).interpret(&[])).first, 0, "made for a larger MTU");
        assert_eq!(
            of(whole(nonlinear(4028, 3900)).interpret(&[])).first,
            0,
            "the linear part is smaller than the smallest MTU"
        );
        assert_eq!(of(whole(nonlinear(4028, 2604)).interpret(&[])).first, 0, "the payload is no multiple of 8 bytes");
        assert_eq!(of(whole(u64::MAX).interpret(&[])).first, 0, "impossible lengths");
        let (lengths, protocol) = (nonlinear(4048, 2560), 17);
        let ipv6 = Ipv6Fragmented {
            net: 1,
            sk: 2,
            lengths,
            protocol,
            source_high: 0,
            source_low: 0,
            destination_high: 0,
            destination_low: 0,
            ports,
        };
        assert_eq!(
            of(ipv6.interpret(&[])).first,
            1496,
            "with the fragment header, which the linear part does not have yet"
        );
        assert!(matches!(Ipv4Fragmented { protocol: 1, ..whole(0) }.interpret(&[]), Decoded::Nothing));
    }

    #[test]
    fn the_headers_of_an_outgoing_packet_are_decoded() {
        let sample = Ipv4Out {
            net: 1,
            sk: 2,
            lengths: linear(60),
            version_ihl: SYN[0],
            protocol: SYN[9],
            addresses: u64::from_ne_bytes(at(12)),
            behind: u64::from_ne_bytes(at(20)),
            further_behind: u64::from_ne_bytes(at(28)),
            segs_in: Some(0),
            segs_out: Some(1),
        };
        let packet = decoded(&sample);
        assert_eq!(packet.tuple.local, Endpoint::new(Ipv4Addr::LOCALHOST, 0xa80c));
        assert_eq!(packet.tuple.remote, Endpoint::new(Ipv4Addr::LOCALHOST, 80));
        assert_eq!(packet.size, PacketSize { bytes: 60, headers: 60 });
        assert_eq!(
            (packet.direction, packet.transport, packet.tcp_flags),
            (PacketDirection::Outbound, Transport::Tcp, 0x02)
        );
        assert_eq!(packet.segments, Some(Segments { received: 0, sent: 1 }));
    }

    /// Without a socket, the fields that are read through it hold values of an earlier sample.
    #[test]
    fn without_a_socket_its_fields_are_ignored() {
        const EARLIER: u64 = 0xffff_8880_0000_1000;
        let (protocol, behind, further_behind) = (SYN[9], u64::from_ne_bytes(at(20)), u64::from_ne_bytes(at(28)));
        let argument = Ipv4Out { net: 1, sk: 0, protocol, behind, further_behind, ..datagram(linear(60)) };
        let argument = Ipv4Out { segs_in: Some(7), segs_out: Some(9), ..argument };
        let Ipv4Out { lengths, version_ihl, addresses, segs_in, segs_out, .. } = argument;
        let (net, sk) = (EARLIER, 0);
        let without_net = Ipv4OutWithoutNet {
            net,
            sk,
            lengths,
            version_ihl,
            protocol,
            addresses,
            behind,
            further_behind,
            segs_in,
            segs_out,
        };
        let of_sender = Ipv4OutWithoutSk {
            net,
            sk,
            lengths,
            version_ihl,
            protocol,
            addresses,
            behind,
            further_behind,
            segs_in,
            segs_out,
        };
        let (source_high, source_low, destination_high, destination_low) = (0, 0, 0, 0);
        let (next_header, ports) = (17, 0);
        let of_ipv6 = UdpIpv6OutWithoutSk {
            net,
            sk,
            lengths,
            next_header,
            source_high,
            source_low,
            destination_high,
            destination_low,
            ports,
        };
        let of_ipv6_without_net = UdpIpv6OutWithoutNet {
            net,
            sk,
            lengths,
            next_header,
            source_high,
            source_low,
            destination_high,
            destination_low,
            ports,
        };
        let seen = |packet: Packet| (packet.tuple.net, packet.sock, packet.segments);
        assert_eq!(
            seen(decoded(&argument)),
            (NetAddress::new(1), None, None),
            "the namespace is an argument of the function"
        );
        assert_eq!(seen(decoded(&without_net)), (None, None, None));
        assert_eq!(seen(decoded(&of_sender)), (None, None, None));
        assert_eq!(seen(decoded(&of_ipv6)), (None, None, None));
        assert_eq!(seen(decoded(&of_ipv6_without_net)), (None, None, None));
        let sent = Ipv4OutWithoutSk { sk: 2, ..of_sender };
        assert_eq!(
            seen(decoded(&sent)),
            (NetAddress::new(EARLIER), SockAddress::new(2), Some(Segments { received: 7, sent: 9 }))
        );
    }

    #[test]
    fn ports_are_found_behind_options() {
        // A datagram from port 1 to port 2, after this many words of IP options. The other bytes must not be used.
        let sample = |words: u8| {
            let mut behind = [0xee; 16 + 40];
            let place = usize::from(words) * 4;
            behind[place..place + 8].copy_from_slice(&[0, 1, 0, 2, 0, 72, 0, 0]);
            Ipv4Out {
                net: 1,
                sk: 2,
                lengths: linear(92 + u32::from(words) * 4),
                version_ihl: 0x45 + words,
                protocol: 17,
                addresses: u64::from_ne_bytes(at(12)),
                behind: u64::from_ne_bytes(behind[..8].try_into().unwrap()),
                further_behind: u64::from_ne_bytes(behind[8..16].try_into().unwrap()),
                segs_in: Some(0),
                segs_out: Some(0),
            }
        };
        for words in 0..=3 {
            let packet = decoded(&sample(words));
            assert_eq!((packet.tuple.local.port, packet.tuple.remote.port), (1, 2), "{words}");
            let headers = 28 + u16::from(words) * 4;
            assert_eq!(packet.size, PacketSize { bytes: 64 + u32::from(headers), headers });
        }
        let unreadable = |ports, transport| UnreadablePacket {
            net: NetAddress::new(1),
            transport,
            sock: SockAddress::new(2),
            ports,
        };
        for (sample, wanted) in [
            (sample(4), unreadable(None, Transport::Udp)),
            (Ipv4Out { protocol: 6, ..sample(1) }, unreadable(Some((1, 2)), Transport::Tcp)),
        ] {
            assert!(matches!(sample.interpret(&[]), Decoded::Unreadable(Some(what)) if what == wanted), "{sample:?}");
        }
        assert!(matches!(Ipv4Out { version_ihl: 0x44, ..sample(0) }.interpret(&[]), Decoded::Unreadable(_)));
    }

    #[test]
    fn the_destination_of_an_arriving_packet_is_the_local_end() {
        let sample = TcpIpv4In {
            net: 1,
            len: 40,
            headers: headers(98, 78),
            addresses: u64::from_ne_bytes(at(12)),
            ports: u32::from_ne_bytes(at(20)),
            tcp: u16::from_ne_bytes(at(32)),
            fragment: Some(0),
        };
        let packet = decoded(&sample);
        assert_eq!((packet.tuple.local.port, packet.tuple.remote.port), (80, 0xa80c));
        assert_eq!(packet.size, PacketSize { bytes: 60, headers: 60 });
        let wanted = UnreadablePacket {
            net: NetAddress::new(1),
            transport: Transport::Tcp,
            sock: None,
            ports: Some((80, 0xa80c)),
        };
        let with_options = TcpIpv4In { headers: headers(102, 78), ..sample };
        assert!(matches!(with_options.interpret(&[]), Decoded::Unreadable(Some(what)) if what == wanted));
    }

    #[test]
    fn a_mapped_address_is_ipv4() {
        let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets();
        let halves = [0, 8].map(|at| u64::from_ne_bytes(mapped[at..at + 8].try_into().unwrap()));
        let (source, _) = ipv6(halves, [0, 0], 0);
        assert_eq!(source.to_string(), "192.0.2.1:0");
    }

    #[test]
    fn the_ipv6_header_that_does_not_exist_yet_counts() {
        let sample = TcpIpv6Out {
            net: 1,
            sk: 2,
            len: 40,
            protocol: 6,
            source_high: 0,
            source_low: u64::from_ne_bytes(Ipv6Addr::LOCALHOST.octets()[8..].try_into().unwrap()),
            destination_high: 0,
            destination_low: 0,
            ports: 0,
            tcp: u16::from_ne_bytes([0xa0, 0x02]),
            segs_in: Some(0),
            segs_out: Some(1),
        };
        let packet = decoded(&sample);
        assert_eq!(packet.tuple.local.ip, Ipv6Addr::LOCALHOST);
        assert_eq!(packet.size, PacketSize { bytes: 80, headers: 80 });
    }
}
