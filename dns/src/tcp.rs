//! DNS over TCP (RFC 1035, section 4.2.2; RFC 7766): segments to messages, within bounds.
//!
//! Each direction of a connection is a stream of its own, known from its SYN on. A message that lies in one segment is
//! read where it lies; only one that is spread over several is copied.

use std::hash::BuildHasher;

use crate::aged::{Aged, Place};
use crate::{Bounds, Endpoint, TcpCounters};

/// Control bits (RFC 9293, section 3.1).
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// Early segments kept for a stream.
const MOST_EARLY: usize = 8;
/// How far ahead of what is expected a segment may be; no DNS sender has more on its way.
const MOST_AHEAD: u32 = 1 << 20;

/// A segment as captured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) time: u64,
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
    /// Bytes of payload after those that were not captured.
    pub(crate) missing: usize,
}

/// The streams at hand.
#[derive(Debug)]
pub(crate) struct Streams {
    streams: Aged<Stream>,
    hasher: foldhash::fast::RandomState,
    most: usize,
    most_bytes: usize,
    /// Nanoseconds.
    timeout: u64,
    counters: TcpCounters,
}

#[derive(Debug)]
struct Stream {
    source: Endpoint,
    destination: Endpoint,
    /// When it last had a segment.
    time: u64,
    /// The sequence number of the next byte.
    next: u32,
    messages: Messages,
    early: Vec<Early>,
}

#[derive(Debug)]
struct Early {
    sequence: u32,
    payload: Box<[u8]>,
    missing: usize,
}

impl Streams {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        Self {
            streams: Aged::default(),
            hasher: foldhash::fast::RandomState::default(),
            most: bounds.streams.max(1),
            most_bytes: bounds.stream_bytes,
            timeout: u64::try_from(bounds.stream_timeout.as_nanos()).unwrap_or(u64::MAX),
            counters: TcpCounters::default(),
        }
    }

    pub(crate) fn counters(&self) -> TcpCounters {
        self.counters
    }

    /// How many streams are kept.
    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Takes in a segment; calls `each` for every message that becomes whole with it, telling whether its end is
    /// missing.
    pub(crate) fn segment(&mut self, segment: &Segment<'_>, each: &mut dyn FnMut(&[u8], bool)) {
        let Some(place) = self.stream(segment) else { return };
        let stream = self.streams.get_mut(place);
        stream.time = segment.time;
        let ended = if segment.flags & RST != 0 {
            // RFC 5961, section 3.2: only this one is believed, so that a blind one ends nothing.
            segment.sequence == stream.next
        } else {
            match stream.take(segment, self.most_bytes, &mut self.counters, each) {
                Ok(()) => segment.flags & FIN != 0 && stream.next == segment.end(),
                Err(Broken) => {
                    self.counters.broken_streams += 1;
                    true
                }
            }
        };
        if ended {
            self.streams.remove(place);
        } else {
            self.streams.renew(place);
        }
    }

    /// Forgets streams that have been idle for too long.
    pub(crate) fn expire(&mut self, now: u64) {
        while let Some(place) = self.streams.oldest() {
            if now.saturating_sub(self.streams.get(place).time) <= self.timeout {
                break;
            }
            self.streams.remove(place);
            self.counters.idle_streams += 1;
        }
    }

    /// The segment's stream. SYN begins one, or begins it anew.
    fn stream(&mut self, segment: &Segment<'_>) -> Option<Place> {
        let ends = (segment.source, segment.destination);
        let hash = self.hasher.hash_one(ends);
        let place = self.streams.find(hash, |stream| (stream.source, stream.destination) == ends);
        if segment.flags & SYN == 0 {
            let data = !segment.payload.is_empty() || segment.missing > 0;
            self.counters.midstream_segments += u64::from(place.is_none() && data);
            return place;
        }
        let first = segment.sequence.wrapping_add(1);
        if let Some(place) = place {
            let stream = self.streams.get_mut(place);
            if stream.next != first {
                *stream = Stream::new(segment, first);
            }
            return Some(place);
        }
        if self.streams.len() >= self.most
            && let Some(oldest) = self.streams.oldest()
        {
            self.streams.remove(oldest);
            self.counters.evicted_streams += 1;
        }
        Some(self.streams.insert(hash, Stream::new(segment, first)))
    }
}

impl Segment<'_> {
    /// The sequence number of the first byte of payload.
    fn start(&self) -> u32 {
        self.sequence.wrapping_add(u32::from(self.flags & SYN != 0))
    }

    /// The sequence number behind the payload.
    fn end(&self) -> u32 {
        self.start().wrapping_add(span(self.payload, self.missing))
    }
}

/// How far a payload moves the stream.
fn span(payload: &[u8], missing: usize) -> u32 {
    u32::try_from(payload.len() + missing).unwrap_or(u32::MAX)
}

impl Stream {
    fn new(segment: &Segment<'_>, next: u32) -> Self {
        let Segment { source, destination, time, .. } = *segment;
        Self { source, destination, time, next, messages: Messages::default(), early: Vec::new() }
    }

