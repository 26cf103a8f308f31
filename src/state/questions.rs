//! Questions about the kernel's counts, and what waits for the answers.
//!
//! A question is asked when a flow's timer is due, when a full table makes it end, when another conversation takes its
//! addresses, when a packet of it is dropped, and when the monitor stops. An answer may know of packets whose events have not
//! come yet. Then it waits until all events up to the time of the answer have been processed, so that counts and events stay in
//! order.

use std::collections::VecDeque;

use hashbrown::HashMap;
use slotmap::{SlotMap, new_key_type};

use super::counting::{self, DroppedAs};
use super::flows::{FlowId, FlowKey, Flows, LiveFlow};
use crate::model::event::Segments;
use crate::model::flow::Reason;
use crate::model::kernel_address::SockAddress;
use crate::model::time::MonotonicTime;
use crate::model::totals::{Conversation, Totals};

/// The maximum number of flows that were replaced and wait for their last counts.
pub const MAX_REPLACED: usize = 4096;
/// The maximum number of dropped packets of one flow that wait for its counts. Further ones only mark it.
const MAX_DROPPED: usize = 64;

new_key_type! {
    /// Identifies a flow that was replaced and waits for its last counts.
    pub struct ReplacedKey;
}

/// A question to the source: what has the kernel counted of this conversation?
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The conversation.
    pub conversation: Conversation,
    about: Subject,
}

/// The flow that a question is about.
#[derive(Debug, Clone, Copy)]
enum Subject {
    Live(FlowKey),
    Replaced(ReplacedKey),
}

/// An answer about the kernel's counts.
#[derive(Debug)]
pub struct TotalsAnswer {
    /// When the kernel's counts were read.
    pub at: MonotonicTime,
    /// All events up to this moment had been processed when the question was asked.
    pub asked: MonotonicTime,
    /// The answer itself.
    pub totals: Option<Totals>,
    about: Subject,
}

/// Why a flow is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Its timer was due at this time.
    Timer(MonotonicTime),
    /// It ends, because the table of flows is full.
    Eviction,
    /// Its counts must be complete: something waits for them, or the monitor stops.
    Counts,
}

/// What waits for a flow's counts.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Whether a question is open.
    is_asked: bool,
    /// When the timer that asked the question was due.
    pub timer: Option<MonotonicTime>,
    /// Whether the flow ends with the answer, because the table of flows is full.
    pub evicted: bool,
    deferred: Deferred,
}

/// What can be applied to a flow only together with all counts up to its time.
#[derive(Debug, Default)]
struct Deferred {
    /// The time of the last part of it.
    until: MonotonicTime,
    /// Sizes of dropped packets in bytes, with their headers.
    dropped: Vec<(u32, DroppedAs)>,
    /// The segment counters of the socket when it was closed, and the number of received packets that were counted until then.
    closed: Option<(Segments, u64)>,
}

/// A flow that was replaced: it is no longer in any table, but the kernel may have counted more of it.
#[derive(Debug)]
pub struct Replaced {
    /// The flow.
    pub flow: LiveFlow,
    /// The `struct sock`.
    pub sock: SockAddress,
    /// Why it has ended.
    pub reason: Reason,
    deferred: Deferred,
}

/// Open questions, and flows that wait for answers.
#[derive(Debug, Default)]
pub struct Questions {
    open: VecDeque<Question>,
    /// Answers that wait for events, in order of time.
    answers: VecDeque<TotalsAnswer>,
    /// The sockets that were freed while answers waited, and when.
    freed: HashMap<SockAddress, MonotonicTime, foldhash::fast::RandomState>,
    waiting: HashMap<FlowKey, Waiting, foldhash::fast::RandomState>,
    replaced: SlotMap<ReplacedKey, Replaced>,
    /// How many flows end with their answer, because the table of flows is full.
    pub evicted: usize,
}

