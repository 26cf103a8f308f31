//! The hash table of conversations: how programs and user space find an entry.
//!
//! User space can look into the kernel's own hash maps only by a system call. While a CPU executes this call, the kernel runs no
//! program on that CPU, so packets that arrive in an interrupt would not be counted. So the table consists of arrays, whose
//! memory user space reads without a system call.
//!
//! The hash of a key selects a bucket of an array. A bucket has eight words: seven slots and a lock. In the array of sockets, the
//! key is the address of a `struct sock`. A used slot contains the key, and the number of the slot is also that of the entry in
//! the array of entries. In the array of ends, the key is a connection's ends. A used slot contains half of their hash, and the
//! number of the entry ([`Writer::load_reference`]). An empty slot is 0 in both arrays.
//!
//! A socket's first conversation has the key of the socket. A UDP socket may have conversations with more peers: each of them has
//! one of [`WAYS`] further keys, its *way*, chosen by the hash of its ends. Two of them may want the same way. Then the one
//! that was first keeps it, until it has had no packets for [`EVICT_AFTER`]. The first entry records which ways are in use, so
//! that the entries of all of them are removed when the socket ends.
//!
//! A slot is filled while its bucket is locked; clearing it needs no lock. Programs do not wait for a lock: if a bucket is
//! locked, no entry is made, and the hit becomes a sample. Before Linux 5.12, programs have no instruction that exchanges values,
//! so the lock is a counter: a program that adds 1 and then reads 1 has locked the bucket.

use socktrail_kprobes::bpf::Register::*;
use socktrail_kprobes::bpf::{Alu, Condition, Helper, Label, Operand, Register, Width};

use super::entry::{SIZE, offset};
use super::writer::{NOW, Writer};

/// The number of words in a bucket: its slots and its lock.
pub(super) const BUCKET_WORDS: usize = 8;
/// The number of slots in a bucket.
pub(super) const SLOTS: usize = BUCKET_WORDS - 1;
/// The size of a bucket in bytes.
pub(super) const BUCKET_SIZE: u32 = 8 * BUCKET_WORDS as u32;
/// The offset of the lock in a bucket.
const LOCK: i16 = 8 * SLOTS as i16;
/// The number of conversations for each bucket if the table has as many as it is made for. If they come and go at random, about
/// one of sixteen buckets is then full (Erlang's B formula for 7 slots and 4 conversations).
const CONVERSATIONS_PER_BUCKET: u32 = 4;
/// 2⁶⁴ divided by the golden ratio: multiplication spreads neighbouring addresses over all buckets (Fibonacci hashing).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// The number of conversations that a UDP socket can have besides its first: way `w` has the key `sock + 1 + w`, which is no other
/// socket's address, because a `struct sock` is larger.
pub(super) const WAYS: u8 = 64;
/// A conversation that was idle for this many nanoseconds gives up its way to another conversation that needs it.
const EVICT_AFTER: i32 = 1_000_000_000;
/// A removed entry is used again only after this many nanoseconds, because a program on another CPU may still be counting in it. At a
/// kprobe, nothing interrupts a program for long; at a hook, its task may have lost the CPU.
const REUSE_AFTER: i32 = 1_000_000;
const REUSE_AFTER_AT_HOOK: i32 = 1_000_000_000;

/// The size of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// The binary logarithm of the number of buckets.
    bits: u8,
}

impl Table {
    /// A table for this number of conversations.
    pub(super) fn of(conversations: u32) -> Self {
        let buckets = conversations.div_ceil(CONVERSATIONS_PER_BUCKET).clamp(2, 1 << 24).next_power_of_two();
        Self { bits: buckets.trailing_zeros() as u8 }
    }

    /// The number of buckets in each of the two arrays of buckets.
    pub(super) const fn buckets(self) -> u32 {
        1 << self.bits
    }

    /// The number of entries: one for each slot, and the [refused entry](Table::refused_entry).
    pub(super) const fn entries(self) -> u32 {
        self.refused_entry() + 1
    }

    /// The number of the last entry, which belongs to no socket: its `sent_packets` are the packets whose conversations found no
    /// free slot or no free way.
    pub(super) const fn refused_entry(self) -> u32 {
        self.buckets() * SLOTS as u32
    }

    /// The number of a key's bucket in the array of sockets.
    pub(super) const fn bucket(self, key: u64) -> u32 {
        (key.wrapping_mul(MULTIPLIER) >> self.shift()) as u32
    }

