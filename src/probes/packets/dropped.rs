//! Outgoing packets that the host drops after they have been sampled.
//!
//! Firewalls, control groups, neighbours that do not answer, routes with a small MTU and queues have nothing in common
//! but the functions that free what they drop. These functions free many other packets as well. The probes' filters
//! leave out what has arrived, and most of what has no sending socket.
//!
//! Some drivers free what they have sent by the same functions. A packet that leaves its queue for the driver is told
//! from others by [`AtDevice`].

use socktrail_kprobes::{Array, Word, sample};

use super::freed::Freed;
use super::{IPPROTO_TCP, IPPROTO_UDP, IPV6_HEADER, split_ports};
use crate::event::{Dropped, Endpoint, EventKind, Transport};
use crate::probes::{AF_INET, AF_INET6, Decoded, IntoEvent};

/// How many words of 8 bytes are fetched from the beginning of the packet: enough for an Ethernet header, an IPv6
/// header and the ports.
const WORDS: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERNET_HEADER: usize = 14;
/// The shortest header of an IEEE 802.11 frame with data, with the 8 bytes of LLC and SNAP, which say what it carries.
const MIN_80211_WITH_SNAP: usize = 24 + 8;
const FRAGMENT_HEADER: u8 = 44;

/// Up to this value, `enum skb_drop_reason` gives no reason: not dropped, consumed, not specified. On older kernels 2 is a
/// reason that only arriving packets have.
const NO_REASON: u32 = 2;

/// Begin of a template for `sk_buff.cb`; the caller adds `}`. In front of `cb` are `next`, `prev`, `sk`, `dev` and a timestamp
/// of 8 bytes, in some order, since Linux 3.12.
macro_rules! control_block {
    () => {
        "+{word+word+word+word+8"
    };
}

