//! Samples of outgoing packets that the host drops after it has counted them as sent.
//!
//! Firewalls, control groups, unresolved neighbours, routes with a small MTU and queues share only the functions that free the
//! packets they drop. These functions also free many other packets. The probes' filters exclude incoming packets, and most
//! packets without a sending socket.
//!
//! Some drivers free sent packets with the same functions. [`AtDevice`] tells them from dropped ones.

mod buffer;

use socktrail_kprobes::{Array, Word, sample};

use self::buffer::{AtDevice, Buffer, HeaderOffsets, ethertype, is_of_inet};
use crate::source::kprobes::{Decoded, Interpret};

/// How many words of 8 bytes are fetched from the beginning of a packet: enough for an Ethernet header, an IPv6
/// header and the ports.
const WORDS: usize = 8;

/// Up to this value, `enum skb_drop_reason` means no reason: not dropped, consumed, not specified. On older kernels, 2 is a
/// reason that only incoming packets have.
const NO_REASON: u32 = 2;

/// The beginning of a template for `sk_buff.cb`; the caller adds `}`. Since Linux 3.12, `cb` follows `next`, `prev`, `sk`, `dev`
/// and a timestamp of 8 bytes, in any order.
macro_rules! control_block {
    () => {
        "+{word+word+word+word+8"
    };
}

