//! The accounting of packets at the hooks of a control group. The kernel says how many packets on the wire each `sk_buff`
//! stands for, so the counters of TCP sockets are not needed.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Code, Condition, Register, Width};
use socktrail_kprobes::{Error, Expression, Fetch, Type};

use super::entry::{DirectionFields, offset};
use super::fields::{Ends, Fields};
use super::table::ENTRY;
use super::tcp_in::{self, NAMESPACE};
use super::tcp_out::{self, OWN_ENDS};
use super::udp::Datagram;
use super::writer::{NOW, Writer};
use super::{ALWAYS_SAMPLED, Family, Rules, TCP};
use crate::model::event::PacketDirection;
use crate::model::filter::Filter;
use crate::source::cgroup::packets::{HOP_BY_HOP, JUMBO_HEADER, MOST_IPV6};
use crate::source::kprobes::packets::{IPPROTO_TCP, IPPROTO_UDP};

/// The phase of reading (see [`Writer::read`]) for the device's MTU.
const DEVICE: u8 = 3;
/// The phase of reading for the port that the socket knows.
const LOCAL_PORT: u8 = 4;
/// Packets up to this size fit into every device that IPv6 can use (RFC 8200).
const SMALLEST_MTU_IPV6: i32 = 1280;
/// Each host accepts IPv4 packets up to this size (RFC 791); smaller MTUs are not expected.
const SMALLEST_MTU_IPV4: i32 = 576;
/// The size of the packet with the headers of its segments, while it is counted.
const BYTES: Register = R9;

/// The ends as the socket knows them, before a translation (NAT).
const OWN_IPV4: Fetch<'static> = Fetch::constant("daddr", "+{sock_common.skc_daddr}(+{sk_buff.sk}({skb}))", Type::U32);
const OWN_HIGH: Fetch<'static> =
    Fetch::constant("v6_daddr_high", "+{sock_common.skc_v6_daddr}(+{sk_buff.sk}({skb}))", Type::U64);
const OWN_LOW: Fetch<'static> =
    Fetch::constant("v6_daddr_low", "+{sock_common.skc_v6_daddr+8}(+{sk_buff.sk}({skb}))", Type::U64);
const OWN_LOCAL_IPV4: Fetch<'static> =
    Fetch::constant("rcv_saddr", "+{sock_common.skc_rcv_saddr}(+{sk_buff.sk}({skb}))", Type::U32);
const OWN_LOCAL_HIGH: Fetch<'static> =
    Fetch::constant("v6_rcv_saddr_high", "+{sock_common.skc_v6_rcv_saddr}(+{sk_buff.sk}({skb}))", Type::U64);
const OWN_LOCAL_LOW: Fetch<'static> =
    Fetch::constant("v6_rcv_saddr_low", "+{sock_common.skc_v6_rcv_saddr+8}(+{sk_buff.sk}({skb}))", Type::U64);
const OWN_LOCAL_PORT: Fetch<'static> =
    Fetch::constant("sport", "+{inet_sock.inet_sport}(+{sk_buff.sk}({skb}))", Type::U16);
const OWN_PORT: Fetch<'static> = Fetch::constant("dport", "+{sock_common.skc_dport}(+{sk_buff.sk}({skb}))", Type::U16);
/// `skc_state` of the `struct sock`. It follows `skc_family`, which has two bytes.
const STATE: Fetch<'static> = Fetch::constant("state", "+{sock_common.skc_family+2}(+{sk_buff.sk}({skb}))", Type::U8);

/// The program at the hook for packets of this direction and version of IP.
pub(super) fn packet(
    fields: &Fields<'_>,
    family: Family,
    direction: PacketDirection,
    rules: &Rules,
) -> Result<Code, Error> {
    let datagram = Datagram::at_hook(fields, family, direction)?;
    let segment = Segment::at(fields, family, direction)?;
    let fragments = Fragments::at(fields, family, direction)?;
    let (protocol, next_header) = (fields.get("protocol")?, fields.get("next_header")?);
    let mut reads: Vec<_> = datagram.reads().chain([&protocol, &next_header]).map(|field| (0, field)).collect();
    reads.extend(segment.reads());
    reads.extend(fragments.reads());
    let mut w = Writer::new(fields, &reads)?;
    w.begin()?;
    end_other_protocols(&mut w, &protocol, &next_header)?;
    if direction == PacketDirection::Outbound {
        segment.sample_translated(&mut w, &protocol, rules)?;
    }
    w.filter_addresses(&datagram.ends, &rules.filter)?;
    w.filter_ports(&datagram.ends, &rules.filter)?;
    fragments.sample(&mut w)?;
    let tcp = w.asm.label();
    w.load(&protocol, R1)?;
    w.asm.jump_if(Condition::Equal, R1, i32::from(TCP), tcp);
    w.load(&segment.gso_size, R1)?;
    // The state machine counts these: UDP GSO, and UDP GRO of a socket that has enabled it.
    w.sample_if(Condition::NotEqual, R1, 0);
    datagram.account(&mut w, rules)?;
    w.asm.bind(tcp);
    segment.account(&mut w, rules)?;
    w.finish(fields.program)
}