impl Questions {
    /// Asks about a flow, if no question about it is open.
    pub fn ask(&mut self, flow_key: FlowKey, sock: SockAddress, id: &FlowId, purpose: Purpose) {
        let waiting = self.waiting.entry(flow_key).or_default();
        match purpose {
            Purpose::Timer(due) => waiting.timer = Some(due),
            Purpose::Eviction if !waiting.evicted => {
                waiting.evicted = true;
                self.evicted += 1;
            }
            Purpose::Eviction | Purpose::Counts => {}
        }
        if !waiting.is_asked {
            waiting.is_asked = true;
            let FlowId { local, remote, .. } = *id;
            let conversation = Conversation { sock, local, remote };
            self.open.push_back(Question { conversation, about: Subject::Live(flow_key) });
        }
    }

    /// Keeps a flow that was replaced, and asks about it.
    pub fn hold(&mut self, flow: LiveFlow, sock: SockAddress, reason: Reason, waiting: Option<Waiting>) {
        let deferred = waiting.map(|waiting| waiting.deferred).unwrap_or_default();
        let FlowId { local, remote, .. } = flow.id;
        let key = self.replaced.insert(Replaced { flow, sock, reason, deferred });
        let conversation = Conversation { sock, local, remote };
        self.open.push_back(Question { conversation, about: Subject::Replaced(key) });
    }

    /// Whether another flow that was replaced may wait.
    pub fn can_hold(&self) -> bool {
        self.replaced.len() < MAX_REPLACED
    }

    /// The next question.
    pub fn next(&mut self) -> Option<Question> {
        self.open.pop_front()
    }

    /// Keeps an answer until its time.
    pub fn keep(&mut self, answer: TotalsAnswer) {
        self.answers.push_back(answer);
    }

    /// Takes out the next answer whose time has been reached at `now`.
    pub fn next_answer(&mut self, now: MonotonicTime) -> Option<TotalsAnswer> {
        match self.answers.front() {
            Some(answer) if answer.at <= now => self.answers.pop_front(),
            Some(_) => None,
            None => {
                self.freed.clear();
                None
            }
        }
    }

    /// A socket was freed. Its last counts have come, so answers about it that still wait say nothing new.
    pub fn freed(&mut self, now: MonotonicTime, sock: SockAddress) {
        if !self.answers.is_empty() {
            self.freed.insert(sock, now);
        }
    }

    /// Whether the socket was freed after the question was asked.
    pub fn is_freed(&self, sock: SockAddress, answer: &TotalsAnswer) -> bool {
        self.freed.get(&sock).is_some_and(|freed| *freed >= answer.asked)
    }

    /// Notes that the question about a live flow was answered. Returns the flow's key, when the timer that waited was due, and
    /// whether the flow ends now, because the table of flows is full. `None` if the flow has ended.
    pub fn answered_live(
        &mut self,
        answer: &TotalsAnswer,
        flows: &mut Flows,
    ) -> Option<(FlowKey, Option<MonotonicTime>, bool)> {
        let Subject::Live(flow_key) = answer.about else { return None };
        let waiting = self.waiting.get_mut(&flow_key)?;
        waiting.is_asked = false;
        // This holds even if the kernel knows nothing of the socket: then all of its counts have come.
        waiting.deferred.counted(flows.get_mut(flow_key)?, 0, answer.asked);
        let (timer, evicted) = (waiting.timer.take(), waiting.evicted);
        if !evicted && waiting.deferred.is_empty() {
            self.waiting.remove(&flow_key);
        }
        Some((flow_key, timer, evicted))
    }

    /// Takes out the flow that the answer is about, if it was replaced.
    pub fn answered_replaced(&mut self, answer: &TotalsAnswer) -> Option<Replaced> {
        let Subject::Replaced(key) = answer.about else { return None };
        let mut replaced = self.replaced.remove(key)?;
        std::mem::take(&mut replaced.deferred).apply(&mut replaced.flow);
        Some(replaced)
    }

    /// Takes out a flow that was replaced and whose socket was freed, so that its last counts have come.
    pub fn freed_replaced(&mut self, sock: SockAddress) -> Option<Replaced> {
        let (key, _) = self.replaced.iter().find(|(_, one)| one.sock == sock)?;
        let mut replaced = self.replaced.remove(key)?;
        std::mem::take(&mut replaced.deferred).apply(&mut replaced.flow);
        Some(replaced)
    }

