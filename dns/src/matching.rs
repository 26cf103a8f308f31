//! Answers to the queries that asked for them.
//!
//! An answer counts if a query waits for it: sent from where the answer goes to, to where it comes from, over the same
//! transport, with the same id and the same question. The first one counts, as it does for whoever asked.
//!
//! An answer without a query names nothing, even if the query turns up later: packets reach a capture in the order in
//! which this host handled them, so a query is always there before its answer, and an answer kept in case would be
//! room for forged ones.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::aged::{Aged, Place};
use crate::message::Kind;
use crate::{Address, Bounds, Counters, Endpoint, Message, Transport};

/// Names are known for addresses: an answer and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// When the answer was seen, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// When the query was seen first.
    pub asked: u64,
    /// Who asked, and gets the answer.
    pub client: Endpoint,
    /// Who was asked; for a query to a multicast group, who answered.
    pub server: Endpoint,
    /// What carried both.
    pub transport: Transport,
    /// The index of the interface that the query was first seen on: that nearest to whoever asked.
    pub interface: u32,
    /// The name asked for, written as [`Message::write_name`] does.
    pub name: Arc<str>,
    /// What was asked for.
    pub kind: Kind,
    /// Where it leads, in the order of the answer. Never empty.
    pub addresses: Box<[Address]>,
}

/// Takes what is learned.
pub trait Sink {
    /// A query for addresses was answered with some.
    fn learned(&mut self, learned: Learned);
}

impl<F: FnMut(Learned)> Sink for F {
    fn learned(&mut self, learned: Learned) {
        self(learned);
    }
}

/// Where a message was seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) time: u64,
    pub(crate) interface: u32,
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    pub(crate) transport: Transport,
    /// Whether the end of the message is missing.
    pub(crate) cut: bool,
}

/// The queries that wait.
#[derive(Debug)]
pub(crate) struct Matcher {
    waiting: Aged<Query>,
    /// Hashes of what was answered last, so that an answer that comes again is told from one that nobody asked for.
    answered: Aged<u64>,
    hasher: foldhash::fast::RandomState,
    most: usize,
    /// Nanoseconds.
    timeout: u64,
    /// Queries to a multicast group, which anyone may answer.
    to_groups: usize,
    /// The name at hand.
    name: String,
    /// The addresses at hand.
    addresses: Vec<Address>,
}

/// What an answer must agree with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    client: Endpoint,
    server: Endpoint,
    transport: Transport,
    id: u16,
    kind: Kind,
}

#[derive(Debug)]
struct Query {
    key: Key,
    name: Arc<str>,
    interface: u32,
    asked: u64,
    /// When it was sent last.
    sent: u64,
}

/// Answers that are remembered.
const MOST_ANSWERED: usize = 1024;

