//! The table of flows: by tuple, and in a chain per socket.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use slotmap::{SlotMap, new_key_type};

use super::sockets::{SocketKey, Sockets};
use super::wheel::Tick;
use crate::event::{Endpoint, Fragmented, KernelAddress, KernelTime, Packet, Transport, Tuple};
use crate::flow::{Counters, Direction, Inexact, Outcome};
use crate::process::Process;

new_key_type! {
    /// Names a live flow.
    pub struct FlowKey;
}

/// What a flow is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// Within what the tuple is unique: the network namespace for TCP; the socket for UDP, since several sockets may
    /// get one datagram.
    pub scope: KernelAddress,
    /// Its transport.
    pub transport: Transport,
    /// This host's end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
}

impl FlowId {
    /// Of a TCP connection.
    pub fn tcp(tuple: &Tuple) -> Self {
        Self { scope: tuple.net, transport: Transport::Tcp, local: tuple.local, remote: tuple.remote }
    }

    /// Of a packet.
    pub fn of(packet: &Packet) -> Self {
        Self::between(packet.transport, packet.sock, &packet.tuple)
    }

    /// Of a packet that is cut.
    pub fn of_fragmented(packet: &Fragmented) -> Self {
        Self::between(packet.transport, packet.sock, &packet.tuple)
    }

    fn between(transport: Transport, sock: KernelAddress, tuple: &Tuple) -> Self {
        match transport {
            Transport::Tcp => Self::tcp(tuple),
            Transport::Udp => Self { scope: sock, transport, local: tuple.local, remote: tuple.remote },
        }
    }
}

/// A live flow.
#[derive(Debug)]
pub struct Live {
    /// What it is found by.
    pub id: FlowId,
    /// The network namespace.
    pub net: KernelAddress,
    /// Its running number.
    pub number: u64,
    /// Its socket, once known.
    pub socket: Option<SocketKey>,
    /// Whether the socket is its own, not the listener that answers before the connection has a socket.
    pub bound: bool,
    /// Whose it is.
    pub owner: Option<Arc<Process>>,
    /// Who gave its socket up, if that is another.
    pub last_user: Option<Arc<Process>>,
    /// Who began it.
    pub direction: Direction,
    /// First packet or call.
    pub start: KernelTime,
    /// Since when packets of it may have been missed.
    pub exposed: KernelTime,
    /// When it was last certain that this is the owner of its socket.
    pub owner_since: KernelTime,
    /// Whether the owner accepted it itself, and is not that of the listener.
    pub accepted: bool,
    /// Whether the owner may by now run another program, or be another process, because an event of it may have been
    /// lost.
    pub doubtful: bool,
    /// Last packet or call.
    pub last: KernelTime,
    /// When it was last reported, or began.
    pub reported: KernelTime,
    /// It is over but for late packets.
    pub closing: bool,
    /// What left.
    pub sent: Counters,
    /// What arrived.
    pub received: Counters,
    /// What was counted as sent and then dropped by this host.
    pub dropped: Counters,
    /// What TCP sent last: needed to know how many segments a dropped packet stood for.
    pub last_sent: LastSent,
    /// The socket's segment counters, from the first packet on that showed them.
    pub segments: Option<Watched>,
    /// Whether the socket is closed and its counters are gone.
    pub uncounted: bool,
    /// The headers of what was received.
    pub received_headers: Headers,
    /// How often the other side's first SYN came, before the socket was there that counts.
    pub syns: u8,
    /// Which FINs were seen.
    pub fins: Fins,
    /// Why the counters may be wrong, of what the flow itself can tell.
    pub inexact: Inexact,
    /// Watched from its first packet on.
    pub complete: bool,
    /// What became of it, as far as is known.
    pub outcome: Outcome,
    /// The error that the kernel may have noted for a connect without reporting it (`sock.sk_err_soft`), a positive
    /// errno; 0 if there was none.
    pub noted_error: i32,
    /// The name that its owner looked up for the remote.
    pub domain: Option<Box<Arc<str>>>,
    /// When its timer comes up.
    pub armed: Tick,
    /// Neighbours in the chain of its socket's flows.
    pub previous: Option<FlowKey>,
    /// See `previous`.
    pub next: Option<FlowKey>,
}

impl Live {
    /// Notes a packet or call. Says whether it is later than all before.
    pub fn note_time(&mut self, now: KernelTime) -> bool {
        let is_later = now > self.last;
        if is_later {
            self.last = now;
            if let Some(watched) = &mut self.segments {
                watched.early = 0;
            }
        }
        is_later
    }

    /// Sets the owner, or that there is none. A name that another process looked up is removed.
    pub fn give_to(&mut self, owner: impl Into<Option<Arc<Process>>>) {
        let owner = owner.into();
        if self.owner.is_some() && !is_same(self.owner.as_deref(), owner.as_deref()) {
            self.domain = None;
        }
        self.owner = owner;
    }
}

/// Whether both are the same process, even if it runs another program by now, or both are `None`.
pub fn is_same(one: Option<&Process>, other: Option<&Process>) -> bool {
    let id = |process: &Process| (process.pid, process.start);
    one.map(id) == other.map(id)
}

