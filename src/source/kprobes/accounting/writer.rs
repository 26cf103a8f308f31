//! The instructions that several programs have in common: to read fields, to change an entry, and to report it.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{
    Alu, Assembler, Buffer, CURRENT_CPU, Code, Condition, Helper, Label, Operand, Reader, Reads, Record, Register,
    Width,
};
use socktrail_kprobes::{Error, Expression};

use super::entry::{DirectionFields, RECORD_KIND, SIZE, offset};
use super::fields::{Ends, Fields, Piece};
use super::table::{ENTRY, HASH, KEY, LOWEST, Table, map};

/// The time of the hit, once [`Writer::read_time`] has read it.
pub(super) const NOW: Register = R8;

/// The offset of the eight bytes of the stack that the [`Reader`] uses.
const SCRATCH: i16 = -8;
/// A multiplier of MurmurHash3's finalizer: multiplication by this odd number spreads each bit over those above.
const MIX: u64 = 0xff51_afd7_ed55_8ccd;

/// Writes the instructions of one program.
pub(super) struct Writer {
    pub(super) asm: Assembler,
    pub(super) reader: Reader,
    pub(super) table: Table,
    reads: Reads,
    /// Here the program ends, and the hit becomes a sample.
    pub(super) sample: Label,
    at_hook: Option<AtHook>,
}

/// What a program at a hook has to do itself.
struct AtHook {
    verdict: i32,
    /// The samples.
    record: Record,
    conditions: Vec<(Expression, &'static [i32])>,
}

impl Writer {
    /// Begins a program that reads these fields, each in its phase: see [`Reads`].
    ///
    /// # Errors
    /// The fields do not fit the stack, or programs cannot be made for this architecture.
    pub(super) fn new(fields: &Fields<'_>, reads: &[(u8, &Expression)]) -> Result<Self, Error> {
        let mut asm = Assembler::new();
        let sample = asm.label();
        let reader = match fields.hook {
            Some(samples) => Reader::at_hook(&mut asm, samples.hook(), SCRATCH, sample),
            None => Reader::new(&mut asm, SCRATCH, sample)?,
        };
        let at_hook = fields.hook.map(|samples| AtHook {
            verdict: samples.hook().verdict(),
            record: samples.record().clone(),
            conditions: samples.conditions().to_vec(),
        });
        let mut reads = reads.to_vec();
        reads.extend(at_hook.iter().flat_map(|hook| &hook.conditions).map(|(value, _)| (0, value)));
        let reads = Reads::plan(fields.program, &reads, LOWEST)?;
        Ok(Self { asm, reader, table: fields.table, reads, sample, at_hook })
    }

    /// Whether the program runs at a hook, not at a kprobe.
    pub(super) const fn is_at_hook(&self) -> bool {
        self.at_hook.is_some()
    }

    /// Reads the fields of the first phase, and ends hits that do not meet the conditions of the hook. Overwrites `R0` to `R5` and
    /// `R8`.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        self.read(0)?;
        let conditions = self.at_hook.as_ref().map(|hook| hook.conditions.clone()).unwrap_or_default();
        for (value, values) in conditions {
            let is_met = self.asm.label();
            self.load(&value, R1)?;
            values.iter().for_each(|one| self.asm.jump_if(Condition::Equal, R1, *one, is_met));
            self.end_without_sample();
            self.asm.bind(is_met);
        }
        Ok(())
    }

    /// Reads the fields of a phase. If that fails, the hit becomes a sample.
    pub(super) fn read(&mut self, phase: u8) -> Result<(), Error> {
        self.reads.read(&mut self.asm, &self.reader, phase)
    }

    /// Loads a field that has been read, or that is a register.
    pub(super) fn load(&mut self, field: &Expression, into: Register) -> Result<(), Error> {
        self.reads.load(&mut self.asm, &self.reader, field, into)
    }