    /// The number of the entry of a slot.
    pub(super) const fn entry(bucket: u32, slot: u32) -> u32 {
        bucket * SLOTS as u32 + slot
    }

    const fn shift(self) -> i32 {
        64 - self.bits as i32
    }
}

/// The numbers of the maps in a program.
pub(super) mod map {
    /// The buckets of sockets.
    pub(in super::super) const SOCKETS: u32 = 0;
    /// The entries.
    pub(in super::super) const ENTRIES: u32 = 1;
    /// The buckets of ends.
    pub(in super::super) const ENDS: u32 = 2;
    /// The outputs, which lead to the rings.
    pub(in super::super) const OUTPUTS: u32 = 3;
}

/// The address of the entry. The other registers that helpers keep are `R6` (the context), `R8` ([`NOW`]) and `R9`.
pub(super) const ENTRY: Register = R7;
/// The address of the bucket that this program has locked.
const LOCKED_BUCKET: Register = R9;

// Offsets on the stack.

/// The address of the `struct sock`.
pub(super) const KEY: i16 = -16;
/// The number of a bucket, then that of an entry.
const NUMBER: i16 = -24;
/// The slot that a new entry gets.
const SLOT: i16 = -32;
/// The hash of the ends.
pub(super) const HASH: i16 = -40;
/// The number of a way.
const WAY: i16 = -48;
/// The address of the socket's first entry; in [`Writer::remove_ways`], the key of this entry.
const FIRST: i16 = -56;
/// The lowest of these.
pub(super) const LOWEST: i16 = FIRST;

impl Writer {
    /// Sets `ENTRY` to the entry of the key, or continues at `missing`. Overwrites `R0` to `R5`.
    pub(super) fn look_up(&mut self, missing: Label) {
        let found = self.asm.label();
        self.bucket_of_key();
        self.find(KEY, found);
        self.asm.jump(missing);
        self.asm.bind(found);
        self.entry_of_slot();
        self.asm.mov(ENTRY, R0);
    }

    /// Sets `ENTRY` to an entry with this hash of its ends, or continues at `missing`. Other ends may have the same hash, so the
    /// caller has to compare them. Overwrites `R0` to `R5`.
    pub(super) fn look_up_ends(&mut self, missing: Label) {
        let found = self.asm.label();
        self.bucket_of_hash();
        self.asm.load(Width::Word, R2, Frame, HASH);
        for slot in 0..SLOTS {
            self.asm.load(Width::Double, R1, R0, at(slot));
            self.asm.mov(R3, R1);
            self.asm.alu(Alu::ShiftRight, R3, 32);
            self.asm.jump_if(Condition::Equal, R3, R2, found);
        }
        self.asm.jump(missing);
        self.asm.bind(found);
        // An empty slot is found as well, if that half of the hash is 0.
        self.asm.alu32(Alu::Mov, R1, R1);
        self.asm.jump_if(Condition::Equal, R1, 0, missing);
        self.asm.alu(Alu::Sub, R1, 1);
        self.asm.store(Width::Word, Frame, NUMBER, R1);
        self.element_of(map::ENTRIES);
        self.asm.mov(ENTRY, R0);
    }

    /// Makes an entry for the key, which has none: locks the bucket and sets `ENTRY` to the entry of a free slot. All fields of
    /// this entry are 0 except its number. The hit becomes a sample instead if no slot is free, if the free slot's entry was
    /// removed less than [`REUSE_AFTER`] ago, if the bucket is locked, or if another CPU has made the entry by now. The time
    /// must have been read. [`Writer::publish`] fills the slot and unlocks the bucket.
    pub(super) fn claim(&mut self) {
        let (locked, free, busy, reusable) = (self.asm.label(), self.asm.label(), self.asm.label(), self.asm.label());
        self.bucket_of_key();
        self.asm.mov(LOCKED_BUCKET, R0);
        self.lock(LOCKED_BUCKET, locked);
        self.asm.jump(busy);
        self.asm.bind(locked);
        self.barrier(LOCKED_BUCKET);
        self.find(KEY, busy);
        self.find_free(LOCKED_BUCKET, free);
        self.unlock(LOCKED_BUCKET);
        self.count_refused();
        self.asm.jump(self.sample);
        self.asm.bind(free);
        self.asm.store(Width::Double, Frame, SLOT, R3);
        self.entry_of_slot();
        self.asm.mov(ENTRY, R0);
        self.load_of_entry(Width::Double, R2, offset!(removed));
        self.asm.jump_if(Condition::Equal, R2, 0, reusable);
        self.asm.mov(R1, NOW);
        self.asm.alu(Alu::Sub, R1, R2);
        let reuse_after = if self.is_at_hook() { REUSE_AFTER_AT_HOOK } else { REUSE_AFTER };
        self.asm.jump_if(Condition::GreaterOrEqualSigned, R1, reuse_after, reusable);
        self.asm.bind(busy);
        self.unlock(LOCKED_BUCKET);
        self.asm.jump(self.sample);
        self.asm.bind(reusable);
        for at in (0..SIZE as i16).step_by(8) {
            self.store_in_entry(Width::Double, at, 0);
        }
        self.asm.load(Width::Word, R1, Frame, NUMBER);
        self.store_in_entry(Width::Word, offset!(number), R1);
    }

