use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::ParsedPacket;
use crate::testing::{Record, a, cname, from_hex, packet, query, recorded_packets, response, wire_name};

/// The UDP messages among the recorded packets.
fn messages() -> Vec<Vec<u8>> {
    // The protocol is byte 9 of an IPv4 header and byte 6 of an IPv6 header. In the recorded packets, no other protocol has a
    // 17 there.
    let udp = recorded_packets().into_iter().filter(|(_, bytes)| bytes[9] == 17 || bytes[6] == 17);
    udp.map(|(ethertype, bytes)| ParsedPacket::parse(&packet(0, ethertype, &bytes)).unwrap().payload.to_vec()).collect()
}

fn addresses(bytes: &[u8]) -> Result<Vec<String>, MessageError> {
    let mut addresses = Vec::new();
    Message::parse(bytes)?.addresses(Completeness::Complete, &mut addresses)?;
    Ok(addresses.iter().map(|Address { ip, ttl }| format!("{ip} {ttl}")).collect())
}

fn count_unrelated_addresses(bytes: &[u8]) -> u32 {
    Message::parse(bytes).unwrap().addresses(Completeness::Complete, &mut Vec::new()).unwrap().addresses
}

#[test]
fn reads_recorded_messages() {
    // The question of each query and response, and the addresses. An empty question is the one for MX.
    let expected: [(&str, &[&str]); 12] = [
        ("A www.example.test", &["192.0.2.10 40"]),
        ("AAAA www.example.test", &["2001:db8::10 40"]),
        ("A big.example.test", &[]), // truncated
        ("A plain.example.test", &["192.0.2.10 300"]),
        ("A nothing.example.test", &[]),
        ("", &[]),
        ("HTTPS h.ub.test", &["198.51.100.9 90", "198.51.100.10 90", "2001:db8:7::9 90"]),
        ("HTTPS al.ub.test", &[]),
        ("A a.ub.test", &["198.51.100.7 120"]),
        ("A mixed.ub.test", &["198.51.100.8 120"]),
        (r"A sp\032ace\.dot.ub.test", &["198.51.100.11 60"]),
        ("A nx.ub.test", &[]),
    ];
    let messages = messages();
    assert_eq!(messages.len(), 2 * expected.len());
    for (pair, (question, found)) in messages.chunks(2).zip(expected) {
        if question.is_empty() {
            assert!(pair.iter().all(|bytes| Message::parse(bytes).err() == Some(MessageError::NotAddressQuery)));
            continue;
        }
        let [asked, answered] = [0, 1].map(|at| Message::parse(&pair[at]).unwrap());
        assert!(!asked.is_response() && answered.is_response(), "{question}");
        assert_eq!(asked.id(), answered.id());
        for message in [&asked, &answered] {
            assert_eq!(format!("{} {}", message.query_type().name(), message.name()), question);
        }
        if answered.is_truncated() {
            assert_eq!(question, "A big.example.test");
            assert_eq!(addresses(&pair[1]).unwrap().len(), 29);
        } else {
            assert_eq!(addresses(&pair[1]).unwrap(), found, "{question}");
        }
        let is_missing = ["A nothing.example.test", "A nx.ub.test"].contains(&question);
        assert_eq!(answered.rcode(), if is_missing { 3 } else { 0 }, "{question}");
    }
}

#[test]
fn addresses_are_found_with_aliases_in_any_order() {
    let chain = [cname("w", "x"), cname("x", "y"), cname("y", "z"), a("z", "192.0.2.1")];
    let orders: [[usize; 4]; 4] = [[0, 1, 2, 3], [3, 2, 1, 0], [3, 0, 2, 1], [1, 3, 2, 0]];
    for order in orders {
        let records: Vec<Record<'_>> = order.iter().map(|&at| chain[at].clone()).collect();
        assert_eq!(addresses(&response(1, "w", QueryType::A, &records)).unwrap(), ["192.0.2.1 300"], "{order:?}");
    }
}

#[test]
fn an_address_has_the_lowest_ttl_of_its_chain() {
    let mut bytes = response(1, "w", QueryType::A, &[cname("w", "z"), a("z", "192.0.2.1")]);
    // The alias's TTL, 300, comes after header, question, pointer, type and class.
    let at = 12 + 7 + 2 + 4;
    assert_eq!(bytes[at..at + 4], [0, 0, 1, 44]);
    bytes[at + 3] = 5;
    assert_eq!(addresses(&bytes).unwrap(), ["192.0.2.1 261"]);
    bytes[at] = 0x80;
    assert_eq!(addresses(&bytes).unwrap(), ["192.0.2.1 0"], "a TTL with the top bit counts as 0 (RFC 2181, section 8)");
}

