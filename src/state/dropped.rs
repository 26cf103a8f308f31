//! Packets that were counted as sent and then dropped by the host itself.

use std::collections::VecDeque;

use super::flows::{FlowId, FlowKey, Flows};
use super::sockets::Datagrams;
use super::{State, counting};
use crate::event::{Dropped, Endpoint, Transport, Tuple};

/// How many of the last packets sent by another than the flow's own socket are remembered.
const MOST: usize = 64;
/// How many flows of a socket are searched for the one that a packet's headers name.
const MOST_FLOWS: usize = 64;

impl State {
    /// Subtracts a packet that was counted as sent, or marks the flows that it may belong to.
    pub(super) fn dropped(&mut self, packet: &Dropped) {
        let is_filtered = |(local, remote)| !self.config.filter.lets_tuple_pass(&Tuple { net: 0, local, remote });
        if packet.ends.is_some_and(is_filtered) || (packet.may_have_arrived && self.has_arrived(packet)) {
            return;
        }
        if packet.sock == 0 && packet.may_have_arrived {
            // Without a link header it looks the same when it arrives, as over a tunnel.
            return self.mark_connection_of_reply(packet);
        }
        if packet.with_others {
            self.mark_dropped(packet);
        }
        let Some(transport) = packet.transport else {
            // If its ports are hidden, its flow is not known. If it never came to IP, it was not counted as a packet,
            // but TCP has counted it as a segment sent.
            return self.mark_dropped(packet);
        };
        if let Some(flow) = self.flow_of_dropped(transport, packet) {
            self.take_back(flow, transport, packet);
        } else if let Some(flow) = self.translated(transport, packet) {
            self.take_back(flow, transport, packet);
            self.mark_dropped(packet);
        } else {
            self.mark_dropped(packet);
        }
    }

    /// Whether a packet's headers name a flow of its socket the other way round: the kernel also notes the socket that a
    /// packet is for.
    fn has_arrived(&self, packet: &Dropped) -> bool {
        let (Some((remote, local)), Some(socket)) = (packet.ends, self.sockets.at(packet.sock)) else { return false };
        let flows = self.sockets.get(socket).and_then(|socket| socket.flows);
        let is_reverse =
            |flow: FlowKey| self.flows.get(flow).is_some_and(|live| (live.id.local, live.id.remote) == (local, remote));
        local != remote && self.flows.chain(flows).take(MOST_FLOWS).any(is_reverse)
    }

    fn take_back(&mut self, flow: FlowKey, transport: Transport, packet: &Dropped) {
        if let Some(live) = self.flows.get_mut(flow) {
            let may_be_several = transport == Transport::Tcp && packet.ends.is_some();
            counting::take_back(live, packet.bytes, may_be_several);
        }
    }

    /// The flow that a packet's own headers name, and whose socket sent it.
    fn flow_of_dropped(&mut self, transport: Transport, packet: &Dropped) -> Option<FlowKey> {
        let (local, remote) = packet.ends?;
        if transport == Transport::Udp {
            return self.flows.find(&FlowId { scope: packet.sock, transport, local, remote });
        }
        let is_between = |flow: &FlowKey| is_between(&self.flows, *flow, local, remote);
        let socket = self.sockets.at(packet.sock).and_then(|key| self.sockets.get(key));
        let own = self.flows.chain(socket.and_then(|socket| socket.flows)).take(MOST_FLOWS).find(is_between);
        // A program's raw socket may forge packets of any flow and have them dropped: those must not be subtracted.
        let is_kernels = socket.is_none_or(|socket| socket.datagrams == Datagrams::Kernel);
        own.or_else(|| is_kernels.then(|| self.sent_by_others.take(&self.flows, local, remote)).flatten())
    }

    /// The socket's flow, if it has only one, for a packet whose headers do not name it: its destination was
    /// translated, or it is a fragment.
    fn translated(&self, transport: Transport, packet: &Dropped) -> Option<FlowKey> {
        let of_socket = self.sockets.get(self.sockets.at(packet.sock)?)?.flows;
        let mut all = self.flows.chain(of_socket);
        let (flow, others) = (all.next()?, all.next());
        let id = self.flows.get(flow)?.id;
        let is_from_there = packet.ends.is_none_or(|(local, _)| local == id.local);
        (others.is_none() && id.transport == transport && is_from_there).then_some(flow)
    }

    /// Marks the connection of a dropped socketless reply that is no longer among the remembered ones.
    fn mark_connection_of_reply(&mut self, packet: &Dropped) {
        let (Some(Transport::Tcp), Some((local, remote))) = (packet.transport, packet.ends) else { return };
        let id = FlowId { scope: 0, transport: Transport::Tcp, local, remote };
        if let Some(live) = self.connection_of_reply(id).and_then(|(_, flow)| self.flows.get_mut(flow)) {
            live.inexact.dropped_locally = true;
        }
    }

    /// Marks all flows of the packet's socket, because it is not known which of them it belongs to.
    fn mark_dropped(&mut self, packet: &Dropped) {
        if packet.sock == 0 {
            return self.mark_connection_of_reply(packet);
        }
        let Some(socket) = self.sockets.at(packet.sock).and_then(|key| self.sockets.get(key)) else { return };
        if let Some(idle) = socket.idle.and_then(|idle| self.idle.get_mut(idle)) {
            idle.segments = None; // the socket has counted what did not leave
        }
        let flows: Vec<_> = self.flows.chain(socket.flows).collect();
        for flow in flows {
            let Some(live) = self.flows.get_mut(flow) else { continue };
            // Packets that never came to IP matter to TCP only, where they were counted as segments. Others may be
            // encapsulated, and then have the transport of the outer packet.
            let came_to_ip = packet.other_protocol || packet.transport.is_some();
            live.inexact.dropped_locally |= came_to_ip || live.id.transport == Transport::Tcp;
        }
    }
}

fn is_between(flows: &Flows, flow: FlowKey, local: Endpoint, remote: Endpoint) -> bool {
    flows.get(flow).is_some_and(|live| {
        let FlowId { transport, local: from, remote: to, .. } = live.id;
        (transport, from, to) == (Transport::Tcp, local, remote)
    })
}

/// The flows of the last TCP packets that were not sent by the flow's own socket: answers to a SYN, resets, and packets
/// in TIME_WAIT. The kernel sends them through internal sockets of its own.
#[derive(Debug, Default)]
pub struct SentByOthers(VecDeque<FlowKey>);

impl SentByOthers {
    /// Remembers the flow of such a packet.
    pub fn note(&mut self, flow: FlowKey) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(flow);
    }

    /// Takes out the flow of the last such packet between these ends: each packet can be dropped only once.
    fn take(&mut self, flows: &Flows, local: Endpoint, remote: Endpoint) -> Option<FlowKey> {
        let last = self.0.iter().rposition(|flow| is_between(flows, *flow, local, remote))?;
        self.0.remove(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_senders_are_remembered() {
        let mut sent = SentByOthers::default();
        (0..2 * MOST).for_each(|_| sent.note(FlowKey::default()));
        assert_eq!(sent.0.len(), MOST);
    }
}
