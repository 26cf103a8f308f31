//! Packets, as they lie in the kernel's memory at a probe, and as the state machine sees their samples.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::machine::Machine;
use crate::model::event::{Packet, PacketDirection, PacketSize, Segments, Tuple};
use crate::model::flow::{Endpoint, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::totals::Totals;
use crate::source::kprobes::Feature;

pub(super) const NET: u64 = 0xffff_8880_0001_0000;
const SKB: u64 = 0xffff_8880_0002_0000;
const DATA: u64 = 0xffff_8880_0003_0000;
const DEV: u64 = 0xffff_8880_0004_0000;
/// The MTU of the device, and the size of the largest fragment of a packet over IPv4 that is larger: the payload of a fragment is a
/// multiple of 8 bytes.
pub(super) const MTU: u32 = 1500;
const LARGEST_FRAGMENT: u16 = 1500;
const FL6: u64 = 0xffff_8880_0005_0000;

/// The ends of a conversation. Its hosts are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Conversation {
    pub(super) ipv6: bool,
    pub(super) transport: Transport,
    pub(super) sock: u64,
    pub(super) local: (u8, u16),
    pub(super) remote: (u8, u16),
}

impl Conversation {
    /// The address of a host. Host 0 is this one, over loopback.
    fn address(self, host: u8) -> IpAddr {
        if host == 0 {
            return if self.ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        }
        if self.ipv6 {
            Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, host.into()).into()
        } else {
            Ipv4Addr::new(192, 0, 2, host).into()
        }
    }

    pub(super) fn tuple(self) -> Tuple {
        let end = |(host, port): (u8, u16)| Endpoint::new(self.address(host), port);
        Tuple { net: NetAddress::new(NET), local: end(self.local), remote: end(self.remote) }
    }

    pub(super) fn is_of(self, totals: &Totals) -> bool {
        let Tuple { local, remote, .. } = self.tuple();
        (totals.sock.get(), totals.transport, totals.local, totals.remote) == (self.sock, self.transport, local, remote)
    }
}

/// A packet of a conversation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire {
    pub(super) of: Conversation,
    pub(super) direction: PacketDirection,
    pub(super) payload: u32,
    /// The protocol in the IPv4 header and of the socket; `None` for that of the conversation.
    pub(super) protocol: Option<u8>,
    /// The source port in the headers, if a rule has translated it.
    pub(super) translated_port: Option<u16>,
    /// Whether the kernel adds a jumbo payload option to large packets, as it does before Linux 7.0.
    pub(super) adds_jumbo_option: bool,
    /// The protocol in the headers, if it is not the socket's.
    pub(super) carrier: Option<u8>,
    /// TCP's options, in words of 4 bytes.
    pub(super) options: u8,
    pub(super) flags: u8,
    pub(super) ip_options: bool,
    pub(super) fragment: u16,
    pub(super) data_len: u32,
    /// How many packets it stands for, at a hook.
    pub(super) gso_segs: u32,
    /// The payload of each of these, at a hook.
    pub(super) gso_size: u32,
    /// The counters of the socket at that time.
    pub(super) segments: Segments,
    /// Whether early demultiplexing has found the socket.
    pub(super) demultiplexed: bool,
    /// The `struct sock` that sends it.
    pub(super) sender: u64,
    /// The state of that socket.
    pub(super) state: u8,
}

impl Wire {
    pub(super) fn new(of: Conversation, direction: PacketDirection, payload: u32) -> Self {
        Self {
            of,
            direction,
            payload,
            protocol: None,
            translated_port: None,
            adds_jumbo_option: true,
            carrier: None,
            options: 0,
            flags: 0x10,
            ip_options: false,
            fragment: 0,
            data_len: 0,
            gso_segs: 0,
            gso_size: 0,
            segments: Segments::default(),
            demultiplexed: false,
            sender: of.sock,
            state: 1,
        }
    }

    fn transport_header(self) -> u16 {
        match self.of.transport {
            Transport::Tcp => 20 + 4 * u16::from(self.options),
            _ => 8,
        }
    }

    /// Whether the kernel has added a header with the jumbo payload option (RFC 2675), which is not on the wire.
    fn is_jumbo(self) -> bool {
        let is_large = self.payload + u32::from(self.ip_header() + self.transport_header()) > 40 + 0xffff;
        self.of.ipv6 && self.adds_jumbo_option && is_large
    }

    /// The size of IP options, or of an extension header.
    fn extension(self) -> usize {
        match (self.is_jumbo(), self.ip_options) {
            (true, _) => 8,
            (false, true) => 4,
            (false, false) => 0,
        }
    }

    fn ip_header(self) -> u16 {
        if self.of.ipv6 { 40 } else { 20 }
    }

