use proptest::prelude::*;

use super::*;
use crate::testing::{endpoint, packet, recorded_packets, tcp, udp};

const CLIENT: &str = "192.0.2.1:40000";
const SERVER: &str = "192.0.2.53:53";

fn parse(ethertype: u16, bytes: &[u8]) -> Result<ParsedPacket<'_>, PacketError> {
    ParsedPacket::parse(&packet(0, ethertype, bytes))
}

fn udp_packet() -> Vec<u8> {
    udp(endpoint(CLIENT), endpoint(SERVER), b"payload").1
}

#[test]
fn reads_recorded_packets() {
    let packets = recorded_packets();
    let (ethertype, bytes) = &packets[0];
    let parsed = parse(*ethertype, bytes).unwrap();
    assert_eq!((parsed.source, parsed.destination), (endpoint("10.9.0.1:34023"), endpoint("10.9.0.2:53")));
    assert_eq!((parsed.payload.len(), parsed.missing, parsed.header), (57, 0, TransportHeader::Udp));

    let (ethertype, bytes) = &packets[2];
    let parsed = parse(*ethertype, bytes).unwrap();
    assert_eq!((parsed.source, parsed.destination), (endpoint("[fd09::1]:45273"), endpoint("[fd09::2]:53")));
    assert_eq!(parsed.payload.len(), 57);

    let (ethertype, bytes) = &packets[6];
    let parsed = parse(*ethertype, bytes).unwrap();
    assert_eq!(parsed.source, endpoint("10.9.0.1:33907"));
    assert_eq!(parsed.header, TransportHeader::Tcp { sequence: 2_660_155_298, flags: 2 });
    assert!(parsed.payload.is_empty());

    assert!(packets.iter().all(|(ethertype, bytes)| parse(*ethertype, bytes).is_ok()));
}

#[test]
fn bytes_after_the_packet_are_padding() {
    let mut bytes = udp_packet();
    bytes.extend([0xaa; 20]);
    assert_eq!(parse(IPV4, &bytes).unwrap().payload, b"payload");
}

#[test]
fn bytes_that_were_not_captured_are_missing() {
    let bytes = udp_packet();
    let truncated = Packet { length: bytes.len(), ..packet(0, IPV4, &bytes[..bytes.len() - 3]) };
    let parsed = ParsedPacket::parse(&truncated).unwrap();
    assert_eq!((parsed.payload, parsed.missing), (&b"payl"[..], 3));
    let (ethertype, bytes) = tcp(endpoint(CLIENT), endpoint(SERVER), 7, 0x18, b"payload");
    let truncated = Packet { length: bytes.len(), ..packet(0, ethertype, &bytes[..bytes.len() - 3]) };
    assert_eq!(ParsedPacket::parse(&truncated).unwrap().missing, 3);
}

#[test]
fn vlan_tags_are_skipped_whether_or_not_the_kernel_removed_them() {
    let v4 = udp(endpoint(CLIENT), endpoint(SERVER), b"payload");
    let v6 = udp(endpoint("[2001:db8::1]:40000"), endpoint("[2001:db8::53]:53"), b"payload");
    for (ethertype, bytes) in [v4, v6] {
        // Tags with priority 2 and 3 begin like an IP header.
        for tag in [[0x00, 5], [0x45, 5], [0x60, 5], [0xef, 0xff]] {
            let one = [&tag[..], &ethertype.to_be_bytes(), &bytes].concat();
            let two = [&tag[..], &VLAN.to_be_bytes(), &one].concat();
            let three = [&[0, 9][..], &QINQ.to_be_bytes(), &two].concat();
            for outer in [VLAN, QINQ] {
                assert_eq!(parse(outer, &bytes).unwrap().payload, b"payload", "no tag");
                assert_eq!(parse(outer, &one).unwrap().payload, b"payload", "tag {tag:x?}");
                assert_eq!(parse(outer, &two).unwrap().payload, b"payload", "tags {tag:x?}");
                assert_eq!(parse(outer, &three), Err(PacketError::NotUdpOrTcp), "three tags");
                // Since Linux 6.11, the kernel gives the packet's ethertype for such bytes.
                assert_eq!(parse(ethertype, &one).unwrap().payload, b"payload", "tag {tag:x?}, ethertype of IP");
            }
        }
    }
}

