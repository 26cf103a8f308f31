//! Packets, where they leave for IP and where they arrive from it.
//!
//! Both ways the packet's own headers say whose it is: a socket may have no remote (UDP), and what a listener or the
//! kernel's control socket sends belongs to another conversation. Before netfilter's hooks for what leaves, after
//! them for what arrives, so that the addresses are the socket's and not those of a translation.

use std::net::Ipv4Addr;

use socktrail_kprobes::sample;

use super::{Decoded, IntoEvent};
use crate::event::{Endpoint, EventKind, Packet, Segments, Size, Transport, Tuple, Unreadable, Way};

const IPV6_HEADER: u16 = 40;
const UDP_HEADER: u16 = 8;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// Samples of IPv4 packets that leave, which differ by where namespace and sender are found. The first of them knows what
/// to make of it.
macro_rules! ipv4_out {
    ($( $(#[$meta:meta])* pub struct $name:ident of $net:expr, $sk:literal; )*) => {
        sample! {$(
            $(#[$meta])*
            pub struct $name {
                /// `struct net`.
                pub net: u64 = $net,
                /// The sender's `struct sock`.
                pub sk: u64 = $sk,
                /// The whole packet, in bytes.
                pub len: u32 = "+{sk_buff.len}({skb})",
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
                pub segs_in: u32 = concat!("+{tcp_sock.segs_in}(", $sk, ")"),
                /// Segments sent by the sender, this packet's included.
                pub segs_out: u32 = concat!("+{tcp_sock.segs_out}(", $sk, ")"),
            }
        )*}

        $(impl IntoEvent for $name {
            fn event(&self, _: &[u8]) -> Decoded {
                let Self { net, sk, len, version_ihl, protocol, addresses, behind, further_behind, .. } = *self;
                let memory = [behind, further_behind];
                let segments = (self.segs_in, self.segs_out);
                Ipv4Header { net, sk, len, version_ihl, protocol, addresses, memory, segments }.event()
            }
        })*
    };
}

ipv4_out! {
    /// `__ip_local_out`: an IPv4 packet leaves. `skb->data` is at its IP header (RFC 791).
    pub struct Ipv4Out of "{net}", "{sk}";
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
                pub net: u64 = $net,
                /// The sender's `struct sock`.
                pub sk: u64 = $sk,
                /// The whole packet, in bytes.
                pub len: u32 = "+{sk_buff.len}({skb})",
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
                let Self { net, sk, len, next_header, source_high, source_low, .. } = *self;
                let destination = [self.destination_high, self.destination_low];
                let (source, destination) = ipv6([source_high, source_low], destination, self.ports);
                datagram_out(next_header, sk, Tuple { net, local: source, remote: destination }, len)
            }
        })*
    };
}

udp_ipv6_out! {
    /// `__ip6_local_out`: a datagram leaves over IPv6. `skb->data` is at its IPv6 header (RFC 8200).
    pub struct UdpIpv6Out of "{net}", "{sk}";
    /// `__ip6_local_out`: the same before Linux 4.1, when the packet was the only argument.
    pub struct UdpIpv6OutOfSender of "+{sock_common.skc_net}(+{sk_buff.sk}({skb}))", "+{sk_buff.sk}({skb})";
}

