//! Names on their way from packets to the state machine.

use std::collections::VecDeque;
use std::sync::Arc;

use socktrail_dns::{Learned, Options, Packet, Tracker};

use crate::event::{Event, EventKind, KernelTime};
use crate::state::State;

/// How many answers may wait for the events before them.
const MAX_WAITING: usize = 16_384;

/// Answers wait here until every event before them has been taken in: a query's flow must be known before its answer.
#[derive(Debug, Default)]
pub struct Waiting {
    answers: VecDeque<Arc<Learned>>,
}

impl Waiting {
    /// Takes in answers, as many as there is room for.
    pub fn extend(&mut self, answers: impl Iterator<Item = Arc<Learned>>) {
        let room = MAX_WAITING - self.answers.len().min(MAX_WAITING);
        self.answers.extend(answers.take(room));
    }

    /// Gives those before `now` to the state machine, which has taken in all other events before.
    pub fn release(&mut self, now: KernelTime, state: &mut State) {
        while self.answers.front().is_some_and(|learned| learned.time < now) {
            let Some(learned) = self.answers.pop_front() else { return };
            let time = learned.time;
            state.ingest(&Event { time, pid: 0, tid: 0, kind: EventKind::Name(learned) });
        }
    }
}

/// Packets to names, in one thread and in an order that a replay repeats.
#[derive(Debug)]
pub struct Listener {
    tracker: Tracker,
    waiting: Waiting,
}

impl Listener {
    /// To servers on these ports.
    pub fn new(ports: &[u16]) -> Self {
        let mut options = Options::default();
        options.ports = ports.to_vec();
        Self { tracker: Tracker::new(&options), waiting: Waiting::default() }
    }

    /// Takes in a packet.
    pub fn ingest(&mut self, packet: &Packet<'_>) {
        let waiting = &mut self.waiting;
        self.tracker.ingest(packet, &mut |learned| waiting.extend(std::iter::once(Arc::new(learned))));
    }

    /// All events before `now` have been taken in.
    pub fn release(&mut self, now: KernelTime, state: &mut State) {
        self.waiting.release(now, state);
        self.tracker.expire(now);
    }
}
