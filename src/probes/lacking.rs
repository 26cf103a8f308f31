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