sample! {
    /// `ip6_xmit`: a TCP segment leaves over IPv6. `skb->data` is at its TCP header, the IPv6 header does not exist yet.
    pub struct TcpIpv6Out {
        /// `struct net`.
        pub net: u64 = "+{sock_common.skc_net}({sk})",
        /// The sender's `struct sock`.
        pub sk: u64 = "{sk}",
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
        pub segs_in: u32 = "+{tcp_sock.segs_in}({sk})",
        /// Segments sent by the sender, this packet's included.
        pub segs_out: u32 = "+{tcp_sock.segs_out}({sk})",
    }

    /// `tcp_v4_rcv`: a TCP segment arrives over IPv4. `skb->data` is at its TCP header, the IPv4 header lies before.
    pub struct TcpIpv4In {
        /// `struct net`.
        pub net: u64 = "+{net_device.nd_net}(+{sk_buff.dev}({skb}))",
        /// TCP header and payload, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// Where the IP header begins, from the start of the buffer.
        pub network_header: u16 = "+{sk_buff.network_header}({skb})",
        /// Where the TCP header begins, from the start of the buffer.
        pub transport_header: u16 = "+{sk_buff.transport_header}({skb})",
        /// Source and destination address, as they lie in memory; of a header without options.
        pub addresses: u64 = "-8(+{sk_buff.data}({skb}))",
        /// Source and destination port, as they lie in memory.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
        /// TCP's data offset and flags, as they lie in memory.
        pub tcp: u16 = "+12(+{sk_buff.data}({skb}))",
    }

    /// `tcp_v6_rcv`: a TCP segment arrives over IPv6.
    pub struct TcpIpv6In {
        /// `struct net`.
        pub net: u64 = "+{net_device.nd_net}(+{sk_buff.dev}({skb}))",
        /// TCP header and payload, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// Where the IPv6 header begins, from the start of the buffer.
        pub network_header: u16 = "+{sk_buff.network_header}({skb})",
        /// Where the TCP header begins, from the start of the buffer.
        pub transport_header: u16 = "+{sk_buff.transport_header}({skb})",
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
    }

    /// `udp_queue_rcv_skb`: a datagram has found its socket over IPv4. `skb->data` is at its UDP header.
    pub struct UdpIpv4In {
        /// `struct net`.
        pub net: u64 = "+{sock_common.skc_net}({sk})",
        /// The receiver's `struct sock`.
        pub sk: u64 = "{sk}",
        /// UDP header and payload, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// Where the IP header begins, from the start of the buffer.
        pub network_header: u16 = "+{sk_buff.network_header}({skb})",
        /// Where the UDP header begins, from the start of the buffer.
        pub transport_header: u16 = "+{sk_buff.transport_header}({skb})",
        /// Source and destination address, as they lie in memory; of a header without options.
        pub addresses: u64 = "-8(+{sk_buff.data}({skb}))",
        /// Source and destination port, as they lie in memory.
        pub ports: u32 = "+0(+{sk_buff.data}({skb}))",
    }

    /// `udpv6_queue_rcv_skb`: a datagram has found its socket over IPv6.
    pub struct UdpIpv6In {
        /// `struct net`.
        pub net: u64 = "+{sock_common.skc_net}({sk})",
        /// The receiver's `struct sock`.
        pub sk: u64 = "{sk}",
        /// UDP header and payload, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// Where the IPv6 header begins, from the start of the buffer.
        pub network_header: u16 = "+{sk_buff.network_header}({skb})",
        /// Where the UDP header begins, from the start of the buffer.
        pub transport_header: u16 = "+{sk_buff.transport_header}({skb})",
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
    }
}

sample! {
    /// `ipv6_push_frag_opts`, `ipv6_push_nfrag_opts`: a packet that leaves gets extension headers, behind [`TcpIpv6Out`].
    pub struct Ipv6Headers {
        /// The sender's `struct sock`.
        pub sk: u64 = "+{sk_buff.sk}({skb})",
    }
}

impl IntoEvent for Ipv6Headers {
    fn event(&self, _: &[u8]) -> Decoded {
        // The packet itself is counted, or counted as unreadable, where it is sampled.
        let marked = Unreadable { net: 0, transport: Transport::Tcp, sock: self.sk, ports: None };
        Decoded::Event(EventKind::Unreadable(marked))
    }
}

/// What was fetched of an IPv4 packet that leaves: see [`Ipv4Out`].
struct Ipv4Header {
    net: u64,
    sk: u64,
    len: u32,
    version_ihl: u8,
    protocol: u8,
    addresses: u64,
    /// What follows the addresses.
    memory: [u64; 2],
    /// Received and sent.
    segments: (u32, u32),
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
            (Transport::Tcp, Some(tcp)) => Tcp::of(u16::from_ne_bytes(tcp), Some(self.segments)),
            (Transport::Tcp, None) => return self.unreadable(transport, Some((source.port, destination.port))),
        };
        packet(Way::Out, transport, self.sk, tuple, self.len, header, tcp)
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
fn datagram_out(next_header: u8, sock: u64, tuple: Tuple, len: u32) -> Decoded {
    if next_header != IPPROTO_UDP {
        // What comes behind an extension header is most likely a datagram: TCP does not leave here.
        return Decoded::Unreadable(Some(Unreadable { net: tuple.net, transport: Transport::Udp, sock, ports: None }));
    }
    packet(Way::Out, Transport::Udp, sock, tuple, len, IPV6_HEADER, Tcp::NONE)
}

impl IntoEvent for TcpIpv6Out {
    fn event(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: self.net, local: source, remote: destination };
        let tcp = Tcp::of(self.tcp, Some((self.segs_in, self.segs_out)));
        let len = self.len.saturating_add(u32::from(IPV6_HEADER));
        packet(Way::Out, Transport::Tcp, self.sk, tuple, len, IPV6_HEADER, tcp)
    }
}

