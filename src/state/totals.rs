//! Adds the kernel's own counts to flows.

use super::counted::{NewCounts, Relation};
use super::counting::DroppedAs;
use super::flows::{Beginning, FlowId, FlowKey, LiveFlow};
use super::questions::{Purpose, Question, TotalsAnswer};
use super::sockets::{SocketKey, UdpKind};
use super::{State, counting};
use crate::model::event::{Segments, Tuple};
use crate::model::flow::{Direction, Outcome, Reason, Transport};
use crate::model::kernel_address::SockAddress;
use crate::model::time::MonotonicTime;
use crate::model::totals::{Conversation, Totals};

impl State {
    /// The kernel's counts of a conversation. They are complete up to `until`.
    ///
    /// New counts belong to the flow of this socket between these ends. If there is none, a flow begins with them, or they wait
    /// for the packet that shows their flow.
    pub(super) fn totals(&mut self, totals: &Totals, until: MonotonicTime) {
        if !self.config.flows {
            return;
        }
        // An entry's counts are reported before its next sample, so the first counts of a flow hold nothing from before the flow.
        let (before, is_first) = match self.counted.relation(totals) {
            Relation::First => (Totals::none_of(totals), true),
            Relation::After(before) => (before, false),
            Relation::Outdated => {
                self.stats.totals_outdated += 1;
                return;
            }
        };
        let new = NewCounts::between(&before, totals);
        if let Some(new) = new
            && !self.config.filter.accepts(&Tuple { net: None, local: totals.local, remote: totals.remote })
        {
            self.stats.packets_filtered += new.packets();
            let _ = self.counted.take(totals);
            return;
        }
        let is_known = self.flow_of(totals).is_some() || self.questions.replaced_mut(totals).is_some();
        if !is_known && new.is_some() {
            // Earlier counts that have waited are contained in these.
            let _ = self.counted.take_waiting(&totals.conversation());
            if !self.begin_with(totals) {
                self.counted.keep(&before, totals);
                return;
            }
        }
        let has_room = if is_first || new.is_some() { self.counted.take(totals) } else { true };
        match self.flow_of(totals) {
            Some(flow_key) => self.add_to_live(flow_key, totals, new, until, has_room),
            None => self.add_to_replaced(totals, new, until, has_room),
        }
    }

    /// Adds new counts to a flow. Without `has_room` they cannot be used.
    fn add_to_live(
        &mut self,
        flow_key: FlowKey,
        totals: &Totals,
        new: Option<NewCounts>,
        until: MonotonicTime,
        has_room: bool,
    ) {
        let marks_datagrams = new.is_some_and(|new| self.may_have_held_several(flow_key, &new, totals));
        let Some(flow) = self.flows.get_mut(flow_key) else { return };
        let mut received = 0;
        if let Some(new) = new {
            received = new.received.packets;
            self.stats.packets_counted += add(flow, &new, has_room);
            flow.inexact.datagram_segments |= marks_datagrams;
            if let Some(socket) = flow.socket.and_then(|key| self.sockets.get_mut(key)) {
                socket.last = socket.last.max(new.last);
            }
        }
        self.questions.counted(flow_key, flow, received, until);
        let is_answered = flow.sent.packets > 0 && flow.received.packets > 0;
        if new.is_some() && flow.id.transport == Transport::Udp && is_answered {
            flow.outcome = Outcome::Success;
        }
    }

    /// Adds new counts to a flow that was replaced.
    fn add_to_replaced(&mut self, totals: &Totals, new: Option<NewCounts>, until: MonotonicTime, has_room: bool) {
        let Some(replaced) = self.questions.replaced_mut(totals) else { return };
        let used = new.map_or(0, |new| add(&mut replaced.flow, &new, has_room));
        replaced.counted(new.map_or(0, |new| new.received.packets), until);
        self.stats.packets_counted += used;
    }

