//! DNS over TCP (RFC 1035, section 4.2.2; RFC 7766): reassembles messages from segments.
//!
//! Each direction of a connection is a stream of its own, which begins with its SYN. A message that lies within one
//! segment is read in place. Only messages that are spread over several segments, and out-of-order segments, are copied.

use std::hash::BuildHasher;

use crate::lru::{Index, LruTable};
use crate::message::Completeness;
use crate::{Bounds, Endpoint, TcpCounters};

/// Control bits (RFC 9293, section 3.1).
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// The maximum number of out-of-order segments kept for a stream.
const MAX_OUT_OF_ORDER: usize = 8;
/// Segments that are this many bytes or more ahead of the expected sequence number are ignored: no DNS sender has as many
/// bytes in flight.
const MAX_AHEAD: u32 = 1 << 20;

/// A captured segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    /// Nanoseconds, by the capture's clock.
    pub(crate) time: u64,
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
    /// How many more bytes the payload has that were not captured.
    pub(crate) missing: usize,
}

/// Called with each message.
type OnMessage<'a> = dyn FnMut(&[u8], Completeness) + 'a;

/// All streams.
#[derive(Debug)]
pub(crate) struct Streams {
    streams: LruTable<Stream>,
    hasher: foldhash::fast::RandomState,
    max_streams: usize,
    /// The maximum size of a stream's incomplete message. All its out-of-order segments together have the same limit.
    max_bytes: usize,
    /// Nanoseconds.
    timeout: u64,
    counters: TcpCounters,
}

#[derive(Debug)]
struct Stream {
    source: Endpoint,
    destination: Endpoint,
    /// The time of the latest segment, in nanoseconds.
    time: u64,
    /// The sequence number of the first byte.
    first: u32,
    /// The sequence number of the next byte.
    next: u32,
    messages: MessageReader,
    out_of_order: Vec<OutOfOrder>,
}

/// A segment that waits until the bytes before it have come.
#[derive(Debug)]
struct OutOfOrder {
    sequence: u32,
    payload: Box<[u8]>,
    missing: usize,
}

impl Streams {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        Self {
            streams: LruTable::default(),
            hasher: foldhash::fast::RandomState::default(),
            max_streams: bounds.streams.max(1),
            max_bytes: bounds.stream_bytes,
            timeout: u64::try_from(bounds.stream_timeout.as_nanos()).unwrap_or(u64::MAX),
            counters: TcpCounters::default(),
        }
    }

    pub(crate) fn counters(&self) -> TcpCounters {
        self.counters
    }

    /// How many streams there are.
    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Processes a segment, and hands over every message that it completes.
    pub(crate) fn ingest(&mut self, segment: &Segment<'_>, on_message: &mut OnMessage<'_>) {
        let Some(index) = self.find_or_open(segment) else { return };
        let stream = self.streams.get_mut(index);
        stream.time = segment.time;
        let ended = if segment.flags & RST != 0 {
            // RFC 5961, section 3.2: a reset is accepted only if it has the expected sequence number, so that an attacker who
            // cannot see the stream cannot end it.
            segment.sequence == stream.next
        } else {
            match stream.ingest(segment, self.max_bytes, &mut self.counters, on_message) {
                Ok(()) => segment.flags & FIN != 0 && stream.next == segment.end(),
                Err(Unrecoverable) => {
                    self.counters.broken_streams += 1;
                    true
                }
            }
        };
        if ended {
            self.streams.remove(index);
        } else {
            self.streams.touch(index);
        }
    }

    /// Forgets streams that have been idle for too long.
    pub(crate) fn expire(&mut self, now: u64) {
        while let Some(index) = self.streams.oldest() {
            if now.saturating_sub(self.streams.get(index).time) <= self.timeout {
                break;
            }
            self.streams.remove(index);
            self.counters.idle_streams += 1;
        }
    }

    /// Finds the segment's stream. A SYN opens one; a SYN with another sequence number restarts it, a repeated SYN does not.
    fn find_or_open(&mut self, segment: &Segment<'_>) -> Option<Index> {
        let ends = (segment.source, segment.destination);
        let hash = self.hasher.hash_one(ends);
        let index = self.streams.find(hash, |stream| (stream.source, stream.destination) == ends);
        if segment.flags & SYN == 0 {
            let has_data = !segment.payload.is_empty() || segment.missing > 0;
            self.counters.midstream_segments += u64::from(index.is_none() && has_data);
            return index;
        }
        let first = segment.sequence.wrapping_add(1);
        if let Some(index) = index {
            let stream = self.streams.get_mut(index);
            if stream.first != first {
                *stream = Stream::new(segment, first);
            }
            return Some(index);
        }
        if self.streams.len() >= self.max_streams
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

    /// The sequence number of the byte after the payload.
    fn end(&self) -> u32 {
        self.start().wrapping_add(sequence_length(self.payload, self.missing))
    }
}

