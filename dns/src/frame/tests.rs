use proptest::prelude::*;

use super::*;
use crate::testing::{end, packet, recorded, tcp, udp};

const CLIENT: &str = "192.0.2.1:40000";
const SERVER: &str = "192.0.2.53:53";

fn read(ethertype: u16, bytes: &[u8]) -> Result<Frame<'_>, Unreadable> {
    Frame::parse(&packet(0, ethertype, bytes))
}

fn sample() -> Vec<u8> {
    udp(end(CLIENT), end(SERVER), b"payload").1
}

#[test]
fn reads_recorded_packets() {
    let packets = recorded();
    let (ethertype, bytes) = &packets[0];
    let frame = read(*ethertype, bytes).unwrap();
    assert_eq!((frame.source, frame.destination), (end("10.9.0.1:34023"), end("10.9.0.2:53")));
    assert_eq!((frame.payload.len(), frame.missing, frame.header), (57, 0, Header::Udp));

    let (ethertype, bytes) = &packets[2];
    let frame = read(*ethertype, bytes).unwrap();
    assert_eq!((frame.source, frame.destination), (end("[fd09::1]:45273"), end("[fd09::2]:53")));
    assert_eq!(frame.payload.len(), 57);

    let (ethertype, bytes) = &packets[6];
    let frame = read(*ethertype, bytes).unwrap();
    assert_eq!(frame.source, end("10.9.0.1:33907"));
    assert_eq!(frame.header, Header::Tcp { sequence: 2_660_155_298, flags: 2 });
    assert!(frame.payload.is_empty());

    assert!(packets.iter().all(|(ethertype, bytes)| read(*ethertype, bytes).is_ok()));
}

#[test]
fn bytes_behind_the_packet_are_padding() {
    let mut bytes = sample();
    bytes.extend([0xaa; 20]);
    assert_eq!(read(IPV4, &bytes).unwrap().payload, b"payload");
}

#[test]
fn what_was_not_captured_is_missing() {
    let bytes = sample();
    let cut = Packet { length: bytes.len(), ..packet(0, IPV4, &bytes[..bytes.len() - 3]) };
    let frame = Frame::parse(&cut).unwrap();
    assert_eq!((frame.payload, frame.missing), (&b"payl"[..], 3));
    let (ethertype, bytes) = tcp(end(CLIENT), end(SERVER), 7, 0x18, b"payload");
    let cut = Packet { length: bytes.len(), ..packet(0, ethertype, &bytes[..bytes.len() - 3]) };
    assert_eq!(Frame::parse(&cut).unwrap().missing, 3);
}

#[test]
fn tags_are_found_in_the_frame_or_have_gone_with_the_header() {
    let v4 = udp(end(CLIENT), end(SERVER), b"payload");
    let v6 = udp(end("[2001:db8::1]:40000"), end("[2001:db8::53]:53"), b"payload");
    for (ethertype, bytes) in [v4, v6] {
        // Priorities 2 and 3 make tags that begin as an IP header does.
        for tag in [[0x00, 5], [0x45, 5], [0x60, 5], [0xef, 0xff]] {
            let one = [&tag[..], &ethertype.to_be_bytes(), &bytes].concat();
            let two = [&tag[..], &VLAN.to_be_bytes(), &one].concat();
            let double = [&[0, 9][..], &SERVICE_VLAN.to_be_bytes(), &two].concat();
            for outer in [VLAN, SERVICE_VLAN] {
                assert_eq!(read(outer, &bytes).unwrap().payload, b"payload", "no tag");
                assert_eq!(read(outer, &one).unwrap().payload, b"payload", "tag {tag:x?}");
                assert_eq!(read(outer, &two).unwrap().payload, b"payload", "tags {tag:x?}");
                assert_eq!(read(outer, &double), Err(Unreadable::Foreign), "three tags");
                assert_eq!(read(ethertype, &one).unwrap().payload, b"payload", "as Linux 6.11 has it, {tag:x?}");
            }
        }
    }
}

