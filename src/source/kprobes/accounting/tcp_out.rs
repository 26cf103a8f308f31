//! The accounting of outgoing TCP packets: as `state/counting.rs` does it from samples.
//!
//! Packets of one socket leave one after the other, because its lock is held. Packets may arrive at the same time on other CPUs.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Condition, Label, Register, Width};
use socktrail_kprobes::{Error, Expression, Type};

use super::entry::{Side, offset};
use super::fields::{Ends, Fields};
use super::table::ENTRY;
use super::writer::{NOW, Writer};
use super::{Family, MAX_STEP, Rules, TCP, WITH_SAMPLE};
use crate::model::event::PacketDirection;

/// The phase in which the socket's segment counters are read.
pub(super) const COUNTERS: u8 = 1;
/// The phase in which the socket's own ends are read.
pub(super) const OWN_ENDS: u8 = 2;
/// The number of segments of the packet, while it is counted.
const SEGMENTS: Register = R9;

/// What a program reads of an outgoing TCP packet.
pub(super) struct Leaving {
    family: Family,
    sock: Expression,
    net: Expression,
    pub(super) ends: Ends,
    /// From the TCP header on over IPv6, where there is no IP header yet, otherwise from the IP header on.
    len: Expression,
    /// The byte with the length of the TCP header.
    offset: Expression,
    flags: Expression,
    segs_in: Expression,
    segs_out: Expression,
    /// The other end in the packet, and the same in the `struct sock`.
    remote: Vec<(Expression, Expression)>,
}

impl Leaving {
    /// A packet at this probe.
    ///
    /// # Errors
    /// The layout does not know a field.
    pub(super) fn at(fields: &Fields<'_>, family: Family) -> Result<Self, Error> {
        let ends = Ends::of(fields, family, PacketDirection::Outbound, TCP)?;
        let (len, tcp, remote) = match family {
            Family::Ipv4 => {
                let address = (fields.part("addresses", 4, Type::U32)?, fields.of_sock("daddr")?);
                let port = (fields.part("behind", 2, Type::U16)?, fields.of_sock("dport")?);
                (fields.part("lengths", 0, Type::U32)?, ("further_behind", 4), vec![address, port])
            }
            Family::Ipv6 => {
                let high = (fields.get("destination_high")?, fields.of_sock("v6_daddr_high")?);
                let low = (fields.get("destination_low")?, fields.of_sock("v6_daddr_low")?);
                let port = (fields.part("ports", 2, Type::U16)?, fields.of_sock("dport")?);
                (fields.get("len")?, ("tcp", 0), vec![high, low, port])
            }
        };
        Ok(Self {
            family,
            sock: fields.get("sk")?,
            net: fields.get("net")?,
            ends,
            len,
            offset: fields.part(tcp.0, tcp.1, Type::U8)?,
            flags: fields.part(tcp.0, tcp.1 + 1, Type::U8)?,
            segs_in: fields.get("segs_in")?,
            segs_out: fields.get("segs_out")?,
            remote,
        })
    }

    /// The fields that a program has to read, each in its phase.
    pub(super) fn reads(&self) -> impl Iterator<Item = (u8, &Expression)> {
        let of_headers = [&self.sock, &self.len, &self.offset, &self.flags].into_iter();
        let of_headers = of_headers.chain(self.ends.pieces.iter().map(|piece| &piece.field)).map(|field| (0, field));
        let counters = [(COUNTERS, &self.segs_in), (COUNTERS, &self.segs_out)];
        let own_ends = self.remote.iter().map(|(_, own)| (OWN_ENDS, own)).chain([(OWN_ENDS, &self.net)]);
        of_headers.chain(counters).chain(own_ends)
    }

