//! Packets and messages for tests, recorded or built.

use std::net::{IpAddr, Ipv4Addr};

use crate::packet::{IPV4, IPV6};
use crate::{Endpoint, Packet, QueryType};

/// The recorded packets: ethertype, and bytes from the IP header on.
pub(crate) fn recorded_packets() -> Vec<(u16, Vec<u8>)> {
    let lines = include_str!("../tests/data/packets.txt").lines();
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(parse_line).collect()
}

fn parse_line(line: &str) -> (u16, Vec<u8>) {
    let (ethertype, bytes) = line.split_once(' ').unwrap();
    (u16::from_str_radix(ethertype, 16).unwrap(), from_hex(bytes))
}

pub(crate) fn from_hex(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

pub(crate) fn packet(time: u64, ethertype: u16, bytes: &[u8]) -> Packet<'_> {
    Packet { time, interface: 3, ethertype, length: bytes.len(), bytes }
}

pub(crate) fn endpoint(text: &str) -> Endpoint {
    text.parse::<std::net::SocketAddr>().unwrap().into()
}

/// A UDP packet: ethertype, and bytes from the IP header on.
pub(crate) fn udp(source: Endpoint, destination: Endpoint, payload: &[u8]) -> (u16, Vec<u8>) {
    let length = u16::try_from(payload.len() + 8).unwrap();
    let header = [source.port, destination.port, length, 0].map(u16::to_be_bytes).concat();
    ip(17, source.ip, destination.ip, &[&header, payload].concat())
}

/// A TCP packet: ethertype, and bytes from the IP header on.
pub(crate) fn tcp(source: Endpoint, destination: Endpoint, sequence: u32, flags: u8, payload: &[u8]) -> (u16, Vec<u8>) {
    let mut header = [source.port, destination.port].map(u16::to_be_bytes).concat();
    header.extend(sequence.to_be_bytes());
    header.extend([0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    ip(6, source.ip, destination.ip, &[&header, payload].concat())
}

fn ip(protocol: u8, source: IpAddr, destination: IpAddr, payload: &[u8]) -> (u16, Vec<u8>) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0x45, 0];
            packet.extend(u16::try_from(payload.len() + 20).unwrap().to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend([source.octets(), destination.octets()].concat());
            packet.extend(payload);
            (IPV4, packet)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend([source.octets(), destination.octets()].concat());
            packet.extend(payload);
            (IPV6, packet)
        }
        _ => panic!("both addresses of a packet are of one IP version"),
    }
}

/// The number of a type (IANA, DNS parameters).
pub(crate) fn type_number(query_type: QueryType) -> u16 {
    match query_type {
        QueryType::A => 1,
        QueryType::Aaaa => 28,
        QueryType::Svcb => 64,
        QueryType::Https => 65,
        QueryType::Any => 255,
    }
}

/// A name in wire format, uncompressed.
pub(crate) fn wire_name(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> =
        labels.flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat()).collect();
    wire.push(0);
    wire
}

pub(crate) fn query(id: u16, name: &str, query_type: QueryType) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(wire_name(name));
    message.extend([type_number(query_type).to_be_bytes(), [0, 1]].concat());
    message
}

/// A record: owner, type, data.
pub(crate) type Record<'a> = (&'a str, u16, Vec<u8>);

pub(crate) fn response(id: u16, name: &str, query_type: QueryType, records: &[Record<'_>]) -> Vec<u8> {
    let mut message = query(id, name, query_type);
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
    for (owner, rtype, data) in records {
        message.extend(if *owner == name { vec![0xc0, 12] } else { wire_name(owner) });
        message.extend([*rtype, 1, 0, 300].map(u16::to_be_bytes).concat());
        message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend(data);
    }
    message
}

pub(crate) fn a<'a>(owner: &'a str, address: &str) -> Record<'a> {
    (owner, 1, address.parse::<Ipv4Addr>().unwrap().octets().to_vec())
}

pub(crate) fn cname<'a>(owner: &'a str, target: &str) -> Record<'a> {
    (owner, 5, wire_name(target))
}
