//! Conversations of which some packet could not be read: their flows are not exact, whether they have begun yet or not.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::flows::FlowId;
use crate::event::{KernelAddress, KernelTime, Transport, Unreadable};

/// How many conversations are remembered: packets with options are next to never seen, unless somebody means harm.
const MOST: usize = 1024;

/// What is known of a conversation when its addresses are not: the ports of this host's and of the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    net: KernelAddress,
    transport: Transport,
    local: u16,
    remote: u16,
}

impl Ports {
    /// Of a packet, if they could be read.
    pub fn of(packet: &Unreadable) -> Option<Self> {
        let Unreadable { net, transport, ports, .. } = *packet;
        ports.map(|(local, remote)| Self { net, transport, local, remote })
    }

    /// Of a flow.
    pub fn of_flow(id: &FlowId, net: KernelAddress) -> Self {
        Self { net, transport: id.transport, local: id.local.port, remote: id.remote.port }
    }
}

/// The last of these conversations.
#[derive(Debug, Default)]
pub struct Unread {
    last: HashMap<Ports, KernelTime, foldhash::fast::RandomState>,
    order: VecDeque<Ports>,
    /// Conversations that found no room any more.
    pub forgotten: u64,
}

impl Unread {
    /// Remembers a packet's conversation. The one that is known longest makes room.
    pub fn note(&mut self, now: KernelTime, ports: Ports) {
        if self.last.insert(ports, now).is_some() {
            return;
        }
        self.order.push_back(ports);
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.last.remove(&oldest);
            self.forgotten += 1;
        }
    }

    /// Whether a packet of this conversation was among them, at `since` or later.
    pub fn touches(&self, ports: Ports, since: KernelTime) -> bool {
        !self.last.is_empty() && self.last.get(&ports).is_some_and(|last| *last >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: u64 = 1;

    fn ports(local: u16, remote: u16) -> Ports {
        Ports { net: NET, transport: Transport::Tcp, local, remote }
    }

    #[test]
    fn a_conversation_is_known_by_its_ports() {
        let mut unread = Unread::default();
        assert!(!unread.touches(ports(1, 2), 0));
        unread.note(100, ports(1, 2));
        assert!(unread.touches(ports(1, 2), 100));
        assert!(!unread.touches(ports(1, 2), 101), "long ago");
        assert!(!unread.touches(ports(2, 1), 0) && !unread.touches(Ports { net: NET + 1, ..ports(1, 2) }, 0));
        unread.note(200, ports(1, 2));
        assert!(unread.touches(ports(1, 2), 200));
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut unread = Unread::default();
        for port in 0..=u16::try_from(MOST).unwrap() {
            unread.note(u64::from(port), ports(port, 80));
            unread.note(u64::from(port), ports(port, 80));
        }
        assert!(!unread.touches(ports(0, 80), 0) && unread.touches(ports(1, 80), 0));
        assert_eq!((unread.last.len(), unread.order.len(), unread.forgotten), (MOST, MOST, 1));
    }
}
