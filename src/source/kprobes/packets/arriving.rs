//! Samples of incoming packets, after reassembly of fragments.

use socktrail_kprobes::{Word, sample};

use super::{IPV4_HEADER, IPV6_HEADER, Lengths, TransportHeader, ipv4, ipv6, packet, packet_event};
use crate::model::event::{Packet, PacketDirection, Tuple, UnreadablePacket};
use crate::model::flow::Transport;
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::source::kprobes::{Decoded, Interpret};

sample! {
    /// `tcp_v4_rcv`: a TCP segment arrives over IPv4. `skb->data` points to its TCP header, after the IPv4 header.
    pub struct TcpIpv4In {
        /// `struct net`.
        pub net: Word = "+{net_device.nd_net}(+{sk_buff.dev}({skb}))",
        /// The size of TCP header and payload in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// The offsets of the headers, in memory order: see [`Headers`].
        pub headers: u32 = "+{sk_buff.headers}({skb})",
        /// Source and destination address, in memory order, for a header without options.
        pub addresses: u64 = "-8(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// TCP's data offset and flags, in memory order.
        pub tcp: u16 = "+12(+{sk_buff.data}({skb}))",
        /// The size of its largest fragment in bytes; 0 if it was not fragmented.
        pub fragment: Option<u16> = "+{inet_skb_parm.frag_max_size}({skb})",
    }

    /// `tcp_v6_rcv`: a TCP segment arrives over IPv6.
    pub struct TcpIpv6In {
        /// `struct net`.
        pub net: Word = "+{net_device.nd_net}(+{sk_buff.dev}({skb}))",
        /// The size of TCP header and payload in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// The offsets of the headers, in memory order: see [`Headers`].
        pub headers: u32 = "+{sk_buff.headers}({skb})",
        /// Source address, in memory order, for a header without extensions: its first 8 bytes.
        pub source_high: u64 = "-32(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub source_low: u64 = "-24(+{sk_buff.data}({skb}))",
        /// Destination address, in memory order: its first 8 bytes.
        pub destination_high: u64 = "-16(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub destination_low: u64 = "-8(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// TCP's data offset and flags, in memory order.
        pub tcp: u16 = "+12(+{sk_buff.data}({skb}))",
        /// The size of its largest fragment in bytes; 0 if it was not fragmented.
        pub fragment: Option<u16> = "+{inet6_skb_parm.frag_max_size}({skb})",
    }

    /// `udp_queue_rcv_one_skb`, `udp_queue_rcv_skb` before Linux 5.0: the socket of a datagram over IPv4 has been found. Merged
    /// datagrams were split again, unless the socket has `UDP_GRO`. `skb->data` points to the UDP header.
    pub struct UdpIpv4In {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}({sk})",
        /// The receiver's `struct sock`.
        pub sk: Word = "{sk}",
        /// `len` from the UDP header on, and `data_len`: see [`Lengths`].
        pub lengths: u64 = "+{sk_buff.len}({skb})",
        /// The offsets of the headers, in memory order: see [`Headers`].
        pub headers: u32 = "+{sk_buff.headers}({skb})",
        /// Source and destination address, in memory order, for a header without options.
        pub addresses: u64 = "-8(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// The size of its largest fragment in bytes; 0 if it was not fragmented.
        pub fragment: Option<u16> = "+{inet_skb_parm.frag_max_size}({skb})",
    }

    /// `udpv6_queue_rcv_one_skb`, `udpv6_queue_rcv_skb` before Linux 5.0: the socket of a datagram over IPv6 has been found.
    pub struct UdpIpv6In {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}({sk})",
        /// The receiver's `struct sock`.
        pub sk: Word = "{sk}",
        /// `len` from the UDP header on, and `data_len`: see [`Lengths`].
        pub lengths: u64 = "+{sk_buff.len}({skb})",
        /// The offsets of the headers, in memory order: see [`Headers`].
        pub headers: u32 = "+{sk_buff.headers}({skb})",
        /// Source address, in memory order, for a header without extensions: its first 8 bytes.
        pub source_high: u64 = "-32(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub source_low: u64 = "-24(+{sk_buff.data}({skb}))",
        /// Destination address, in memory order: its first 8 bytes.
        pub destination_high: u64 = "-16(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub destination_low: u64 = "-8(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// The size of its largest fragment in bytes; 0 if it was not fragmented.
        pub fragment: Option<u16> = "+{inet6_skb_parm.frag_max_size}({skb})",
    }
}

