//! What becomes of packets that leave, behind the place where they are sampled.

use socktrail_kprobes::{Word, sample};

use super::{IPPROTO_TCP, IPPROTO_UDP, Lengths, ipv4, ipv6};
use crate::event::{EventKind, Fragmented, Transport, Tuple, Unreadable};
use crate::probes::{Decoded, IntoEvent};

/// What IPv4 puts before each fragment, and the least that a path is taken to carry: `ip_rt_min_pmtu`. Devices may carry less.
const IPV4: Fragments = Fragments { added: 0, header: 20, least: 552 };
/// The same of IPv6, with the fragment header that it adds (RFC 8200, sections 4.5 and 5).
const IPV6: Fragments = Fragments { added: 8, header: 48, least: 1280 };

sample! {
    /// `ipv6_push_frag_opts`, `ipv6_push_nfrag_opts`: a packet that leaves gets extension headers, behind
    /// [`TcpIpv6Out`](super::TcpIpv6Out).
    pub struct Ipv6Headers {
        /// The sender's `struct sock`.
        pub sk: Word = "+{sk_buff.sk}({skb})",
    }
}

/// Samples of IPv4 packets that are cut, which differ by where the sender is found: a tunnel's socket is given beside the
/// packet, which is still that of the socket whose packet is inside.
macro_rules! ipv4_cut {
    ($( $(#[$meta:meta])* pub struct $name:ident of $sk:literal; )*) => {
        sample! {$(
            $(#[$meta])*
            pub struct $name {
                /// `struct net`.
                pub net: Word = concat!("+{sock_common.skc_net}(", $sk, ")"),
                /// The sender's `struct sock`; null for what is forwarded.
                pub sk: Word = $sk,
                /// The whole packet, and what does not lie in the piece that becomes the first fragment: see [`Lengths`].
                pub lengths: u64 = "+{sk_buff.len}({skb})",
                /// 6 or 17.
                pub protocol: u8 = "+9(+{sk_buff.data}({skb}))",
                /// Source and destination address, as they lie in memory.
                pub addresses: u64 = "+12(+{sk_buff.data}({skb}))",
                /// Source and destination port, as they lie in memory behind a header without options.
                pub ports: u32 = "+20(+{sk_buff.data}({skb}))",
            }
        )*}

        $(impl IntoEvent for $name {
            fn event(&self, _: &[u8]) -> Decoded {
                let (source, destination) = ipv4(self.addresses, self.ports);
                let tuple = Tuple { net: self.net, local: source, remote: destination };
                cut(self.protocol, self.sk, tuple, &Lengths::of(self.lengths), &IPV4)
            }
        })*
    };
}

ipv4_cut! {
    /// `ip_do_fragment`, `ip_fragment` before Linux 4.2: an IPv4 packet is cut. `skb->data` is at its IP header.
    pub struct Ipv4Cut of "{sk}";
    /// `ip_fragment`: the same before Linux 4.1, when the packet was the only argument that tells.
    pub struct Ipv4CutOfSender of "+{sk_buff.sk}({skb})";
}

/// The same of IPv6.
macro_rules! ipv6_cut {
    ($( $(#[$meta:meta])* pub struct $name:ident of $sk:literal; )*) => {
        sample! {$(
            $(#[$meta])*
            pub struct $name {
                /// `struct net`.
                pub net: Word = concat!("+{sock_common.skc_net}(", $sk, ")"),
                /// The sender's `struct sock`; null for what is forwarded.
                pub sk: Word = $sk,
                /// The whole packet, and what does not lie in the piece that becomes the first fragment: see [`Lengths`].
                pub lengths: u64 = "+{sk_buff.len}({skb})",
                /// 6, 17, or the kind of an extension header.
                pub protocol: u8 = "+6(+{sk_buff.data}({skb}))",
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
                let from = [self.source_high, self.source_low];
                let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
                let tuple = Tuple { net: self.net, local: source, remote: destination };
                cut(self.protocol, self.sk, tuple, &Lengths::of(self.lengths), &IPV6)
            }
        })*
    };
}

ipv6_cut! {
    /// `ip6_fragment`: an IPv6 packet is cut. `skb->data` is at its IPv6 header, the fragment headers do not exist yet.
    pub struct Ipv6Cut of "{sk}";
    /// `ip6_fragment`: the same before Linux 4.1.
    pub struct Ipv6CutOfSender of "+{sk_buff.sk}({skb})";
}

impl IntoEvent for Ipv6Headers {
    fn event(&self, _: &[u8]) -> Decoded {
        // The packet itself is counted, or counted as unreadable, where it is sampled.
        let marked = Unreadable { net: 0, transport: Transport::Tcp, sock: self.sk, ports: None };
        Decoded::Event(EventKind::Unreadable(marked))
    }
}

fn cut(protocol: u8, sock: u64, tuple: Tuple, lengths: &Lengths, fragments: &Fragments) -> Decoded {
    let transport = match protocol {
        IPPROTO_TCP => Transport::Tcp,
        IPPROTO_UDP => Transport::Udp,
        _ => return Decoded::Nothing,
    };
    let first = fragments.first(lengths).unwrap_or(0);
    Decoded::Event(EventKind::Fragmented(Fragmented { transport, sock, tuple, bytes: lengths.all, first }))
}

/// What fragments of a protocol have in common, in bytes.
struct Fragments {
    /// What is added to the packet's header.
    added: u32,
    /// The header of each.
    header: u32,
    /// The smallest MTU.
    least: u32,
}

impl Fragments {
    /// How large the first one is, if the piece with the headers is made to be that. It is not where a packet was made for a
    /// larger MTU, and lies in one piece; nor where it was written bit by bit, and the first bit was no fragment's size.
    fn first(&self, lengths: &Lengths) -> Option<u16> {
        let first = lengths.first().saturating_add(self.added);
        let is_whole = first > self.least - 8 && (first - self.header).is_multiple_of(8);
        u16::try_from(first).ok().filter(|_| lengths.apart > 0 && is_whole)
    }
}
