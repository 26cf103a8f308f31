//! What is reported of a flow: its owner and outcome, and why its counters may be inexact.

use std::sync::Arc;
use std::time::Duration;

use super::super::State;
use super::super::flows::LiveFlow;
use crate::model::flow::{Direction, Flow, Inexact, Outcome, Owner, Reason, Transport};
use crate::model::kernel_address::SockAddress;
use crate::model::loss::Harm;
use crate::model::time::MonotonicTime;

/// How long packets may still come after the end of a flow.
const LATE_PACKETS: Duration = Duration::from_millis(100);

impl State {
    /// Whether the monitor itself owns the flow.
    pub(super) fn is_own(&self, live: &LiveFlow) -> bool {
        live.owner.as_ref().is_some_and(|owner| owner.pid == self.config.own_pid && !owner.kernel)
    }

    /// Whether the flow is to be reported.
    pub(super) fn is_wanted(&self, live: &LiveFlow) -> bool {
        has_socket(live) && !self.is_own(live) && self.config.filter.accepts_owner(live.owner.as_deref())
    }

    /// The flow as it is reported.
    pub(super) fn report(&self, live: &LiveFlow, sock: Option<SockAddress>, reason: Reason) -> Flow {
        let owner = match &live.owner {
            Some(process) if process.kernel => Owner::Kernel,
            Some(process) => Owner::Process(Arc::clone(process)),
            None => Owner::Unknown,
        };
        // If the first packets may be missing, it is not known which side began. Not so with TCP, where a handshake or a call
        // shows it.
        let (direction, complete) = match live.id.transport {
            Transport::Udp if self.may_lack_beginning(live) => (Direction::Unknown, false),
            _ => (live.direction, live.complete),
        };
        Flow {
            number: live.number,
            transport: live.id.transport,
            local: live.id.local,
            remote: live.id.remote,
            sock,
            net: live.net,
            direction,
            owner,
            last_user: live.last_user.clone(),
            start: live.start,
            end: live.last.max(live.start),
            sent: live.sent,
            received: live.received,
            dropped: live.dropped,
            complete,
            is_final: !matches!(reason, Reason::Shutdown | Reason::Interim),
            domain: live.domain.as_deref().cloned(),
            outcome: outcome(live),
            reason,
            inexact: self.inexact(live),
        }
    }

    /// Whether its socket had a fragmented packet whose flow is not known.
    pub(super) fn may_be_fragmented(&self, live: &LiveFlow) -> bool {
        live.socket.and_then(|key| self.sockets.get(key)).is_some_and(|socket| socket.fragmented)
    }

    /// Whether something of the flow may have been lost.
    fn may_lack_samples(&self, live: &LiveFlow) -> bool {
        let packets = Harm::packets(live.id.transport, live.id.remote.ip);
        let end_is_known = match live.id.transport {
            Transport::Tcp => live.uncounted && live.outcome != Outcome::Unknown,
            Transport::Udp => live.closing,
        };
        // Only an acknowledgement, and packets in flight, follow the end of a flow.
        let to = if end_is_known { live.last.saturating_add(LATE_PACKETS) } else { MonotonicTime::MAX };
        self.loss_history.overlaps(packets, live.exposed, to)
            || (!end_is_known && self.loss_history.overlaps(Harm::OUTCOMES, live.start, MonotonicTime::MAX))
            || (live.owner.is_some() && self.may_have_other_owner(live))
    }

    /// Whether the owner may be out of date because of a loss.
    fn may_have_other_owner(&self, live: &LiveFlow) -> bool {
        // Until it is accepted, a connection belongs to the listener's owner.
        let is_listeners = live.id.transport == Transport::Tcp && live.direction != Direction::Egress;
        let is_accepted = !is_listeners || live.accepted;
        self.loss_history.overlaps(Harm::OWNERS, live.owner_since, live.start)
            || (!is_accepted && self.loss_history.overlaps(Harm::ACCEPTS, live.owner_since, MonotonicTime::MAX))
            || (live.doubtful && live.owner.as_ref().is_some_and(|owner| self.processes.is_doubtful(owner)))
    }

    /// Whether its first packets may have been lost, so that it is not known which side began it.
    fn may_lack_beginning(&self, live: &LiveFlow) -> bool {
        let packets = Harm::packets(live.id.transport, live.id.remote.ip);
        let before = live.start.saturating_sub(Duration::from_nanos(1));
        live.exposed < live.start && self.loss_history.overlaps(packets, live.exposed, before)
    }

    /// Why the counters may be inexact.
    fn inexact(&self, live: &LiveFlow) -> Inexact {
        Inexact {
            fragments: live.inexact.fragments || self.may_be_fragmented(live),
            samples_lost: live.inexact.samples_lost || self.may_lack_samples(live),
            headers_unread: live.inexact.headers_unread || self.had_unparsed_packets(live.start, &live.id, live.net),
            ..live.inexact
        }
    }
}

/// Whether the flow belongs to a socket of this host. A bound flow may have outlived its socket.
pub(super) fn has_socket(live: &LiveFlow) -> bool {
    live.socket.is_some() || live.bound
}

/// The outcome of a flow. It has also failed if nothing arrived and nothing left, because this host dropped all that it sent.
fn outcome(live: &LiveFlow) -> Outcome {
    let nothing = live.sent.packets == 0 && live.received.packets == 0;
    match live.outcome {
        Outcome::Unknown if nothing => Outcome::Failure(live.noted_error),
        outcome => outcome,
    }
}
