//! The accounting of arriving TCP packets: as `state/counting.rs` does it from samples.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Condition, Register, Width};
use socktrail_kprobes::{Error, Expression, Type};

use super::entry::{DirectionFields, offset};
use super::fields::{Ends, Fields};
use super::table::ENTRY;
use super::writer::Writer;
use super::{ALWAYS_SAMPLED, Family, Rules, SYN, TCP};
use crate::model::event::PacketDirection;

/// The phase in which the namespace is read.
pub(super) const NAMESPACE: u8 = 1;
/// The length of the IP and TCP headers together, while the packet is counted.
const HEADERS: Register = R9;

/// What a program reads of an arriving TCP packet.
pub(super) struct Arriving {
    family: Family,
    /// The `struct sock` that early demultiplexing found, or 0. There is none over loopback.
    sock: Expression,
    net: Expression,
    pub(super) ends: Ends,
    /// The length of the packet from the TCP header on, in bytes.
    len: Expression,
    /// The byte of the TCP header that contains its length.
    data_offset: Expression,
    flags: Expression,
    /// The size of its largest fragment, or 0.
    fragment: Option<Expression>,
}

impl Arriving {
    /// The fields of a packet at this probe.
    ///
    /// # Errors
    /// The layout does not have a field.
    pub(super) fn at(fields: &Fields<'_>, family: Family) -> Result<Self, Error> {
        Ok(Self {
            family,
            sock: fields.receiver()?,
            net: fields.get("net")?,
            ends: Ends::of(fields, family, PacketDirection::Inbound, TCP)?,
            len: fields.get("len")?,
            data_offset: fields.part("tcp", 0, Type::U8)?,
            flags: fields.part("tcp", 1, Type::U8)?,
            fragment: fields.optional("fragment")?,
        })
    }

    /// The fields that a program has to read, each in its phase.
    pub(super) fn reads(&self) -> impl Iterator<Item = (u8, &Expression)> {
        let of_packet = [&self.sock, &self.len, &self.data_offset, &self.flags].into_iter();
        let of_packet = of_packet.chain(self.ends.pieces.iter().map(|piece| &piece.field)).chain(&self.fragment);
        of_packet.map(|field| (0, field)).chain([(NAMESPACE, &self.net)])
    }

    /// Counts the packet or lets it become a sample. Its IP header must have no options.
    pub(super) fn account(&self, w: &mut Writer, rules: &Rules) -> Result<(), Error> {
        let direction = DirectionFields::of(PacketDirection::Inbound);
        let (report_and_sample, paused) = (w.asm.label(), w.asm.label());
        w.filter_ports(&self.ends, &rules.filter)?;
        find(w, &self.sock, &self.ends, &self.net)?;
        w.read_time();
        super::load_header_len(w, &self.data_offset, self.family, HEADERS)?;
        w.load(&self.flags, R1)?;
        w.asm.jump_if(Condition::AnyBit, R1, ALWAYS_SAMPLED, report_and_sample);
        if let Some(fragment) = &self.fragment {
            w.load(fragment, R1)?;
            w.asm.jump_if(Condition::NotEqual, R1, 0, report_and_sample);
        }
        w.jump_after_pause(rules.pause_nanos, paused);
        w.load_of_entry(Width::Byte, R1, direction.seen);
        w.asm.jump_if(Condition::Equal, R1, 0, report_and_sample);
        // This comes first, so that a reader in between never sees a counted segment that it does not expect.
        expect_segment(w);
        w.load(&self.len, R2)?;
        w.asm.alu(Alu::Add, R2, i32::from(self.family.header_len()));
        w.count_one(direction, R2);
        note_headers(w);
        w.note_time();
        w.end_without_sample();

        w.asm.bind(paused);
        w.forget_seen();
        w.asm.bind(report_and_sample);
        w.report();
        expect_segment(w);
        w.note_sampled(direction);
        // A SYN is never merged with others, and has options that others do not have.
        w.load(&self.flags, R1)?;
        w.sample_if(Condition::AnyBit, R1, SYN);
        note_headers(w);
        w.asm.jump(w.sample);
        Ok(())
    }
}

/// Finds the entry of an arriving packet by the socket, or else by the ends. A packet without an entry becomes a sample. The namespace
/// is read in the phase [`NAMESPACE`].
pub(super) fn find(w: &mut Writer, sock: &Expression, ends: &Ends, net: &Expression) -> Result<(), Error> {
    let (by_ends, found) = (w.asm.label(), w.asm.label());
    w.load(sock, R1)?;
    w.asm.jump_if(Condition::Equal, R1, 0, by_ends);
    w.set_key(R1);
    w.look_up(by_ends);
    // Another socket may have had this address, and its end was not seen.
    w.jump_if_other_ends(ends, w.sample)?;
    w.asm.jump(found);
    w.asm.bind(by_ends);
    w.hash(ends)?;
    w.look_up_ends(w.sample);
    w.jump_if_other_ends(ends, w.sample)?;
    // Another namespace may have the same ends.
    w.read(NAMESPACE)?;
    w.load(net, R1)?;
    w.load_of_entry(Width::Double, R2, offset!(net));
    w.sample_if(Condition::NotEqual, R1, R2);
    w.asm.bind(found);
    Ok(())
}

/// Expects that the socket counts the packet as one segment.
fn expect_segment(w: &mut Writer) {
    w.asm.mov(R1, 1);
    w.asm.atomic_add(ENTRY, offset!(expected_segs_in), R1);
}

/// Notes the length of the headers. Segments that were merged with the packet are assumed to have had the same headers.
fn note_headers(w: &mut Writer) {
    let (longest, first, noted) = (w.asm.label(), w.asm.label(), w.asm.label());
    w.store_in_entry(Width::Half, offset!(received_headers), HEADERS);
    w.load_of_entry(Width::Half, R1, offset!(shortest_headers));
    w.asm.jump_if(Condition::Equal, R1, 0, first);
    w.load_of_entry(Width::Half, R2, offset!(longest_headers));
    w.asm.jump_if(Condition::Greater, HEADERS, R2, longest);
    w.asm.jump_if(Condition::GreaterOrEqual, HEADERS, R1, noted);
    w.store_in_entry(Width::Half, offset!(shortest_headers), HEADERS);
    w.asm.jump(noted);
    w.asm.bind(first);
    w.store_in_entry(Width::Half, offset!(shortest_headers), HEADERS);
    w.asm.bind(longest);
    w.store_in_entry(Width::Half, offset!(longest_headers), HEADERS);
    w.asm.bind(noted);
}