    fn take(
        &mut self,
        segment: &Segment<'_>,
        most_bytes: usize,
        counters: &mut TcpCounters,
        each: &mut dyn FnMut(&[u8], bool),
    ) -> Result<(), Broken> {
        if segment.payload.is_empty() && segment.missing == 0 {
            return Ok(());
        }
        if self.is_early(segment.start()) {
            counters.early_segments += 1;
            return self.keep(segment, most_bytes);
        }
        self.advance(segment.start(), segment.payload, segment.missing, most_bytes, each)?;
        while let Some(at) = self.early.iter().position(|early| !self.is_early(early.sequence)) {
            let early = self.early.swap_remove(at);
            self.advance(early.sequence, &early.payload, early.missing, most_bytes, each)?;
        }
        Ok(())
    }

    /// Whether something is still missing before this.
    fn is_early(&self, sequence: u32) -> bool {
        (1..MOST_AHEAD).contains(&sequence.wrapping_sub(self.next))
    }

    /// Keeps a segment that came too early.
    fn keep(&mut self, segment: &Segment<'_>, most_bytes: usize) -> Result<(), Broken> {
        let kept: usize = self.early.iter().map(|early| early.payload.len()).sum();
        if self.early.len() == MOST_EARLY || kept + segment.payload.len() > most_bytes {
            return Err(Broken);
        }
        let (sequence, missing) = (segment.start(), segment.missing);
        self.early.push(Early { sequence, payload: segment.payload.into(), missing });
        Ok(())
    }

    /// Takes in bytes that begin at or before what is expected, as far as they are new.
    fn advance(
        &mut self,
        sequence: u32,
        payload: &[u8],
        missing: usize,
        most_bytes: usize,
        each: &mut dyn FnMut(&[u8], bool),
    ) -> Result<(), Broken> {
        let known = self.next.wrapping_sub(sequence);
        if known >= span(payload, missing) {
            return Ok(());
        }
        let fresh = payload.get(known as usize..).unwrap_or_default();
        let missing = payload.len() + missing - known as usize - fresh.len();
        self.next = self.next.wrapping_add(span(fresh, missing));
        self.messages.bytes(fresh, most_bytes, each);
        self.messages.hole(missing, each)
    }
}

/// The beginning of a message was lost, and with it where the next one begins.
struct Broken;

/// Cuts a stream into messages.
#[derive(Debug, Default)]
struct Messages {
    /// The beginning of a message that is not whole, with its length before it.
    partial: Vec<u8>,
    /// How many bytes to pass over before the next message.
    skip: usize,
}

/// Each message comes behind its length in two bytes.
const PREFIX: usize = 2;

impl Messages {
    fn bytes(&mut self, mut bytes: &[u8], most: usize, each: &mut dyn FnMut(&[u8], bool)) {
        while !bytes.is_empty() {
            bytes = if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                &bytes[skipped..]
            } else if self.partial.is_empty() {
                self.begin(bytes, each)
            } else {
                self.go_on(bytes, most, each)
            };
        }
    }

    /// At the beginning of a message. Gives what is left of the bytes.
    fn begin<'a>(&mut self, bytes: &'a [u8], each: &mut dyn FnMut(&[u8], bool)) -> &'a [u8] {
        let whole = bytes.split_at_checked(PREFIX).and_then(|(prefix, rest)| rest.split_at_checked(length(prefix)));
        let Some((message, rest)) = whole else {
            // One byte at least, so that what follows belongs to a message that has begun.
            self.partial.push(bytes[0]);
            return &bytes[1..];
        };
        each(message, false);
        rest
    }

    /// Within a message. Gives what is left of the bytes.
    fn go_on<'a>(&mut self, bytes: &'a [u8], most: usize, each: &mut dyn FnMut(&[u8], bool)) -> &'a [u8] {
        if self.partial.len() < PREFIX {
            self.partial.push(bytes[0]);
            return self.end_if_whole(&bytes[1..], most, each);
        }
        let wanted = PREFIX + length(&self.partial).min(most);
        let taken = (wanted - self.partial.len()).min(bytes.len());
        self.partial.extend_from_slice(&bytes[..taken]);
        self.end_if_whole(&bytes[taken..], most, each)
    }

    /// Gives the message if all that is wanted of it is there.
    fn end_if_whole<'a>(&mut self, rest: &'a [u8], most: usize, each: &mut dyn FnMut(&[u8], bool)) -> &'a [u8] {
        let length = length(&self.partial);
        if self.partial.len() == PREFIX + length.min(most) {
            self.skip = length.saturating_sub(most);
            each(&self.partial[PREFIX..], self.skip > 0);
            self.end();
        }
        rest
    }

    /// Bytes follow that were not captured.
    fn hole(&mut self, missing: usize, each: &mut dyn FnMut(&[u8], bool)) -> Result<(), Broken> {
        if missing == 0 {
            return Ok(());
        }
        if self.partial.len() >= PREFIX {
            self.skip = length(&self.partial) - (self.partial.len() - PREFIX);
            each(&self.partial[PREFIX..], true);
            self.end();
        }
        // The hole must end within the message it began in, or at its end.
        self.skip = self.skip.checked_sub(missing).ok_or(Broken)?;
        if self.partial.is_empty() { Ok(()) } else { Err(Broken) }
    }

    /// Makes room for the next message. What a long one needed is given back.
    fn end(&mut self) {
        self.partial = Vec::new();
    }
}

fn length(prefix: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([prefix[0], prefix[1]]))
}

#[cfg(test)]
mod tests;