    /// The packet that its sample is decoded to.
    pub(super) fn packet(self) -> Packet {
        let headers = self.ip_header() + self.transport_header();
        let size = PacketSize { bytes: self.payload + u32::from(headers), headers };
        let is_tcp = self.of.transport == Transport::Tcp;
        let leaves = self.direction == PacketDirection::Outbound;
        let sock = SockAddress::new(if leaves { self.sender } else { self.of.sock }).filter(|_| leaves || !is_tcp);
        Packet {
            tcp_flags: if is_tcp { self.flags } else { 0 },
            segments: Some(self.segments).filter(|_| is_tcp && leaves),
            data_len: self.data_len,
            fragment: self.fragment,
            ..Packet::new(self.direction, self.of.transport, sock, self.of.tuple(), size)
        }
    }

    /// The packet that its sample at a hook is decoded to.
    pub(super) fn packet_at_hook(self) -> Packet {
        let options = if self.ip_options { 4 } else { 0 };
        let packet = self.packet();
        let PacketSize { bytes, headers } = packet.size;
        let size = PacketSize { bytes: bytes + u32::from(options), headers: headers + options };
        let fragment = match self.direction {
            PacketDirection::Outbound if size.bytes > MTU && self.gso_size == 0 => LARGEST_FRAGMENT,
            _ => self.fragment,
        };
        Packet { size, fragment, segments: None, data_len: 0, gso_segs: self.wire_packets() as u16, ..packet }
    }

    /// How many packets it is on the wire; 0 if the kernel does not say so.
    pub(super) fn wire_packets(self) -> u32 {
        match self.gso_segs {
            0 if self.gso_size > 0 => self.payload.div_ceil(self.gso_size),
            segments => segments,
        }
    }

    /// Puts the packet into memory and hits its hook.
    pub(super) fn hit_at_hook(self, machine: &Machine) -> (bool, Vec<Totals>) {
        let (headers, place) = (self.headers(), 300);
        let ip = usize::from(self.ip_header()) + self.extension();
        let len = self.payload + headers.len() as u32;
        self.put_sock(machine);
        let mut skb = vec![0; 256];
        let mut set = |at: usize, bytes: &[u8]| skb[at..at + bytes.len()].copy_from_slice(bytes);
        set(16, &DEV.to_ne_bytes());
        set(24, &self.sender.to_ne_bytes());
        set(if self.of.ipv6 { 58 } else { 66 }, &self.fragment.to_ne_bytes());
        set(112, &len.to_ne_bytes());
        // Fields of `struct __sk_buff`: programs read them from the context itself.
        set(164, &self.gso_segs.to_ne_bytes());
        set(176, &self.gso_size.to_ne_bytes());
        set(182, &((place + ip) as u16).to_ne_bytes());
        set(184, &(place as u16).to_ne_bytes());
        set(200, &(DATA + place as u64).to_ne_bytes());
        let mut data = vec![0xdd; 600];
        data[place..place + headers.len()].copy_from_slice(&headers);
        machine.put(DATA, data);
        let mut dev = vec![0; 512];
        dev[56..60].copy_from_slice(&MTU.to_ne_bytes());
        machine.put(DEV, dev);
        let feature = match (self.of.ipv6, self.direction) {
            (false, PacketDirection::Outbound) => Feature::Ipv4Out,
            (true, PacketDirection::Outbound) => Feature::TcpIpv6Out,
            (false, PacketDirection::Inbound) => Feature::TcpIpv4In,
            (true, PacketDirection::Inbound) => Feature::TcpIpv6In,
        };
        machine.hit_with(feature, skb)
    }

    /// Puts the packet into memory and hits its probe.
    pub(super) fn hit(self, machine: &Machine) -> (bool, Vec<Totals>) {
        let tcp = self.of.transport == Transport::Tcp;
        let leaves = self.direction == PacketDirection::Outbound;
        self.put_sock(machine);
        self.put_skb(machine);
        let (feature, arguments) = match (self.of.ipv6, tcp, leaves) {
            (false, _, true) => (Feature::Ipv4Out, [NET, self.sender, SKB]),
            (true, false, true) => (Feature::UdpIpv6Out, [NET, self.sender, SKB]),
            (true, true, true) => (Feature::TcpIpv6Out, [self.sender, SKB, FL6]),
            (false, true, false) => (Feature::TcpIpv4In, [SKB, 0, 0]),
            (true, true, false) => (Feature::TcpIpv6In, [SKB, 0, 0]),
            (false, false, false) => (Feature::UdpIpv4In, [self.of.sock, SKB, 0]),
            (true, false, false) => (Feature::UdpIpv6In, [self.of.sock, SKB, 0]),
        };
        machine.hit(feature, arguments)
    }

