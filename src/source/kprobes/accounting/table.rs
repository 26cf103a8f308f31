//! The table of conversations: how programs and user space find an entry.
//!
//! The kernel's own hash maps would do, but user space can look into them only by a system call, and while a CPU executes that,
//! the kernel runs no program on it: packets that an interrupt brings meanwhile would not be counted. So the table is made of
//! arrays, whose memory user space reads without a system call.
//!
//! A key leads to one bucket of an array. A bucket has seven words, and a lock in its eighth. In the array of sockets, a word
//! is the address of a `struct sock`, and its place is also the number of the entry. In the array of ends, a word is a
//! [`reference`] to the entry of a connection with these ends.
//!
//! A word is written while its bucket is locked. Nobody waits for a lock: a program that finds it taken makes no entry, and
//! its hit becomes a sample. Before Linux 5.12, programs have no instruction that exchanges values, so the lock is a counter:
//! who adds 1 and then finds 1 there has locked it. Lock and words share a cache line, so other processors see them change in
//! order.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Condition, Helper, Label, Operand, Register, Width};

use super::entry::{SIZE, offset};
use super::writer::{NOW, Writer};

/// The number of words of a bucket with the lock.
pub(super) const BUCKET: usize = 8;
/// The number of places of a bucket.
pub(super) const WAYS: usize = BUCKET - 1;
/// The size of a bucket in bytes.
pub(super) const BUCKET_SIZE: u32 = 8 * BUCKET as u32;
/// The offset of the lock in a bucket.
const LOCK: i16 = 8 * WAYS as i16;
/// How many conversations there are for each bucket if the table is as full as it should be: with four of seven places in use
/// on average, one of twenty buckets is full.
const LOAD: u32 = 4;
/// 2⁶⁴ divided by the golden ratio: multiplication spreads keys that follow each other over all buckets.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// An entry is used again after this many nanoseconds, so that no program on another CPU still counts in it.
const REST: i32 = 1_000_000;

/// The size of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// The binary logarithm of the number of buckets.
    bits: u8,
}

impl Table {
    /// A table for this number of conversations.
    pub(super) fn of(conversations: u32) -> Self {
        let buckets = conversations.div_ceil(LOAD).clamp(2, 1 << 24).next_power_of_two();
        Self { bits: buckets.trailing_zeros() as u8 }
    }

    pub(super) const fn buckets(self) -> u32 {
        1 << self.bits
    }

    /// The number of entries. The last one counts the conversations that found no room.
    pub(super) const fn entries(self) -> u32 {
        self.without_room() + 1
    }

    /// The number of the entry whose `sent_packets` are the packets of conversations that found no room.
    pub(super) const fn without_room(self) -> u32 {
        self.buckets() * WAYS as u32
    }

    /// The bucket of a socket.
    pub(super) const fn bucket(self, sock: u64) -> u32 {
        (sock.wrapping_mul(MULTIPLIER) >> self.shift()) as u32
    }

    /// The entry at a place of a bucket.
    pub(super) const fn entry(bucket: u32, way: u32) -> u32 {
        bucket * WAYS as u32 + way
    }

    const fn shift(self) -> i32 {
        64 - self.bits as i32
    }
}

/// The maps, by their numbers in a program.
pub(super) mod map {
    /// The buckets of sockets.
    pub(in super::super) const SOCKETS: u32 = 0;
    /// The entries.
    pub(in super::super) const ENTRIES: u32 = 1;
    /// The buckets of ends.
    pub(in super::super) const ENDS: u32 = 2;
    /// The rings.
    pub(in super::super) const OUTPUTS: u32 = 3;
}

/// The entry, while a program runs. The other registers that calls keep are `R6`, the context, `R8` and `R9`.
pub(super) const ENTRY: Register = R7;
/// The bucket, while an entry is made.
const LOCKED: Register = R9;

/// Offsets on the stack: the key, the number of a bucket or entry, a place in a bucket, a hash.
pub(super) const KEY: i16 = -16;
const NUMBER: i16 = -24;
const WAY: i16 = -32;
pub(super) const HASH: i16 = -40;

impl Writer {
    /// Finds the entry of the key, or continues at `missing`. Overwrites `R0` to `R5`.
    pub(super) fn look_up(&mut self, missing: Label) {
        let found = self.asm.label();
        self.bucket_of_key();
        self.find(KEY, found);
        self.asm.jump(missing);
        self.asm.bind(found);
        self.entry_of_way();
        self.asm.mov(ENTRY, R0);
    }

