use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::ring::fake::{Fake, record};

const ALL: u64 = u64::MAX;

fn rings(times: &[&[u64]]) -> Vec<Ring<Fake>> {
    let mut rings = Vec::new();
    for (cpu, times) in (0..).zip(times) {
        let mut memory = Fake::new(1 << 12, 0);
        times.iter().for_each(|time| assert!(memory.sample(*time, b"abcd")));
        rings.push(Ring::new(memory, Some(cpu)));
    }
    rings
}

fn drain(merge: &mut Merge, rings: &mut [Ring<Fake>], horizon: u64) -> (Vec<(u64, u32)>, Drained) {
    let mut seen = Vec::new();
    let drained = merge.drain(rings, horizon, 1 << 11, &mut |record| match record {
        Record::Sample { time, cpu, .. } => seen.push((time, cpu)),
        Record::Lost { .. } => {}
    });
    (seen, drained)
}

#[test]
fn oldest_first_across_rings() {
    let mut rings = rings(&[&[1, 4, 9], &[], &[2, 3, 4, 10]]);
    let (seen, drained) = drain(&mut Merge::new(), &mut rings, ALL);
    assert_eq!(seen, [(1, 0), (2, 2), (3, 2), (4, 0), (4, 2), (9, 0), (10, 2)]);
    assert_eq!(drained, Drained { records: 7, ..Drained::default() });
}

#[test]
fn the_horizon_is_not_crossed() {
    let mut rings = rings(&[&[1, 5, 6], &[2, 7]]);
    let merge = &mut Merge::new();
    assert_eq!(drain(merge, &mut rings, 0).0, []);
    assert_eq!(merge.seen(), 2);
    assert_eq!(drain(merge, &mut rings, 6).0, [(1, 0), (2, 1), (5, 0)]);
    assert_eq!(drain(merge, &mut rings, 6).0, []);
    assert_eq!(drain(merge, &mut rings, 7).0, [(6, 0)]);
    assert_eq!(drain(merge, &mut rings, ALL).0, [(7, 1)]);
    assert_eq!(drain(merge, &mut rings, ALL).0, []);
    assert_eq!(merge.seen(), 0);
}

#[test]
fn late_records_are_lent_and_counted() {
    let mut first = rings(&[&[10, 20], &[12]]);
    let merge = &mut Merge::new();
    assert_eq!(drain(merge, &mut first, ALL).1.late, 0);
    let mut second = rings(&[&[21], &[15, 16, 22]]);
    let (seen, drained) = drain(merge, &mut second, ALL);
    assert_eq!(seen, [(15, 1), (16, 1), (21, 0), (22, 1)]);
    assert_eq!((drained.records, drained.late), (4, 2));
}

#[test]
fn a_ring_beyond_its_watermark_is_reported() {
    // 32 bytes a sample, the watermark is at 2048.
    let times: Vec<u64> = (0..66).collect();
    let mut rings = rings(&[&[1], &times]);
    let merge = &mut Merge::new();
    assert!(drain(merge, &mut rings, 0).1.backlog);
    assert!(drain(merge, &mut rings, 1).1.backlog);
    assert!(!drain(merge, &mut rings, 2).1.backlog);
}

#[test]
fn malformed_records_are_counted_once() {
    let mut rings = rings(&[&[1, 3], &[2, 4]]);
    let mut memory = Fake::new(256, 0);
    memory.sample(1, b"abcd");
    memory.write(&record(9, &[]));
    memory.sample(5, b"abcd");
    rings.push(Ring::new(memory, Some(2)));
    let merge = &mut Merge::new();
    let (seen, drained) = drain(merge, &mut rings, ALL);
    assert_eq!(seen, [(1, 0), (1, 2), (2, 1), (3, 0), (4, 1)]);
    assert_eq!(drained.malformed, 1);
    assert_eq!(drain(merge, &mut rings, ALL).1, Drained::default());
}

#[test]
fn the_room_of_records_that_were_read_is_released() {
    let mut rings = rings(&[&[]]);
    for time in 1.. {
        if !rings[0].memory_mut().sample(time, b"abcd") {
            break;
        }
    }
    assert!(!rings[0].memory_mut().sample(1000, b"abcd"), "the ring is full");
    drain(&mut Merge::new(), &mut rings, ALL);
    assert!(rings[0].memory_mut().sample(1000, b"abcd"));
}

#[test]
fn a_horizon_is_the_previous_round_or_a_slack_ago() {
    let mut horizon = Horizon::with_slack(Duration::from_nanos(100));
    assert_eq!([1000, 1250, 1260].map(|now| horizon.next(now)), [0, 1000, 1160]);
}

#[test]
fn a_panic_loses_only_the_lent_records() {
    let mut rings = rings(&[&[1, 3, 5], &[2, 4]]);
    let mut merge = Merge::new();
    let mut lent = 0;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        merge.drain(&mut rings, ALL, ALL, &mut |_| {
            lent += 1;
            assert_ne!(lent, 3, "on purpose");
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(drain(&mut merge, &mut rings, ALL).0, [(4, 1), (5, 0)]);
}

proptest! {
    /// However records are spread over rings and rounds, they come out once, in order, none at or after its horizon.
    #[test]
    fn one_stream_in_order(
        times in vec(vec(0_u64..1000, 0..40), 1..9),
        mut horizons in vec(0_u64..1000, 0..10),
    ) {
        let mut times = times;
        times.iter_mut().for_each(|times| times.sort_unstable());
        let slices: Vec<&[u64]> = times.iter().map(Vec::as_slice).collect();
        let mut rings = rings(&slices);
        let mut expected: Vec<(u64, u32)> =
            (0..).zip(&times).flat_map(|(cpu, times)| times.iter().map(move |time| (*time, cpu))).collect();
        expected.sort_unstable();
        horizons.sort_unstable();
        horizons.push(ALL);
        let mut merge = Merge::new();
        let mut all = Vec::new();
        for horizon in horizons {
            let (seen, drained) = drain(&mut merge, &mut rings, horizon);
            prop_assert_eq!(drained.records, seen.len() as u64);
            prop_assert_eq!(drained.late, 0);
            prop_assert!(seen.iter().all(|(time, _)| *time < horizon));
            all.extend(seen);
        }
        prop_assert_eq!(all, expected);
    }
}
