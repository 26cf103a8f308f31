//! Where an `sk_buff` keeps its data and its headers.

use super::talk;
use crate::engine::{Clues, Guess, Probe, Scene, Shot, WORD, Window, bytes_of, is_kernel_pointer};
use crate::sys;
use std::io;
use std::net::SocketAddr;

/// `struct sk_buff` is not larger than this on any machine of its word.
const SKB: u32 = if WORD == 4 { 192 } else { 256 };
/// Its first words are pointers to others of its kind, not to data.
const TARGETS: u32 = 64;
const UDP_HEADER: u32 = 8;
const IP_HEADER: u16 = 20;

/// A datagram of random length goes from a random address and port to another. Where the socket takes it in, the packet
/// begins with the UDP header: `data` is what points to these ports.
///
/// Headers are told as distances from `head`: whatever word lies shortly before `data` may be `head`, if the distance of
/// `data` from it and the same less an IP header are found too. Sent without a checksum, since `csum_start` would be the
/// same distance.
#[derive(Debug)]
pub(super) struct SkBuff;

/// A datagram as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    /// With its header.
    length: u32,
}

impl Guess for SkBuff {
    type Sent = Datagram;

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
        let probe = Probe::on("udp_queue_rcv_skb").arguments(3);
        let probe = probe.words("memory 1", "{arg1}", 0..SKB).words("memory 2", "{arg2}", 0..SKB);
        vec![probe.targets("targets 1", "{arg1}", TARGETS..SKB).targets("targets 2", "{arg2}", TARGETS..SKB)]
    }

    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<Datagram> {
        let from = talk::udp(talk::address(stage.random(), false))?;
        let to = talk::udp(talk::address(stage.random(), false))?;
        sys::no_checksums(&from)?;
        let length = stage.random().within(100..=1200);
        talk::datagram(&from, &to, length as usize)?;
        Ok(Datagram { from: from.local_addr()?, to: to.local_addr()?, length: length + UDP_HEADER })
    }

    fn solve(&self, sent: &Datagram, shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        for shot in shots {
            let places = [(1, "memory 1", "targets 1"), (2, "memory 2", "targets 2")];
            let views = places.map(|(position, memory, targets)| (position, shot.view(memory), shot.view(targets)));
            let skb = views.iter().find(|(_, memory, targets)| !data(sent, memory, targets).is_empty());
            // A packet of others may come in on this thread as well: whoever is interrupted takes it.
            let Some((position, memory, targets)) = skb else { continue };
            clues.allow("udp_queue_rcv_skb(skb)", [*position]);
            find(sent, memory, targets, &mut clues);
            if let Some((position, ..)) = views.iter().find(|(_, memory, _)| is_receiver(sent, memory)) {
                clues.allow("udp_queue_rcv_skb(sk)", [*position]);
            }
        }
        clues
    }
}

/// Whether this is the beginning of the `sock` that the datagram is for: it knows its own address and port.
fn is_receiver(sent: &Datagram, memory: &Window) -> bool {
    let SocketAddr::V4(to) = sent.to else { return false };
    !memory.find(&to.ip().octets(), 4).is_empty() && !memory.find_u16(to.port()).is_empty()
}

/// The words that point to the datagram's UDP header.
fn data(sent: &Datagram, memory: &Window, targets: &Window) -> Vec<u32> {
    let length = sent.length as u16;
    let header = [sent.from.port(), sent.to.port(), length].map(u16::to_be_bytes).concat();
    let begins = &header[..header.len().min(WORD as usize)];
    let points_there = |&(offset, target): &(u32, u64)| {
        bytes_of(target).starts_with(begins) && memory.word(offset).is_some_and(is_kernel_pointer)
    };
    targets.words().filter(points_there).map(|(offset, _)| offset).collect()
}

fn find(sent: &Datagram, memory: &Window, targets: &Window, clues: &mut Clues) {
    let data = data(sent, memory, targets);
    let (mut transport, mut network) = (Vec::new(), Vec::new());
    let begins = data.iter().filter_map(|&offset| memory.word(offset));
    for (begin, (_, head)) in begins.flat_map(|begin| memory.words().map(move |word| (begin, word))) {
        let distance = begin.checked_sub(head).and_then(|distance| u16::try_from(distance).ok());
        let Some(distance) = distance.filter(|&distance| distance >= IP_HEADER) else { continue };
        let (to_transport, to_network) = (memory.find_u16(distance), memory.find_u16(distance - IP_HEADER));
        if !to_transport.is_empty() && !to_network.is_empty() {
            transport.extend(to_transport);
            network.extend(to_network);
        }
    }
    clues.allow("sk_buff.data", data);
    clues.allow("sk_buff.transport_header", transport);
    clues.allow("sk_buff.network_header", network);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ARGUMENTS;

    const HEAD: u64 = 0xffff_8880_0123_4000;

    fn sent() -> Datagram {
        let [from, to] = ["127.1.2.3:4660", "127.9.8.7:17185"].map(|address| address.parse().unwrap());
        Datagram { from, to, length: 777 }
    }

    fn shot() -> Shot {
        let blank = |from: u32| Window::new(from, vec![0; (SKB - from) as usize]);
        let (mut sk, mut skb, mut targets) = (blank(0), blank(0), blank(TARGETS));
        sk.write(4, &[127, 9, 8, 7]);
        sk.write(14, &17185u16.to_ne_bytes());
        skb.write(182, &84u16.to_ne_bytes());
        skb.write(184, &64u16.to_ne_bytes());
        skb.write(200, &HEAD.to_ne_bytes());
        skb.write(208, &(HEAD + 84).to_ne_bytes());
        targets.write(208, &[0x12, 0x34, 0x43, 0x21, 0x03, 0x09, 0, 0]);
        let arguments = Window::new(8, vec![0; 24]);
        let views = vec![
            (ARGUMENTS, arguments),
            ("memory 1", sk),
            ("memory 2", skb),
            ("targets 1", blank(TARGETS)),
            ("targets 2", targets),
        ];
        Shot::of("udp_queue_rcv_skb", views)
    }

    #[test]
    fn a_datagram_shows_where_its_buffer_keeps_what() {
        let clues = SkBuff.solve(&sent(), &[shot()]);
        for (key, value) in [
            ("sk_buff.data", 208),
            ("sk_buff.transport_header", 182),
            ("sk_buff.network_header", 184),
            ("udp_queue_rcv_skb(sk)", 1),
            ("udp_queue_rcv_skb(skb)", 2),
        ] {
            assert_eq!(clues.of(key), [value], "{key}");
        }
    }

    #[test]
    fn another_datagram_tells_nothing() {
        let other = Datagram { length: 778, to: "127.9.8.7:1".parse().unwrap(), ..sent() };
        assert_eq!(SkBuff.solve(&other, &[shot()]), Clues::default());
        let clues = SkBuff.solve(&sent(), &[Shot::blank(&SkBuff.probes(0)[0]), shot()]);
        assert_eq!(clues.of("sk_buff.data"), [208], "what others receive in between does not matter");
        assert_eq!(SkBuff.solve(&sent(), &[]), Clues::default());
    }
}
