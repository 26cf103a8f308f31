use proptest::prelude::*;

use super::*;
use crate::testing::endpoint;

const MAX_BYTES: usize = 1_000;
/// Control bits (RFC 9293, section 3.1).
const ACK: u8 = 0x10;
const PSH_ACK: u8 = 0x08 | ACK;

fn streams() -> Streams {
    Streams::new(&Bounds { streams: 4, stream_bytes: MAX_BYTES, ..Bounds::default() })
}

fn segment(sequence: u32, flags: u8, payload: &[u8]) -> Segment<'_> {
    let (source, destination) = (endpoint("192.0.2.53:53"), endpoint("192.0.2.1:40000"));
    Segment { time: 0, source, destination, sequence, flags, payload, missing: 0 }
}

/// The messages that the streams handed over.
#[derive(Default)]
struct Messages(Vec<(Vec<u8>, Completeness)>);

impl Messages {
    fn ingest(&mut self, streams: &mut Streams, segment: &Segment<'_>) {
        streams.ingest(segment, &mut |bytes, completeness| self.0.push((bytes.to_vec(), completeness)));
    }

    /// The bytes of the messages, all of which must be complete.
    fn all_complete(&self) -> Vec<&[u8]> {
        assert!(self.0.iter().all(|(_, completeness)| *completeness == Completeness::Complete));
        self.0.iter().map(|(bytes, _)| bytes.as_slice()).collect()
    }
}

