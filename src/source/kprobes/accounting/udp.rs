//! The accounting of datagrams.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Condition, Register, Width};
use socktrail_kprobes::{Error, Expression, Type};

use super::entry::{DirectionFields, offset};
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
    /// The length in bytes: of an outgoing datagram from the IP header on, of an arriving one from the UDP header on. At a hook, from
    /// the IP header on.
    len: Expression,
    is_at_hook: bool,
    /// The size of the nonlinear part, at a kprobe.
    data_len: Option<Expression>,
    /// The size of its largest fragment, or 0.
    fragment: Option<Expression>,
}

impl Datagram {
    /// The fields of a datagram at this probe.
    ///
    /// # Errors
    /// The layout does not have a field.
    pub(super) fn at(fields: &Fields<'_>, family: Family, direction: PacketDirection) -> Result<Self, Error> {
        Ok(Self {
            direction,
            family,
            sock: fields.get("sk")?,
            ends: Ends::of(fields, family, direction, UDP)?,
            len: fields.part("lengths", 0, Type::U32)?,
            is_at_hook: false,
            data_len: Some(fields.part("lengths", 4, Type::U32)?),
            fragment: if direction == PacketDirection::Inbound { fields.optional("fragment")? } else { None },
        })
    }

    /// A datagram at a hook that stands for no others and is not fragmented.
    ///
    /// # Errors
    /// The layout does not have a field.
    pub(super) fn at_hook(fields: &Fields<'_>, family: Family, direction: PacketDirection) -> Result<Self, Error> {
        Ok(Self {
            direction,
            family,
            sock: fields.get("sk")?,
            ends: Ends::of(fields, family, direction, UDP)?,
            len: fields.get("len")?,
            is_at_hook: true,
            data_len: None,
            fragment: None,
        })
    }

    /// The fields that a program has to read.
    pub(super) fn reads(&self) -> impl Iterator<Item = &Expression> {
        let of_packet = [&self.sock, &self.len].into_iter().chain(&self.data_len).chain(&self.fragment);
        of_packet.chain(self.ends.pieces.iter().map(|piece| &piece.field))
    }

    /// Counts the datagram or lets it become a sample. Its IP header must have no options.
    pub(super) fn account(&self, w: &mut Writer, rules: &Rules) -> Result<(), Error> {
        let direction = DirectionFields::of(self.direction);
        let (new, report_and_sample, paused) = (w.asm.label(), w.asm.label(), w.asm.label());
        let (other, new_way, taken, found) = (w.asm.label(), w.asm.label(), w.asm.label(), w.asm.label());
        if let (PacketDirection::Outbound, Some(data_len)) = (self.direction, &self.data_len) {
            // The packet may hold several datagrams (UDP GSO).
            w.load(data_len, R1)?;
            w.sample_if(Condition::NotEqual, R1, 0);
        }
        if let Some(fragment) = &self.fragment {
            w.load(fragment, R1)?;
            w.sample_if(Condition::NotEqual, R1, 0);
        }
        if !self.is_at_hook {
            w.filter_ports(&self.ends, &rules.filter)?;
        }
        w.set_key_to(&self.sock)?;
        w.look_up(new);
        w.jump_if_other_ends(&self.ends, other)?;
        w.asm.jump(found);
        w.asm.bind(other);
        w.hash(&self.ends)?;
        w.look_up_way(new_way);
        w.jump_if_other_ends(&self.ends, taken)?;
        w.asm.bind(found);
        w.read_time();
        w.jump_after_pause(rules.pause_nanos, paused);
        w.load_of_entry(Width::Byte, R1, direction.seen);
        w.asm.jump_if(Condition::Equal, R1, 0, report_and_sample);
        self.load_size(w)?;
        self.note_uncertain(w, rules)?;
        w.count_one(direction, BYTES);
        w.note_time();
        w.end_without_sample();
        w.asm.bind(paused);
        w.forget_seen();
        w.asm.bind(report_and_sample);
        w.report();
        w.note_sampled(direction);
        w.asm.jump(w.sample);
        w.asm.bind(taken);
        w.evict();
        w.asm.bind(new_way);
        w.begin_entry(&self.sock, &self.ends, direction)?;
        w.note_way();
        w.publish();
        w.asm.jump(w.sample);
        w.asm.bind(new);
        w.begin_entry(&self.sock, &self.ends, direction)?;
        w.publish();
        w.asm.jump(w.sample);
        Ok(())
    }

    /// Loads the size with all headers into `BYTES`.
    fn load_size(&self, w: &mut Writer) -> Result<(), Error> {
        w.load(&self.len, BYTES)?;
        if self.direction == PacketDirection::Inbound && !self.is_at_hook {
            w.asm.alu(Alu::Add, BYTES, i32::from(self.family.header_len()));
        }
        Ok(())
    }

    /// Notes that the packet may hold several datagrams: an outgoing one if its socket uses UDP GSO, an arriving one if its socket
    /// is the kernel's. Only the state machine knows whether the socket is of that kind.
    fn note_uncertain(&self, w: &mut Writer, rules: &Rules) -> Result<(), Error> {
        let Some(data_len) = &self.data_len else { return Ok(()) };
        let is_single = w.asm.label();
        match self.direction {
            PacketDirection::Outbound => {
                let Some(head) = i32::try_from(rules.gso_head_len).ok().filter(|head| *head > 0) else { return Ok(()) };
                w.asm.jump_if(Condition::Greater, BYTES, head, is_single);
                w.store_in_entry(Width::Byte, offset!(short_sent), 1);
            }
            PacketDirection::Inbound => {
                w.load(data_len, R1)?;
                w.asm.jump_if(Condition::Equal, R1, 0, is_single);
                w.store_in_entry(Width::Byte, offset!(nonlinear_received), 1);
            }
        }
        w.asm.bind(is_single);
        Ok(())
    }
}
