//! Reads the records of one ring.
//!
//! The format is that of `perf_event_open(2)`: records of 8-byte-aligned size, each with a header; they wrap at
//! the ring's end. Head and tail count bytes and never wrap.

use crate::Record;

/// `PERF_RECORD_LOST`
const LOST: u32 = 2;
/// `PERF_RECORD_SAMPLE`
const SAMPLE: u32 = 9;
/// The size of a record header in bytes: type (32 bits), misc (16), size (16).
const HEADER_SIZE: usize = 8;
/// A ring is crowded when more than this fraction (1/n) of it is in use. If it is not crowded, it has hardly ever lost a
/// record: one record, or all that arrive while the ring is being read, would have to be larger than the rest of the ring.
const CROWDED: u64 = 2;
/// The beginning of a record: all of a loss, and everything before the raw bytes of a sample.
type Start = [u8; HEADER_SIZE + 40];
/// An upper bound of a record's size, which has 16 bits.
pub(crate) const MAX_RECORD_SIZE: usize = 1 << 16;

/// The bytes of a ring and its two counters. [`crate::sys::mapping`] implements it for memory that is shared with the
/// kernel.
pub(crate) trait Memory {
    /// The size of the data area in bytes: a power of two.
    fn capacity(&self) -> usize;
    /// Reads how far the kernel has written (the head).
    fn refresh(&mut self) -> u64;
    /// The position up to which bytes have been released.
    fn tail(&self) -> u64;
    /// Releases everything before `tail` to the kernel.
    fn release(&mut self, tail: u64);
    /// `len` bytes at `from`, in two parts if they wrap. Empty unless all of them lie between the tail and the head as
    /// last read.
    fn unread(&self, from: u64, len: usize) -> (&[u8], &[u8]);
}

/// The place of `len` bytes at `from` in a ring: start and length of the first part, and the length of the part that
/// wraps to the beginning.
pub(crate) fn halves(capacity: usize, from: u64, len: usize) -> ((usize, usize), usize) {
    let start = from as usize & (capacity - 1);
    let first = len.min(capacity - start);
    ((start, first), (len - first).min(start))
}

/// A reader of one ring.
#[derive(Debug)]
pub(crate) struct Ring<M> {
    memory: M,
    /// The CPU that writes it. `None` for a thread's ring, whose samples name their CPU.
    cpu: Option<u32>,
    /// The next record.
    cursor: u64,
    head: u64,
    next: Option<Next>,
    /// The time of the last record that was read.
    last: u64,
    lost: u64,
    malformed: u64,
    /// The end of the records when the ring was last found crowded: see [`Ring::may_hide_loss`].
    crowded_at: Option<u64>,
}

/// The next record, parsed once when it is first looked at.
#[derive(Clone, Copy, Debug)]
struct Next {
    size: u16,
    time: u64,
    cpu: u32,
    body: Body,
}

#[derive(Clone, Copy, Debug)]
enum Body {
    Sample { pid: u32, tid: u32, raw_at: u16, raw_len: u16 },
    Lost { count: u64 },
}

impl<M: Memory> Ring<M> {
    /// Reads `memory`, which `cpu` writes. `None` if its samples carry `PERF_SAMPLE_CPU`.
    pub(crate) fn new(memory: M, cpu: Option<u32>) -> Self {
        let cursor = memory.tail();
        Self { memory, cpu, cursor, head: cursor, next: None, last: 0, lost: 0, malformed: 0, crowded_at: None }
    }

    /// Its memory, for tests that write in place of the kernel.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    /// The CPU that writes it, or `None` for a thread.
    pub(crate) fn cpu(&self) -> Option<u32> {
        self.cpu
    }

    /// The number of lost records that the kernel has reported in the records read so far.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns the count of malformed records and resets it.
    pub(crate) fn take_malformed(&mut self) -> u64 {
        std::mem::take(&mut self.malformed)
    }

    /// Reads how far the kernel has written, and returns the number of unread bytes.
    pub(crate) fn refresh(&mut self) -> u64 {
        self.head = self.memory.refresh();
        self.head - self.cursor
    }

