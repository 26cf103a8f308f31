//! The state thread: events to flows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::losses::Teller;
use super::stats::Counts;
use super::{Batch, Received};
use crate::event::{Credentials, Event, EventKind, KernelTime};
use crate::loss::{Loss, LossCause};
use crate::proc;
use crate::state::State;
use crate::users::Users;

/// How many processes to look up or look for in `/proc` between two batches.
const LOOK_UPS: usize = 64;

/// Owns the state machine.
pub(super) struct Keeper {
    pub(super) state: State,
    pub(super) events: Receiver<Batch>,
    pub(super) spare: Sender<Vec<Event>>,
    /// Whether socket events are made.
    pub(super) watches_calls: bool,
    pub(super) results: Sender<Received>,
    pub(super) losses: Teller,
    pub(super) counts: Arc<Counts>,
    /// Dropped once what was there before is known.
    pub(super) learning: Option<Sender<()>>,
    /// Who is to know the names of those who own sockets.
    pub(super) users: Option<Users>,
}

impl Keeper {
    pub(super) fn run(mut self) {
        // The probes are in place by now: who comes after this look is seen by them.
        for process in proc::processes() {
            self.state.adopt(process);
        }
        for socket in proc::sockets() {
            self.state.adopt_socket(&socket);
        }
        if self.watches_calls {
            let existing = proc::existing_sockets().into_iter();
            let existing = existing.map(|(socket, pid)| self.state.adopt_event_socket(socket, pid)).collect();
            self.hand_over(Received::Existing(existing), 0);
        }
        self.learning = None;
        let mut now = 0;
        while let Ok(Batch { mut events, answers, until }) = self.events.recv() {
            let reached = events.last().map_or(now, |event| event.time.max(now));
            for event in events.drain(..) {
                if let EventKind::Credentials(credentials) = event.kind {
                    self.expect(Some(credentials));
                }
                self.state.ingest(&event);
            }
            let _ = self.spare.try_send(events);
            if let Some(until) = until {
                now = until.max(now);
                answers.iter().for_each(|answer| self.state.ingest(answer));
                self.state.expire(now);
                // Only now: an ended flow may still get its name from an answer of this round.
                self.hand_out(reached.max(now));
            }
            self.look_up();
            self.check();
            self.losses.tell(reached.max(now));
            *self.counts.state.lock() = self.state.stats();
        }
        self.state.shutdown();
        self.hand_out(now);
        self.losses.tell(KernelTime::MAX);
        *self.counts.state.lock() = self.state.stats();
    }

    /// Looks up processes that have come to own a socket.
    fn look_up(&mut self) {
        for _ in 0..LOOK_UPS {
            let Some(process) = self.state.next_wanted() else { return };
            let known = process.credentials;
            // The present round began before now: a later one begins after, and so does what it leaves for the next.
            if let Some(found) = proc::look_up(&process, || self.counts.round.load(Ordering::Acquire)) {
                self.expect(known.or(found.credentials));
                self.state.learn(&process, found);
            } else {
                self.expect(known);
            }
        }
    }

    /// Checks whether processes still exist.
    fn check(&mut self) {
        for _ in 0..LOOK_UPS {
            let Some(process) = self.state.next_unchecked() else { return };
            if proc::is_gone(&process) {
                self.state.gone(&process);
            }
        }
    }

    /// Looks up user and group names ahead for a process that owns sockets or may come to, so that documents have them.
    fn expect(&self, owner: Option<Credentials>) {
        if let (Some(users), Some(owner)) = (&self.users, owner) {
            users.expect(&owner);
        }
    }

    fn hand_out(&mut self, now: KernelTime) {
        let flows = self.state.finished().map(|flow| Received::Flow(Box::new(flow))).collect::<Vec<_>>();
        let names = self.state.names().map(|name| Received::Name(Box::new(name)));
        let results = flows.into_iter().chain(names).collect::<Vec<_>>();
        results.into_iter().for_each(|result| self.hand_over(result, now));
        let events = self.state.socket_events().map(|event| Received::Socket(Box::new(event))).collect::<Vec<_>>();
        events.into_iter().for_each(|event| self.hand_over(event, now));
        self.state.losses().for_each(|loss| self.losses.add(loss));
    }

    fn hand_over(&mut self, result: Received, now: KernelTime) {
        match self.results.try_send(result) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                self.losses.add(Loss { cause: LossCause::Results, count: 1, first: now, last: now });
            }
        }
    }
}
