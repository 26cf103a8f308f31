//! The table of sockets: their kernel addresses, owners and flows.

use std::hash::BuildHasher;
use std::num::NonZeroU16;
use std::sync::Arc;

use hashbrown::{HashMap, HashTable};
use slotmap::{SlotMap, new_key_type};

use super::flows::FlowKey;
use super::idle::IdleKey;
use super::wheel::Tick;
use crate::model::flow::Direction;
use crate::model::kernel_address::SockAddress;
use crate::model::process::Process;
use crate::model::time::MonotonicTime;

new_key_type! {
    /// Identifies a socket as long as it is known, even if another socket gets its `struct sock` address.
    pub struct SocketKey;
}

/// One socket.
#[derive(Debug)]
pub struct Socket {
    /// The address of its `struct sock`. One entry with `None` stands for all sockets whose address is not known.
    pub sock: Option<SockAddress>,
    /// The process that created, connected or accepted it.
    pub owner: Option<Arc<Process>>,
    /// The hash of the connection that it was accepted as: the owner applies to that connection only.
    pub accepted_as: Option<NonZeroU16>,
    /// Which side began its connection; known for a connected or accepted TCP socket.
    pub direction: Direction,
    /// Whether its creation was seen.
    pub created: bool,
    /// When it was first seen.
    pub since: MonotonicTime,
    /// When it was last certain that the owner is this socket's, not that of an earlier socket at the same address.
    pub owner_since: MonotonicTime,
    /// The local port of a UDP socket, learned while the owner was certain; 0 if it is not known.
    pub port: u16,
    /// Which kind of UDP socket it is.
    pub udp_kind: UdpKind,
    /// Whether it may use UDP GSO (`UDP_SEGMENT`): send several datagrams as one packet.
    pub uses_gso: bool,
    /// Whether one of its packets was fragmented and its flow is not known.
    pub fragmented: bool,
    /// Whether its last descriptor is gone, or the kernel freed it.
    pub closed: bool,
    /// Whether it had a packet whose addresses and ports could not be read.
    pub had_unreadable_packets: bool,
    /// Whether it joined an existing MPTCP connection: then the listener at which it arrived says nothing about its
    /// owner.
    pub joined: bool,
    /// When its last packet or call was seen.
    pub last: MonotonicTime,
    /// The head of the list of its flows.
    pub flows: Option<FlowKey>,
    /// Its idle connection, while that has no flow.
    pub idle: Option<IdleKey>,
    /// The tick of its timer. Earlier timers are stale.
    pub armed: Tick,
}

/// The kinds of UDP sockets, by whether they receive several datagrams merged into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UdpKind {
    /// A program's socket that has not asked for UDP GRO: single datagrams.
    Single,
    /// A socket with `UDP_GRO`: merged datagrams.
    Gro,
    /// The kernel's own socket, such as a tunnel's: merged datagrams.
    Kernel,
    /// Not known: it is older than the monitor, or requests for UDP GRO are not seen.
    Unknown,
}

/// Sockets, by the address that they have now.
#[derive(Debug)]
pub struct Sockets {
    slots: SlotMap<SocketKey, Socket>,
    by_sock: HashTable<SocketKey>,
    /// The subflows of MPTCP sockets. Those that no longer exist are removed when the next one is added.
    subflows: HashMap<SocketKey, Vec<SocketKey>, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
    limit: usize,
    /// Sockets that found no room.
    pub refused: u64,
}

impl Sockets {
    /// An empty table for at most `limit` sockets.
    pub fn new(limit: usize) -> Self {
        Self {
            slots: SlotMap::with_key(),
            by_sock: HashTable::new(),
            subflows: HashMap::default(),
            hasher: foldhash::fast::RandomState::default(),
            limit,
            refused: 0,
        }
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// All of them.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (SocketKey, &Socket)> {
        self.slots.iter()
    }

    /// Whether the table is so full that idle sockets should be removed.
    pub fn crowded(&self) -> bool {
        self.slots.len() >= self.limit / 4 * 3
    }

    /// The socket that has this address now.
    pub fn at(&self, sock: Option<SockAddress>) -> Option<SocketKey> {
        self.by_sock.find(self.hasher.hash_one(sock), |key| self.slots[*key].sock == sock).copied()
    }

    /// A socket by its key.
    pub fn get(&self, key: SocketKey) -> Option<&Socket> {
        self.slots.get(key)
    }

    /// A socket by its key, to be changed.
    pub fn get_mut(&mut self, key: SocketKey) -> Option<&mut Socket> {
        self.slots.get_mut(key)
    }

    /// Adds a socket at an address. An earlier socket there loses the address. `None` if the table is full.
    pub fn insert(&mut self, sock: Option<SockAddress>, now: MonotonicTime) -> Option<SocketKey> {
        if self.slots.len() >= self.limit {
            self.refused += 1;
            return None;
        }
        if let Some(old) = self.at(sock) {
            self.unmap(old);
        }
        let key = self.slots.insert(Socket {
            sock,
            owner: None,
            accepted_as: None,
            direction: Direction::Unknown,
            created: false,
            since: now,
            owner_since: now,
            port: 0,
            udp_kind: UdpKind::Unknown,
            uses_gso: false,
            fragmented: false,
            closed: false,
            had_unreadable_packets: false,
            joined: false,
            last: now,
            flows: None,
            idle: None,
            armed: Tick::default(),
        });
        let hash = self.hasher.hash_one(sock);
        self.by_sock.insert_unique(hash, key, |key| self.hasher.hash_one(self.slots[*key].sock));
        Some(key)
    }

    /// The address is no longer this socket's.
    pub fn unmap(&mut self, key: SocketKey) {
        let Some(socket) = self.slots.get(key) else { return };
        if let Ok(found) = self.by_sock.find_entry(self.hasher.hash_one(socket.sock), |other| *other == key) {
            found.remove();
        }
    }

    /// Forgets a socket.
    pub fn remove(&mut self, key: SocketKey) -> Option<Socket> {
        self.unmap(key);
        self.subflows.remove(&key);
        self.slots.remove(key)
    }

    /// Remembers a subflow of an MPTCP socket.
    pub fn add_subflow(&mut self, mptcp: SocketKey, subflow: SocketKey) {
        let all = self.subflows.entry(mptcp).or_default();
        all.retain(|other| *other != subflow && self.slots.contains_key(*other));
        all.push(subflow);
    }

    /// The subflows of an MPTCP socket; some may no longer exist.
    pub fn subflows(&self, mptcp: SocketKey) -> Vec<SocketKey> {
        self.subflows.get(&mptcp).cloned().unwrap_or_default()
    }

    /// Removes and returns the subflows of an MPTCP socket.
    pub fn take_subflows(&mut self, mptcp: SocketKey) -> Vec<SocketKey> {
        self.subflows.remove(&mptcp).unwrap_or_default()
    }

    /// Whether it is an MPTCP socket with subflows.
    pub fn has_subflows(&self, key: SocketKey) -> bool {
        self.subflows.get(&key).is_some_and(|all| all.iter().any(|subflow| self.slots.contains_key(*subflow)))
    }
}
