//! Access to private parts for the fuzz targets in `fuzz/`: rings in plain memory.

use crate::merge::Merge;
use crate::ring::Ring;
use crate::ring::fake::Fake;
use crate::{Drained, Record};

/// Bytes of a ring.
const CAPACITY: usize = 1 << 10;

/// Rings that can be filled with any bytes and are read like those of the kernel.
#[derive(Debug)]
pub struct FakeRings {
    rings: Vec<Ring<Fake>>,
    merge: Merge,
}

impl FakeRings {
    /// A ring for each of two CPUs and one for a thread. The counters of the CPUs' rings begin at `start` bytes.
    pub fn new(start: u32) -> Self {
        let start = u64::from(start) * 8;
        let of_cpu = |cpu| Ring::new(Fake::new(CAPACITY, start), Some(cpu));
        Self { rings: vec![of_cpu(0), of_cpu(1), Ring::new(Fake::of_thread(CAPACITY), None)], merge: Merge::new() }
    }

    /// Writes bytes to a ring in place of the kernel. Returns `false` if they do not fit.
    pub fn write(&mut self, ring: u8, bytes: &[u8]) -> bool {
        let ring = usize::from(ring) % self.rings.len();
        self.rings[ring].memory_mut().write(bytes)
    }

    /// As [`Rings::drain`](crate::Rings::drain).
    pub fn drain(&mut self, horizon: u64, f: &mut impl FnMut(Record<'_>)) -> Drained {
        self.merge.drain(&mut self.rings, horizon, CAPACITY as u64 / 2, f)
    }
}
