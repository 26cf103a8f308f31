//! Names on their way from packets to the state machine.

use std::collections::VecDeque;
use std::sync::Arc;

use socktrail_dns::{Learned, Packet, Tracker};

use crate::event::{Event, EventKind, KernelTime};
use crate::state::State;

/// How many answers may wait for the events before them.
const MAX_WAITING: usize = 16_384;

/// Turns packets of name servers into answers. They wait here until every earlier event has been handled, because a
/// query's flow must be known before its answer.
#[derive(Debug)]
pub struct Listener {
    tracker: Tracker,
    waiting: VecDeque<Event>,
    /// The interval in which answers found no room.
    overflow: Option<(KernelTime, KernelTime)>,
    /// Answers that found no room.
    pub(crate) dropped: u64,
}

impl Listener {
    /// A listener with these options.
    pub fn new(options: &socktrail_dns::Options) -> Self {
        Self { tracker: Tracker::new(options), waiting: VecDeque::new(), overflow: None, dropped: 0 }
    }

    /// Takes in a packet.
    pub fn ingest(&mut self, packet: &Packet<'_>) {
        let Self { tracker, waiting, overflow, dropped } = self;
        tracker.ingest(packet, &mut |learned: Learned| {
            let time = learned.time;
            if waiting.len() < MAX_WAITING {
                waiting.push_back(Event { time, pid: 0, tid: 0, kind: EventKind::Name(Arc::new(learned)) });
            } else {
                *dropped += 1;
                *overflow = Some(overflow.map_or((time, time), |(since, _)| (since, time)));
            }
        });
    }

    /// Answers that came after `since`, and before `now`, may be missing.
    pub fn missed(&mut self, since: KernelTime, now: KernelTime) {
        self.waiting.push_back(Event { time: now, pid: 0, tid: 0, kind: EventKind::NamesMissed { since } });
    }

    /// Hands out the answers that came before `now`.
    pub fn take(&mut self, now: KernelTime) -> impl Iterator<Item = Event> {
        self.tracker.expire(now);
        if let Some((since, until)) = self.overflow.take() {
            self.missed(since, until);
        }
        let ready = self.waiting.iter().take_while(|event| event.time < now).count();
        self.waiting.drain(..ready)
    }

    /// Gives the answers that came before `now` to the state machine, which must have handled all other events up to
    /// then.
    pub fn release(&mut self, now: KernelTime, state: &mut State) {
        self.take(now).for_each(|answer| state.ingest(&answer));
    }
}
