//! Connections that go on after their flow has ended: later packets still belong to the same owner.
//!
//! A flow ends when it has had no packets for a while. Its TCP connection may end hours later, by a FIN, a reset or a
//! failed keepalive. Until then less is kept of it than of a live flow.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use slotmap::{SlotMap, new_key_type};

use super::flows::{Fins, FlowId, Live, Watched, is_same};
use super::sockets::SocketKey;
use crate::event::KernelTime;
use crate::flow::{Direction, Outcome};
use crate::process::Process;

/// How long to wait for the last packet of a connection that has no socket any more, in nanoseconds. It is longer than
/// `TCP_RTO_MAX`, the longest pause between two retransmissions, and than `TCP_TIMEWAIT_LEN`.
pub const LAST_PAUSE: KernelTime = 150_000_000_000;

/// How many connections without a socket are remembered at once.
const MOST_LEAVING: usize = 65_536;

new_key_type! {
    /// Identifies an idle connection.
    pub struct IdleKey;
}

/// An idle connection.
#[derive(Debug)]
pub struct Idle {
    /// The flow's addresses, by which it is found.
    pub id: FlowId,
    /// Its socket, as long as that exists.
    pub socket: Option<SocketKey>,
    /// Its owner.
    pub owner: Option<Arc<Process>>,
    /// The process that closed its socket, if that is not the owner.
    pub last_user: Option<Arc<Process>>,
    /// Who began it.
    pub direction: Direction,
    /// The outcome so far.
    pub outcome: Outcome,
    /// The name that its owner looked up for the remote.
    pub domain: Option<Box<Arc<str>>>,
    /// The socket's segment counters, from which the connection's next flow goes on counting.
    pub segments: Option<Watched>,
    /// Which FINs were seen.
    pub fins: Fins,
    /// When it was last certain that the owner is its socket's.
    pub owner_since: KernelTime,
    /// Whether it is the owner that accepted it, not the listener's.
    pub accepted: bool,
    /// When it was last heard of.
    pub last: KernelTime,
}

impl Idle {
    /// What is kept of a connection after its flow.
    pub fn after(live: &Live, socket: Option<SocketKey>) -> Self {
        let received = u32::try_from(live.received.packets).unwrap_or(u32::MAX);
        let segments =
            live.segments.map(|watched| Watched::since(watched.sent, watched.received_before.wrapping_add(received)));
        Self {
            id: live.id,
            socket,
            owner: live.owner.clone(),
            last_user: live.last_user.clone(),
            direction: live.direction,
            outcome: live.outcome,
            domain: live.domain.clone(),
            segments,
            fins: live.fins,
            owner_since: live.owner_since,
            accepted: live.accepted,
            last: live.last,
        }
    }

    /// Sets the owner, or that there is none. A name that another process looked up is removed.
    pub fn give_to(&mut self, owner: Option<Arc<Process>>) {
        if !is_same(self.owner.as_deref(), owner.as_deref()) {
            self.domain = None;
        }
        self.owner = owner;
    }
}

/// Idle connections, by their ends.
#[derive(Debug, Default)]
pub struct IdleConnections {
    slots: SlotMap<IdleKey, Idle>,
    index: HashTable<IdleKey>,
    hasher: foldhash::fast::RandomState,
    /// Those without a socket, in the order in which they lost it, with the time when each is forgotten.
    leaving: VecDeque<(KernelTime, IdleKey)>,
    /// Connections without a socket that were removed to make room.
    pub evicted: u64,
}

impl IdleConnections {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// An idle connection by its key.
    pub fn get_mut(&mut self, key: IdleKey) -> Option<&mut Idle> {
        self.slots.get_mut(key)
    }

    /// An idle connection by its key.
    pub fn get(&self, key: IdleKey) -> Option<&Idle> {
        self.slots.get(key)
    }

    /// Keeps a connection; it replaces one between the same ends.
    pub fn insert(&mut self, idle: Idle, now: KernelTime) -> IdleKey {
        self.take(&idle.id);
        let (hash, has_socket) = (self.hasher.hash_one(idle.id), idle.socket.is_some());
        let key = self.slots.insert(idle);
        self.index.insert_unique(hash, key, |key| self.hasher.hash_one(self.slots[*key].id));
        if !has_socket {
            self.lose_socket(key, now);
        }
        key
    }

