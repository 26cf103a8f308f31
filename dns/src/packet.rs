//! Reads IP and transport headers of captured packets.
//!
//! `pnet_packet` reads headers, but checks only that their fixed part is there. Versions, header lengths and total
//! lengths are checked here. Checksums are not checked: a packet that this host sends has none yet where it is
//! captured, because its network device computes them.

use std::net::IpAddr;

use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols as Protocol};
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::ipv6::{ExtensionPacket, FragmentPacket, Ipv6Packet};
use pnet_packet::tcp::TcpPacket;
use pnet_packet::udp::UdpPacket;

use crate::{Endpoint, Transport};

/// Ethertypes (IEEE 802 numbers).
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
/// The customer tag of IEEE 802.1Q.
pub(crate) const VLAN: u16 = 0x8100;
/// The service tag of IEEE 802.1ad, which comes before a customer tag.
pub(crate) const QINQ: u16 = 0x88a8;

/// The most VLAN tags that a packet may begin with.
const MAX_TAGS: usize = 2;
/// The most IPv6 extension headers that are followed.
const MAX_EXTENSIONS: usize = 8;

/// A packet as it was captured, without its link-layer header.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// When it was captured, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The index of the interface that it was captured on; 0 if that is not known.
    pub interface: u32,
    /// Its ethertype in host byte order. For a packet with a VLAN tag this may be the tag's ethertype or that of the
    /// packet after it, and `bytes` may begin with the tag or not.
    pub ethertype: u16,
    /// Its length on the wire, counted from the first byte of `bytes`.
    pub length: usize,
    /// The part of it that was captured.
    pub bytes: &'a [u8],
}

/// The endpoints and the payload of a UDP or TCP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedPacket<'a> {
    /// The sender.
    pub source: Endpoint,
    /// The receiver.
    pub destination: Endpoint,
    /// The part of the payload that was captured.
    pub payload: &'a [u8],
    /// How many more bytes the payload has that were not captured.
    pub missing: usize,
    /// The transport header, without the ports.
    pub header: TransportHeader,
}

/// The fields of a transport header that are used, besides the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportHeader {
    /// UDP.
    Udp,
    /// TCP (RFC 9293, section 3.1).
    Tcp {
        /// The sequence number of the first byte of payload, or of the SYN.
        sequence: u32,
        /// The low byte of the control bits: FIN 1, SYN 2, RST 4, ….
        flags: u8,
    },
}

impl TransportHeader {
    /// The transport protocol.
    pub fn transport(&self) -> Transport {
        match self {
            Self::Udp => Transport::Udp,
            Self::Tcp { .. } => Transport::Tcp,
        }
    }
}

/// Why a packet cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketError {
    /// It is not UDP or TCP over IP.
    NotUdpOrTcp,
    /// Its headers are truncated or contradict each other.
    Malformed,
    /// It is an IP fragment that does not hold the whole transport header.
    Fragment,
}

impl<'a> ParsedPacket<'a> {
    /// Reads a packet.
    ///
    /// Of a fragmented packet only the first fragment is read, and only if it holds the whole transport header. The
    /// rest of the payload then counts as [missing](ParsedPacket::missing).
    ///
    /// # Errors
    ///
    /// Why the packet cannot be read.
    pub fn parse(packet: &Packet<'a>) -> Result<Self, PacketError> {
        let (ethertype, skipped) = untag(packet);
        let bytes = packet.bytes.get(skipped..).unwrap_or_default();
        let length = packet.length.saturating_sub(skipped).max(bytes.len());
        match ethertype {
            IPV4 => ipv4(bytes, length),
            IPV6 => ipv6(bytes, length),
            _ => Err(PacketError::NotUdpOrTcp),
        }
    }
}

