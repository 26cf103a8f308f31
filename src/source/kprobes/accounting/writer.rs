//! What all programs have in common: they find a conversation's entry, make one, and report it.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{
    Alu, Assembler, CURRENT_CPU, Code, Condition, Helper, Label, Operand, Reader, Reads, Register, Width,
};
use socktrail_kprobes::{Error, Expression};

use super::entry::{ENDS, ENDS_SIZE, KIND, NO_ROOM, SIZE, Side, offset};
use super::fields::{Ends, Fields, Piece};

/// The maps, by their numbers in a program.
pub(super) mod map {
    /// Conversations by `struct sock`.
    pub(in super::super) const CONVERSATIONS: u32 = 0;
    /// The `struct sock` of a TCP connection by its ends.
    pub(in super::super) const ENDS: u32 = 1;
    /// The rings.
    pub(in super::super) const OUTPUTS: u32 = 2;
}

/// The entry, while a program runs. The other registers that calls keep are `R6`, the context, `R8` and `R9`.
pub(super) const ENTRY: Register = R7;
/// The time of the hit, once [`Writer::now`] has read it.
pub(super) const NOW: Register = R8;

/// Offsets on the stack: eight bytes for the reader, the key, an entry.
const SCRATCH: i16 = -8;
const KEY: i16 = -16;
const RECORD: i16 = KEY - SIZE as i16;
/// The return value of `bpf_map_update_elem` if the map is full (`E2BIG`).
const FULL: i32 = -7;
/// `BPF_ANY` and `BPF_NOEXIST`
const ANY: i32 = 0;
const NEW: i32 = 1;

/// Writes a program.
pub(super) struct Writer {
    pub(super) asm: Assembler,
    pub(super) reader: Reader,
    reads: Reads,
    /// Lets the hit become a sample.
    pub(super) sample: Label,
}

impl Writer {
    /// Begins a program that reads these fields, each in its phase.
    ///
    /// # Errors
    /// They do not fit the stack, or this architecture has no programs.
    pub(super) fn new(fields: &Fields<'_>, reads: &[(u8, &Expression)]) -> Result<Self, Error> {
        let mut asm = Assembler::new();
        let sample = asm.label();
        let reader = Reader::new(&mut asm, SCRATCH, sample)?;
        let reads = Reads::plan(fields.program, reads, RECORD)?;
        Ok(Self { asm, reader, reads, sample })
    }

    /// Reads the fields of a phase. If that fails, the hit becomes a sample.
    pub(super) fn read(&mut self, phase: u8) -> Result<(), Error> {
        self.reads.read(&mut self.asm, &self.reader, phase)
    }

    /// Loads a field that has been read.
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

    /// Makes the value of `sock` the key. A packet without a socket becomes a sample.
    pub(super) fn key(&mut self, sock: &Expression) -> Result<(), Error> {
        self.load(sock, R1)?;
        self.sample_if(Condition::Equal, R1, 0);
        self.store_key(R1);
        Ok(())
    }

    /// Makes the number in a register the key.
    pub(super) fn store_key(&mut self, register: Register) {
        self.asm.store(Width::Double, Frame, KEY, register);
    }

    /// `R0` becomes the entry of the key, or 0.
    pub(super) fn look_up(&mut self) {
        self.on_map(map::CONVERSATIONS, KEY, Helper::MapLookup);
    }

    fn on_map(&mut self, map: u32, key: i16, helper: Helper) {
        self.asm.load_map(R1, map);
        self.asm.stack_address(R2, key);
        self.asm.call(helper);
    }

    /// Continues at a label if the entry has other ends. Overwrites `R0` to `R2`.
    pub(super) fn compare(&mut self, ends: &Ends, others: Label) -> Result<(), Error> {
        for Piece { field, at, width } in &ends.pieces {
            self.load(field, R1)?;
            self.load_of_entry(*width, R2, *at);
            self.asm.jump_if(Condition::NotEqual, R1, R2, others);
        }
        self.load_of_entry(Width::Word, R1, offset!(protocol));
        self.asm.jump_if(Condition::NotEqual, R1, ends.kind, others);
        Ok(())
    }

