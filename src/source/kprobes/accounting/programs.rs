//! The program of each probe.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Code, Condition};
use socktrail_kprobes::{Error, Expression, Hook, HookSamples, Resolver, Type};

use super::at_hook;
use super::fields::Fields;
use super::table::Table;
use super::tcp_in::Arriving;
use super::tcp_out::Leaving;
use super::udp::Datagram;
use super::writer::Writer;
use super::{Family, Rules};
use crate::model::event::PacketDirection::{Inbound, Outbound};
use crate::source::kprobes::packets::{IPPROTO_TCP, IPPROTO_UDP};
use crate::source::kprobes::sockets::TCP_CLOSE;
use crate::source::kprobes::{Feature, Probe};

/// Version and header length of an IPv4 header without options.
const PLAIN_IPV4: i32 = 0x45;

/// The program for the probe that serves a feature: its name, and its code. `None` if the feature has no program. `hook` are
/// the samples of the probe, if it is at a hook.
///
/// # Errors
/// The layout lacks a field, programs cannot be made for this architecture, or a declaration is wrong.
pub(super) fn program(
    feature: Feature,
    probe: &Probe,
    hook: Option<&HookSamples>,
    resolver: &dyn Resolver,
    rules: &Rules,
    table: Table,
) -> Option<(&'static str, Result<Code, Error>)> {
    let make: fn(&Fields<'_>, &Rules) -> Result<Code, Error> = match feature {
        Feature::Ipv4Out if hook.is_some() => |fields, rules| at_hook::packet(fields, Family::Ipv4, Outbound, rules),
        Feature::TcpIpv6Out if hook.is_some() => |fields, rules| at_hook::packet(fields, Family::Ipv6, Outbound, rules),
        Feature::TcpIpv4In if hook.is_some() => |fields, rules| at_hook::packet(fields, Family::Ipv4, Inbound, rules),
        Feature::TcpIpv6In if hook.is_some() => |fields, rules| at_hook::packet(fields, Family::Ipv6, Inbound, rules),
        Feature::Ipv4Out => ipv4_out,
        Feature::UdpIpv6Out => udp_ipv6_out,
        Feature::TcpIpv6Out => tcp_ipv6_out,
        Feature::UdpIpv4In => |fields, rules| udp_in(fields, Family::Ipv4, rules),
        Feature::UdpIpv6In => |fields, rules| udp_in(fields, Family::Ipv6, rules),
        Feature::TcpIpv4In => |fields, rules| tcp_in(fields, Family::Ipv4, rules),
        Feature::TcpIpv6In => |fields, rules| tcp_in(fields, Family::Ipv6, rules),
        Feature::TcpState => |fields, _| closed(fields),
        // Its release is sampled by another program.
        Feature::SocketFree if hook.is_some_and(|samples| samples.hook() == Hook::SocketRelease) => {
            |fields, _| ended(fields, false)
        }
        Feature::SocketFree | Feature::SocketCreate => |fields, _| ended(fields, true),
        Feature::LocalDrops => packet_freed,
        _ => return None,
    };
    let program = name(feature);
    Some((program, make(&Fields { program, probe, hook, resolver, table }, rules)))
}

/// The name of a feature's program. The kernel allows 15 characters.
const fn name(feature: Feature) -> &'static str {
    match feature {
        Feature::Ipv4Out => "ipv4_out",
        Feature::UdpIpv6Out => "udp_ipv6_out",
        Feature::TcpIpv6Out => "tcp_ipv6_out",
        Feature::UdpIpv4In => "udp_ipv4_in",
        Feature::UdpIpv6In => "udp_ipv6_in",
        Feature::TcpIpv4In => "tcp_ipv4_in",
        Feature::TcpIpv6In => "tcp_ipv6_in",
        Feature::TcpState => "tcp_state",
        Feature::LocalDrops => "local_drops",
        Feature::SocketCreate => "socket_create",
        _ => "socket_free",
    }
}

/// Datagrams and TCP packets that leave over IPv4.
fn ipv4_out(fields: &Fields<'_>, rules: &Rules) -> Result<Code, Error> {
    let datagram = Datagram::at(fields, Family::Ipv4, Outbound)?;
    let leaving = Leaving::at(fields, Family::Ipv4)?;
    let (version, protocol) = (fields.get("version_ihl")?, fields.get("protocol")?);
    let mut reads: Vec<_> = datagram.reads().chain([&version, &protocol]).map(|field| (0, field)).collect();
    reads.extend(leaving.reads());
    let mut w = Writer::new(fields, &reads)?;
    w.begin()?;
    w.filter_addresses(&datagram.ends, &rules.filter)?;
    let (wanted, tcp) = (w.asm.label(), w.asm.label());
    w.load(&protocol, R1)?;
    for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
        w.asm.jump_if(Condition::Equal, R1, i32::from(protocol), wanted);
    }
    // The probe's filter discards the samples of other packets. But the kernel reads their fields first, which costs more, and
    // faults for packets that have no socket.
    w.end_without_sample();
    w.asm.bind(wanted);
    w.load(&version, R2)?;
    w.sample_if(Condition::NotEqual, R2, PLAIN_IPV4);
    w.asm.jump_if(Condition::Equal, R1, i32::from(IPPROTO_TCP), tcp);
    datagram.account(&mut w, rules)?;
    w.asm.bind(tcp);
    leaving.account(&mut w, rules)?;
    w.finish(fields.program)
}