#[test]
fn malformed_headers_are_refused() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 8] = [
        ("version 5", |b| b[0] = 0x55),
        ("header of 8 bytes", |b| b[0] = 0x42),
        ("header beyond the end", |b| b[0] = 0x4f),
        ("total length within the header", |b| b[3] = 10),
        ("total length beyond the end", |b| b[2] = 2),
        ("UDP length within its header", |b| b[25] = 7),
        ("UDP length beyond the end", |b| b[24] = 1),
        ("truncated UDP header", |b| b.truncate(24)),
    ];
    for (what, change) in changes {
        let mut bytes = udp_packet();
        change(&mut bytes);
        assert_eq!(parse(IPV4, &bytes), Err(PacketError::Malformed), "{what}");
    }
    let mut bytes = tcp(endpoint(CLIENT), endpoint(SERVER), 7, 0x18, b"").1;
    for offset in [0x40, 0x60, 0xf0] {
        bytes[32] = offset;
        assert_eq!(parse(IPV4, &bytes), Err(PacketError::Malformed), "data offset {offset:x}");
    }
}

#[test]
fn other_protocols_are_refused() {
    assert_eq!(parse(0x0806, &udp_packet()), Err(PacketError::NotUdpOrTcp), "ARP");
    let mut icmp = udp_packet();
    icmp[9] = 1;
    assert_eq!(parse(IPV4, &icmp), Err(PacketError::NotUdpOrTcp), "ICMP");
}

#[test]
fn only_a_first_fragment_with_a_whole_transport_header_is_read() {
    let mut first = udp_packet();
    // More fragments follow: the UDP header gives the length of the whole datagram.
    (first[6], first[24]) = (0x20, 4);
    let parsed = parse(IPV4, &first).unwrap();
    assert_eq!((parsed.payload, parsed.missing), (&b"payload"[..], 1024));

    first.truncate(24);
    first[3] = 24;
    assert_eq!(parse(IPV4, &first), Err(PacketError::Fragment));

    let mut later = udp_packet();
    later[7] = 1;
    assert_eq!(parse(IPV4, &later), Err(PacketError::Fragment));
}

/// A UDP packet over IPv6 with extension headers. `first` is the type of the first one.
fn with_extension_headers(first: u8, headers: &[u8]) -> Vec<u8> {
    let mut bytes = udp(endpoint("[2001:db8::1]:40000"), endpoint("[2001:db8::53]:53"), b"payload").1;
    bytes[6] = first;
    bytes[5] += u8::try_from(headers.len()).unwrap();
    bytes.splice(40..40, headers.iter().copied());
    bytes
}

#[test]
fn extension_headers_are_skipped() {
    let options =
        with_extension_headers(0, &[60, 0, 1, 4, 0, 0, 0, 0, 43, 1, 1, 4, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(parse(IPV6, &options), Err(PacketError::Malformed), "the routing header is missing");
    let all = [
        &[60, 0, 1, 4, 0, 0, 0, 0][..],
        &[43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[51, 0, 0, 0, 0, 0, 0, 0],
        &[44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[17, 0, 0, 0, 0, 0, 0, 9],
    ];
    assert_eq!(parse(IPV6, &with_extension_headers(0, &all.concat())).unwrap().payload, b"payload");
    assert_eq!(parse(IPV6, &with_extension_headers(44, &[17, 0, 0, 8, 0, 0, 0, 9])), Err(PacketError::Fragment));
    let first_fragment = with_extension_headers(44, &[17, 0, 0, 1, 0, 0, 0, 9]);
    assert_eq!(parse(IPV6, &first_fragment).unwrap().payload, b"payload");
    let endless = [60, 0, 0, 0, 0, 0, 0, 0].repeat(20);
    assert_eq!(parse(IPV6, &with_extension_headers(60, &endless)), Err(PacketError::Malformed));
    assert_eq!(parse(IPV6, &with_extension_headers(59, &[])), Err(PacketError::NotUdpOrTcp), "no next header");
}

#[test]
fn mapped_addresses_are_ipv4() {
    let mut bytes = udp(endpoint("[2001:db8::1]:40000"), endpoint("[2001:db8::53]:53"), b"payload").1;
    bytes[8..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
    assert_eq!(parse(IPV6, &bytes).unwrap().source, endpoint(CLIENT));
}

proptest! {
    #[test]
    fn any_bytes_can_be_parsed_without_a_panic(
        ethertype in prop::sample::select(vec![IPV4, IPV6, VLAN, QINQ, 0]),
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        length in 0..200_usize,
    ) {
        let _ = ParsedPacket::parse(&Packet { length, ..packet(0, ethertype, &bytes) });
    }

    #[test]
    fn changed_packets_can_be_parsed_without_a_panic(
        number in 0..recorded_packets().len(),
        captured in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let (ethertype, mut bytes) = recorded_packets().swap_remove(number);
        for (at, value) in changes {
            let at = at.index(bytes.len().min(60));
            bytes[at] = value;
        }
        let length = bytes.len();
        bytes.truncate(captured.index(length + 1));
        if let Ok(parsed) = ParsedPacket::parse(&Packet { length, ..packet(0, ethertype, &bytes) }) {
            prop_assert!(parsed.payload.len() + parsed.missing <= 65_535);
        }
    }
}
