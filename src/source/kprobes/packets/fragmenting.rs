//! Samples of outgoing packets that are fragmented or get extension headers, after they were sampled as sent.

use socktrail_kprobes::{Word, sample};

use super::{IPPROTO_TCP, IPPROTO_UDP, Lengths, ipv4, ipv6};
use crate::model::event::{EventKind, Fragmented, Tuple, UnreadablePacket};
use crate::model::flow::Transport;
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::source::kprobes::{Decoded, Interpret};

/// IPv4. `min_mtu` is the smallest MTU that paths are assumed to have (`ip_rt_min_pmtu`). Devices may have a smaller one; then the
/// size of the first fragment is unknown.
const IPV4: FragmentFormat = FragmentFormat { fragment_header: 0, headers: 20, min_mtu: 552 };
/// IPv6, which adds a fragment header (RFC 8200, sections 4.5 and 5).
const IPV6: FragmentFormat = FragmentFormat { fragment_header: 8, headers: 48, min_mtu: 1280 };

sample! {
    /// `ipv6_push_frag_opts`, `ipv6_push_nfrag_opts`: an outgoing packet gets extension headers, after
    /// [`TcpIpv6Out`](super::TcpIpv6Out).
    pub struct Ipv6Headers {
        /// The sender's `struct sock`.
        pub sk: Word = "+{sk_buff.sk}({skb})",
    }
}

/// Samples of IPv4 packets that are fragmented. They differ in where they find the sender: newer functions have a `sk` argument.
/// For a packet in a tunnel, the argument is the tunnel's socket, while `skb->sk` is the socket of the inner packet.
macro_rules! ipv4_fragmented {
    ($( $(#[$meta:meta])* pub struct $name:ident of $sk:literal; )*) => {
        sample! {$(
            $(#[$meta])*
            pub struct $name {
                /// `struct net`.
                pub net: Word = concat!("+{sock_common.skc_net}(", $sk, ")"),
                /// The sender's `struct sock`. Forwarded packets have none; the probe's filter excludes them.
                pub sk: Word = $sk,
                /// `sk_buff.len` and `sk_buff.data_len`: see [`Lengths`].
                pub lengths: u64 = "+{sk_buff.len}({skb})",
                /// 6, 17, or another protocol, which is ignored.
                pub protocol: u8 = "+9(+{sk_buff.data}({skb}))",
                /// Source and destination address, in memory order.
                pub addresses: u64 = "+12(+{sk_buff.data}({skb}))",
                /// Source and destination port, in memory order, after a header without options.
                pub ports: u32 = "+20(+{sk_buff.data}({skb}))",
            }
        )*}

        $(impl Interpret for $name {
            fn interpret(&self, _: &[u8]) -> Decoded {
                let (source, destination) = ipv4(self.addresses, self.ports);
                let tuple = Tuple { net: NetAddress::new(self.net), local: source, remote: destination };
                fragmented(self.protocol, self.sk, tuple, &Lengths::of(self.lengths), &IPV4)
            }
        })*
    };
}

ipv4_fragmented! {
    /// `ip_do_fragment`, or `ip_fragment` before Linux 4.2: an IPv4 packet is fragmented. `skb->data` points to its IP header.
    pub struct Ipv4Fragmented of "{sk}";
    /// The same for functions without a `sk` argument (before Linux 4.1), or if its position is not known.
    pub struct Ipv4FragmentedWithoutSk of "+{sk_buff.sk}({skb})";
}

/// Samples of IPv6 packets that are fragmented.
macro_rules! ipv6_fragmented {
    ($( $(#[$meta:meta])* pub struct $name:ident of $sk:literal; )*) => {
        sample! {$(
            $(#[$meta])*
            pub struct $name {
                /// `struct net`.
                pub net: Word = concat!("+{sock_common.skc_net}(", $sk, ")"),
                /// The sender's `struct sock`. Forwarded packets have none; the probe's filter excludes them.
                pub sk: Word = $sk,
                /// `sk_buff.len` and `sk_buff.data_len`: see [`Lengths`].
                pub lengths: u64 = "+{sk_buff.len}({skb})",
                /// 6, 17, or the kind of an extension header.
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
            }
        )*}

        $(impl Interpret for $name {
            fn interpret(&self, _: &[u8]) -> Decoded {
                let from = [self.source_high, self.source_low];
                let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
                let tuple = Tuple { net: NetAddress::new(self.net), local: source, remote: destination };
                fragmented(self.protocol, self.sk, tuple, &Lengths::of(self.lengths), &IPV6)
            }
        })*
    };
}

ipv6_fragmented! {
    /// `ip6_fragment`: an IPv6 packet is fragmented. `skb->data` points to its IPv6 header; the fragment headers do not exist yet.
    pub struct Ipv6Fragmented of "{sk}";
    /// The same for a function without a `sk` argument (before Linux 4.1), or if its position is not known.
    pub struct Ipv6FragmentedWithoutSk of "+{sk_buff.sk}({skb})";
}

impl Interpret for Ipv6Headers {
    fn interpret(&self, _: &[u8]) -> Decoded {
        // This is not another packet: the sample of its sending counts it. This event only marks the sender's flow
        // (`headers_unread`), so it is not decoded as `Decoded::Unreadable`, which counts.
        let unreadable =
            UnreadablePacket { net: None, transport: Transport::Tcp, sock: SockAddress::new(self.sk), ports: None };
        Decoded::Event(EventKind::UnreadablePacket(unreadable))
    }
}

fn fragmented(protocol: u8, sock: u64, tuple: Tuple, lengths: &Lengths, format: &FragmentFormat) -> Decoded {
    let transport = match protocol {
        IPPROTO_TCP => Transport::Tcp,
        IPPROTO_UDP => Transport::Udp,
        _ => return Decoded::Nothing,
    };
    let first = format.first_size(lengths).unwrap_or(0);
    Decoded::Event(EventKind::Fragmented(Fragmented {
        transport,
        sock: SockAddress::new(sock),
        tuple,
        bytes: lengths.len,
        first,
    }))
}

/// The fragments of a protocol; sizes in bytes.
struct FragmentFormat {
    /// The fragment header, which each fragment has in addition to the packet's IP header; 0 for IPv4.
    fragment_header: u32,
    /// All headers of a fragment that precede its payload.
    headers: u32,
    /// The smallest MTU.
    min_mtu: u32,
}

impl FragmentFormat {
    /// The size of the first fragment, with its headers. It is known only if the packet was written fragment by fragment: then the
    /// linear part is the first fragment, and pages or a list of buffers hold the others. `None` if the packet is all linear (it
    /// was made for a larger MTU), or if the linear part does not have the size of a full fragment (it was written in small parts).
    fn first_size(&self, lengths: &Lengths) -> Option<u16> {
        let size = lengths.linear().saturating_add(self.fragment_header);
        // The payload of a fragment is a multiple of 8 bytes, so a full fragment may be up to 7 bytes smaller than the MTU.
        let is_full_fragment = size > self.min_mtu - 8 && (size - self.headers).is_multiple_of(8);
        u16::try_from(size).ok().filter(|_| lengths.data_len > 0 && is_full_fragment)
    }
}
