//! One ring: its records, one after the other.
//!
//! The format is that of `perf_event_open(2)`: records of 8-byte-aligned size, each with a header; they wrap at
//! the ring's end. Head and tail count bytes and never wrap.

use crate::Record;

/// `PERF_RECORD_LOST`
const LOST: u32 = 2;
/// `PERF_RECORD_SAMPLE`
const SAMPLE: u32 = 9;
/// Type (32 bits), misc (16), size (16).
const HEADER: usize = 8;
/// A ring is crowded when more than this fraction (1/n) of it is used. A record that found no room is hardly ever
/// larger than the rest of the ring, and neither is what is written while the ring is being read.
const CROWDED: u64 = 2;
/// As much of a record as there is to know before its raw bytes.
type Start = [u8; HEADER + 40];
/// The longest record that a 16-bit size can describe, and a bit.
pub(crate) const LONGEST: usize = 1 << 16;

/// The bytes of a ring and its two counters. The kernel's side of it is [`crate::sys::mapping`].
pub(crate) trait Memory {
    /// Bytes of data that fit: a power of two.
    fn capacity(&self) -> usize;
    /// Looks how far the kernel has written.
    fn refresh(&mut self) -> u64;
    /// Up to where bytes have been given back.
    fn tail(&self) -> u64;
    /// Gives everything before `tail` back to the kernel.
    fn release(&mut self, tail: u64);
    /// `len` bytes at `from`, in two parts when they wrap; nothing unless all of them lie between the tail and
    /// the head as last looked at.
    fn unread(&self, from: u64, len: usize) -> (&[u8], &[u8]);
}

/// Where `len` bytes at `from` lie in a ring: start and length of the first part, length of the part that starts over.
pub(crate) fn halves(capacity: usize, from: u64, len: usize) -> ((usize, usize), usize) {
    let start = from as usize & (capacity - 1);
    let first = len.min(capacity - start);
    ((start, first), (len - first).min(start))
}

/// A reader of one ring.
#[derive(Debug)]
pub(crate) struct Ring<M> {
    memory: M,
    /// The CPU that writes it; a thread's samples say theirs.
    cpu: Option<u32>,
    /// The next record.
    cursor: u64,
    head: u64,
    next: Option<Next>,
    /// The time of the record that was read last.
    last: u64,
    lost: u64,
    malformed: u64,
    /// The end of the ring's records when it was last found crowded: see [`Ring::may_hide_loss`].
    crowded_at: Option<u64>,
}

/// What the next record is, read once when it is looked at.
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
    /// Reads `memory`; `cpu` is whose it is, `None` when its samples carry `PERF_SAMPLE_CPU`.
    pub(crate) fn new(memory: M, cpu: Option<u32>) -> Self {
        let cursor = memory.tail();
        Self { memory, cpu, cursor, head: cursor, next: None, last: 0, lost: 0, malformed: 0, crowded_at: None }
    }

    /// Its memory, to be written to in the kernel's place.
    #[cfg(fuzzing)]
    pub(crate) fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    /// The CPU that writes it, or `None` for a thread.
    pub(crate) fn cpu(&self) -> Option<u32> {
        self.cpu
    }

    /// Records that the kernel has said were lost, of those read so far.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Takes the count of malformed records, beginning again at none.
    pub(crate) fn take_malformed(&mut self) -> u64 {
        std::mem::take(&mut self.malformed)
    }

    /// Looks how far the kernel has written, and how many bytes that leaves to read.
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

    /// Reads the next record's header, or skips a record that is of no interest.
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

    /// The next record, or the size of one that is neither sample nor loss, or `None` for nonsense.
    #[inline]
    fn parse(&self) -> Option<Result<Next, u16>> {
        let left = self.head - self.cursor;
        let start = self.start(left);
        let (kind, size) = (word(&start, 0), u16::from_ne_bytes([start[6], start[7]]));
        if usize::from(size) < HEADER || size % 8 != 0 || u64::from(size) > left {
            return None;
        }
        match kind {
            SAMPLE if usize::from(size) == self.raw_len_at() => Some(Err(size)),
            SAMPLE => self.sample(size, &start).map(Ok),
            LOST => self.loss(size, &start).map(Ok),
            _ => Some(Err(size)),
        }
    }

    /// The offset at which a sample says how long its raw part is. A sample that ends there has no raw part: only
    /// events without a probe, the timers, write such samples.
    fn raw_len_at(&self) -> usize {
        HEADER + if self.cpu.is_some() { 16 } else { 24 }
    }

    /// pid, tid, time, cpu where it is asked for, length of the raw part, raw part.
    fn sample(&self, size: u16, start: &Start) -> Option<Next> {
        let cpu = self.cpu.unwrap_or_else(|| word(start, HEADER + 16));
        let raw_len_at = self.raw_len_at();
        let (raw_len, raw_at) = (word(start, raw_len_at), raw_len_at + 4);
        if raw_at + raw_len as usize > usize::from(size) {
            return None;
        }
        let (pid, tid) = (word(start, HEADER), word(start, HEADER + 4));
        let body = Body::Sample { pid, tid, raw_at: raw_at as u16, raw_len: raw_len as u16 };
        Some(Next { size, time: long(start, HEADER + 8), cpu, body })
    }

    /// event, count, then what identifies a sample: pid, tid, time, cpu where it is asked for.
    fn loss(&self, size: u16, start: &Start) -> Option<Next> {
        let (cpu, known) = match self.cpu {
            Some(cpu) => (cpu, HEADER + 32),
            None => (word(start, HEADER + 32), HEADER + 40),
        };
        if usize::from(size) < known {
            return None;
        }
        let body = Body::Lost { count: long(start, HEADER + 8) };
        Some(Next { size, time: long(start, HEADER + 24), cpu, body })
    }

    /// The next bytes, followed by zeros where fewer are `left`.
    #[inline]
    fn start(&self, left: u64) -> Start {
        let (first, rest) = self.memory.unread(self.cursor, left.min(size_of::<Start>() as u64) as usize);
        if let Some(whole) = first.first_chunk() {
            return *whole;
        }
        let mut start: Start = [0; HEADER + 40];
        joined(first, rest, &mut start);
        start
    }

    /// Lends the record that [`Ring::peek`] saw, in place, or copied to `scratch` when it wraps.
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

    /// Gives what was read back to the kernel.
    pub(crate) fn commit(&mut self) {
        let tail = self.memory.tail();
        if tail != self.cursor {
            self.memory.release(self.cursor);
        }
        // Read after the release: every record that found no room before the release is older than this.
        let end = self.memory.refresh();
        if end - tail > self.memory.capacity() as u64 / CROWDED {
            self.crowded_at = Some(end);
        } else if self.crowded_at.is_some_and(|at| at != end) {
            self.crowded_at = None;
        }
    }

    /// Whether records may have been lost that the kernel has not reported yet. It reports a loss only when it writes
    /// the next record. True if the ring was crowded when it was last read, nothing has been written since, and there
    /// is now room for a record.
    pub(crate) fn may_hide_loss(&mut self) -> bool {
        let end = self.memory.refresh();
        self.crowded_at == Some(end) && end - self.memory.tail() <= self.memory.capacity() as u64 / CROWDED
    }
}

#[inline]
fn word(start: &Start, at: usize) -> u32 {
    start[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[inline]
fn long(start: &Start, at: usize) -> u64 {
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
