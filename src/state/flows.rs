//! The table of live flows: found by their addresses, and by their socket, whose flows form a doubly linked list.

#[cfg(test)]
mod properties;

use std::hash::BuildHasher;
use std::num::NonZeroU16;
use std::sync::Arc;

use hashbrown::HashTable;
use slotmap::{SlotMap, new_key_type};

use super::sockets::{SocketKey, Sockets};
use super::wheel::Tick;
use crate::model::event::{Fragmented, Packet, Tuple};
use crate::model::flow::{Counters, Direction, Endpoint, Inexact, Outcome, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::process::Process;
use crate::model::time::MonotonicTime;

new_key_type! {
    /// Identifies a live flow.
    pub struct FlowKey;
}

/// The kernel object within which addresses and ports identify one flow: the address of a `struct net` or a `struct sock`; 0
/// if it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope(u64);

impl Scope {
    /// The network namespace, if it is the scope of a TCP connection.
    pub fn net(self) -> Option<NetAddress> {
        NetAddress::new(self.0)
    }
}

impl From<Option<NetAddress>> for Scope {
    fn from(net: Option<NetAddress>) -> Self {
        Self(net.map_or(0, NetAddress::get))
    }
}

impl From<Option<SockAddress>> for Scope {
    fn from(sock: Option<SockAddress>) -> Self {
        Self(sock.map_or(0, SockAddress::get))
    }
}

/// Whether a flow is observed from its first packet or call on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// Its first packet or call was seen.
    Seen,
    /// Earlier packets were not seen.
    Missed,
}

/// The key by which a flow is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// The tuple is unique within this: the network namespace for TCP; the socket for UDP, because several sockets may
    /// receive the same datagram.
    pub scope: Scope,
    /// Its transport.
    pub transport: Transport,
    /// This host's end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
}

impl FlowId {
    /// The key of a TCP connection.
    pub fn tcp(tuple: &Tuple) -> Self {
        Self { scope: tuple.net.into(), transport: Transport::Tcp, local: tuple.local, remote: tuple.remote }
    }

    /// The key of a packet's flow.
    pub fn of(packet: &Packet) -> Self {
        Self::between(packet.transport, packet.sock, &packet.tuple)
    }

    /// The key of a fragmented packet's flow.
    pub fn of_fragmented(packet: &Fragmented) -> Self {
        Self::between(packet.transport, packet.sock, &packet.tuple)
    }

    fn between(transport: Transport, sock: Option<SockAddress>, tuple: &Tuple) -> Self {
        match transport {
            Transport::Tcp => Self::tcp(tuple),
            Transport::Udp => Self { scope: sock.into(), transport, local: tuple.local, remote: tuple.remote },
        }
    }
}

/// A live flow.
#[derive(Debug)]
pub struct LiveFlow {
    /// The key by which it is found.
    pub id: FlowId,
    /// The network namespace.
    pub net: Option<NetAddress>,
    /// Its number: flows are numbered from 1 as they begin.
    pub number: u64,
    /// Its socket, once known.
    pub socket: Option<SocketKey>,
    /// Whether the socket is its own, not the listener that answers before the connection has a socket.
    pub has_own_socket: bool,
    /// Its owner.
    pub owner: Option<Arc<Process>>,
    /// The process that closed its socket, if that is not the owner.
    pub last_user: Option<Arc<Process>>,
    /// Which side began it.
    pub direction: Direction,
    /// First packet or call.
    pub start: MonotonicTime,
    /// The earliest time at which packets of it may have been missed.
    pub may_miss_packets_since: MonotonicTime,
    /// When it was last certain that this is the owner of its socket.
    pub owner_since: MonotonicTime,
    /// Whether the owner is that of its own socket or has accepted it, and is not merely the listener's owner.
    pub accepted: bool,
    /// Whether the owner may by now run another program, or be another process, because an event of it may have been
    /// lost.
    pub doubtful: bool,
    /// Last packet or call.
    pub last: MonotonicTime,
    /// When it was last reported; before its first report, when it began.
    pub reported: MonotonicTime,
    /// Whether its end was seen, so that only late packets may still come.
    pub closing: bool,
    /// What left.
    pub sent: Counters,
    /// What arrived.
    pub received: Counters,
    /// What was counted as sent and then dropped by this host.
    pub dropped: Counters,
    /// The last packet sent over TCP, from which the number of segments in a dropped packet is estimated.
    pub last_sent: LastSent,
    /// The socket's segment counters, once a packet has shown them.
    pub segments: Option<SegmentBaseline>,
    /// Whether its socket has reached `TCP_CLOSE`: the connection is over, and no packet will show the segment counters again.
    pub reached_tcp_close: bool,
    /// The header lengths of received packets.
    pub received_headers: Headers,
    /// How many SYNs were received before there was a socket that counts them.
    pub syns: u8,
    /// Which FINs were seen.
    pub fins: Fins,
    /// Whether this host's SYN-ACK was seen.
    pub syn_acked: bool,
    /// Why the counters may be inexact, as far as the flow's own packets show it.
    pub inexact: Inexact,
    /// Whether it was observed from its first packet on.
    pub complete: bool,
    /// Its outcome so far.
    pub outcome: Outcome,
    /// The error that the kernel may have noted for a connect without reporting it (`sock.sk_err_soft`), a positive
    /// errno; 0 if there was none.
    pub soft_error: u16,
    /// The name that its owner looked up for the remote.
    pub domain: Option<Box<Arc<str>>>,
    /// The tick of its timer. Earlier timers are stale.
    pub armed: Tick,
    /// The flow before it in the list of its socket's flows; `None` for the head.
    pub previous: Option<FlowKey>,
    /// The flow after it in that list.
    pub next: Option<FlowKey>,
}