    /// Finds an entry by the hash of its ends, or continues at `missing`. The entry may have other ends. Overwrites `R0` to
    /// `R5`.
    pub(super) fn look_up_ends(&mut self, missing: Label) {
        let found = self.asm.label();
        self.bucket_of_hash();
        self.asm.load(Width::Word, R2, Frame, HASH);
        for way in 0..WAYS {
            self.asm.load(Width::Double, R1, R0, at(way));
            self.asm.mov(R3, R1);
            self.asm.alu(Alu::ShiftRight, R3, 32);
            self.asm.jump_if(Condition::Equal, R3, R2, found);
        }
        self.asm.jump(missing);
        self.asm.bind(found);
        // The word itself may be 0, if the hash is.
        self.asm.alu32(Alu::Mov, R1, R1);
        self.asm.jump_if(Condition::Equal, R1, 0, missing);
        self.asm.alu(Alu::Sub, R1, 1);
        self.asm.store(Width::Word, Frame, NUMBER, R1);
        self.on_array(map::ENTRIES);
        self.asm.mov(ENTRY, R0);
    }

    /// Locks a place for the key, for which there is no entry. `ENTRY` becomes the new entry: all of it is 0, but
    /// its number. If there is no room, if the bucket is locked, or if another CPU was first, the hit becomes a
    /// sample. Continue with [`Writer::publish`]. The time must have been read.
    pub(super) fn claim(&mut self) {
        let (locked, free, busy, rested) = (self.asm.label(), self.asm.label(), self.asm.label(), self.asm.label());
        self.bucket_of_key();
        self.asm.mov(LOCKED, R0);
        self.lock(LOCKED, locked);
        self.asm.jump(busy);
        self.asm.bind(locked);
        self.find(KEY, busy);
        self.find_free(LOCKED, free);
        self.unlock(LOCKED);
        self.count_without_room();
        self.asm.jump(self.sample);
        self.asm.bind(free);
        self.asm.store(Width::Double, Frame, WAY, R3);
        self.entry_of_way();
        self.asm.mov(ENTRY, R0);
        self.load_of_entry(Width::Double, R2, offset!(removed));
        self.asm.jump_if(Condition::Equal, R2, 0, rested);
        self.asm.mov(R1, NOW);
        self.asm.alu(Alu::Sub, R1, R2);
        self.asm.jump_if(Condition::GreaterOrEqualSigned, R1, REST, rested);
        self.asm.bind(busy);
        self.unlock(LOCKED);
        self.asm.jump(self.sample);
        self.asm.bind(rested);
        for at in (0..SIZE as i16).step_by(8) {
            self.store_in_entry(Width::Double, at, 0);
        }
        self.asm.load(Width::Word, R1, Frame, NUMBER);
        self.store_in_entry(Width::Word, offset!(number), R1);
    }

    /// Makes the entry known by its key.
    pub(super) fn publish(&mut self) {
        self.asm.load(Width::Double, R1, Frame, WAY);
        self.asm.alu(Alu::And, R1, 7);
        self.asm.alu(Alu::ShiftLeft, R1, 3);
        self.asm.mov(R2, LOCKED);
        self.asm.alu(Alu::Add, R2, R1);
        self.asm.load(Width::Double, R1, Frame, KEY);
        self.asm.store(Width::Double, R2, 0, R1);
        self.unlock(LOCKED);
    }

    /// Makes the entry known by the hash of its ends, in place of any that has the same. Without room, packets that are looked
    /// up by their ends become samples. Overwrites `R0` to `R5` and `R9`.
    pub(super) fn publish_ends(&mut self) {
        let (locked, found, done) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.load(Width::Double, R1, Frame, HASH);
        self.store_in_entry(Width::Double, offset!(ends_hash), R1);
        self.bucket_of_hash();
        self.asm.mov(LOCKED, R0);
        self.lock(LOCKED, locked);
        self.asm.jump(done);
        self.asm.bind(locked);
        self.reference();
        for way in 0..WAYS {
            self.asm.load(Width::Double, R1, LOCKED, at(way));
            self.asm.alu(Alu::ShiftRight, R1, 32);
            self.asm.mov(R3, way as i32);
            self.asm.jump_if(Condition::Equal, R1, R4, found);
        }
        self.find_free(LOCKED, found);
        self.asm.jump(done);
        self.asm.bind(found);
        self.asm.alu(Alu::ShiftLeft, R3, 3);
        self.asm.mov(R1, LOCKED);
        self.asm.alu(Alu::Add, R1, R3);
        self.asm.store(Width::Double, R1, 0, R2);
        self.asm.bind(done);
        self.unlock(LOCKED);
    }

    /// Forgets the ends of the entry, if they still lead to it. Overwrites `R0` to `R5`.
    pub(super) fn unpublish_ends(&mut self) {
        let gone = self.asm.label();
        self.load_of_entry(Width::Double, R1, offset!(ends_hash));
        self.asm.jump_if(Condition::Equal, R1, 0, gone);
        self.asm.store(Width::Double, Frame, HASH, R1);
        self.bucket_of_hash();
        self.reference();
        self.clear_word(R2);
        self.asm.bind(gone);
    }

