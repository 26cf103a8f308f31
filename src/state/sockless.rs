//! Packets that leave without a socket, on kernels before 4.1: resets, and acknowledgements in TIME_WAIT. There the
//! namespace of a packet is its socket's, so these have none; but each answers a packet that has just arrived.

use super::State;
use super::flows::{FlowId, FlowKey};
use crate::event::{KernelAddress, Packet, Transport, Tuple, Way};

/// How many namespaces are remembered. The answer follows at once; only other processors' packets come between.
const MOST: usize = 8;

/// The namespaces in which TCP packets arrived last, the latest first.
#[derive(Debug, Default)]
pub struct LastNamespaces([KernelAddress; MOST]);

impl LastNamespaces {
    /// A packet arrived in this one.
    fn note(&mut self, net: KernelAddress) {
        if self.0[0] != net && net != 0 {
            let known = self.0.iter().position(|one| *one == net).unwrap_or(MOST - 1);
            self.0[..=known].rotate_right(1);
            self.0[0] = net;
        }
    }
}

impl State {
    /// A copy of the packet with the namespace of the connection that it answers, if it has none itself. `None` for all other
    /// packets, and if no such connection is known.
    pub(super) fn in_namespace_of_cause(&mut self, packet: &Packet) -> Option<Packet> {
        match (packet.transport, packet.way) {
            (Transport::Tcp, Way::In) => {
                self.last_namespaces.note(packet.tuple.net);
                None
            }
            (Transport::Tcp, Way::Out) if packet.tuple.net == 0 && packet.sock == 0 => {
                let (net, _) = self.connection_of_reply(FlowId::of(packet))?;
                Some(Packet { tuple: Tuple { net, ..packet.tuple }, ..*packet })
            }
            _ => None,
        }
    }

    /// The connection between these ends, with its namespace, among the last namespaces in which packets arrived.
    pub(super) fn connection_of_reply(&self, id: FlowId) -> Option<(KernelAddress, FlowKey)> {
        let mut namespaces = self.last_namespaces.0.into_iter().filter(|net| *net != 0);
        namespaces.find_map(|net| Some((net, self.flows.find(&FlowId { scope: net, ..id })?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_namespaces_are_kept_without_repetition() {
        let mut last = LastNamespaces::default();
        for net in [1, 2, 0, 1, 1, 3, 2] {
            last.note(net);
        }
        assert_eq!(last.0, [2, 3, 1, 0, 0, 0, 0, 0]);
        (10..20).for_each(|net| last.note(net));
        assert_eq!(last.0, [19, 18, 17, 16, 15, 14, 13, 12]);
    }
}
