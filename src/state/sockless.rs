//! Packets that leave without a socket on kernels before 4.1: resets, and acknowledgements in TIME_WAIT. There a packet's
//! network namespace is known from its socket, so it is not known for these packets. But each of them answers a packet that
//! has just arrived.

use super::State;
use super::flows::{FlowId, FlowKey};
use crate::model::event::{Packet, PacketDirection, Tuple};
use crate::model::flow::Transport;
use crate::model::kernel_address::NetAddress;

/// The maximum number of remembered namespaces. The answer follows at once; only packets of other CPUs come between.
const MAX_NAMESPACES: usize = 8;

/// The namespaces in which TCP packets arrived last, the latest first.
#[derive(Debug, Default)]
pub struct LastNamespaces([Option<NetAddress>; MAX_NAMESPACES]);

impl LastNamespaces {
    /// A packet arrived in this namespace.
    fn note(&mut self, net: Option<NetAddress>) {
        if self.0[0] != net && net.is_some() {
            let known = self.0.iter().position(|one| *one == net).unwrap_or(MAX_NAMESPACES - 1);
            self.0[..=known].rotate_right(1);
            self.0[0] = net;
        }
    }
}

impl State {
    /// A copy of the packet with the namespace of the connection that it answers, if it has none itself. `None` for all other
    /// packets, and if no such connection is known.
    pub(super) fn in_namespace_of_connection(&mut self, packet: &Packet) -> Option<Packet> {
        match (packet.transport, packet.direction) {
            (Transport::Tcp, PacketDirection::Inbound) => {
                self.last_namespaces.note(packet.tuple.net);
                None
            }
            (Transport::Tcp, PacketDirection::Outbound) if packet.tuple.net.is_none() && packet.sock.is_none() => {
                let (net, _) = self.connection_of_reply(FlowId::of(packet))?;
                Some(Packet { tuple: Tuple { net: Some(net), ..packet.tuple }, ..*packet })
            }
            _ => None,
        }
    }

    /// The connection between these ends, with its namespace, among the last namespaces in which packets arrived.
    pub(super) fn connection_of_reply(&self, id: FlowId) -> Option<(NetAddress, FlowKey)> {
        let mut namespaces = self.last_namespaces.0.into_iter().flatten();
        namespaces.find_map(|net| Some((net, self.flows.find(&FlowId { scope: Some(net).into(), ..id })?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_namespaces_are_kept_without_repetition() {
        let mut last = LastNamespaces::default();
        for net in [1, 2, 0, 1, 1, 3, 2] {
            last.note(NetAddress::new(net));
        }
        assert_eq!(last.0, [2, 3, 1, 0, 0, 0, 0, 0].map(NetAddress::new));
        (10..20).for_each(|net| last.note(NetAddress::new(net)));
        assert_eq!(last.0, [19, 18, 17, 16, 15, 14, 13, 12].map(NetAddress::new));
    }
}
