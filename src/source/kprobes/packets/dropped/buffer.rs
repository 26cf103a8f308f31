//! The packet of a sample: where its headers begin, whether a driver has sent it, and what its headers say.

use super::WORDS;
use crate::model::event::{Dropped, EventKind};
use crate::model::flow::{Endpoint, Transport};
use crate::model::kernel_address::SockAddress;
use crate::source::kprobes::packets::freed::FreedBy;
use crate::source::kprobes::packets::{self, IPPROTO_TCP, IPPROTO_UDP, IPV6_HEADER, split_ports};
use crate::source::kprobes::{AF_INET, AF_INET6, Decoded};

pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERNET_HEADER: usize = 14;
/// The shortest header of an IEEE 802.11 frame with data, with the 8 bytes of LLC and SNAP, which say what it carries.
const MIN_80211_WITH_SNAP: usize = 24 + 8;
const FRAGMENT_HEADER: u8 = 44;

/// Whether a packet has no socket, or one of IP. A capture (`AF_PACKET`) owns copies of sent packets that it has not read, and
/// frees them when it ends; those were not dropped. Without a socket the family was not read, and its field holds a value of an
/// earlier sample.
pub(super) fn is_of_inet(sk: u64, owner_family: Option<u16>) -> bool {
    sk == 0 || owner_family.is_none_or(|family| matches!(family, 0 | AF_INET | AF_INET6))
}

/// Distinguishes a packet that is dropped at a device from one that its driver has sent and now frees.
///
/// When a packet leaves its queue, `validate_xmit_skb_list` makes `prev` point to the packet itself. Until then `prev` is null,
/// or points to a neighbour in a tree (`netem`, `fq`). If the packet is segmented at that point, only the first segment has a
/// `prev`. But `skb_segment` sets `mac_len` of all segments, which an unsegmented packet does not have, and their control block
/// has the size of the whole packet. A queue that segments packets itself (`cake`, `tbf`) stores each segment's own size.
pub(super) struct AtDevice {
    pub(super) skb: u64,
    pub(super) prev: u64,
    pub(super) mac_len: u16,
    pub(super) pkt_len: u32,
    pub(super) len: u32,
}

impl AtDevice {
    /// Whether its queue has passed it to the driver unsegmented.
    pub(super) fn was_handed_to_driver(&self) -> bool {
        self.prev == self.skb
    }

    /// Whether the driver has sent it.
    pub(super) fn was_sent(&self) -> bool {
        let is_segment = self.mac_len != 0;
        self.was_handed_to_driver() || (is_segment && self.pkt_len != self.len)
    }
}

/// `sk_buff.protocol` and the offsets `network_header` and `mac_header`, in bytes from `sk_buff.head`. Since Linux 3.18 they and
/// `transport_header` are four adjacent numbers of 2 bytes.
#[derive(Clone, Copy)]
pub(super) struct HeaderOffsets {
    /// The Ethernet type, in host byte order; 0 for an outgoing packet that has not reached IP yet.
    pub(super) protocol: u16,
    pub(super) network: u16,
    /// `u16::MAX` until the packet has come to a device.
    pub(super) mac: u16,
}

impl HeaderOffsets {
    /// From the 8 bytes of the four numbers, in the order of memory.
    pub(super) fn of(memory: u64) -> Self {
        let [a, b, _, _, e, f, g, h] = memory.to_ne_bytes();
        Self {
            protocol: u16::from_be_bytes([a, b]),
            network: u16::from_ne_bytes([e, f]),
            mac: u16::from_ne_bytes([g, h]),
        }
    }

    /// From the separate fields of kernels before Linux 3.18; `protocol` is in network byte order. There, `protocol` is 22 bytes
    /// after `len`, and `inner_mac_header` precedes `transport_header`.
    pub(super) fn early(protocol: u16, network: u16, mac: u16) -> Self {
        Self { protocol: u16::from_be(protocol), network, mac }
    }

    pub(super) fn is_at_device(&self) -> bool {
        self.mac != u16::MAX
    }

    /// Whether the link header is so long that a wireless driver must have converted the packet to IEEE 802.11: such drivers
    /// queue packets themselves, and free sent ones without a drop reason.
    pub(super) fn has_80211_header(&self) -> bool {
        self.link_header() >= MIN_80211_WITH_SNAP
    }

    /// Whether a packet at a device is an outgoing one, which begins with its link header. An incoming packet begins after its
    /// link header, and must not be parsed. Without a link header, both begin with the IP header.
    pub(super) fn is_leaving(&self, head: u64, data: u64) -> bool {
        data.wrapping_sub(head) == u64::from(self.mac)
    }

    /// The length of the link header in bytes; 0 until the packet has come to a device.
    pub(super) fn link_header(&self) -> usize {
        if self.mac == u16::MAX { 0 } else { self.network.wrapping_sub(self.mac).into() }
    }
}

/// A freed packet.
pub(super) struct Buffer<'a> {
    pub(super) sk: u64,
    pub(super) headers: HeaderOffsets,
    pub(super) len: u32,
    pub(super) begin: &'a [u8],
}

/// The Ethernet type of a packet that begins with an IP header; 0 for other packets. Before Linux 4.9, the kernel sets
/// `sk_buff.protocol` of outgoing packets only after the firewall's hook; RHEL 7 has backported the newer order.
pub(super) fn ethertype(begin: &[u8]) -> u16 {
    match begin.first().map(|first| first >> 4) {
        Some(4) => ETHERTYPE_IPV4,
        Some(6) => ETHERTYPE_IPV6,
        _ => 0,
    }
}