    /// Whether a packet that the kernel has counted may have held several datagrams. Outgoing packets with a nonlinear part are
    /// not among these, because they are sampled.
    fn may_have_held_several(&self, flow_key: FlowKey, new: &NewCounts, totals: &Totals) -> bool {
        let Some(flow) = self.flows.get(flow_key).filter(|flow| flow.id.transport == Transport::Udp) else {
            return false;
        };
        let Some(socket) = flow.socket.and_then(|key| self.sockets.get(key)) else { return false };
        let merged = match socket.udp_kind {
            UdpKind::Gro => true,
            UdpKind::Kernel | UdpKind::Unknown => totals.nonlinear_datagrams,
            UdpKind::Single => false,
        };
        let may_be_gso = socket.uses_gso && totals.short_datagrams;
        (new.received.packets > 0 && merged) || (new.sent.packets > 0 && may_be_gso)
    }

    /// The live flow of a socket between these ends.
    fn flow_of(&self, totals: &Totals) -> Option<FlowKey> {
        let Totals { sock, transport, local, remote, .. } = *totals;
        if transport == Transport::Udp {
            return self.flows.find(&FlowId { scope: Some(sock).into(), transport, local, remote });
        }
        let socket = self.sockets.get(self.sockets.at(Some(sock))?)?;
        let is_it = |id: FlowId| (id.transport, id.local, id.remote) == (transport, local, remote);
        self.flows.chain(socket.flows).find(|flow_key| self.flows.get(*flow_key).is_some_and(|flow| is_it(flow.id)))
    }

    /// Begins a flow that only counts show, because the conversation's last flow was ended to make room. Returns whether its
    /// socket is known.
    fn begin_with(&mut self, totals: &Totals) -> bool {
        let Totals { sock, transport, local, remote, last, .. } = *totals;
        if transport == Transport::Udp {
            let Some(socket) = self.verified_socket_at(last, Some(sock), local.port) else { return false };
            let id = FlowId { scope: Some(sock).into(), transport, local, remote };
            self.open(last, id, None, Some(socket), Direction::Unknown, Beginning::Missed);
            return true;
        }
        let socket = self.sockets.at(Some(sock)).and_then(|key| self.sockets.get(key));
        let id = socket.and_then(|socket| self.idle.get(socket.idle?)).map(|idle| idle.id);
        let Some(id) = id.filter(|id| (id.local, id.remote) == (local, remote)) else { return false };
        let Some(idle) = self.take_idle(&id) else { return false };
        self.resume(last, id.scope.net(), idle);
        true
    }

    /// A socket was attached to a flow: adds the counts that have waited for this.
    pub(super) fn take_waiting_totals(&mut self, flow_key: FlowKey, socket_key: SocketKey) {
        if !self.capabilities.totals {
            return;
        }
        let (Some(sock), Some(id)) = (self.sock(socket_key), self.flows.get(flow_key).map(|flow| flow.id)) else {
            return;
        };
        let FlowId { local, remote, .. } = id;
        if let Some(totals) = self.counted.take_waiting(&Conversation { sock, local, remote }) {
            self.totals(&totals, totals.last);
        }
    }

    /// The kernel has freed a socket, and its counts with it.
    pub(super) fn forget_totals(&mut self, now: MonotonicTime, sock: SockAddress) {
        if self.capabilities.totals {
            self.questions.freed(now, sock);
            while let Some(replaced) = self.questions.freed_replaced(sock) {
                self.hand_out(&replaced.flow, Some(sock), replaced.reason);
            }
            self.stats.packets_without_flow += self.counted.forget(sock);
        }
    }

    /// The `struct sock` to ask about, if the kernel may have counted packets of this flow that are not known yet.
    pub(super) fn counted_sock(&self, flow: &LiveFlow) -> Option<SockAddress> {
        let key = flow.socket.filter(|_| self.capabilities.totals)?;
        // Once the socket is freed, all of its counts have come, and the address may be another's.
        self.sock(key).filter(|sock| self.sockets.at(Some(*sock)) == Some(key))
    }

    /// Asks what the kernel has counted of a flow. Returns false if there is nothing to ask.
    pub(super) fn ask(&mut self, flow_key: FlowKey, purpose: Purpose) -> bool {
        let Some(flow) = self.flows.get(flow_key) else { return false };
        let Some(sock) = self.counted_sock(flow) else { return false };
        self.questions.ask(flow_key, sock, &flow.id, purpose);
        true
    }

    /// Whether a flow has ended before its next packet: its timer was due, and only the answer was waited for.
    pub(super) fn has_ended(&self, flow_key: FlowKey) -> bool {
        let due = self.questions.timer(flow_key);
        due.zip(self.flows.get(flow_key)).is_some_and(|(due, flow)| self.deadline(flow) <= due)
    }

