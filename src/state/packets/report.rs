//! What is reported of a flow: its owner and outcome, and why its counters may be inexact.

use std::sync::Arc;
use std::time::Duration;

use super::super::State;
use super::super::flows::LiveFlow;
use crate::model::flow::{Direction, Flow, Inexact, Outcome, Owner, Reason, Transport};
use crate::model::kernel_address::SockAddress;
use crate::model::loss::LostFacts;
use crate::model::process::Process;
use crate::model::time::MonotonicTime;

/// How long packets may still come after the end of a flow.
const LATE_PACKETS: Duration = Duration::from_millis(100);

impl State {
    /// Whether the monitor itself owns the flow.
    pub(super) fn is_own(&self, flow: &LiveFlow) -> bool {
        flow.owner.as_ref().is_some_and(|owner| owner.pid == self.config.own_pid && !owner.kernel)
    }

    /// Whether the flow is to be reported.
    pub(super) fn is_wanted(&self, flow: &LiveFlow) -> bool {
        has_socket(flow) && !self.is_own(flow) && self.accepts_owner(flow.owner.as_ref())
    }

    /// Whether flows of this owner are to be reported.
    pub(super) fn accepts_owner(&self, owner: Option<&Arc<Process>>) -> bool {
        let observed = self.capabilities.control_group.as_deref();
        observed.is_none_or(|group| self.processes.is_in_group(owner, group))
            && self.config.filter.accepts_owner(owner.map(Arc::as_ref))
    }

    /// The flow as it is reported.
    pub(super) fn report(&self, flow: &LiveFlow, sock: Option<SockAddress>, reason: Reason) -> Flow {
        let owner = match &flow.owner {
            Some(process) if process.kernel => Owner::Kernel,
            Some(process) => Owner::Process(Arc::clone(process)),
            None => Owner::Unknown,
        };
        // If the first packets may be missing, it is not known which side began. Not so with TCP, where a handshake or a call
        // shows it.
        let (direction, complete) = match flow.id.transport {
            Transport::Udp if self.may_lack_beginning(flow) => (Direction::Unknown, false),
            _ => (flow.direction, flow.complete),
        };
        Flow {
            number: flow.number,
            transport: flow.id.transport,
            local: flow.id.local,
            remote: flow.id.remote,
            sock,
            net: flow.net,
            direction,
            owner,
            last_user: flow.last_user.clone(),
            start: flow.start,
            end: flow.last.max(flow.start),
            sent: flow.sent,
            received: flow.received,
            dropped: flow.dropped,
            complete,
            is_final: !matches!(reason, Reason::Shutdown | Reason::Interim),
            domain: flow.domain.as_deref().cloned(),
            outcome: outcome(flow),
            reason,
            inexact: self.inexact(flow),
        }
    }

    /// Whether its socket had a fragmented packet whose flow is not known.
    pub(super) fn may_be_fragmented(&self, flow: &LiveFlow) -> bool {
        flow.socket.and_then(|key| self.sockets.get(key)).is_some_and(|socket| socket.fragmented)
    }

    /// Whether something of the flow may have been lost.
    fn may_lack_samples(&self, flow: &LiveFlow) -> bool {
        let packets = LostFacts::packets(flow.id.transport, flow.id.remote.ip);
        let end_is_known = match flow.id.transport {
            Transport::Tcp => flow.reached_tcp_close && flow.outcome != Outcome::Unknown,
            Transport::Udp => flow.closing,
        };
        // Only an acknowledgement, and packets in flight, follow the end of a flow.
        let to = if end_is_known { flow.last.saturating_add(LATE_PACKETS) } else { MonotonicTime::MAX };
        self.loss_history.overlaps(packets, flow.may_miss_packets_since, to)
            || (!end_is_known && self.loss_history.overlaps(LostFacts::OUTCOMES, flow.start, MonotonicTime::MAX))
            || (flow.owner.is_some() && self.may_have_other_owner(flow))
    }

    /// Whether the owner may be out of date because of a loss.
    fn may_have_other_owner(&self, flow: &LiveFlow) -> bool {
        // Until it is accepted, a connection belongs to the listener's owner.
        let may_have_listener = flow.id.transport == Transport::Tcp && flow.direction != Direction::Egress;
        let is_accepted = !may_have_listener || flow.accepted;
        self.loss_history.overlaps(LostFacts::OWNERS, flow.owner_since, flow.start)
            || (!is_accepted && self.loss_history.overlaps(LostFacts::ACCEPTS, flow.owner_since, MonotonicTime::MAX))
            || (flow.doubtful && flow.owner.as_ref().is_some_and(|owner| self.processes.is_doubtful(owner)))
    }

    /// Whether its first packets may have been lost, so that it is not known which side began it.
    fn may_lack_beginning(&self, flow: &LiveFlow) -> bool {
        let packets = LostFacts::packets(flow.id.transport, flow.id.remote.ip);
        let before = flow.start.saturating_sub(Duration::from_nanos(1));
        flow.may_miss_packets_since < flow.start
            && self.loss_history.overlaps(packets, flow.may_miss_packets_since, before)
    }

    /// Why the counters may be inexact.
    fn inexact(&self, flow: &LiveFlow) -> Inexact {
        Inexact {
            fragments: flow.inexact.fragments || self.may_be_fragmented(flow),
            samples_lost: flow.inexact.samples_lost || self.may_lack_samples(flow),
            headers_unread: flow.inexact.headers_unread || self.had_unreadable_packets(flow.start, &flow.id, flow.net),
            unseen_packets: self.capabilities.full_sockets_only && has_small_socket(flow),
            ..flow.inexact
        }
    }
}

/// Whether the flow belongs to a socket of this host. A flow that had its own socket may have outlived it.
pub(super) fn has_socket(flow: &LiveFlow) -> bool {
    flow.socket.is_some() || flow.has_own_socket
}

/// Whether packets of a TCP connection belong to one of the kernel's small sockets: the other side's FIN comes after the close,
/// or the SYN-ACK was not sent by a full socket.
fn has_small_socket(flow: &LiveFlow) -> bool {
    let without_syn_ack =
        flow.complete && flow.direction == Direction::Ingress && flow.outcome == Outcome::Success && !flow.syn_acked;
    flow.id.transport == Transport::Tcp && ((flow.reached_tcp_close && flow.fins.is_half_closed()) || without_syn_ack)
}

/// The outcome of a flow. It has also failed if nothing arrived and nothing left, because this host dropped all that it sent.
fn outcome(flow: &LiveFlow) -> Outcome {
    let all_dropped = flow.dropped.packets > 0 && flow.sent.packets == 0 && flow.received.packets == 0;
    match flow.outcome {
        Outcome::Unknown if all_dropped => Outcome::Failure(flow.soft_error.into()),
        outcome => outcome,
    }
}