    /// Reads the time.
    pub(super) fn now(&mut self) {
        self.asm.call(Helper::MonotonicTime);
        self.asm.mov(NOW, R0);
    }

    /// Continues at a label if the conversation's last packet was this many nanoseconds ago or more.
    pub(super) fn pause(&mut self, nanos: u64, paused: Label) {
        self.asm.mov(R1, NOW);
        self.load_of_entry(Width::Double, R2, offset!(last));
        self.asm.alu(Alu::Sub, R1, R2);
        self.asm.load64(R2, nanos);
        // Signed: another CPU may have noted a later time.
        self.asm.jump_if(Condition::GreaterOrEqualSigned, R1, R2, paused);
    }

    /// Begins anew after a pause: the first packet of each direction is sampled again.
    pub(super) fn forget_seen(&mut self) {
        self.store_in_entry(Width::Byte, offset!(seen_out), 0);
        self.store_in_entry(Width::Byte, offset!(seen_in), 0);
    }

    /// Counts one packet of the size in `bytes`. Overwrites `R1`.
    pub(super) fn count_one(&mut self, side: Side, bytes: Register) {
        self.asm.atomic_add(ENTRY, side.bytes, bytes);
        self.asm.mov(R1, 1);
        self.asm.atomic_add(ENTRY, side.packets, R1);
    }

    /// Notes the time of the packet.
    pub(super) fn note_time(&mut self) {
        self.store_in_entry(Width::Double, offset!(last), NOW);
    }

    /// Notes the time of a sampled packet, and that there was one of this direction.
    pub(super) fn note_sampled(&mut self, side: Side) {
        self.note_time();
        self.store_in_entry(Width::Byte, side.seen, 1);
    }

    /// Writes the entry into the ring, if it has counted anything. Overwrites `R0` to `R5`.
    pub(super) fn report(&mut self) {
        let nothing = self.asm.label();
        self.load_of_entry(Width::Double, R1, offset!(sent_packets));
        self.load_of_entry(Width::Double, R2, offset!(received_packets));
        self.asm.alu(Alu::Or, R1, R2);
        self.asm.jump_if(Condition::Equal, R1, 0, nothing);
        for at in (0..SIZE as i16).step_by(8) {
            self.load_of_entry(Width::Double, R1, at);
            self.asm.store(Width::Double, Frame, RECORD + at, R1);
        }
        self.asm.mov(R1, R6);
        self.asm.load_map(R2, map::OUTPUTS);
        self.asm.load64(R3, CURRENT_CPU);
        self.asm.stack_address(R4, RECORD);
        self.asm.mov(R5, i32::from(SIZE));
        self.asm.call(Helper::Output);
        self.asm.bind(nothing);
    }

    /// Begins an entry on the stack: its key, its ends, and the time, which it reads. All else is 0.
    pub(super) fn begin_entry(&mut self, ends: &Ends, side: Side) -> Result<(), Error> {
        self.now();
        self.clear(0, SIZE as i16);
        self.store_in_record(Width::Half, offset!(kind), i32::from(KIND));
        self.asm.load(Width::Double, R1, Frame, KEY);
        self.store_in_record(Width::Double, offset!(sock), R1);
        self.store_in_record(Width::Double, offset!(since), NOW);
        self.store_in_record(Width::Double, offset!(last), NOW);
        self.store_in_record(Width::Byte, side.seen, 1);
        self.put_ends(ends)
    }

    fn clear(&mut self, from: i16, size: i16) {
        for at in (from..from + size).step_by(8) {
            self.store_in_record(Width::Double, at, 0);
        }
    }

    fn put_ends(&mut self, ends: &Ends) -> Result<(), Error> {
        for Piece { field, at, width } in &ends.pieces {
            self.load(field, R1)?;
            self.store_in_record(*width, *at, R1);
        }
        self.store_in_record(Width::Word, offset!(protocol), ends.kind);
        Ok(())
    }