    fn put_sock(self, machine: &Machine) {
        let mut sock = vec![0; 2048];
        let mut set = |at: usize, bytes: &[u8]| sock[at..at + bytes.len()].copy_from_slice(bytes);
        set(48, &NET.to_ne_bytes());
        set(18, &[self.state]);
        set(518, &if self.of.transport == Transport::Tcp { 1_u16 } else { 2 }.to_ne_bytes());
        set(516, &u16::from(self.protocol.unwrap_or(self.of.transport.iana_number())).to_ne_bytes());
        if self.sender == self.of.sock {
            let Tuple { local, remote, .. } = self.of.tuple();
            for (end, ipv4, ipv6) in [(remote, 0, 56), (local, 4, 72)] {
                match end.ip {
                    IpAddr::V4(ip) => set(ipv4, &ip.octets()),
                    IpAddr::V6(ip) => set(ipv6, &ip.octets()),
                }
            }
            set(12, &remote.port.to_be_bytes());
            set(798, &local.port.to_be_bytes());
            set(1548, &self.segments.received.to_ne_bytes());
            set(1580, &self.segments.sent.to_ne_bytes());
        }
        machine.put(self.sender, sock);
    }

    /// `sk_buff.data` points to the IP header of an outgoing packet. In an arriving packet, and in outgoing TCP over IPv6, it
    /// points to the transport header.
    fn put_skb(self, machine: &Machine) {
        let headers = self.headers();
        let ip = usize::from(self.ip_header()) + self.extension();
        let leaves = self.direction == PacketDirection::Outbound;
        let at = if leaves && !(self.of.ipv6 && self.of.transport == Transport::Tcp) { 0 } else { ip };
        let (len, place) = (self.payload as usize + headers.len() - at, 300);
        let mut skb = vec![0xee; 256];
        let mut set = |at: usize, bytes: &[u8]| skb[at..at + bytes.len()].copy_from_slice(bytes);
        set(16, &DEV.to_ne_bytes());
        set(24, &if self.demultiplexed { self.of.sock } else { 0 }.to_ne_bytes());
        set(58, &[0; 16]);
        set(if self.of.ipv6 { 58 } else { 66 }, &self.fragment.to_ne_bytes());
        set(112, &(len as u32).to_ne_bytes());
        set(116, &self.data_len.to_ne_bytes());
        set(182, &((place + ip) as u16).to_ne_bytes());
        set(184, &(place as u16).to_ne_bytes());
        set(200, &(DATA + (place + at) as u64).to_ne_bytes());
        machine.put(SKB, skb);
        let mut data = vec![0xdd; 600];
        data[place..place + headers.len()].copy_from_slice(&headers);
        machine.put(DATA, data);
        machine.put(FL6, self.flowi6());
        let mut dev = vec![0; 512];
        dev[264..272].copy_from_slice(&NET.to_ne_bytes());
        machine.put(DEV, dev);
    }

    /// The `struct flowi6` with which TCP sends over IPv6.
    fn flowi6(self) -> Vec<u8> {
        let Tuple { local, remote, .. } = self.of.tuple();
        let mut flow = vec![0; 88];
        flow[14] = self.of.transport.iana_number();
        if let (IpAddr::V6(from), IpAddr::V6(to)) = (local.ip, remote.ip) {
            flow[24..40].copy_from_slice(&to.octets());
            flow[40..56].copy_from_slice(&from.octets());
        }
        flow
    }

    /// The headers as on the wire, as far as probes read them.
    fn headers(self) -> Vec<u8> {
        let Tuple { local, remote, .. } = self.of.tuple();
        let leaves = self.direction == PacketDirection::Outbound;
        let (source, destination) = if leaves { (local, remote) } else { (remote, local) };
        let protocol = self.carrier.or(self.protocol).unwrap_or(self.of.transport.iana_number());
        let mut bytes = match (source.ip, destination.ip) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0; 20];
                header[0] = if self.ip_options { 0x46 } else { 0x45 };
                header[9] = protocol;
                header[12..16].copy_from_slice(&from.octets());
                header[16..].copy_from_slice(&to.octets());
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![0; 40];
                header[0] = 0x60;
                header[6] = match (self.is_jumbo(), self.ip_options) {
                    (true, _) => 0,
                    (false, true) => 60,
                    (false, false) => protocol,
                };
                header[8..24].copy_from_slice(&from.octets());
                header[24..].copy_from_slice(&to.octets());
                header
            }
            _ => unreachable!("both ends have one family"),
        };
        bytes.extend(vec![0; self.extension()]);
        let transport = bytes.len();
        bytes.extend(vec![0; self.transport_header().into()]);
        let port = self.translated_port.unwrap_or(source.port);
        bytes[transport..transport + 2].copy_from_slice(&port.to_be_bytes());
        bytes[transport + 2..transport + 4].copy_from_slice(&destination.port.to_be_bytes());
        if self.of.transport == Transport::Tcp {
            bytes[transport + 12] = (5 + self.options) << 4;
            bytes[transport + 13] = self.flags;
        }
        bytes
    }
}
