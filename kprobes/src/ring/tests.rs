use proptest::collection::vec;
use proptest::prelude::*;

use super::fake::{Fake, record};
use super::*;

/// Time and raw bytes, or the count of a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Sample(u64, Vec<u8>),
    Lost(u64),
}

fn reader(memory: Fake) -> Ring<Fake> {
    Ring::new(memory, Some(3))
}

/// Reads all records, releases them to the kernel, and returns them.
fn read(ring: &mut Ring<Fake>) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut scratch = vec![0; MAX_RECORD_SIZE];
    ring.refresh();
    while let Some(time) = ring.peek() {
        let last = ring.last;
        ring.take(&mut scratch, &mut |record| match record {
            Record::Sample { time: same, cpu: 3 | 7, pid: 21, tid: 22, raw, .. } => {
                assert_eq!(time, same);
                seen.push(Seen::Sample(time, raw.to_vec()));
            }
            Record::Lost { since, time: same, cpu: 3 | 7, count } => {
                assert_eq!(time, same);
                assert_eq!(since, last, "the time of the last record that found room");
                seen.push(Seen::Lost(count));
            }
            other => panic!("{other:?}"),
        });
    }
    ring.commit();
    seen
}

fn sample(time: u64, raw: &[u8]) -> Seen {
    Seen::Sample(time, raw.to_vec())
}

#[test]
fn samples_come_as_they_were_written() {
    let mut ring = reader(Fake::new(256, 0));
    assert_eq!(read(&mut ring), []);
    assert!(ring.memory.sample(5, b"\x39\x05abcdefghij"));
    assert!(ring.memory.sample(6, b"1234"));
    assert_eq!(ring.peek(), None, "the head has not been read yet");
    assert_eq!(read(&mut ring), [sample(5, b"\x39\x05abcdefghij"), sample(6, b"1234")]);
    assert_eq!(read(&mut ring), []);
}