/// How many sequence numbers a payload takes.
fn sequence_length(payload: &[u8], missing: usize) -> u32 {
    u32::try_from(payload.len() + missing).unwrap_or(u32::MAX)
}

impl Stream {
    fn new(segment: &Segment<'_>, first: u32) -> Self {
        let Segment { source, destination, time, .. } = *segment;
        let messages = MessageReader::default();
        Self { source, destination, time, first, next: first, messages, out_of_order: Vec::new() }
    }

    fn ingest(
        &mut self,
        segment: &Segment<'_>,
        max_bytes: usize,
        counters: &mut TcpCounters,
        on_message: &mut OnMessage<'_>,
    ) -> Result<(), Unrecoverable> {
        if segment.payload.is_empty() && segment.missing == 0 {
            return Ok(());
        }
        if self.is_ahead(segment.start()) {
            counters.out_of_order_segments += 1;
            return self.keep(segment, max_bytes);
        }
        self.advance(segment.start(), segment.payload, segment.missing, max_bytes, on_message)?;
        while let Some(at) = self.out_of_order.iter().position(|kept| !self.is_ahead(kept.sequence)) {
            let kept = self.out_of_order.swap_remove(at);
            self.advance(kept.sequence, &kept.payload, kept.missing, max_bytes, on_message)?;
        }
        Ok(())
    }

    /// Whether a segment starts after the next byte, by less than `MAX_AHEAD`. One further ahead is forged or very old:
    /// `advance` takes it for one that was read already, and ignores it.
    fn is_ahead(&self, sequence: u32) -> bool {
        (1..MAX_AHEAD).contains(&sequence.wrapping_sub(self.next))
    }

    /// Keeps an out-of-order segment. Fails if too many are kept already.
    fn keep(&mut self, segment: &Segment<'_>, max_bytes: usize) -> Result<(), Unrecoverable> {
        let kept: usize = self.out_of_order.iter().map(|kept| kept.payload.len()).sum();
        if self.out_of_order.len() == MAX_OUT_OF_ORDER || kept + segment.payload.len() > max_bytes {
            return Err(Unrecoverable);
        }
        let (sequence, missing) = (segment.start(), segment.missing);
        self.out_of_order.push(OutOfOrder { sequence, payload: segment.payload.into(), missing });
        Ok(())
    }

    /// Reads the bytes of a payload from `next` on. The payload must not start after `next`.
    fn advance(
        &mut self,
        sequence: u32,
        payload: &[u8],
        missing: usize,
        max_bytes: usize,
        on_message: &mut OnMessage<'_>,
    ) -> Result<(), Unrecoverable> {
        let already_read = self.next.wrapping_sub(sequence);
        if already_read >= sequence_length(payload, missing) {
            return Ok(());
        }
        let new = payload.get(already_read as usize..).unwrap_or_default();
        let missing = payload.len() + missing - already_read as usize - new.len();
        self.next = self.next.wrapping_add(sequence_length(new, missing));
        self.messages.read(new, max_bytes, on_message);
        self.messages.skip_missing(missing, on_message)
    }
}