/// The ethertype after the VLAN tags, and how many bytes the tags have.
///
/// The ethertype that the kernel gives is not enough. Because it removes the link-layer header, it may say "VLAN" for a
/// packet whose tag it has removed too (outgoing packets before Linux 6.11), or "IP" for one that begins with a second
/// tag (incoming packets since then). So bytes that have a valid IP header are an IP packet; other bytes are a tag if
/// they hold an ethertype where a tag has one.
fn untag(packet: &Packet<'_>) -> (u16, usize) {
    let (mut ethertype, mut skipped) = (packet.ethertype, 0);
    for _ in 0..MAX_TAGS {
        let rest = packet.bytes.get(skipped..).unwrap_or_default();
        if let Some(found) = bare_ip(rest, packet.length.saturating_sub(skipped)) {
            return if is_tag(ethertype) { (found, skipped) } else { (ethertype, skipped) };
        }
        let Some(&[_, _, high, low]) = rest.first_chunk::<4>() else { break };
        let wrapped = u16::from_be_bytes([high, low]);
        if !is_tag(ethertype) && wrapped != ethertype && !is_tag(wrapped) {
            break;
        }
        ethertype = wrapped;
        skipped += 4;
    }
    (ethertype, skipped)
}

fn is_tag(ethertype: u16) -> bool {
    ethertype == VLAN || ethertype == QINQ
}

/// The ethertype of bytes that begin with an IP header, if its total length fits into `length`.
fn bare_ip(bytes: &[u8], length: usize) -> Option<u16> {
    let (ethertype, total) = match bytes.first()? >> 4 {
        4 => (IPV4, usize::from(Ipv4Packet::new(bytes)?.get_total_length())),
        6 => (IPV6, 40 + usize::from(Ipv6Packet::new(bytes)?.get_payload_length())),
        _ => return None,
    };
    // A tag with priority 2 or 3 begins like an IP header. It has an ethertype where the header has a length.
    let tagged = [(IPV4, 4), (IPV6, 6)]
        .iter()
        .any(|&(ethertype, version): &(u16, u8)| bytes[2..4] == ethertype.to_be_bytes() && bytes[4] >> 4 == version);
    (total == length || (total < length && !tagged)).then_some(ethertype)
}

/// The payload of an IP packet.
#[derive(Clone, Copy)]
struct Payload<'a> {
    /// The part that was captured.
    bytes: &'a [u8],
    /// The length on the wire.
    length: usize,
    /// Whether the rest of the datagram comes in later fragments.
    fragmented: bool,
}

impl<'a> Payload<'a> {
    /// What follows a header of `header` bytes in a packet of `total` bytes on the wire. `bytes` begins with that
    /// header; bytes after `total` only pad the frame.
    fn of(bytes: &'a [u8], total: usize, header: usize, fragmented: bool) -> Option<Self> {
        let bytes = &bytes[..bytes.len().min(total)];
        Some(Self { bytes: bytes.get(header..)?, length: total.checked_sub(header)?, fragmented })
    }

    fn skip(self, header: usize) -> Option<Self> {
        Self::of(self.bytes, self.length, header, self.fragmented)
    }
}

fn ipv4(bytes: &[u8], length: usize) -> Result<ParsedPacket<'_>, PacketError> {
    let ip = Ipv4Packet::new(bytes).ok_or(PacketError::Malformed)?;
    let header = usize::from(ip.get_header_length()) * 4;
    let total = usize::from(ip.get_total_length());
    if ip.get_version() != 4 || header < 20 || total < header || total > length {
        return Err(PacketError::Malformed);
    }
    if ip.get_fragment_offset() != 0 {
        return Err(PacketError::Fragment);
    }
    let fragmented = ip.get_flags() & pnet_packet::ipv4::Ipv4Flags::MoreFragments != 0;
    let payload = Payload::of(bytes, total, header, fragmented).ok_or(PacketError::Malformed)?;
    transport(ip.get_source().into(), ip.get_destination().into(), ip.get_next_level_protocol(), payload)
}

fn ipv6(bytes: &[u8], length: usize) -> Result<ParsedPacket<'_>, PacketError> {
    let ip = Ipv6Packet::new(bytes).ok_or(PacketError::Malformed)?;
    let total = 40 + usize::from(ip.get_payload_length());
    if ip.get_version() != 6 || total > length {
        return Err(PacketError::Malformed);
    }
    let payload = Payload::of(bytes, total, 40, false).ok_or(PacketError::Malformed)?;
    let (next, payload) = extensions(ip.get_next_header(), payload)?;
    transport(ip.get_source().into(), ip.get_destination().into(), next, payload)
}