/// Ends the program for packets with the TCP or UDP header of another protocol than the socket's: the ESP packets of a TCP
/// socket may travel in UDP (RFC 3948). A packet with extension headers is taken for one of the socket's protocol.
fn end_other_protocols(w: &mut Writer, protocol: &Expression, next_header: &Expression) -> Result<(), Error> {
    let (other, own) = (w.asm.label(), w.asm.label());
    w.load(protocol, R1)?;
    w.load(next_header, R2)?;
    w.asm.jump_if(Condition::Equal, R1, R2, own);
    for transport in [IPPROTO_TCP, IPPROTO_UDP] {
        w.asm.jump_if(Condition::Equal, R2, i32::from(transport), other);
    }
    w.asm.jump(own);
    w.asm.bind(other);
    w.end_without_sample();
    w.asm.bind(own);
    Ok(())
}

/// What shows whether a packet was fragmented or will be.
enum Fragments {
    /// The size of the largest fragment in which it arrived, or 0; `None` if the kernel does not say so.
    Arrived(Option<Expression>),
    /// It leaves: its size, the payload of its segments, the MTU of the device, and the smallest one that is expected.
    Leaving { len: Expression, gso_size: Expression, mtu: Option<Expression>, smallest_mtu: i32 },
}

impl Fragments {
    fn at(fields: &Fields<'_>, family: Family, direction: PacketDirection) -> Result<Self, Error> {
        let smallest_mtu = if family == Family::Ipv4 { SMALLEST_MTU_IPV4 } else { SMALLEST_MTU_IPV6 };
        Ok(match direction {
            PacketDirection::Inbound => Self::Arrived(fields.optional("fragment")?),
            PacketDirection::Outbound => Self::Leaving {
                len: fields.get("len")?,
                gso_size: fields.get("gso_size")?,
                mtu: fields.optional("mtu")?,
                smallest_mtu,
            },
        })
    }

    fn reads(&self) -> Vec<(u8, &Expression)> {
        match self {
            Self::Arrived(fragment) => fragment.iter().map(|field| (0, field)).collect(),
            Self::Leaving { len, mtu, .. } => mtu.iter().map(|field| (DEVICE, field)).chain([(0, len)]).collect(),
        }
    }

    /// Samples packets that are fragmented.
    fn sample(&self, w: &mut Writer) -> Result<(), Error> {
        match self {
            Self::Arrived(None) | Self::Leaving { mtu: None, .. } => {}
            Self::Arrived(Some(fragment)) => {
                w.load(fragment, R1)?;
                w.sample_if(Condition::NotEqual, R1, 0);
            }
            Self::Leaving { len, gso_size, mtu: Some(mtu), smallest_mtu } => {
                let (large, whole) = (w.asm.label(), w.asm.label());
                w.load(len, R1)?;
                w.asm.jump_if(Condition::Greater, R1, *smallest_mtu, large);
                w.asm.jump(whole);
                w.asm.bind(large);
                w.load(gso_size, R1)?;
                w.asm.jump_if(Condition::NotEqual, R1, 0, whole);
                w.read(DEVICE)?;
                w.load(len, R1)?;
                w.load(mtu, R2)?;
                w.sample_if(Condition::Greater, R1, R2);
                w.asm.bind(whole);
            }
        }
        Ok(())
    }
}

/// What a program reads of a packet of TCP.
struct Segment {
    family: Family,
    direction: PacketDirection,
    sock: Expression,
    net: Expression,
    ends: Ends,
    len: Expression,
    gso_segs: Expression,
    gso_size: Expression,
    next_header: Expression,
    /// The offsets of its headers.
    transport: Expression,
    network: Expression,
    /// The byte of the TCP header that contains its length.
    data_offset: Expression,
    flags: Expression,
    /// Of an outgoing packet: the local port, in the headers and in the `struct sock`.
    local_port: (Expression, Expression),
    /// Of an outgoing packet: the other fields of both ends.
    own_ends: Vec<(Expression, Expression)>,
    state: Expression,
}

