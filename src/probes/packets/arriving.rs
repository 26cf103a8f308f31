//! Packets that arrive, put together again where they came as fragments.

use socktrail_kprobes::{Word, sample};

use super::{IPV4_HEADER, IPV6_HEADER, Lengths, Tcp, ipv4, ipv6, packet, seen};
use crate::event::{Packet, Transport, Tuple, Unreadable, Way};
use crate::probes::{Decoded, IntoEvent};

sample! {
    /// `tcp_v4_rcv`: a TCP segment arrives over IPv4. `skb->data` is at its TCP header, the IPv4 header lies before.
    pub struct TcpIpv4In {
        /// `struct net`.
        pub net: Word = "+{net_device.nd_net}(+{sk_buff.dev}({skb}))",
        /// TCP header and payload, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// Where the headers begin, as it lies in memory: see [`Headers`].
        pub headers: u32 = "+{sk_buff.headers}({skb})",
        /// Source and destination address, as they lie in memory; of a header without options.
        pub addresses: u64 = "-8(+{sk_buff.data}({skb}))",
        /// Source and destination port, as they lie in memory.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// TCP's data offset and flags, as they lie in memory.
        pub tcp: u16 = "+12(+{sk_buff.data}({skb}))",
        /// The largest of the fragments that it came in, in bytes; 0 when it came whole.
        pub fragment: Option<u16> = "+{inet_skb_parm.frag_max_size}({skb})",
    }

    /// `tcp_v6_rcv`: a TCP segment arrives over IPv6.
    pub struct TcpIpv6In {
        /// `struct net`.
        pub net: Word = "+{net_device.nd_net}(+{sk_buff.dev}({skb}))",
        /// TCP header and payload, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// Where the headers begin, as it lies in memory: see [`Headers`].
        pub headers: u32 = "+{sk_buff.headers}({skb})",
        /// Source address, as it lies in memory; of a header without extensions.
        pub source_high: u64 = "-32(+{sk_buff.data}({skb}))",
        /// Its second half.
        pub source_low: u64 = "-24(+{sk_buff.data}({skb}))",
        /// Destination address, as it lies in memory.
        pub destination_high: u64 = "-16(+{sk_buff.data}({skb}))",
        /// Its second half.
        pub destination_low: u64 = "-8(+{sk_buff.data}({skb}))",
        /// Source and destination port, as they lie in memory.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// TCP's data offset and flags, as they lie in memory.
        pub tcp: u16 = "+12(+{sk_buff.data}({skb}))",
        /// The largest of the fragments that it came in, in bytes; 0 when it came whole.
        pub fragment: Option<u16> = "+{inet6_skb_parm.frag_max_size}({skb})",
    }

    /// `udp_queue_rcv_one_skb`, `udp_queue_rcv_skb` before Linux 5.0: a datagram has found its socket over IPv4, and what came
    /// merged for a socket that does not take it so is cut again. `skb->data` is at its UDP header.
    pub struct UdpIpv4In {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}({sk})",
        /// The receiver's `struct sock`.
        pub sk: Word = "{sk}",
        /// UDP header and payload, in bytes, and what of it does not lie in one piece: see [`Lengths`].
        pub lengths: u64 = "+{sk_buff.len}({skb})",
        /// Where the headers begin, as it lies in memory: see [`Headers`].
        pub headers: u32 = "+{sk_buff.headers}({skb})",
        /// Source and destination address, as they lie in memory; of a header without options.
        pub addresses: u64 = "-8(+{sk_buff.data}({skb}))",
        /// Source and destination port, as they lie in memory.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// The largest of the fragments that it came in, in bytes; 0 when it came whole.
        pub fragment: Option<u16> = "+{inet_skb_parm.frag_max_size}({skb})",
    }

    /// `udpv6_queue_rcv_one_skb`, `udpv6_queue_rcv_skb` before Linux 5.0: a datagram has found its socket over IPv6.
    pub struct UdpIpv6In {
        /// `struct net`.
        pub net: Word = "+{sock_common.skc_net}({sk})",
        /// The receiver's `struct sock`.
        pub sk: Word = "{sk}",
        /// UDP header and payload, in bytes, and what of it does not lie in one piece: see [`Lengths`].
        pub lengths: u64 = "+{sk_buff.len}({skb})",
        /// Where the headers begin, as it lies in memory: see [`Headers`].
        pub headers: u32 = "+{sk_buff.headers}({skb})",
        /// Source address, as it lies in memory; of a header without extensions.
        pub source_high: u64 = "-32(+{sk_buff.data}({skb}))",
        /// Its second half.
        pub source_low: u64 = "-24(+{sk_buff.data}({skb}))",
        /// Destination address, as it lies in memory.
        pub destination_high: u64 = "-16(+{sk_buff.data}({skb}))",
        /// Its second half.
        pub destination_low: u64 = "-8(+{sk_buff.data}({skb}))",
        /// Source and destination port, as they lie in memory.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// The largest of the fragments that it came in, in bytes; 0 when it came whole.
        pub fragment: Option<u16> = "+{inet6_skb_parm.frag_max_size}({skb})",
    }
}

