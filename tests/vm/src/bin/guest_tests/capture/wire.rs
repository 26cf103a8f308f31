//! From captured bytes to counts: what an interface carried, flow by flow, in wire packets.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::AddAssign;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use etherparse::{IpNumber, Ipv6ExtensionSlice, NetSlice, SlicedPacket, TransportSlice};

/// Which way a packet passes an interface, seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    Out,
    In,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// One direction of a conversation on one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) way: Way,
    pub(crate) transport: Transport,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// Wire packets and their bytes: IP header, transport header, payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// How an interface was to carry a packet that is larger than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segments {
    /// As it is.
    One,
    /// As several, with so many bytes of payload each.
    Of(u16),
}

/// What was seen on one interface.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    counts: HashMap<Key, Count>,
    /// When the packets came that are added next.
    pub(crate) time: Option<SystemTime>,
    /// The packets of each conversation, with their time, as far as that is known.
    timed: HashMap<Key, Vec<(SystemTime, Count)>>,
    /// The largest datagram of each, as it was captured.
    largest: HashMap<Key, u64>,
    /// Which conversations had fragments.
    in_fragments: HashSet<Key>,
    /// The datagrams whose first fragment was seen: the others have no ports.
    fragmented: HashMap<(Way, Datagram), Key>,
    /// Fragments that came before the first one.
    early: HashMap<(Way, Datagram), Count>,
}

/// What fragments of one datagram have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Datagram {
    from: IpAddr,
    to: IpAddr,
    id: u32,
}

/// The network layer of a packet.
struct Network {
    from: IpAddr,
    to: IpAddr,
    protocol: IpNumber,
    bytes: u64,
    headers: u64,
    /// The datagram's id, and whether this is its first piece.
    fragment: Option<(u32, bool)>,
}

impl Wire {
    /// Counts a packet, which begins with its IP header. What is neither TCP nor UDP is left out.
    pub(crate) fn add(&mut self, way: Way, packet: &[u8], segments: Segments) -> Result<()> {
        let sliced = SlicedPacket::from_ip(packet).context("parse a packet")?;
        let Some(network) = network(sliced.net.as_ref())? else { return Ok(()) };
        let transport = match network.protocol {
            IpNumber::TCP => Transport::Tcp,
            IpNumber::UDP => Transport::Udp,
            _ => return Ok(()),
        };
        let one = Count { packets: 1, bytes: network.bytes };
        let key = |from, to| Key {
            way,
            transport,
            from: SocketAddr::new(network.from, from),
            to: SocketAddr::new(network.to, to),
        };
        match (network.fragment, &sliced.transport) {
            (Some((id, is_first)), _) => {
                let ports = is_first.then(|| ports_of(sliced.net.as_ref())).flatten();
                let datagram = Datagram { from: network.from, to: network.to, id };
                self.fragment((way, datagram), ports.map(|(from, to)| key(from, to)), one);
            }
            (None, Some(TransportSlice::Tcp(tcp))) => {
                let headers = network.headers + tcp.header_len() as u64;
                let count = wire_packets(network.bytes, headers, segments);
                self.count(key(tcp.source_port(), tcp.destination_port()), count);
            }
            (None, Some(TransportSlice::Udp(udp))) => {
                let count = wire_packets(network.bytes, network.headers + 8, segments);
                let key = key(udp.source_port(), udp.destination_port());
                let largest = self.largest.entry(key).or_default();
                *largest = network.bytes.max(*largest);
                self.count(key, count);
            }
            (None, other) => bail!("no transport header, but {other:?}"),
        }
        Ok(())
    }

    /// Every conversation with outgoing packets.
    pub(crate) fn sent(&self) -> impl Iterator<Item = Key> {
        self.counts.keys().copied().filter(|key| key.way == Way::Out)
    }

    /// What was seen of one direction.
    pub(crate) fn of(&self, key: Key) -> Count {
        self.counts.get(&key).copied().unwrap_or_default()
    }

    /// The largest unfragmented datagram of one direction, in bytes; 0 for none.
    pub(crate) fn largest(&self, key: Key) -> u64 {
        self.largest.get(&key).copied().unwrap_or_default()
    }

    /// Whether fragments of one direction were seen.
    pub(crate) fn had_fragments(&self, key: Key) -> bool {
        self.in_fragments.contains(&key)
    }

    /// What was seen of one direction up to a time.
    pub(crate) fn until(&self, key: Key, time: SystemTime) -> Count {
        let mut sum = Count::default();
        let packets = self.timed.get(&key).into_iter().flatten();
        packets.filter(|(at, _)| *at <= time).for_each(|(_, count)| sum += *count);
        sum
    }

    fn count(&mut self, key: Key, count: Count) {
        *self.counts.entry(key).or_default() += count;
        if let Some(time) = self.time {
            self.timed.entry(key).or_default().push((time, count));
        }
    }

    fn fragment(&mut self, datagram: (Way, Datagram), first: Option<Key>, count: Count) {
        if let Some(key) = first {
            self.fragmented.insert(datagram, key);
            self.in_fragments.insert(key);
            if let Some(early) = self.early.remove(&datagram) {
                self.count(key, early);
            }
        }
        match self.fragmented.get(&datagram) {
            Some(&key) => self.count(key, count),
            None => *self.early.entry(datagram).or_default() += count,
        }
    }
}