impl LiveFlow {
    /// A flow that begins now. Nothing but its id is known yet.
    pub fn new(id: FlowId, now: MonotonicTime) -> Self {
        Self {
            id,
            net: None,
            number: 0,
            socket: None,
            has_own_socket: false,
            owner: None,
            last_user: None,
            direction: Direction::Unknown,
            start: now,
            may_miss_packets_since: now,
            owner_since: now,
            accepted: false,
            doubtful: false,
            last: now,
            reported: now,
            closing: false,
            sent: Counters::default(),
            received: Counters::default(),
            dropped: Counters::default(),
            last_sent: LastSent::default(),
            segments: None,
            reached_tcp_close: false,
            received_headers: Headers::default(),
            syns: 0,
            fins: Fins::default(),
            syn_acked: false,
            inexact: Inexact::default(),
            complete: false,
            outcome: Outcome::Unknown,
            soft_error: 0,
            domain: None,
            armed: Tick::default(),
            previous: None,
            next: None,
        }
    }

    /// Notes the time of a packet or call. Returns whether it is later than all before.
    pub fn note_time(&mut self, now: MonotonicTime) -> bool {
        let is_later = now > self.last;
        if is_later {
            self.last = now;
            if let Some(baseline) = &mut self.segments {
                baseline.early = 0;
            }
        }
        is_later
    }

    /// Sets or removes the owner. The domain is removed if another process looked it up.
    pub fn set_owner(&mut self, owner: impl Into<Option<Arc<Process>>>) {
        change_owner(&mut self.owner, &mut self.domain, owner.into());
    }
}

/// Changes the owner of a connection. The domain is removed if another process looked it up.
pub fn change_owner(
    owner: &mut Option<Arc<Process>>,
    domain: &mut Option<Box<Arc<str>>>,
    new_owner: Option<Arc<Process>>,
) {
    if !is_same(owner.as_deref(), new_owner.as_deref()) {
        *domain = None;
    }
    *owner = new_owner;
}

/// Whether both are the same process, even if it runs another program by now, or both are `None`.
pub fn is_same(one: Option<&Process>, other: Option<&Process>) -> bool {
    let id = |process: &Process| (process.pid, process.start);
    one.map(id) == other.map(id)
}

/// The sides of a TCP connection that have ended it.
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

/// A TCP socket's segment counters at the flow's last packet, and the part of them that is the flow's.
#[derive(Debug, Clone, Copy)]
pub struct SegmentBaseline {
    /// The socket's count of sent segments at the last packet, modulo 2³².
    pub sent: u32,
    /// The socket's count of received segments before this flow, modulo 2³².
    pub received_before: u32,
    /// How many of the sent segments are this flow's; `u16::MAX` stands for that many or more.
    pub sent_by_flow: u16,
    /// How many segments were counted as received at `LiveFlow::last` only because the socket had counted them. They belong to
    /// an earlier packet, or to a packet whose sample has the same time and has not come yet.
    pub early: u16,
    /// How many segments were counted as sent only because the kernel's own count showed them: the samples of their packets have
    /// not come.
    pub late: u16,
}

impl SegmentBaseline {
    /// The counters at the beginning of a flow.
    pub fn since(sent: u32, received: u32) -> Self {
        Self { sent, received_before: received, sent_by_flow: 0, early: 0, late: 0 }
    }
}