#[test]
fn headers_that_contradict_themselves_are_refused() {
    type Spoil = fn(&mut Vec<u8>);
    let spoils: [(&str, Spoil); 8] = [
        ("version 5", |b| b[0] = 0x55),
        ("header of 8 bytes", |b| b[0] = 0x42),
        ("header beyond the end", |b| b[0] = 0x4f),
        ("total length within the header", |b| b[3] = 10),
        ("total length beyond the end", |b| b[2] = 2),
        ("UDP length within its header", |b| b[25] = 7),
        ("UDP length beyond the end", |b| b[24] = 1),
        ("no UDP header", |b| b.truncate(24)),
    ];
    for (what, spoil) in spoils {
        let mut bytes = sample();
        spoil(&mut bytes);
        assert_eq!(read(IPV4, &bytes), Err(Unreadable::Bad), "{what}");
    }
    let mut bytes = tcp(end(CLIENT), end(SERVER), 7, 0x18, b"").1;
    for offset in [0x40, 0x60, 0xf0] {
        bytes[32] = offset;
        assert_eq!(read(IPV4, &bytes), Err(Unreadable::Bad), "data offset {offset:x}");
    }
    assert_eq!(read(0x0806, &sample()), Err(Unreadable::Foreign), "ARP");
    let mut icmp = sample();
    icmp[9] = 1;
    assert_eq!(read(IPV4, &icmp), Err(Unreadable::Foreign), "ICMP");
}

#[test]
fn of_fragments_the_first_is_read_if_it_has_the_ports() {
    let mut first = sample();
    // More fragments follow, and the UDP header speaks of more than is here.
    (first[6], first[24]) = (0x20, 4);
    let frame = read(IPV4, &first).unwrap();
    assert_eq!((frame.payload, frame.missing), (&b"payload"[..], 1024));

    first.truncate(24);
    first[3] = 24;
    assert_eq!(read(IPV4, &first), Err(Unreadable::Fragment));

    let mut later = sample();
    later[7] = 1;
    assert_eq!(read(IPV4, &later), Err(Unreadable::Fragment));
}

/// A UDP packet over IPv6 with headers between.
fn extended(first: u8, headers: &[u8]) -> Vec<u8> {
    let mut bytes = udp(end("[2001:db8::1]:40000"), end("[2001:db8::53]:53"), b"payload").1;
    bytes[6] = first;
    bytes[5] += u8::try_from(headers.len()).unwrap();
    bytes.splice(40..40, headers.iter().copied());
    bytes
}

#[test]
fn extension_headers_are_passed_over() {
    let options = extended(0, &[60, 0, 1, 4, 0, 0, 0, 0, 43, 1, 1, 4, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(read(IPV6, &options), Err(Unreadable::Bad), "a routing header that is not there");
    let all = [
        &[60, 0, 1, 4, 0, 0, 0, 0][..],
        &[43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[51, 0, 0, 0, 0, 0, 0, 0],
        &[44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[17, 0, 0, 0, 0, 0, 0, 9],
    ];
    assert_eq!(read(IPV6, &extended(0, &all.concat())).unwrap().payload, b"payload");
    assert_eq!(read(IPV6, &extended(44, &[17, 0, 0, 8, 0, 0, 0, 9])), Err(Unreadable::Fragment));
    let first = extended(44, &[17, 0, 0, 1, 0, 0, 0, 9]);
    assert_eq!(read(IPV6, &first).unwrap().payload, b"payload");
    let endless = [60, 0, 0, 0, 0, 0, 0, 0].repeat(20);
    assert_eq!(read(IPV6, &extended(60, &endless)), Err(Unreadable::Bad));
    assert_eq!(read(IPV6, &extended(59, &[])), Err(Unreadable::Foreign), "no next header");
}

#[test]
fn mapped_addresses_are_ipv4() {
    let mut bytes = udp(end("[2001:db8::1]:40000"), end("[2001:db8::53]:53"), b"payload").1;
    bytes[8..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
    assert_eq!(read(IPV6, &bytes).unwrap().source, end(CLIENT));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        ethertype in prop::sample::select(vec![IPV4, IPV6, VLAN, SERVICE_VLAN, 0]),
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        length in 0..200_usize,
    ) {
        let _ = Frame::parse(&Packet { length, ..packet(0, ethertype, &bytes) });
    }

    #[test]
    fn spoiled_packets_are_survived(
        at in 0..recorded().len(),
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let (ethertype, mut bytes) = recorded().swap_remove(at);
        for (place, value) in changes {
            let place = place.index(bytes.len().min(60));
            bytes[place] = value;
        }
        let length = bytes.len();
        bytes.truncate(cut.index(length + 1));
        if let Ok(frame) = Frame::parse(&Packet { length, ..packet(0, ethertype, &bytes) }) {
            prop_assert!(frame.payload.len() + frame.missing <= 65_535);
        }
    }
}