    /// Loads a field of the entry.
    pub(super) fn load_of_entry(&mut self, width: Width, into: Register, at: i16) {
        self.asm.load(width, into, ENTRY, at);
    }

    /// Stores into a field of the entry.
    pub(super) fn store_in_entry(&mut self, width: Width, at: i16, operand: impl Into<Operand>) {
        self.asm.store(width, ENTRY, at, operand);
    }

    /// Samples the hit if the condition holds.
    pub(super) fn sample_if(&mut self, condition: Condition, register: Register, operand: impl Into<Operand>) {
        self.asm.jump_if(condition, register, operand, self.sample);
    }

    /// Stores the value of `sock` as the key. A packet without a socket becomes a sample.
    pub(super) fn set_key_to(&mut self, sock: &Expression) -> Result<(), Error> {
        self.load(sock, R1)?;
        self.sample_if(Condition::Equal, R1, 0);
        self.set_key(R1);
        Ok(())
    }

    /// Stores a register as the key.
    pub(super) fn set_key(&mut self, register: Register) {
        self.asm.store(Width::Double, Frame, KEY, register);
    }

    /// Continues at a label if the entry has other ends. Overwrites `R0` to `R2`.
    pub(super) fn jump_if_other_ends(&mut self, ends: &Ends, differ: Label) -> Result<(), Error> {
        for Piece { field, at, width } in &ends.pieces {
            self.load(field, R1)?;
            self.load_of_entry(*width, R2, *at);
            self.asm.jump_if(Condition::NotEqual, R1, R2, differ);
        }
        self.load_of_entry(Width::Word, R1, offset!(protocol));
        self.asm.jump_if(Condition::NotEqual, R1, ends.protocol_and_family, differ);
        Ok(())
    }

    /// Reads the time into [`NOW`].
    pub(super) fn read_time(&mut self) {
        self.asm.call(Helper::MonotonicTime);
        self.asm.mov(NOW, R0);
    }

    /// Continues at a label if the conversation's last packet was this many nanoseconds ago or more.
    pub(super) fn jump_after_pause(&mut self, nanos: u64, paused: Label) {
        self.asm.mov(R1, NOW);
        self.load_of_entry(Width::Double, R2, offset!(last));
        self.asm.alu(Alu::Sub, R1, R2);
        self.asm.load64(R2, nanos);
        // Signed: another CPU may have noted a later time.
        self.asm.jump_if(Condition::GreaterOrEqualSigned, R1, R2, paused);
    }

    /// After a pause, the first packet of each direction is sampled again.
    pub(super) fn forget_seen(&mut self) {
        self.store_in_entry(Width::Byte, offset!(seen_out), 0);
        self.store_in_entry(Width::Byte, offset!(seen_in), 0);
    }

    /// Counts one packet. The register `bytes` has its size. Overwrites `R1`.
    pub(super) fn count_one(&mut self, direction: DirectionFields, bytes: Register) {
        self.asm.atomic_add(ENTRY, direction.bytes, bytes);
        self.asm.mov(R1, 1);
        self.asm.atomic_add(ENTRY, direction.packets, R1);
    }

    /// Notes the time of the packet.
    pub(super) fn note_time(&mut self) {
        self.store_in_entry(Width::Double, offset!(last), NOW);
    }

    /// Notes the time of a sampled packet, and that a packet of this direction was sampled.
    pub(super) fn note_sampled(&mut self, direction: DirectionFields) {
        self.note_time();
        self.store_in_entry(Width::Byte, direction.seen, 1);
    }

