//! The data and the headers of an `sk_buff`.

use super::loopback;
use crate::engine::{Call, Context, Evidence, Guess, Probe, WORD, Window, bytes_of, is_kernel_pointer};
use crate::sys;
use std::io;
use std::net::SocketAddr;

/// How many bytes of an `sk_buff` are captured: at least its size on every known kernel with this word size.
const SKB: u32 = if WORD == 4 { 192 } else { 256 };
/// `data` is searched from this offset on. The words before it (list, socket, device) point to other structures.
const FIRST_DATA_OFFSET: u32 = 64;
const UDP_HEADER: u32 = 8;
/// The length of an IPv4 header without options, in bytes.
const IP_HEADER: u16 = 20;
/// The largest number of words of 4 bytes that IPv4 options can have.
const MAX_OPTION_WORDS: u32 = 10;

/// Sends a datagram of random length from a random address and port to another. At the probed function, the data of the
/// `sk_buff` begin with the UDP header, so `data` is the word that points to the source port, the destination port and the
/// length.
///
/// `transport_header` and `network_header` are 16-bit offsets from `head`, whose own offset is unknown. So every word is
/// tried as `head`. If it is `head`, then `data - head` is the value of `transport_header`, and this number minus the
/// length of the IP header is the value of `network_header`. If the first number fits into 16 bits and the structure holds
/// both, their offsets are the candidates.
///
/// The kernel leaves the same room before the IP header of each datagram, and an unused part of the structure may still
/// have the number of an earlier datagram. So the IP header has a random number of options, which do nothing. The datagram
/// is sent without a checksum, because otherwise `csum_start` would have the same value as the transport header. A part of a pointer
/// is no candidate: if `head` is a multiple of 64 KiB, the lowest 16 bits of `data` have that value, too.
#[derive(Debug)]
pub(super) struct SkBuff;

/// A datagram that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    /// The length with the UDP header, in bytes.
    length: u32,
    /// The length of its IP header, in bytes.
    ip_header: u16,
}

impl Guess for SkBuff {
    type Expected = Datagram;

    fn name(&self) -> &'static str {
        "sk_buff"
    }

    fn needs(&self) -> Vec<String> {
        Vec::new()
    }

    fn gives(&self) -> Vec<String> {
        let fields = ["data", "transport_header", "network_header"].map(|field| format!("sk_buff.{field}"));
        let arguments = ["sk", "skb"].map(|argument| format!("udp_queue_rcv_skb({argument})"));
        fields.into_iter().chain(arguments).collect()
    }

    fn probes(&self, _attempt: u32) -> Vec<Probe> {
        // It is not known which argument is the `sk_buff`. So both are captured: the memory that they point to, and the
        // bytes that each word of this memory points to (targets).
        let probe = Probe::on("udp_queue_rcv_skb").arguments(3);
        let probe = probe.words("memory 1", "{arg1}", 0..SKB).words("memory 2", "{arg2}", 0..SKB);
        vec![probe.targets("targets 1", "{arg1}", FIRST_DATA_OFFSET..SKB).targets(
            "targets 2",
            "{arg2}",
            FIRST_DATA_OFFSET..SKB,
        )]
    }

    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<Datagram> {
        let from = loopback::udp(loopback::ipv4_address(context.random()))?;
        let to = loopback::udp(loopback::ipv4_address(context.random()))?;
        sys::no_checksums(&from)?;
        let length = context.random().within(100..=1200);
        let option_words = context.random().within(0..=MAX_OPTION_WORDS);
        sys::set_ipv4_no_operations(&from, option_words as usize)?;
        loopback::datagram(&from, &to, length as usize)?;
        let ip_header = IP_HEADER + 4 * option_words as u16;
        Ok(Datagram { from: from.local_addr()?, to: to.local_addr()?, length: length + UDP_HEADER, ip_header })
    }

    fn solve(&self, expected: &Datagram, calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        for call in calls {
            let arguments = [(1, "memory 1", "targets 1"), (2, "memory 2", "targets 2")];
            let views = arguments.map(|(position, memory, targets)| (position, call.view(memory), call.view(targets)));
            let skb = views.iter().find(|(_, memory, targets)| !data_offsets(expected, memory, targets).is_empty());
            // An interrupt on this thread may receive packets of other sockets, too.
            let Some((position, memory, targets)) = skb else { continue };
            evidence.one_of("udp_queue_rcv_skb(skb)", [*position]);
            add_header_evidence(expected, memory, targets, &mut evidence);
            if let Some((position, ..)) = views.iter().find(|(_, memory, _)| is_receiver(expected, memory)) {
                evidence.one_of("udp_queue_rcv_skb(sk)", [*position]);
            }
        }
        evidence
    }
}

/// Whether this memory may be the `sock` that receives the datagram: it contains the datagram's destination address and
/// port (the port in host byte order: `skc_num`).
fn is_receiver(expected: &Datagram, memory: &Window) -> bool {
    let SocketAddr::V4(to) = expected.to else { return false };
    !memory.find(&to.ip().octets(), 4).is_empty() && !memory.find_u16(to.port()).is_empty()
}

