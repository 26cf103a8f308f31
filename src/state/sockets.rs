//! The table of sockets: by which kernel address, whose, and with which flows.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{HashMap, HashTable};
use slotmap::{SlotMap, new_key_type};

use super::flows::FlowKey;
use super::idle::IdleKey;
use super::wheel::Tick;
use crate::event::{KernelAddress, KernelTime};
use crate::flow::Direction;
use crate::process::Process;

new_key_type! {
    /// Names a socket for as long as it is known: the generation of a `struct sock` address.
    pub struct SocketKey;
}

/// One socket.
#[derive(Debug)]
pub struct Socket {
    /// Its `struct sock`.
    pub sock: KernelAddress,
    /// Who made, connected or accepted it.
    pub owner: Option<Arc<Process>>,
    /// Who began its conversations: a connected or accepted TCP socket knows.
    pub direction: Direction,
    /// Whether its creation was seen.
    pub created: bool,
    /// When it was first seen.
    pub since: KernelTime,
    /// When it was last certain that the owner is this socket's, not that of an earlier socket at the same address.
    pub owner_since: KernelTime,
    /// The port of a UDP socket, learned while the owner was certain; 0 if it is not known.
    pub port: u16,
    /// Whose it is as a UDP socket, and whether a datagram that it takes may be several.
    pub datagrams: Datagrams,
    /// Whether it may send several datagrams as one: `UDP_SEGMENT`.
    pub joins: bool,
    /// Whether a packet of it was cut into fragments, of which flow is not known.
    pub cut: bool,
    /// Whether its last descriptor is gone, or the kernel freed it.
    pub closed: bool,
    /// Whether it had a packet of which nothing else could be read.
    pub unread: bool,
    /// Whether it joined an existing MPTCP connection: then the listener at which it arrived says nothing about its
    /// owner.
    pub joined: bool,
    /// When something was last heard of it.
    pub last: KernelTime,
    /// The first of its flows; each flow knows its neighbours.
    pub flows: Option<FlowKey>,
    /// Its idle connection, while that has no flow.
    pub idle: Option<IdleKey>,
    /// When its timer comes up.
    pub armed: Tick,
}

/// What kind of UDP socket it is, as to what it takes as one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagrams {
    /// One: a program made it, and did not ask for more.
    Single,
    /// Several, if they came together: `UDP_GRO`.
    Merged,
    /// Several, if it is a tunnel's: it is the kernel's own.
    Kernel,
    /// Nobody knows: it is older than the monitor, or who asks for more is not seen.
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

    /// Whether the table is so full that idle sockets should leave.
    pub fn crowded(&self) -> bool {
        self.slots.len() >= self.limit / 4 * 3
    }

    /// The socket that has this address now.
    pub fn at(&self, sock: KernelAddress) -> Option<SocketKey> {
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

    /// Puts a socket of which nothing else is known at an address. What was there before loses the address.
    /// `None` when the table is full.
    pub fn insert(&mut self, sock: KernelAddress, now: KernelTime) -> Option<SocketKey> {
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
            direction: Direction::Unknown,
            created: false,
            since: now,
            owner_since: now,
            port: 0,
            datagrams: Datagrams::Unknown,
            joins: false,
            cut: false,
            closed: false,
            unread: false,
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

    /// The same, and removes them.
    pub fn take_subflows(&mut self, mptcp: SocketKey) -> Vec<SocketKey> {
        self.subflows.remove(&mptcp).unwrap_or_default()
    }

    /// Whether it is an MPTCP socket with subflows.
    pub fn has_subflows(&self, key: SocketKey) -> bool {
        self.subflows.get(&key).is_some_and(|all| all.iter().any(|subflow| self.slots.contains_key(*subflow)))
    }
}