    /// Writes the entry into the ring, if packets have been counted in it. Overwrites `R0` to `R5`.
    pub(super) fn report(&mut self) {
        let nothing = self.asm.label();
        self.load_of_entry(Width::Double, R1, offset!(sent_packets));
        self.load_of_entry(Width::Double, R2, offset!(received_packets));
        self.asm.alu(Alu::Or, R1, R2);
        self.asm.jump_if(Condition::Equal, R1, 0, nothing);
        self.asm.mov(R1, R6);
        self.asm.load_map(R2, map::OUTPUTS);
        self.asm.load64(R3, CURRENT_CPU);
        self.asm.mov(R4, ENTRY);
        self.asm.mov(R5, i32::from(SIZE));
        self.asm.call(Helper::Output);
        self.asm.bind(nothing);
    }

    /// Makes an entry for the key with this socket, these ends and the present time. If the table has no room, the hit becomes a
    /// sample. The entry is found only after [`Writer::publish`].
    pub(super) fn begin_entry(
        &mut self,
        sock: &Expression,
        ends: &Ends,
        direction: DirectionFields,
    ) -> Result<(), Error> {
        self.read_time();
        self.claim();
        self.store_in_entry(Width::Half, offset!(record_kind), i32::from(RECORD_KIND));
        self.load(sock, R1)?;
        self.store_in_entry(Width::Double, offset!(sock), R1);
        self.store_in_entry(Width::Double, offset!(since), NOW);
        self.store_in_entry(Width::Double, offset!(last), NOW);
        self.store_in_entry(Width::Byte, direction.seen, 1);
        for Piece { field, at, width } in &ends.pieces {
            self.load(field, R1)?;
            self.store_in_entry(*width, *at, R1);
        }
        self.store_in_entry(Width::Word, offset!(protocol), ends.protocol_and_family);
        Ok(())
    }

    /// Writes the hash of the ends to the stack. Overwrites `R0` to `R5`.
    pub(super) fn hash(&mut self, ends: &Ends) -> Result<(), Error> {
        self.asm.load64(R5, MIX);
        self.asm.mov(R4, ends.protocol_and_family);
        for word in ends.pieces.chunk_by(|one, next| one.at / 8 == next.at / 8) {
            for Piece { field, at, .. } in word {
                self.load(field, R3)?;
                if at % 8 != 0 {
                    self.asm.alu(Alu::ShiftLeft, R3, 8 * i32::from(at % 8));
                }
                self.asm.alu(Alu::Xor, R4, R3);
            }
            self.asm.alu(Alu::Mul, R4, R5);
            self.asm.mov(R3, R4);
            self.asm.alu(Alu::ShiftRight, R3, 32);
            self.asm.alu(Alu::Xor, R4, R3);
        }
        self.asm.alu(Alu::Mul, R4, R5);
        self.asm.store(Width::Double, Frame, HASH, R4);
        Ok(())
    }

    /// Reports the entry of the key, and removes it from both arrays of buckets. The time must have been read.
    pub(super) fn remove(&mut self) {
        let no_ends = self.asm.label();
        self.report();
        self.load_of_entry(Width::Half, R1, offset!(protocol));
        self.asm.jump_if(Condition::NotEqual, R1, i32::from(super::TCP), no_ends);
        self.unpublish_ends();
        self.asm.bind(no_ends);
        self.unpublish();
    }

    /// Ends the program: the hit was counted, or the filter rejects it.
    pub(super) fn end_without_sample(&mut self) {
        self.asm.mov(R0, self.at_hook.as_ref().map_or(0, |hook| hook.verdict));
        self.asm.exit();
    }

    /// Writes the end at which the hit becomes a sample, and checks the program.
    pub(super) fn finish(mut self, program: &str) -> Result<Code, Error> {
        self.asm.bind(self.sample);
        match self.at_hook {
            None => self.asm.mov(R0, 1),
            Some(AtHook { verdict, record, .. }) => {
                // Here the program ends, so nothing that is on the stack is needed any more.
                record.write(&mut self.asm, &self.reader, map::OUTPUTS, Buffer::Stack(SCRATCH))?;
                self.asm.mov(R0, verdict);
            }
        }
        self.asm.exit();
        self.asm.finish(program)
    }
}