/// A stream cannot be read any further: bytes are missing, and where its next message begins is not known.
struct Unrecoverable;

/// Splits a stream into messages.
#[derive(Debug, Default)]
struct MessageReader {
    /// The beginning of an incomplete message, including its length prefix.
    partial: Vec<u8>,
    /// How many bytes to skip before the next message.
    skip: usize,
}

/// The size of the length field before each message.
const PREFIX: usize = 2;

impl MessageReader {
    /// Reads bytes of the stream.
    fn read(&mut self, mut bytes: &[u8], max_bytes: usize, on_message: &mut OnMessage<'_>) {
        while !bytes.is_empty() {
            bytes = if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                &bytes[skipped..]
            } else if self.partial.is_empty() {
                self.start_message(bytes, on_message)
            } else {
                self.continue_message(bytes, max_bytes, on_message)
            };
        }
    }

    /// Reads from the beginning of a message. Returns the bytes that are left.
    fn start_message<'a>(&mut self, bytes: &'a [u8], on_message: &mut OnMessage<'_>) -> &'a [u8] {
        let whole = bytes.split_at_checked(PREFIX).and_then(|(prefix, rest)| rest.split_at_checked(length(prefix)));
        let Some((message, rest)) = whole else {
            // A non-empty `partial` sends the rest to `continue_message`.
            self.partial.push(bytes[0]);
            return &bytes[1..];
        };
        on_message(message, Completeness::Complete);
        rest
    }

    /// Reads more of the message in `partial`. Returns the bytes that are left.
    fn continue_message<'a>(&mut self, bytes: &'a [u8], max_bytes: usize, on_message: &mut OnMessage<'_>) -> &'a [u8] {
        if self.partial.len() < PREFIX {
            self.partial.push(bytes[0]);
            return self.finish_if_complete(&bytes[1..], max_bytes, on_message);
        }
        let wanted = PREFIX + length(&self.partial).min(max_bytes);
        let taken = (wanted - self.partial.len()).min(bytes.len());
        self.partial.extend_from_slice(&bytes[..taken]);
        self.finish_if_complete(&bytes[taken..], max_bytes, on_message)
    }

    /// Hands over the message in `partial` if it is complete or has reached `max_bytes`. Returns `rest`.
    fn finish_if_complete<'a>(&mut self, rest: &'a [u8], max_bytes: usize, on_message: &mut OnMessage<'_>) -> &'a [u8] {
        let length = length(&self.partial);
        if self.partial.len() == PREFIX + length.min(max_bytes) {
            self.skip = length.saturating_sub(max_bytes);
            let completeness = if self.skip > 0 { Completeness::Partial } else { Completeness::Complete };
            on_message(&self.partial[PREFIX..], completeness);
            self.release_partial();
        }
        rest
    }

    /// Skips bytes of the stream that were not captured.
    fn skip_missing(&mut self, missing: usize, on_message: &mut OnMessage<'_>) -> Result<(), Unrecoverable> {
        if missing == 0 {
            return Ok(());
        }
        if self.partial.len() >= PREFIX {
            self.skip = length(&self.partial) - (self.partial.len() - PREFIX);
            on_message(&self.partial[PREFIX..], Completeness::Partial);
            self.release_partial();
        }
        // Where the next message begins is known only if all missing bytes belong to the current one.
        // After a single byte of a length field, `skip` is 0, so this fails, too.
        self.skip = self.skip.checked_sub(missing).ok_or(Unrecoverable)?;
        Ok(())
    }

    /// Makes room for the next message, and frees the memory that a long one took.
    fn release_partial(&mut self) {
        self.partial = Vec::new();
    }
}

/// A message's length, from its prefix.
fn length(prefix: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([prefix[0], prefix[1]]))
}

#[cfg(test)]
mod tests;
