//! Turns DNS packets into answers.

use std::collections::VecDeque;
use std::sync::Arc;

use socktrail_dns::{Lookup, Packet, Tracker};

use crate::model::event::{Event, EventKind};
use crate::model::time::MonotonicTime;

/// The maximum number of answers that wait for earlier events.
const MAX_WAITING: usize = 16_384;

/// Turns DNS packets into answers. Answers wait until all earlier events have been handled, because a query's flow must be known
/// before its answer.
#[derive(Debug)]
pub struct NameListener {
    tracker: Tracker,
    waiting: VecDeque<Event>,
    /// The interval in which answers were dropped because too many were waiting.
    overflow: Option<(MonotonicTime, MonotonicTime)>,
    /// Answers that were dropped because too many were waiting.
    pub(crate) dropped: u64,
}

impl NameListener {
    /// A listener with these options.
    pub fn new(options: &socktrail_dns::Options) -> Self {
        Self { tracker: Tracker::new(options), waiting: VecDeque::new(), overflow: None, dropped: 0 }
    }

    /// What has been seen, and what of it was not used.
    pub fn counters(&self) -> socktrail_dns::Counters {
        self.tracker.counters()
    }

    /// Takes a packet.
    pub fn ingest(&mut self, packet: &Packet<'_>) {
        let Self { tracker, waiting, overflow, dropped } = self;
        tracker.ingest(packet, &mut |learned: Lookup| {
            let time = MonotonicTime::from_nanos(learned.time);
            if waiting.len() < MAX_WAITING {
                waiting.push_back(Event { time, pid: 0, tid: 0, kind: EventKind::Name(Arc::new(learned)) });
            } else {
                *dropped += 1;
                *overflow = Some(overflow.map_or((time, time), |(since, _)| (since, time)));
            }
        });
    }

    /// Notes that answers between `since` and `now` may be missing.
    pub fn missed(&mut self, since: MonotonicTime, now: MonotonicTime) {
        self.waiting.push_back(Event { time: now, pid: 0, tid: 0, kind: EventKind::NamesMissed { since } });
    }

    /// Returns the answers from before `now`.
    pub fn take(&mut self, now: MonotonicTime) -> impl Iterator<Item = Event> {
        self.tracker.expire(now.as_nanos());
        if let Some((since, until)) = self.overflow.take() {
            self.missed(since, until);
        }
        let ready = self.waiting.iter().take_while(|event| event.time < now).count();
        self.waiting.drain(..ready)
    }
}