/// The last packet sent over TCP, and how it was split into segments.
#[derive(Debug, Clone, Copy, Default)]
pub struct LastSent {
    /// The last packet, in bytes with its headers.
    pub bytes: u32,
    /// Its IP and transport header, in bytes.
    pub headers: u16,
    /// The number of segments that it was split into.
    pub segments: u16,
    /// The payload of a full segment in bytes, estimated from packets that were split; 0 if there were none.
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
    slots: SlotMap<FlowKey, LiveFlow>,
    index: HashTable<FlowKey>,
    hasher: foldhash::fast::RandomState,
}

impl Flows {
    /// How many are live.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// A hash of an id. Two ids have the same hash in one of 65,535 cases.
    pub fn hash(&self, id: &FlowId) -> NonZeroU16 {
        NonZeroU16::new(self.hasher.hash_one(id) as u16).unwrap_or(NonZeroU16::MAX)
    }

    /// Hashes as another table does.
    #[cfg(test)]
    pub fn hash_like(&mut self, other: &Self) {
        assert!(self.slots.is_empty(), "the index has hashes already");
        self.hasher = other.hasher.clone();
    }

    /// The flow with this id.
    pub fn find(&self, id: &FlowId) -> Option<FlowKey> {
        let hash = self.hasher.hash_one(id);
        self.index.find(hash, |key| self.slots[*key].id == *id).copied()
    }

    /// A flow by its key.
    pub fn get(&self, key: FlowKey) -> Option<&LiveFlow> {
        self.slots.get(key)
    }

    /// A flow by its key, to be changed.
    pub fn get_mut(&mut self, key: FlowKey) -> Option<&mut LiveFlow> {
        self.slots.get_mut(key)
    }

    /// The keys of all flows.
    pub fn keys(&self) -> Vec<FlowKey> {
        self.slots.keys().collect()
    }

    /// Adds a flow. No other flow may have the same id.
    pub fn insert(&mut self, flow: LiveFlow) -> FlowKey {
        let hash = self.hasher.hash_one(flow.id);
        let key = self.slots.insert(flow);
        self.index.insert_unique(hash, key, |key| self.hasher.hash_one(self.slots[*key].id));
        key
    }

    /// Removes a flow, also from the list of its socket's flows.
    pub fn remove(&mut self, key: FlowKey, sockets: &mut Sockets) -> Option<LiveFlow> {
        self.unlink(key, sockets);
        let flow = self.slots.get(key)?;
        let hash = self.hasher.hash_one(flow.id);
        if let Ok(found) = self.index.find_entry(hash, |other| *other == key) {
            found.remove();
        }
        self.slots.remove(key)
    }

    /// Moves a flow to the head of a socket's list.
    pub fn link(&mut self, key: FlowKey, socket: SocketKey, sockets: &mut Sockets) {
        if self.slots.get(key).is_none_or(|flow| flow.socket == Some(socket)) {
            return;
        }
        self.unlink(key, sockets);
        let Some(owner) = sockets.get_mut(socket) else { return };
        let head = owner.flows.replace(key);
        if let Some(next) = head.and_then(|head| self.slots.get_mut(head)) {
            next.previous = Some(key);
        }
        let flow = &mut self.slots[key];
        (flow.socket, flow.next) = (Some(socket), head);
    }

    /// The flows of a socket: `head` and those after it in the list.
    pub fn chain(&self, head: Option<FlowKey>) -> impl Iterator<Item = FlowKey> {
        std::iter::successors(head, |key| self.slots.get(*key).and_then(|flow| flow.next))
    }

    fn unlink(&mut self, key: FlowKey, sockets: &mut Sockets) {
        let Some(flow) = self.slots.get_mut(key) else { return };
        let (socket, previous, next) = (flow.socket.take(), flow.previous.take(), flow.next.take());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::since_boot;

    #[test]
    fn a_change_of_owner_removes_the_domain() {
        let process = |pid| Some(Arc::new(Process { start: Some(since_boot(1)), ..Process::new(pid) }));
        let (mut owner, mut domain) = (process(7), Some(Box::new(Arc::from("a.example"))));
        change_owner(&mut owner, &mut domain, process(7));
        assert!(domain.is_some(), "it may run another program by now, but is the same process");
        change_owner(&mut owner, &mut domain, process(8));
        assert_eq!((domain, owner.map(|owner| owner.pid)), (None, Some(8)));
    }
}
