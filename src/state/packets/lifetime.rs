//! How flows begin, time out and end.

use super::super::State;
use super::super::flows::{Beginning, FlowId, FlowKey, LiveFlow};
use super::super::idle::Idle;
use super::super::questions::Purpose;
use super::super::sockets::SocketKey;
use super::super::wheel::Tick;
use super::report::has_socket;
use crate::model::flow::{Direction, Reason, Transport};
use crate::model::kernel_address::{NetAddress, SockAddress};
use crate::model::time::MonotonicTime;

impl State {
    /// Adds a flow that begins at `now`.
    pub(in crate::state) fn open(
        &mut self,
        now: MonotonicTime,
        id: FlowId,
        net: Option<NetAddress>,
        socket: Option<SocketKey>,
        direction: Direction,
        beginning: Beginning,
    ) -> FlowKey {
        self.make_room();
        let complete = beginning == Beginning::Seen;
        self.stats.flows_started += 1;
        let flow = self.flows.insert(LiveFlow {
            net,
            number: self.stats.flows_started,
            direction,
            // An earlier flow with the same addresses would have timed out before that.
            exposed: if complete { now } else { now.saturating_sub(self.config.flow_inactive_timeout) },
            complete,
            ..LiveFlow::new(id, now)
        });
        if let Some(key) = socket {
            self.bind(flow, key);
        }
        self.find_preexisting_owner(flow, beginning);
        self.name_tracker.flow_begins(flow, &self.flows);
        self.arm_flow(flow);
        flow
    }

    /// Looks for the owner of a flow among the preexisting sockets.
    fn find_preexisting_owner(&mut self, flow: FlowKey, beginning: Beginning) {
        let Some(live) = self.flows.get_mut(flow).filter(|live| live.owner.is_none()) else { return };
        // A connection that begins now is not preexisting, but its listener may be.
        if beginning == Beginning::Seen && live.direction != Direction::Ingress {
            return;
        }
        live.owner = self.preexisting.owner(&live.id).map(|owner| self.processes.latest(&owner));
        if live.direction == Direction::Unknown && self.preexisting.listens(&live.id) {
            live.direction = Direction::Ingress;
        }
    }

    /// Ends the flow whose timer is due first, if the table is full. With interim reports that is not always the flow closest
    /// to its timeout.
    fn make_room(&mut self) {
        // Flows that end as soon as their last counts are known have made room.
        while self.flows.len() - self.questions.evicted >= self.config.max_flows.max(1) {
            let Some((tick, key)) = self.flow_timers.pop_earliest() else { return };
            if self.flows.get(key).is_some_and(|live| live.armed == tick) {
                self.stats.flows_evicted += 1;
                if !self.ask(key, Purpose::Room) {
                    self.finish(key, Reason::Evicted);
                }
            }
        }
    }

    /// Marks a flow as closing: its end was seen. It stays for `flow_termination_timeout` after its last packet, so that late
    /// packets are counted.
    pub(in crate::state) fn begin_to_close(&mut self, now: MonotonicTime, flow: FlowKey) {
        if let Some(live) = self.flows.get_mut(flow) {
            live.closing = true;
            live.note_time(now);
            self.arm_flow(flow);
        }
    }

    /// The time at which a flow ends if nothing more happens.
    pub(in crate::state) fn deadline(&self, live: &LiveFlow) -> MonotonicTime {
        let timeout = match live.closing {
            // A closing flow never stays longer than an idle one.
            true => self.config.flow_termination_timeout.min(self.config.flow_inactive_timeout),
            false => self.config.flow_inactive_timeout,
        };
        live.last.saturating_add(timeout)
    }

    /// The time of a flow's next interim report.
    fn report_due(&self, live: &LiveFlow) -> MonotonicTime {
        let interval = self.config.flow_report_interval.filter(|_| !live.closing);
        interval.map_or(MonotonicTime::MAX, |interval| live.reported.saturating_add(interval))
    }

    /// Sets a flow's timer. The timers keep the old entry, too: `armed` tells which one counts, and the others are stale.
    fn arm_flow(&mut self, flow: FlowKey) {
        let Some(live) = self.flows.get(flow) else { return };
        let due = self.deadline(live).min(self.report_due(live));
        let tick = self.flow_timers.set(live.last, due, flow);
        if let Some(live) = self.flows.get_mut(flow) {
            live.armed = tick;
        }
    }

    /// A flow's timer is due. If it seems so by the packets that were sampled, asks for those that were not. A stale timer does
    /// nothing.
    pub(in crate::state) fn flow_timer(&mut self, now: MonotonicTime, tick: Tick, flow: FlowKey) {
        let Some(live) = self.flows.get(flow).filter(|live| live.armed == tick) else { return };
        let seems_due = self.deadline(live).min(self.report_due(live)) <= now;
        if !(seems_due && self.ask(flow, Purpose::Timer(now))) {
            self.flow_is_due(now, flow);
        }
    }