impl Interpret for TcpIpv4In {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let (source, destination) = ipv4(self.addresses, self.ports);
        let tuple = Tuple { net: NetAddress::new(self.net), local: destination, remote: source };
        let &Self { len, headers, .. } = self;
        let fragment = self.fragment.unwrap_or(0);
        Arrived { transport: Transport::Tcp, sock: None, tuple, len, headers, fragment }.event(
            IPV4_HEADER,
            TransportHeader::tcp(self.tcp, None),
            0,
        )
    }
}

impl Interpret for TcpIpv6In {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: NetAddress::new(self.net), local: destination, remote: source };
        let &Self { len, headers, .. } = self;
        let fragment = self.fragment.unwrap_or(0);
        Arrived { transport: Transport::Tcp, sock: None, tuple, len, headers, fragment }.event(
            IPV6_HEADER,
            TransportHeader::tcp(self.tcp, None),
            0,
        )
    }
}

impl Interpret for UdpIpv4In {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let (source, destination) = ipv4(self.addresses, self.ports);
        let tuple = Tuple { net: NetAddress::new(self.net), local: destination, remote: source };
        let (sock, headers) = (SockAddress::new(self.sk), self.headers);
        let fragment = self.fragment.unwrap_or(0);
        let lengths = Lengths::of(self.lengths);
        Arrived { transport: Transport::Udp, sock, tuple, len: lengths.len, headers, fragment }.event(
            IPV4_HEADER,
            TransportHeader::UDP,
            lengths.data_len,
        )
    }
}

impl Interpret for UdpIpv6In {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: NetAddress::new(self.net), local: destination, remote: source };
        let (sock, headers) = (SockAddress::new(self.sk), self.headers);
        let fragment = self.fragment.unwrap_or(0);
        let lengths = Lengths::of(self.lengths);
        Arrived { transport: Transport::Udp, sock, tuple, len: lengths.len, headers, fragment }.event(
            IPV6_HEADER,
            TransportHeader::UDP,
            lengths.data_len,
        )
    }
}

/// `sk_buff.transport_header` and `sk_buff.network_header`, two adjacent numbers of 2 bytes: the offsets of these
/// headers from `sk_buff.head`. One read of both costs half of two reads.
pub(in crate::source) struct Headers {
    transport: u16,
    network: u16,
}

impl Headers {
    /// In memory order.
    pub fn of(memory: u32) -> Self {
        let [a, b, c, d] = memory.to_ne_bytes();
        Self { transport: u16::from_ne_bytes([a, b]), network: u16::from_ne_bytes([c, d]) }
    }

    /// The length of the IP header in bytes.
    pub fn ip(&self) -> u16 {
        self.transport.wrapping_sub(self.network)
    }
}

/// An incoming packet. The IP header is in the buffer, before `data`.
pub(super) struct Arrived {
    pub transport: Transport,
    pub sock: Option<SockAddress>,
    pub tuple: Tuple,
    /// The size from the transport header on, in bytes.
    pub len: u32,
    /// The offsets of the headers: see [`Headers`].
    pub headers: u32,
    pub fragment: u16,
}

impl Arrived {
    /// `plain` is the length in bytes of an IP header without options or extensions.
    pub fn event(self, plain: u16, transport_header: TransportHeader, data_len: u32) -> Decoded {
        let Self { transport, sock, tuple, len, headers, fragment } = self;
        if Headers::of(headers).ip() != plain {
            // With options or extensions, the addresses were read from the wrong place.
            let ports = Some((tuple.local.port, tuple.remote.port));
            return Decoded::Unreadable(Some(UnreadablePacket { net: tuple.net, transport, sock, ports }));
        }
        let bytes = len.saturating_add(u32::from(plain));
        packet_event(Packet {
            data_len,
            fragment,
            ..packet(PacketDirection::Inbound, transport, sock, tuple, bytes, plain, transport_header)
        })
    }
}
