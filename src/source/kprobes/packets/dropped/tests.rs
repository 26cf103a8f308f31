use socktrail_kprobes::{Decoder, Format};

use super::buffer::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use super::*;
use crate::model::event::{Dropped, EventKind};
use crate::model::flow::{Endpoint, Transport};
use crate::model::kernel_address::SockAddress;
use crate::source::kprobes::packets::freed::FreedBy;
use crate::source::kprobes::{AF_INET, AF_INET6, Decode};

/// A packet of IPv4 that has not come to a device.
const IPV4: [u16; 3] = [ETHERTYPE_IPV4, 78, u16::MAX];

/// From the Ethernet type and the offsets of the IP header and the link header.
fn offsets([protocol, network, mac]: [u16; 3]) -> HeaderOffsets {
    let mut memory = [0; 8];
    memory[..2].copy_from_slice(&protocol.to_be_bytes());
    memory[4..6].copy_from_slice(&network.to_ne_bytes());
    memory[6..].copy_from_slice(&mac.to_ne_bytes());
    HeaderOffsets::of(u64::from_ne_bytes(memory))
}

fn decoded(of: [u16; 3], len: u32, begin: &[u8]) -> Option<Dropped> {
    match (Buffer { sk: 7, headers: offsets(of), len, begin }).event(false) {
        Decoded::Event(EventKind::Dropped(dropped)) => Some(dropped),
        _ => None,
    }
}

/// A datagram of 100 bytes from 192.0.2.1:1 to 192.0.2.2:2.
fn datagram() -> Vec<u8> {
    let header = [0x45, 0, 0, 100, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2, 0, 80, 0, 0];
    let mut packet = header.to_vec();
    packet.resize(WORDS * 8, 0);
    packet
}

fn ends() -> (Endpoint, Endpoint) {
    (Endpoint::new([192, 0, 2, 1], 1), Endpoint::new([192, 0, 2, 2], 2))
}

#[test]
fn a_packet_is_known_by_its_headers_before_and_at_a_device() {
    let transport = Some(Transport::Udp);
    let ends = Some(ends());
    let wanted = Dropped {
        sock: SockAddress::new(7),
        transport,
        other_protocol: false,
        ends,
        bytes: 100,
        with_others: false,
        may_have_arrived: false,
        may_be_drivers: false,
    };
    assert_eq!(decoded(IPV4, 100, &datagram()), Some(wanted));
    let mut frame = vec![2; 12];
    frame.extend([8, 0]);
    frame.extend(datagram());
    frame.truncate(WORDS * 8);
    assert_eq!(decoded([ETHERTYPE_IPV4, 78, 64], 114, &frame), Some(wanted));
    frame[12] = 0x86;
    assert_eq!(decoded([ETHERTYPE_IPV4, 78, 64], 114, &frame), None, "another Ethernet type");
}

#[test]
fn packets_that_a_queue_has_passed_to_its_driver_were_sent() {
    let unsegmented = AtDevice { skb: 1, prev: 0, mac_len: 0, pkt_len: 114, len: 114 };
    assert!(!unsegmented.was_sent(), "in its queue, or on the way into it");
    assert!(!AtDevice { prev: 2, ..unsegmented }.was_sent(), "in a queue that keeps packets in a tree");
    assert!(AtDevice { prev: 1, ..unsegmented }.was_sent());
    let segmented_by_a_queue = AtDevice { mac_len: 14, ..unsegmented };
    assert!(
        !segmented_by_a_queue.was_sent() && !AtDevice { prev: 2, ..segmented_by_a_queue }.was_sent(),
        "the first of two"
    );
    assert!(AtDevice { prev: 1, ..segmented_by_a_queue }.was_sent());
    let segmented_for_the_driver = AtDevice { pkt_len: 200, ..segmented_by_a_queue };
    assert!(segmented_for_the_driver.was_sent() && AtDevice { prev: 2, ..segmented_for_the_driver }.was_sent());
}

#[test]
fn a_dropped_packet_without_a_link_header_may_have_arrived() {
    let without = Buffer { sk: 7, headers: offsets([ETHERTYPE_IPV4, 64, 64]), len: 100, begin: &datagram() };
    let dropped = match without.event_at_device(1, true) {
        Decoded::MaybeDuplicateDrop(dropped, FreedBy::Caller(1)) => dropped,
        other => panic!("{other:?}"),
    };
    assert_eq!((dropped.ends, dropped.may_have_arrived, dropped.may_be_drivers), (Some(ends()), true, true));
    let headers = offsets([ETHERTYPE_IPV4, 78, 64]);
    assert!(
        headers.is_leaving(1000, 1064) && !headers.is_leaving(1000, 1078),
        "an incoming packet begins after its link header"
    );
    assert!(!headers.has_80211_header());
    assert!(!HeaderOffsets { mac: 54, ..headers }.has_80211_header(), "InfiniBand");
    assert!(HeaderOffsets { mac: 44, ..headers }.has_80211_header(), "IEEE 802.11");
}

#[test]
fn unread_copies_of_a_capture_are_not_drops() {
    const AF_PACKET: u16 = 17;
    for family in [Some(0), Some(AF_INET), Some(AF_INET6), None] {
        assert!(is_of_inet(7, family), "{family:?}");
    }
    assert!(!is_of_inet(7, Some(AF_PACKET)));
    assert!(is_of_inet(0, Some(AF_PACKET)), "left by another sample");
}

