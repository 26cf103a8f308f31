use proptest::prelude::*;

use super::*;
use crate::testing::end;

const BOUNDS: usize = 1_000;

fn streams() -> Streams {
    Streams::new(&Bounds { streams: 4, stream_bytes: BOUNDS, ..Bounds::default() })
}

fn segment(sequence: u32, flags: u8, payload: &[u8]) -> Segment<'_> {
    let (source, destination) = (end("192.0.2.53:53"), end("192.0.2.1:40000"));
    Segment { time: 0, source, destination, sequence, flags, payload, missing: 0 }
}

/// What comes out: messages, and whether their ends are missing.
#[derive(Default)]
struct Out(Vec<(Vec<u8>, bool)>);

impl Out {
    fn take(&mut self, streams: &mut Streams, segment: &Segment<'_>) {
        streams.segment(segment, &mut |bytes, cut| self.0.push((bytes.to_vec(), cut)));
    }

    fn messages(&self) -> Vec<&[u8]> {
        assert!(self.0.iter().all(|(_, cut)| !cut));
        self.0.iter().map(|(bytes, _)| bytes.as_slice()).collect()
    }
}

fn framed(messages: &[&[u8]]) -> Vec<u8> {
    let one = |message: &&[u8]| [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat();
    messages.iter().flat_map(one).collect()
}

/// Sequence numbers wrap within the streams of these tests.
const START: u32 = u32::MAX - 3;

fn begun() -> Streams {
    let mut streams = streams();
    streams.segment(&segment(START.wrapping_sub(1), SYN, b""), &mut |_, _| {});
    streams
}

#[test]
fn messages_come_out_however_they_are_cut_up() {
    let bytes = framed(&[b"one", b"", b"three", &[7; 300]]);
    for size in 1..=bytes.len() {
        let (mut streams, mut out, mut at) = (begun(), Out::default(), START);
        for chunk in bytes.chunks(size) {
            out.take(&mut streams, &segment(at, 0x18, chunk));
            at = at.wrapping_add(u32::try_from(chunk.len()).unwrap());
        }
        assert_eq!(out.messages(), [&b"one"[..], b"", b"three", &[7; 300]], "segments of {size}");
        assert_eq!(streams.counters(), TcpCounters::default());
    }
}

#[test]
fn what_comes_again_is_read_once() {
    let bytes = framed(&[b"one", b"two", b"three"]);
    let (mut streams, mut out) = (begun(), Out::default());
    for (from, to) in [(0, 6), (0, 6), (2, 9), (0, 9), (7, 17), (0, 17)] {
        out.take(&mut streams, &segment(START.wrapping_add(from), 0x18, &bytes[from as usize..to]));
    }
    assert_eq!(out.messages(), [&b"one"[..], b"two", b"three"]);
}

#[test]
fn what_comes_early_waits() {
    let bytes = framed(&[b"one", b"two", b"three"]);
    let (mut streams, mut out) = (begun(), Out::default());
    for (from, to) in [(12, 17), (5, 9), (9, 12), (0, 5)] {
        assert!(out.0.is_empty());
        out.take(&mut streams, &segment(START.wrapping_add(from), 0x18, &bytes[from as usize..to]));
    }
    assert_eq!(out.messages(), [&b"one"[..], b"two", b"three"]);
    assert_eq!(streams.counters().early_segments, 3);
}

#[test]
fn a_hole_that_is_not_filled_ends_the_stream() {
    let (mut streams, mut out) = (begun(), Out::default());
    for at in 0..=8 {
        assert_eq!(streams.len(), 1);
        out.take(&mut streams, &segment(START.wrapping_add(10 + at), 0x18, b"x"));
    }
    assert_eq!((streams.len(), streams.counters().broken_streams), (0, 1));
    let (mut streams, mut out) = (begun(), Out::default());
    out.take(&mut streams, &segment(START.wrapping_add(10), 0x18, &[0; BOUNDS + 1]));
    assert_eq!((streams.len(), streams.counters().broken_streams), (0, 1));
}

#[test]
fn a_segment_from_nowhere_does_no_harm() {
    let (mut streams, mut out) = (begun(), Out::default());
    for far in [MOST_AHEAD, 1 << 31, u32::MAX - 100] {
        out.take(&mut streams, &segment(START.wrapping_add(far), 0x18, &framed(&[b"forged"])));
        out.take(&mut streams, &segment(START.wrapping_add(far), RST, b""));
    }
    out.take(&mut streams, &segment(START, 0x18, &framed(&[b"true"])));
    assert_eq!(out.messages(), [b"true"]);
}

#[test]
fn a_stream_is_known_from_its_beginning_only() {
    let (mut streams, mut out) = (streams(), Out::default());
    out.take(&mut streams, &segment(5, 0x18, &framed(&[b"one"])));
    out.take(&mut streams, &segment(5, 0x10, b""));
    assert_eq!((streams.len(), out.0.len(), streams.counters().midstream_segments), (0, 0, 1));
}

#[test]
fn data_may_come_with_the_first_segment() {
    let (mut streams, mut out) = (streams(), Out::default());
    out.take(&mut streams, &segment(START, SYN, &framed(&[b"one"])));
    out.take(&mut streams, &segment(START, SYN, &framed(&[b"one"])));
    out.take(&mut streams, &segment(START.wrapping_add(6), 0x18, &framed(&[b"two"])));
    assert_eq!(out.messages().last(), Some(&&b"two"[..]));
}

#[test]
fn streams_end() {
    for flags in [FIN, RST] {
        let (mut streams, mut out) = (begun(), Out::default());
        out.take(&mut streams, &segment(START, 0x18, &framed(&[b"one"])));
        out.take(&mut streams, &segment(START.wrapping_add(5), flags, b""));
        assert_eq!((streams.len(), out.0.len()), (0, 1), "flags {flags}");
    }
    let (mut streams, mut out) = (begun(), Out::default());
    out.take(&mut streams, &segment(START, 0x18 | FIN, &framed(&[b"one"])));
    assert_eq!((streams.len(), out.0.len()), (0, 1));
    let mut streams = begun();
    streams.expire(Bounds::default().stream_timeout.as_nanos() as u64);
    assert_eq!(streams.len(), 1);
    streams.expire(Bounds::default().stream_timeout.as_nanos() as u64 + 1);
    assert_eq!((streams.len(), streams.counters().idle_streams), (0, 1));
}

#[test]
fn streams_are_bounded() {
    let (mut streams, mut out) = (streams(), Out::default());
    for port in 1..=100 {
        let mut segment = segment(START, SYN, b"");
        segment.destination.port = port;
        out.take(&mut streams, &segment);
        assert!(streams.len() <= 4);
    }
    assert_eq!(streams.counters().evicted_streams, 96);
}

#[test]
fn a_long_message_is_read_up_to_the_bound() {
    let long: Vec<u8> = (0..5_000_u32).map(|at| at as u8).collect();
    let bytes = framed(&[&long, b"next"]);
    for size in [1, 7, 999, 1_000, 1_002, 1_003, 4_000] {
        let (mut streams, mut out, mut at) = (begun(), Out::default(), START);
        for chunk in bytes.chunks(size) {
            out.take(&mut streams, &segment(at, 0x18, chunk));
            at = at.wrapping_add(u32::try_from(chunk.len()).unwrap());
        }
        assert_eq!(out.0, [(long[..BOUNDS].to_vec(), true), (b"next".to_vec(), false)], "segments of {size}");
    }
}

#[test]
fn of_a_short_capture_the_beginning_of_the_message_counts() {
    let bytes = framed(&[b"longer than the capture", b"next"]);
    let (mut streams, mut out) = (begun(), Out::default());
    let whole = segment(START, 0x18, &bytes[..25]);
    out.take(&mut streams, &Segment { payload: &bytes[..8], missing: 17, ..whole });
    out.take(&mut streams, &segment(START.wrapping_add(25), 0x18, &bytes[25..]));
    assert_eq!(out.0, [(b"longer".to_vec(), true), (b"next".to_vec(), false)]);
    // Where the next message begins is not known when its length is not.
    out.take(&mut streams, &Segment { payload: &[], missing: 9, ..segment(START.wrapping_add(31), 0x18, b"") });
    assert_eq!((streams.len(), streams.counters().broken_streams), (0, 1));
}

proptest! {
    #[test]
    fn whatever_order_they_come_in_no_message_is_made_up(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 1..6),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 1..40_usize), 1..30),
    ) {
        let parts: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        let bytes = framed(&parts);
        let (mut streams, mut out) = (begun(), Out::default());
        for (start, length) in cuts {
            let start = start.index(bytes.len());
            let end = bytes.len().min(start + length);
            out.take(&mut streams, &segment(START.wrapping_add(start as u32), 0x18, &bytes[start..end]));
        }
        let got = out.messages();
        prop_assert_eq!(&got[..], &parts[..got.len()]);
    }

    #[test]
    fn any_segments_are_survived(
        segments in prop::collection::vec(
            (0..40_u32, any::<u8>(), prop::collection::vec(any::<u8>(), 0..20), 0..70_000_usize), 0..60),
    ) {
        let (mut streams, mut out) = (begun(), Out::default());
        for (at, flags, payload, missing) in segments {
            let missing = if missing % 3 == 0 { missing } else { 0 };
            out.take(&mut streams, &Segment { missing, ..segment(START.wrapping_add(at), flags, &payload) });
        }
        prop_assert!(streams.len() <= 1);
    }
}