/// The ends of a TCP connection's two directions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fins {
    /// This host has sent its FIN.
    pub sent: bool,
    /// The other side has sent its FIN, or reset the connection.
    pub received: bool,
}

impl Fins {
    /// Whether only the other side's FIN is still to come.
    pub fn is_half_closed(self) -> bool {
        self.sent && !self.received
    }
}

/// A TCP socket's segment counters as its flow sees them.
#[derive(Debug, Clone, Copy)]
pub struct Watched {
    /// How many segments had been sent with the last packet.
    pub sent: u32,
    /// How many segments had been received before this flow.
    pub received_before: u32,
    /// How many of those sent are this flow's; `u16::MAX` also stands for more.
    pub sent_by_flow: u16,
    /// How many segments were counted as received at `Live::last` only because the socket had counted them: more of those in a
    /// packet before, or of one whose sample has the same time and comes later.
    pub early: u16,
}

impl Watched {
    /// Counters that stood there when a flow began.
    pub fn since(sent: u32, received: u32) -> Self {
        Self { sent, received_before: received, sent_by_flow: 0, early: 0 }
    }
}

/// What is known of how TCP's packets are split into segments.
#[derive(Debug, Clone, Copy, Default)]
pub struct LastSent {
    /// The last packet, in bytes with its headers.
    pub bytes: u32,
    /// Its IP and transport header, in bytes.
    pub headers: u16,
    /// How many segments it stood for.
    pub segments: u16,
    /// The payload of a full segment, as learned from packets that stood for several; 0 if there were none.
    pub full: u16,
}

/// IP and transport headers of a flow's packets, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Headers {
    /// Of the last packet.
    pub last: u16,
    /// The shortest and the longest since the packets were last compared with the socket's count; 0 for none.
    pub range: (u16, u16),
}

/// Live flows.
#[derive(Debug, Default)]
pub struct Flows {
    slots: SlotMap<FlowKey, Live>,
    index: HashTable<FlowKey>,
    hasher: foldhash::fast::RandomState,
}

impl Flows {
    /// How many are live.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The flow with this id.
    pub fn find(&self, id: &FlowId) -> Option<FlowKey> {
        let hash = self.hasher.hash_one(id);
        self.index.find(hash, |key| self.slots[*key].id == *id).copied()
    }

    /// A flow by its key.
    pub fn get(&self, key: FlowKey) -> Option<&Live> {
        self.slots.get(key)
    }

    /// A flow by its key, to be changed.
    pub fn get_mut(&mut self, key: FlowKey) -> Option<&mut Live> {
        self.slots.get_mut(key)
    }

    /// All of them.
    pub fn keys(&self) -> Vec<FlowKey> {
        self.slots.keys().collect()
    }

    /// Adds a flow. No flow may have its id.
    pub fn insert(&mut self, live: Live) -> FlowKey {
        let hash = self.hasher.hash_one(live.id);
        let key = self.slots.insert(live);
        self.index.insert_unique(hash, key, |key| self.hasher.hash_one(self.slots[*key].id));
        key
    }

    /// Takes a flow out, and out of its socket's chain.
    pub fn remove(&mut self, key: FlowKey, sockets: &mut Sockets) -> Option<Live> {
        self.unlink(key, sockets);
        let live = self.slots.get(key)?;
        let hash = self.hasher.hash_one(live.id);
        if let Ok(found) = self.index.find_entry(hash, |other| *other == key) {
            found.remove();
        }
        self.slots.remove(key)
    }

    /// Puts a flow at the head of a socket's chain, out of the chain where it was.
    pub fn link(&mut self, key: FlowKey, socket: SocketKey, sockets: &mut Sockets) {
        if self.slots.get(key).is_none_or(|live| live.socket == Some(socket)) {
            return;
        }
        self.unlink(key, sockets);
        let Some(owner) = sockets.get_mut(socket) else { return };
        let head = owner.flows.replace(key);
        if let Some(next) = head.and_then(|head| self.slots.get_mut(head)) {
            next.previous = Some(key);
        }
        let live = &mut self.slots[key];
        (live.socket, live.next) = (Some(socket), head);
    }

    /// The flows of a socket, from a flow on.
    pub fn chain(&self, head: Option<FlowKey>) -> impl Iterator<Item = FlowKey> {
        std::iter::successors(head, |key| self.slots.get(*key).and_then(|live| live.next))
    }

    fn unlink(&mut self, key: FlowKey, sockets: &mut Sockets) {
        let Some(live) = self.slots.get_mut(key) else { return };
        let (socket, previous, next) = (live.socket.take(), live.previous.take(), live.next.take());
        match previous.and_then(|previous| self.slots.get_mut(previous)) {
            Some(previous) => previous.next = next,
            None => {
                if let Some(socket) = socket.and_then(|socket| sockets.get_mut(socket)) {
                    socket.flows = next;
                }
            }
        }
        if let Some(next) = next.and_then(|next| self.slots.get_mut(next)) {
            next.previous = previous;
        }
    }
}