sample! {
    /// `kfree_skb`: a packet is dropped.
    pub struct PacketDropped {
        /// The `struct sk_buff`. May be null. The other arguments then hold what an earlier sample left, so the filter
        /// discards it.
        pub skb: Word = "{skb}",
        /// The `struct sock` that sent it.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// `skc_family` of its socket, if it has one: see [`is_of_inet`].
        pub owner_family: Option<u16> = "+{sock_common.skc_family}(+{sk_buff.sk}({skb}))",
        /// Its protocol and where its headers begin: see [`HeaderOffsets`].
        pub places: u64 = "+{sk_buff.headers-2}({skb})",
        /// The return address.
        pub caller: Word = "$caller",
        /// See [`PacketDroppedForReason::enqueued`]. Only for the filter.
        pub enqueued: Option<u32> = concat!(control_block!(), "+8}({skb})"),
        /// `sk_buff.prev`: see [`AtDevice`].
        pub prev: Word = "+{word}({skb})",
        /// Where its memory begins: `sk_buff.head`, which lies before `data`.
        pub head: Word = "+{sk_buff.data-word}({skb})",
        /// Where it begins.
        pub data: Word = "+{sk_buff.data}({skb})",
        /// The whole packet, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// `sk_buff.mac_len`, which lies behind `len` and `data_len`: see [`AtDevice`].
        pub mac_len: u16 = "+{sk_buff.len+8}({skb})",
        /// The byte with `sk_buff.cloned` in its lowest bit, after `mac_len`, `hdr_len` and `queue_mapping`. Only for the
        /// filter.
        pub cloned: Option<u8> = "+{sk_buff.len+14}({skb})",
        /// `qdisc_skb_cb.pkt_len`, the first of `sk_buff.cb`: see [`AtDevice`].
        pub pkt_len: u32 = concat!(control_block!(), "}({skb})"),
        /// The packet's bytes, from its link header on, or from its IP header if it has no link header yet.
        pub begin: Array<u64, WORDS> = "+0(+{sk_buff.data}({skb}))",
    }

    /// `kfree_skb_reason` since Linux 5.17, `sk_skb_reason_drop` since 6.11: a packet is dropped.
    pub struct PacketDroppedForReason {
        /// See [`PacketDropped::skb`].
        pub skb: Word = "{skb}",
        /// The `struct sock` that sent it.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// `skc_family` of its socket, if it has one: see [`is_of_inet`].
        pub owner_family: Option<u16> = "+{sock_common.skc_family}(+{sk_buff.sk}({skb}))",
        /// See [`PacketDropped::places`].
        pub places: u64 = "+{sk_buff.headers-2}({skb})",
        /// `enum skb_drop_reason`.
        pub reason: u32 = "{reason}",
        /// See [`PacketDropped::caller`].
        pub caller: Word = "$caller",
        /// When it came into the queue (`codel_skb_cb.enqueue_time`, in `qdisc_skb_cb.data`): not 0 if that was one that
        /// looks at how long packets wait.
        pub enqueued: u32 = concat!(control_block!(), "+8}({skb})"),
        /// See [`PacketDropped::prev`].
        pub prev: Word = "+{word}({skb})",
        /// See [`PacketDropped::head`].
        pub head: Word = "+{sk_buff.data-word}({skb})",
        /// Where it begins.
        pub data: Word = "+{sk_buff.data}({skb})",
        /// The whole packet, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// See [`PacketDropped::mac_len`].
        pub mac_len: u16 = "+{sk_buff.len+8}({skb})",
        /// See [`PacketDropped::cloned`].
        pub cloned: Option<u8> = "+{sk_buff.len+14}({skb})",
        /// See [`PacketDropped::pkt_len`].
        pub pkt_len: u32 = concat!(control_block!(), "}({skb})"),
        /// See [`PacketDropped::begin`].
        pub begin: Array<u64, WORDS> = "+0(+{sk_buff.data}({skb}))",
    }

    /// Used instead of [`PacketDropped`] where the return address cannot be read, before Linux 3.18, and for older recordings.
    pub struct PacketFreed {
        /// The `struct sk_buff`. May be null. The other arguments then hold what an earlier sample left, so the filter
        /// discards it.
        pub skb: Word = "{skb}",
        /// The `struct sock` that sent it.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// Its protocol and where its headers begin: see [`HeaderOffsets`].
        pub places: u64 = "+{sk_buff.headers-2}({skb})",
        /// The whole packet, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// The packet's bytes, from its link header on, or from its IP header if it has no link header yet.
        pub begin: Array<u64, WORDS> = "+0(+{sk_buff.data}({skb}))",
    }

    /// What [`PacketDroppedForReason`] is in older recordings.
    pub struct PacketFreedForReason {
        /// See [`PacketFreed::skb`].
        pub skb: Word = "{skb}",
        /// The `struct sock` that sent it.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// See [`PacketFreed::places`].
        pub places: u64 = "+{sk_buff.headers-2}({skb})",
        /// `enum skb_drop_reason`.
        pub reason: u32 = "{reason}",
        /// Where its memory begins: `sk_buff.head`, which lies before `data`.
        pub head: Word = "+{sk_buff.data-word}({skb})",
        /// Where it begins.
        pub data: Word = "+{sk_buff.data}({skb})",
        /// The whole packet, in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// See [`PacketFreed::begin`].
        pub begin: Array<u64, WORDS> = "+0(+{sk_buff.data}({skb}))",
    }

    /// `kfree_skb_list_reason`, `kfree_skb_list` before Linux 5.19: a queue drops a list of packets, most often just
    /// one.
    pub struct PacketsFreed {
        /// Where the function begins.
        pub __probe_ip: Word,
        /// The first packet: see [`PacketFreed::skb`].
        pub skb: Word = "{segs}",
        /// The next packet in the list, null if there is none.
        pub next: Word = "+0({segs})",
        /// The `struct sock` that sent the first.
        pub sk: Word = "+{sk_buff.sk}({segs})",
        /// `skc_family` of its socket, if it has one: see [`is_of_inet`].
        pub owner_family: Option<u16> = "+{sock_common.skc_family}(+{sk_buff.sk}({segs}))",
        /// See [`PacketFreed::places`].
        pub places: u64 = "+{sk_buff.headers-2}({segs})",
        /// Where its memory begins: `sk_buff.head`, which lies before `data`.
        pub head: Word = "+{sk_buff.data-word}({segs})",
        /// Where it begins.
        pub data: Word = "+{sk_buff.data}({segs})",
        /// The whole packet, in bytes.
        pub len: u32 = "+{sk_buff.len}({segs})",
        /// See [`PacketDropped::mac_len`]. Only for the filter.
        pub mac_len: Option<u16> = "+{sk_buff.len+8}({segs})",
        /// See [`PacketDropped::cloned`].
        pub cloned: Option<u8> = "+{sk_buff.len+14}({segs})",
        /// See [`PacketFreed::begin`].
        pub begin: Array<u64, WORDS> = "+0(+{sk_buff.data}({segs}))",
    }
}