    /// Removes and returns the connection between these ends.
    pub fn take(&mut self, id: &FlowId) -> Option<Idle> {
        if self.slots.is_empty() {
            return None;
        }
        let found = self.index.find_entry(self.hasher.hash_one(id), |key| self.slots[*key].id == *id).ok()?;
        let (key, _) = found.remove();
        self.slots.remove(key)
    }

    /// Forgets a connection.
    pub fn remove(&mut self, key: IdleKey) {
        if let Some(id) = self.slots.get(key).map(|idle| idle.id) {
            self.take(&id);
        }
    }

    /// A connection has lost its socket. It is kept only if the other side's FIN is still to come.
    pub fn lose_socket(&mut self, key: IdleKey, now: KernelTime) {
        match self.slots.get_mut(key) {
            Some(idle) if idle.fins.is_half_closed() => {
                idle.socket = None;
                if self.leaving.len() >= MOST_LEAVING
                    && let Some((_, oldest)) = self.leaving.pop_front()
                {
                    self.evicted += u64::from(self.slots.contains_key(oldest));
                    self.remove(oldest);
                }
                self.leaving.push_back((now.saturating_add(LAST_PAUSE), key));
            }
            _ => self.remove(key),
        }
    }

    /// Forgets connections whose last packet is no longer waited for.
    pub fn expire(&mut self, now: KernelTime) {
        while let Some(&(due, key)) = self.leaving.front() {
            if due > now {
                break;
            }
            self.leaving.pop_front();
            self.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::processes::nameless;
    use super::*;
    use crate::event::{Endpoint, Transport};

    fn idle(port: u16, sent: bool, received: bool) -> Idle {
        let end = |port| Endpoint::new(Ipv4Addr::LOCALHOST, port);
        Idle {
            id: FlowId { scope: 1, transport: Transport::Tcp, local: end(port), remote: end(80) },
            socket: None,
            owner: None,
            last_user: None,
            direction: Direction::Egress,
            outcome: Outcome::Unknown,
            domain: None,
            segments: None,
            fins: Fins { sent, received },
            owner_since: 0,
            accepted: false,
            last: u64::from(port),
        }
    }

    #[test]
    fn without_a_socket_only_a_last_packet_is_waited_for_and_not_for_ever() {
        let mut connections = IdleConnections::default();
        for (port, sent, received) in [(1, true, false), (2, false, false), (3, true, true), (4, false, true)] {
            connections.insert(idle(port, sent, received), 1000);
        }
        assert_eq!(connections.len(), 1);
        connections.expire(1000 + LAST_PAUSE - 1);
        assert_eq!(connections.len(), 1);
        connections.expire(1000 + LAST_PAUSE);
        assert_eq!(connections.len(), 0);
    }

    #[test]
    fn only_so_many_wait_for_their_last_packet_and_the_oldest_make_room() {
        let mut connections = IdleConnections::default();
        let another = |scope: usize| {
            let idle = idle(1, true, false);
            Idle { id: FlowId { scope: scope as u64, ..idle.id }, ..idle }
        };
        for scope in 0..MOST_LEAVING {
            connections.insert(another(scope), 1000);
        }
        assert!(connections.take(&another(0).id).is_some(), "its last packet comes");
        for scope in MOST_LEAVING..MOST_LEAVING + 3 {
            connections.insert(another(scope), 2000);
        }
        assert_eq!((connections.len(), connections.evicted), (MOST_LEAVING, 2));
        let is_there = [1, 2, 3, MOST_LEAVING + 2].map(|scope| connections.take(&another(scope).id).is_some());
        assert_eq!(is_there, [false, false, true, true]);
    }

    #[test]
    fn between_the_same_ends_the_later_one_counts() {
        let mut connections = IdleConnections::default();
        connections.insert(idle(1, true, false), 1000);
        let later = Idle { last: 77, ..idle(1, true, false) };
        let id = later.id;
        connections.insert(later, 2000);
        assert_eq!(connections.len(), 1);
        assert_eq!(connections.take(&id).map(|idle| idle.last), Some(77));
        assert!(connections.take(&id).is_none());
    }

    #[test]
    fn another_owner_has_not_looked_up_the_name() {
        let owner = |pid| Some(Arc::new(Process { start: Some(1), ..nameless(pid) }));
        let mut idle =
            Idle { owner: owner(7), domain: Some(Box::new(Arc::from("a.example"))), ..idle(1, false, false) };
        idle.give_to(owner(7));
        assert!(idle.domain.is_some());
        idle.give_to(owner(8));
        assert_eq!((idle.domain, idle.owner.map(|owner| owner.pid)), (None, Some(8)));
    }
}
