//! Which of the kernel's counts have already been added to flows.
//!
//! This is kept outside the flows: an entry of the kernel lives as long as its socket, which may have one flow after the other.

use std::collections::BTreeMap;

use crate::model::flow::{Counters, Endpoint};
use crate::model::kernel_address::SockAddress;
use crate::model::time::MonotonicTime;
use crate::model::totals::{Conversation, TcpTotals, Totals};

/// The kernel's counts, by conversation.
#[derive(Debug)]
pub struct Counted {
    conversations: BTreeMap<Conversation, Known>,
    limit: usize,
    /// Counts that found no room.
    pub refused: u64,
}

/// What is known of a conversation.
#[derive(Debug)]
struct Known {
    /// The counts that were added to flows.
    taken: Totals,
    /// Later counts, whose flow is not known yet.
    waiting: Option<Totals>,
}

/// How counts relate to those of the same conversation that were taken before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// They are the first of their entry.
    First,
    /// Counts of the same entry were taken before; these are the last of them.
    After(Totals),
    /// They are of an earlier entry.
    Outdated,
}

/// What the kernel has counted since its counts were last taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewCounts {
    /// What left.
    pub sent: Counters,
    /// What arrived.
    pub received: Counters,
    /// How many of the received packets are known only from the socket's segment counter, not from a packet.
    pub merged: u64,
    /// Whether the headers of some received segments may have had another length than was assumed.
    pub merged_unsure: bool,
    /// The time of the last packet.
    pub last: MonotonicTime,
    /// See [`Totals::tcp`].
    pub tcp: Option<TcpTotals>,
}

impl NewCounts {
    /// What was counted between two readings of one entry; `None` if that is nothing. The readings may come in the wrong order.
    pub fn between(before: &Totals, totals: &Totals) -> Option<Self> {
        let more = |before: Counters, now: Counters| Counters {
            packets: now.packets.saturating_sub(before.packets),
            bytes: now.bytes.saturating_sub(before.bytes),
        };
        let (sent, received) = (more(before.sent, totals.sent), more(before.received, totals.received));
        let merged = |totals: &Totals| totals.tcp.map_or((0, 0), |tcp| (tcp.merged, tcp.merged_unsure));
        let (merged_before, unsure_before) = merged(before);
        let (merged, unsure) = merged(totals);
        let Totals { last, tcp, .. } = *totals;
        let (merged, merged_unsure) = (merged.saturating_sub(merged_before), unsure > unsure_before);
        (sent.packets + received.packets > 0).then_some(Self { sent, received, merged, merged_unsure, last, tcp })
    }

    /// The number of packets.
    pub fn packets(&self) -> u64 {
        self.sent.packets.saturating_add(self.received.packets)
    }
}

impl Counted {
    /// An empty table for at most `limit` conversations.
    pub fn new(limit: usize) -> Self {
        Self { conversations: BTreeMap::new(), limit, refused: 0 }
    }

