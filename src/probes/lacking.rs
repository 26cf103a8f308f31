//! What only newer kernels have, and samples do without.

use socktrail_guess::Layout;

use super::Feature;
use crate::event::Packet;

/// What the kernel counts the segments of a TCP socket with, since Linux 4.2.
const SEGMENT_COUNTERS: [&str; 2] = ["tcp_sock.segs_in", "tcp_sock.segs_out"];
/// What it means to do without.
const UNCOUNTED: &str = "several TCP segments that the kernel handles as one packet count as one";

/// How large the fragments of a packet were: of IPv4 and of IPv6.
const FRAGMENT_SIZES: [&str; 2] = ["inet_skb_parm.frag_max_size", "inet6_skb_parm.frag_max_size"];
/// What it means to do without.
const WHOLE: &str = "packets that arrive in fragments count as one";

/// Whether a kernel may be without what this names, and packets are samples all the same.
pub(super) fn may_be_missing(name: &str) -> bool {
    SEGMENT_COUNTERS.contains(&name) || FRAGMENT_SIZES.contains(&name)
}

/// What a layout does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lacking {
    segment_counters: bool,
    /// Of IPv4 and of IPv6.
    fragment_sizes: [bool; 2],
}

impl Lacking {
    /// It has all.
    pub(super) const NOTHING: Self = Self { segment_counters: false, fragment_sizes: [false; 2] };

    pub(super) fn of(layout: &Layout) -> Self {
        Self {
            segment_counters: !SEGMENT_COUNTERS.iter().all(|name| layout.knows(name)),
            fragment_sizes: FRAGMENT_SIZES.map(|name| !layout.knows(name)),
        }
    }

    /// What a feature does not tell for that.
    pub(super) fn matters_to(self, feature: Feature) -> Option<&'static str> {
        let [v4, v6] = self.fragment_sizes;
        match feature {
            Feature::Ipv4Out | Feature::TcpIpv6Out => self.segment_counters.then_some(UNCOUNTED),
            Feature::TcpIpv4In | Feature::UdpIpv4In => v4.then_some(WHOLE),
            Feature::TcpIpv6In | Feature::UdpIpv6In => v6.then_some(WHOLE),
            _ => None,
        }
    }

    /// A packet of which only that is told which its sample knows.
    pub(super) fn without(self, packet: Packet) -> Packet {
        let [v4, v6] = self.fragment_sizes;
        let no_fragments = if packet.tuple.remote.ip.is_ipv4() { v4 } else { v6 };
        Packet {
            segments: packet.segments.filter(|_| !self.segment_counters),
            fragment: if no_fragments { 0 } else { packet.fragment },
            ..packet
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use socktrail_guess::Origin;

    use super::*;
    use crate::event::{Endpoint, Segments, Size, Transport, Tuple, Way};

    #[test]
    fn what_a_kernel_does_not_have_is_not_told() {
        let packet = |ip: IpAddr| {
            let tuple = Tuple { net: 1, local: Endpoint::new(ip, 1), remote: Endpoint::new(ip, 2) };
            let size = Size::Packet { bytes: 3000, headers: 28 };
            let packet = Packet::new(Way::In, Transport::Udp, 1, tuple, size);
            Packet { fragment: 1500, segments: Some(Segments::default()), ..packet }
        };
        let (v4, v6) = (packet(Ipv4Addr::LOCALHOST.into()), packet(Ipv6Addr::LOCALHOST.into()));
        let mut layout = Layout::new();
        let none = Lacking::of(&layout);
        assert_eq!([v4, v6].map(|packet| none.without(packet).fragment), [0, 0]);
        assert_eq!(none.without(v4).segments, None);
        assert_eq!(none.matters_to(Feature::UdpIpv6In), Some(WHOLE));
        layout.set(FRAGMENT_SIZES[0], 62, Origin::Btf, Duration::ZERO);
        let some = Lacking::of(&layout);
        assert_eq!([v4, v6].map(|packet| some.without(packet).fragment), [1500, 0]);
        assert_eq!((some.matters_to(Feature::TcpIpv4In), some.matters_to(Feature::Ipv4Out)), (None, Some(UNCOUNTED)));
        for name in SEGMENT_COUNTERS.into_iter().chain(FRAGMENT_SIZES) {
            layout.set(name, 8, Origin::Btf, Duration::ZERO);
        }
        assert_eq!(Lacking::of(&layout), Lacking::NOTHING);
        assert_eq!(Lacking::NOTHING.without(v6), v6);
    }
}