    /// Stores into a field of the entry on the stack.
    pub(super) fn store_in_record(&mut self, width: Width, at: i16, operand: impl Into<Operand>) {
        self.asm.store(width, Frame, RECORD + at, operand);
    }

    /// Adds the entry on the stack. If there is no room, or if another CPU was first, the hit becomes a sample.
    pub(super) fn add_entry(&mut self) {
        let added = self.asm.label();
        self.update(map::CONVERSATIONS, KEY, RECORD, NEW);
        self.asm.jump_if(Condition::Equal, R0, 0, added);
        self.asm.alu(Alu::Sub, R0, FULL);
        self.sample_if(Condition::NotEqual, R0, 0);
        // It is in the map from the beginning.
        self.asm.store(Width::Double, Frame, KEY, NO_ROOM as i32);
        self.look_up();
        self.sample_if(Condition::Equal, R0, 0);
        self.asm.mov(R1, 1);
        self.asm.atomic_add(R0, offset!(sent_packets), R1);
        self.asm.jump(self.sample);
        self.asm.bind(added);
    }

    /// Makes the connection of the entry on the stack known by its ends.
    pub(super) fn add_ends(&mut self) {
        self.update(map::ENDS, RECORD + ENDS, KEY, ANY);
    }

    fn update(&mut self, map: u32, key: i16, value: i16, flags: i32) {
        self.asm.load_map(R1, map);
        self.asm.stack_address(R2, key);
        self.asm.stack_address(R3, value);
        self.asm.mov(R4, flags);
        self.asm.call(Helper::MapUpdate);
    }

    /// Makes the socket with these ends in a namespace the key. If there is none, the hit becomes a sample.
    pub(super) fn key_of_ends(&mut self, net: &Expression, ends: &Ends) -> Result<(), Error> {
        self.clear(ENDS, ENDS_SIZE as i16);
        self.load(net, R1)?;
        self.store_in_record(Width::Double, offset!(net), R1);
        self.put_ends(ends)?;
        self.on_map(map::ENDS, RECORD + ENDS, Helper::MapLookup);
        self.sample_if(Condition::Equal, R0, 0);
        self.asm.load(Width::Double, R1, R0, 0);
        self.store_key(R1);
        Ok(())
    }

    /// Reports the entry and removes it, with what leads to it.
    pub(super) fn remove(&mut self) {
        let gone = self.asm.label();
        self.report();
        self.load_of_entry(Width::Half, R1, offset!(protocol));
        self.asm.jump_if(Condition::NotEqual, R1, 6, gone);
        for at in (ENDS..ENDS + ENDS_SIZE as i16).step_by(8) {
            self.load_of_entry(Width::Double, R1, at);
            self.store_in_record(Width::Double, at, R1);
        }
        self.on_map(map::ENDS, RECORD + ENDS, Helper::MapLookup);
        self.asm.jump_if(Condition::Equal, R0, 0, gone);
        // A later connection may have the same ends.
        self.asm.load(Width::Double, R1, R0, 0);
        self.asm.load(Width::Double, R2, Frame, KEY);
        self.asm.jump_if(Condition::NotEqual, R1, R2, gone);
        self.on_map(map::ENDS, RECORD + ENDS, Helper::MapDelete);
        self.asm.bind(gone);
        self.on_map(map::CONVERSATIONS, KEY, Helper::MapDelete);
    }

    /// Ends the program: the hit was counted, or is not wanted.
    pub(super) fn silent(&mut self) {
        self.asm.mov(R0, 0);
        self.asm.exit();
    }

    /// Ends the program with the sample of a hit, and checks it.
    pub(super) fn finish(mut self, program: &str) -> Result<Code, Error> {
        self.asm.bind(self.sample);
        self.asm.mov(R0, 1);
        self.asm.exit();
        self.asm.finish(program)
    }
}

// A program keeps entry and windows on the stack.
const _: () = assert!(SIZE.is_multiple_of(8) && ENDS_SIZE.is_multiple_of(8));
