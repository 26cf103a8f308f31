//! A kernel's clock that advances by ticks: events of two CPUs within one tick have the same time, and may come in any order.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::model::testing::{monotonic, sock_at};

/// The length of a tick in nanoseconds, with 250 ticks a second.
const TICK: u64 = 4_000_000;
/// All packets have TCP's timestamp option; a SYN has further options.
const HEADERS: u16 = 52;
const SYN_HEADERS: u16 = 60;
const SOCK: u64 = 0xa;

/// A packet: its direction, number of segments, payload of each, CPU, and nanoseconds since the packet before.
type Step = (PacketDirection, u32, u32, u32, u64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let direction = prop_oneof![Just(PacketDirection::Outbound), Just(PacketDirection::Inbound)];
    vec((direction, 1..5_u32, 0..1400_u32, 0..3_u32, 1..2_000_000_u64), 0..40)
}

/// The packets of a connection as they are on the wire, and the events that show them, with time and CPU.
struct Wire {
    sent: Counters,
    received: Counters,
    counted: Segments,
    seen: Vec<(u64, u32, EventKind)>,
}

impl Wire {
    fn of(steps: &[Step], closes_after: u64, closed_on: u32) -> Self {
        let (sent, received) = (Counters::default(), Counters::default());
        let mut wire = Self { sent, received, counted: Segments::default(), seen: Vec::new() };
        let mut now = 100_000_000_000;
        let remote = tuple(40000, 80).remote;
        for kind in [
            EventKind::SocketCreated { sock: sock_at(SOCK), user: SocketUser::Program },
            EventKind::ConnectBegins { sock: sock_at(SOCK), remote },
        ] {
            wire.seen.push((now, 0, kind));
        }
        wire.packet((PacketDirection::Outbound, 1, 0, 0, 0), now, SYN, SYN_HEADERS);
        for (nth, step) in steps.iter().enumerate() {
            now += step.4;
            match nth {
                0 => wire.packet((PacketDirection::Inbound, 1, 0, step.3, 0), now, SYN | ACK, SYN_HEADERS),
                _ => wire.packet(*step, now, ACK, HEADERS),
            }
        }
        let (tuple, state) = (tuple(40000, 80), TcpState::Closed { error: 0 });
        let closed = EventKind::TcpState { sock: sock_at(SOCK), tuple, state, segments: Some(wire.counted) };
        wire.seen.push((now + closes_after, closed_on, closed));
        wire
    }

    fn packet(&mut self, (direction, count, payload, cpu, _): Step, now: u64, tcp_flags: u8, headers: u16) {
        let (on_wire, socket) = match direction {
            PacketDirection::Outbound => (&mut self.sent, &mut self.counted.sent),
            PacketDirection::Inbound => (&mut self.received, &mut self.counted.received),
        };
        on_wire.packets += u64::from(count);
        on_wire.bytes += u64::from(count * (payload + u32::from(headers)));
        *socket += count;
        let (sock, segments) =
            if direction == PacketDirection::Outbound { (SOCK, Some(self.counted)) } else { (0, None) };
        let size = PacketSize { bytes: count * payload + u32::from(headers), headers };
        let packet = Packet::new(direction, Transport::Tcp, SockAddress::new(sock), tuple(40000, 80), size);
        self.seen.push((now, cpu, EventKind::Packet(Packet { tcp_flags, segments, ..packet })));
    }

    /// What the state machine counts if the clock advances by `tick` nanoseconds. Events of one CPU are in order; events of equal
    /// time are in the order of their CPUs.
    fn counted_by(&self, tick: u64) -> (Counters, Counters) {
        let mut seen = self.seen.clone();
        seen.iter_mut().for_each(|(time, ..)| *time -= *time % tick);
        seen.sort_by_key(|(time, cpu, _)| (*time, *cpu));
        let mut state = State::new(StateConfig::default());
        for (time, _, kind) in seen {
            state.ingest(&Event { time: monotonic(time), pid: CURL, tid: CURL, kind });
        }
        state.shutdown();
        let flows: Vec<_> = state.finished().collect();
        assert_eq!(flows.len(), 1);
        (flows[0].sent, flows[0].received)
    }
}