impl Segment {
    fn at(fields: &Fields<'_>, family: Family, direction: PacketDirection) -> Result<Self, Error> {
        let own = |fetch| fields.further(fetch);
        let address = match family {
            Family::Ipv4 => vec![
                (fields.part("addresses", 0, Type::U32)?, own(OWN_LOCAL_IPV4)?),
                (fields.part("addresses", 4, Type::U32)?, own(OWN_IPV4)?),
            ],
            Family::Ipv6 => vec![
                (fields.get("source_high")?, own(OWN_LOCAL_HIGH)?),
                (fields.get("source_low")?, own(OWN_LOCAL_LOW)?),
                (fields.get("destination_high")?, own(OWN_HIGH)?),
                (fields.get("destination_low")?, own(OWN_LOW)?),
            ],
        };
        let local_port = (fields.part("ports", 0, Type::U16)?, own(OWN_LOCAL_PORT)?);
        let port = (fields.part("ports", 2, Type::U16)?, own(OWN_PORT)?);
        Ok(Self {
            family,
            direction,
            sock: fields.get("sk")?,
            net: fields.get("net")?,
            ends: Ends::of(fields, family, direction, TCP)?,
            len: fields.get("len")?,
            gso_segs: fields.get("gso_segs")?,
            gso_size: fields.get("gso_size")?,
            next_header: fields.get("next_header")?,
            transport: fields.part("headers", 0, Type::U16)?,
            network: fields.part("headers", 2, Type::U16)?,
            data_offset: fields.part("tcp", 0, Type::U8)?,
            flags: fields.part("tcp", 1, Type::U8)?,
            local_port,
            own_ends: address.into_iter().chain([port]).collect(),
            state: own(STATE)?,
        })
    }

    /// The fields that a program has to read, each in its phase.
    fn reads(&self) -> Vec<(u8, &Expression)> {
        let of_packet = [&self.sock, &self.len, &self.transport, &self.network, &self.data_offset, &self.flags];
        let of_packet = of_packet.into_iter().chain(self.ends.pieces.iter().map(|piece| &piece.field));
        let mut reads: Vec<_> = of_packet.map(|field| (0, field)).collect();
        match self.direction {
            PacketDirection::Inbound => reads.push((NAMESPACE, &self.net)),
            PacketDirection::Outbound => {
                reads.push((LOCAL_PORT, &self.local_port.1));
                reads.extend(self.own_ends.iter().map(|(_, own)| (OWN_ENDS, own)));
                reads.extend([(OWN_ENDS, &self.net), (OWN_ENDS, &self.state)]);
            }
        }
        reads
    }

    /// Samples an outgoing packet whose ends were translated (NAT) before the filter or the counting takes them for the
    /// socket's. Of a datagram, only the local port shows that.
    fn sample_translated(&self, w: &mut Writer, protocol: &Expression, rules: &Rules) -> Result<(), Error> {
        let (tcp, done) = (w.asm.label(), w.asm.label());
        w.load(protocol, R1)?;
        w.asm.jump_if(Condition::Equal, R1, i32::from(TCP), tcp);
        w.read(LOCAL_PORT)?;
        tcp_out::sample_unless_equal(w, [&self.local_port])?;
        w.asm.jump(done);
        w.asm.bind(tcp);
        // Without a filter, the ends are compared when an entry is made.
        if rules.filter != Filter::default() {
            self.sample_unless_own_ends(w)?;
        }
        w.asm.bind(done);
        Ok(())
    }

    /// Samples an outgoing TCP packet if its ends are not those that the socket knows.
    fn sample_unless_own_ends(&self, w: &mut Writer) -> Result<(), Error> {
        w.read(LOCAL_PORT)?;
        w.read(OWN_ENDS)?;
        tcp_out::sample_unless_equal(w, self.own_ends.iter().chain([&self.local_port]))
    }