fn udp_ipv6_out(fields: &Fields<'_>, rules: &Rules) -> Result<Code, Error> {
    let datagram = Datagram::at(fields, Family::Ipv6, Outbound)?;
    let next = fields.get("next_header")?;
    let reads: Vec<_> = datagram.reads().chain([&next]).map(|field| (0, field)).collect();
    let mut w = Writer::new(fields, &reads)?;
    w.begin()?;
    w.filter_addresses(&datagram.ends, &rules.filter)?;
    w.load(&next, R1)?;
    w.sample_if(Condition::NotEqual, R1, i32::from(IPPROTO_UDP));
    datagram.account(&mut w, rules)?;
    w.finish(fields.program)
}

fn tcp_ipv6_out(fields: &Fields<'_>, rules: &Rules) -> Result<Code, Error> {
    let leaving = Leaving::at(fields, Family::Ipv6)?;
    let protocol = fields.get("protocol")?;
    let mut reads: Vec<_> = leaving.reads().collect();
    reads.push((0, &protocol));
    let mut w = Writer::new(fields, &reads)?;
    w.begin()?;
    w.filter_addresses(&leaving.ends, &rules.filter)?;
    w.load(&protocol, R1)?;
    w.sample_if(Condition::NotEqual, R1, i32::from(IPPROTO_TCP));
    leaving.account(&mut w, rules)?;
    w.finish(fields.program)
}

fn udp_in(fields: &Fields<'_>, family: Family, rules: &Rules) -> Result<Code, Error> {
    let datagram = Datagram::at(fields, family, Inbound)?;
    let plain = Plain::at(fields)?;
    let reads: Vec<_> = datagram.reads().chain(plain.reads()).map(|field| (0, field)).collect();
    let mut w = Writer::new(fields, &reads)?;
    w.begin()?;
    plain.check(&mut w, family)?;
    w.filter_addresses(&datagram.ends, &rules.filter)?;
    datagram.account(&mut w, rules)?;
    w.finish(fields.program)
}

fn tcp_in(fields: &Fields<'_>, family: Family, rules: &Rules) -> Result<Code, Error> {
    let arriving = Arriving::at(fields, family)?;
    let plain = Plain::at(fields)?;
    let mut reads: Vec<_> = arriving.reads().collect();
    reads.extend(plain.reads().map(|field| (0, field)));
    let mut w = Writer::new(fields, &reads)?;
    w.begin()?;
    plain.check(&mut w, family)?;
    w.filter_addresses(&arriving.ends, &rules.filter)?;
    arriving.account(&mut w, rules)?;
    w.finish(fields.program)
}

/// A TCP socket enters a state. With `TCP_CLOSE`, its connection has ended.
fn closed(fields: &Fields<'_>) -> Result<Code, Error> {
    let (sk, state) = (fields.get("sk")?, fields.get("state")?);
    let mut w = Writer::new(fields, &[(0, &sk), (0, &state)])?;
    w.begin()?;
    w.load(&state, R1)?;
    w.sample_if(Condition::NotEqual, R1, TCP_CLOSE);
    w.set_key_to(&sk)?;
    w.look_up(w.sample);
    w.read_time();
    w.remove();
    w.finish(fields.program)
}

/// A `struct sock` is freed, so another socket may get its address. Or it is created, so entries at its address belong to an
/// earlier socket, whose end was missed.
fn ended(fields: &Fields<'_>, is_sampled: bool) -> Result<Code, Error> {
    let sk = fields.get("sk")?;
    let mut w = Writer::new(fields, &[(0, &sk)])?;
    w.begin()?;
    let gone = if is_sampled { w.sample } else { w.asm.label() };
    w.set_key_to(&sk)?;
    w.look_up(gone);
    w.read_time();
    w.remove_ways();
    w.look_up(gone);
    w.remove();
    if !is_sampled {
        w.asm.bind(gone);
        w.end_without_sample();
    }
    w.finish(fields.program)
}

/// A packet is freed, and perhaps was dropped. Ends hits that the probe's filter discards in any case, because the kernel would
/// read many fields first: calls without a packet, and packets that were consumed. Since Linux 6.4, each packet that a packet
/// socket's filter rejects is one of these.
fn packet_freed(fields: &Fields<'_>, rules: &Rules) -> Result<Code, Error> {
    let (skb, reason) = (fields.get("skb")?, fields.optional("reason")?);
    let mut w = Writer::new(fields, &[(0, &skb)])?;
    let unwanted = w.asm.label();
    w.load(&skb, R1)?;
    w.asm.jump_if(Condition::Equal, R1, 0, unwanted);
    if let (Some(reason), Some(consumed)) = (reason, rules.consumed) {
        w.load(&reason, R1)?;
        w.asm.jump_if(Condition::Equal, R1, consumed as i32, unwanted);
    }
    w.asm.jump(w.sample);
    w.asm.bind(unwanted);
    w.end_without_sample();
    w.finish(fields.program)
}

/// The offsets of an arriving packet's headers, whose distance shows whether its IP header is plain: without options.
struct Plain {
    transport: Expression,
    network: Expression,
}

impl Plain {
    fn at(fields: &Fields<'_>) -> Result<Self, Error> {
        Ok(Self { transport: fields.part("headers", 0, Type::U16)?, network: fields.part("headers", 2, Type::U16)? })
    }

    fn reads(&self) -> impl Iterator<Item = &Expression> {
        [&self.transport, &self.network].into_iter()
    }

    /// Samples the hit if there are IP options or extension headers.
    fn check(&self, w: &mut Writer, family: Family) -> Result<(), Error> {
        w.load(&self.transport, R1)?;
        w.load(&self.network, R2)?;
        w.asm.alu(Alu::Sub, R1, R2);
        w.sample_if(Condition::NotEqual, R1, i32::from(family.header_len()));
        Ok(())
    }
}