/// The offsets at which the structure has a pointer to the datagram's UDP header.
fn data_offsets(expected: &Datagram, memory: &Window, targets: &Window) -> Vec<u32> {
    let length = expected.length as u16;
    let header = [expected.from.port(), expected.to.port(), length].map(u16::to_be_bytes).concat();
    let header_start = &header[..header.len().min(WORD as usize)];
    let points_there = |&(offset, target): &(u32, u64)| {
        bytes_of(target).starts_with(header_start) && memory.word(offset).is_some_and(is_kernel_pointer)
    };
    targets.words().filter(points_there).map(|(offset, _)| offset).collect()
}

/// Adds the candidates for the offsets of `data`, `transport_header` and `network_header`.
fn add_header_evidence(expected: &Datagram, memory: &Window, targets: &Window, evidence: &mut Evidence) {
    let data = data_offsets(expected, memory, targets);
    let (mut transport, mut network) = (Vec::new(), Vec::new());
    let data_addresses = data.iter().filter_map(|&offset| memory.word(offset));
    for (data_address, (_, head)) in data_addresses.flat_map(|address| memory.words().map(move |word| (address, word)))
    {
        let distance = data_address.checked_sub(head).and_then(|distance| u16::try_from(distance).ok());
        let Some(distance) = distance.filter(|&distance| distance >= expected.ip_header) else { continue };
        let transport_offsets = numbers(memory, distance);
        let network_offsets = numbers(memory, distance - expected.ip_header);
        if !transport_offsets.is_empty() && !network_offsets.is_empty() {
            transport.extend(transport_offsets);
            network.extend(network_offsets);
        }
    }
    evidence.one_of("sk_buff.data", data);
    evidence.one_of("sk_buff.transport_header", transport);
    evidence.one_of("sk_buff.network_header", network);
}

/// The offsets of a 16-bit number that is not a part of a pointer.
fn numbers(memory: &Window, number: u16) -> Vec<u32> {
    let is_in_pointer = |offset: u32| memory.word(offset - offset % WORD).is_some_and(is_kernel_pointer);
    memory.find_u16(number).into_iter().filter(|&offset| !is_in_pointer(offset)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ARGUMENTS;

    const HEAD: u64 = 0xffff_8880_0123_4000;
    /// A multiple of 64 KiB.
    const ALIGNED_HEAD: u64 = 0xffff_8880_0124_0000;

    fn expected() -> Datagram {
        let [from, to] = ["127.1.2.3:4660", "127.9.8.7:17185"].map(|address| address.parse().unwrap());
        Datagram { from, to, length: 777, ip_header: 28 }
    }

    fn call(head: u64) -> Call {
        let blank = |from: u32| Window::new(from, vec![0; (SKB - from) as usize]);
        let (mut sk, mut skb, mut targets) = (blank(0), blank(0), blank(FIRST_DATA_OFFSET));
        sk.write(4, &[127, 9, 8, 7]);
        sk.write(14, &17185u16.to_ne_bytes());
        skb.write(182, &84u16.to_ne_bytes());
        skb.write(184, &56u16.to_ne_bytes());
        skb.write(200, &head.to_ne_bytes());
        skb.write(208, &(head + 84).to_ne_bytes());
        targets.write(208, &[0x12, 0x34, 0x43, 0x21, 0x03, 0x09, 0, 0]);
        let arguments = Window::new(8, vec![0; 24]);
        let views = vec![
            (ARGUMENTS, arguments),
            ("memory 1", sk),
            ("memory 2", skb),
            ("targets 1", blank(FIRST_DATA_OFFSET)),
            ("targets 2", targets),
        ];
        Call::of("udp_queue_rcv_skb", views)
    }

    #[test]
    fn data_and_headers_are_found() {
        for head in [HEAD, ALIGNED_HEAD] {
            let evidence = SkBuff.solve(&expected(), &[call(head)]);
            for (key, value) in [
                ("sk_buff.data", 208),
                ("sk_buff.transport_header", 182),
                ("sk_buff.network_header", 184),
                ("udp_queue_rcv_skb(sk)", 1),
                ("udp_queue_rcv_skb(skb)", 2),
            ] {
                assert_eq!(evidence.values(key), [value], "{key}");
            }
        }
    }

    #[test]
    fn other_datagrams_are_not_evidence() {
        let other = Datagram { length: 778, to: "127.9.8.7:1".parse().unwrap(), ..expected() };
        assert_eq!(SkBuff.solve(&other, &[call(HEAD)]), Evidence::default());
        let evidence = SkBuff.solve(&expected(), &[Call::blank(&SkBuff.probes(0)[0]), call(HEAD)]);
        assert_eq!(evidence.values("sk_buff.data"), [208], "packets of others do not matter");
        assert_eq!(SkBuff.solve(&expected(), &[]), Evidence::default());
        let longer = Datagram { ip_header: 32, ..expected() };
        assert!(SkBuff.solve(&longer, &[call(HEAD)]).values("sk_buff.transport_header").is_empty());
    }
}
