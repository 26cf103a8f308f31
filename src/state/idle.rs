//! TCP connections that go on after their flow has ended: later packets still belong to the same owner.
//!
//! A flow ends when it has had no packets for a while. Its connection may end hours later, by a FIN, a reset or a failed
//! keepalive. Until then, a small part of the flow is kept.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashTable;
use slotmap::{SlotMap, new_key_type};

use super::flows::{Fins, FlowId, LiveFlow, SegmentBaseline, change_owner};
use super::sockets::SocketKey;
use crate::model::flow::{Direction, Outcome};
use crate::model::process::Process;
use crate::model::time::MonotonicTime;

/// How long a connection without a socket is kept for its last packet. That is longer than `TCP_RTO_MAX`, the longest pause
/// between two retransmissions, and than `TCP_TIMEWAIT_LEN`.
pub const LAST_PACKET_TIMEOUT: Duration = Duration::from_secs(150);

/// The maximum number of connections without a socket that are kept.
const MAX_WITHOUT_SOCKET: usize = 65_536;

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
    /// Which side began it.
    pub direction: Direction,
    /// The outcome so far.
    pub outcome: Outcome,
    /// The name that its owner looked up for the remote.
    pub domain: Option<Box<Arc<str>>>,
    /// The socket's segment counters, from which the connection's next flow goes on counting.
    pub segments: Option<SegmentBaseline>,
    /// Which FINs were seen.
    pub fins: Fins,
    /// When it was last certain that the owner is its socket's.
    pub owner_since: MonotonicTime,
    /// See [`LiveFlow::accepted`].
    pub accepted: bool,
    /// When its last packet or call was seen.
    pub last: MonotonicTime,
}

impl Idle {
    /// The part of a flow that is kept after its end.
    pub fn after(flow: &LiveFlow, socket: Option<SocketKey>) -> Self {
        let received = u32::try_from(flow.received.packets).unwrap_or(u32::MAX);
        let segments = flow
            .segments
            .map(|baseline| SegmentBaseline::since(baseline.sent, baseline.received_before.wrapping_add(received)));
        Self {
            id: flow.id,
            socket,
            owner: flow.owner.clone(),
            last_user: flow.last_user.clone(),
            direction: flow.direction,
            outcome: flow.outcome,
            domain: flow.domain.clone(),
            segments,
            fins: flow.fins,
            owner_since: flow.owner_since,
            accepted: flow.accepted,
            last: flow.last,
        }
    }

    /// Sets or removes the owner. The domain is removed if another process looked it up.
    pub fn set_owner(&mut self, owner: Option<Arc<Process>>) {
        change_owner(&mut self.owner, &mut self.domain, owner);
    }
}