#[test]
fn other_packets_are_ignored() {
    assert_eq!(decoded(IPV4, 101, &datagram()), None, "of another length");
    assert_eq!(decoded([ETHERTYPE_IPV6, 78, u16::MAX], 100, &datagram()), None, "of another version");
    assert_eq!(decoded([0x0806, 78, u16::MAX], 100, &datagram()), None, "ARP");
    assert_eq!(decoded([ETHERTYPE_IPV4, 78, 100], 100, &datagram()), None, "a link header that ends before it begins");
    assert_eq!(decoded(IPV4, 100, &[]), None);
}

#[test]
fn packets_that_never_reached_ip_have_no_headers() {
    let dropped = decoded([0, 0, u16::MAX], 100, &datagram()).unwrap();
    assert_eq!((dropped.sock, dropped.transport, dropped.ends), (SockAddress::new(7), None, None));
}

#[test]
fn packets_encapsulated_by_ipsec_have_neither_transport_nor_ends() {
    let esp = [&datagram()[..9], &[50], &datagram()[10..]].concat();
    let dropped = decoded(IPV4, 100, &esp).unwrap();
    assert_eq!((dropped.other_protocol, dropped.transport, dropped.ends), (true, None, None));
}

#[test]
fn later_fragments_have_no_ends() {
    let mut fragment = datagram();
    fragment[7] = 185;
    let dropped = decoded(IPV4, 100, &fragment).unwrap();
    assert_eq!((dropped.transport, dropped.ends, dropped.bytes), (Some(Transport::Udp), None, 100));
}

#[test]
fn truncated_ipv6_has_no_ends() {
    let mut packet = vec![0x60, 0, 0, 0, 0, 60, 6, 64];
    let (here, there): (std::net::Ipv6Addr, std::net::Ipv6Addr) =
        ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
    packet.extend([here, there].map(|address| address.octets()).concat());
    packet.extend([0, 1, 0, 2, 0, 0, 0, 0]);
    let of = [ETHERTYPE_IPV6, 78, u16::MAX];
    let dropped = decoded(of, 100, &packet).unwrap();
    assert_eq!(dropped.ends, Some((Endpoint::new(here, 1), Endpoint::new(there, 2))));
    let cut_short = decoded(of, 100, &packet[..42]).unwrap();
    assert_eq!((cut_short.transport, cut_short.ends), (Some(Transport::Tcp), None));
}

/// A sample of Linux 3.16, where `protocol` and the offsets of headers are not adjacent.
fn early(protocol: u16, route: u64, [network, mac]: [u16; 2], begin: &[u8]) -> Option<Dropped> {
    const FORMAT: &[u8] = b"name: local_drops\nID: 7\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:u64 skb;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:u64 sk;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:u16 protocol;\toffset:24;\tsize:2;\tsigned:0;\n\
        \tfield:u16 network;\toffset:26;\tsize:2;\tsigned:0;\n\
        \tfield:u16 mac;\toffset:28;\tsize:2;\tsigned:0;\n\
        \tfield:u32 len;\toffset:32;\tsize:4;\tsigned:0;\n\
        \tfield:u64 route;\toffset:40;\tsize:8;\tsigned:0;\n\
        \tfield:u64 head;\toffset:48;\tsize:8;\tsigned:0;\n\
        \tfield:u64 data;\toffset:56;\tsize:8;\tsigned:0;\n\
        \tfield:u64 begin[8];\toffset:64;\tsize:64;\tsigned:0;\n";
    const HEAD: u64 = 0x1000;
    let mut raw = vec![0; 24];
    raw[16] = 7;
    [protocol.to_be(), network, mac, 0].iter().for_each(|number| raw.extend(number.to_ne_bytes()));
    [100_u32, 0].iter().for_each(|number| raw.extend(number.to_ne_bytes()));
    [route, HEAD, HEAD + 78].iter().for_each(|number| raw.extend(number.to_ne_bytes()));
    raw.extend(begin);
    let decoder = Decoder::<EarlyPacketFreed>::new(&Format::parse(FORMAT).unwrap()).unwrap();
    match Decode::decode(&decoder, &raw) {
        Decoded::Event(EventKind::Dropped(dropped)) => Some(dropped),
        _ => None,
    }
}

#[test]
fn before_linux_3_18_a_packet_is_known_by_its_route_and_headers() {
    const ROUTE: u64 = 0x2000;
    let whole = Some((Some(Transport::Udp), Some(ends()), 100));
    let facts = |dropped: Option<Dropped>| dropped.map(|dropped| (dropped.transport, dropped.ends, dropped.bytes));
    let at_ip = [78, u16::MAX];
    assert_eq!(facts(early(ETHERTYPE_IPV4, ROUTE, at_ip, &datagram())), whole);
    assert_eq!(facts(early(0, ROUTE, at_ip, &datagram())), whole, "dropped before the kernel notes the type");
    let never = Some((None, None, 0));
    assert_eq!(facts(early(0, 0, at_ip, &datagram())), never, "held back by MSG_MORE and never sent");
    assert_eq!(facts(early(0, ROUTE, [0, u16::MAX], &datagram())), never, "a segment without a header of IP");
}