fn network(net: Option<&NetSlice<'_>>) -> Result<Option<Network>> {
    Ok(match net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let fragment = (u32::from(header.identification()), header.fragments_offset().value() == 0);
            Some(Network {
                from: header.source_addr().into(),
                to: header.destination_addr().into(),
                protocol: header.protocol(),
                bytes: header.total_len().into(),
                headers: header.slice().len() as u64,
                fragment: header.is_fragmenting_payload().then_some(fragment),
            })
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let fragment = ip.extensions().clone().into_iter().find_map(|extension| match extension {
                Ipv6ExtensionSlice::Fragment(fragment) => {
                    Some((fragment.identification(), fragment.fragment_offset().value() == 0))
                }
                _ => None,
            });
            Some(Network {
                from: header.source_addr().into(),
                to: header.destination_addr().into(),
                protocol: ip.payload().ip_number,
                bytes: 40 + u64::from(header.payload_length()),
                headers: 40 + ip.extensions().slice().len() as u64,
                fragment,
            })
        }
        Some(other) => bail!("not IP: {other:?}"),
        None => None,
    })
}

/// The ports at the beginning of a first fragment's payload, which is not parsed any further.
fn ports_of(net: Option<&NetSlice<'_>>) -> Option<(u16, u16)> {
    let payload = match net? {
        NetSlice::Ipv4(ip) => ip.payload().payload,
        NetSlice::Ipv6(ip) => ip.payload().payload,
        NetSlice::Arp(_) => return None,
    };
    let [a, b, c, d, ..] = *payload else { return None };
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// How one captured packet would go over a wire: each segment repeats the headers.
fn wire_packets(bytes: u64, headers: u64, segments: Segments) -> Count {
    let payload = bytes.saturating_sub(headers);
    let packets = match segments {
        Segments::Of(size) if size > 0 => payload.div_ceil(size.into()).max(1),
        Segments::Of(_) | Segments::One => 1,
    };
    Count { packets, bytes: payload + packets * headers }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn key(transport: Transport, from: &str, to: &str) -> Key {
        Key { way: Way::Out, transport, from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    #[test]
    fn packets_are_counted_with_their_ip_header() {
        let mut wire = Wire::default();
        let mut tcp = Vec::new();
        let builder = PacketBuilder::ipv4([127, 0, 0, 1], [127, 0, 0, 2], 64).tcp(1000, 80, 0, 0);
        builder.write(&mut tcp, &[0; 100]).unwrap();
        wire.add(Way::Out, &tcp, Segments::One).unwrap();
        wire.add(Way::Out, &tcp, Segments::One).unwrap();
        let of_tcp = wire.of(key(Transport::Tcp, "127.0.0.1:1000", "127.0.0.2:80"));
        assert_eq!(of_tcp, Count { packets: 2, bytes: 2 * (20 + 20 + 100) });

        let mut udp = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 64).udp(9, 53).write(&mut udp, b"").unwrap();
        wire.add(Way::In, &udp, Segments::One).unwrap();
        let mut of_udp =
            key(Transport::Udp, "[101:101:101:101:101:101:101:101]:9", "[202:202:202:202:202:202:202:202]:53");
        assert_eq!(wire.of(of_udp), Count::default(), "it came in");
        of_udp.way = Way::In;
        assert_eq!(wire.of(of_udp), Count { packets: 1, bytes: 48 });
    }

    #[test]
    fn segments_repeat_their_headers() {
        assert_eq!(wire_packets(40 + 3000, 40, Segments::Of(1460)), Count { packets: 3, bytes: 3 * 40 + 3000 });
        assert_eq!(wire_packets(40 + 2920, 40, Segments::Of(1460)), Count { packets: 2, bytes: 2 * 40 + 2920 });
        assert_eq!(wire_packets(40, 40, Segments::Of(1460)), Count { packets: 1, bytes: 40 });
    }

    /// A fragment of a UDP datagram over IPv4.
    fn fragment(offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
        let mut header = etherparse::Ipv4Header::new(
            payload.len().try_into().unwrap(),
            64,
            IpNumber::UDP,
            [10, 0, 0, 1],
            [10, 0, 0, 2],
        )
        .unwrap();
        header.identification = 77;
        header.more_fragments = more;
        header.fragment_offset = (offset / 8).try_into().unwrap();
        let mut packet = Vec::new();
        header.write(&mut packet).unwrap();
        packet.extend_from_slice(payload);
        packet
    }

    #[test]
    fn fragments_belong_to_their_datagram_in_any_order() {
        let ports = [0x03, 0xe8, 0, 53, 0, 0, 0, 0];
        let first = fragment(0, true, &[ports, [0; 8]].concat());
        let last = fragment(16, false, &[0; 5]);
        for order in [[&first, &last], [&last, &first]] {
            let mut wire = Wire::default();
            for packet in order {
                wire.add(Way::Out, packet, Segments::One).unwrap();
            }
            let key = key(Transport::Udp, "10.0.0.1:1000", "10.0.0.2:53");
            assert_eq!(wire.of(key), Count { packets: 2, bytes: 20 + 16 + 20 + 5 });
            assert!(wire.had_fragments(key));
        }
    }
}
