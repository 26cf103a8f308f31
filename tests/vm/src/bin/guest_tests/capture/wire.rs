//! Counts the packets and bytes of each flow in a capture, as they would be on a wire: every segment of a GSO packet
//! counts.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::AddAssign;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use etherparse::{IpNumber, Ipv6ExtensionSlice, NetSlice, SlicedPacket, TransportSlice};

/// The direction of a packet, seen from the host of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Outbound,
    Inbound,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// One direction of a flow, on one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) direction: Direction,
    pub(crate) transport: Transport,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// Packets and their bytes: IP header, transport header, payload.
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

/// Whether a captured packet is a GSO packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segments {
    /// It is a single packet.
    One,
    /// It has segments with this many bytes of payload, except the last one.
    Of(u16),
}

/// The packets that were captured on one interface.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    counts: HashMap<Key, Count>,
    /// The time of the packets that are added next.
    pub(crate) time: Option<SystemTime>,
    /// The packets of each flow whose time is known.
    timed: HashMap<Key, Vec<(SystemTime, Count)>>,
    /// How far each side of a TCP connection has ended, by what it sends.
    ends: HashMap<Key, End>,
    /// The packets that one side sent or received after it had closed the connection.
    after_close: HashMap<Key, Count>,
    /// SYN-ACKs.
    syn_acks: HashMap<Key, Count>,
    /// The packets that one side sent or received after the connection had ended for it.
    after_end: HashMap<Key, Count>,
    /// The largest captured datagram of each flow, in bytes.
    largest: HashMap<Key, u64>,
    /// Flows with fragments.
    with_fragments: HashSet<Key>,
    /// The flow of each fragmented datagram: only first fragments have ports.
    fragmented: HashMap<(Direction, Datagram), Key>,
    /// Fragments that were captured before the first one of their datagram.
    early: HashMap<(Direction, Datagram), Count>,
}

/// What one side of a TCP connection has sent and received of its end.
#[derive(Debug, Clone, Copy, Default)]
struct End {
    fin_sent: bool,
    fin_received: bool,
    reset: bool,
}

impl End {
    /// Whether this side has closed the connection, so that its socket may be gone.
    fn is_closed(self) -> bool {
        self.fin_sent || self.reset
    }

    /// Whether both sides have closed it, as far as this side knows.
    fn is_over(self) -> bool {
        (self.fin_sent && self.fin_received) || self.reset
    }
}

/// Identifies the datagram of a fragment.
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
    fragment: Option<Fragment>,
}

/// The fragment fields of a packet.
#[derive(Clone, Copy)]
struct Fragment {
    /// The identification of its datagram.
    id: u32,
    is_first: bool,
}

