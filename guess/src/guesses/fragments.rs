//! The size of the largest fragment, in the control block of a reassembled `sk_buff`.

use super::loopback;
use crate::engine::{Call, Context, Evidence, Guess, Probe, Random};
use crate::sys;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

/// How many bytes of an `sk_buff` are captured: at least its size on every known 64-bit kernel.
const SKB: u32 = 256;
/// The length of the first fragment without IP headers, in units of 8 bytes. With IP headers it is at least IPv6's
/// minimum MTU: connection tracking reassembles outgoing fragments and fragments them again, but makes no smaller ones.
const FIRST: RangeInclusive<u32> = 154..=400;
/// The length of the second fragment in bytes. It is always the shorter one, and long enough that connection tracking has
/// to fragment the reassembled datagram again.
const SECOND: RangeInclusive<u32> = 200..=600;

const UDP_HEADER: u16 = 8;
const IPV4_HEADER: u16 = 20;
const IPV6_HEADER: u16 = 40;
const FRAGMENT_HEADER: u16 = 8;
/// Flags in the IPv4 header (RFC 791, section 3.1).
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
/// The next header value of the IPv6 fragment header.
const NEXT_IS_FRAGMENT: u8 = 44;

/// Sends a datagram as two fragments, the first of random size. When the socket receives the reassembled packet, its
/// control block has that size.
#[derive(Debug)]
pub(super) struct Fragments {
    pub(super) ipv6: bool,
}

/// A UDP datagram that is sent as two fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    /// The identification by which its fragments are reassembled.
    id: u16,
    /// The length of the first fragment in bytes, without IP headers.
    first_length: u16,
    /// The length of the second fragment in bytes, without IP headers.
    second_length: u16,
}

impl Fragments {
    fn function(&self) -> &'static str {
        if self.ipv6 { "udpv6_queue_rcv_skb" } else { "udp_queue_rcv_skb" }
    }

    fn key(&self) -> &'static str {
        if self.ipv6 { "inet6_skb_parm.frag_max_size" } else { "inet_skb_parm.frag_max_size" }
    }
}

impl Guess for Fragments {
    type Expected = Datagram;

    fn name(&self) -> &'static str {
        if self.ipv6 { "fragments6" } else { "fragments" }
    }

    fn needs(&self) -> Vec<String> {
        vec![format!("{}(skb)", self.function())]
    }

    fn gives(&self) -> Vec<String> {
        vec![self.key().to_owned()]
    }

    fn ipv6(&self) -> bool {
        self.ipv6
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        vec![Probe::on(self.function()).words("skb", "{skb}", 0..SKB)]
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<Datagram> {
        let random = context.random();
        let from = SocketAddr::new(loopback::address(random, self.ipv6).ip(), loopback::port(random));
        let receiver = loopback::udp(loopback::address(random, self.ipv6))?;
        let datagram = Datagram::random(random, from, receiver.local_addr()?);
        datagram.send()?;
        loopback::receive(&receiver, usize::from(datagram.length() - UDP_HEADER))?;
        Ok(datagram)
    }

    fn solve(&self, sent: &Datagram, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        for call in calls {
            let skb = call.view("skb");
            let offsets = skb.find_u16(sent.largest());
            // An interrupt on this thread may receive packets of other sockets, too.
            if !offsets.is_empty() {
                evidence.one_of(self.key(), offsets);
            }
        }
        evidence
    }
}

impl Datagram {
    fn random(random: &mut Random, from: SocketAddr, to: SocketAddr) -> Self {
        let id = random.within(1..=0xffff) as u16;
        Self {
            from,
            to,
            id,
            first_length: 8 * random.within(FIRST) as u16,
            second_length: random.within(SECOND) as u16,
        }
    }