impl IntoEvent for PacketDropped {
    fn event(&self, raw: &[u8]) -> Decoded {
        let Self { skb, sk, owner_family, places, caller, prev, head, data, len, mac_len, pkt_len, begin, .. } = *self;
        if !is_of_inet(sk, owner_family) {
            return Decoded::Nothing;
        }
        let buffer = Buffer { sk, places: HeaderOffsets::of(places), len, begin: begin.bytes(raw) };
        if !buffer.places.is_at_device() {
            return buffer.event(false);
        }
        let at_device = AtDevice { skb, prev, mac_len, pkt_len, len };
        if !buffer.places.is_leaving(head, data) || buffer.places.has_80211_header() || at_device.was_sent() {
            return Decoded::Nothing;
        }
        buffer.event_at_device(caller)
    }
}

impl IntoEvent for PacketDroppedForReason {
    fn event(&self, raw: &[u8]) -> Decoded {
        let Self {
            skb, sk, owner_family, places, reason, caller, prev, head, data, len, mac_len, pkt_len, begin, ..
        } = *self;
        if !is_of_inet(sk, owner_family) {
            return Decoded::Nothing;
        }
        let buffer = Buffer { sk, places: HeaderOffsets::of(places), len, begin: begin.bytes(raw) };
        if !buffer.places.is_at_device() {
            return buffer.event(false);
        }
        let at_device = AtDevice { skb, prev, mac_len, pkt_len, len };
        let is_dropped = if reason > NO_REASON {
            !at_device.was_handed_to_driver()
        } else {
            !buffer.places.has_80211_header() && !at_device.was_sent()
        };
        if !buffer.places.is_leaving(head, data) || !is_dropped {
            return Decoded::Nothing;
        }
        buffer.event_at_device(caller)
    }
}

impl IntoEvent for PacketFreed {
    fn event(&self, raw: &[u8]) -> Decoded {
        let Self { sk, places, len, begin, .. } = *self;
        Buffer { sk, places: HeaderOffsets::of(places), len, begin: begin.bytes(raw) }.event(false)
    }
}

impl IntoEvent for PacketFreedForReason {
    fn event(&self, raw: &[u8]) -> Decoded {
        let Self { sk, places, len, begin, head, data, .. } = *self;
        let places = HeaderOffsets::of(places);
        let is_leaving = places.link_header() > 0 && places.is_leaving(head, data);
        if places.mac != u16::MAX && !is_leaving {
            return Decoded::Nothing;
        }
        Buffer { sk, places, len, begin: begin.bytes(raw) }.event(false)
    }
}

impl IntoEvent for PacketsFreed {
    fn event(&self, raw: &[u8]) -> Decoded {
        let Self { __probe_ip, sk, owner_family, places, len, begin, next, head, data, .. } = *self;
        let places = HeaderOffsets::of(places);
        if !is_of_inet(sk, owner_family) || !places.is_leaving(head, data) {
            return Decoded::Nothing;
        }
        match (Buffer { sk, places, len, begin: begin.bytes(raw) }).event(next != 0) {
            Decoded::Event(EventKind::Dropped(dropped)) => Decoded::Freed(dropped, Freed::ByList(__probe_ip)),
            other => other,
        }
    }
}

/// Whether its socket, if it has one, is no packet socket: a capture (`AF_PACKET`) owns the copies of sent packets that it has
/// not read, and frees them when it ends. Without a socket there is no family to read, and the field holds what an earlier
/// sample left.
fn is_of_inet(sk: u64, owner_family: Option<u16>) -> bool {
    sk == 0 || owner_family.is_none_or(|family| matches!(family, 0 | AF_INET | AF_INET6))
}

/// What tells a packet that is dropped at a device from one that its driver has sent and now frees.
///
/// When a packet leaves its queue, the kernel makes it point to itself (`validate_xmit_skb_list`); until then it points to
/// nothing, or to its neighbour in a tree (`netem`, `fq`). If it is cut into segments then, only the first of them points to
/// something. But these have the length of
/// their link header (`skb_segment`), which a packet in one piece does not have, and the size of the whole packet in
/// their control block. A queue that cuts packets itself (`cake`, `tbf`) notes each segment's own size.
struct AtDevice {
    skb: u64,
    prev: u64,
    mac_len: u16,
    pkt_len: u32,
    len: u32,
}

impl AtDevice {
    /// Whether its queue has handed it to the driver in one piece.
    fn was_handed_to_driver(&self) -> bool {
        self.prev == self.skb
    }