impl Wire {
    /// Counts a packet, which begins with its IP header. Protocols other than TCP and UDP are ignored.
    pub(crate) fn add(&mut self, direction: Direction, packet: &[u8], segments: Segments) -> Result<()> {
        let sliced = SlicedPacket::from_ip(packet).context("parse a packet")?;
        let Some(network) = network(sliced.net.as_ref())? else { return Ok(()) };
        let transport = match network.protocol {
            IpNumber::TCP => Transport::Tcp,
            IpNumber::UDP => Transport::Udp,
            _ => return Ok(()),
        };
        let one = Count { packets: 1, bytes: network.bytes };
        let key = |from, to| Key {
            direction,
            transport,
            from: SocketAddr::new(network.from, from),
            to: SocketAddr::new(network.to, to),
        };
        match (network.fragment, &sliced.transport) {
            (Some(Fragment { id, is_first }), _) => {
                let ports = is_first.then(|| ports_of(sliced.net.as_ref())).flatten();
                let datagram = Datagram { from: network.from, to: network.to, id };
                self.fragment((direction, datagram), ports.map(|(from, to)| key(from, to)), one);
            }
            (None, Some(TransportSlice::Tcp(tcp))) => {
                let headers = network.headers + tcp.header_len() as u64;
                let count = wire_packets(network.bytes, headers, segments);
                let key = key(tcp.source_port(), tcp.destination_port());
                self.note_end(key, count, tcp.fin(), tcp.rst());
                if tcp.syn() && tcp.ack() {
                    *self.syn_acks.entry(key).or_default() += count;
                }
                self.count(key, count);
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

    /// Every flow with outbound packets.
    pub(crate) fn outbound_flows(&self) -> impl Iterator<Item = Key> {
        self.counts.keys().copied().filter(|key| key.direction == Direction::Outbound)
    }

    /// The packets of one direction of a flow.
    pub(crate) fn of(&self, key: Key) -> Count {
        self.counts.get(&key).copied().unwrap_or_default()
    }

    /// The SYN-ACKs in one direction of a flow.
    pub(crate) fn syn_acks(&self, key: Key) -> Count {
        self.syn_acks.get(&key).copied().unwrap_or_default()
    }

    /// The packets of one direction of a flow after the host had closed it (FIN or RST).
    pub(crate) fn after_close(&self, key: Key) -> Count {
        self.after_close.get(&key).copied().unwrap_or_default()
    }

    /// The packets of one direction of a flow after both sides had closed it, as far as the host knew.
    pub(crate) fn after_end(&self, key: Key) -> Count {
        self.after_end.get(&key).copied().unwrap_or_default()
    }

    /// The largest unfragmented datagram of one direction of a flow, in bytes; 0 if there is none.
    pub(crate) fn largest(&self, key: Key) -> u64 {
        self.largest.get(&key).copied().unwrap_or_default()
    }

    /// Whether one direction of a flow had fragments.
    pub(crate) fn has_fragments(&self, key: Key) -> bool {
        self.with_fragments.contains(&key)
    }

    /// The packets of one direction of a flow up to a time.
    pub(crate) fn until(&self, key: Key, time: SystemTime) -> Count {
        let mut sum = Count::default();
        self.packets_with_times(key).iter().filter(|(at, _)| *at <= time).for_each(|(_, count)| sum += *count);
        sum
    }

    /// The packets of one direction of a flow, each with its time.
    pub(crate) fn packets_with_times(&self, key: Key) -> &[(SystemTime, Count)] {
        self.timed.get(&key).map_or(&[], Vec::as_slice)
    }

    fn count(&mut self, key: Key, count: Count) {
        *self.counts.entry(key).or_default() += count;
        if let Some(time) = self.time {
            self.timed.entry(key).or_default().push((time, count));
        }
    }

    fn note_end(&mut self, key: Key, count: Count, fin: bool, rst: bool) {
        let is_sent = key.direction == Direction::Outbound;
        let (from, to) = if is_sent { (key.from, key.to) } else { (key.to, key.from) };
        let end = self.ends.entry(Key { direction: Direction::Outbound, from, to, ..key }).or_default();
        if end.is_closed() {
            *self.after_close.entry(key).or_default() += count;
        }
        if end.is_over() {
            *self.after_end.entry(key).or_default() += count;
        }
        end.fin_sent |= fin && is_sent;
        end.fin_received |= fin && !is_sent;
        end.reset |= rst;
    }

    fn fragment(&mut self, datagram: (Direction, Datagram), first: Option<Key>, count: Count) {
        if let Some(key) = first {
            self.fragmented.insert(datagram, key);
            self.with_fragments.insert(key);
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
            let is_first = header.fragments_offset().value() == 0;
            let fragment = Fragment { id: header.identification().into(), is_first };
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
                    let is_first = fragment.fragment_offset().value() == 0;
                    Some(Fragment { id: fragment.identification(), is_first })
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

/// The ports in a first fragment, whose transport header etherparse does not parse.
fn ports_of(net: Option<&NetSlice<'_>>) -> Option<(u16, u16)> {
    let payload = match net? {
        NetSlice::Ipv4(ip) => ip.payload().payload,
        NetSlice::Ipv6(ip) => ip.payload().payload,
        NetSlice::Arp(_) => return None,
    };
    let [a, b, c, d, ..] = *payload else { return None };
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// The packets that a captured packet would be on a wire: each segment repeats the headers.
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
        Key { direction: Direction::Outbound, transport, from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    #[test]
    fn packets_are_counted_with_their_ip_header() {
        let mut wire = Wire::default();
        let mut tcp = Vec::new();
        let builder = PacketBuilder::ipv4([127, 0, 0, 1], [127, 0, 0, 2], 64).tcp(1000, 80, 0, 0);
        builder.write(&mut tcp, &[0; 100]).unwrap();
        wire.add(Direction::Outbound, &tcp, Segments::One).unwrap();
        wire.add(Direction::Outbound, &tcp, Segments::One).unwrap();
        let of_tcp = wire.of(key(Transport::Tcp, "127.0.0.1:1000", "127.0.0.2:80"));
        assert_eq!(of_tcp, Count { packets: 2, bytes: 2 * (20 + 20 + 100) });

        let mut udp = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 64).udp(9, 53).write(&mut udp, b"").unwrap();
        wire.add(Direction::Inbound, &udp, Segments::One).unwrap();
        let mut of_udp =
            key(Transport::Udp, "[101:101:101:101:101:101:101:101]:9", "[202:202:202:202:202:202:202:202]:53");
        assert_eq!(wire.of(of_udp), Count::default(), "it is inbound");
        of_udp.direction = Direction::Inbound;
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
                wire.add(Direction::Outbound, packet, Segments::One).unwrap();
            }
            let key = key(Transport::Udp, "10.0.0.1:1000", "10.0.0.2:53");
            assert_eq!(wire.of(key), Count { packets: 2, bytes: 20 + 16 + 20 + 5 });
            assert!(wire.has_fragments(key));
        }
    }
}