#[test]
fn addresses_of_other_names_are_ignored() {
    let bytes =
        response(1, "w", QueryType::A, &[a("bank", "192.0.2.66"), a("w", "192.0.2.1"), a("sub.w", "192.0.2.67")]);
    assert_eq!(addresses(&bytes).unwrap(), ["192.0.2.1 300"]);
    assert_eq!(count_unrelated_addresses(&bytes), 2);
    let bytes = response(1, "w", QueryType::A, &[cname("other", "w2"), a("w2", "192.0.2.66")]);
    assert!(addresses(&bytes).unwrap().is_empty());
    let before_the_alias =
        response(1, "w", QueryType::A, &[a("w", "192.0.2.66"), cname("w", "z"), a("z", "192.0.2.1")]);
    assert_eq!(addresses(&before_the_alias).unwrap(), ["192.0.2.1 300"]);
}

#[test]
fn addresses_of_another_type_are_ignored() {
    let aaaa = ("w", 28, vec![0x20; 16]);
    let both = [a("w", "192.0.2.1"), aaaa];
    assert_eq!(addresses(&response(1, "w", QueryType::A, &both)).unwrap().len(), 1);
    assert_eq!(addresses(&response(1, "w", QueryType::Aaaa, &both)).unwrap().len(), 1);
    assert_eq!(addresses(&response(1, "w", QueryType::Any, &both)).unwrap().len(), 2);
    assert!(addresses(&response(1, "w", QueryType::Https, &both)).unwrap().is_empty());
}

#[test]
fn mapped_addresses_are_ipv4() {
    let mapped = from_hex("0000 0000 0000 0000 0000 ffff c000 0201");
    let bytes = response(1, "w", QueryType::Aaaa, &[("w", 28, mapped)]);
    assert_eq!(addresses(&bytes).unwrap(), ["192.0.2.1 300"]);
}

#[test]
fn svcb_records_are_followed() {
    // Priority 0 is an alias; parameter 4 holds IPv4 hints.
    let alias = ("w", 64, [vec![0, 0], wire_name("s")].concat());
    let hints = from_hex("0001 00 0001 0003 026832 0004 0004 c0000201");
    let bytes = response(1, "w", QueryType::Svcb, &[alias, ("s", 64, hints)]);
    assert_eq!(addresses(&bytes).unwrap(), ["192.0.2.1 300"]);
    let none = ("w", 64, vec![0, 0, 0]);
    assert!(addresses(&response(1, "w", QueryType::Svcb, &[none])).unwrap().is_empty());
}

#[test]
fn names_are_written_in_lower_case_and_escaped() {
    let mut bytes = query(1, "ABCDEF.Z", QueryType::A);
    bytes[13..19].copy_from_slice(b"A. \x07\xff\\");
    assert_eq!(Message::parse(&bytes).unwrap().name(), r"a\.\032\007\255\\.z");
    assert_eq!(Message::parse(&query(1, "", QueryType::A)).unwrap().name(), ".");
}

#[test]
fn the_longest_name_is_1003_bytes_long() {
    let labels =
        [63_usize, 63, 63, 61].map(|length| [vec![u8::try_from(length).unwrap()], vec![0xff; length]].concat());
    let mut bytes = query(1, "", QueryType::A);
    bytes.splice(12..12, labels.concat());
    assert_eq!(Message::parse(&bytes).unwrap().name().len(), 1_003);
    bytes[12 + 192] = 62;
    bytes.insert(12 + 193, 0xff);
    assert_eq!(Message::parse(&bytes).err(), Some(MessageError::Malformed), "256 bytes");
}

/// Malformed messages, each with its fault.
fn malformed_messages() -> Vec<(&'static str, Vec<u8>)> {
    let header = "0001 8180 0001 0001 0000 0000";
    let question = "0177 00 0001 0001";
    let of = |rest: &str| from_hex(&format!("{header} {question} {rest}"));
    vec![
        ("nothing", vec![]),
        ("half a header", from_hex("0001 8180 0001")),
        ("no question", from_hex(header)),
        ("half a question", from_hex(&format!("{header} 0177 00 0001"))),
        ("a name that points at itself", from_hex(&format!("{header} c00c 0001 0001"))),
        ("a name that points ahead", from_hex(&format!("{header} c00e 0001 0001 0177 00"))),
        ("a label of a reserved type", from_hex(&format!("{header} 8177 00 0001 0001"))),
        ("a label beyond the end", from_hex(&format!("{header} 3f77 00 0001 0001"))),
        ("a missing record", of("")),
        ("half a record", of("c00c 0001 0001 0000")),
        ("data beyond the end", of("c00c 0001 0001 0000 0100 0004 c000 02")),
        ("an address of three bytes", of("c00c 0001 0001 0000 0100 0003 c000 02")),
        ("an address of five bytes", of("c00c 0001 0001 0000 0100 0005 c000 0201 01")),
        ("an owner that points ahead", of("c0ff 0001 0001 0000 0100 0004 c000 0201")),
        ("owners that point at each other", of("c015 c013 0001 0001 0000 0100 0004 c000 0201")),
        ("an alias whose target points at itself", of("c00c 0005 0001 0000 0100 0002 c01f")),
        ("an alias that ends before its data", of("c00c 0005 0001 0000 0100 0005 0178 00 0000")),
        ("a count of 65,535 records, and only one record", {
            let mut bytes = response(1, "w", QueryType::A, &[a("w", "192.0.2.1")]);
            bytes[6..8].copy_from_slice(&[0xff, 0xff]);
            bytes
        }),
        ("a count of 65,535 records, and only 5,000 records without data", {
            let mut bytes = of(&"00 0001 0001 0000 0100 0000".repeat(5_000));
            bytes[6..8].copy_from_slice(&[0xff, 0xff]);
            bytes
        }),
        ("a name of 300 bytes", {
            let mut bytes = query(1, "", QueryType::A);
            bytes.splice(12..12, b"\x05xxxxx".repeat(50));
            bytes
        }),
        ("pointers to pointers", {
            // A record of another type whose data is 300 pointers, each to the one before, and an A record whose owner
            // is the last of them.
            let mut bytes = of("c00c 0063 0001 0000 0100 0258");
            bytes[7] = 2;
            let start = u16::try_from(bytes.len()).unwrap();
            let pointers = (0..300).map(|at| if at == 0 { 12 } else { start + 2 * (at - 1) });
            bytes.extend(pointers.flat_map(|target| (0xc000 + target).to_be_bytes()));
            let last = 0xc000 + start + 2 * 299;
            bytes.extend(last.to_be_bytes());
            bytes.extend(from_hex("0001 0001 0000 0100 0004 c000 0201"));
            bytes
        }),
    ]
}