    /// How many conversations there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.conversations.len()
    }

    /// How these counts relate to those that were taken before.
    pub fn relation(&self, totals: &Totals) -> Relation {
        match self.conversations.get(&totals.conversation()) {
            Some(known) if known.taken.is_of_entry(totals) => Relation::After(known.taken),
            Some(known) if known.taken.since > totals.since => Relation::Outdated,
            _ => Relation::First,
        }
    }

    /// Notes that these counts were taken. Returns whether there is room to remember this: if not, the counts must not be
    /// used, because they would be taken twice.
    #[must_use]
    pub fn take(&mut self, totals: &Totals) -> bool {
        self.note(totals, Known { taken: *totals, waiting: None })
    }

    /// Keeps counts whose flow is not known yet; `taken` were taken before.
    pub fn keep(&mut self, taken: &Totals, totals: &Totals) {
        self.note(totals, Known { taken: *taken, waiting: Some(*totals) });
    }

    /// Takes out the counts that wait for the conversation's flow.
    pub fn take_waiting(&mut self, of: &Conversation) -> Option<Totals> {
        self.conversations.get_mut(of)?.waiting.take()
    }

    /// Forgets the conversations of a socket that is freed. Returns how many packets were counted without a flow.
    pub fn forget(&mut self, sock: SockAddress) -> u64 {
        let lowest = Endpoint::new(std::net::Ipv4Addr::UNSPECIFIED, 0);
        let mut packets = 0;
        let first = Conversation { sock, local: lowest, remote: lowest };
        while let Some((key, known)) = self.conversations.range(first..).next()
            && key.sock == sock
        {
            let left = known.waiting.and_then(|totals| NewCounts::between(&known.taken, &totals));
            packets += left.map_or(0, |new| new.packets());
            let key = *key;
            self.conversations.remove(&key);
        }
        packets
    }

    fn note(&mut self, totals: &Totals, known: Known) -> bool {
        let key = totals.conversation();
        let has_room = self.conversations.len() < self.limit || self.conversations.contains_key(&key);
        if has_room {
            self.conversations.insert(key, known);
        } else {
            self.refused += 1;
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::model::flow::Transport;
    use crate::model::testing::{monotonic, sock_at};

    fn totals(sock: u64, port: u16, since: u64, sent: u64, received: u64) -> Totals {
        let end = |port| Endpoint::new(Ipv4Addr::LOCALHOST, port);
        let counters = |packets| Counters { packets, bytes: packets * 100 };
        Totals {
            sock: sock_at(sock),
            transport: Transport::Udp,
            local: end(port),
            remote: end(53),
            since: monotonic(since),
            sent: counters(sent),
            received: counters(received),
            last: monotonic(since + sent + received),
            short_datagrams: false,
            nonlinear_datagrams: false,
            tcp: None,
        }
    }

    #[test]
    fn only_what_is_more_than_before_is_new() {
        let new = |(sent, received)| NewCounts::between(&totals(1, 2, 3, 5, 6), &totals(1, 2, 3, sent, received));
        assert_eq!(new((5, 6)), None);
        assert_eq!(new((4, 3)), None, "an earlier reading");
        let more = new((7, 6)).unwrap();
        assert_eq!((more.sent, more.received.packets, more.packets()), (Counters { packets: 2, bytes: 200 }, 0, 2));
        assert_eq!(more.last, monotonic(16));
    }

    #[test]
    fn an_entry_is_told_from_those_before_and_after() {
        let mut counted = Counted::new(10);
        assert_eq!(counted.relation(&totals(1, 2, 300, 5, 6)), Relation::First);
        assert!(counted.take(&totals(1, 2, 300, 5, 6)));
        assert_eq!(counted.relation(&totals(1, 2, 300, 7, 6)), Relation::After(totals(1, 2, 300, 5, 6)));
        assert_eq!(counted.relation(&totals(1, 2, 200, 9, 9)), Relation::Outdated);
        assert_eq!(counted.relation(&totals(1, 2, 400, 1, 1)), Relation::First);
        assert_eq!(counted.relation(&totals(1, 3, 300, 1, 1)), Relation::First, "other ends");
        assert_eq!(counted.relation(&totals(2, 2, 300, 1, 1)), Relation::First, "another socket");
    }

    #[test]
    fn forgetting_a_freed_socket_counts_its_packets_without_a_flow() {
        let mut counted = Counted::new(10);
        let six = Totals { local: Endpoint::new(Ipv6Addr::LOCALHOST, 9), ..totals(2, 2, 1, 1, 1) };
        for one in [totals(1, 2, 1, 1, 1), totals(2, 2, 1, 1, 1), totals(2, 3, 1, 1, 1), six, totals(3, 2, 1, 1, 1)] {
            assert!(counted.take(&one));
        }
        counted.keep(&totals(2, 3, 1, 1, 1), &totals(2, 3, 1, 4, 2));
        assert_eq!((counted.forget(sock_at(2)), counted.len()), (4, 2));
        assert_eq!(counted.forget(sock_at(2)), 0);
    }

    #[test]
    fn waiting_counts_are_taken_out_once() {
        let mut counted = Counted::new(10);
        let (taken, later) = (totals(1, 2, 1, 0, 0), totals(1, 2, 1, 4, 2));
        counted.keep(&taken, &later);
        assert_eq!(counted.relation(&later), Relation::After(taken));
        let waiting = |counted: &mut Counted| counted.take_waiting(&later.conversation());
        assert_eq!((waiting(&mut counted), waiting(&mut counted)), (Some(later), None));
    }

    #[test]
    fn what_cannot_be_remembered_is_refused() {
        let mut counted = Counted::new(1);
        assert!(counted.take(&totals(1, 2, 1, 1, 1)));
        assert!(!counted.take(&totals(1, 3, 1, 1, 1)));
        assert!(counted.take(&totals(1, 2, 1, 2, 2)), "it is known");
        assert_eq!((counted.len(), counted.refused), (1, 1));
    }
}