/// Idle connections, by their addresses.
#[derive(Debug, Default)]
pub struct IdleConnections {
    slots: SlotMap<IdleKey, Idle>,
    index: HashTable<IdleKey>,
    hasher: foldhash::fast::RandomState,
    /// The connections without a socket, in the order in which they lost it, with the time at which each is forgotten.
    without_socket: VecDeque<(MonotonicTime, IdleKey)>,
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
    pub fn insert(&mut self, idle: Idle, now: MonotonicTime) -> IdleKey {
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
    pub fn lose_socket(&mut self, key: IdleKey, now: MonotonicTime) {
        match self.slots.get_mut(key) {
            Some(idle) if idle.fins.is_half_closed() => {
                idle.socket = None;
                if self.without_socket.len() >= MAX_WITHOUT_SOCKET
                    && let Some((_, oldest)) = self.without_socket.pop_front()
                {
                    self.evicted += u64::from(self.slots.contains_key(oldest));
                    self.remove(oldest);
                }
                self.without_socket.push_back((now.saturating_add(LAST_PACKET_TIMEOUT), key));
            }
            _ => self.remove(key),
        }
    }

    /// Forgets connections that have waited for their last packet for too long.
    pub fn expire(&mut self, now: MonotonicTime) {
        while let Some(&(due, key)) = self.without_socket.front() {
            if due > now {
                break;
            }
            self.without_socket.pop_front();
            self.remove(key);
        }
    }
}

#[cfg(test)]
impl IdleConnections {
    /// Panics if a connection cannot be found by its ends, or if it and its socket do not point to each other.
    pub fn check(&self, sockets: &super::sockets::Sockets) {
        assert_eq!(self.index.len(), self.slots.len());
        for (key, idle) in &self.slots {
            let found = self.index.find(self.hasher.hash_one(idle.id), |other| *other == key);
            assert_eq!(found, Some(&key), "{idle:?} cannot be found");
            if let Some(socket) = idle.socket {
                assert_eq!(sockets.get(socket).and_then(|socket| socket.idle), Some(key), "{idle:?}");
            }
        }
        for (key, socket) in sockets.iter() {
            if let Some(idle) = socket.idle {
                assert_eq!(self.get(idle).and_then(|idle| idle.socket), Some(key), "{socket:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::flows::Scope;
    use super::*;
    use crate::model::flow::{Endpoint, Transport};
    use crate::model::kernel_address::NetAddress;
    use crate::model::testing::monotonic;

    fn scope(net: u64) -> Scope {
        NetAddress::new(net).into()
    }

    fn idle(port: u16, sent: bool, received: bool) -> Idle {
        let end = |port| Endpoint::new(Ipv4Addr::LOCALHOST, port);
        Idle {
            id: FlowId { scope: scope(1), transport: Transport::Tcp, local: end(port), remote: end(80) },
            socket: None,
            owner: None,
            last_user: None,
            direction: Direction::Egress,
            outcome: Outcome::Unknown,
            domain: None,
            segments: None,
            fins: Fins { sent, received },
            owner_since: monotonic(0),
            accepted: false,
            last: monotonic(u64::from(port)),
        }
    }

    #[test]
    fn without_a_socket_only_half_closed_connections_are_kept_and_only_for_a_time() {
        let mut connections = IdleConnections::default();
        for (port, sent, received) in [(1, true, false), (2, false, false), (3, true, true), (4, false, true)] {
            connections.insert(idle(port, sent, received), monotonic(1000));
        }
        assert_eq!(connections.len(), 1);
        connections.expire(monotonic(999).saturating_add(LAST_PACKET_TIMEOUT));
        assert_eq!(connections.len(), 1);
        connections.expire(monotonic(1000).saturating_add(LAST_PACKET_TIMEOUT));
        assert_eq!(connections.len(), 0);
    }

    #[test]
    fn the_number_of_connections_without_a_socket_is_bounded_and_the_oldest_make_room() {
        let mut connections = IdleConnections::default();
        let another = |number: usize| {
            let idle = idle(1, true, false);
            Idle { id: FlowId { scope: scope(number as u64), ..idle.id }, ..idle }
        };
        for number in 0..MAX_WITHOUT_SOCKET {
            connections.insert(another(number), monotonic(1000));
        }
        assert!(connections.take(&another(0).id).is_some(), "its last packet comes");
        for number in MAX_WITHOUT_SOCKET..MAX_WITHOUT_SOCKET + 3 {
            connections.insert(another(number), monotonic(2000));
        }
        assert_eq!((connections.len(), connections.evicted), (MAX_WITHOUT_SOCKET, 2));
        let is_there = [1, 2, 3, MAX_WITHOUT_SOCKET + 2].map(|number| connections.take(&another(number).id).is_some());
        assert_eq!(is_there, [false, false, true, true]);
    }

    #[test]
    fn a_connection_replaces_an_earlier_one_between_the_same_ends() {
        let mut connections = IdleConnections::default();
        connections.insert(idle(1, true, false), monotonic(1000));
        let later = Idle { last: monotonic(77), ..idle(1, true, false) };
        let id = later.id;
        connections.insert(later, monotonic(2000));
        assert_eq!(connections.len(), 1);
        assert_eq!(connections.take(&id).map(|idle| idle.last), Some(monotonic(77)));
        assert!(connections.take(&id).is_none());
    }
}