    /// Counts the packet, whose IP header is plain, or lets it become a sample.
    pub(super) fn account(&self, w: &mut Writer, rules: &Rules) -> Result<(), Error> {
        let side = Side::of(PacketDirection::Outbound);
        let (new, slow, paused, stale) = (w.asm.label(), w.asm.label(), w.asm.label(), w.asm.label());
        w.drop_ports(&self.ends, &rules.filter)?;
        w.key(&self.sock)?;
        w.look_up(new);
        // Another socket may have had this address, and its end was not seen.
        w.compare(&self.ends, stale)?;
        // Before `expected` is read: a packet adds to that before the socket counts it.
        w.read(COUNTERS)?;
        w.now();
        w.load(&self.flags, R1)?;
        w.asm.jump_if(Condition::AnyBit, R1, WITH_SAMPLE, slow);
        w.pause(rules.inactive_nanos, paused);
        w.load_of_entry(Width::Byte, R1, side.seen);
        w.asm.jump_if(Condition::Equal, R1, 0, slow);
        self.count_segments(w, slow)?;
        self.settle(w, slow)?;
        self.count(w, side)?;
        w.note_time();
        w.silent();

        w.asm.bind(stale);
        w.remove();
        w.asm.jump(w.sample);

        w.asm.bind(paused);
        w.forget_seen();
        w.asm.bind(slow);
        w.report();
        self.pass(w)?;
        w.note_sampled(side);
        w.asm.jump(w.sample);
        self.begin(w, new, side)
    }

    /// `SEGMENTS` becomes the number of segments that the socket has sent since its last packet. An implausible number makes the
    /// packet a sample.
    fn count_segments(&self, w: &mut Writer, slow: Label) -> Result<(), Error> {
        w.load(&self.segs_out, SEGMENTS)?;
        w.load_of_entry(Width::Word, R1, offset!(segs_out));
        w.asm.alu32(Alu::Sub, SEGMENTS, R1);
        w.asm.jump_if(Condition::GreaterOrEqual, SEGMENTS, MAX_STEP, slow);
        Ok(())
    }

    /// `missing` becomes the number of segments that the socket has received and no packet has shown. Continues at the label if
    /// there are none.
    fn missing(&self, w: &mut Writer, missing: Register, none: Label) -> Result<(), Error> {
        w.load(&self.segs_in, missing)?;
        w.load_of_entry(Width::Word, R0, offset!(expected));
        w.asm.alu32(Alu::Sub, missing, R0);
        w.asm.jump_if(Condition::Equal, missing, 0, none);
        w.asm.jump_if(Condition::GreaterOrEqual, missing, MAX_STEP, none);
        Ok(())
    }

    /// Raises the count of received segments to the socket's own.
    fn settle(&self, w: &mut Writer, slow: Label) -> Result<(), Error> {
        let side = Side::of(PacketDirection::Inbound);
        let settled = w.asm.label();
        self.missing(w, R2, settled)?;
        w.load_of_entry(Width::Half, R3, offset!(received_headers));
        // Only samples have shown the last header.
        w.asm.jump_if(Condition::Equal, R3, 0, slow);
        w.asm.alu(Alu::Mul, R3, R2);
        w.asm.atomic_add(ENTRY, side.bytes, R3);
        w.asm.atomic_add(ENTRY, side.packets, R2);
        // Not a store: another packet may be arriving.
        w.asm.atomic_add(ENTRY, offset!(expected), R2);
        w.asm.atomic_add(ENTRY, offset!(merged), R2);
        w.load_of_entry(Width::Half, R3, offset!(received_shortest));
        w.load_of_entry(Width::Half, R4, offset!(received_longest));
        w.asm.jump_if(Condition::Equal, R3, R4, settled);
        w.load_of_entry(Width::Word, R3, offset!(merged_unsure));
        w.asm.alu(Alu::Add, R3, R2);
        w.store_in_entry(Width::Word, offset!(merged_unsure), R3);
        w.asm.bind(settled);
        Ok(())
    }

    /// Notes that all segments have been counted so far, and that no packet has arrived since.
    fn note_counters(&self, w: &mut Writer) -> Result<(), Error> {
        w.load(&self.segs_out, R1)?;
        w.store_in_entry(Width::Word, offset!(segs_out), R1);
        // Both lengths.
        w.store_in_entry(Width::Word, offset!(received_shortest), 0);
        Ok(())
    }