    /// Counts the packet or lets it become a sample.
    fn account(&self, w: &mut Writer, rules: &Rules) -> Result<(), Error> {
        let direction = DirectionFields::of(self.direction);
        let (new, stale) = (w.asm.label(), w.asm.label());
        let (report_and_sample, paused) = (w.asm.label(), w.asm.label());
        match self.direction {
            PacketDirection::Inbound => tcp_in::find(w, &self.sock, &self.ends, &self.net)?,
            PacketDirection::Outbound => {
                w.set_key_to(&self.sock)?;
                w.look_up(new);
                // If the ends differ, the entry is that of an earlier socket with this address, whose end was not seen.
                w.jump_if_other_ends(&self.ends, stale)?;
            }
        }
        w.read_time();
        w.load(&self.flags, R1)?;
        w.asm.jump_if(Condition::AnyBit, R1, ALWAYS_SAMPLED, report_and_sample);
        w.jump_after_pause(rules.pause_nanos, paused);
        w.load_of_entry(Width::Byte, R1, direction.seen);
        w.asm.jump_if(Condition::Equal, R1, 0, report_and_sample);
        self.count(w, direction)?;
        w.note_time();
        w.end_without_sample();

        w.asm.bind(paused);
        w.forget_seen();
        w.asm.bind(report_and_sample);
        w.report();
        w.note_sampled(direction);
        w.asm.jump(w.sample);
        if self.direction == PacketDirection::Outbound {
            w.asm.bind(stale);
            w.read_time();
            w.remove();
            w.asm.jump(w.sample);
            w.asm.bind(new);
            self.begin(w, direction)?;
        }
        Ok(())
    }

    /// Counts a packet for each segment, with the headers of each.
    fn count(&self, w: &mut Writer, direction: DirectionFields) -> Result<(), Error> {
        let (several, known, counted) = (w.asm.label(), w.asm.label(), w.asm.label());
        w.load(&self.len, BYTES)?;
        w.load(&self.gso_size, R5)?;
        w.asm.jump_if(Condition::NotEqual, R5, 0, several);
        w.count_one(direction, BYTES);
        w.asm.jump(counted);
        w.asm.bind(several);
        w.load(&self.data_offset, R3)?;
        w.asm.alu(Alu::ShiftRight, R3, 4);
        w.asm.alu(Alu::ShiftLeft, R3, 2);
        w.load(&self.transport, R4)?;
        w.asm.alu(Alu::Add, R3, R4);
        w.load(&self.network, R4)?;
        w.asm.alu(Alu::Sub, R3, R4);
        if self.family == Family::Ipv6 {
            let (large, ordinary) = (w.asm.label(), w.asm.label());
            w.asm.jump_if(Condition::Greater, BYTES, MOST_IPV6 as i32, large);
            w.asm.jump(ordinary);
            w.asm.bind(large);
            w.load(&self.next_header, R4)?;
            w.asm.jump_if(Condition::NotEqual, R4, i32::from(HOP_BY_HOP), ordinary);
            w.asm.alu(Alu::Sub, BYTES, JUMBO_HEADER as i32);
            w.asm.alu(Alu::Sub, R3, JUMBO_HEADER as i32);
            w.asm.bind(ordinary);
        }
        w.load(&self.gso_segs, R2)?;
        w.asm.jump_if(Condition::NotEqual, R2, 0, known);
        // A virtual device tells only the payload of the segments.
        w.asm.mov(R2, BYTES);
        w.asm.alu(Alu::Sub, R2, R3);
        w.asm.alu(Alu::Add, R2, R5);
        w.asm.alu(Alu::Sub, R2, 1);
        w.asm.alu(Alu::Div, R2, R5);
        w.asm.bind(known);
        w.asm.atomic_add(ENTRY, direction.packets, R2);
        w.asm.alu(Alu::Sub, R2, 1);
        w.asm.alu(Alu::Mul, R2, R3);
        w.asm.alu(Alu::Add, BYTES, R2);
        w.asm.atomic_add(ENTRY, direction.bytes, BYTES);
        w.asm.bind(counted);
        Ok(())
    }

    /// Makes the entry of a connection, at its first outgoing packet without SYN, FIN or RST.
    fn begin(&self, w: &mut Writer, direction: DirectionFields) -> Result<(), Error> {
        w.load(&self.flags, R1)?;
        w.sample_if(Condition::AnyBit, R1, ALWAYS_SAMPLED);
        self.sample_unless_own_ends(w)?;
        tcp_out::sample_small_sockets(w, &self.state)?;
        w.hash(&self.ends)?;
        w.begin_entry(&self.sock, &self.ends, direction)?;
        w.load(&self.net, R1)?;
        w.store_in_entry(Width::Double, offset!(net), R1);
        w.publish();
        w.publish_ends();
        w.asm.jump(w.sample);
        Ok(())
    }
}

// `BYTES` is a register that helpers do not overwrite, and must not be that of the time.
const _: () = assert!(!matches!(NOW, BYTES));
