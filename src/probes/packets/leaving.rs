//! Packets that leave, before they are cut into segments or fragments.

use socktrail_kprobes::{Word, sample};

use super::{IPPROTO_TCP, IPPROTO_UDP, IPV6_HEADER, Lengths, Tcp, ipv4, ipv6, of_socket, packet, seen};
use crate::event::{Packet, Transport, Tuple, Unreadable, Way};
use crate::probes::{Decoded, IntoEvent};

/// The template of a namespace that is an argument of the function.
const NET: &str = "{net}";

/// The namespace that a template reads; 0 where it is that of a socket and there is none.
fn namespace(template: &str, net: u64, sk: u64) -> u64 {
    if template == NET { net } else { of_socket(sk, net).unwrap_or(0) }
}

/// Samples of IPv4 packets that leave, which differ by where namespace and sender are found. The first of them knows what
/// to make of it.
macro_rules! ipv4_out {
    ($( $(#[$meta:meta])* pub struct $name:ident of $net:expr, $sk:literal; )*) => {
        sample! {$(
            $(#[$meta])*
            pub struct $name {
                /// `struct net`.
                pub net: Word = $net,
                /// The sender's `struct sock`.
                pub sk: Word = $sk,
                /// The whole packet, in bytes, and what of it does not lie in one piece with its headers, which
                /// `sk_buff` keeps next to each other: see [`Lengths`].
                pub lengths: u64 = "+{sk_buff.len}({skb})",
                /// Version and header length.
                pub version_ihl: u8 = "+0(+{sk_buff.data}({skb}))",
                /// 6 or 17.
                pub protocol: u8 = "+9(+{sk_buff.data}({skb}))",
                /// Source and destination address, as they lie in memory.
                pub addresses: u64 = "+12(+{sk_buff.data}({skb}))",
                /// What follows the addresses, as it lies in memory: options, if any, then ports.
                pub behind: u64 = "+20(+{sk_buff.data}({skb}))",
                /// What follows that. Without options, TCP's data offset and flags are in it.
                pub further_behind: u64 = "+28(+{sk_buff.data}({skb}))",
                /// Segments received by the sender.
                pub segs_in: Option<u32> = concat!("+{tcp_sock.segs_in}(", $sk, ")"),
                /// Segments sent by the sender, this packet's included.
                pub segs_out: Option<u32> = concat!("+{tcp_sock.segs_out}(", $sk, ")"),
            }
        )*}

        $(impl IntoEvent for $name {
            fn event(&self, _: &[u8]) -> Decoded {
                let Self { sk, version_ihl, protocol, addresses, behind, further_behind, .. } = *self;
                let net = namespace($net, self.net, sk);
                let (lengths, memory) = (Lengths::of(self.lengths), [behind, further_behind]);
                let segments = self.segs_in.zip(self.segs_out);
                Ipv4Header { net, sk, lengths, version_ihl, protocol, addresses, memory, segments }.event()
            }
        })*
    };
}

ipv4_out! {
    /// `__ip_local_out`: an IPv4 packet leaves. `skb->data` is at its IP header (RFC 791).
    pub struct Ipv4Out of NET, "{sk}";
    /// `__ip_local_out_sk`: the same in Linux 4.1 to 4.3, when the namespace was no argument.
    pub struct Ipv4OutWithoutNet of "+{sock_common.skc_net}({sk})", "{sk}";
    /// `__ip_local_out`: the same before Linux 4.1, when the packet was the only argument.
    pub struct Ipv4OutOfSender of "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))", "+{sk_buff.sk}({skb})";
}

/// The same for datagrams over IPv6.
macro_rules! udp_ipv6_out {
    ($( $(#[$meta:meta])* pub struct $name:ident of $net:expr, $sk:literal; )*) => {
        sample! {$(
            $(#[$meta])*
            pub struct $name {
                /// `struct net`.
                pub net: Word = $net,
                /// The sender's `struct sock`.
                pub sk: Word = $sk,
                /// The whole packet, in bytes, and what of it does not lie in one piece with its headers, which
                /// `sk_buff` keeps next to each other: see [`Lengths`].
                pub lengths: u64 = "+{sk_buff.len}({skb})",
                /// 17, or the kind of an extension header.
                pub next_header: u8 = "+6(+{sk_buff.data}({skb}))",
                /// Source address, as it lies in memory.
                pub source_high: u64 = "+8(+{sk_buff.data}({skb}))",
                /// Its second half.
                pub source_low: u64 = "+16(+{sk_buff.data}({skb}))",
                /// Destination address, as it lies in memory.
                pub destination_high: u64 = "+24(+{sk_buff.data}({skb}))",
                /// Its second half.
                pub destination_low: u64 = "+32(+{sk_buff.data}({skb}))",
                /// Source and destination port, as they lie in memory.
                pub ports: u32 = "+40(+{sk_buff.data}({skb}))",
            }
        )*}

        $(impl IntoEvent for $name {
            fn event(&self, _: &[u8]) -> Decoded {
                let Self { sk, next_header, source_high, source_low, .. } = *self;
                let net = namespace($net, self.net, sk);
                let destination = [self.destination_high, self.destination_low];
                let (source, destination) = ipv6([source_high, source_low], destination, self.ports);
                let tuple = Tuple { net, local: source, remote: destination };
                datagram_out(next_header, sk, tuple, &Lengths::of(self.lengths))
            }
        })*
    };
}

udp_ipv6_out! {
    /// `__ip6_local_out`: a datagram leaves over IPv6. `skb->data` is at its IPv6 header (RFC 8200).
    pub struct UdpIpv6Out of NET, "{sk}";
    /// `__ip6_local_out`: the same before Linux 4.1, when the packet was the only argument.
    pub struct UdpIpv6OutOfSender of "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))", "+{sk_buff.sk}({skb})";
}

sample! {
    /// `ip6_xmit`: a TCP segment leaves over IPv6. `skb->data` is at its TCP header, the IPv6 header does not exist yet.
    pub struct TcpIpv6Out {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}({sk})",
        /// The sender's `struct sock`.
        pub sk: Word = "{sk}",
        /// TCP header and payload, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// 6.
        pub protocol: u8 = "+{flowi6.flowi6_proto}({fl6})",
        /// Source address, as it lies in memory.
        pub source_high: u64 = "+{flowi6.saddr}({fl6})",
        /// Its second half.
        pub source_low: u64 = "+{flowi6.saddr+8}({fl6})",
        /// Destination address, as it lies in memory.
        pub destination_high: u64 = "+{flowi6.daddr}({fl6})",
        /// Its second half.
        pub destination_low: u64 = "+{flowi6.daddr+8}({fl6})",
        /// Source and destination port, as they lie in memory.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// TCP's data offset and flags, as they lie in memory.
        pub tcp: u16 = "+12(+{sk_buff.data}({skb}))",
        /// Segments received by the sender.
        pub segs_in: Option<u32> = "+{tcp_sock.segs_in}({sk})",
        /// Segments sent by the sender, this packet's included.
        pub segs_out: Option<u32> = "+{tcp_sock.segs_out}({sk})",
    }
}

/// What was fetched of an IPv4 packet that leaves: see [`Ipv4Out`].
struct Ipv4Header {
    net: u64,
    sk: u64,
    lengths: Lengths,
    version_ihl: u8,
    protocol: u8,
    addresses: u64,
    /// What follows the addresses.
    memory: [u64; 2],
    /// Received and sent.
    segments: Option<(u32, u32)>,
}

impl Ipv4Header {
    fn event(&self) -> Decoded {
        let transport = if self.protocol == IPPROTO_TCP { Transport::Tcp } else { Transport::Udp };
        let header = u16::from(self.version_ihl & 0x0f) * 4;
        let Some(ports) = self.behind_header(header, 0) else {
            return self.unreadable(transport, None);
        };
        let (source, destination) = ipv4(self.addresses, u32::from_ne_bytes(ports));
        let tuple = Tuple { net: self.net, local: source, remote: destination };
        let tcp = match (transport, self.behind_header(header, 12)) {
            (Transport::Udp, _) => Tcp::NONE,
            (Transport::Tcp, Some(tcp)) => Tcp::of(u16::from_ne_bytes(tcp), self.segments),
            (Transport::Tcp, None) => return self.unreadable(transport, Some((source.port, destination.port))),
        };
        let packet = packet(Way::Out, transport, self.sk, tuple, self.lengths.all, header, tcp);
        seen(Packet { apart: self.lengths.apart, ..packet })
    }

    /// Bytes of the transport header, if they were fetched: `at` so many bytes of it, behind an IP header so long.
    fn behind_header<const N: usize>(&self, header: u16, at: usize) -> Option<[u8; N]> {
        let [first, second] = self.memory.map(u64::to_ne_bytes);
        let mut fetched = [0; 16];
        fetched[..8].copy_from_slice(&first);
        fetched[8..].copy_from_slice(&second);
        let start = usize::from(header).checked_sub(20)?;
        fetched.get(start + at..)?.first_chunk().copied()
    }

    fn unreadable(&self, transport: Transport, ports: Option<(u16, u16)>) -> Decoded {
        Decoded::Unreadable(Some(Unreadable { net: self.net, transport, sock: self.sk, ports }))
    }
}

/// A datagram that leaves over IPv6, or what has an extension header.
fn datagram_out(next_header: u8, sock: u64, tuple: Tuple, lengths: &Lengths) -> Decoded {
    if next_header != IPPROTO_UDP {
        // What comes behind an extension header is most likely a datagram: TCP does not leave here.
        return Decoded::Unreadable(Some(Unreadable { net: tuple.net, transport: Transport::Udp, sock, ports: None }));
    }
    let packet = packet(Way::Out, Transport::Udp, sock, tuple, lengths.all, IPV6_HEADER, Tcp::NONE);
    seen(Packet { apart: lengths.apart, ..packet })
}

impl IntoEvent for TcpIpv6Out {
    fn event(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: self.net, local: source, remote: destination };
        let tcp = Tcp::of(self.tcp, self.segs_in.zip(self.segs_out));
        let len = self.len.saturating_add(u32::from(IPV6_HEADER));
        seen(packet(Way::Out, Transport::Tcp, self.sk, tuple, len, IPV6_HEADER, tcp))
    }
}