    /// A flow's timer is due: ends it, reports it, or sets the timer again.
    pub(in crate::state) fn flow_is_due(&mut self, now: MonotonicTime, flow: FlowKey) {
        let Some(live) = self.flows.get(flow) else { return };
        if self.deadline(live) <= now {
            let reason = if live.closing { Reason::Closed } else { Reason::Inactive };
            self.finish(flow, reason);
            return;
        }
        if self.report_due(live) <= now {
            let has_new_packets = live.last > live.reported;
            if has_new_packets && self.is_wanted(live) {
                let report = self.report(live, self.sock_of(live), Reason::Interim);
                self.stats.flows_reported += 1;
                self.finished.push(report);
            }
            if let Some(live) = self.flows.get_mut(flow) {
                live.reported = now;
            }
        }
        self.arm_flow(flow);
    }

    /// Removes a flow from the tables and reports it, if it is to be reported.
    pub(in crate::state) fn finish(&mut self, flow: FlowKey, reason: Reason) {
        let Some(live) = self.flows.get(flow) else { return };
        let (socket, sock, fragmented) = (live.socket, self.sock_of(live), self.may_be_fragmented(live));
        let last_counts = self.counted_sock(live).filter(|_| reason == Reason::Replaced);
        let waiting = self.questions.end(flow);
        let Some(mut live) = self.flows.remove(flow, &mut self.sockets) else { return };
        live.inexact.fragments |= fragmented;
        live.socket = socket; // what is reported depends on it
        self.name_tracker.flow_ends(flow, &live);
        let last_counts = last_counts.filter(|_| self.questions.can_hold());
        let waiting = match waiting {
            Some(waiting) if last_counts.is_none() => {
                waiting.apply(&mut live);
                None
            }
            waiting => waiting,
        };
        let goes_on = reason != Reason::Replaced && self.goes_on(&live, socket);
        if goes_on {
            self.keep_idle(&live, socket);
        }
        if let Some(key) = socket
            && self
                .sockets
                .get(key)
                .is_some_and(|socket| socket.closed && socket.flows.is_none() && socket.idle.is_none())
        {
            self.forget_socket(live.last, key);
        }
        match last_counts {
            Some(sock) => self.questions.hold(live, sock, reason, waiting),
            None => self.hand_out(&live, sock, reason),
        }
    }

    /// Reports a flow that has ended, if it is to be reported.
    pub(in crate::state) fn hand_out(&mut self, live: &LiveFlow, sock: Option<SockAddress>, reason: Reason) {
        if !has_socket(live) {
            self.stats.flows_without_socket += 1;
        } else if self.is_own(live) {
            self.stats.flows_own += 1;
        } else if !self.config.filter.accepts_owner(live.owner.as_deref()) {
            self.stats.flows_filtered += 1;
        } else {
            self.stats.flows_reported += 1;
            let report = self.report(live, sock, reason);
            self.finished.push(report);
        }
    }

    /// Whether a flow's connection may go on after the flow has ended.
    fn goes_on(&self, live: &LiveFlow, socket: Option<SocketKey>) -> bool {
        let is_connection = live.id.transport == Transport::Tcp && live.bound;
        is_connection
            && (live.fins.is_half_closed()
                || (!live.uncounted && socket.is_some_and(|key| self.is_current_socket(key))))
    }

    /// Whether a socket is still the one at its kernel address.
    fn is_current_socket(&self, key: SocketKey) -> bool {
        self.sockets.at(self.sock(key)) == Some(key)
    }

    /// Keeps what the next flow of the connection needs.
    fn keep_idle(&mut self, live: &LiveFlow, socket: Option<SocketKey>) {
        let socket = socket.filter(|key| self.is_current_socket(*key));
        self.take_idle(&live.id); // this connection has replaced an older one with the same addresses
        let idle = self.idle.insert(Idle::after(live, socket), live.last);
        let socket = socket.and_then(|key| self.sockets.get_mut(key));
        if let Some(before) = socket.and_then(|socket| socket.idle.replace(idle)) {
            self.idle.remove(before); // a socket has one connection at a time
        }
    }

    /// Takes the idle connection with these addresses, and clears its socket's reference to it.
    pub(in crate::state) fn take_idle(&mut self, id: &FlowId) -> Option<Idle> {
        let idle = self.idle.take(id)?;
        if let Some(socket) = idle.socket.and_then(|key| self.sockets.get_mut(key)) {
            socket.idle = None;
        }
        Some(idle)
    }
}
