//! The accounting of arriving TCP packets: as `state/counting.rs` does it from samples.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Condition, Register, Width};
use socktrail_kprobes::{Error, Expression, Type};

use super::entry::{Side, offset};
use super::fields::{Ends, Fields};
use super::table::ENTRY;
use super::writer::Writer;
use super::{Family, Rules, SYN, TCP, WITH_SAMPLE};
use crate::model::event::PacketDirection;

/// The phase in which the namespace is read.
const NAMESPACE: u8 = 1;
/// The length of IP and TCP header, while the packet is counted.
const HEADERS: Register = R9;

/// What a program reads of an arriving TCP packet.
pub(super) struct Arriving {
    family: Family,
    /// The `struct sock` that early demultiplexing found, or 0. There is none over loopback.
    sock: Expression,
    net: Expression,
    pub(super) ends: Ends,
    /// From the TCP header on.
    len: Expression,
    /// The byte with the length of the TCP header.
    offset: Expression,
    flags: Expression,
    fragment: Option<Expression>,
}

impl Arriving {
    /// A packet at this probe.
    ///
    /// # Errors
    /// The layout does not know a field.
    pub(super) fn at(fields: &Fields<'_>, family: Family) -> Result<Self, Error> {
        Ok(Self {
            family,
            sock: fields.receiver()?,
            net: fields.get("net")?,
            ends: Ends::of(fields, family, PacketDirection::Inbound, TCP)?,
            len: fields.get("len")?,
            offset: fields.part("tcp", 0, Type::U8)?,
            flags: fields.part("tcp", 1, Type::U8)?,
            fragment: fields.optional("fragment")?,
        })
    }

    /// The fields that a program has to read, each in its phase.
    pub(super) fn reads(&self) -> impl Iterator<Item = (u8, &Expression)> {
        let of_packet = [&self.sock, &self.len, &self.offset, &self.flags].into_iter();
        let of_packet = of_packet.chain(self.ends.pieces.iter().map(|piece| &piece.field)).chain(&self.fragment);
        of_packet.map(|field| (0, field)).chain([(NAMESPACE, &self.net)])
    }

    /// Counts the packet, whose IP header is plain, or lets it become a sample.
    pub(super) fn account(&self, w: &mut Writer, rules: &Rules) -> Result<(), Error> {
        let side = Side::of(PacketDirection::Inbound);
        let (slow, paused) = (w.asm.label(), w.asm.label());
        w.drop_ports(&self.ends, &rules.filter)?;
        self.find(w)?;
        w.now();
        super::load_headers(w, &self.offset, self.family, HEADERS)?;
        w.load(&self.flags, R1)?;
        w.asm.jump_if(Condition::AnyBit, R1, WITH_SAMPLE, slow);
        if let Some(fragment) = &self.fragment {
            w.load(fragment, R1)?;
            w.asm.jump_if(Condition::NotEqual, R1, 0, slow);
        }
        w.pause(rules.inactive_nanos, paused);
        w.load_of_entry(Width::Byte, R1, side.seen);
        w.asm.jump_if(Condition::Equal, R1, 0, slow);
        w.load(&self.len, R2)?;
        w.asm.alu(Alu::Add, R2, i32::from(self.family.header()));
        w.count_one(side, R2);
        expect(w);
        note_headers(w);
        w.note_time();
        w.silent();

        w.asm.bind(paused);
        w.forget_seen();
        w.asm.bind(slow);
        w.report();
        expect(w);
        w.note_sampled(side);
        // A SYN is never merged with others, and has options that others do not have.
        w.load(&self.flags, R1)?;
        w.sample_if(Condition::AnyBit, R1, SYN);
        note_headers(w);
        w.asm.jump(w.sample);
        Ok(())
    }

    /// Finds the entry, by the socket or else by the ends. Without an entry the packet is a sample.
    fn find(&self, w: &mut Writer) -> Result<(), Error> {
        let (by_ends, found) = (w.asm.label(), w.asm.label());
        w.load(&self.sock, R1)?;
        w.asm.jump_if(Condition::Equal, R1, 0, by_ends);
        w.store_key(R1);
        w.look_up(by_ends);
        w.asm.jump(found);
        w.asm.bind(by_ends);
        w.hash(&self.ends)?;
        w.look_up_ends(w.sample);
        w.compare(&self.ends, w.sample)?;
        // Another namespace may have the same ends.
        w.read(NAMESPACE)?;
        w.load(&self.net, R1)?;
        w.load_of_entry(Width::Double, R2, offset!(net));
        w.sample_if(Condition::NotEqual, R1, R2);
        w.asm.bind(found);
        Ok(())
    }
}

/// Expects the socket to count the packet.
fn expect(w: &mut Writer) {
    w.asm.mov(R1, 1);
    w.asm.atomic_add(ENTRY, offset!(expected), R1);
}

/// Notes the length of the headers, which segments merged with the packet had as well.
fn note_headers(w: &mut Writer) {
    let (longest, first, noted) = (w.asm.label(), w.asm.label(), w.asm.label());
    w.store_in_entry(Width::Half, offset!(received_headers), HEADERS);
    w.load_of_entry(Width::Half, R1, offset!(received_shortest));
    w.asm.jump_if(Condition::Equal, R1, 0, first);
    w.load_of_entry(Width::Half, R2, offset!(received_longest));
    w.asm.jump_if(Condition::Greater, HEADERS, R2, longest);
    w.asm.jump_if(Condition::GreaterOrEqual, HEADERS, R1, noted);
    w.store_in_entry(Width::Half, offset!(received_shortest), HEADERS);
    w.asm.jump(noted);
    w.asm.bind(first);
    w.store_in_entry(Width::Half, offset!(received_shortest), HEADERS);
    w.asm.bind(longest);
    w.store_in_entry(Width::Half, offset!(received_longest), HEADERS);
    w.asm.bind(noted);
}
