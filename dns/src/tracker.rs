//! From packets to names, in one pure machine.

use crate::frame::{Header, Unreadable};
use crate::matching::{Matcher, Seen};
use crate::message::Unusable;
use crate::tcp::{Segment, Streams};
use crate::{Counters, Endpoint, Frame, Message, Options, Packet, Sink};

/// Reads packets, matches answers to queries, and tells a [`Sink`] what was learned.
///
/// It has no clock and does no I/O: time comes with the packets and in [`expire`](Self::expire). One tracker is for
/// one network namespace, because addresses mean nothing beyond.
#[derive(Debug)]
pub struct Tracker {
    ports: Box<[u16]>,
    matcher: Matcher,
    streams: Streams,
    counters: Counters,
}

impl Tracker {
    /// A tracker that knows nothing yet.
    pub fn new(options: &Options) -> Self {
        Self {
            ports: options.ports.as_slice().into(),
            matcher: Matcher::new(&options.bounds),
            streams: Streams::new(&options.bounds),
            counters: Counters::default(),
        }
    }

    /// Takes in a packet. Packets come in the order of their times.
    pub fn ingest(&mut self, packet: &Packet<'_>, sink: &mut impl Sink) {
        self.counters.packets += 1;
        match Frame::parse(packet) {
            Ok(frame) => self.frame(packet, &frame, sink),
            Err(Unreadable::Foreign) => self.counters.foreign += 1,
            Err(Unreadable::Bad) => self.counters.bad_packets += 1,
            Err(Unreadable::Fragment) => self.counters.fragments += 1,
        }
    }

    /// Forgets what has waited for too long. `now` is in nanoseconds of `CLOCK_MONOTONIC`; once a second is enough.
    pub fn expire(&mut self, now: u64) {
        self.matcher.expire(now, &mut self.counters);
        self.streams.expire(now);
    }

    /// What was seen, and what became of it.
    pub fn counters(&self) -> Counters {
        Counters { tcp: self.streams.counters(), ..self.counters }
    }

    /// How many queries wait for their answers.
    pub fn queries(&self) -> usize {
        self.matcher.len()
    }

    /// How many TCP streams are kept.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    fn frame(&mut self, packet: &Packet<'_>, frame: &Frame<'_>, sink: &mut impl Sink) {
        let Self { ports, matcher, streams, counters } = self;
        let Frame { source, destination, payload, missing, header } = *frame;
        let Packet { time, interface, .. } = *packet;
        if !ports.contains(&source.port) && !ports.contains(&destination.port) {
            counters.foreign += 1;
            return;
        }
        let seen = |cut| Seen { time, interface, source, destination, transport: header.transport(), cut };
        match header {
            Header::Udp => message(payload, &seen(missing > 0), ports, matcher, counters, sink),
            Header::Tcp { sequence, flags } => {
                let segment = Segment { time, source, destination, sequence, flags, payload, missing };
                streams.segment(&segment, &mut |bytes, cut| {
                    message(bytes, &seen(cut), ports, matcher, counters, sink);
                });
            }
        }
    }
}

/// Takes in one message.
fn message(
    bytes: &[u8],
    seen: &Seen,
    ports: &[u16],
    matcher: &mut Matcher,
    counters: &mut Counters,
    sink: &mut impl Sink,
) {
    counters.cut += u64::from(seen.cut);
    let message = match Message::parse(bytes) {
        Ok(message) => message,
        Err(Unusable::Uninteresting) => {
            counters.uninteresting += 1;
            return;
        }
        Err(Unusable::Bad) => {
            counters.bad_messages += 1;
            return;
        }
    };
    let serves = |end: Endpoint| ports.contains(&end.port);
    match message.is_response() {
        false if serves(seen.destination) => matcher.query(seen, &message, counters),
        true if serves(seen.source) => matcher.response(seen, &message, counters, sink),
        _ => counters.uninteresting += 1,
    }
}
