//! Captured bytes to transport payload.
//!
//! Headers are read by `pnet_packet`, which only makes sure that the fixed part is there: versions, header lengths and
//! total lengths are checked here. Checksums are not: a packet that this host sends has none yet where it is captured.

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
pub(crate) const VLAN: u16 = 0x8100;
pub(crate) const SERVICE_VLAN: u16 = 0x88a8;

/// VLAN tags within a frame that are followed.
const MOST_TAGS: usize = 2;
/// IPv6 extension headers that are followed.
const MOST_EXTENSIONS: usize = 8;

/// A packet as it was captured, without its link-layer header.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The index of the interface it was seen on; 0 when not known.
    pub interface: u32,
    /// Its ethertype in host byte order. A VLAN tag may be left out (its ethertype then being here, or that of what it
    /// wraps) or be the first thing in `bytes`.
    pub ethertype: u16,
    /// Its length on the wire from the first of `bytes` on.
    pub length: usize,
    /// What was captured of it.
    pub bytes: &'a [u8],
}

/// What a packet carries, and between whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Who sent it.
    pub source: Endpoint,
    /// To whom.
    pub destination: Endpoint,
    /// The payload as far as it was captured.
    pub payload: &'a [u8],
    /// How many bytes of payload follow that were not captured.
    pub missing: usize,
    /// What its transport adds.
    pub header: Header,
}

/// What a transport adds to ports and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Nothing.
    Udp,
    /// Where the payload belongs in the stream (RFC 9293, section 3.1).
    Tcp {
        /// Sequence number of the first byte, or of SYN.
        sequence: u32,
        /// The control bits' low byte: FIN 1, SYN 2, RST 4, ….
        flags: u8,
    },
}

impl Header {
    /// Which transport.
    pub fn transport(&self) -> Transport {
        match self {
            Self::Udp => Transport::Udp,
            Self::Tcp { .. } => Transport::Tcp,
        }
    }
}

/// Why a packet carries nothing that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It is neither UDP nor TCP over IP.
    Foreign,
    /// Its headers are cut or contradict themselves.
    Bad,
    /// It is an IP fragment without a whole transport header.
    Fragment,
}

impl<'a> Frame<'a> {
    /// Reads a packet.
    ///
    /// Of a fragmented packet only the first fragment is read, if it has the whole transport header; the rest of the
    /// payload is then [missing](Frame::missing).
    ///
    /// # Errors
    ///
    /// Why it cannot be read.
    pub fn parse(packet: &Packet<'a>) -> Result<Self, Unreadable> {
        let (ethertype, skipped) = untag(packet);
        let bytes = packet.bytes.get(skipped..).unwrap_or_default();
        let length = packet.length.saturating_sub(skipped).max(bytes.len());
        match ethertype {
            IPV4 => ipv4(bytes, length),
            IPV6 => ipv6(bytes, length),
            _ => Err(Unreadable::Foreign),
        }
    }
}

/// The ethertype behind VLAN tags, and how many bytes of tags there are.
///
/// What the kernel says is not enough. Without the link-layer header it may say "VLAN" of a packet whose tag has gone
/// with that header (a frame that leaves, before Linux 6.11), or "IP" of one that begins with a second tag (a frame
/// that arrives, since then). So bytes that make an IP packet are one, and a tag is what has an ethertype in its place.
fn untag(packet: &Packet<'_>) -> (u16, usize) {
    let (mut ethertype, mut skipped) = (packet.ethertype, 0);
    for _ in 0..MOST_TAGS {
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
    ethertype == VLAN || ethertype == SERVICE_VLAN
}

/// The ethertype of bytes that begin with an IP header whose length fits.
fn bare_ip(bytes: &[u8], length: usize) -> Option<u16> {
    let (ethertype, total) = match bytes.first()? >> 4 {
        4 => (IPV4, usize::from(Ipv4Packet::new(bytes)?.get_total_length())),
        6 => (IPV6, 40 + usize::from(Ipv6Packet::new(bytes)?.get_payload_length())),
        _ => return None,
    };
    // A tag of priority 2 or 3 begins as such a header does. Then the ethertype is in the place of a length.
    let tagged = [(IPV4, 4), (IPV6, 6)]
        .iter()
        .any(|&(ethertype, version): &(u16, u8)| bytes[2..4] == ethertype.to_be_bytes() && bytes[4] >> 4 == version);
    (total == length || (total < length && !tagged)).then_some(ethertype)
}

/// An IP payload: what was captured, and how long it is on the wire.
#[derive(Clone, Copy)]
struct Payload<'a> {
    bytes: &'a [u8],
    length: usize,
    /// Whether the rest of it comes in other packets.
    fragmented: bool,
}

impl<'a> Payload<'a> {
    /// `bytes` of which `total` on the wire belong to the packet (the rest pads the frame), behind `header` bytes.
    fn of(bytes: &'a [u8], total: usize, header: usize, fragmented: bool) -> Option<Self> {
        let bytes = &bytes[..bytes.len().min(total)];
        Some(Self { bytes: bytes.get(header..)?, length: total.checked_sub(header)?, fragmented })
    }

    fn skip(self, header: usize) -> Option<Self> {
        Self::of(self.bytes, self.length, header, self.fragmented)
    }
}