    fn was_sent(&self) -> bool {
        let is_segment = self.mac_len != 0;
        self.was_handed_to_driver() || (is_segment && self.pkt_len != self.len)
    }
}

/// `sk_buff.protocol`, `transport_header`, `network_header` and `mac_header`, four numbers of 2 bytes next to each other.
#[derive(Clone, Copy)]
struct HeaderOffsets {
    /// The Ethernet type, in host byte order; 0 for an outgoing packet that has not come to IP yet.
    protocol: u16,
    network: u16,
    mac: u16,
}

impl HeaderOffsets {
    /// From the 8 bytes as they lie in memory.
    fn of(memory: u64) -> Self {
        let [a, b, _, _, e, f, g, h] = memory.to_ne_bytes();
        Self {
            protocol: u16::from_be_bytes([a, b]),
            network: u16::from_ne_bytes([e, f]),
            mac: u16::from_ne_bytes([g, h]),
        }
    }

    fn is_at_device(&self) -> bool {
        self.mac != u16::MAX
    }

    /// Whether the link header is so long that a wireless driver must have converted the packet to IEEE 802.11: such drivers
    /// queue packets themselves, and free sent ones without a drop reason.
    fn has_80211_header(&self) -> bool {
        self.link_header() >= MIN_80211_WITH_SNAP
    }

    /// Whether a packet that has come to a device is on its way out: it begins with its link header. What arrives begins
    /// behind it, and its payload must not be parsed. If there is no link header, both begin with the IP header.
    fn is_leaving(&self, head: u64, data: u64) -> bool {
        data.wrapping_sub(head) == u64::from(self.mac)
    }

    /// How many bytes of link header there are before the IP header: none until the packet has come to a device.
    fn link_header(&self) -> usize {
        if self.mac == u16::MAX { 0 } else { self.network.wrapping_sub(self.mac).into() }
    }
}

/// A packet that is freed.
struct Buffer<'a> {
    sk: u64,
    places: HeaderOffsets,
    len: u32,
    begin: &'a [u8],
}

impl Buffer<'_> {
    /// The event of one that is dropped at a device, by what the function returns to.
    fn event_at_device(&self, caller: u64) -> Decoded {
        let may_have_arrived = self.places.link_header() == 0;
        match self.event(false) {
            Decoded::Event(EventKind::Dropped(dropped)) => {
                Decoded::Freed(Dropped { may_have_arrived, ..dropped }, Freed::CalledFrom(caller))
            }
            other => other,
        }
    }

    fn event(&self, with_others: bool) -> Decoded {
        let link = self.places.link_header();
        let nothing = Dropped {
            sock: self.sk,
            transport: None,
            other_protocol: false,
            ends: None,
            bytes: 0,
            with_others,
            may_have_arrived: false,
        };
        if self.places.protocol == 0 {
            // It never came to IP, so there is no IP header.
            return Decoded::Event(EventKind::Dropped(nothing));
        }
        let Some(ip) = self.begin.get(link..).filter(|_| self.is_of_protocol(link)) else { return Decoded::Nothing };
        let bytes = self.len.saturating_sub(u32::try_from(link).unwrap_or(u32::MAX));
        let found = match self.places.protocol {
            ETHERTYPE_IPV4 => ipv4(ip, bytes),
            ETHERTYPE_IPV6 => ipv6(ip, bytes),
            _ => None,
        };
        let Some((transport, ends)) = found else { return Decoded::Nothing };
        let other_protocol = transport.is_none();
        Decoded::Event(EventKind::Dropped(Dropped { transport, other_protocol, ends, bytes, ..nothing }))
    }

    /// Whether an Ethernet header, if there is one, was fetched and has the Ethernet type that the kernel has.
    fn is_of_protocol(&self, link: usize) -> bool {
        let kind = self.begin.get(ETHERNET_HEADER - 2..).and_then(<[u8]>::first_chunk);
        link != ETHERNET_HEADER || kind.is_some_and(|kind| u16::from_be_bytes(*kind) == self.places.protocol)
    }
}

/// Source and destination.
type Ends = (Endpoint, Endpoint);