    /// Sends both fragments. Over IPv4, it first asks connection tracking not to reassemble them, because before Linux 4.2
    /// a reassembled datagram is sent as one packet. Fragments that are not reassembled are not tracked, so a firewall may
    /// block them. If it does, they are sent like other packets.
    fn send(&self) -> io::Result<()> {
        if self.to.is_ipv4() {
            let socket = loopback::raw(self.to.ip())?;
            sys::keep_fragments(&socket)?;
            match self.send_through(&socket) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                result => return result,
            }
        }
        self.send_through(&loopback::raw(self.to.ip())?)
    }

    fn send_through(&self, socket: &OwnedFd) -> io::Result<()> {
        self.fragments().iter().try_for_each(|fragment| loopback::send_packet(socket, fragment))
    }

    /// The length with the UDP header.
    fn length(&self) -> u16 {
        self.first_length + self.second_length
    }

    /// The size of the larger fragment with IP headers.
    fn largest(&self) -> u16 {
        self.first_length + if self.to.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER + FRAGMENT_HEADER }
    }

    /// Both fragments, as packets.
    fn fragments(&self) -> [Vec<u8>; 2] {
        let udp = self.udp();
        let (first, second) = udp.split_at(self.first_length.into());
        let fragment = |offset, data: &[u8]| [&self.headers(offset, data.len() as u16), data].concat();
        [fragment(0, first), fragment(self.first_length, second)]
    }

    /// The UDP header and the data. Over IPv4 there is no checksum.
    fn udp(&self) -> Vec<u8> {
        let header = [self.from.port(), self.to.port(), self.length(), 0].map(u16::to_be_bytes).concat();
        let mut udp = [header, vec![0xa5; usize::from(self.length() - UDP_HEADER)]].concat();
        if self.to.is_ipv6() {
            let checksum = checksum(&[self.addresses(), self.pseudo_header(), udp.clone()].concat());
            udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        }
        udp
    }

    fn addresses(&self) -> Vec<u8> {
        [self.from, self.to].map(|address| octets(address.ip())).concat()
    }

    /// The part of the IPv6 pseudo-header after the addresses (RFC 8200, section 8.1).
    fn pseudo_header(&self) -> Vec<u8> {
        [u32::from(self.length()), libc::IPPROTO_UDP as u32].map(u32::to_be_bytes).concat()
    }

    /// The IP headers of the fragment that begins at `offset`.
    fn headers(&self, offset: u16, length: u16) -> Vec<u8> {
        let headers = if self.to.is_ipv4() { self.headers4(offset, length) } else { self.headers6(offset, length) };
        let [before, after] = headers;
        [before, self.addresses(), after].concat()
    }

    /// The IPv4 header before the addresses; nothing comes after them. The kernel fills in the checksum. The fragments have
    /// the flag `DF`, because kernels before 4.2 note the size only of fragments that have it.
    fn headers4(&self, offset: u16, length: u16) -> [Vec<u8>; 2] {
        let flags = if offset == 0 { DONT_FRAGMENT | MORE_FRAGMENTS } else { DONT_FRAGMENT };
        let words = [0x4500, IPV4_HEADER + length, self.id, flags | (offset / 8)].map(u16::to_be_bytes);
        [[words.as_flattened(), &[64, libc::IPPROTO_UDP as u8, 0, 0]].concat(), Vec::new()]
    }

    /// The IPv6 header before the addresses, and the fragment header after them (RFC 8200, section 4.5).
    fn headers6(&self, offset: u16, length: u16) -> [Vec<u8>; 2] {
        let words = [0x6000, 0, FRAGMENT_HEADER + length].map(u16::to_be_bytes);
        let offset_and_flags = offset | u16::from(offset == 0);
        let fragment = [(libc::IPPROTO_UDP as u16) << 8, offset_and_flags, 0, self.id].map(u16::to_be_bytes);
        [[words.as_flattened(), &[NEXT_IS_FRAGMENT, 64]].concat(), fragment.concat()]
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The internet checksum (RFC 1071) as UDP sends it: 0 would mean that there is none, so it becomes 0xffff.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        checksum => checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv6ExtensionSlice, NetSlice, SlicedPacket, UdpHeader};
    use std::net::Ipv6Addr;

    fn sent(ipv6: bool) -> Datagram {
        let addresses = if ipv6 { ["[::1]:4660", "[::1]:17185"] } else { ["127.1.2.3:4660", "127.9.8.7:17185"] };
        let [from, to] = addresses.map(|address| address.parse().unwrap());
        Datagram { from, to, id: 0xbeef, first_length: 1240, second_length: 333 }
    }

    fn call(guess: &Fragments, size: u16, at: u32) -> Call {
        let mut call = Call::blank(&Guess::probes(guess, 0)[0]);
        call.put("skb", at, &size.to_ne_bytes());
        call
    }

    #[test]
    fn the_size_of_the_first_fragment_is_found() {
        for (ipv6, size) in [(false, 1260_u16), (true, 1288)] {
            let guess = Fragments { ipv6 };
            let mut call = call(&guess, size, 66);
            call.put("skb", 120, &size.to_ne_bytes());
            call.put("skb", 113, &size.to_ne_bytes());
            assert_eq!(guess.solve(&sent(ipv6), &[call]).values(guess.key()), [66, 120]);
        }
    }

    #[test]
    fn packets_of_others_are_not_evidence() {
        let guess = Fragments { ipv6: false };
        let blank = Call::blank(&Guess::probes(&guess, 0)[0]);
        let other = call(&guess, 1261, 66);
        assert_eq!(guess.solve(&sent(false), &[blank.clone(), other.clone()]), Evidence::default());
        let evidence = guess.solve(&sent(false), &[blank, call(&guess, 1260, 66), other]);
        assert_eq!(evidence.values(guess.key()), [66]);
        assert_eq!(guess.solve(&sent(false), &[]), Evidence::default());
    }

    /// A fragment, as another library reads it.
    struct Read {
        offset: u16,
        more_fragments: bool,
        id: u32,
        payload: Vec<u8>,
    }

    fn read(fragment: &[u8]) -> Read {
        let packet = SlicedPacket::from_ip(fragment).unwrap();
        let net = packet.net.unwrap();
        let payload = net.ip_payload_ref().unwrap();
        assert!(payload.fragmented);
        assert_eq!(payload.ip_number, IpNumber::UDP);
        let (offset, more_fragments, id) = match &net {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                (header.fragments_offset(), header.more_fragments(), header.identification().into())
            }
            NetSlice::Ipv6(ip) => {
                let extension = ip.extensions().clone().into_iter().next().unwrap();
                let Ipv6ExtensionSlice::Fragment(fragment) = extension else { panic!("{extension:?}") };
                (fragment.fragment_offset(), fragment.more_fragments(), fragment.identification())
            }
            NetSlice::Arp(_) => unreachable!(),
        };
        Read { offset: offset.value() * 8, more_fragments, id, payload: payload.payload.to_vec() }
    }

    #[test]
    fn fragments_form_a_datagram() {
        for ipv6 in [false, true] {
            let sent = sent(ipv6);
            let [first, second] = sent.fragments();
            let header = if ipv6 { 48 } else { 20 };
            assert_eq!((first.len(), second.len()), (header + 1240, header + 333));
            assert_eq!(usize::from(sent.largest()), first.len());
            let (first, second) = (read(&first), read(&second));
            assert_eq!((first.offset, first.more_fragments, first.id), (0, true, 0xbeef));
            assert_eq!((second.offset, second.more_fragments, second.id), (1240, false, 0xbeef));
            let whole = [first.payload, second.payload].concat();
            let (udp, data) = UdpHeader::from_slice(&whole).unwrap();
            assert_eq!((udp.source_port, udp.destination_port, udp.length), (4660, 17185, 1573));
            assert_eq!(data, [0xa5; 1565]);
            let localhost = Ipv6Addr::LOCALHOST.octets();
            let checksum = udp.calc_checksum_ipv6_raw(localhost, localhost, data).unwrap();
            let checksum = if ipv6 { checksum } else { 0 };
            assert_eq!(udp.checksum, checksum);
        }
    }
}
