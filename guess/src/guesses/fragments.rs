//! Where an `sk_buff` keeps the size of the largest fragment that its datagram was put together from.

use super::talk;
use crate::engine::{Clues, Guess, Probe, Random, Scene, Shot};
use crate::sys;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// `struct sk_buff` is not larger than this on any machine of 64 bits, and the control block is part of it.
const SKB: u32 = 256;
/// How long the first fragment is, in units of 8 bytes, without IP's headers. With them it is no shorter than IPv6's
/// smallest MTU: where connections are tracked, the kernel puts together what goes out and cuts it anew, but no smaller.
const FIRST: RangeInclusive<u32> = 154..=400;
/// How long the second is: always the shorter one, and long enough that the kernel must cut again.
const SECOND: RangeInclusive<u32> = 200..=600;

const UDP_HEADER: u16 = 8;
const IPV4_HEADER: u16 = 20;
const IPV6_HEADER: u16 = 40;
const FRAGMENT_HEADER: u16 = 8;
/// Flags of a fragment in IPv4's header.
const DO_NOT_CUT: u16 = 0x4000;
const MORE_FOLLOW: u16 = 0x2000;
/// What goes into IPv6's header for a fragment header.
const NEXT_IS_FRAGMENT: u8 = 44;

/// A datagram comes as two fragments, the first of random size. Where the socket takes it in, put together again, the
/// packet's control block has that size.
#[derive(Debug)]
pub(super) struct Fragments {
    pub(super) ipv6: bool,
}

/// A UDP datagram that is cut in two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    /// What tells its fragments from those of others.
    id: u16,
    /// How many bytes are in each fragment, not counting IP's headers.
    first: u16,
    second: u16,
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
    type Sent = Datagram;

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

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<Datagram> {
        let random = stage.random();
        let from = SocketAddr::new(talk::address(random, self.ipv6).ip(), talk::port(random));
        let receiver = talk::udp(talk::address(random, self.ipv6))?;
        let datagram = Datagram::random(random, from, receiver.local_addr()?);
        datagram.send()?;
        talk::receive(&receiver, usize::from(datagram.length() - UDP_HEADER))?;
        Ok(datagram)
    }

    fn solve(&self, sent: &Datagram, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        for shot in shots {
            let skb = shot.view("skb");
            let places = skb.find_u16(sent.largest());
            // A packet of others may come in on this thread as well: whoever is interrupted takes it.
            if !places.is_empty() {
                clues.allow(self.key(), places);
            }
        }
        clues
    }
}

impl Datagram {
    fn random(random: &mut Random, from: SocketAddr, to: SocketAddr) -> Self {
        let id = random.within(1..=0xffff) as u16;
        Self { from, to, id, first: 8 * random.within(FIRST) as u16, second: random.within(SECOND) as u16 }
    }

    /// Sends both fragments. What tracks connections is not to put them together, since before Linux 4.2 it sends them as
    /// one packet then. A firewall may let nothing pass that is not tracked; then they go as all others.
    fn send(&self) -> io::Result<()> {
        match self.send_as(self.to.is_ipv4()) {
            Err(error) if self.to.is_ipv4() && error.kind() == io::ErrorKind::PermissionDenied => self.send_as(false),
            sent => sent,
        }
    }

    fn send_as(&self, keep_fragments: bool) -> io::Result<()> {
        let through = talk::raw(self.to.ip())?;
        if keep_fragments {
            sys::keep_fragments(&through)?;
        }
        self.fragments().iter().try_for_each(|fragment| talk::packet(&through, fragment))
    }

    /// How long it is with UDP's header.
    fn length(&self) -> u16 {
        self.first + self.second
    }