impl IntoEvent for TcpIpv4In {
    fn event(&self, _: &[u8]) -> Decoded {
        let (source, destination) = ipv4(self.addresses, self.ports);
        let tuple = Tuple { net: self.net, local: destination, remote: source };
        let &Self { len, headers, .. } = self;
        let fragment = self.fragment.unwrap_or(0);
        Arrived { transport: Transport::Tcp, sock: 0, tuple, len, headers, fragment }.event(
            IPV4_HEADER,
            Tcp::of(self.tcp, None),
            0,
        )
    }
}

impl IntoEvent for TcpIpv6In {
    fn event(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: self.net, local: destination, remote: source };
        let &Self { len, headers, .. } = self;
        let fragment = self.fragment.unwrap_or(0);
        Arrived { transport: Transport::Tcp, sock: 0, tuple, len, headers, fragment }.event(
            IPV6_HEADER,
            Tcp::of(self.tcp, None),
            0,
        )
    }
}

impl IntoEvent for UdpIpv4In {
    fn event(&self, _: &[u8]) -> Decoded {
        let (source, destination) = ipv4(self.addresses, self.ports);
        let tuple = Tuple { net: self.net, local: destination, remote: source };
        let &Self { sk: sock, headers, .. } = self;
        let fragment = self.fragment.unwrap_or(0);
        let lengths = Lengths::of(self.lengths);
        Arrived { transport: Transport::Udp, sock, tuple, len: lengths.all, headers, fragment }.event(
            IPV4_HEADER,
            Tcp::NONE,
            lengths.apart,
        )
    }
}

impl IntoEvent for UdpIpv6In {
    fn event(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: self.net, local: destination, remote: source };
        let &Self { sk: sock, headers, .. } = self;
        let fragment = self.fragment.unwrap_or(0);
        let lengths = Lengths::of(self.lengths);
        Arrived { transport: Transport::Udp, sock, tuple, len: lengths.all, headers, fragment }.event(
            IPV6_HEADER,
            Tcp::NONE,
            lengths.apart,
        )
    }
}

/// `sk_buff.transport_header` and `sk_buff.network_header`, two numbers of 2 bytes next to each other: where these headers
/// begin, from the start of the buffer. One read of both costs the kernel half of what two cost.
struct Headers {
    transport: u16,
    network: u16,
}

impl Headers {
    /// As they lie in memory.
    fn of(memory: u32) -> Self {
        let [a, b, c, d] = memory.to_ne_bytes();
        Self { transport: u16::from_ne_bytes([a, b]), network: u16::from_ne_bytes([c, d]) }
    }

    /// The bytes of the IP header.
    fn ip(&self) -> u16 {
        self.transport.wrapping_sub(self.network)
    }
}

/// A packet that arrived: the IP header is in the buffer, before `data`.
struct Arrived {
    transport: Transport,
    sock: u64,
    tuple: Tuple,
    /// From the transport header on.
    len: u32,
    /// Where they begin: see [`Headers`].
    headers: u32,
    fragment: u16,
}

impl Arrived {
    /// `plain` is the length of an IP header without options.
    fn event(self, plain: u16, tcp: Tcp, apart: u32) -> Decoded {
        let Self { transport, sock, tuple, len, headers, fragment } = self;
        if Headers::of(headers).ip() != plain {
            // Options or extensions: the addresses are not where they were looked for.
            let ports = Some((tuple.local.port, tuple.remote.port));
            return Decoded::Unreadable(Some(Unreadable { net: tuple.net, transport, sock, ports }));
        }
        let bytes = len.saturating_add(u32::from(plain));
        seen(Packet { apart, fragment, ..packet(Way::In, transport, sock, tuple, bytes, plain, tcp) })
    }
}
