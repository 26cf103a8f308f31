//! Matches answers to queries.
//!
//! An answer counts only if a query is pending that matches it: from the answer's destination to its source, over the same
//! transport, with the same id and the same question. Only the first answer to a query counts, because it is the one
//! that the client takes.
//!
//! An answer without a query is not kept, even though the query might be captured later. Packets reach a capture in the
//! order in which this host handles them, so a query is always captured before its answer. Keeping answers would only
//! let forged ones in.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::lru::{Index, LruTable};
use crate::message::{Completeness, QueryType};
use crate::{Address, Bounds, Counters, Endpoint, Message, Transport};

/// A query for addresses, and the addresses in its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// When the answer was captured, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// When the query was first captured, in nanoseconds of `CLOCK_MONOTONIC`.
    pub query_time: u64,
    /// The client that sent the query and gets the answer.
    pub client: Endpoint,
    /// The server that answered. The query went to it too, or to a multicast group that it is a member of.
    pub server: Endpoint,
    /// The transport of query and answer.
    pub transport: Transport,
    /// The index of the interface where the query was first captured. Of all interfaces that it passes, this is the
    /// nearest to the client.
    pub interface: u32,
    /// The id of query and answer (RFC 1035, section 4.1.1).
    pub id: u16,
    /// The name in the query, written as [`Message::write_name`] does.
    pub name: Arc<str>,
    /// The type of the query.
    pub query_type: QueryType,
    /// The addresses, in the order of the answer. Never empty.
    pub addresses: Box<[Address]>,
}

/// Receives lookups.
pub trait Sink {
    /// A query for addresses was answered with at least one.
    fn lookup(&mut self, lookup: Lookup);
}

impl<F: FnMut(Lookup)> Sink for F {
    fn lookup(&mut self, lookup: Lookup) {
        self(lookup);
    }
}

/// When and where a message was captured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MessageContext {
    pub(crate) time: u64,
    pub(crate) interface: u32,
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    pub(crate) transport: Transport,
    pub(crate) completeness: Completeness,
}

/// The queries that wait for an answer.
#[derive(Debug)]
pub(crate) struct Matcher {
    pending: LruTable<Query>,
    /// The queries that were answered last. With them, a repeated answer does not count as unsolicited.
    answered: LruTable<AnsweredQuery>,
    hasher: foldhash::fast::RandomState,
    max_queries: usize,
    /// Nanoseconds.
    timeout: u64,
    /// How many pending and answered queries went to a multicast group, whose members answer from their own addresses.
    multicast_queries: usize,
    /// Scratch space for the name of the current message.
    name: String,
    /// Scratch space for the addresses of the current message.
    addresses: Vec<Address>,
}

/// What an answer has in common with its query, except the name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct QueryKey {
    client: Endpoint,
    server: Endpoint,
    transport: Transport,
    id: u16,
    query_type: QueryType,
}

#[derive(Debug)]
struct Query {
    key: QueryKey,
    name: Arc<str>,
    interface: u32,
    first_sent: u64,
    last_sent: u64,
}

impl Query {
    fn is_multicast(&self) -> bool {
        self.key.server.ip == ANY_MEMBER
    }
}

/// What is remembered of a query after its answer.
#[derive(Debug)]
struct AnsweredQuery {
    /// The hash of its key and name.
    hash: u64,
    is_multicast: bool,
}

/// What is known of the query that an answer belongs to.
#[derive(Debug)]
enum QueryState {
    /// It waits for an answer. `hash` is that of its key and name.
    Pending { hash: u64, index: Index },
    /// It has been answered.
    Answered,
    /// It was never captured, or has been forgotten.
    Unknown,
}

/// How many queries are remembered in `Matcher::answered`.
const MAX_ANSWERED: usize = 1024;