#[test]
fn the_id_is_the_first_field() {
    let mut ring = reader(Fake::new(256, 0));
    ring.memory.sample(5, &[1337_u16.to_ne_bytes(), [0, 0]].concat());
    ring.memory.sample(6, &[1]);
    ring.refresh();
    let mut ids = Vec::new();
    while ring.peek().is_some() {
        ring.take(&mut [0; 64], &mut |record| match record {
            Record::Sample { id, .. } => ids.push(id),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(ids, [1337, 0]);
}

#[test]
fn a_record_can_wrap_anywhere() {
    for start in (0..64).step_by(8) {
        let mut ring = reader(Fake::new(64, start));
        for time in 0..10 {
            let raw = [time as u8; 20];
            assert!(ring.memory.sample(time, &raw));
            assert_eq!(read(&mut ring), [sample(time, &raw)], "from {start}");
        }
    }
}

#[test]
fn counters_may_be_far_beyond_the_size_of_the_ring() {
    let mut ring = reader(Fake::new(64, u64::MAX / 2 - 7));
    for time in 0..10 {
        assert!(ring.memory.sample(time, b"abcd"));
        assert_eq!(read(&mut ring), [sample(time, b"abcd")]);
    }
}

#[test]
fn a_full_ring_counts_what_it_lost() {
    // 32 bytes each: exactly two fit.
    let mut ring = reader(Fake::new(64, 40));
    assert!(ring.memory.sample(1, b"1111"));
    assert!(ring.memory.sample(2, b"2222"));
    assert!(!ring.memory.sample(3, b"3333"));
    assert!(!ring.memory.sample(4, b"4444"));
    assert_eq!(read(&mut ring), [sample(1, b"1111"), sample(2, b"2222")]);
    assert_eq!(ring.lost(), 0);
    // The loss and the next sample take 40 and 32 bytes: they do not fit together.
    assert!(!ring.memory.sample(5, b"5555"));
    let mut ring = reader(Fake::new(128, 0));
    (0..4).for_each(|time| assert!(ring.memory.sample(time, b"abcd")));
    (4..7).for_each(|time| assert!(!ring.memory.sample(time, b"abcd")));
    assert_eq!(read(&mut ring).len(), 4);
    assert!(ring.memory.sample(9, b"abcd"));
    assert_eq!(read(&mut ring), [Seen::Lost(3), sample(9, b"abcd")]);
    assert_eq!(ring.lost(), 3);
}

#[test]
fn a_loss_is_suspected_until_the_next_record() {
    let mut ring = reader(Fake::new(128, 0));
    (0..2).for_each(|time| assert!(ring.memory.sample(time, b"abcd")));
    read(&mut ring);
    assert!(!ring.may_hide_loss(), "there was room for more");
    (0..4).for_each(|time| assert!(ring.memory.sample(time, b"abcd")));
    assert!(!ring.memory.sample(4, b"abcd"));
    assert!(!ring.may_hide_loss(), "another record would find no room either");
    assert_eq!(read(&mut ring).len(), 4);
    assert!(ring.may_hide_loss());
    assert_eq!(read(&mut ring), []);
    assert!(ring.may_hide_loss(), "reading an empty ring changes nothing");
    assert!(ring.memory.bare_sample(5));
    assert!(!ring.may_hide_loss(), "a newer record reports the loss");
    assert_eq!(read(&mut ring), [Seen::Lost(1)]);
    assert_eq!(read(&mut ring), []);
    assert!(!ring.may_hide_loss());
    assert_eq!((ring.lost(), ring.take_malformed()), (1, 0));
}

#[test]
fn a_crowded_ring_with_new_records_hides_no_loss() {
    let mut ring = reader(Fake::new(128, 0));
    (0..4).for_each(|time| assert!(ring.memory.sample(time, b"abcd")));
    assert!(!ring.memory.sample(4, b"abcd"));
    read(&mut ring);
    assert!(ring.memory.sample(5, b"abcd"));
    assert!(!ring.may_hide_loss());
    assert_eq!(read(&mut ring), [Seen::Lost(1), sample(5, b"abcd")]);
}

#[test]
fn records_of_a_thread_name_their_cpu() {
    let mut ring = Ring::new(Fake::of_thread(128), None);
    assert!(ring.memory.sample(1, &[9; 60]));
    assert!(!ring.memory.sample(2, b"abcd"));
    assert_eq!(read(&mut ring), [sample(1, &[9; 60])]);
    assert!(ring.memory.sample(3, b"abcd"));
    assert_eq!(read(&mut ring), [Seen::Lost(1), sample(3, b"abcd")]);
}

#[test]
fn other_records_are_skipped() {
    let mut ring = reader(Fake::new(256, 0));
    ring.memory.write(&record(5, &[0; 24]));
    ring.memory.sample(1, b"abcd");
    ring.memory.write(&record(6, &[]));
    ring.memory.bare_sample(0);
    assert_eq!(read(&mut ring), [sample(1, b"abcd")]);
    assert_eq!(ring.take_malformed(), 0);
}

#[test]
fn malformed_records_cost_only_the_records_after_them() {
    let with_size = |size: u16, kind| {
        let mut bytes = record(kind, &[0; 24]);
        bytes[6..8].copy_from_slice(&size.to_ne_bytes());
        bytes
    };
    let too_long_raw = record(SAMPLE, &[&[0; 16][..], &9_u32.to_ne_bytes(), b"abcd"].concat());
    let longest_raw = record(SAMPLE, &[&[0; 16][..], &u32::MAX.to_ne_bytes(), b"abcd"].concat());
    for malformed in [
        with_size(0, SAMPLE),
        with_size(7, SAMPLE),
        with_size(9, SAMPLE),
        with_size(0, 5),
        with_size(u16::MAX, SAMPLE),
        with_size(1 << 12, LOST),
        record(SAMPLE, &[]),
        record(SAMPLE, &[0; 8]),
        record(LOST, &[0; 8]),
        too_long_raw,
        longest_raw,
    ] {
        let mut ring = reader(Fake::new(256, 216));
        ring.memory.sample(1, b"abcd");
        ring.memory.write(&malformed);
        ring.memory.sample(2, b"abcd");
        assert_eq!(read(&mut ring), [sample(1, b"abcd")], "{malformed:?}");
        assert_eq!(ring.take_malformed(), 1, "{malformed:?}");
        ring.memory.sample(3, b"abcd");
        assert_eq!(read(&mut ring), [sample(3, b"abcd")], "{malformed:?}");
        assert_eq!(ring.take_malformed(), 0);
    }
}

#[test]
fn an_impossible_count_of_losses_saturates() {
    let mut ring = reader(Fake::new(256, 0));
    for _ in 0..2 {
        let identity = [&21_u32.to_ne_bytes()[..], &22_u32.to_ne_bytes(), &1_u64.to_ne_bytes()].concat();
        let body = [&1_u64.to_ne_bytes()[..], &u64::MAX.to_ne_bytes(), &identity].concat();
        ring.memory.write(&record(LOST, &body));
    }
    assert_eq!(read(&mut ring), [Seen::Lost(u64::MAX), Seen::Lost(u64::MAX)]);
    assert_eq!(ring.lost(), u64::MAX);
}

proptest! {
    /// Records are read whole and in order, and losses add up, wherever the ring wraps and whenever it is read.
    #[test]
    fn written_records_are_read(
        exponent in 6_u32..10,
        start in (0_u64..1 << 40).prop_map(|start| start * 8),
        steps in vec((any::<bool>(), vec(any::<u8>(), 0..60)), 0..200),
    ) {
        let mut ring = reader(Fake::new(1 << exponent, start));
        let (mut expected, mut seen) = (Vec::new(), Vec::new());
        let (mut lost, mut last_loss) = (0, 0);
        for (time, (read_now, raw)) in (1..).zip(&steps) {
            if ring.memory.sample(time, raw) {
                expected.push(sample(time, raw));
            } else {
                lost += 1;
            }
            if *read_now {
                seen.extend(read(&mut ring));
            }
        }
        seen.extend(read(&mut ring));
        // A last sample reports the losses that are still pending.
        if lost > 0 && ring.memory.sample(u64::MAX, b"abcd") {
            expected.push(sample(u64::MAX, b"abcd"));
            seen.extend(read(&mut ring));
            last_loss = lost;
        }
        let losses: u64 = seen.iter().map(|seen| if let Seen::Lost(count) = seen { *count } else { 0 }).sum();
        let samples: Vec<_> = seen.into_iter().filter(|seen| matches!(seen, Seen::Sample(..))).collect();
        prop_assert_eq!(samples, expected);
        prop_assert_eq!(losses, ring.lost());
        if last_loss > 0 {
            prop_assert_eq!(losses, last_loss);
        }
        prop_assert_eq!(ring.take_malformed(), 0);
    }

    /// A ring with any bytes in it is read to its end, and records written afterwards are read correctly.
    #[test]
    fn any_bytes_are_read_to_the_end(
            start in (0_u64..100).prop_map(|start| start * 8),
            words in vec(any::<[u8; 8]>(), 0..32),
        ) {
        let mut ring = reader(Fake::new(256, start));
        ring.memory.write(&words.concat());
        let mut scratch = vec![0; MAX_RECORD_SIZE];
        ring.refresh();
        while ring.peek().is_some() {
            ring.take(&mut scratch, &mut |_| ());
        }
        ring.commit();
        prop_assert!(ring.memory.sample(1, b"abcd"));
        prop_assert_eq!(read(&mut ring), [sample(1, b"abcd")]);
    }
}
