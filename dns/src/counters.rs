//! What was seen, and what became of what was not used.

/// What a [`Tracker`](crate::Tracker) has seen, and what became of what it did not use. All counts are since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Packets given.
    pub packets: u64,
    /// Packets that are neither UDP nor TCP over IP, or not on the ports.
    pub foreign: u64,
    /// Packets whose headers contradict themselves.
    pub bad_packets: u64,
    /// IP fragments without a transport header of their own: what they carry is not read.
    pub fragments: u64,
    /// Queries for addresses.
    pub queries: u64,
    /// Responses to queries for addresses.
    pub responses: u64,
    /// Messages that ask for no addresses (MX, TXT, PTR, updates, …), or not exactly one question.
    pub uninteresting: u64,
    /// Messages that break the format.
    pub bad_messages: u64,
    /// Messages of which the end was not captured; what was there is used.
    pub cut: u64,
    /// Queries that were sent again while waiting.
    pub repeated_queries: u64,
    /// Responses to queries that had already been answered: seen on two interfaces, or sent twice.
    pub repeated_responses: u64,
    /// Responses that nobody is known to have asked for: forged, late, or the query was before our time.
    pub unasked: u64,
    /// Responses that came after [`query_timeout`](crate::Bounds::query_timeout).
    pub late: u64,
    /// Responses that say that there is no such name or no such address.
    pub negative: u64,
    /// Responses that were truncated, so that the asker may ask again over TCP.
    pub truncated: u64,
    /// Address records that the question does not lead to: their names are ignored.
    pub stray_addresses: u64,
    /// Responses that named addresses.
    pub learned: u64,
    /// Queries that gave way to newer ones.
    pub evicted_queries: u64,
    /// Queries that nobody answered in time.
    pub unanswered: u64,
    /// What became of TCP streams.
    pub tcp: TcpCounters,
}

/// What became of TCP streams, a connection having two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpCounters {
    /// Segments of streams whose beginning was not seen, or that were given up.
    pub midstream_segments: u64,
    /// Segments that came too early and were kept for later.
    pub early_segments: u64,
    /// Streams given up: a hole was not filled, or the beginning of a message was lost.
    pub broken_streams: u64,
    /// Streams that gave way to newer ones.
    pub evicted_streams: u64,
    /// Streams that were idle for too long.
    pub idle_streams: u64,
}