    /// Defers a dropped packet of a flow until the flow's counts are known. Returns false if it must be subtracted at once: it is
    /// certainly one packet and is already among those counted as sent, or there is nothing to ask.
    pub(super) fn defer_drop(
        &mut self,
        now: MonotonicTime,
        flow_key: FlowKey,
        bytes: u32,
        dropped_as: DroppedAs,
    ) -> bool {
        let sent = self.flows.get(flow_key).map(|flow| flow.sent).unwrap_or_default();
        let is_certain = dropped_as == DroppedAs::OnePacket && sent.packets > 0 && sent.bytes >= bytes.into();
        if is_certain || !self.ask(flow_key, Purpose::Counts) {
            return false;
        }
        if !self.questions.dropped(flow_key, now, bytes, dropped_as)
            && let Some(flow) = self.flows.get_mut(flow_key)
        {
            flow.inexact.dropped_locally = true;
        }
        true
    }

    /// The socket of a flow was closed, with these segment counters. Defers them until the flow's counts are known. Returns false
    /// if these are complete.
    pub(super) fn defer_settle(&mut self, now: MonotonicTime, flow_key: FlowKey, segments: Segments) -> bool {
        let Some(flow) = self.flows.get(flow_key) else { return false };
        let is_counted = self.counted_sock(flow).is_some();
        if is_counted {
            self.questions.closed(flow_key, now, segments, flow.received.packets);
        }
        is_counted
    }

    /// The next question about the kernel's counts. Pass its answer to [`State::answer`].
    pub fn next_question(&mut self) -> Option<Question> {
        self.questions.next()
    }

    /// Processes the answer to a question: what the kernel had counted at the time `at`, or `None` if it knows nothing of the
    /// socket.
    ///
    /// If it knows of packets that are later than all events so far, it is used once all events up to `at` have been processed.
    /// The kernel may count other ends of the socket instead: then all packets of these ends are events.
    pub fn answer(&mut self, question: Question, totals: Option<Totals>, at: MonotonicTime) {
        let (others, own) = match totals {
            Some(totals) if question.has_other_ends_than(&totals) => (Some(totals), None),
            own => (None, own),
        };
        let is_past = at <= self.horizon
            || own.is_some_and(|totals| totals.last <= self.horizon)
            || others.is_some_and(|totals| totals.since <= self.horizon);
        let answer = question.answer(own, at, self.horizon);
        if is_past || self.is_ending {
            self.use_answer(&answer);
        } else {
            self.questions.keep(answer);
        }
    }

    /// Uses the answers whose time has been reached.
    pub(super) fn use_answers(&mut self) {
        while let Some(answer) = self.questions.next_answer(self.horizon) {
            self.use_answer(&answer);
        }
    }

    fn use_answer(&mut self, answer: &TotalsAnswer) {
        if let Some(totals) = &answer.totals
            && !self.questions.is_freed(totals.sock, answer)
        {
            self.totals(totals, answer.asked);
        }
        if let Some(replaced) = self.questions.answered_replaced(answer) {
            self.hand_out(&replaced.flow, Some(replaced.sock), replaced.reason);
        } else if let Some((flow_key, timer, is_evicted)) = self.questions.answered_live(answer, &mut self.flows) {
            match timer {
                _ if is_evicted => self.finish(flow_key, Reason::Evicted),
                Some(_) => self.flow_is_due(self.horizon, flow_key),
                None => {}
            }
        }
    }

    /// Asks about every flow, because the monitor stops. Answers are used at once from now on: no more events come.
    pub fn ask_all(&mut self) {
        self.is_ending = true;
        while let Some(answer) = self.questions.next_answer(MonotonicTime::MAX) {
            self.use_answer(&answer);
        }
        for flow_key in self.flows.keys() {
            self.ask(flow_key, Purpose::Counts);
        }
    }
}

/// Adds new counts to a flow. Returns the number of packets. If there is no room to remember them, so that they would be
/// added again, the flow is marked instead.
fn add(flow: &mut LiveFlow, new: &NewCounts, has_room: bool) -> u64 {
    if !has_room {
        flow.inexact.samples_lost = true;
        return 0;
    }
    counting::add_totals(flow, new);
    new.packets()
}