sample! {
    /// `kfree_skb`: a packet is dropped.
    pub struct PacketDropped {
        /// The address of the `struct sk_buff`. The filter discards null, because the other fields then hold values of an earlier
        /// sample.
        pub skb: Word = "{skb}",
        /// The `struct sock` that sent it.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// `skc_family` of its socket, if it has one: see [`is_of_inet`].
        pub owner_family: Option<u16> = "+{sock_common.skc_family}(+{sk_buff.sk}({skb}))",
        /// `sk_buff.protocol` and the offsets of the headers: see [`HeaderOffsets`].
        pub places: u64 = "+{sk_buff.headers-2}({skb})",
        /// The return address.
        pub caller: Word = "$caller",
        /// See [`PacketDroppedForReason::enqueued`]. Older recordings do not have it.
        pub enqueued: Option<u32> = concat!(control_block!(), "+8}({skb})"),
        /// `sk_buff.prev`: see [`AtDevice`].
        pub prev: Word = "+{word}({skb})",
        /// `sk_buff.head`, the beginning of the packet's memory. It precedes `data` in the structure.
        pub head: Word = "+{sk_buff.data-word}({skb})",
        /// `sk_buff.data`, the beginning of the packet.
        pub data: Word = "+{sk_buff.data}({skb})",
        /// The size of the whole packet in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// `sk_buff.mac_len`, which follows `len` and `data_len`: see [`AtDevice`].
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
        /// When it was queued (`codel_skb_cb.enqueue_time`, in `qdisc_skb_cb.data`): not 0 if the queue limits how long packets
        /// wait.
        pub enqueued: u32 = concat!(control_block!(), "+8}({skb})"),
        /// See [`PacketDropped::prev`].
        pub prev: Word = "+{word}({skb})",
        /// See [`PacketDropped::head`].
        pub head: Word = "+{sk_buff.data-word}({skb})",
        /// `sk_buff.data`, the beginning of the packet.
        pub data: Word = "+{sk_buff.data}({skb})",
        /// The size of the whole packet in bytes.
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

    /// `kfree_skb`, `kfree_skb_reason`: a packet is dropped before it comes to a device. Used if the probes with
    /// [`PacketDropped`] or [`PacketDroppedForReason`] are refused, as on Linux 3.18, where filters have no `!`, and for older
    /// recordings.
    pub struct PacketFreed {
        /// The address of the `struct sk_buff`. The filter discards null, because the other fields then hold values of an earlier
        /// sample.
        pub skb: Word = "{skb}",
        /// The `struct sock` that sent it.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// `sk_buff.protocol` and the offsets of the headers: see [`HeaderOffsets`].
        pub places: u64 = "+{sk_buff.headers-2}({skb})",
        /// The size of the whole packet in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// The packet's bytes, from its link header on, or from its IP header if it has no link header yet.
        pub begin: Array<u64, WORDS> = "+0(+{sk_buff.data}({skb}))",
    }

    /// `kfree_skb` before Linux 3.18, where `sk_buff.protocol` and the offsets of the headers are not adjacent.
    pub struct EarlyPacketFreed {
        /// See [`PacketFreed::skb`].
        pub skb: Word = "{skb}",
        /// The `struct sock` that sent it.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// `sk_buff.protocol`, which follows `len`: see [`HeaderOffsets::early`].
        pub protocol: u16 = "+{sk_buff.len+22}({skb})",
        /// `sk_buff.network_header`.
        pub network: u16 = "+{sk_buff.headers+2}({skb})",
        /// `sk_buff.mac_header`.
        pub mac: u16 = "+{sk_buff.headers+4}({skb})",
        /// `sk_buff._skb_refdst`, its route, which follows `cb`; null until it has one.
        pub route: Word = concat!(control_block!(), "+48}({skb})"),
        /// `sk_buff.head`, the beginning of the packet's memory. It precedes `data` in the structure.
        pub head: Word = "+{sk_buff.data-word}({skb})",
        /// `sk_buff.data`, the beginning of the packet.
        pub data: Word = "+{sk_buff.data}({skb})",
        /// The size of the whole packet in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// See [`PacketFreed::begin`].
        pub begin: Array<u64, WORDS> = "+0(+{sk_buff.data}({skb}))",
    }

    /// The form of [`PacketDroppedForReason`] in older recordings, or if the probes with that are refused.
    pub struct PacketFreedForReason {
        /// See [`PacketFreed::skb`].
        pub skb: Word = "{skb}",
        /// The `struct sock` that sent it.
        pub sk: Word = "+{sk_buff.sk}({skb})",
        /// See [`PacketFreed::places`].
        pub places: u64 = "+{sk_buff.headers-2}({skb})",
        /// `enum skb_drop_reason`.
        pub reason: u32 = "{reason}",
        /// `sk_buff.head`, the beginning of the packet's memory. It precedes `data` in the structure.
        pub head: Word = "+{sk_buff.data-word}({skb})",
        /// `sk_buff.data`, the beginning of the packet.
        pub data: Word = "+{sk_buff.data}({skb})",
        /// The size of the whole packet in bytes.
        pub len: u32 = "+{sk_buff.len}({skb})",
        /// See [`PacketFreed::begin`].
        pub begin: Array<u64, WORDS> = "+0(+{sk_buff.data}({skb}))",
    }

    /// `kfree_skb_list_reason`, `kfree_skb_list` before Linux 5.18: a queue drops a list of packets, most often just
    /// one.
    pub struct PacketsFreed {
        /// The address of the probed function.
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
        /// `sk_buff.head`, the beginning of the packet's memory. It precedes `data` in the structure.
        pub head: Word = "+{sk_buff.data-word}({segs})",
        /// `sk_buff.data`, the beginning of the packet.
        pub data: Word = "+{sk_buff.data}({segs})",
        /// The size of the whole packet in bytes.
        pub len: u32 = "+{sk_buff.len}({segs})",
        /// See [`PacketDropped::mac_len`]. Only for the filter.
        pub mac_len: Option<u16> = "+{sk_buff.len+8}({segs})",
        /// See [`PacketDropped::cloned`].
        pub cloned: Option<u8> = "+{sk_buff.len+14}({segs})",
        /// See [`PacketFreed::begin`].
        pub begin: Array<u64, WORDS> = "+0(+{sk_buff.data}({segs}))",
    }

    /// `kfree_skb_list` before Linux 3.18: see [`EarlyPacketFreed`].
    pub struct EarlyPacketsFreed {
        /// The address of the probed function.
        pub __probe_ip: Word,
        /// The first packet: see [`PacketFreed::skb`].
        pub skb: Word = "{segs}",
        /// The next packet in the list, null if there is none.
        pub next: Word = "+0({segs})",
        /// The `struct sock` that sent the first.
        pub sk: Word = "+{sk_buff.sk}({segs})",
        /// `skc_family` of its socket, if it has one: see [`is_of_inet`].
        pub owner_family: Option<u16> = "+{sock_common.skc_family}(+{sk_buff.sk}({segs}))",
        /// See [`EarlyPacketFreed::protocol`].
        pub protocol: u16 = "+{sk_buff.len+22}({segs})",
        /// See [`EarlyPacketFreed::network`].
        pub network: u16 = "+{sk_buff.headers+2}({segs})",
        /// See [`EarlyPacketFreed::mac`].
        pub mac: u16 = "+{sk_buff.headers+4}({segs})",
        /// `sk_buff.head`, the beginning of the packet's memory. It precedes `data` in the structure.
        pub head: Word = "+{sk_buff.data-word}({segs})",
        /// `sk_buff.data`, the beginning of the packet.
        pub data: Word = "+{sk_buff.data}({segs})",
        /// The size of the whole packet in bytes.
        pub len: u32 = "+{sk_buff.len}({segs})",
        /// See [`PacketFreed::begin`].
        pub begin: Array<u64, WORDS> = "+0(+{sk_buff.data}({segs}))",
    }
}

impl Interpret for PacketDropped {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let Self {
            skb,
            sk,
            owner_family,
            places,
            caller,
            enqueued,
            prev,
            head,
            data,
            len,
            mac_len,
            pkt_len,
            begin,
            ..
        } = *self;
        if !is_of_inet(sk, owner_family) {
            return Decoded::Nothing;
        }
        let buffer = Buffer { sk, headers: HeaderOffsets::of(places), len, begin: begin.bytes(raw) };
        if !buffer.headers.is_at_device() {
            return buffer.event(false);
        }
        let at_device = AtDevice { skb, prev, mac_len, pkt_len, len };
        if !buffer.headers.is_leaving(head, data) || buffer.headers.has_80211_header() || at_device.was_sent() {
            return Decoded::Nothing;
        }
        buffer.event_at_device(caller, enqueued.unwrap_or_default() == 0)
    }
}