    /// Fills the slot with the key, so that the entry is found, and unlocks the bucket.
    pub(super) fn publish(&mut self) {
        self.barrier(LOCKED_BUCKET);
        self.asm.load(Width::Double, R1, Frame, SLOT);
        // The verifier wants to see a bound.
        self.asm.alu(Alu::And, R1, 7);
        self.asm.alu(Alu::ShiftLeft, R1, 3);
        self.asm.mov(R2, LOCKED_BUCKET);
        self.asm.alu(Alu::Add, R2, R1);
        self.asm.load(Width::Double, R1, Frame, KEY);
        self.asm.store(Width::Double, R2, 0, R1);
        self.unlock(LOCKED_BUCKET);
    }

    /// Lets the entry be found by the hash of its ends, in place of an earlier entry with the same hash. If no slot is free or
    /// the bucket is locked, packets that are looked up by their ends become samples. Overwrites `R0` to `R5` and `R9`.
    pub(super) fn publish_ends(&mut self) {
        let (locked, found, done) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.load(Width::Double, R1, Frame, HASH);
        self.store_in_entry(Width::Double, offset!(ends_hash), R1);
        self.bucket_of_hash();
        self.asm.mov(LOCKED_BUCKET, R0);
        self.lock(LOCKED_BUCKET, locked);
        self.asm.jump(done);
        self.asm.bind(locked);
        self.barrier(LOCKED_BUCKET);
        self.load_reference();
        for slot in 0..SLOTS {
            self.asm.load(Width::Double, R1, LOCKED_BUCKET, at(slot));
            self.asm.alu(Alu::ShiftRight, R1, 32);
            self.asm.mov(R3, slot as i32);
            self.asm.jump_if(Condition::Equal, R1, R4, found);
        }
        self.find_free(LOCKED_BUCKET, found);
        self.asm.jump(done);
        self.asm.bind(found);
        self.asm.alu(Alu::ShiftLeft, R3, 3);
        self.asm.mov(R1, LOCKED_BUCKET);
        self.asm.alu(Alu::Add, R1, R3);
        self.asm.store(Width::Double, R1, 0, R2);
        self.asm.bind(done);
        self.unlock(LOCKED_BUCKET);
    }

    /// Sets `ENTRY` to the entry of the way that the hash of the ends selects, and the key to its key, or continues at `missing`.
    /// Before, `ENTRY` is the socket's first entry. The way's entry may have other ends. Overwrites `R0` to `R5`.
    pub(super) fn look_up_way(&mut self, missing: Label) {
        self.asm.store(Width::Double, Frame, FIRST, ENTRY);
        self.asm.load(Width::Double, R1, Frame, HASH);
        self.asm.alu(Alu::ShiftRight, R1, i32::from(u64::BITS as u8 - WAYS.ilog2() as u8));
        self.asm.store(Width::Double, Frame, WAY, R1);
        self.asm.load(Width::Double, R2, Frame, KEY);
        self.asm.alu(Alu::Add, R2, R1);
        self.asm.alu(Alu::Add, R2, 1);
        self.set_key(R2);
        self.look_up(missing);
    }