    /// Forgets the key of the entry. The time must have been read. Overwrites `R0` to `R5`.
    pub(super) fn unpublish(&mut self) {
        self.store_in_entry(Width::Double, offset!(removed), NOW);
        self.bucket_of_key();
        self.asm.load(Width::Double, R2, Frame, KEY);
        self.clear_word(R2);
    }

    /// `R0` becomes the bucket of the key.
    fn bucket_of_key(&mut self) {
        self.asm.load(Width::Double, R1, Frame, KEY);
        self.asm.load64(R2, MULTIPLIER);
        self.asm.alu(Alu::Mul, R1, R2);
        self.bucket_of(R1, map::SOCKETS);
    }

    /// `R0` becomes the bucket of the hash.
    fn bucket_of_hash(&mut self) {
        self.asm.load(Width::Double, R1, Frame, HASH);
        self.bucket_of(R1, map::ENDS);
    }

    /// `R0` becomes the bucket that the upper bits of a register say.
    fn bucket_of(&mut self, hash: Register, array: u32) {
        self.asm.alu(Alu::ShiftRight, hash, self.table.shift());
        self.asm.store(Width::Word, Frame, NUMBER, hash);
        self.on_array(array);
    }

    /// `R0` becomes the element whose number is on the stack.
    fn on_array(&mut self, array: u32) {
        self.asm.load_map(R1, array);
        self.asm.stack_address(R2, NUMBER);
        self.asm.call(Helper::MapLookup);
        // It is there, but the verifier wants to see that this is checked.
        self.sample_if(Condition::Equal, R0, 0);
    }

    /// Continues at `found` if the word on the stack at `word` is in the bucket in `R0`; then `R3` is its place. Overwrites
    /// `R1` and `R2`.
    fn find(&mut self, word: i16, found: Label) {
        self.asm.load(Width::Double, R2, Frame, word);
        self.find_in(R0, R2, found);
    }

    /// Continues at `found` if a place of the bucket is free; then `R3` is this place. Overwrites `R1`.
    fn find_free(&mut self, bucket: Register, found: Label) {
        self.find_in(bucket, 0, found);
    }

    fn find_in(&mut self, bucket: Register, word: impl Into<Operand>, found: Label) {
        let word = word.into();
        for way in 0..WAYS {
            self.asm.mov(R3, way as i32);
            self.asm.load(Width::Double, R1, bucket, at(way));
            self.asm.jump_if(Condition::Equal, R1, word, found);
        }
    }

    /// `R0` becomes the entry whose bucket is on the stack and whose place is `R3`.
    fn entry_of_way(&mut self) {
        self.asm.load(Width::Word, R1, Frame, NUMBER);
        self.asm.alu(Alu::Mul, R1, WAYS as i32);
        self.asm.alu(Alu::Add, R1, R3);
        self.asm.store(Width::Word, Frame, NUMBER, R1);
        self.on_array(map::ENTRIES);
    }

    /// `R2` becomes the word that leads from the ends to the entry: the lower half of the hash, and the entry's number plus 1.
    /// `R4` becomes the lower half of the hash.
    fn reference(&mut self) {
        self.asm.load(Width::Word, R4, Frame, HASH);
        self.asm.mov(R2, R4);
        self.asm.alu(Alu::ShiftLeft, R2, 32);
        self.load_of_entry(Width::Word, R1, offset!(number));
        self.asm.alu(Alu::Add, R1, 1);
        self.asm.alu(Alu::Or, R2, R1);
    }

    /// Sets the word in a register to 0 in the bucket in `R0`.
    fn clear_word(&mut self, word: Register) {
        for way in 0..WAYS {
            let next = self.asm.label();
            self.asm.load(Width::Double, R1, R0, at(way));
            self.asm.jump_if(Condition::NotEqual, R1, word, next);
            self.asm.store(Width::Double, R0, at(way), 0);
            self.asm.bind(next);
        }
    }

    /// Locks a bucket and continues at `locked`, unless another CPU has locked it.
    fn lock(&mut self, bucket: Register, locked: Label) {
        self.asm.mov(R1, 1);
        self.asm.atomic_add(bucket, LOCK, R1);
        self.asm.load(Width::Double, R1, bucket, LOCK);
        self.asm.jump_if(Condition::Equal, R1, 1, locked);
    }

    fn unlock(&mut self, bucket: Register) {
        self.asm.mov(R1, -1);
        self.asm.atomic_add(bucket, LOCK, R1);
    }

    fn count_without_room(&mut self) {
        self.asm.store(Width::Word, Frame, NUMBER, self.table.without_room() as i32);
        self.on_array(map::ENTRIES);
        self.asm.mov(R1, 1);
        self.asm.atomic_add(R0, offset!(sent_packets), R1);
    }
}

/// The offset of a word in its bucket.
const fn at(way: usize) -> i16 {
    8 * way as i16
}