impl Buffer<'_> {
    /// The event of the first packet of a list. `next` is the address of the list's next packet, `function` that of the function
    /// that frees the list.
    pub(super) fn event_in_list(&self, next: u64, function: u64) -> Decoded {
        match self.event(next != 0) {
            Decoded::Event(EventKind::Dropped(dropped)) => {
                Decoded::MaybeDuplicateDrop(dropped, FreedBy::List(function))
            }
            other => other,
        }
    }

    /// The event of a packet that is dropped at a device. `caller` is the return address of the function that frees it. See
    /// [`Dropped::may_be_drivers`].
    pub(super) fn event_at_device(&self, caller: u64, may_be_drivers: bool) -> Decoded {
        let may_have_arrived = self.headers.link_header() == 0;
        match self.event(false) {
            Decoded::Event(EventKind::Dropped(dropped)) => Decoded::MaybeDuplicateDrop(
                Dropped { may_have_arrived, may_be_drivers, ..dropped },
                FreedBy::Caller(caller),
            ),
            other => other,
        }
    }

    /// The event of a dropped packet; `with_others` if more packets of a list follow.
    pub(super) fn event(&self, with_others: bool) -> Decoded {
        let link = self.headers.link_header();
        let nothing = Dropped {
            sock: SockAddress::new(self.sk),
            transport: None,
            other_protocol: false,
            ends: None,
            bytes: 0,
            with_others,
            may_have_arrived: false,
            may_be_drivers: false,
        };
        if self.headers.protocol == 0 {
            // It never reached IP, so it has no IP header. From Linux 3.18 to 4.8, an IPv4 packet that a rule of OUTPUT drops
            // looks the same.
            return Decoded::Event(EventKind::Dropped(nothing));
        }
        let Some(ip) = self.begin.get(link..).filter(|_| self.is_of_protocol(link)) else { return Decoded::Nothing };
        let bytes = self.len.saturating_sub(u32::try_from(link).unwrap_or(u32::MAX));
        let found = match self.headers.protocol {
            ETHERTYPE_IPV4 => ipv4(ip, bytes),
            ETHERTYPE_IPV6 => ipv6(ip, bytes),
            _ => None,
        };
        let Some((transport, ends)) = found else { return Decoded::Nothing };
        let other_protocol = transport.is_none();
        Decoded::Event(EventKind::Dropped(Dropped { transport, other_protocol, ends, bytes, ..nothing }))
    }

    /// Whether the Ethernet header, if there is one, was fetched and has the same Ethernet type as `sk_buff.protocol`.
    fn is_of_protocol(&self, link: usize) -> bool {
        let kind = self.begin.get(ETHERNET_HEADER - 2..).and_then(<[u8]>::first_chunk);
        link != ETHERNET_HEADER || kind.is_some_and(|kind| u16::from_be_bytes(*kind) == self.headers.protocol)
    }
}

/// Source and destination.
type Ends = (Endpoint, Endpoint);

/// Transport and ends of an IPv4 packet. Ends are missing in later fragments, if options move the ports beyond the
/// fetched bytes, and if the packet is neither TCP nor UDP.
fn ipv4(ip: &[u8], bytes: u32) -> Option<(Option<Transport>, Option<Ends>)> {
    let header: &[u8; 20] = ip.first_chunk()?;
    let total = u16::from_be_bytes([header[2], header[3]]);
    // A packet that is too large for this field (BIG TCP) has 0.
    if header[0] >> 4 != 4 || (total != 0 && u32::from(total) != bytes) {
        return None;
    }
    let is_later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    let ports = ip.get(usize::from(header[0] & 0x0f) * 4..).and_then(<[u8]>::first_chunk);
    let transport = transport(header[9]);
    let ends = ports.filter(|_| transport.is_some() && !is_later_fragment).and_then(|ports: &[u8; 4]| {
        let addresses: [u8; 8] = *header[12..].first_chunk()?;
        Some(packets::ipv4(u64::from_ne_bytes(addresses), u32::from_ne_bytes(*ports)))
    });
    Some((transport, ends))
}

/// The same for an IPv6 packet.
fn ipv6(ip: &[u8], bytes: u32) -> Option<(Option<Transport>, Option<Ends>)> {
    let fixed = ip.get(..8)?;
    let payload = u16::from_be_bytes([fixed[4], fixed[5]]);
    if fixed[0] >> 4 != 6 || (payload != 0 && u32::from(payload) + u32::from(IPV6_HEADER) != bytes) {
        return None;
    }
    let payload_bytes = ip.get(usize::from(IPV6_HEADER)..).unwrap_or_default();
    if fixed[6] == FRAGMENT_HEADER {
        return Some((transport(*payload_bytes.first()?), None));
    }
    let transport = transport(fixed[6]);
    let ends = payload_bytes.first_chunk().filter(|_| transport.is_some()).and_then(|ports: &[u8; 4]| {
        let address = |at: usize| Some(std::net::Ipv6Addr::from(*ip.get(at..)?.first_chunk::<16>()?));
        let (from, to) = split_ports(u32::from_ne_bytes(*ports));
        Some((Endpoint::new(address(8)?, from), Endpoint::new(address(24)?, to)))
    });
    Some((transport, ends))
}

fn transport(protocol: u8) -> Option<Transport> {
    match protocol {
        IPPROTO_TCP => Some(Transport::Tcp),
        IPPROTO_UDP => Some(Transport::Udp),
        _ => None,
    }
}

const _: () = assert!(WORDS * 8 >= ETHERNET_HEADER + IPV6_HEADER as usize + 4);