    /// Notes that a way is in use, whose entry was [claimed](Writer::claim) and is not published yet. Overwrites `R1` to `R4`.
    pub(super) fn note_way(&mut self) {
        let noted = self.asm.label();
        self.asm.load(Width::Double, R4, Frame, FIRST);
        self.asm.load(Width::Double, R1, Frame, WAY);
        self.asm.load(Width::Double, R2, R4, offset!(ways));
        self.asm.mov(R3, 1);
        self.asm.alu(Alu::ShiftLeft, R3, R1);
        self.asm.jump_if(Condition::AnyBit, R2, R3, noted);
        // Not a store: programs on other CPUs may note other ways.
        self.asm.atomic_add(R4, offset!(ways), R3);
        self.asm.bind(noted);
    }

    /// Removes `ENTRY`, which belongs to other ends than the packet's, if it was idle for [`EVICT_AFTER`]. In any case the hit
    /// becomes a sample.
    pub(super) fn evict(&mut self) {
        let idle = self.asm.label();
        self.read_time();
        self.asm.mov(R1, NOW);
        self.load_of_entry(Width::Double, R2, offset!(last));
        self.asm.alu(Alu::Sub, R1, R2);
        self.asm.jump_if(Condition::GreaterOrEqualSigned, R1, EVICT_AFTER, idle);
        self.count_refused();
        self.asm.jump(self.sample);
        self.asm.bind(idle);
        self.report();
        self.unpublish();
        self.asm.jump(self.sample);
    }

    /// Reports and removes the entries of all ways of a UDP socket. The key and `ENTRY` are those of its first entry, which is
    /// still in the table. The time must have been read. Overwrites `R0` to `R5`, `R9` and `ENTRY`.
    pub(super) fn remove_ways(&mut self) {
        let (none, again, used, next) = (self.asm.label(), self.asm.label(), self.asm.label(), self.asm.label());
        // The ways that are left; the next one has the lowest bit.
        let ways = R9;
        self.load_of_entry(Width::Double, ways, offset!(ways));
        self.asm.jump_if(Condition::Equal, ways, 0, none);
        self.asm.load(Width::Double, R1, Frame, KEY);
        self.asm.store(Width::Double, Frame, FIRST, R1);
        self.asm.bind(again);
        self.asm.load(Width::Double, R1, Frame, KEY);
        self.asm.alu(Alu::Add, R1, 1);
        self.set_key(R1);
        self.asm.jump_if(Condition::AnyBit, ways, 1, used);
        self.asm.jump(next);
        self.asm.bind(used);
        self.look_up(next);
        self.report();
        self.unpublish();
        self.asm.bind(next);
        self.asm.alu(Alu::ShiftRight, ways, 1);
        self.asm.repeat_if(Condition::NotEqual, ways, 0, again);
        self.asm.load(Width::Double, R1, Frame, FIRST);
        self.set_key(R1);
        self.asm.bind(none);
    }

    /// Clears the slot that leads from the ends to the entry, if there still is one. Overwrites `R0` to `R5`.
    pub(super) fn unpublish_ends(&mut self) {
        let gone = self.asm.label();
        self.load_of_entry(Width::Double, R1, offset!(ends_hash));
        self.asm.jump_if(Condition::Equal, R1, 0, gone);
        self.asm.store(Width::Double, Frame, HASH, R1);
        self.bucket_of_hash();
        self.load_reference();
        self.clear_word(R2);
        self.asm.bind(gone);
    }

    /// Clears the slot with the key, and notes in the entry when this was. The time must have been read. Overwrites `R0` to `R5`.
    pub(super) fn unpublish(&mut self) {
        self.store_in_entry(Width::Double, offset!(removed), NOW);
        self.bucket_of_key();
        self.asm.load(Width::Double, R2, Frame, KEY);
        self.clear_word(R2);
    }

    /// Loads the address of the key's bucket into `R0`.
    fn bucket_of_key(&mut self) {
        self.asm.load(Width::Double, R1, Frame, KEY);
        self.asm.load64(R2, MULTIPLIER);
        self.asm.alu(Alu::Mul, R1, R2);
        self.bucket_of(R1, map::SOCKETS);
    }

    /// Loads the address of the hash's bucket into `R0`.
    fn bucket_of_hash(&mut self) {
        self.asm.load(Width::Double, R1, Frame, HASH);
        self.bucket_of(R1, map::ENDS);
    }

    /// Loads the address of a bucket into `R0`: the upper bits of the register are its number.
    fn bucket_of(&mut self, hash: Register, array: u32) {
        self.asm.alu(Alu::ShiftRight, hash, self.table.shift());
        self.asm.store(Width::Word, Frame, NUMBER, hash);
        self.element_of(array);
    }

