//! Samples of packets at the hooks of control groups. `skb->data` points to the IP header, and `skb->sk` to the socket.

use socktrail_kprobes::{Word, sample};

use crate::model::event::{EventKind, PacketDirection, Tuple};
use crate::model::flow::Transport;
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::source::kprobes::packets::{
    Arrived, IPPROTO_TCP, IPV4_HEADER, IPV6_HEADER, Lengths, TransportHeader, ipv4, ipv6, packet, packet_event,
};
use crate::source::kprobes::{Decoded, Interpret};

sample! {
    /// A TCP segment leaves over IPv6.
    pub struct TcpIpv6Leaves {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))",
        /// The sender's `struct sock`.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// The size of the packet in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// Version and a part of the traffic class.
        pub version: u8 = "+0(+{sk_buff.data}({skb}))",
        /// 6.
        pub protocol: u8 = "+6(+{sk_buff.data}({skb}))",
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
        /// TCP's data offset and flags, in memory order.
        pub tcp: u16 = "+52(+{sk_buff.data}({skb}))",
        /// Segments received by the sender.
        pub segs_in: Option<u32> = "+{tcp_sock.segs_in}(+{sk_buff.sk}({skb}))",
        /// Segments sent by the sender, this packet's included.
        pub segs_out: Option<u32> = "+{tcp_sock.segs_out}(+{sk_buff.sk}({skb}))",
    }

    /// A packet arrives over IPv4, and has found its socket.
    pub struct Ipv4Arrives {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))",
        /// The receiver's `struct sock`: a connection, or the listener that a SYN has found.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// `len` and `data_len`: see [`Lengths`].
        pub lengths: u64 = "+{sk_buff.len}({skb})",
        /// The offsets of the headers.
        pub headers: u32 = "+{sk_buff.headers}({skb})",
        /// Version and header length.
        pub version: u8 = "+0(+{sk_buff.data}({skb}))",
        /// 6 or 17.
        pub protocol: u8 = "+9(+{sk_buff.data}({skb}))",
        /// Source and destination address, in memory order.
        pub addresses: u64 = "+12(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order, for a header without options.
        pub ports: u32 = "+20(+{sk_buff.data}({skb}))",
        /// TCP's data offset and flags, in memory order.
        pub tcp: u16 = "+32(+{sk_buff.data}({skb}))",
        /// The size of its largest fragment in bytes; 0 if it was not fragmented.
        pub fragment: Option<u16> = "+{inet_skb_parm.frag_max_size}({skb})",
    }

    /// The same over IPv6.
    pub struct Ipv6Arrives {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))",
        /// The receiver's `struct sock`: a connection, or the listener that a SYN has found.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// `len` and `data_len`: see [`Lengths`].
        pub lengths: u64 = "+{sk_buff.len}({skb})",
        /// The offsets of the headers.
        pub headers: u32 = "+{sk_buff.headers}({skb})",
        /// Version and a part of the traffic class.
        pub version: u8 = "+0(+{sk_buff.data}({skb}))",
        /// 6, 17, or an extension header.
        pub protocol: u8 = "+6(+{sk_buff.data}({skb}))",
        /// Source address, in memory order: its first 8 bytes.
        pub source_high: u64 = "+8(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub source_low: u64 = "+16(+{sk_buff.data}({skb}))",
        /// Destination address, in memory order: its first 8 bytes.
        pub destination_high: u64 = "+24(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub destination_low: u64 = "+32(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order, without extension headers.
        pub ports: u32 = "+40(+{sk_buff.data}({skb}))",
        /// TCP's data offset and flags, in memory order.
        pub tcp: u16 = "+52(+{sk_buff.data}({skb}))",
        /// The size of its largest fragment in bytes; 0 if it was not fragmented.
        pub fragment: Option<u16> = "+{inet6_skb_parm.frag_max_size}({skb})",
    }

    /// A SYN has found its listener over IPv4.
    pub struct Ipv4Request {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))",
        /// The listener's `struct sock`.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// Version and header length.
        pub version: u8 = "+0(+{sk_buff.data}({skb}))",
        /// 6.
        pub protocol: u8 = "+9(+{sk_buff.data}({skb}))",
        /// Source and destination address, in memory order.
        pub addresses: u64 = "+12(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order, for a header without options.
        pub ports: u32 = "+20(+{sk_buff.data}({skb}))",
        /// TCP's flags.
        pub flags: u8 = "+33(+{sk_buff.data}({skb}))",
    }

    /// The same over IPv6.
    pub struct Ipv6Request {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))",
        /// The listener's `struct sock`.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// Version and a part of the traffic class.
        pub version: u8 = "+0(+{sk_buff.data}({skb}))",
        /// 6.
        pub protocol: u8 = "+6(+{sk_buff.data}({skb}))",
        /// Source address, in memory order: its first 8 bytes.
        pub source_high: u64 = "+8(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub source_low: u64 = "+16(+{sk_buff.data}({skb}))",
        /// Destination address, in memory order: its first 8 bytes.
        pub destination_high: u64 = "+24(+{sk_buff.data}({skb}))",
        /// Its last 8 bytes.
        pub destination_low: u64 = "+32(+{sk_buff.data}({skb}))",
        /// Source and destination port, in memory order, without extension headers.
        pub ports: u32 = "+40(+{sk_buff.data}({skb}))",
        /// TCP's flags.
        pub flags: u8 = "+53(+{sk_buff.data}({skb}))",
    }
}

impl Interpret for TcpIpv6Leaves {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: NetAddress::new(self.net), local: source, remote: destination };
        let tcp = TransportHeader::tcp(self.tcp, self.segs_in.zip(self.segs_out));
        let sock = SockAddress::new(self.sk);
        packet_event(packet(PacketDirection::Outbound, Transport::Tcp, sock, tuple, self.len, IPV6_HEADER, tcp))
    }
}

/// An arriving packet. `tuple` is seen from this host.
fn arrived(
    (protocol, tcp): (u8, u16),
    sk: u64,
    tuple: Tuple,
    lengths: u64,
    (headers, ip_header): (u32, u16),
    fragment: Option<u16>,
) -> Decoded {
    let lengths = Lengths::of(lengths);
    let is_tcp = protocol == IPPROTO_TCP;
    // The state machine finds the connection of a TCP segment by its ends.
    let sock = SockAddress::new(sk).filter(|_| !is_tcp);
    let transport = if is_tcp { Transport::Tcp } else { Transport::Udp };
    let header = if is_tcp { TransportHeader::tcp(tcp, None) } else { TransportHeader::UDP };
    let len = lengths.len.saturating_sub(u32::from(ip_header));
    let data_len = if is_tcp { 0 } else { lengths.data_len };
    Arrived { transport, sock, tuple, len, headers, fragment: fragment.unwrap_or(0) }.event(ip_header, header, data_len)
}

impl Interpret for Ipv4Arrives {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let (source, destination) = ipv4(self.addresses, self.ports);
        let tuple = Tuple { net: NetAddress::new(self.net), local: destination, remote: source };
        arrived((self.protocol, self.tcp), self.sk, tuple, self.lengths, (self.headers, IPV4_HEADER), self.fragment)
    }
}

impl Interpret for Ipv6Arrives {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: NetAddress::new(self.net), local: destination, remote: source };
        arrived((self.protocol, self.tcp), self.sk, tuple, self.lengths, (self.headers, IPV6_HEADER), self.fragment)
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