#[test]
fn malformed_messages_are_errors() {
    for (what, bytes) in malformed_messages() {
        assert_eq!(addresses(&bytes), Err(MessageError::Malformed), "{what}");
    }
}

#[test]
fn loops_of_aliases_lead_to_no_address() {
    let loops: [&[Record<'_>]; 4] = [
        &[cname("w", "w")],
        &[cname("w", "x"), cname("x", "w")],
        &[cname("x", "w"), cname("w", "x")],
        &[cname("w", "x"), cname("x", "y"), cname("y", "x"), a("z", "192.0.2.1")],
    ];
    for records in loops {
        let found = addresses(&response(1, "w", QueryType::A, records));
        assert!(matches!(found.as_deref(), Ok([]) | Err(MessageError::Malformed)), "{records:?}: {found:?}");
    }
}

#[test]
fn the_whole_records_of_a_partial_message_count() {
    let bytes = response(1, "w", QueryType::A, &[a("w", "192.0.2.1"), a("w", "192.0.2.2")]);
    let mut found = Vec::new();
    let partial = &bytes[..bytes.len() - 1];
    Message::parse(partial).unwrap().addresses(Completeness::Partial, &mut found).unwrap();
    assert_eq!(found.iter().map(|address| address.ip).collect::<Vec<_>>(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(addresses(partial), Err(MessageError::Malformed));
}

#[test]
fn messages_about_other_things_are_not_used() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 4] = [
        ("an update", |b| b[2] |= 5 << 3),
        ("two questions", |b| b[5] = 2),
        ("no question", |b| b[5] = 0),
        ("class CH", |b| *b.last_mut().unwrap() = 3),
    ];
    for (what, change) in changes {
        let mut bytes = query(1, "w", QueryType::A);
        change(&mut bytes);
        assert_eq!(Message::parse(&bytes).err(), Some(MessageError::NotAddressQuery), "{what}");
    }
}

#[test]
fn work_is_bounded() {
    // Each alias comes after the one that it leads to. This is the worst order: each pass over the records follows only one
    // alias. The second pass exceeds the limit on records.
    let names: Vec<String> = (0..2_000).map(|at| format!("n{at}")).collect();
    let records: Vec<Record<'_>> = (1..names.len()).rev().map(|at| cname(&names[at - 1], &names[at])).collect();
    assert_eq!(addresses(&response(1, "n0", QueryType::A, &records)), Err(MessageError::Malformed));
    // More addresses than are taken.
    let records: Vec<Record<'_>> = (0..1_000).map(|_| a("w", "192.0.2.1")).collect();
    assert_eq!(addresses(&response(1, "w", QueryType::A, &records)).unwrap().len(), 256);
}

proptest! {
    #[test]
    fn any_bytes_can_be_parsed_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = addresses(&bytes);
    }

    #[test]
    fn changed_messages_can_be_parsed_without_a_panic(
        at in 0..messages().len(),
        keep in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        completeness in prop::sample::select(vec![Completeness::Complete, Completeness::Partial]),
    ) {
        let mut bytes = messages().swap_remove(at);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(keep.index(bytes.len() + 1));
        if let Ok(message) = Message::parse(&bytes) {
            let name = message.name();
            prop_assert!((1..=1_003).contains(&name.len()) && name.bytes().all(|byte| (b'!'..=b'~').contains(&byte)));
            let mut found = Vec::new();
            let _ = message.addresses(completeness, &mut found);
            prop_assert!(found.len() <= 256);
        }
    }
}
