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
        socket_key: Option<SocketKey>,
        direction: Direction,
        beginning: Beginning,
    ) -> FlowKey {
        self.make_room();
        let complete = beginning == Beginning::Seen;
        self.stats.flows_started += 1;
        let flow_key = self.flows.insert(LiveFlow {
            net,
            number: self.stats.flows_started,
            direction,
            // An earlier flow with the same addresses would have timed out before that.
            may_miss_packets_since: if complete { now } else { now.saturating_sub(self.config.flow_inactive_timeout) },
            complete,
            ..LiveFlow::new(id, now)
        });
        if let Some(socket_key) = socket_key {
            self.attach_socket(flow_key, socket_key);
        }
        self.find_preexisting_owner(flow_key, beginning);
        self.name_tracker.flow_begins(flow_key, &self.flows);
        self.arm_flow(flow_key);
        flow_key
    }

    /// Looks for the owner of a flow among the preexisting sockets.
    fn find_preexisting_owner(&mut self, flow_key: FlowKey, beginning: Beginning) {
        let Some(flow) = self.flows.get_mut(flow_key).filter(|flow| flow.owner.is_none()) else { return };
        // A connection that begins now is not preexisting, but its listener may be.
        if beginning == Beginning::Seen && flow.direction != Direction::Ingress {
            return;
        }
        flow.owner = self.preexisting.owner(&flow.id).map(|owner| self.processes.latest(&owner));
        if flow.direction == Direction::Unknown && self.preexisting.listens(&flow.id) {
            flow.direction = Direction::Ingress;
        }
    }

    /// Ends the flow whose timer is due first, if the table is full. With interim reports that is not always the flow closest
    /// to its timeout.
    fn make_room(&mut self) {
        // Flows that end as soon as their last counts are known have made room.
        while self.flows.len() - self.questions.evicted >= self.config.max_flows.max(1) {
            let Some((tick, flow_key)) = self.flow_timers.pop_earliest() else { return };
            if self.flows.get(flow_key).is_some_and(|flow| flow.armed == tick) {
                self.stats.flows_evicted += 1;
                if !self.ask(flow_key, Purpose::Eviction) {
                    self.finish(flow_key, Reason::Evicted);
                }
            }
        }
    }

    /// Marks a flow as closing: its end was seen. It stays for `flow_termination_timeout` after its last packet, so that late
    /// packets are counted.
    pub(in crate::state) fn begin_to_close(&mut self, now: MonotonicTime, flow_key: FlowKey) {
        if let Some(flow) = self.flows.get_mut(flow_key) {
            flow.closing = true;
            flow.note_time(now);
            self.arm_flow(flow_key);
        }
    }

    /// The time at which a flow ends if nothing more happens.
    pub(in crate::state) fn deadline(&self, flow: &LiveFlow) -> MonotonicTime {
        let timeout = match flow.closing {
            // A closing flow never stays longer than an idle one.
            true => self.config.flow_termination_timeout.min(self.config.flow_inactive_timeout),
            false => self.config.flow_inactive_timeout,
        };
        flow.last.saturating_add(timeout)
    }

    /// The time of a flow's next interim report.
    fn report_due(&self, flow: &LiveFlow) -> MonotonicTime {
        let interval = self.config.flow_report_interval.filter(|_| !flow.closing);
        interval.map_or(MonotonicTime::MAX, |interval| flow.reported.saturating_add(interval))
    }

    /// Sets a flow's timer. The timers keep the old entry, too: `armed` tells which one counts, and the others are stale.
    fn arm_flow(&mut self, flow_key: FlowKey) {
        let Some(flow) = self.flows.get(flow_key) else { return };
        let due = self.deadline(flow).min(self.report_due(flow));
        let tick = self.flow_timers.set(flow.last, due, flow_key);
        if let Some(flow) = self.flows.get_mut(flow_key) {
            flow.armed = tick;
        }
    }

    /// A flow's timer is due. If the flow seems due by its sampled packets, first asks how many other packets the kernel has
    /// counted. A stale timer does nothing.
    pub(in crate::state) fn flow_timer_fired(&mut self, now: MonotonicTime, tick: Tick, flow_key: FlowKey) {
        let Some(flow) = self.flows.get(flow_key).filter(|flow| flow.armed == tick) else { return };
        let seems_due = self.deadline(flow).min(self.report_due(flow)) <= now;
        if !(seems_due && self.ask(flow_key, Purpose::Timer(now))) {
            self.flow_is_due(now, flow_key);
        }
    }

    /// A flow's timer is due: ends it, reports it, or sets the timer again.
    pub(in crate::state) fn flow_is_due(&mut self, now: MonotonicTime, flow_key: FlowKey) {
        let Some(flow) = self.flows.get(flow_key) else { return };
        if self.deadline(flow) <= now {
            let reason = if flow.closing { Reason::Closed } else { Reason::Inactive };
            self.finish(flow_key, reason);
            return;
        }
        if self.report_due(flow) <= now {
            let has_new_packets = flow.last > flow.reported;
            if has_new_packets && self.is_wanted(flow) {
                let report = self.report(flow, self.sock_of(flow), Reason::Interim);
                self.stats.flows_reported += 1;
                self.finished.push(report);
            }
            if let Some(flow) = self.flows.get_mut(flow_key) {
                flow.reported = now;
            }
        }
        self.arm_flow(flow_key);
    }

    /// Removes a flow from the tables and reports it, if it is to be reported.
    pub(in crate::state) fn finish(&mut self, flow_key: FlowKey, reason: Reason) {
        let Some(flow) = self.flows.get(flow_key) else { return };
        let (socket_key, sock, fragmented) = (flow.socket, self.sock_of(flow), self.may_be_fragmented(flow));
        let sock_to_ask = self.counted_sock(flow).filter(|_| reason == Reason::Replaced);
        let waiting = self.questions.end(flow_key);
        let Some(mut flow) = self.flows.remove(flow_key, &mut self.sockets) else { return };
        flow.inexact.fragments |= fragmented;
        flow.socket = socket_key; // what is reported depends on it
        self.name_tracker.flow_ends(flow_key, &flow);
        let sock_to_ask = sock_to_ask.filter(|_| self.questions.can_hold());
        let waiting = match waiting {
            Some(waiting) if sock_to_ask.is_none() => {
                waiting.apply(&mut flow);
                None
            }
            waiting => waiting,
        };
        let goes_on = reason != Reason::Replaced && self.goes_on(&flow, socket_key);
        if goes_on {
            self.keep_idle(&flow, socket_key);
        }
        if let Some(socket_key) = socket_key
            && self
                .sockets
                .get(socket_key)
                .is_some_and(|socket| socket.closed && socket.flows.is_none() && socket.idle.is_none())
        {
            self.forget_socket(flow.last, socket_key);
        }
        match sock_to_ask {
            Some(sock) => self.questions.hold(flow, sock, reason, waiting),
            None => self.hand_out(&flow, sock, reason),
        }
    }

    /// Reports a flow that has ended, if it is to be reported.
    pub(in crate::state) fn hand_out(&mut self, flow: &LiveFlow, sock: Option<SockAddress>, reason: Reason) {
        if !has_socket(flow) {
            self.stats.flows_without_socket += 1;
        } else if self.is_own(flow) {
            self.stats.flows_own += 1;
        } else if !self.accepts_owner(flow.owner.as_ref()) {
            self.stats.flows_filtered += 1;
        } else {
            self.stats.flows_reported += 1;
            let report = self.report(flow, sock, reason);
            self.finished.push(report);
        }
    }

    /// Whether a flow's connection may go on after the flow has ended.
    fn goes_on(&self, flow: &LiveFlow, socket_key: Option<SocketKey>) -> bool {
        let is_connection = flow.id.transport == Transport::Tcp && flow.has_own_socket;
        is_connection
            && (flow.fins.is_half_closed()
                || (!flow.reached_tcp_close && socket_key.is_some_and(|key| self.is_current_socket(key))))
    }

    /// Whether a socket is still the one at its kernel address.
    fn is_current_socket(&self, socket_key: SocketKey) -> bool {
        self.sockets.at(self.sock(socket_key)) == Some(socket_key)
    }

    /// Keeps what the next flow of the connection needs.
    fn keep_idle(&mut self, flow: &LiveFlow, socket_key: Option<SocketKey>) {
        let socket_key = socket_key.filter(|key| self.is_current_socket(*key));
        self.take_idle(&flow.id); // this connection has replaced an older one with the same addresses
        let idle = self.idle.insert(Idle::after(flow, socket_key), flow.last);
        let socket = socket_key.and_then(|key| self.sockets.get_mut(key));
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
