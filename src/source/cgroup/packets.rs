//! Samples of packets at the hooks of control groups. `skb->data` points to the IP header, and `skb->sk` to the socket.

use socktrail_kprobes::{Word, sample};

use crate::model::event::{EventKind, Packet, PacketDirection, PacketSize, Tuple};
use crate::model::flow::{Endpoint, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::source::kprobes::packets::{Headers, IPPROTO_TCP, IPPROTO_UDP, TransportHeader, ipv4, ipv6, packet_event};
use crate::source::kprobes::sockets::ipv4_address;
use crate::source::kprobes::{Decoded, Interpret, ipv6_address};

/// The header of an IPv4 packet without options, in bytes.
const IPV4_HEADER: u32 = 20;
/// The headers of an IPv6 fragment, in bytes.
const IPV6_FRAGMENT_HEADERS: u32 = 40 + 8;

/// The largest IPv6 packet without a jumbo payload option: its header, and the largest payload length.
pub(in crate::source) const MOST_IPV6: u32 = 40 + 0xffff;
/// The next header of an IPv6 packet with hop-by-hop options.
pub(in crate::source) const HOP_BY_HOP: u8 = 0;
/// The size of a hop-by-hop header with a jumbo payload option (RFC 2675). Before Linux 7.0, packets of more than [`MOST_IPV6`]
/// bytes have it while they wait to be segmented (BIG TCP). It is not on the wire.
pub(in crate::source) const JUMBO_HEADER: u32 = 8;

/// The port of ESP in UDP (RFC 3948).
const PORT_OF_ESP: u16 = 4500;

/// What is common to the samples of packets over both versions of IP.
struct Seen {
    direction: PacketDirection,
    net: u64,
    sk: u64,
    /// Source and destination in the headers.
    ends: (Endpoint, Endpoint),
    /// Of an outgoing packet: those that the socket knows. A port of 0 is none.
    own: Option<(Endpoint, Endpoint)>,
    len: u32,
    headers: u32,
    /// That of the socket.
    protocol: u16,
    next_header: u8,
    tcp: u16,
    gso_segs: u32,
    gso_size: u32,
    /// The size of its largest fragment in bytes, or 0.
    fragment: u16,
}

impl Seen {
    fn event(self) -> Decoded {
        let transports = [IPPROTO_TCP, IPPROTO_UDP];
        let has_own_header = !transports.contains(&self.next_header) || u16::from(self.next_header) == self.protocol;
        if !has_own_header || !transports.map(u16::from).contains(&self.protocol) {
            // The ESP packets of a TCP socket may travel in UDP (RFC 3948).
            return Decoded::Nothing;
        }
        let Some((source, destination)) = self.ends_of_socket() else { return Decoded::Nothing };
        let direction = self.direction;
        let (local, remote) = match direction {
            PacketDirection::Outbound => (source, destination),
            PacketDirection::Inbound => (destination, source),
        };
        let tuple = Tuple { net: NetAddress::new(self.net), local, remote };
        let is_tcp = self.protocol == u16::from(IPPROTO_TCP);
        let header = if is_tcp { TransportHeader::tcp(self.tcp, None) } else { TransportHeader::UDP };
        let transport = if is_tcp { Transport::Tcp } else { Transport::Udp };
        // The socket of an arriving segment may be the listener. The state machine finds the connection by its ends.
        let sock = SockAddress::new(self.sk).filter(|_| !(is_tcp && direction == PacketDirection::Inbound));
        let is_jumbo = self.ends.0.ip.is_ipv6() && self.next_header == HOP_BY_HOP && self.len > MOST_IPV6;
        let jumbo = if is_jumbo { JUMBO_HEADER } else { 0 };
        let headers = Headers::of(self.headers).ip().saturating_add(header.len());
        let size = PacketSize { bytes: self.len - jumbo, headers: headers.saturating_sub(jumbo as u16) };
        packet_event(Packet {
            tcp_flags: header.flags(),
            gso_segs: u16::try_from(segments(self.gso_segs, self.gso_size, size)).unwrap_or(u16::MAX),
            fragment: self.fragment,
            ..Packet::new(direction, transport, sock, tuple, size)
        })
    }

    /// The ends of the conversation. A rule may have translated those in the headers (NAT), but a TCP socket knows its own,
    /// once it is connected, and each socket knows its port. `None` for a packet that belongs to no conversation of the socket.
    fn ends_of_socket(&self) -> Option<(Endpoint, Endpoint)> {
        let (source, destination) = self.ends;
        let Some((own_source, own_destination)) = self.own else { return Some(self.ends) };
        let is_tcp = self.protocol == u16::from(IPPROTO_TCP);
        if is_tcp && own_destination.port != 0 {
            return Some((own_source, own_destination));
        }
        if source.port == own_source.port || own_source.port == 0 {
            return Some(self.ends);
        }
        // A listener's SYN-ACK to a connection that a rule has redirected: the address that the client asked for does not show
        // which one was meant. ESP in UDP is not the socket's own packet.
        if is_tcp || source.port == PORT_OF_ESP {
            return None;
        }
        Some((Endpoint::new(source.ip, own_source.port), destination))
    }
}

/// How many packets on the wire a packet of this size stands for; 0 or 1 for an ordinary one. A packet from a virtual device
/// (virtio) has only `gso_size`.
fn segments(gso_segs: u32, gso_size: u32, size: PacketSize) -> u32 {
    let payload = size.bytes.saturating_sub(size.headers.into());
    if gso_segs == 0 && gso_size != 0 { payload.div_ceil(gso_size) } else { gso_segs }
}

/// The size of the largest fragment of an outgoing packet, in bytes, at a device with this MTU; 0 if it is not fragmented. A packet
/// of several segments is not: each segment is a packet.
fn largest_fragment(len: u32, mtu: Option<u32>, gso_size: u32, headers: u32) -> u16 {
    match mtu {
        // The payload of a fragment is a multiple of 8 bytes (RFC 791, RFC 8200).
        Some(mtu) if len > mtu && mtu > headers && gso_size == 0 => {
            u16::try_from(((mtu - headers) & !7) + headers).unwrap_or(0)
        }
        _ => 0,
    }
}

/// The ends in the headers of an IPv6 packet.
macro_rules! ends_of_ipv6 {
    ($sample:ident) => {
        ipv6(
            [$sample.source_high, $sample.source_low],
            [$sample.destination_high, $sample.destination_low],
            $sample.ports,
        )
    };
}

/// A sample of packets in one direction: with the fields of their addresses, and further ones. `ends` reads source and
/// destination from it, `own` those that the socket knows, `fragment` the size of the largest fragment.
macro_rules! packets {
    ($(#[$meta:meta])* pub struct $name:ident of $direction:ident { $($addresses:tt)* } { $($more:tt)* }
     ends $ends:expr, own $own:expr, fragment $fragment:expr) => {
        sample! {
            $(#[$meta])*
            pub struct $name {
                /// `struct net`.
                pub net: Word = "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))",
                /// The `struct sock`.
                pub sk: Word = "+{sk_buff.sk}({skb})",
                /// Its size in bytes, with all headers.
                pub len: u32 = "+{sk_buff.len}({skb})",
                /// The offsets of the headers.
                pub headers: u32 = "+{sk_buff.headers}({skb})",
                /// The first byte of the IP header: the version, and what follows it.
                pub version: u8 = "+0(+{sk_buff.data}({skb}))",
                /// The socket's protocol: 6 or 17.
                pub protocol: u16 = "+{sock.sk_protocol}(+{sk_buff.sk}({skb}))",
                $($addresses)*
                /// Source and destination port, in memory order.
                pub ports: u32 = "+0($transport)",
                /// TCP's data offset and flags, in memory order.
                pub tcp: u16 = "+12($transport)",
                /// How many packets on the wire it stands for, or 0.
                pub gso_segs: u32 = "$gso_segs",
                /// The payload of each of them in bytes, or 0.
                pub gso_size: u32 = "$gso_size",
                $($more)*
            }
        }

        impl Interpret for $name {
            fn interpret(&self, _: &[u8]) -> Decoded {
                let Self { net, sk, len, headers, protocol, next_header, tcp, gso_segs, gso_size, .. } = *self;
                let ends: fn(&Self) -> (Endpoint, Endpoint) = $ends;
                let own: fn(&Self) -> Option<(Endpoint, Endpoint)> = $own;
                let fragment: fn(&Self) -> u16 = $fragment;
                let (direction, ends, own) = (PacketDirection::$direction, ends(self), own(self));
                let fragment = fragment(self);
                Seen { direction, net, sk, ends, own, len, headers, protocol, next_header, tcp, gso_segs, gso_size, fragment }
                    .event()
            }
        }
    };
}

/// The same over IPv4.
macro_rules! ipv4_packets {
    ($(#[$meta:meta])* pub struct $name:ident of $direction:ident { $($more:tt)* }
     own $own:expr, fragment $fragment:expr) => {
        packets! {
            $(#[$meta])*
            pub struct $name of $direction {
                /// The protocol in the IP header.
                pub next_header: u8 = "+9(+{sk_buff.data}({skb}))",
                /// Source and destination address, in memory order.
                pub addresses: u64 = "+12(+{sk_buff.data}({skb}))",
            } {
                $($more)*
            }
            ends |sample| ipv4(sample.addresses, sample.ports), own $own, fragment $fragment
        }
    };
}

/// The same over IPv6.
macro_rules! ipv6_packets {
    ($(#[$meta:meta])* pub struct $name:ident of $direction:ident { $($more:tt)* }
     own $own:expr, fragment $fragment:expr) => {
        packets! {
            $(#[$meta])*
            pub struct $name of $direction {
                /// What follows the IPv6 header.
                pub next_header: u8 = "+6(+{sk_buff.data}({skb}))",
                /// Source address, in memory order: its first 8 bytes.
                pub source_high: u64 = "+8(+{sk_buff.data}({skb}))",
                /// Its last 8 bytes.
                pub source_low: u64 = "+16(+{sk_buff.data}({skb}))",
                /// Destination address, in memory order: its first 8 bytes.
                pub destination_high: u64 = "+24(+{sk_buff.data}({skb}))",
                /// Its last 8 bytes.
                pub destination_low: u64 = "+32(+{sk_buff.data}({skb}))",
            } {
                $($more)*
            }
            ends |sample| ends_of_ipv6!(sample), own $own, fragment $fragment
        }
    };
}

ipv4_packets! {
    /// A packet leaves over IPv4, before it is fragmented.
    pub struct Ipv4Leaves of Outbound {
        /// The device's MTU in bytes.
        pub mtu: Option<u32> = "+{net_device.mtu}(+{sk_buff.dev}({skb}))",
        /// The socket's local address, in memory order.
        pub own_address: u32 = "+{sock_common.skc_rcv_saddr}(+{sk_buff.sk}({skb}))",
        /// Its remote address, in memory order.
        pub own_remote: u32 = "+{sock_common.skc_daddr}(+{sk_buff.sk}({skb}))",
        /// Its local port, in memory order.
        pub own_port: u16 = "+{inet_sock.inet_sport}(+{sk_buff.sk}({skb}))",
        /// Its remote port, in memory order.
        pub own_remote_port: u16 = "+{sock_common.skc_dport}(+{sk_buff.sk}({skb}))",
    }
    own |sample| {
        let own = (
            Endpoint::new(ipv4_address(sample.own_address), u16::from_be(sample.own_port)),
            Endpoint::new(ipv4_address(sample.own_remote), u16::from_be(sample.own_remote_port)),
        );
        Some(own)
    },
    fragment |sample| largest_fragment(sample.len, sample.mtu, sample.gso_size, IPV4_HEADER)
}

ipv4_packets! {
    /// A packet arrives over IPv4, and has found its socket: a connection, or a listener until the handshake has ended.
    pub struct Ipv4Arrives of Inbound {
        /// The size of its largest fragment in bytes; 0 if it was not fragmented.
        pub fragment: Option<u16> = "+{inet_skb_parm.frag_max_size}({skb})",
    }
    own |_| None,
    fragment |sample| sample.fragment.unwrap_or(0)
}

ipv6_packets! {
    /// A packet leaves over IPv6, before it is fragmented.
    pub struct Ipv6Leaves of Outbound {
        /// The device's MTU in bytes.
        pub mtu: Option<u32> = "+{net_device.mtu}(+{sk_buff.dev}({skb}))",
        /// The socket's local address, in memory order: its first 8 bytes.
        pub own_address_high: u64 = "+{sock_common.skc_v6_rcv_saddr}(+{sk_buff.sk}({skb}))",
        /// Its last 8 bytes.
        pub own_address_low: u64 = "+{sock_common.skc_v6_rcv_saddr+8}(+{sk_buff.sk}({skb}))",
        /// The socket's remote address, in memory order: its first 8 bytes.
        pub own_remote_high: u64 = "+{sock_common.skc_v6_daddr}(+{sk_buff.sk}({skb}))",
        /// Its last 8 bytes.
        pub own_remote_low: u64 = "+{sock_common.skc_v6_daddr+8}(+{sk_buff.sk}({skb}))",
        /// Its local port, in memory order.
        pub own_port: u16 = "+{inet_sock.inet_sport}(+{sk_buff.sk}({skb}))",
        /// Its remote port, in memory order.
        pub own_remote_port: u16 = "+{sock_common.skc_dport}(+{sk_buff.sk}({skb}))",
    }
    own |sample| {
        let address = ipv6_address([sample.own_address_high, sample.own_address_low]);
        let remote = ipv6_address([sample.own_remote_high, sample.own_remote_low]);
        let own = (
            Endpoint::new(address, u16::from_be(sample.own_port)),
            Endpoint::new(remote, u16::from_be(sample.own_remote_port)),
        );
        Some(own)
    },
    fragment |sample| largest_fragment(sample.len, sample.mtu, sample.gso_size, IPV6_FRAGMENT_HEADERS)
}

ipv6_packets! {
    /// A packet arrives over IPv6, and has found its socket: a connection, or a listener until the handshake has ended.
    pub struct Ipv6Arrives of Inbound {
        /// The size of its largest fragment in bytes; 0 if it was not fragmented.
        pub fragment: Option<u16> = "+{inet6_skb_parm.frag_max_size}({skb})",
    }
    own |_| None,
    fragment |sample| sample.fragment.unwrap_or(0)
}

sample! {
    /// A SYN has found its listener over IPv4.
    pub struct Ipv4Request {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))",
        /// The listener's `struct sock`.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// Version and header length.
        pub version: u8 = "+0(+{sk_buff.data}({skb}))",
        /// The socket's protocol: 6.
        pub protocol: u16 = "+{sock.sk_protocol}(+{sk_buff.sk}({skb}))",
        /// Source and destination address, in memory order.
        pub addresses: u64 = "+12(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order.
        pub ports: u32 = "+0($transport)",
        /// TCP's flags.
        pub flags: u8 = "+13($transport)",
    }

    /// The same over IPv6.
    pub struct Ipv6Request {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))",
        /// The listener's `struct sock`.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// Version and a part of the traffic class.
        pub version: u8 = "+0(+{sk_buff.data}({skb}))",
        /// The socket's protocol: 6.
        pub protocol: u16 = "+{sock.sk_protocol}(+{sk_buff.sk}({skb}))",
        /// Source address, in memory order: its first 8 bytes.
        pub source_high: u64 = "+8(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub source_low: u64 = "+16(+{sk_buff.data}({skb}))",
        /// Destination address, in memory order: its first 8 bytes.
        pub destination_high: u64 = "+24(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub destination_low: u64 = "+32(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order.
        pub ports: u32 = "+0($transport)",
        /// TCP's flags.
        pub flags: u8 = "+13($transport)",
    }
}

impl Interpret for Ipv4Request {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let (source, destination) = ipv4(self.addresses, self.ports);
        let tuple = Tuple { net: NetAddress::new(self.net), local: destination, remote: source };
        Decoded::of_sock(self.sk, |listener| EventKind::ConnectionRequested { listener, tuple })
    }
}

impl Interpret for Ipv6Request {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: NetAddress::new(self.net), local: destination, remote: source };
        Decoded::of_sock(self.sk, |listener| EventKind::ConnectionRequested { listener, tuple })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_packet_larger_than_the_mtu_is_fragmented() {
        for (len, mtu, gso_size, expected) in [
            (1500, Some(1500), 0, 0),
            (1501, Some(1500), 0, 1500),
            // 1471 bytes of payload are not a multiple of 8.
            (3000, Some(1491), 0, 1484),
            (3000, Some(1500), 1448, 0),
            (3000, None, 0, 0),
            (3000, Some(10), 0, 0),
        ] {
            assert_eq!(largest_fragment(len, mtu, gso_size, IPV4_HEADER), expected, "{len} {mtu:?}");
        }
        assert_eq!(largest_fragment(3000, Some(1500), 0, IPV6_FRAGMENT_HEADERS), 1496);
    }

    #[test]
    fn headers_segments_and_own_ends_of_a_packet() {
        let mut sample = Ipv4Leaves {
            net: 0xffff_0000_0000_1000,
            sk: 0xffff_0000_0000_2000,
            len: 4000,
            // The transport header is 24 bytes behind the network header: an IP option.
            headers: u32::from_le_bytes([124, 0, 100, 0]),
            version: 0x46,
            protocol: 6,
            next_header: 6,
            addresses: u64::from_ne_bytes([10, 0, 0, 1, 10, 0, 0, 2]),
            ports: u32::from_ne_bytes([0x12, 0x34, 0, 80]),
            tcp: u16::from_ne_bytes([0x80, 0x18]),
            gso_segs: 3,
            gso_size: 1400,
            mtu: Some(1500),
            own_address: u32::from_ne_bytes([10, 0, 0, 1]),
            own_remote: u32::from_ne_bytes([10, 0, 0, 9]),
            own_port: 0x1234_u16.to_be(),
            own_remote_port: 0,
        };
        let Decoded::Event(EventKind::Packet(packet)) = sample.interpret(&[]) else { panic!("no packet") };
        assert_eq!(packet.size, PacketSize { bytes: 4000, headers: 24 + 32 });
        assert_eq!((packet.gso_segs, packet.fragment, packet.tcp_flags), (3, 0, 0x18));
        assert_eq!((packet.tuple.local.port, packet.tuple.remote.port), (0x1234, 80));
        assert_eq!(packet.sock, SockAddress::new(sample.sk));
        // 3944 bytes of payload, 1400 in each segment; a virtual device does not say how many there are.
        sample.gso_segs = 0;
        let Decoded::Event(EventKind::Packet(packet)) = sample.interpret(&[]) else { panic!("no packet") };
        assert_eq!(packet.gso_segs, 3);
        // A rule has translated the destination, but the connection's own is known.
        sample.own_remote_port = 8080_u16.to_be();
        let Decoded::Event(EventKind::Packet(packet)) = sample.interpret(&[]) else { panic!("no packet") };
        assert_eq!(packet.tuple.remote, Endpoint::new(Ipv4Addr::new(10, 0, 0, 9), 8080));
        assert_eq!(packet.tuple.local, Endpoint::new(Ipv4Addr::new(10, 0, 0, 1), 0x1234));
        // A SYN-ACK of the listener of port 4660, to which a rule has redirected a connection to port 80.
        (sample.own_remote_port, sample.ports) = (0, u32::from_ne_bytes([0, 80, 0x90, 0]));
        assert!(matches!(sample.interpret(&[]), Decoded::Nothing));
        sample.protocol = 17;
        assert!(matches!(sample.interpret(&[]), Decoded::Nothing), "the headers say TCP");
        sample.next_header = 17;
        let Decoded::Event(EventKind::Packet(packet)) = sample.interpret(&[]) else { panic!("no packet") };
        let ends = |local, remote| {
            [(1, local), (2, remote)].map(|(host, port)| Endpoint::new(Ipv4Addr::new(10, 0, 0, host), port))
        };
        assert_eq!([packet.tuple.local, packet.tuple.remote], ends(0x1234, 0x9000), "a rule has translated the port");
        sample.ports = u32::from_ne_bytes([0x11, 0x94, 0x11, 0x94]);
        assert!(matches!(sample.interpret(&[]), Decoded::Nothing), "ESP in UDP");
    }
}