impl IntoEvent for TcpIpv4In {
    fn event(&self, _: &[u8]) -> Decoded {
        let (source, destination) = ipv4(self.addresses, self.ports);
        let tuple = Tuple { net: self.net, local: destination, remote: source };
        arrived(Transport::Tcp, 0, tuple, self.len, (self.network_header, self.transport_header), 20, self.tcp)
    }
}

impl IntoEvent for TcpIpv6In {
    fn event(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: self.net, local: destination, remote: source };
        let headers = (self.network_header, self.transport_header);
        arrived(Transport::Tcp, 0, tuple, self.len, headers, IPV6_HEADER, self.tcp)
    }
}

impl IntoEvent for UdpIpv4In {
    fn event(&self, _: &[u8]) -> Decoded {
        let (source, destination) = ipv4(self.addresses, self.ports);
        let tuple = Tuple { net: self.net, local: destination, remote: source };
        arrived(Transport::Udp, self.sk, tuple, self.len, (self.network_header, self.transport_header), 20, 0)
    }
}

impl IntoEvent for UdpIpv6In {
    fn event(&self, _: &[u8]) -> Decoded {
        let from = [self.source_high, self.source_low];
        let (source, destination) = ipv6(from, [self.destination_high, self.destination_low], self.ports);
        let tuple = Tuple { net: self.net, local: destination, remote: source };
        let headers = (self.network_header, self.transport_header);
        arrived(Transport::Udp, self.sk, tuple, self.len, headers, IPV6_HEADER, 0)
    }
}

/// What TCP's header adds.
struct Tcp {
    header: u16,
    flags: u8,
    segments: Option<Segments>,
}

impl Tcp {
    const NONE: Self = Self { header: UDP_HEADER, flags: 0, segments: None };

    /// From the two bytes of data offset and flags, and the socket's counters.
    fn of(memory: u16, counters: Option<(u32, u32)>) -> Self {
        let [offset, flags] = memory.to_ne_bytes();
        let segments = counters.map(|(received, sent)| Segments { received, sent });
        Self { header: u16::from(offset >> 4) * 4, flags, segments }
    }
}

/// A packet that arrived: the IP header is in the buffer, before `data`.
fn arrived(
    transport: Transport,
    sock: u64,
    tuple: Tuple,
    len: u32,
    (network_header, transport_header): (u16, u16),
    plain: u16,
    tcp: u16,
) -> Decoded {
    let ip_header = transport_header.wrapping_sub(network_header);
    if ip_header != plain {
        // Options or extensions: the addresses are not where they were looked for.
        let ports = Some((tuple.local.port, tuple.remote.port));
        return Decoded::Unreadable(Some(Unreadable { net: tuple.net, transport, sock, ports }));
    }
    let tcp = match transport {
        Transport::Tcp => Tcp::of(tcp, None),
        Transport::Udp => Tcp::NONE,
    };
    packet(Way::In, transport, sock, tuple, len.saturating_add(u32::from(ip_header)), ip_header, tcp)
}

fn packet(way: Way, transport: Transport, sock: u64, tuple: Tuple, bytes: u32, ip_header: u16, tcp: Tcp) -> Decoded {
    let size = Size::Packet { bytes, headers: ip_header + tcp.header };
    let Tcp { flags: tcp_flags, segments, .. } = tcp;
    Decoded::Event(EventKind::Packet(Packet { way, transport, sock, tuple, size, tcp_flags, segments }))
}

/// Source and destination out of memory: two addresses in network order, two ports in network order.
fn ipv4(addresses: u64, ports: u32) -> (Endpoint, Endpoint) {
    let [a, b, c, d, e, f, g, h] = addresses.to_ne_bytes();
    let (from, to) = split_ports(ports);
    (Endpoint::new(Ipv4Addr::new(a, b, c, d), from), Endpoint::new(Ipv4Addr::new(e, f, g, h), to))
}