fn framed(messages: &[&[u8]]) -> Vec<u8> {
    let one = |message: &&[u8]| [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat();
    messages.iter().flat_map(one).collect()
}

/// Sequence numbers wrap around within the streams of these tests.
const START: u32 = u32::MAX - 3;

/// Streams with one stream, whose first byte has the number `START`.
fn after_syn() -> Streams {
    let mut streams = streams();
    streams.ingest(&segment(START.wrapping_sub(1), SYN, b""), &mut |_, _| {});
    streams
}

#[test]
fn messages_are_reassembled_from_segments_of_any_size() {
    let bytes = framed(&[b"one", b"", b"three", &[7; 300]]);
    for size in 1..=bytes.len() {
        let (mut streams, mut out, mut at) = (after_syn(), Messages::default(), START);
        for chunk in bytes.chunks(size) {
            out.ingest(&mut streams, &segment(at, PSH_ACK, chunk));
            at = at.wrapping_add(u32::try_from(chunk.len()).unwrap());
        }
        assert_eq!(out.all_complete(), [&b"one"[..], b"", b"three", &[7; 300]], "segments of {size}");
        assert_eq!(streams.counters(), TcpCounters::default());
    }
}

#[test]
fn repeated_bytes_are_read_once() {
    let bytes = framed(&[b"one", b"two", b"three"]);
    let (mut streams, mut out) = (after_syn(), Messages::default());
    for (from, to) in [(0, 6), (0, 6), (2, 9), (0, 9), (7, 17), (0, 17)] {
        out.ingest(&mut streams, &segment(START.wrapping_add(from), PSH_ACK, &bytes[from as usize..to]));
    }
    assert_eq!(out.all_complete(), [&b"one"[..], b"two", b"three"]);
}

#[test]
fn out_of_order_segments_wait() {
    let bytes = framed(&[b"one", b"two", b"three"]);
    let (mut streams, mut out) = (after_syn(), Messages::default());
    for (from, to) in [(12, 17), (5, 9), (9, 12), (0, 5)] {
        assert!(out.0.is_empty());
        out.ingest(&mut streams, &segment(START.wrapping_add(from), PSH_ACK, &bytes[from as usize..to]));
    }
    assert_eq!(out.all_complete(), [&b"one"[..], b"two", b"three"]);
    assert_eq!(streams.counters().out_of_order_segments, 3);
}

#[test]
fn a_stream_ends_when_too_many_segments_wait_for_a_missing_one() {
    let (mut streams, mut out) = (after_syn(), Messages::default());
    for at in 0..=MAX_OUT_OF_ORDER as u32 {
        assert_eq!(streams.len(), 1);
        out.ingest(&mut streams, &segment(START.wrapping_add(10 + at), PSH_ACK, b"x"));
    }
    assert_eq!((streams.len(), streams.counters().broken_streams), (0, 1));
    let (mut streams, mut out) = (after_syn(), Messages::default());
    out.ingest(&mut streams, &segment(START.wrapping_add(10), PSH_ACK, &[0; MAX_BYTES + 1]));
    assert_eq!((streams.len(), streams.counters().broken_streams), (0, 1));
}

#[test]
fn segments_outside_the_window_are_ignored() {
    let (mut streams, mut out) = (after_syn(), Messages::default());
    for distance in [MAX_AHEAD, 1 << 31, u32::MAX - 100] {
        out.ingest(&mut streams, &segment(START.wrapping_add(distance), PSH_ACK, &framed(&[b"forged"])));
        out.ingest(&mut streams, &segment(START.wrapping_add(distance), RST, b""));
    }
    out.ingest(&mut streams, &segment(START, PSH_ACK, &framed(&[b"true"])));
    assert_eq!(out.all_complete(), [b"true"]);
}

#[test]
fn a_stream_begins_with_its_syn() {
    let (mut streams, mut out) = (streams(), Messages::default());
    out.ingest(&mut streams, &segment(5, PSH_ACK, &framed(&[b"one"])));
    out.ingest(&mut streams, &segment(5, ACK, b""));
    assert_eq!((streams.len(), out.0.len(), streams.counters().midstream_segments), (0, 0, 1));
}

#[test]
fn a_syn_may_carry_data() {
    let (mut streams, mut out) = (streams(), Messages::default());
    out.ingest(&mut streams, &segment(START, SYN, &framed(&[b"one"])));
    // A retransmitted SYN changes nothing.
    out.ingest(&mut streams, &segment(START, SYN, &framed(&[b"one"])));
    out.ingest(&mut streams, &segment(START.wrapping_add(6), PSH_ACK, &framed(&[b"two"])));
    assert_eq!(out.all_complete(), [b"one", b"two"]);
}

#[test]
fn a_syn_with_another_sequence_number_restarts_the_stream() {
    let (mut streams, mut out) = (after_syn(), Messages::default());
    out.ingest(&mut streams, &segment(START, PSH_ACK, b"\0"));
    out.ingest(&mut streams, &segment(99, SYN, b""));
    out.ingest(&mut streams, &segment(100, PSH_ACK, &framed(&[b"new"])));
    assert_eq!(out.all_complete(), [b"new"]);
}

#[test]
fn a_stream_ends_with_its_fin_or_a_reset() {
    for flags in [FIN, RST] {
        let (mut streams, mut out) = (after_syn(), Messages::default());
        out.ingest(&mut streams, &segment(START, PSH_ACK, &framed(&[b"one"])));
        out.ingest(&mut streams, &segment(START.wrapping_add(5), flags, b""));
        assert_eq!((streams.len(), out.0.len()), (0, 1), "flags {flags}");
    }
    let (mut streams, mut out) = (after_syn(), Messages::default());
    out.ingest(&mut streams, &segment(START, PSH_ACK | FIN, &framed(&[b"one"])));
    assert_eq!((streams.len(), out.0.len()), (0, 1));
}

#[test]
fn idle_streams_expire() {
    let mut streams = after_syn();
    streams.expire(Bounds::default().stream_timeout.as_nanos() as u64);
    assert_eq!(streams.len(), 1);
    streams.expire(Bounds::default().stream_timeout.as_nanos() as u64 + 1);
    assert_eq!((streams.len(), streams.counters().idle_streams), (0, 1));
}

#[test]
fn streams_are_bounded() {
    let (mut streams, mut out) = (streams(), Messages::default());
    for port in 1..=100 {
        let mut segment = segment(START, SYN, b"");
        segment.destination.port = port;
        out.ingest(&mut streams, &segment);
        assert!(streams.len() <= 4);
    }
    assert_eq!(streams.counters().evicted_streams, 96);
}

#[test]
fn a_long_message_is_read_up_to_the_limit() {
    let long: Vec<u8> = (0..5_000_u32).map(|at| at as u8).collect();
    let bytes = framed(&[&long, b"next"]);
    for size in [1, 7, 999, 1_000, 1_002, 1_003, 4_000] {
        let (mut streams, mut out, mut at) = (after_syn(), Messages::default(), START);
        for chunk in bytes.chunks(size) {
            out.ingest(&mut streams, &segment(at, PSH_ACK, chunk));
            at = at.wrapping_add(u32::try_from(chunk.len()).unwrap());
        }
        assert_eq!(
            out.0,
            [(long[..MAX_BYTES].to_vec(), Completeness::Partial), (b"next".to_vec(), Completeness::Complete)],
            "segments of {size}"
        );
    }
}

#[test]
fn the_captured_beginning_of_a_message_is_handed_over() {
    let bytes = framed(&[b"longer than the capture", b"next"]);
    let (mut streams, mut out) = (after_syn(), Messages::default());
    let whole = segment(START, PSH_ACK, &bytes[..25]);
    out.ingest(&mut streams, &Segment { payload: &bytes[..8], missing: 17, ..whole });
    out.ingest(&mut streams, &segment(START.wrapping_add(25), PSH_ACK, &bytes[25..]));
    assert_eq!(out.0, [(b"longer".to_vec(), Completeness::Partial), (b"next".to_vec(), Completeness::Complete)]);
    // Without a message's length it is not known where the next one begins.
    out.ingest(&mut streams, &Segment { payload: &[], missing: 9, ..segment(START.wrapping_add(31), PSH_ACK, b"") });
    assert_eq!((streams.len(), streams.counters().broken_streams), (0, 1));
}

proptest! {
    #[test]
    fn segments_in_any_order_never_give_a_wrong_message(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 1..6),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 1..40_usize), 1..30),
    ) {
        let parts: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
        let bytes = framed(&parts);
        let (mut streams, mut out) = (after_syn(), Messages::default());
        for (start, length) in cuts {
            let start = start.index(bytes.len());
            let end = bytes.len().min(start + length);
            out.ingest(&mut streams, &segment(START.wrapping_add(start as u32), PSH_ACK, &bytes[start..end]));
        }
        let got = out.all_complete();
        prop_assert_eq!(&got[..], &parts[..got.len()]);
    }

    #[test]
    fn any_segments_leave_at_most_one_stream(
        segments in prop::collection::vec(
            (0..40_u32, any::<u8>(), prop::collection::vec(any::<u8>(), 0..20), 0..70_000_usize), 0..60),
    ) {
        let (mut streams, mut out) = (after_syn(), Messages::default());
        for (at, flags, payload, missing) in segments {
            // Most segments are captured whole.
            let missing = if missing % 3 == 0 { missing } else { 0 };
            out.ingest(&mut streams, &Segment { missing, ..segment(START.wrapping_add(at), flags, &payload) });
        }
        prop_assert!(streams.len() <= 1);
    }
}