/// Follows IPv6 extension headers (RFC 8200, section 4) to the transport.
fn extensions(
    mut next: IpNextHeaderProtocol,
    mut payload: Payload<'_>,
) -> Result<(IpNextHeaderProtocol, Payload<'_>), PacketError> {
    for _ in 0..MAX_EXTENSIONS {
        let header = match next {
            Protocol::Hopopt | Protocol::Ipv6Route | Protocol::Ipv6Opts => {
                let extension = ExtensionPacket::new(payload.bytes).ok_or(PacketError::Malformed)?;
                next = extension.get_next_header();
                // Its length is in units of 8 bytes and does not count the first 8.
                8 + usize::from(extension.get_hdr_ext_len()) * 8
            }
            Protocol::Ipv6Frag => {
                let fragment = FragmentPacket::new(payload.bytes).ok_or(PacketError::Malformed)?;
                // 13 bits of offset in units of 8 bytes, two reserved bits, and the bit that says that more fragments
                // follow.
                let offset = fragment.get_fragment_offset_with_flags();
                if offset & !7 != 0 {
                    return Err(PacketError::Fragment);
                }
                payload.fragmented |= offset & 1 != 0;
                next = fragment.get_next_header();
                8
            }
            Protocol::Ah => {
                // RFC 4302, section 2.2: its length is in units of 4 bytes, minus 2.
                let &[next_header, units] = payload.bytes.first_chunk::<2>().ok_or(PacketError::Malformed)?;
                next = IpNextHeaderProtocol::new(next_header);
                8 + usize::from(units) * 4
            }
            _ => return Ok((next, payload)),
        };
        payload = payload.skip(header).ok_or(PacketError::Malformed)?;
    }
    Err(PacketError::Malformed)
}

fn transport(
    source: IpAddr,
    destination: IpAddr,
    protocol: IpNextHeaderProtocol,
    payload: Payload<'_>,
) -> Result<ParsedPacket<'_>, PacketError> {
    let Transported { source_port, destination_port, header, payload } = match protocol {
        Protocol::Udp => udp(payload)?,
        Protocol::Tcp => tcp(payload)?,
        _ => return Err(PacketError::NotUdpOrTcp),
    };
    Ok(ParsedPacket {
        source: Endpoint::new(source, source_port),
        destination: Endpoint::new(destination, destination_port),
        payload: payload.bytes,
        missing: payload.length - payload.bytes.len(),
        header,
    })
}

/// The fields of a transport header, and the payload after it.
struct Transported<'a> {
    source_port: u16,
    destination_port: u16,
    header: TransportHeader,
    payload: Payload<'a>,
}

fn udp(payload: Payload<'_>) -> Result<Transported<'_>, PacketError> {
    let udp = UdpPacket::new(payload.bytes).ok_or_else(|| truncated_header(payload))?;
    let length = usize::from(udp.get_length());
    if length < 8 || (length > payload.length && !payload.fragmented) {
        return Err(PacketError::Malformed);
    }
    Ok(Transported {
        source_port: udp.get_source(),
        destination_port: udp.get_destination(),
        header: TransportHeader::Udp,
        payload: Payload::of(payload.bytes, length, 8, payload.fragmented).ok_or(PacketError::Malformed)?,
    })
}

fn tcp(payload: Payload<'_>) -> Result<Transported<'_>, PacketError> {
    let tcp = TcpPacket::new(payload.bytes).ok_or_else(|| truncated_header(payload))?;
    let header_length = usize::from(tcp.get_data_offset()) * 4;
    if header_length < 20 || header_length > payload.length {
        return Err(PacketError::Malformed);
    }
    Ok(Transported {
        source_port: tcp.get_source(),
        destination_port: tcp.get_destination(),
        header: TransportHeader::Tcp { sequence: tcp.get_sequence(), flags: tcp.get_flags() },
        payload: payload.skip(header_length).ok_or_else(|| truncated_header(payload))?,
    })
}

/// The error for a truncated transport header.
fn truncated_header(payload: Payload<'_>) -> PacketError {
    if payload.fragmented { PacketError::Fragment } else { PacketError::Malformed }
}

#[cfg(test)]
mod tests;