fn ipv6(source: [u64; 2], destination: [u64; 2], ports: u32) -> (Endpoint, Endpoint) {
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

    fn decoded(sample: &impl IntoEvent) -> Packet {
        match sample.event(&[]) {
            Decoded::Event(EventKind::Packet(packet)) => packet,
            other => panic!("{other:?}"),
        }
    }

    /// A SYN of curl's to 127.0.0.1:80 as `tcpdump -x` showed it.
    const SYN: &[u8] = &[
        0x45, 0x00, 0x00, 0x3c, 0x4e, 0x4a, 0x40, 0x00, 0x40, 0x06, 0xee, 0x6f, 0x7f, 0x00, 0x00, 0x01, 0x7f, 0x00,
        0x00, 0x01, 0xa8, 0x0c, 0x00, 0x50, 0x0c, 0xe1, 0x2b, 0x67, 0x00, 0x00, 0x00, 0x00, 0xa0, 0x02, 0xff, 0xd7,
    ];

    fn at<const N: usize>(offset: usize) -> [u8; N] {
        SYN[offset..offset + N].try_into().unwrap()
    }

    #[test]
    fn headers_that_leave_are_read_as_they_lie_in_memory() {
        let sample = Ipv4Out {
            net: 1,
            sk: 2,
            len: 60,
            version_ihl: SYN[0],
            protocol: SYN[9],
            addresses: u64::from_ne_bytes(at(12)),
            behind: u64::from_ne_bytes(at(20)),
            further_behind: u64::from_ne_bytes(at(28)),
            segs_in: 0,
            segs_out: 1,
        };
        let packet = decoded(&sample);
        assert_eq!(packet.tuple.local, Endpoint::new(Ipv4Addr::LOCALHOST, 0xa80c));
        assert_eq!(packet.tuple.remote, Endpoint::new(Ipv4Addr::LOCALHOST, 80));
        assert_eq!(packet.size, Size::Packet { bytes: 60, headers: 60 });
        assert_eq!((packet.way, packet.transport, packet.tcp_flags), (Way::Out, Transport::Tcp, 0x02));
        assert_eq!(packet.segments, Some(Segments { received: 0, sent: 1 }));
    }

    #[test]
    fn ports_are_found_behind_options() {
        // A datagram from port 1 to port 2, behind so many words of options; of the rest nothing is to be read.
        let sample = |words: u8| {
            let mut behind = [0xee; 16 + 40];
            let place = usize::from(words) * 4;
            behind[place..place + 8].copy_from_slice(&[0, 1, 0, 2, 0, 72, 0, 0]);
            Ipv4Out {
                net: 1,
                sk: 2,
                len: 92 + u32::from(words) * 4,
                version_ihl: 0x45 + words,
                protocol: 17,
                addresses: u64::from_ne_bytes(at(12)),
                behind: u64::from_ne_bytes(behind[..8].try_into().unwrap()),
                further_behind: u64::from_ne_bytes(behind[8..16].try_into().unwrap()),
                segs_in: 0,
                segs_out: 0,
            }
        };
        for words in 0..=3 {
            let packet = decoded(&sample(words));
            assert_eq!((packet.tuple.local.port, packet.tuple.remote.port), (1, 2), "{words}");
            let headers = 28 + u16::from(words) * 4;
            assert_eq!(packet.size, Size::Packet { bytes: 64 + u32::from(headers), headers });
        }
        let unreadable = |ports, transport| Unreadable { net: 1, transport, sock: 2, ports };
        for (sample, wanted) in [
            (sample(4), unreadable(None, Transport::Udp)),
            (Ipv4Out { protocol: 6, ..sample(1) }, unreadable(Some((1, 2)), Transport::Tcp)),
        ] {
            assert!(matches!(sample.event(&[]), Decoded::Unreadable(Some(what)) if what == wanted), "{sample:?}");
        }
        assert!(matches!(Ipv4Out { version_ihl: 0x44, ..sample(0) }.event(&[]), Decoded::Unreadable(_)));
    }

    #[test]
    fn what_arrives_is_seen_from_this_host() {
        let sample = TcpIpv4In {
            net: 1,
            len: 40,
            network_header: 78,
            transport_header: 98,
            addresses: u64::from_ne_bytes(at(12)),
            ports: u32::from_ne_bytes(at(20)),
            tcp: u16::from_ne_bytes(at(32)),
        };
        let packet = decoded(&sample);
        assert_eq!((packet.tuple.local.port, packet.tuple.remote.port), (80, 0xa80c));
        assert_eq!(packet.size, Size::Packet { bytes: 60, headers: 60 });
        let wanted = Unreadable { net: 1, transport: Transport::Tcp, sock: 0, ports: Some((80, 0xa80c)) };
        let with_options = TcpIpv4In { transport_header: 102, ..sample };
        assert!(matches!(with_options.event(&[]), Decoded::Unreadable(Some(what)) if what == wanted));
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
            segs_in: 0,
            segs_out: 1,
        };
        let packet = decoded(&sample);
        assert_eq!(packet.tuple.local.ip, Ipv6Addr::LOCALHOST);
        assert_eq!(packet.size, Size::Packet { bytes: 80, headers: 80 });
    }
}
