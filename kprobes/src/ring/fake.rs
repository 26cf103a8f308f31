//! A ring in plain memory, which tests write to as the kernel does.

use super::{LOST, Memory, SAMPLE, halves};

#[derive(Debug)]
pub(crate) struct Fake {
    data: Vec<u8>,
    /// How far the kernel has written.
    written: u64,
    /// How far it had written when the reader last looked.
    head: u64,
    tail: u64,
    lost: u64,
    of_thread: bool,
}

impl Fake {
    /// A ring of `capacity` bytes whose counters begin at `start`.
    pub(crate) fn new(capacity: usize, start: u64) -> Self {
        assert!(capacity.is_power_of_two() && start.is_multiple_of(8));
        let data = vec![0xee; capacity];
        Self { data, written: start, head: start, tail: start, lost: 0, of_thread: false }
    }

    /// A ring whose records name their CPU, which is 7.
    pub(crate) fn of_thread(capacity: usize) -> Self {
        Self { of_thread: true, ..Self::new(capacity, 0) }
    }

    /// Writes any record, if it fits.
    pub(crate) fn write(&mut self, record: &[u8]) -> bool {
        if self.data.len() as u64 - (self.written - self.tail) < record.len() as u64 {
            return false;
        }
        let ((start, first), rest) = halves(self.data.len(), self.written, record.len());
        self.data[start..start + first].copy_from_slice(&record[..first]);
        self.data[..rest].copy_from_slice(&record[first..]);
        self.written += record.len() as u64;
        true
    }

    /// Writes a sample, after a record of earlier losses. Loses it if it does not fit.
    pub(crate) fn sample(&mut self, time: u64, raw: &[u8]) -> bool {
        let len = (raw.len() as u32).to_ne_bytes();
        self.sample_of(time, &[&len, raw].concat())
    }

    /// Writes a sample without a raw part in the same way.
    pub(crate) fn bare_sample(&mut self, time: u64) -> bool {
        self.sample_of(time, &[])
    }

    fn sample_of(&mut self, time: u64, rest: &[u8]) -> bool {
        let mut records = Vec::new();
        if self.lost > 0 {
            let body = [&1_u64.to_ne_bytes()[..], &self.lost.to_ne_bytes(), &self.identity(time)].concat();
            records.extend(record(LOST, &body));
        }
        records.extend(record(SAMPLE, &[&self.identity(time)[..], rest].concat()));
        if self.write(&records) {
            self.lost = 0;
            return true;
        }
        self.lost += 1;
        false
    }

    /// pid 21, tid 22, time, and CPU 7 if the ring's records name it.
    fn identity(&self, time: u64) -> Vec<u8> {
        let mut bytes = [&21_u32.to_ne_bytes()[..], &22_u32.to_ne_bytes(), &time.to_ne_bytes()].concat();
        if self.of_thread {
            bytes.extend([7_u32.to_ne_bytes(), [0; 4]].concat());
        }
        bytes
    }
}

/// A record of `kind`: header, body, padding.
pub(crate) fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let size = (8 + body.len()).next_multiple_of(8);
    let mut bytes = [&kind.to_ne_bytes()[..], &[0; 2], &(size as u16).to_ne_bytes(), body].concat();
    bytes.resize(size, 0xaa);
    bytes
}

impl Memory for Fake {
    fn capacity(&self) -> usize {
        self.data.len()
    }

    fn refresh(&mut self) -> u64 {
        self.head = self.written;
        self.head
    }

    fn tail(&self) -> u64 {
        self.tail
    }

    fn release(&mut self, tail: u64) {
        assert!((self.tail..=self.head).contains(&tail), "a tail outside what is unread");
        self.tail = tail;
    }

    fn unread(&self, from: u64, len: usize) -> (&[u8], &[u8]) {
        if from < self.tail || from > self.head || len as u64 > self.head - from {
            return (&[], &[]);
        }
        let ((start, first), rest) = halves(self.data.len(), from, len);
        (&self.data[start..start + first], &self.data[..rest])
    }
}