impl Matcher {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        Self {
            pending: LruTable::default(),
            answered: LruTable::default(),
            hasher: foldhash::fast::RandomState::default(),
            max_queries: bounds.queries.max(1),
            timeout: u64::try_from(bounds.query_timeout.as_nanos()).unwrap_or(u64::MAX),
            multicast_queries: 0,
            name: String::new(),
            addresses: Vec::new(),
        }
    }

    /// How many queries wait.
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Adds a query from a client to a server.
    pub(crate) fn query(&mut self, context: &MessageContext, message: &Message<'_>, counters: &mut Counters) {
        counters.queries += 1;
        let key = QueryKey {
            client: context.source,
            server: any_member_if_multicast(context.destination),
            transport: context.transport,
            id: message.id(),
            query_type: message.query_type(),
        };
        let (hash, index) = self.find(&key, message);
        match index {
            Some(index) => {
                counters.repeated_queries += 1;
                self.pending.get_mut(index).last_sent = context.time;
                self.pending.touch(index);
            }
            None => self.insert(hash, key, context, counters),
        }
    }

    /// Finds the query of a response from a server to a client.
    pub(crate) fn response(
        &mut self,
        context: &MessageContext,
        message: &Message<'_>,
        counters: &mut Counters,
        sink: &mut impl Sink,
    ) {
        counters.responses += 1;
        match self.find_query_of(context, message) {
            QueryState::Pending { index, .. } if self.is_overdue(index, context.time) => counters.late_responses += 1,
            QueryState::Pending { hash, index } => self.answer(hash, index, context, message, counters, sink),
            QueryState::Answered => counters.repeated_responses += 1,
            QueryState::Unknown => counters.unsolicited_responses += 1,
        }
    }

    /// Forgets queries that were not answered in time.
    pub(crate) fn expire(&mut self, now: u64, counters: &mut Counters) {
        while let Some(index) = self.pending.oldest() {
            if !self.is_overdue(index, now) {
                break;
            }
            self.remove(index);
            counters.unanswered_queries += 1;
        }
    }

    fn is_overdue(&self, index: Index, now: u64) -> bool {
        now.saturating_sub(self.pending.get(index).last_sent) > self.timeout
    }

    /// The state of the query that an answer belongs to.
    fn find_query_of(&mut self, context: &MessageContext, message: &Message<'_>) -> QueryState {
        let mut key = QueryKey {
            client: context.destination,
            server: context.source,
            transport: context.transport,
            id: message.id(),
            query_type: message.query_type(),
        };
        let (hash, index) = self.find(&key, message);
        if let Some(index) = index {
            return QueryState::Pending { hash, index };
        }
        let mut is_answered = self.is_answered(hash);
        if self.multicast_queries > 0 {
            key.server.ip = ANY_MEMBER;
            let (hash, index) = self.find(&key, message);
            if let Some(index) = index {
                return QueryState::Pending { hash, index };
            }
            is_answered |= self.is_answered(hash);
        }
        if is_answered { QueryState::Answered } else { QueryState::Unknown }
    }

    fn is_answered(&self, hash: u64) -> bool {
        self.answered.find(hash, |query| query.hash == hash).is_some()
    }

    fn find(&mut self, key: &QueryKey, message: &Message<'_>) -> (u64, Option<Index>) {
        self.name.clear();
        message.write_name(&mut self.name);
        let hash = self.hasher.hash_one((key, self.name.as_str()));
        (hash, self.pending.find(hash, |query| query.key == *key && *query.name == self.name))
    }

    fn insert(&mut self, hash: u64, key: QueryKey, context: &MessageContext, counters: &mut Counters) {
        if self.pending.len() >= self.max_queries
            && let Some(oldest) = self.pending.oldest()
        {
            self.remove(oldest);
            counters.evicted_queries += 1;
        }
        self.multicast_queries += usize::from(key.server.ip == ANY_MEMBER);
        let name = self.name.as_str().into();
        let MessageContext { time, interface, .. } = *context;
        self.pending.insert(hash, Query { key, name, interface, first_sent: time, last_sent: time });
    }

    fn answer(
        &mut self,
        hash: u64,
        index: Index,
        context: &MessageContext,
        message: &Message<'_>,
        counters: &mut Counters,
        sink: &mut impl Sink,
    ) {
        self.addresses.clear();
        if message.rcode() == 0 {
            // The client ignores a malformed answer and goes on waiting.
            let Ok(unrelated) = message.addresses(context.completeness, &mut self.addresses) else {
                counters.malformed_messages += 1;
                return;
            };
            counters.unrelated_addresses += u64::from(unrelated.addresses);
        }
        counters.truncated_responses += u64::from(message.is_truncated());
        let query = self.remove(index);
        self.remember_answered(AnsweredQuery { hash, is_multicast: query.is_multicast() });
        if self.addresses.is_empty() {
            counters.negative_responses += u64::from(!message.is_truncated());
            return;
        }
        counters.lookups += 1;
        sink.lookup(Lookup {
            time: context.time,
            query_time: query.first_sent,
            client: context.destination,
            server: context.source,
            transport: context.transport,
            interface: query.interface,
            id: query.key.id,
            name: query.name,
            query_type: query.key.query_type,
            addresses: self.addresses.as_slice().into(),
        });
    }

    fn remember_answered(&mut self, query: AnsweredQuery) {
        if self.answered.len() >= MAX_ANSWERED
            && let Some(oldest) = self.answered.oldest()
        {
            self.multicast_queries -= usize::from(self.answered.remove(oldest).is_multicast);
        }
        self.multicast_queries += usize::from(query.is_multicast);
        self.answered.insert(query.hash, query);
    }

    fn remove(&mut self, index: Index) -> Query {
        let query = self.pending.remove(index);
        self.multicast_queries -= usize::from(query.is_multicast());
        query
    }
}

/// Stands for every member of a multicast group.
const ANY_MEMBER: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Members of a multicast group answer from their own addresses (RFC 4795, section 2.5; RFC 6762, section 6.7).
fn any_member_if_multicast(server: Endpoint) -> Endpoint {
    if server.ip.is_multicast() { Endpoint { ip: ANY_MEMBER, ..server } } else { server }
}

#[cfg(test)]
mod tests;
