use proptest::prelude::*;

use super::*;
use crate::packet::TransportHeader;
use crate::testing::{endpoint, packet, recorded_packets, tcp, udp};
use crate::{Packet, ParsedPacket};

/// The kernel's metadata of a packet.
#[derive(Clone, Copy)]
struct Metadata {
    ethertype: u16,
    packet_type: u32,
    device_type: u32,
}

impl Metadata {
    fn arriving(ethertype: u16) -> Self {
        Self { ethertype, packet_type: 0, device_type: 1 }
    }
}

/// An interpreter of classic BPF, written after the kernel's Documentation/networking/filter.rst. Returns how many
/// bytes the program accepts. A load beyond the end ends the program with 0.
fn run(program: &[Instruction], bytes: &[u8], metadata: Metadata) -> u32 {
    let load = |offset: u32, size: u32| -> Option<u32> {
        match offset {
            0xffff_f000 => return Some(metadata.ethertype.into()),
            0xffff_f004 => return Some(metadata.packet_type),
            0xffff_f01c => return Some(metadata.device_type),
            _ => {}
        }
        let bytes = bytes.get(offset as usize..(offset + size) as usize)?;
        Some(bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)))
    };
    let (mut a, mut x, mut memory, mut at) = (0_u32, 0_u32, [None; 16], 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut branch = |holds: bool| at += usize::from(if holds { jt } else { jf });
        let loaded = match code {
            0x20 => load(k, 4),
            0x28 => load(k, 2),
            0x30 => load(k, 1),
            0x48 => load(x + k, 2),
            0x50 => load(x + k, 1),
            0xb1 => load(k, 1),
            _ => Some(0),
        };
        let Some(loaded) = loaded else { return 0 };
        match code {
            0x20 | 0x28 | 0x30 | 0x48 | 0x50 => a = loaded,
            0xb1 => x = (loaded & 0xf) * 4,
            0x01 => x = k,
            0x60 => a = memory[k as usize].expect("a memory word is stored before it is loaded"),
            0x02 => memory[k as usize] = Some(a),
            0x04 => a = a.wrapping_add(k),
            0x0c => a = a.wrapping_add(x),
            0x54 => a &= k,
            0x64 => a <<= k,
            0x07 => x = a,
            0x87 => a = x,
            0x15 => branch(a == k),
            0x45 => branch(a & k != 0),
            0x05 => at += k as usize,
            0x06 => return k,
            _ => panic!("instruction {code:#x}"),
        }
    }
}

/// How many bytes of an incoming packet the program accepts.
fn accepted_bytes(ports: &[u16], ethertype: u16, bytes: &[u8]) -> u32 {
    run(&program(ports, 1024), bytes, Metadata::arriving(ethertype))
}

fn dns_packets() -> Vec<(u16, Vec<u8>)> {
    let (v4, v6) = (
        ["192.0.2.1:40000", "192.0.2.53:53"].map(endpoint),
        ["[2001:db8::1]:40000", "[2001:db8::53]:53"].map(endpoint),
    );
    let of = |[client, server]: [crate::Endpoint; 2]| {
        [
            udp(client, server, b"x"),
            udp(server, client, b"x"),
            tcp(client, server, 1, 2, b""),
            tcp(server, client, 1, 2, b""),
        ]
    };
    [of(v4), of(v6)].concat()
}

#[test]
fn packets_with_dns_ports_are_accepted() {
    for (ethertype, bytes) in dns_packets() {
        let expected = if bytes[9] == 6 || bytes[6] == 6 { WHOLE_PACKET } else { 1024 };
        assert_eq!(accepted_bytes(&[53], ethertype, &bytes), expected);
        assert_eq!(accepted_bytes(&[5353, 53, 5355], ethertype, &bytes), expected);
        assert_eq!(accepted_bytes(&[54], ethertype, &bytes), 0);
    }
}

#[test]
fn vlan_tags_are_skipped() {
    for (ethertype, bytes) in dns_packets() {
        for tag in [[0x00, 5], [0x45, 5], [0x60, 5]] {
            let one = [&tag[..], &ethertype.to_be_bytes(), &bytes].concat();
            let two = [&tag[..], &VLAN.to_be_bytes(), &one].concat();
            for outer in [VLAN, QINQ] {
                assert_ne!(accepted_bytes(&[53], outer, &bytes), 0, "no tag");
                assert_ne!(accepted_bytes(&[53], outer, &one), 0, "tag {tag:x?}");
                assert_ne!(accepted_bytes(&[53], outer, &two), 0, "tags {tag:x?}");
                assert_eq!(accepted_bytes(&[54], outer, &two), 0);
            }
        }
    }
}