    /// The time of the next record.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u64> {
        while self.next.is_none() && self.cursor < self.head {
            self.look();
        }
        self.next.map(|next| next.time)
    }

    /// Parses the next record's header. Skips records other than samples and losses.
    fn look(&mut self) {
        match self.parse() {
            Some(Ok(next)) => self.next = Some(next),
            Some(Err(size)) => self.cursor += u64::from(size),
            None => {
                self.malformed += 1;
                self.cursor = self.head;
            }
        }
    }

    /// The next record, or the size of one that is neither a sample nor a loss. `None` if it is malformed.
    #[inline]
    fn parse(&self) -> Option<Result<Next, u16>> {
        let left = self.head - self.cursor;
        let start = self.start(left);
        let (kind, size) = (u32_at(&start, 0), u16::from_ne_bytes([start[6], start[7]]));
        if usize::from(size) < HEADER_SIZE || size % 8 != 0 || u64::from(size) > left {
            return None;
        }
        match kind {
            SAMPLE if usize::from(size) == self.raw_len_at() => Some(Err(size)),
            SAMPLE => self.sample(size, &start).map(Ok),
            LOST => self.loss(size, &start).map(Ok),
            _ => Some(Err(size)),
        }
    }

    /// The offset of the length of a sample's raw part. A sample that ends there has no raw part; only the timers write
    /// such samples.
    fn raw_len_at(&self) -> usize {
        HEADER_SIZE + if self.cpu.is_some() { 16 } else { 24 }
    }

    /// pid, tid, time, cpu (if requested), length of the raw part, raw part.
    fn sample(&self, size: u16, start: &Start) -> Option<Next> {
        let cpu = self.cpu.unwrap_or_else(|| u32_at(start, HEADER_SIZE + 16));
        let raw_len_at = self.raw_len_at();
        let (raw_len, raw_at) = (u32_at(start, raw_len_at), raw_len_at + 4);
        if raw_at + raw_len as usize > usize::from(size) {
            return None;
        }
        let (pid, tid) = (u32_at(start, HEADER_SIZE), u32_at(start, HEADER_SIZE + 4));
        let body = Body::Sample { pid, tid, raw_at: raw_at as u16, raw_len: raw_len as u16 };
        Some(Next { size, time: u64_at(start, HEADER_SIZE + 8), cpu, body })
    }

    /// event, count, then the fields that identify a sample: pid, tid, time, cpu (if requested).
    fn loss(&self, size: u16, start: &Start) -> Option<Next> {
        let (cpu, end) = match self.cpu {
            Some(cpu) => (cpu, HEADER_SIZE + 32),
            None => (u32_at(start, HEADER_SIZE + 32), HEADER_SIZE + 40),
        };
        if usize::from(size) < end {
            return None;
        }
        let body = Body::Lost { count: u64_at(start, HEADER_SIZE + 8) };
        Some(Next { size, time: u64_at(start, HEADER_SIZE + 24), cpu, body })
    }

    /// The next bytes, padded with zeros if fewer are `left`.
    #[inline]
    fn start(&self, left: u64) -> Start {
        let (first, rest) = self.memory.unread(self.cursor, left.min(size_of::<Start>() as u64) as usize);
        if let Some(whole) = first.first_chunk() {
            return *whole;
        }
        let mut start: Start = [0; HEADER_SIZE + 40];
        joined(first, rest, &mut start);
        start
    }

    /// Lends the record that [`Ring::peek`] saw: in place, or copied to `scratch` if it wraps.
    #[inline]
    pub(crate) fn take(&mut self, scratch: &mut [u8], f: &mut impl FnMut(Record<'_>)) {
        let Some(Next { size, time, cpu, body }) = self.next.take() else { return };
        let record = self.cursor;
        self.cursor += u64::from(size);
        let since = std::mem::replace(&mut self.last, time).min(time);
        match body {
            Body::Lost { count } => {
                self.lost = self.lost.saturating_add(count);
                f(Record::Lost { since, time, cpu, count });
            }
            Body::Sample { pid, tid, raw_at, raw_len } => {
                let (first, rest) = self.memory.unread(record + u64::from(raw_at), usize::from(raw_len));
                let raw = if rest.is_empty() { first } else { joined(first, rest, scratch) };
                let id = raw.first_chunk().map_or(0, |id| u16::from_ne_bytes(*id));
                f(Record::Sample { time, cpu, pid, tid, id, raw });
            }
        }
    }

    /// Returns to the kernel the space of the records that have been read.
    pub(crate) fn commit(&mut self) {
        let tail = self.memory.tail();
        if tail != self.cursor {
            self.memory.release(self.cursor);
        }
        // Read after the release, so that every record that did not fit before the release is older than this.
        let end = self.memory.refresh();
        if end - tail > self.memory.capacity() as u64 / CROWDED {
            self.crowded_at = Some(end);
        } else if self.crowded_at.is_some_and(|at| at != end) {
            self.crowded_at = None;
        }
    }

    /// Whether there may be lost records that the kernel has not reported yet. It reports a loss only when it writes
    /// the next record. True if the ring was crowded when it was last read, nothing has been written since, and a
    /// record fits now.
    pub(crate) fn may_hide_loss(&mut self) -> bool {
        let end = self.memory.refresh();
        self.crowded_at == Some(end) && end - self.memory.tail() <= self.memory.capacity() as u64 / CROWDED
    }
}

#[inline]
fn u32_at(start: &Start, at: usize) -> u32 {
    start[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[inline]
fn u64_at(start: &Start, at: usize) -> u64 {
    start[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

fn joined<'a>(first: &[u8], rest: &[u8], scratch: &'a mut [u8]) -> &'a [u8] {
    let whole = &mut scratch[..first.len() + rest.len()];
    let (before, after) = whole.split_at_mut(first.len());
    before.copy_from_slice(first);
    after.copy_from_slice(rest);
    whole
}

#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), allow(dead_code, reason = "a fuzzer brings its own records"))]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
