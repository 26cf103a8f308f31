//! Packets that were counted as sent and then dropped by the host itself.

use std::collections::VecDeque;

use super::counting::DroppedAs;
use super::flows::{FlowId, FlowKey, Flows};
use super::sockets::UdpKind;
use super::{State, counting};
use crate::model::event::{Dropped, Tuple};
use crate::model::flow::{Endpoint, Transport};
use crate::model::time::MonotonicTime;

/// The maximum number of remembered packets that were not sent by their flow's own socket.
const MAX_SENT_BY_OTHERS: usize = 64;
/// The maximum number of flows of a socket that are searched for the one with a packet's addresses.
const MAX_SEARCHED_FLOWS: usize = 64;

impl State {
    /// Subtracts a packet that was counted as sent, or marks the flows that it may belong to.
    pub(super) fn dropped(&mut self, now: MonotonicTime, packet: &Dropped) {
        let is_filtered = |(local, remote)| !self.config.filter.accepts(&Tuple { net: None, local, remote });
        if packet.ends.is_some_and(is_filtered) || (packet.may_have_arrived && self.has_arrived(packet)) {
            return;
        }
        if packet.sock.is_none() && packet.may_have_arrived {
            // Without a link header, as in a tunnel, an arriving packet looks the same as an outgoing one.
            return self.mark_connection_of_reply(packet);
        }
        if packet.with_others {
            self.mark_dropped(packet);
        }
        let Some(transport) = packet.transport else {
            // If its ports could not be read, its flow is not known. If it never came to IP, it was not counted as a packet,
            // but TCP has counted it as a segment sent.
            return self.mark_dropped(packet);
        };
        if let Some(flow_key) = self.flow_of_dropped(transport, packet) {
            self.subtract_dropped(now, flow_key, transport, packet);
        } else if let Some(flow_key) = self.only_flow_of_socket(transport, packet) {
            self.subtract_dropped(now, flow_key, transport, packet);
            self.mark_dropped(packet);
        } else {
            self.mark_dropped(packet);
        }
    }

    /// Whether the packet was arriving: its source is the remote end of a flow of its socket, and its destination the local end.
    /// (The kernel also sets `sk_buff.sk` of packets that it receives.)
    fn has_arrived(&self, packet: &Dropped) -> bool {
        let (Some((remote, local)), Some(socket)) = (packet.ends, self.sockets.at(packet.sock)) else { return false };
        let flows = self.sockets.get(socket).and_then(|socket| socket.flows);
        let is_reverse = |flow_key: FlowKey| {
            self.flows.get(flow_key).is_some_and(|flow| (flow.id.local, flow.id.remote) == (local, remote))
        };
        local != remote && self.flows.chain(flows).take(MAX_SEARCHED_FLOWS).any(is_reverse)
    }

    /// Subtracts a dropped packet from its flow.
    fn subtract_dropped(&mut self, now: MonotonicTime, flow_key: FlowKey, transport: Transport, packet: &Dropped) {
        let is_segments = transport == Transport::Tcp && packet.ends.is_some();
        let dropped_as = if is_segments { DroppedAs::Segments } else { DroppedAs::OnePacket };
        let is_deferred = self.defer_drop(now, flow_key, packet.bytes, dropped_as);
        if let Some(flow) = self.flows.get_mut(flow_key) {
            if !is_deferred {
                counting::subtract_dropped(flow, packet.bytes, dropped_as);
            }
            flow.inexact.dropped_locally |= packet.may_be_drivers && self.capabilities.driver_drops_unclear;
        }
    }

    /// The flow with the addresses in the packet's own headers, if its socket sent the packet.
    fn flow_of_dropped(&mut self, transport: Transport, packet: &Dropped) -> Option<FlowKey> {
        let (local, remote) = packet.ends?;
        if transport == Transport::Udp {
            return self.flows.find(&FlowId { scope: packet.sock.into(), transport, local, remote });
        }
        let is_between = |flow_key: &FlowKey| is_between(&self.flows, *flow_key, local, remote);
        let socket = self.sockets.at(packet.sock).and_then(|key| self.sockets.get(key));
        let own = self.flows.chain(socket.and_then(|socket| socket.flows)).take(MAX_SEARCHED_FLOWS).find(is_between);
        // A program may forge packets of any flow with a raw socket and have them dropped. They must not be subtracted.
        let is_kernel_socket = socket.is_none_or(|socket| socket.udp_kind == UdpKind::Kernel);
        own.or_else(|| is_kernel_socket.then(|| self.sent_by_others.take(&self.flows, local, remote)).flatten())
    }