impl Interpret for PacketDroppedForReason {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let Self {
            skb,
            sk,
            owner_family,
            places,
            reason,
            caller,
            enqueued,
            prev,
            head,
            data,
            len,
            mac_len,
            pkt_len,
            begin,
            ..
        } = *self;
        if !is_of_inet(sk, owner_family) {
            return Decoded::Nothing;
        }
        let buffer = Buffer { sk, headers: HeaderOffsets::of(places), len, begin: begin.bytes(raw) };
        if !buffer.headers.is_at_device() {
            return buffer.event(false);
        }
        let at_device = AtDevice { skb, prev, mac_len, pkt_len, len };
        let is_dropped = if reason > NO_REASON {
            !at_device.was_handed_to_driver()
        } else {
            !buffer.headers.has_80211_header() && !at_device.was_sent()
        };
        if !buffer.headers.is_leaving(head, data) || !is_dropped {
            return Decoded::Nothing;
        }
        buffer.event_at_device(caller, reason <= NO_REASON && enqueued == 0)
    }
}

impl Interpret for PacketFreed {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let Self { sk, places, len, begin, .. } = *self;
        Buffer { sk, headers: HeaderOffsets::of(places), len, begin: begin.bytes(raw) }.event(false)
    }
}

impl Interpret for EarlyPacketFreed {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let Self { sk, protocol, network, mac, route, head, data, len, begin, .. } = *self;
        let mut headers = HeaderOffsets::early(protocol, network, mac);
        let begin = begin.bytes(raw);
        // Only packets that have reached IP have a route and begin with a network header.
        if headers.protocol == 0 && route != 0 && data.wrapping_sub(head) == u64::from(network) {
            headers.protocol = ethertype(begin);
        }
        Buffer { sk, headers, len, begin }.event(false)
    }
}

impl Interpret for PacketFreedForReason {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let Self { sk, places, len, begin, head, data, .. } = *self;
        let headers = HeaderOffsets::of(places);
        let is_leaving = headers.link_header() > 0 && headers.is_leaving(head, data);
        if headers.mac != u16::MAX && !is_leaving {
            return Decoded::Nothing;
        }
        Buffer { sk, headers, len, begin: begin.bytes(raw) }.event(false)
    }
}

impl Interpret for PacketsFreed {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let Self { __probe_ip, sk, owner_family, places, len, begin, next, head, data, .. } = *self;
        let headers = HeaderOffsets::of(places);
        if !is_of_inet(sk, owner_family) || !headers.is_leaving(head, data) {
            return Decoded::Nothing;
        }
        Buffer { sk, headers, len, begin: begin.bytes(raw) }.event_in_list(next, __probe_ip)
    }
}

impl Interpret for EarlyPacketsFreed {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let Self { __probe_ip, sk, owner_family, protocol, network, mac, len, begin, next, head, data, .. } = *self;
        let headers = HeaderOffsets::early(protocol, network, mac);
        if !is_of_inet(sk, owner_family) || !headers.is_leaving(head, data) {
            return Decoded::Nothing;
        }
        Buffer { sk, headers, len, begin: begin.bytes(raw) }.event_in_list(next, __probe_ip)
    }
}

#[cfg(test)]
mod tests;
