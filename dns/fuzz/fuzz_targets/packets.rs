//! Feeds packets of any bytes to a tracker: `cargo fuzz run packets` in `dns/`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run packets`. Seeds: `python3 fuzz/seeds.py
//! fuzz/corpus/packets`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use socktrail_dns::{Lookup, Options, Packet, Tracker};

/// Each packet comes after four bytes: one that selects its ethertype, two with its length, and one that says how many
/// of its bytes were not captured.
fn packets(mut data: &[u8]) -> impl Iterator<Item = (u16, usize, &[u8])> {
    std::iter::from_fn(move || {
        let (&[selector, high, low, missing], rest) = data.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        data = rest;
        let ethertype = [0x0800, 0x86dd, 0x8100, 0x88a8][usize::from(selector % 4)];
        Some((ethertype, length + usize::from(missing), bytes))
    })
}

fuzz_target!(|data: &[u8]| {
    let mut options = Options::default();
    (options.bounds.queries, options.bounds.streams, options.bounds.stream_bytes) = (8, 4, 600);
    let mut tracker = Tracker::new(&options);
    for (time, (ethertype, length, bytes)) in (0_u64..).zip(packets(data)) {
        let packet = Packet { time: time << 32, interface: 1, ethertype, length, bytes };
        tracker.ingest(&packet, &mut |lookup: Lookup| {
            assert!(!lookup.addresses.is_empty() && lookup.addresses.len() <= 256);
            assert!((1..=1_003).contains(&lookup.name.len()));
            assert!(lookup.name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
            assert!(lookup.query_time <= lookup.time);
        });
        assert!(tracker.queries() <= 8 && tracker.streams() <= 4);
        if time % 16 == 0 {
            tracker.expire(packet.time);
        }
    }
    let counters = tracker.counters();
    assert!(counters.lookups <= counters.responses && counters.responses >= counters.unsolicited_responses);
});