    /// Counts the packet with its further segments, each of which repeats the headers.
    fn count(&self, w: &mut Writer, side: Side) -> Result<(), Error> {
        let (not_zero, single) = (w.asm.label(), w.asm.label());
        self.note_counters(w)?;
        // A packet that the socket has not counted is one.
        w.asm.jump_if(Condition::NotEqual, SEGMENTS, 0, not_zero);
        w.asm.mov(SEGMENTS, 1);
        w.asm.bind(not_zero);
        super::load_headers(w, &self.offset, self.family, R3)?;
        w.load(&self.len, R4)?;
        if self.family == Family::Ipv6 {
            w.asm.alu(Alu::Add, R4, i32::from(self.family.header()));
        }
        w.store_in_entry(Width::Half, offset!(last_sent_headers), R3);
        w.store_in_entry(Width::Word, offset!(last_sent_bytes), R4);
        w.store_in_entry(Width::Half, offset!(last_sent_segments), SEGMENTS);
        w.asm.atomic_add(ENTRY, side.packets, SEGMENTS);
        w.asm.atomic_add(ENTRY, side.bytes, R4);
        w.asm.jump_if(Condition::Equal, SEGMENTS, 1, single);
        w.asm.mov(R1, SEGMENTS);
        w.asm.alu(Alu::Sub, R1, 1);
        w.asm.alu(Alu::Mul, R1, R3);
        w.asm.atomic_add(ENTRY, side.bytes, R1);
        note_full(w);
        w.asm.bind(single);
        Ok(())
    }

    /// Notes a packet that becomes a sample, with which the state machine counts what is missing.
    fn pass(&self, w: &mut Writer) -> Result<(), Error> {
        let settled = w.asm.label();
        self.missing(w, R2, settled)?;
        w.asm.atomic_add(ENTRY, offset!(expected), R2);
        w.asm.bind(settled);
        self.note_counters(w)
    }

    /// Makes the entry of a connection, at its first packet without SYN, FIN or RST. The kernel also sends packets of other
    /// conversations through a socket that is not connected.
    fn begin(&self, w: &mut Writer, new: Label, side: Side) -> Result<(), Error> {
        w.asm.bind(new);
        w.load(&self.flags, R1)?;
        w.sample_if(Condition::AnyBit, R1, WITH_SAMPLE);
        w.read(COUNTERS)?;
        w.read(OWN_ENDS)?;
        for (of_packet, own) in &self.remote {
            w.load(of_packet, R2)?;
            w.load(own, R3)?;
            w.sample_if(Condition::NotEqual, R2, R3);
        }
        w.hash(&self.ends)?;
        w.begin_entry(&self.ends, side)?;
        w.load(&self.net, R1)?;
        w.store_in_entry(Width::Double, offset!(net), R1);
        w.load(&self.segs_out, R1)?;
        w.store_in_entry(Width::Word, offset!(segs_out), R1);
        // Not a store: once the entry is known, a packet that arrives on another CPU adds to it.
        w.load(&self.segs_in, R1)?;
        w.asm.atomic_add(ENTRY, offset!(expected), R1);
        w.publish();
        w.publish_ends();
        w.asm.jump(w.sample);
        Ok(())
    }
}

/// Notes the payload of a full segment: the packet has `R4` bytes with `R3` bytes of headers. The last segment may be shorter,
/// so a full one has at least the quotient. Overwrites `R4` and `R5`.
fn note_full(w: &mut Writer) {
    let (no_payload, noted) = (w.asm.label(), w.asm.label());
    w.asm.jump_if(Condition::GreaterOrEqual, R3, R4, no_payload);
    w.asm.alu(Alu::Sub, R4, R3);
    w.asm.alu(Alu::Add, R4, SEGMENTS);
    w.asm.alu(Alu::Sub, R4, 1);
    w.asm.alu(Alu::Div, R4, SEGMENTS);
    w.load_of_entry(Width::Word, R5, offset!(full));
    w.asm.jump_if(Condition::GreaterOrEqual, R5, R4, noted);
    w.store_in_entry(Width::Word, offset!(full), R4);
    w.asm.bind(no_payload);
    w.asm.bind(noted);
}

// The time stays in its register over all calls of a program.
const _: () = assert!(!matches!(NOW, R0 | R1 | R2 | R3 | R4 | R5));