proptest! {
    #[test]
    fn counts_are_exact_with_any_clock(steps in steps()) {
        let wire = Wire::of(&steps, TICK, 0);
        prop_assert_eq!(wire.counted_by(1), (wire.sent, wire.received));
        prop_assert_eq!(wire.counted_by(TICK), (wire.sent, wire.received));
    }

    /// The event of the end may come before packets of the same tick that carried several segments: then each counts as one.
    #[test]
    fn nothing_is_counted_twice_at_the_end(steps in steps(), closes_after in 1..TICK, closed_on in 0..3_u32) {
        let wire = Wire::of(&steps, closes_after, closed_on);
        let (sent, received) = wire.counted_by(TICK);
        prop_assert!(sent.packets <= wire.sent.packets && sent.bytes <= wire.sent.bytes, "{sent:?} {:?}", wire.sent);
        prop_assert!(received.packets <= wire.received.packets, "{received:?} {:?}", wire.received);
        prop_assert!(received.bytes <= wire.received.bytes, "{received:?} {:?}", wire.received);
        prop_assert_eq!(wire.counted_by(1), (wire.sent, wire.received));
    }
}

/// A connection of curl's up to the end of its handshake.
fn connected() -> Story {
    let (mut story, tuple) = (Story::new(), tuple(40000, 80));
    story.say(CURL, EventKind::SocketCreated { sock: sock_at(SOCK), user: SocketUser::Program });
    story.say(CURL, EventKind::ConnectBegins { sock: sock_at(SOCK), remote: tuple.remote });
    sends(&mut story, Segments { sent: 1, received: 0 }, SYN, SYN_HEADERS);
    story.tcp(PacketDirection::Inbound, 0, tuple, 60, SYN | ACK);
    sends(&mut story, Segments { sent: 2, received: 1 }, ACK, HEADERS);
    story
}

/// An empty packet leaves. The socket has counted these segments by then.
fn sends(story: &mut Story, segments: Segments, tcp_flags: u8, headers: u16) {
    let size = PacketSize { bytes: headers.into(), headers };
    let packet = Packet::new(PacketDirection::Outbound, Transport::Tcp, SockAddress::new(SOCK), tuple(40000, 80), size);
    story.say(CURL, EventKind::Packet(Packet { tcp_flags, segments: Some(segments), ..packet }));
}

fn receives(story: &mut Story, payload: u32) {
    let size = PacketSize { bytes: payload + u32::from(HEADERS), headers: HEADERS };
    let packet = Packet::new(PacketDirection::Inbound, Transport::Tcp, None, tuple(40000, 80), size);
    story.say(CURL, EventKind::Packet(Packet { tcp_flags: ACK, ..packet }));
}

/// The socket's counters are not looked at again before the flow ends.
#[test]
fn a_packet_after_a_tick_is_not_among_the_segments_counted_before() {
    let mut story = connected();
    // Three segments of 100 bytes as one packet.
    receives(&mut story, 300);
    sends(&mut story, Segments { sent: 3, received: 4 }, ACK, HEADERS);
    receives(&mut story, 48);
    story.wait(31);
    assert_eq!(story.only().received, counters(5, 60 + 3 * 152 + 100));
}

/// The sample of a sent packet comes before those of three received ones. Its socket had already counted two of them.
#[test]
fn late_samples_of_one_tick_are_counted_once() {
    let mut story = connected();
    sends(&mut story, Segments { sent: 3, received: 3 }, ACK, HEADERS);
    for _ in 0..3 {
        story.now -= 1000; // the same time
        receives(&mut story, 48);
    }
    story.wait(31);
    assert_eq!(story.only().received, counters(4, 60 + 3 * 100));
}

/// The connection is older than its flow, whose first sample has overtaken the one before.
#[test]
fn a_packet_that_was_sent_before_the_first_one_of_its_flow_is_counted() {
    let mut story = Story::new();
    sends(&mut story, Segments { sent: 10, received: 1 }, ACK, HEADERS);
    story.now -= 1000; // the same time
    sends(&mut story, Segments { sent: 9, received: 1 }, ACK, HEADERS);
    story.wait(31);
    assert_eq!(story.only().sent, counters(2, 2 * 52));
}