    /// The only flow of the packet's socket, for a packet whose headers do not show its flow: its destination was translated, or
    /// it is a fragment.
    fn only_flow_of_socket(&self, transport: Transport, packet: &Dropped) -> Option<FlowKey> {
        let of_socket = self.sockets.get(self.sockets.at(packet.sock)?)?.flows;
        let mut all = self.flows.chain(of_socket);
        let (flow_key, others) = (all.next()?, all.next());
        let id = self.flows.get(flow_key)?.id;
        let is_from_there = packet.ends.is_none_or(|(local, _)| local == id.local);
        (others.is_none() && id.transport == transport && is_from_there).then_some(flow_key)
    }

    /// Marks the connection of a dropped socketless reply that cannot be subtracted.
    fn mark_connection_of_reply(&mut self, packet: &Dropped) {
        let (Some(Transport::Tcp), Some((local, remote))) = (packet.transport, packet.ends) else { return };
        let id = FlowId::tcp(&Tuple { net: None, local, remote });
        if let Some(flow) = self.connection_of_reply(id).and_then(|(_, flow_key)| self.flows.get_mut(flow_key)) {
            flow.inexact.dropped_locally = true;
        }
    }

    /// Marks all flows of the packet's socket, because it is not known which of them it belongs to.
    fn mark_dropped(&mut self, packet: &Dropped) {
        if packet.sock.is_none() {
            return self.mark_connection_of_reply(packet);
        }
        let Some(socket) = self.sockets.at(packet.sock).and_then(|key| self.sockets.get(key)) else { return };
        if let Some(idle) = socket.idle.and_then(|idle| self.idle.get_mut(idle)) {
            idle.segments = None; // the socket has counted what did not leave
        }
        let flows: Vec<_> = self.flows.chain(socket.flows).collect();
        for flow_key in flows {
            let Some(flow) = self.flows.get_mut(flow_key) else { continue };
            // A packet that never came to IP matters to TCP only, which has counted its segments. A packet that came to IP may
            // be encapsulated, and then has the transport of the outer packet.
            let came_to_ip = packet.other_protocol || packet.transport.is_some();
            flow.inexact.dropped_locally |= came_to_ip || flow.id.transport == Transport::Tcp;
        }
    }
}

/// Whether it is a TCP flow between these ends.
fn is_between(flows: &Flows, flow_key: FlowKey, local: Endpoint, remote: Endpoint) -> bool {
    flows.get(flow_key).is_some_and(|flow| {
        let FlowId { transport, local: from, remote: to, .. } = flow.id;
        (transport, from, to) == (Transport::Tcp, local, remote)
    })
}

/// The flows of the last TCP packets that were not sent by the flow's own socket: answers to a SYN, resets, and packets
/// in TIME_WAIT. The kernel sends them through internal sockets of its own.
#[derive(Debug, Default)]
pub struct SentByOthers(VecDeque<FlowKey>);

impl SentByOthers {
    /// Remembers the flow of such a packet.
    pub fn note(&mut self, flow_key: FlowKey) {
        if self.0.len() == MAX_SENT_BY_OTHERS {
            self.0.pop_front();
        }
        self.0.push_back(flow_key);
    }

    /// Takes out the flow of the last such packet between these ends: each packet can be dropped only once.
    fn take(&mut self, flows: &Flows, local: Endpoint, remote: Endpoint) -> Option<FlowKey> {
        let last = self.0.iter().rposition(|flow_key| is_between(flows, *flow_key, local, remote))?;
        self.0.remove(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_remembered_flows_is_bounded() {
        let mut sent = SentByOthers::default();
        (0..2 * MAX_SENT_BY_OTHERS).for_each(|_| sent.note(FlowKey::default()));
        assert_eq!(sent.0.len(), MAX_SENT_BY_OTHERS);
    }
}
