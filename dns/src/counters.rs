//! Counters of what was seen, and of what was not used.

/// What a [`Tracker`](crate::Tracker) has seen since it was created, and why it did not use parts of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// All packets.
    pub packets: u64,
    /// Packets that are neither UDP nor TCP over IP, or have none of the ports.
    pub other_packets: u64,
    /// Packets whose headers are truncated or contradict each other.
    pub malformed_packets: u64,
    /// IP fragments that do not hold the whole transport header. They are not read.
    pub fragments: u64,
    /// Queries for addresses.
    pub queries: u64,
    /// Responses to queries for addresses.
    pub responses: u64,
    /// Messages that are not about addresses (MX, TXT, PTR, updates, …), do not have exactly one question, or go in the
    /// wrong direction: a query that a server sends, or a response that a server receives.
    pub other_messages: u64,
    /// Messages that violate the format, or that would take too much work to read.
    pub malformed_messages: u64,
    /// Messages whose end was not captured. Their beginning is used.
    pub partial_messages: u64,
    /// Queries that came again before an answer: sent again, or captured on two interfaces.
    pub repeated_queries: u64,
    /// Responses to queries that were already answered: captured on two interfaces, sent twice, or sent by another
    /// member of the multicast group that the query went to.
    pub repeated_responses: u64,
    /// Responses without a query: forged, or the query was already forgotten, or it was sent before the capture started.
    pub unsolicited_responses: u64,
    /// Responses that came after [`query_timeout`](crate::Bounds::query_timeout), before the query was forgotten.
    pub late_responses: u64,
    /// Responses that lead to no address, except truncated ones: there is no such name, it has no such addresses, or the
    /// server reports an error (SERVFAIL, REFUSED, …).
    pub negative_responses: u64,
    /// Responses with the truncation bit (TC), after which the client may send its query again over TCP.
    pub truncated_responses: u64,
    /// Address records that the question does not lead to. They are ignored.
    pub unrelated_addresses: u64,
    /// Queries that were answered with addresses.
    pub lookups: u64,
    /// Queries that were evicted by newer ones.
    pub evicted_queries: u64,
    /// Queries that were forgotten because no answer came in time.
    pub unanswered_queries: u64,
    /// Counters of TCP streams.
    pub tcp: TcpCounters,
}

/// Counters of TCP streams. A connection has two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpCounters {
    /// Segments with data of streams that are not followed: their SYN was not captured, or they were given up.
    pub midstream_segments: u64,
    /// Segments that came before an earlier one of their stream.
    pub out_of_order_segments: u64,
    /// Streams that were given up because too many segments waited for a missing one, or because it was not known where
    /// the next message begins.
    pub broken_streams: u64,
    /// Streams that were evicted by newer ones.
    pub evicted_streams: u64,
    /// Streams that were idle for too long.
    pub idle_streams: u64,
}