impl Matcher {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        Self {
            waiting: Aged::default(),
            answered: Aged::default(),
            hasher: foldhash::fast::RandomState::default(),
            most: bounds.queries.max(1),
            timeout: u64::try_from(bounds.query_timeout.as_nanos()).unwrap_or(u64::MAX),
            to_groups: 0,
            name: String::new(),
            addresses: Vec::new(),
        }
    }

    /// How many queries wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Takes in a query from a client to a server.
    pub(crate) fn query(&mut self, seen: &Seen, message: &Message<'_>, counters: &mut Counters) {
        counters.queries += 1;
        let key = Key {
            client: seen.source,
            server: group_or(seen.destination),
            transport: seen.transport,
            id: message.id(),
            kind: message.kind(),
        };
        let (hash, place) = self.find(&key, message);
        match place {
            Some(place) => {
                counters.repeated_queries += 1;
                self.waiting.get_mut(place).sent = seen.time;
                self.waiting.renew(place);
            }
            None => self.first(hash, key, seen, counters),
        }
    }

    /// Takes in an answer from a server to a client.
    pub(crate) fn response(
        &mut self,
        seen: &Seen,
        message: &Message<'_>,
        counters: &mut Counters,
        sink: &mut impl Sink,
    ) {
        counters.responses += 1;
        let (hash, place) = self.asked(seen, message);
        match place {
            None if self.answered.find(hash, |&other| other == hash).is_some() => counters.repeated_responses += 1,
            None => counters.unasked += 1,
            Some(place) if seen.time.saturating_sub(self.waiting.get(place).sent) > self.timeout => counters.late += 1,
            Some(place) => self.answer(hash, place, seen, message, counters, sink),
        }
    }

    /// Forgets queries that nobody has answered in time.
    pub(crate) fn expire(&mut self, now: u64, counters: &mut Counters) {
        while let Some(place) = self.waiting.oldest() {
            if now.saturating_sub(self.waiting.get(place).sent) <= self.timeout {
                break;
            }
            self.remove(place);
            counters.unanswered += 1;
        }
    }

    /// The query that an answer agrees with, and the answer's hash.
    fn asked(&mut self, seen: &Seen, message: &Message<'_>) -> (u64, Option<Place>) {
        let mut key = Key {
            client: seen.destination,
            server: seen.source,
            transport: seen.transport,
            id: message.id(),
            kind: message.kind(),
        };
        let (hash, place) = self.find(&key, message);
        if place.is_some() || self.to_groups == 0 {
            return (hash, place);
        }
        key.server.ip = ANY_MEMBER;
        (hash, self.find(&key, message).1)
    }

    fn find(&mut self, key: &Key, message: &Message<'_>) -> (u64, Option<Place>) {
        self.name.clear();
        message.write_name(&mut self.name);
        let hash = self.hasher.hash_one((key, self.name.as_str()));
        (hash, self.waiting.find(hash, |query| query.key == *key && *query.name == self.name))
    }

    /// A query that is new.
    fn first(&mut self, hash: u64, key: Key, seen: &Seen, counters: &mut Counters) {
        if self.waiting.len() >= self.most
            && let Some(oldest) = self.waiting.oldest()
        {
            self.remove(oldest);
            counters.evicted_queries += 1;
        }
        self.to_groups += usize::from(key.server.ip == ANY_MEMBER);
        let name = self.name.as_str().into();
        let Seen { time, interface, .. } = *seen;
        self.waiting.insert(hash, Query { key, name, interface, asked: time, sent: time });
    }

    fn answer(
        &mut self,
        hash: u64,
        place: Place,
        seen: &Seen,
        message: &Message<'_>,
        counters: &mut Counters,
        sink: &mut impl Sink,
    ) {
        self.addresses.clear();
        if message.rcode() == 0 {
            // A broken answer is no answer: whoever asked goes on waiting.
            let Ok(found) = message.addresses(seen.cut, &mut self.addresses) else {
                counters.bad_messages += 1;
                return;
            };
            counters.stray_addresses += u64::from(found.stray);
        }
        counters.truncated += u64::from(message.is_truncated());
        let query = self.remove(place);
        self.remember(hash);
        if self.addresses.is_empty() {
            counters.negative += u64::from(!message.is_truncated());
            return;
        }
        counters.learned += 1;
        sink.learned(Learned {
            time: seen.time,
            asked: query.asked,
            client: seen.destination,
            server: seen.source,
            transport: seen.transport,
            interface: query.interface,
            name: query.name,
            kind: query.key.kind,
            addresses: self.addresses.as_slice().into(),
        });
    }

    /// An answer has been taken.
    fn remember(&mut self, hash: u64) {
        if self.answered.len() >= MOST_ANSWERED
            && let Some(oldest) = self.answered.oldest()
        {
            self.answered.remove(oldest);
        }
        self.answered.insert(hash, hash);
    }

    fn remove(&mut self, place: Place) -> Query {
        let query = self.waiting.remove(place);
        self.to_groups -= usize::from(query.key.server.ip == ANY_MEMBER);
        query
    }
}

/// Stands for every member of a multicast group.
const ANY_MEMBER: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Members of a multicast group answer from their own addresses (RFC 4795, section 2.5; RFC 6762, section 6.7).
fn group_or(server: Endpoint) -> Endpoint {
    if server.ip.is_multicast() { Endpoint { ip: ANY_MEMBER, ..server } } else { server }
}

#[cfg(test)]
mod tests;
