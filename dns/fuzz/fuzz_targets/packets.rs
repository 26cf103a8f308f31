//! Packets of any bytes, from frame to names: `cargo fuzz run packets` in `dns/`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run packets`. Seeds: `python3 fuzz/seeds.py fuzz/corpus/packets`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use socktrail_dns::{Learned, Options, Packet, Tracker};

/// Each packet comes behind four bytes: which ethertype, its length in two, and how much of it is missing.
fn packets(mut data: &[u8]) -> impl Iterator<Item = (u16, usize, &[u8])> {
    std::iter::from_fn(move || {
        let (&[kind, high, low, missing], rest) = data.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        data = rest;
        let ethertype = [0x0800, 0x86dd, 0x8100, 0x88a8][usize::from(kind % 4)];
        Some((ethertype, length + usize::from(missing), bytes))
    })
}

fuzz_target!(|data: &[u8]| {
    let mut options = Options::default();
    (options.bounds.queries, options.bounds.streams, options.bounds.stream_bytes) = (8, 4, 600);
    let mut tracker = Tracker::new(&options);
    for (time, (ethertype, length, bytes)) in (0_u64..).zip(packets(data)) {
        let packet = Packet { time: time << 32, interface: 1, ethertype, length, bytes };
        tracker.ingest(&packet, &mut |learned: Learned| {
            assert!(!learned.addresses.is_empty() && learned.addresses.len() <= 256);
            assert!((1..=1_003).contains(&learned.name.len()));
            assert!(learned.name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
            assert!(learned.asked <= learned.time);
        });
        assert!(tracker.queries() <= 8 && tracker.streams() <= 4);
        if time % 16 == 0 {
            tracker.expire(packet.time);
        }
    }
    let counters = tracker.counters();
    assert!(counters.learned <= counters.responses && counters.responses >= counters.unasked);
});