    /// Loads the address of an array's element into `R0`. Its number is on the stack.
    fn element_of(&mut self, array: u32) {
        self.asm.load_map(R1, array);
        self.asm.stack_address(R2, NUMBER);
        self.asm.call(Helper::MapLookup);
        // The element exists, but the verifier requires a check.
        self.sample_if(Condition::Equal, R0, 0);
    }

    /// Continues at `found` if the bucket in `R0` contains the word that is on the stack at `word`; `R3` is then its slot.
    /// Overwrites `R1` to `R3`.
    fn find(&mut self, word: i16, found: Label) {
        self.asm.load(Width::Double, R2, Frame, word);
        self.find_in(R0, R2, found);
    }

    /// Continues at `found` if a slot of the bucket is free; `R3` is then this slot. Overwrites `R1` and `R3`.
    fn find_free(&mut self, bucket: Register, found: Label) {
        self.find_in(bucket, 0, found);
    }

    fn find_in(&mut self, bucket: Register, word: impl Into<Operand>, found: Label) {
        let word = word.into();
        for slot in 0..SLOTS {
            self.asm.mov(R3, slot as i32);
            self.asm.load(Width::Double, R1, bucket, at(slot));
            self.asm.jump_if(Condition::Equal, R1, word, found);
        }
    }

    /// Loads the address of an entry into `R0`: its bucket's number is on the stack, its slot is `R3`.
    fn entry_of_slot(&mut self) {
        self.asm.load(Width::Word, R1, Frame, NUMBER);
        self.asm.alu(Alu::Mul, R1, SLOTS as i32);
        self.asm.alu(Alu::Add, R1, R3);
        self.asm.store(Width::Word, Frame, NUMBER, R1);
        self.element_of(map::ENTRIES);
    }

    /// Loads the word that leads from the ends to the entry into `R2`. Its upper half is the lower half of the hash; its lower
    /// half is the entry's number plus 1, so it is never 0. Loads the lower half of the hash into `R4`.
    fn load_reference(&mut self) {
        self.asm.load(Width::Word, R4, Frame, HASH);
        self.asm.mov(R2, R4);
        self.asm.alu(Alu::ShiftLeft, R2, 32);
        self.load_of_entry(Width::Word, R1, offset!(number));
        self.asm.alu(Alu::Add, R1, 1);
        self.asm.alu(Alu::Or, R2, R1);
    }

    /// Clears the slot of the bucket in `R0` that contains the word in a register.
    fn clear_word(&mut self, word: Register) {
        for slot in 0..SLOTS {
            let next = self.asm.label();
            self.asm.load(Width::Double, R1, R0, at(slot));
            self.asm.jump_if(Condition::NotEqual, R1, word, next);
            self.asm.store(Width::Double, R0, at(slot), 0);
            self.asm.bind(next);
        }
    }

    /// Locks a bucket and continues at `locked`, unless another CPU has locked it. In both cases, the program must unlock it:
    /// that only subtracts 1.
    fn lock(&mut self, bucket: Register, locked: Label) {
        self.asm.mov(R1, 1);
        self.asm.atomic_add(bucket, LOCK, R1);
        self.asm.load(Width::Double, R1, bucket, LOCK);
        self.asm.jump_if(Condition::Equal, R1, 1, locked);
    }

    fn unlock(&mut self, bucket: Register) {
        self.barrier(bucket);
        self.asm.mov(R1, -1);
        self.asm.atomic_add(bucket, LOCK, R1);
    }

    /// Makes other CPUs see the stores before this point before they see those after it. On x86_64 they always do. Overwrites
    /// `R1`.
    fn barrier(&mut self, bucket: Register) {
        if cfg!(target_arch = "aarch64") {
            self.asm.mov(R1, 0);
            self.asm.atomic_fetch_add(bucket, LOCK, R1);
        }
    }

    /// Counts a packet in the [refused entry](Table::refused_entry).
    fn count_refused(&mut self) {
        self.asm.store(Width::Word, Frame, NUMBER, self.table.refused_entry() as i32);
        self.element_of(map::ENTRIES);
        self.asm.mov(R1, 1);
        self.asm.atomic_add(R0, offset!(sent_packets), R1);
    }
}

/// The offset of a slot in its bucket.
const fn at(slot: usize) -> i16 {
    8 * slot as i16
}