    /// The size of the larger fragment.
    fn largest(&self) -> u16 {
        self.first + if self.to.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER + FRAGMENT_HEADER }
    }

    /// Both fragments as they travel.
    fn fragments(&self) -> [Vec<u8>; 2] {
        let udp = self.udp();
        let (first, second) = udp.split_at(self.first.into());
        let fragment = |offset, data: &[u8]| [&self.headers(offset, data.len() as u16), data].concat();
        [fragment(0, first), fragment(self.first, second)]
    }

    /// UDP's header and the bytes that it is for. IPv4 does without a checksum.
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

    /// What follows the addresses in the pseudo header of IPv6 (RFC 8200, section 8.1).
    fn pseudo_header(&self) -> Vec<u8> {
        [u32::from(self.length()), libc::IPPROTO_UDP as u32].map(u32::to_be_bytes).concat()
    }

    /// The IP headers of the fragment that begins at `offset`.
    fn headers(&self, offset: u16, length: u16) -> Vec<u8> {
        let headers = if self.to.is_ipv4() { self.headers4(offset, length) } else { self.headers6(offset, length) };
        let [before, after] = headers;
        [before, self.addresses(), after].concat()
    }

    /// What is before the addresses and after them. The kernel fills in the checksum. Kernels before 4.2 note the size
    /// only of fragments that may not be cut any further, so that is what these say they are.
    fn headers4(&self, offset: u16, length: u16) -> [Vec<u8>; 2] {
        let flags = if offset == 0 { DO_NOT_CUT | MORE_FOLLOW } else { DO_NOT_CUT };
        let words = [0x4500, IPV4_HEADER + length, self.id, flags | (offset / 8)].map(u16::to_be_bytes);
        [[words.as_flattened(), &[64, libc::IPPROTO_UDP as u8, 0, 0]].concat(), Vec::new()]
    }

    /// What is before the addresses and after them, where the fragment header is (RFC 8200, section 4.5).
    fn headers6(&self, offset: u16, length: u16) -> [Vec<u8>; 2] {
        let words = [0x6000, 0, FRAGMENT_HEADER + length].map(u16::to_be_bytes);
        let place = offset | u16::from(offset == 0);
        let fragment = [(libc::IPPROTO_UDP as u16) << 8, place, 0, self.id].map(u16::to_be_bytes);
        [[words.as_flattened(), &[NEXT_IS_FRAGMENT, 64]].concat(), fragment.concat()]
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The checksum of the internet (RFC 1071), as UDP writes it: 0 would mean that there is none.
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
        Datagram { from, to, id: 0xbeef, first: 1240, second: 333 }
    }

    fn shot(guess: &Fragments, size: u16, at: u32) -> Shot {
        let mut shot = Shot::blank(&Guess::probes(guess, 0)[0]);
        shot.put("skb", at, &size.to_ne_bytes());
        shot
    }

    #[test]
    fn the_size_of_the_first_fragment_is_found() {
        for (ipv6, size) in [(false, 1260_u16), (true, 1288)] {
            let guess = Fragments { ipv6 };
            let mut shot = shot(&guess, size, 66);
            shot.put("skb", 120, &size.to_ne_bytes());
            shot.put("skb", 113, &size.to_ne_bytes());
            assert_eq!(guess.solve(&sent(ipv6), &[shot]).of(guess.key()), [66, 120]);
        }
    }

    #[test]
    fn what_others_receive_tells_nothing() {
        let guess = Fragments { ipv6: false };
        let blank = Shot::blank(&Guess::probes(&guess, 0)[0]);
        let stranger = shot(&guess, 1261, 66);
        assert_eq!(guess.solve(&sent(false), &[blank.clone(), stranger.clone()]), Clues::default());
        let clues = guess.solve(&sent(false), &[blank, shot(&guess, 1260, 66), stranger]);
        assert_eq!(clues.of(guess.key()), [66]);
        assert_eq!(guess.solve(&sent(false), &[]), Clues::default());
    }

    /// Offset, whether more follows and id of a fragment as another program reads it, and what it carries.
    fn read(fragment: &[u8]) -> (u16, bool, u32, Vec<u8>) {
        let packet = SlicedPacket::from_ip(fragment).unwrap();
        let net = packet.net.unwrap();
        let payload = net.ip_payload_ref().unwrap();
        assert!(payload.fragmented);
        assert_eq!(payload.ip_number, IpNumber::UDP);
        let (offset, more, id) = match &net {
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
        (offset.value() * 8, more, id, payload.payload.to_vec())
    }

    #[test]
    fn fragments_are_those_of_a_datagram() {
        for ipv6 in [false, true] {
            let sent = sent(ipv6);
            let [first, second] = sent.fragments();
            let header = if ipv6 { 48 } else { 20 };
            assert_eq!((first.len(), second.len()), (header + 1240, header + 333));
            assert_eq!(usize::from(sent.largest()), first.len());
            let (first, second) = (read(&first), read(&second));
            assert_eq!((first.0, first.1, first.2), (0, true, 0xbeef));
            assert_eq!((second.0, second.1, second.2), (1240, false, 0xbeef));
            let whole = [first.3, second.3].concat();
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