/// Transport and ends of an IPv4 packet. Ends are missing in later fragments, if options move the ports beyond the
/// fetched bytes, and if the packet is neither TCP nor UDP.
fn ipv4(ip: &[u8], bytes: u32) -> Option<(Option<Transport>, Option<Ends>)> {
    let header: &[u8; 20] = ip.first_chunk()?;
    let total = u16::from_be_bytes([header[2], header[3]]);
    // A packet too large for this field (BIG TCP) has 0 here.
    if header[0] >> 4 != 4 || (total != 0 && u32::from(total) != bytes) {
        return None;
    }
    let is_later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    let ports = ip.get(usize::from(header[0] & 0x0f) * 4..).and_then(<[u8]>::first_chunk);
    let transport = transport(header[9]);
    let ends = ports.filter(|_| transport.is_some() && !is_later_fragment).and_then(|ports: &[u8; 4]| {
        let addresses: [u8; 8] = *header[12..].first_chunk()?;
        Some(super::ipv4(u64::from_ne_bytes(addresses), u32::from_ne_bytes(*ports)))
    });
    Some((transport, ends))
}

/// The same for IPv6.
fn ipv6(ip: &[u8], bytes: u32) -> Option<(Option<Transport>, Option<Ends>)> {
    let fixed = ip.get(..8)?;
    let payload = u16::from_be_bytes([fixed[4], fixed[5]]);
    if fixed[0] >> 4 != 6 || (payload != 0 && u32::from(payload) + u32::from(IPV6_HEADER) != bytes) {
        return None;
    }
    let behind = ip.get(usize::from(IPV6_HEADER)..).unwrap_or_default();
    if fixed[6] == FRAGMENT_HEADER {
        return Some((transport(*behind.first()?), None));
    }
    let transport = transport(fixed[6]);
    let ends = behind.first_chunk().filter(|_| transport.is_some()).and_then(|ports: &[u8; 4]| {
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

#[cfg(test)]
mod tests {
    use super::*;

    const IPV4: [u16; 3] = [ETHERTYPE_IPV4, 78, u16::MAX];

    /// The offsets as they lie in memory: the Ethernet type, a transport header that does not matter, and where the IP
    /// and the link header begin.
    fn places([protocol, network, mac]: [u16; 3]) -> HeaderOffsets {
        let mut memory = [0; 8];
        memory[..2].copy_from_slice(&protocol.to_be_bytes());
        memory[4..6].copy_from_slice(&network.to_ne_bytes());
        memory[6..].copy_from_slice(&mac.to_ne_bytes());
        HeaderOffsets::of(u64::from_ne_bytes(memory))
    }

    fn decoded(of: [u16; 3], len: u32, begin: &[u8]) -> Option<Dropped> {
        match (Buffer { sk: 7, places: places(of), len, begin }).event(false) {
            Decoded::Event(EventKind::Dropped(dropped)) => Some(dropped),
            _ => None,
        }
    }

    /// A datagram of 100 bytes from 192.0.2.1:1 to 192.0.2.2:2.
    fn datagram() -> Vec<u8> {
        let header = [0x45, 0, 0, 100, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2, 0, 80, 0, 0];
        let mut packet = header.to_vec();
        packet.resize(WORDS * 8, 0);
        packet
    }

    fn ends() -> (Endpoint, Endpoint) {
        (Endpoint::new([192, 0, 2, 1], 1), Endpoint::new([192, 0, 2, 2], 2))
    }

    #[test]
    fn a_packet_is_known_by_its_headers_before_and_behind_a_device() {
        let transport = Some(Transport::Udp);
        let ends = Some(ends());
        let wanted = Dropped {
            sock: 7,
            transport,
            other_protocol: false,
            ends,
            bytes: 100,
            with_others: false,
            may_have_arrived: false,
        };
        assert_eq!(decoded(IPV4, 100, &datagram()), Some(wanted));
        let mut frame = vec![2; 12];
        frame.extend([8, 0]);
        frame.extend(datagram());
        frame.truncate(WORDS * 8);
        assert_eq!(decoded([ETHERTYPE_IPV4, 78, 64], 114, &frame), Some(wanted));
        frame[12] = 0x86;
        assert_eq!(decoded([ETHERTYPE_IPV4, 78, 64], 114, &frame), None, "another Ethernet type");
    }

    /// What tells packets apart is what the kernel makes of them on their way through queue and driver.
    #[test]
    fn what_a_queue_has_handed_to_its_driver_was_sent() {
        let in_one_piece = AtDevice { skb: 1, prev: 0, mac_len: 0, pkt_len: 114, len: 114 };
        assert!(!in_one_piece.was_sent(), "in its queue, or on the way into it");
        assert!(!AtDevice { prev: 2, ..in_one_piece }.was_sent(), "in a queue that is a tree");
        assert!(AtDevice { prev: 1, ..in_one_piece }.was_sent());
        let cut_by_a_queue = AtDevice { mac_len: 14, ..in_one_piece };
        assert!(!cut_by_a_queue.was_sent() && !AtDevice { prev: 2, ..cut_by_a_queue }.was_sent(), "the first of two");
        assert!(AtDevice { prev: 1, ..cut_by_a_queue }.was_sent());
        let cut_for_the_driver = AtDevice { pkt_len: 200, ..cut_by_a_queue };
        assert!(cut_for_the_driver.was_sent() && AtDevice { prev: 2, ..cut_for_the_driver }.was_sent());
    }

    #[test]
    fn without_a_link_header_what_is_dropped_may_have_arrived() {
        let without = Buffer { sk: 7, places: places([ETHERTYPE_IPV4, 64, 64]), len: 100, begin: &datagram() };
        let told = match without.event_at_device(1) {
            Decoded::Freed(dropped, Freed::CalledFrom(1)) => dropped,
            other => panic!("{other:?}"),
        };
        assert_eq!((told.ends, told.may_have_arrived), (Some(ends()), true));
        let places = places([ETHERTYPE_IPV4, 78, 64]);
        assert!(places.is_leaving(1000, 1064) && !places.is_leaving(1000, 1078), "behind its link header");
        assert!(!places.has_80211_header());
        assert!(!HeaderOffsets { mac: 54, ..places }.has_80211_header(), "InfiniBand");
        assert!(HeaderOffsets { mac: 44, ..places }.has_80211_header(), "IEEE 802.11");
    }

    #[test]
    fn copies_that_a_capture_has_not_read_are_not_dropped() {
        const AF_PACKET: u16 = 17;
        for family in [Some(0), Some(AF_INET), Some(AF_INET6), None] {
            assert!(is_of_inet(7, family), "{family:?}");
        }
        assert!(!is_of_inet(7, Some(AF_PACKET)));
        assert!(is_of_inet(0, Some(AF_PACKET)), "left by another sample");
    }

    #[test]
    fn what_is_no_such_packet_is_nothing() {
        assert_eq!(decoded(IPV4, 101, &datagram()), None, "of another length");
        assert_eq!(decoded([ETHERTYPE_IPV6, 78, u16::MAX], 100, &datagram()), None, "of another version");
        assert_eq!(decoded([0x0806, 78, u16::MAX], 100, &datagram()), None, "ARP");
        assert_eq!(
            decoded([ETHERTYPE_IPV4, 78, 100], 100, &datagram()),
            None,
            "a link header that ends before it begins"
        );
        assert_eq!(decoded(IPV4, 100, &[]), None);
    }

    #[test]
    fn what_never_came_to_ip_has_no_headers() {
        let dropped = decoded([0, 0, u16::MAX], 100, &datagram()).unwrap();
        assert_eq!((dropped.sock, dropped.transport, dropped.ends), (7, None, None));
    }

    #[test]
    fn what_ipsec_has_encapsulated_has_neither_transport_nor_ends() {
        let esp = [&datagram()[..9], &[50], &datagram()[10..]].concat();
        let dropped = decoded(IPV4, 100, &esp).unwrap();
        assert_eq!((dropped.other_protocol, dropped.transport, dropped.ends), (true, None, None));
    }

    #[test]
    fn later_fragments_have_no_ends() {
        let mut fragment = datagram();
        fragment[7] = 185;
        let dropped = decoded(IPV4, 100, &fragment).unwrap();
        assert_eq!((dropped.transport, dropped.ends, dropped.bytes), (Some(Transport::Udp), None, 100));
    }

    #[test]
    fn ipv6_is_read_as_far_as_it_is_there() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 60, 6, 64];
        let (here, there): (std::net::Ipv6Addr, std::net::Ipv6Addr) =
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        packet.extend([here, there].map(|address| address.octets()).concat());
        packet.extend([0, 1, 0, 2, 0, 0, 0, 0]);
        let of = [ETHERTYPE_IPV6, 78, u16::MAX];
        let dropped = decoded(of, 100, &packet).unwrap();
        assert_eq!(dropped.ends, Some((Endpoint::new(here, 1), Endpoint::new(there, 2))));
        let cut_short = decoded(of, 100, &packet[..42]).unwrap();
        assert_eq!((cut_short.transport, cut_short.ends), (Some(Transport::Tcp), None));
    }
}