    /// A flow that was replaced, with the socket and ends of these totals.
    pub fn replaced_mut(&mut self, totals: &Totals) -> Option<&mut Replaced> {
        let is_it = |one: &Replaced| {
            let FlowId { local, remote, .. } = one.flow.id;
            totals.conversation() == Conversation { sock: one.sock, local, remote }
        };
        self.replaced.values_mut().find(|one| is_it(one))
    }

    /// When the timer of a flow that waits for an answer was due.
    pub fn timer(&self, flow_key: FlowKey) -> Option<MonotonicTime> {
        self.waiting.get(&flow_key)?.timer
    }

    /// A packet of the flow was dropped. Returns whether it is kept.
    pub fn dropped(&mut self, flow_key: FlowKey, now: MonotonicTime, bytes: u32, dropped_as: DroppedAs) -> bool {
        let deferred = &mut self.waiting.entry(flow_key).or_default().deferred;
        let has_room = deferred.dropped.len() < MAX_DROPPED;
        if has_room {
            deferred.until = deferred.until.max(now);
            deferred.dropped.push((bytes, dropped_as));
        }
        has_room
    }

    /// The flow's socket was closed. Its segment counters are kept until the counts up to then are known.
    pub fn closed(&mut self, flow_key: FlowKey, now: MonotonicTime, segments: Segments, received: u64) {
        let deferred = &mut self.waiting.entry(flow_key).or_default().deferred;
        deferred.until = deferred.until.max(now);
        deferred.closed = Some((segments, received));
    }

    /// Counts with `received` received packets were added to the flow. They are complete up to `until`. Applies what has waited
    /// for them.
    pub fn counted(&mut self, flow_key: FlowKey, flow: &mut LiveFlow, received: u64, until: MonotonicTime) {
        let Some(waiting) = self.waiting.get_mut(&flow_key) else { return };
        waiting.deferred.counted(flow, received, until);
        if !waiting.is_asked && !waiting.evicted && waiting.deferred.is_empty() {
            self.waiting.remove(&flow_key);
        }
    }

    /// Takes out what waits for a flow that has ended.
    pub fn end(&mut self, flow_key: FlowKey) -> Option<Waiting> {
        let waiting = self.waiting.remove(&flow_key)?;
        self.evicted -= usize::from(waiting.evicted);
        Some(waiting)
    }
}

#[cfg(test)]
impl Questions {
    /// Panics if something waits for a flow that is not live.
    pub fn check(&self, flows: &Flows) {
        for (flow_key, waiting) in &self.waiting {
            assert!(flows.get(*flow_key).is_some(), "{waiting:?} of a flow that has ended");
        }
        assert_eq!(self.evicted, self.waiting.values().filter(|waiting| waiting.evicted).count());
    }
}

impl Question {
    /// Whether these totals are of another conversation: the same socket, but other ends.
    pub fn has_other_ends_than(&self, totals: &Totals) -> bool {
        self.conversation != totals.conversation()
    }

    /// Its answer, from counts that were read at `at`. All events up to `asked` had been processed when it was asked.
    pub fn answer(self, totals: Option<Totals>, at: MonotonicTime, asked: MonotonicTime) -> TotalsAnswer {
        TotalsAnswer { at, asked, totals, about: self.about }
    }
}

impl Waiting {
    /// No more counts will come: applies what has waited for them.
    pub fn apply(self, flow: &mut LiveFlow) {
        self.deferred.apply(flow);
    }
}

impl Replaced {
    /// See [`Questions::counted`].
    pub fn counted(&mut self, received: u64, until: MonotonicTime) {
        self.deferred.counted(&mut self.flow, received, until);
    }
}

impl Deferred {
    fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.closed.is_none()
    }

    fn counted(&mut self, flow: &mut LiveFlow, received: u64, until: MonotonicTime) {
        if let Some((_, known)) = &mut self.closed {
            *known = known.saturating_add(received);
        }
        if until >= self.until {
            std::mem::take(self).apply(flow);
        }
    }

    fn apply(self, flow: &mut LiveFlow) {
        if let Some((segments, received)) = self.closed {
            counting::settle_with(flow, self.until, segments, received);
        }
        for (bytes, dropped_as) in self.dropped {
            counting::subtract_dropped(flow, bytes, dropped_as);
        }
    }
}