#[test]
fn packets_over_loopback_are_captured_once() {
    let (ethertype, bytes) = dns_packets().swap_remove(0);
    for (packet_type, device_type, expected) in [(0, 772, 1024), (4, 772, 0), (0, 1, 1024), (4, 1, 1024), (3, 1, 1024)]
    {
        let metadata = Metadata { ethertype, packet_type, device_type };
        assert_eq!(run(&program(&[53], 1024), &bytes, metadata), expected, "{packet_type} {device_type}");
    }
}

#[test]
fn extension_headers_are_skipped() {
    let mut bytes = udp(endpoint("[2001:db8::1]:40000"), endpoint("[2001:db8::53]:53"), b"x").1;
    bytes[6] = 0;
    bytes.splice(
        40..40,
        [[44, 1].as_slice(), &[0; 14], &[60, 0, 0, 1, 0, 0, 0, 0], &[17, 0, 0, 0, 0, 0, 0, 0]].concat(),
    );
    assert_eq!(accepted_bytes(&[53], IPV6, &bytes), 1024);
    assert_eq!(accepted_bytes(&[54], IPV6, &bytes), 0);
    // A later fragment has no ports.
    bytes[40 + 16 + 3] = 8;
    assert_eq!(accepted_bytes(&[53], IPV6, &bytes), 0);
}

#[test]
fn ipv4_options_are_skipped_and_later_fragments_are_dropped() {
    let mut bytes = udp(endpoint("192.0.2.1:40000"), endpoint("192.0.2.53:53"), b"x").1;
    bytes[0] = 0x47;
    bytes.splice(20..20, [1; 8]);
    assert_eq!(accepted_bytes(&[53], IPV4, &bytes), 1024);
    bytes[7] = 1;
    assert_eq!(accepted_bytes(&[53], IPV4, &bytes), 0);
}

#[test]
fn other_packets_are_dropped() {
    assert_eq!(accepted_bytes(&[53], 0x0806, &[0; 60]), 0);
    assert_eq!(accepted_bytes(&[53], IPV4, &[]), 0);
    for (ethertype, mut bytes) in dns_packets() {
        bytes[if ethertype == IPV4 { 9 } else { 6 }] = 132;
        assert_eq!(accepted_bytes(&[53], ethertype, &bytes), 0, "SCTP");
    }
}

#[test]
fn a_program_for_as_many_ports_as_allowed_is_short() {
    let ports: Vec<u16> = (1..=32).collect();
    assert!(program(&ports, 65_535).len() < 300);
    let (ethertype, bytes) = udp(endpoint("192.0.2.1:40000"), endpoint("192.0.2.53:32"), b"x");
    assert_eq!(accepted_bytes(&ports, ethertype, &bytes), 1024);
}

proptest! {
    /// Of the packets that can be parsed, the filter accepts those with DNS ports.
    #[test]
    fn agrees_with_the_parser(
        number in 0..recorded_packets().len(),
        tag in prop::option::of(any::<[u8; 2]>()),
        changes in prop::collection::vec((0..64_usize, any::<u8>()), 0..3),
    ) {
        let (mut ethertype, mut bytes) = recorded_packets().swap_remove(number);
        for (offset, value) in changes {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte = value;
            }
        }
        if let Some(tag) = tag {
            bytes = [&tag[..], &ethertype.to_be_bytes(), &bytes].concat();
            ethertype = VLAN;
        }
        let accepted = accepted_bytes(&[53], ethertype, &bytes);
        if let Ok(parsed) = ParsedPacket::parse(&Packet { ..packet(0, ethertype, &bytes) }) {
            let dns = [parsed.source.port, parsed.destination.port].contains(&53);
            let expected = match parsed.header {
                TransportHeader::Udp => 1024,
                TransportHeader::Tcp { .. } => WHOLE_PACKET,
            };
            prop_assert_eq!(accepted, if dns { expected } else { 0 });
        }
    }

    #[test]
    fn any_packet_can_be_filtered_without_a_panic(ethertype in any::<u16>(), bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        for ethertype in [ethertype, IPV4, IPV6, VLAN] {
            accepted_bytes(&[53], ethertype, &bytes);
        }
    }
}
