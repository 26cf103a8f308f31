//! Rings with any bytes in them, read as one stream: `cargo fuzz run rings` in `kprobes/`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run rings`. Seeds: `python3 fuzz/seeds.py fuzz/corpus`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use socktrail_kprobes::fuzzing::FakeRings;
use socktrail_kprobes::{Drained, Record};

/// More than the length of any raw part, because the size of a record has 16 bits.
const TOO_LONG: usize = u16::MAX as usize;

/// A step. The first byte of input selects it and its ring; the second is its length, or the horizon.
enum Step<'a> {
    /// Write a record to this ring: its type, then its body.
    Record(u8, u32, &'a [u8]),
    /// Write bytes that need not be records.
    Bytes(u8, &'a [u8]),
    /// Read the records older than this.
    Drain(u64),
}

fn steps(mut data: &[u8]) -> impl Iterator<Item = Step<'_>> {
    std::iter::from_fn(move || {
        let (&[what, number], rest) = data.split_first_chunk::<2>()?;
        let (ring, kind) = (what >> 4, what & 0x0f);
        let length = if kind == 15 { 0 } else { usize::from(number).min(rest.len()) };
        let (bytes, rest) = rest.split_at(length);
        data = rest;
        Some(match kind {
            15 => Step::Drain(u64::from(number) << 56),
            14 => Step::Bytes(ring, bytes),
            kind => Step::Record(ring, u32::from(kind), bytes),
        })
    })
}

/// A record of this type: type, misc, size, body, padded to 8 bytes.
fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let size = (8 + body.len()).next_multiple_of(8);
    let mut bytes = [&kind.to_ne_bytes()[..], &[0; 2], &(size as u16).to_ne_bytes(), body].concat();
    bytes.resize(size, 0);
    bytes
}

/// Reads the records older than `horizon`. `latest` is the latest time that any call has seen.
fn drain(rings: &mut FakeRings, horizon: u64, latest: &mut u64) -> Drained {
    let (mut records, mut late) = (0, 0);
    let drained = rings.drain(horizon, &mut |record| {
        let time = match record {
            Record::Sample { time, raw, .. } => {
                assert!(raw.len() < TOO_LONG);
                time
            }
            Record::Lost { time, .. } => time,
            _ => return,
        };
        assert!(time < horizon);
        records += 1;
        late += u64::from(time < *latest);
        *latest = time.max(*latest);
    });
    assert_eq!((drained.records, drained.late), (records, late));
    drained
}

fuzz_target!(|data: &[u8]| {
    let Some((start, data)) = data.split_first_chunk::<4>() else { return };
    let mut rings = FakeRings::new(u32::from_le_bytes(*start));
    let mut latest = 0;
    for step in steps(data) {
        match step {
            Step::Record(ring, kind, body) => {
                rings.write(ring, &record(kind, body));
            }
            Step::Bytes(ring, bytes) => {
                rings.write(ring, bytes);
            }
            Step::Drain(horizon) => {
                drain(&mut rings, horizon, &mut latest);
            }
        }
    }
    drain(&mut rings, u64::MAX, &mut latest);
    if data.windows(8).any(|bytes| bytes == [0xff; 8]) {
        // A record may have the time `u64::MAX`, which no horizon is above, so it stays in its ring.
        return;
    }
    // Whatever a ring held before, new records are read.
    for ring in 0..3 {
        assert!(rings.write(ring, &record(9, &[0; 32])), "ring {ring} was emptied");
    }
    assert_eq!(drain(&mut rings, u64::MAX, &mut latest).records, 3);
});
