//! Samples of outgoing packets, before segmentation and fragmentation.

use socktrail_kprobes::{Word, sample};

use super::{IPPROTO_TCP, IPPROTO_UDP, IPV6_HEADER, Lengths, TransportHeader, ipv4, ipv6, packet, packet_event};
use crate::model::event::{Packet, PacketDirection, Tuple, UnreadablePacket};
use crate::model::flow::Transport;
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::source::kprobes::{Decoded, Interpret};

/// The template of a network namespace that is an argument of the function.
const NET: &str = "{net}";

/// The network namespace from the value that a template has read. `None` if the template reads it from a socket, and the packet has
/// no socket: then the value is that of an earlier sample.
fn namespace(template: &str, net: u64, sk: u64) -> Option<NetAddress> {
    NetAddress::new(net).filter(|_| template == NET || sk != 0)
}

/// Samples of outgoing IPv4 packets. They differ in where they find the network namespace and the sender.
macro_rules! ipv4_out {
    ($( $(#[$meta:meta])* pub struct $name:ident of $net:expr, $sk:literal; )*) => {
        sample! {$(
            $(#[$meta])*
            pub struct $name {
                /// `struct net`.
                pub net: Word = $net,
                /// The sender's `struct sock`.
                pub sk: Word = $sk,
                /// `len` and `data_len`, which are adjacent: see [`Lengths`].
                pub lengths: u64 = "+{sk_buff.len}({skb})",
                /// Version and header length.
                pub version_ihl: u8 = "+0(+{sk_buff.data}({skb}))",
                /// 6 or 17.
                pub protocol: u8 = "+9(+{sk_buff.data}({skb}))",
                /// Source and destination address, in memory order.
                pub addresses: u64 = "+12(+{sk_buff.data}({skb}))",
                /// The 8 bytes after the addresses, in memory order: options, if any, then ports.
                pub behind: u64 = "+20(+{sk_buff.data}({skb}))",
                /// The 8 bytes after `behind`. Without options, they contain TCP's data offset and flags.
                pub further_behind: u64 = "+28(+{sk_buff.data}({skb}))",
                /// Segments received by the sender.
                pub segs_in: Option<u32> = concat!("+{tcp_sock.segs_in}(", $sk, ")"),
                /// Segments sent by the sender, this packet's included.
                pub segs_out: Option<u32> = concat!("+{tcp_sock.segs_out}(", $sk, ")"),
            }
        )*}

        $(impl Interpret for $name {
            fn interpret(&self, _: &[u8]) -> Decoded {
                let Self { sk, version_ihl, protocol, addresses, behind, further_behind, .. } = *self;
                let (net, sock) = (namespace($net, self.net, sk), SockAddress::new(sk));
                let (lengths, memory) = (Lengths::of(self.lengths), [behind, further_behind]);
                let segments = self.segs_in.zip(self.segs_out);
                Ipv4Header { net, sock, lengths, version_ihl, protocol, addresses, memory, segments }.event()
            }
        })*
    };
}

ipv4_out! {
    /// `__ip_local_out`: an IPv4 packet is sent. `skb->data` points to its IP header (RFC 791).
    pub struct Ipv4Out of NET, "{sk}";
    /// `__ip_local_out_sk`: the same in Linux 4.1 to 4.3, where the namespace is not an argument.
    pub struct Ipv4OutWithoutNet of "+{sock_common.skc_net}({sk})", "{sk}";
    /// `__ip_local_out`: the same before Linux 4.1, where the packet is the only argument.
    pub struct Ipv4OutWithoutSk of "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))", "+{sk_buff.sk}({skb})";
}

/// Samples of outgoing datagrams over IPv6.
macro_rules! udp_ipv6_out {
    ($( $(#[$meta:meta])* pub struct $name:ident of $net:expr, $sk:literal; )*) => {
        sample! {$(
            $(#[$meta])*
            pub struct $name {
                /// `struct net`.
                pub net: Word = $net,
                /// The sender's `struct sock`.
                pub sk: Word = $sk,
                /// `len` and `data_len`, which are adjacent: see [`Lengths`].
                pub lengths: u64 = "+{sk_buff.len}({skb})",
                /// The next header: 17, or an extension header.
                pub next_header: u8 = "+6(+{sk_buff.data}({skb}))",
                /// Source address, in memory order: its first 8 bytes.
                pub source_high: u64 = "+8(+{sk_buff.data}({skb}))",
                /// Its last 8 bytes.
                pub source_low: u64 = "+16(+{sk_buff.data}({skb}))",
                /// Destination address, in memory order: its first 8 bytes.
                pub destination_high: u64 = "+24(+{sk_buff.data}({skb}))",
                /// Its last 8 bytes.
                pub destination_low: u64 = "+32(+{sk_buff.data}({skb}))",
                /// Source and destination port, in memory order.
                pub ports: u32 = "+40(+{sk_buff.data}({skb}))",
            }
        )*}

        $(impl Interpret for $name {
            fn interpret(&self, _: &[u8]) -> Decoded {
                let Self { sk, next_header, source_high, source_low, .. } = *self;
                let net = namespace($net, self.net, sk);
                let destination = [self.destination_high, self.destination_low];
                let (source, destination) = ipv6([source_high, source_low], destination, self.ports);
                let tuple = Tuple { net, local: source, remote: destination };
                datagram_out(next_header, SockAddress::new(sk), tuple, &Lengths::of(self.lengths))
            }
        })*
    };
}

udp_ipv6_out! {
    /// `__ip6_local_out`: a datagram is sent over IPv6. `skb->data` points to its IPv6 header (RFC 8200).
    pub struct UdpIpv6Out of NET, "{sk}";
    /// `__ip6_local_out_sk`: the same in Linux 4.1 to 4.3, where the namespace is not an argument.
    pub struct UdpIpv6OutWithoutNet of "+{sock_common.skc_net}({sk})", "{sk}";
    /// `ip6_local_out`, `__ip6_local_out`: the same before Linux 4.4, where the packet is the only argument.
    pub struct UdpIpv6OutWithoutSk of "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))", "+{sk_buff.sk}({skb})";
}

sample! {
    /// `ip6_xmit`: a TCP segment is sent over IPv6. `skb->data` points to its TCP header; the IPv6 header does not exist yet.
    pub struct TcpIpv6Out {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}({sk})",
        /// The sender's `struct sock`.
        pub sk: Word = "{sk}",
        /// The size of TCP header and payload in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// 6.
        pub protocol: u8 = "+{flowi6.flowi6_proto}({fl6})",
        /// Source address, in memory order: its first 8 bytes.
        pub source_high: u64 = "+{flowi6.saddr}({fl6})",
        /// Its last 8 bytes.
        pub source_low: u64 = "+{flowi6.saddr+8}({fl6})",
        /// Destination address, in memory order: its first 8 bytes.
        pub destination_high: u64 = "+{flowi6.daddr}({fl6})",
        /// Its last 8 bytes.
        pub destination_low: u64 = "+{flowi6.daddr+8}({fl6})",
        /// Source and destination port, in memory order.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// TCP's data offset and flags, in memory order.
        pub tcp: u16 = "+12(+{sk_buff.data}({skb}))",
        /// Segments received by the sender.
        pub segs_in: Option<u32> = "+{tcp_sock.segs_in}({sk})",
        /// Segments sent by the sender, this packet's included.
        pub segs_out: Option<u32> = "+{tcp_sock.segs_out}({sk})",
    }
}

/// The fetched values of an outgoing IPv4 packet: see [`Ipv4Out`].
struct Ipv4Header {
    net: Option<NetAddress>,
    sock: Option<SockAddress>,
    lengths: Lengths,
    version_ihl: u8,
    protocol: u8,
    addresses: u64,
    /// The bytes after the addresses.
    memory: [u64; 2],
    /// Segments received and sent.
    segments: Option<(u32, u32)>,
}

impl Ipv4Header {
    fn event(&self) -> Decoded {
        let transport = if self.protocol == IPPROTO_TCP { Transport::Tcp } else { Transport::Udp };
        let header = u16::from(self.version_ihl & 0x0f) * 4;
        let Some(ports) = self.transport_bytes(header, 0) else {
            return self.unreadable(transport, None);
        };
        let (source, destination) = ipv4(self.addresses, u32::from_ne_bytes(ports));
        let tuple = Tuple { net: self.net, local: source, remote: destination };
        let transport_header = match (transport, self.transport_bytes(header, 12)) {
            (Transport::Udp, _) => TransportHeader::UDP,
            (Transport::Tcp, Some(tcp)) => TransportHeader::tcp(u16::from_ne_bytes(tcp), self.segments),
            (Transport::Tcp, None) => return self.unreadable(transport, Some((source.port, destination.port))),
        };
        let packet =
            packet(PacketDirection::Outbound, transport, self.sock, tuple, self.lengths.len, header, transport_header);
        packet_event(Packet { data_len: self.lengths.data_len, ..packet })
    }

    /// `N` bytes at offset `at` of the transport header, if they were fetched. `header` is the length of the IP header in bytes.
    fn transport_bytes<const N: usize>(&self, header: u16, at: usize) -> Option<[u8; N]> {
        let [first, second] = self.memory.map(u64::to_ne_bytes);
        let mut fetched = [0; 16];
        fetched[..8].copy_from_slice(&first);
        fetched[8..].copy_from_slice(&second);
        let start = usize::from(header).checked_sub(20)?;
        fetched.get(start + at..)?.first_chunk().copied()
    }

    fn unreadable(&self, transport: Transport, ports: Option<(u16, u16)>) -> Decoded {
        Decoded::Unreadable(Some(UnreadablePacket { net: self.net, transport, sock: self.sock, ports }))
    }
}

/// An outgoing datagram over IPv6, or a packet with an extension header.
fn datagram_out(next_header: u8, sock: Option<SockAddress>, tuple: Tuple, lengths: &Lengths) -> Decoded {
    if next_header != IPPROTO_UDP {
        // After an extension header, there is most likely a datagram: TCP packets are not sampled here.
        return Decoded::Unreadable(Some(UnreadablePacket {
            net: tuple.net,
            transport: Transport::Udp,
            sock,
            ports: None,
        }));
    }
    let packet =
        packet(PacketDirection::Outbound, Transport::Udp, sock, tuple, lengths.len, IPV6_HEADER, TransportHeader::UDP);
    packet_event(Packet { data_len: lengths.data_len, ..packet })
}

impl Interpret for TcpIpv6Out {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: NetAddress::new(self.net), local: source, remote: destination };
        let tcp = TransportHeader::tcp(self.tcp, self.segs_in.zip(self.segs_out));
        let len = self.len.saturating_add(u32::from(IPV6_HEADER));
        packet_event(packet(
            PacketDirection::Outbound,
            Transport::Tcp,
            SockAddress::new(self.sk),
            tuple,
            len,
            IPV6_HEADER,
            tcp,
        ))
    }
}
