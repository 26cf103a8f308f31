//! From packets to lookups, without I/O.

use crate::matcher::{Matcher, MessageContext};
use crate::message::{Completeness, MessageError};
use crate::packet::{PacketError, TransportHeader};
use crate::tcp::{Segment, Streams};
use crate::{Counters, Endpoint, Message, Options, Packet, ParsedPacket, Sink};

/// Reads packets, matches answers to queries, and hands the lookups to a [`Sink`].
///
/// It reads no clock: time comes with the packets and in [`expire`](Self::expire). Each network namespace needs a
/// tracker of its own, because the same address may belong to different hosts in different namespaces.
#[derive(Debug)]
pub struct Tracker {
    ports: Box<[u16]>,
    matcher: Matcher,
    streams: Streams,
    counters: Counters,
}

impl Tracker {
    /// A tracker that has seen no packets.
    pub fn new(options: &Options) -> Self {
        Self {
            ports: options.ports.as_slice().into(),
            matcher: Matcher::new(&options.bounds),
            streams: Streams::new(&options.bounds),
            counters: Counters::default(),
        }
    }

    /// Processes a packet. Packets must come in the order of their times.
    pub fn ingest(&mut self, packet: &Packet<'_>, sink: &mut impl Sink) {
        self.counters.packets += 1;
        match ParsedPacket::parse(packet) {
            Ok(parsed) => self.ingest_parsed(packet, &parsed, sink),
            Err(PacketError::NotUdpOrTcp) => self.counters.other_packets += 1,
            Err(PacketError::Malformed) => self.counters.malformed_packets += 1,
            Err(PacketError::Fragment) => self.counters.fragments += 1,
        }
    }

    /// Forgets queries and streams whose timeout is over. `now` is in nanoseconds of `CLOCK_MONOTONIC`. Calling it once
    /// a second is enough.
    pub fn expire(&mut self, now: u64) {
        self.matcher.expire(now, &mut self.counters);
        self.streams.expire(now);
    }

    /// What was seen so far, and why parts of it were not used.
    pub fn counters(&self) -> Counters {
        Counters { tcp: self.streams.counters(), ..self.counters }
    }

    /// How many queries wait for an answer.
    pub fn queries(&self) -> usize {
        self.matcher.len()
    }

    /// How many TCP streams there are.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Processes a packet of UDP or TCP.
    fn ingest_parsed(&mut self, packet: &Packet<'_>, parsed: &ParsedPacket<'_>, sink: &mut impl Sink) {
        let Self { ports, matcher, streams, counters } = self;
        let ParsedPacket { source, destination, payload, missing, header } = *parsed;
        let Packet { time, interface, .. } = *packet;
        if !ports.contains(&source.port) && !ports.contains(&destination.port) {
            counters.other_packets += 1;
            return;
        }
        let transport = header.transport();
        let context = |completeness| MessageContext { time, interface, source, destination, transport, completeness };
        match header {
            TransportHeader::Udp => {
                let completeness = if missing > 0 { Completeness::Partial } else { Completeness::Complete };
                match_message(payload, &context(completeness), ports, matcher, counters, sink);
            }
            TransportHeader::Tcp { sequence, flags } => {
                let segment = Segment { time, source, destination, sequence, flags, payload, missing };
                streams.ingest(&segment, &mut |bytes, completeness| {
                    match_message(bytes, &context(completeness), ports, matcher, counters, sink);
                });
            }
        }
    }
}

/// Parses a message and passes it to the matcher, if it is a query to a server or a response from one.
fn match_message(
    bytes: &[u8],
    context: &MessageContext,
    ports: &[u16],
    matcher: &mut Matcher,
    counters: &mut Counters,
    sink: &mut impl Sink,
) {
    counters.partial_messages += u64::from(context.completeness == Completeness::Partial);
    let message = match Message::parse(bytes) {
        Ok(message) => message,
        Err(MessageError::NotAddressQuery) => {
            counters.other_messages += 1;
            return;
        }
        Err(MessageError::Malformed) => {
            counters.malformed_messages += 1;
            return;
        }
    };
    let is_server = |endpoint: Endpoint| ports.contains(&endpoint.port);
    if message.is_response() && is_server(context.source) {
        matcher.response(context, &message, counters, sink);
    } else if !message.is_response() && is_server(context.destination) {
        matcher.query(context, &message, counters);
    } else {
        counters.other_messages += 1;
    }
}
