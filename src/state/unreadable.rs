//! Conversations with packets whose headers could not be read. Their flows are inexact, also those that begin later.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::flows::FlowId;
use crate::model::event::UnreadablePacket;
use crate::model::flow::Transport;
use crate::model::kernel_address::NetAddress;
use crate::model::time::MonotonicTime;

/// The maximum number of remembered conversations. Packets with IP options are very rare, except in an attack.
const MAX_CONVERSATIONS: usize = 1024;

/// A conversation whose addresses are not known: its namespace, transport and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    net: Option<NetAddress>,
    transport: Transport,
    local: u16,
    remote: u16,
}

impl Ports {
    /// The ports of a packet, if they could be read.
    pub fn of(packet: &UnreadablePacket) -> Option<Self> {
        let UnreadablePacket { net, transport, ports, .. } = *packet;
        ports.map(|(local, remote)| Self { net, transport, local, remote })
    }

    /// The ports of a flow.
    pub fn of_flow(id: &FlowId, net: Option<NetAddress>) -> Self {
        Self { net, transport: id.transport, local: id.local.port, remote: id.remote.port }
    }
}

/// The latest conversations with packets whose headers could not be read.
#[derive(Debug, Default)]
pub struct UnreadablePackets {
    /// The time of the last such packet of each conversation.
    last: HashMap<Ports, MonotonicTime, foldhash::fast::RandomState>,
    /// The conversations, the oldest first.
    order: VecDeque<Ports>,
    /// Conversations that were removed to make room.
    pub forgotten: u64,
}

impl UnreadablePackets {
    /// Remembers a packet's conversation. If there are too many, the oldest is removed.
    pub fn note(&mut self, now: MonotonicTime, ports: Ports) {
        if self.last.insert(ports, now).is_some() {
            return;
        }
        self.order.push_back(ports);
        if self.order.len() > MAX_CONVERSATIONS
            && let Some(oldest) = self.order.pop_front()
        {
            self.last.remove(&oldest);
            self.forgotten += 1;
        }
    }

    /// Whether this conversation had such a packet at `since` or later.
    pub fn had_packet_since(&self, ports: Ports, since: MonotonicTime) -> bool {
        !self.last.is_empty() && self.last.get(&ports).is_some_and(|last| *last >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::monotonic;

    const NET: u64 = 1;

    fn ports(local: u16, remote: u16) -> Ports {
        Ports { net: NetAddress::new(NET), transport: Transport::Tcp, local, remote }
    }

    #[test]
    fn a_conversation_is_known_by_its_ports() {
        let mut unreadable = UnreadablePackets::default();
        assert!(!unreadable.had_packet_since(ports(1, 2), monotonic(0)));
        unreadable.note(monotonic(100), ports(1, 2));
        assert!(unreadable.had_packet_since(ports(1, 2), monotonic(100)));
        assert!(!unreadable.had_packet_since(ports(1, 2), monotonic(101)), "long ago");
        assert!(
            !unreadable.had_packet_since(ports(2, 1), monotonic(0))
                && !unreadable.had_packet_since(Ports { net: NetAddress::new(NET + 1), ..ports(1, 2) }, monotonic(0))
        );
        unreadable.note(monotonic(200), ports(1, 2));
        assert!(unreadable.had_packet_since(ports(1, 2), monotonic(200)));
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut unreadable = UnreadablePackets::default();
        for port in 0..=u16::try_from(MAX_CONVERSATIONS).unwrap() {
            unreadable.note(monotonic(u64::from(port)), ports(port, 80));
            unreadable.note(monotonic(u64::from(port)), ports(port, 80));
        }
        assert!(
            !unreadable.had_packet_since(ports(0, 80), monotonic(0))
                && unreadable.had_packet_since(ports(1, 80), monotonic(0))
        );
        assert_eq!(
            (unreadable.last.len(), unreadable.order.len(), unreadable.forgotten),
            (MAX_CONVERSATIONS, MAX_CONVERSATIONS, 1)
        );
    }
}