fn ipv4(bytes: &[u8], length: usize) -> Result<Frame<'_>, Unreadable> {
    let ip = Ipv4Packet::new(bytes).ok_or(Unreadable::Bad)?;
    let header = usize::from(ip.get_header_length()) * 4;
    let total = usize::from(ip.get_total_length());
    if ip.get_version() != 4 || header < 20 || total < header || total > length {
        return Err(Unreadable::Bad);
    }
    if ip.get_fragment_offset() != 0 {
        return Err(Unreadable::Fragment);
    }
    let fragmented = ip.get_flags() & pnet_packet::ipv4::Ipv4Flags::MoreFragments != 0;
    let payload = Payload::of(bytes, total, header, fragmented).ok_or(Unreadable::Bad)?;
    transport(ip.get_source().into(), ip.get_destination().into(), ip.get_next_level_protocol(), payload)
}

fn ipv6(bytes: &[u8], length: usize) -> Result<Frame<'_>, Unreadable> {
    let ip = Ipv6Packet::new(bytes).ok_or(Unreadable::Bad)?;
    let total = 40 + usize::from(ip.get_payload_length());
    if ip.get_version() != 6 || total > length {
        return Err(Unreadable::Bad);
    }
    let payload = Payload::of(bytes, total, 40, false).ok_or(Unreadable::Bad)?;
    let (next, payload) = extensions(ip.get_next_header(), payload)?;
    transport(ip.get_source().into(), ip.get_destination().into(), next, payload)
}

/// Follows IPv6 extension headers (RFC 8200, section 4) to the transport.
fn extensions(
    mut next: IpNextHeaderProtocol,
    mut payload: Payload<'_>,
) -> Result<(IpNextHeaderProtocol, Payload<'_>), Unreadable> {
    for _ in 0..MOST_EXTENSIONS {
        let header = match next {
            Protocol::Hopopt | Protocol::Ipv6Route | Protocol::Ipv6Opts => {
                let extension = ExtensionPacket::new(payload.bytes).ok_or(Unreadable::Bad)?;
                next = extension.get_next_header();
                // In units of 8 bytes, not counting the first 8.
                8 + usize::from(extension.get_hdr_ext_len()) * 8
            }
            Protocol::Ipv6Frag => {
                let fragment = FragmentPacket::new(payload.bytes).ok_or(Unreadable::Bad)?;
                // 13 bits of offset, two reserved ones, and whether more follow.
                let place = fragment.get_fragment_offset_with_flags();
                if place & !7 != 0 {
                    return Err(Unreadable::Fragment);
                }
                payload.fragmented |= place & 1 != 0;
                next = fragment.get_next_header();
                8
            }
            Protocol::Ah => {
                // RFC 4302, section 2.2: in units of 4 bytes, minus 2.
                let &[following, units] = payload.bytes.first_chunk::<2>().ok_or(Unreadable::Bad)?;
                next = IpNextHeaderProtocol::new(following);
                8 + usize::from(units) * 4
            }
            _ => return Ok((next, payload)),
        };
        payload = payload.skip(header).ok_or(Unreadable::Bad)?;
    }
    Err(Unreadable::Bad)
}

fn transport(
    source: IpAddr,
    destination: IpAddr,
    protocol: IpNextHeaderProtocol,
    payload: Payload<'_>,
) -> Result<Frame<'_>, Unreadable> {
    let (ports, header, content) = match protocol {
        Protocol::Udp => udp(payload)?,
        Protocol::Tcp => tcp(payload)?,
        _ => return Err(Unreadable::Foreign),
    };
    Ok(Frame {
        source: Endpoint::new(source, ports.0),
        destination: Endpoint::new(destination, ports.1),
        payload: content.bytes,
        missing: content.length - content.bytes.len(),
        header,
    })
}

type Content<'a> = Result<((u16, u16), Header, Payload<'a>), Unreadable>;

fn udp(payload: Payload<'_>) -> Content<'_> {
    let udp = UdpPacket::new(payload.bytes).ok_or_else(|| cut_header(payload))?;
    let length = usize::from(udp.get_length());
    if length < 8 || (length > payload.length && !payload.fragmented) {
        return Err(Unreadable::Bad);
    }
    let content = Payload::of(payload.bytes, length, 8, payload.fragmented).ok_or(Unreadable::Bad)?;
    Ok(((udp.get_source(), udp.get_destination()), Header::Udp, content))
}

fn tcp(payload: Payload<'_>) -> Content<'_> {
    let tcp = TcpPacket::new(payload.bytes).ok_or_else(|| cut_header(payload))?;
    let header = usize::from(tcp.get_data_offset()) * 4;
    if header < 20 || header > payload.length {
        return Err(Unreadable::Bad);
    }
    let content = payload.skip(header).ok_or_else(|| cut_header(payload))?;
    let header = Header::Tcp { sequence: tcp.get_sequence(), flags: tcp.get_flags() };
    Ok(((tcp.get_source(), tcp.get_destination()), header, content))
}

/// What a transport header that is not all there means.
fn cut_header(payload: Payload<'_>) -> Unreadable {
    if payload.fragmented { Unreadable::Fragment } else { Unreadable::Bad }
}

#[cfg(test)]
mod tests;
