//! The accounting of datagrams.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Condition, Label, Register, Width};
use socktrail_kprobes::{Error, Expression, Type};

use super::entry::{Side, offset};
use super::fields::{Ends, Fields};
use super::writer::Writer;
use super::{Family, Rules};
use crate::model::event::PacketDirection;

/// `IPPROTO_UDP`
const UDP: u16 = 17;
/// The size of the packet, while it is counted.
const BYTES: Register = R9;

/// What a program reads of a datagram.
pub(super) struct Datagram {
    direction: PacketDirection,
    family: Family,
    sock: Expression,
    pub(super) ends: Ends,
    /// From the IP header on if it leaves, from the UDP header on if it arrives.
    len: Expression,
    /// The size of the nonlinear part.
    data_len: Expression,
    /// The size of its largest fragment.
    fragment: Option<Expression>,
}

impl Datagram {
    /// A datagram at this probe.
    ///
    /// # Errors
    /// The layout does not know a field.
    pub(super) fn at(fields: &Fields<'_>, family: Family, direction: PacketDirection) -> Result<Self, Error> {
        Ok(Self {
            direction,
            family,
            sock: fields.get("sk")?,
            ends: Ends::of(fields, family, direction, UDP)?,
            len: fields.part("lengths", 0, Type::U32)?,
            data_len: fields.part("lengths", 4, Type::U32)?,
            fragment: if direction == PacketDirection::Inbound { fields.optional("fragment")? } else { None },
        })
    }

    /// The fields that a program has to read.
    pub(super) fn reads(&self) -> impl Iterator<Item = &Expression> {
        let of_packet = [&self.sock, &self.len, &self.data_len].into_iter().chain(&self.fragment);
        of_packet.chain(self.ends.pieces.iter().map(|piece| &piece.field))
    }

    /// Counts the datagram, whose header is plain, or lets it become a sample.
    pub(super) fn account(&self, w: &mut Writer, rules: &Rules) -> Result<(), Error> {
        let side = Side::of(self.direction);
        let (new, slow, paused) = (w.asm.label(), w.asm.label(), w.asm.label());
        if self.direction == PacketDirection::Outbound {
            // It may be several datagrams.
            w.load(&self.data_len, R1)?;
            w.sample_if(Condition::NotEqual, R1, 0);
        }
        if let Some(fragment) = &self.fragment {
            w.load(fragment, R1)?;
            w.sample_if(Condition::NotEqual, R1, 0);
        }
        w.drop_ports(&self.ends, &rules.filter)?;
        w.key(&self.sock)?;
        w.look_up(new);
        w.compare(&self.ends, w.sample)?;
        w.now();
        w.pause(rules.inactive_nanos, paused);
        w.load_of_entry(Width::Byte, R1, side.seen);
        w.asm.jump_if(Condition::Equal, R1, 0, slow);
        self.size(w)?;
        self.note_doubt(w, rules)?;
        w.count_one(side, BYTES);
        w.note_time();
        w.silent();
        w.asm.bind(paused);
        w.forget_seen();
        w.asm.bind(slow);
        w.report();
        w.note_sampled(side);
        w.asm.jump(w.sample);
        self.begin(w, new, side)
    }

    /// Loads the size with all headers.
    fn size(&self, w: &mut Writer) -> Result<(), Error> {
        w.load(&self.len, BYTES)?;
        if self.direction == PacketDirection::Inbound {
            w.asm.alu(Alu::Add, BYTES, i32::from(self.family.header()));
        }
        Ok(())
    }

    /// Notes that the datagram may be several, if its socket is of a certain kind. The state machine knows the kind.
    fn note_doubt(&self, w: &mut Writer, rules: &Rules) -> Result<(), Error> {
        let sure = w.asm.label();
        match self.direction {
            PacketDirection::Outbound => {
                let Some(head) = i32::try_from(rules.gso_head_len).ok().filter(|head| *head > 0) else { return Ok(()) };
                w.asm.jump_if(Condition::Greater, BYTES, head, sure);
                w.store_in_entry(Width::Byte, offset!(short_sent), 1);
            }
            PacketDirection::Inbound => {
                w.load(&self.data_len, R1)?;
                w.asm.jump_if(Condition::Equal, R1, 0, sure);
                w.store_in_entry(Width::Byte, offset!(nonlinear_received), 1);
            }
        }
        w.asm.bind(sure);
        Ok(())
    }

    fn begin(&self, w: &mut Writer, new: Label, side: Side) -> Result<(), Error> {
        w.asm.bind(new);
        w.begin_entry(&self.ends, side)?;
        w.publish();
        w.asm.jump(w.sample);
        Ok(())
    }
}
