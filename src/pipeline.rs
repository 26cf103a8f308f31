//! Turns a source's batches into flows. Only this module knows the order of the steps.
//!
//! A [`Pipeline`] owns the state machine. Each [`Pipeline::step`] processes the batches of its [`Source`], ends flows that have
//! timed out, gives results to a [`Sink`], and asks the source the state machine's questions about processes.
//!
//! ```text
//!            batches                       flows, names, socket events, losses
//! source ---------------> state machine ------------------------------------> sink
//!    ^                          |
//!    +--------------------------+
//!      look up this process; has it ended? what has the kernel counted of this socket? forget this flow
//! ```

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::model::event::EventKind;
use crate::model::flow::Flow;
use crate::model::loss::Loss;
use crate::model::names::{NameLearned, PrefetchNames};
use crate::model::process::Credentials;
use crate::model::socket_event::{EventSocket, SocketEvent};
use crate::model::time::MonotonicTime;
use crate::source::{Batch, CountedAnswer, EventSockets, ProcessAnswer, Source};
use crate::state::{State, StateConfig, StateStats};

/// The maximum number of questions about processes in one step, of each kind, so that the next batch does not wait for long.
const MAX_QUESTIONS: usize = 64;
/// The maximum number of questions about the kernel's counts in one step. Each reads some hundred bytes of shared memory.
const MAX_COUNT_QUESTIONS: usize = 4096;

/// Turns the events of a source into flows.
#[derive(Debug)]
pub(crate) struct Pipeline {
    state: State,
    /// Looks up the names of the users and groups that own sockets.
    users: Option<Arc<dyn PrefetchNames>>,
    event_sockets: EventSockets,
    /// The maximum number of questions about processes in one step, of each kind.
    max_questions: usize,
    /// The maximum number of questions about the kernel's counts in one step.
    max_count_questions: usize,
    /// Answers about the kernel's counts that a source gave without being asked.
    counted: VecDeque<CountedAnswer>,
    /// All events up to this time have been processed.
    now: MonotonicTime,
    /// The time of the latest event, or `now` if that is later.
    reached: MonotonicTime,
    /// The time up to which the batches of this step are complete, if one of them says so. The sink gets it at the end of the
    /// step.
    complete_until: Option<MonotonicTime>,
}

/// Receives the results of a pipeline. `source` is the pipeline's source.
pub(crate) trait Sink<S> {
    /// The reason why it accepts no more results.
    type Error;

    /// A flow has ended, or is reported while it lives. `at` is [`Pipeline::reached`].
    fn flow(&mut self, source: &mut S, flow: Flow, at: MonotonicTime) -> Result<(), Self::Error>;

    /// A process has looked up a name.
    fn name(&mut self, name: NameLearned, at: MonotonicTime) {
        let _ = (name, at);
    }

    /// A process has done something with a socket.
    fn socket_event(&mut self, event: SocketEvent, at: MonotonicTime) {
        let _ = (event, at);
    }

    /// These sockets existed before any socket event. Only if socket events are wanted.
    fn existing_sockets(&mut self, sockets: Vec<EventSocket>) {
        let _ = sockets;
    }

    /// Samples were lost.
    fn loss(&mut self, loss: Loss) {
        let _ = loss;
    }

    /// All results up to this time have been given.
    fn complete_until(&mut self, source: &mut S, time: MonotonicTime) {
        let _ = (source, time);
    }
}

impl Pipeline {
    /// An empty pipeline. `users` is asked for names before documents need them.
    pub(crate) fn new(config: StateConfig, users: Option<Arc<dyn PrefetchNames>>) -> Self {
        let event_sockets = if config.socket_events.is_empty() { EventSockets::Unwanted } else { EventSockets::Wanted };
        let state = State::new(config);
        Self {
            state,
            users,
            event_sockets,
            max_questions: MAX_QUESTIONS,
            max_count_questions: MAX_COUNT_QUESTIONS,
            counted: VecDeque::new(),
            now: MonotonicTime::ZERO,
            reached: MonotonicTime::ZERO,
            complete_until: None,
        }
    }

    /// Asks all open questions in each step, however long that takes.
    pub(crate) fn without_question_limit(self) -> Self {
        Self { max_questions: usize::MAX, max_count_questions: usize::MAX, ..self }
    }

    /// Adds the processes and sockets that existed before the first event.
    pub(crate) fn begin<S: Source, K: Sink<S>>(&mut self, source: &mut S, sink: &mut K) -> Result<(), S::Error> {
        let existing = source.existing(self.event_sockets)?;
        self.state.set_capabilities(source.capabilities());
        existing.processes.into_iter().for_each(|process| self.state.add_preexisting(process));
        existing.sockets.iter().for_each(|socket| self.state.add_preexisting_socket(socket));
        if self.event_sockets == EventSockets::Wanted {
            let sockets = existing.event_sockets.into_iter();
            sink.existing_sockets(
                sockets.map(|(socket, pid)| self.state.add_preexisting_event_socket(socket, pid)).collect(),
            );
        }
        Ok(())
    }

    /// Processes the source's batches and gives the results to the sink. [`ControlFlow::Break`] means that the source has ended
    /// and that the sink got all results, including the live flows.
    ///
    /// # Errors
    /// Those of source and sink.
    pub(crate) fn step<S: Source, K: Sink<S>>(
        &mut self,
        source: &mut S,
        sink: &mut K,
    ) -> Result<ControlFlow<()>, K::Error>
    where
        K::Error: From<S::Error>,
    {
        let control = source.hand_over(&mut (), &mut |batch| self.process_batch(batch))?;
        let complete_until = self.complete_until.take();
        if complete_until.is_some() {
            self.ask_totals(source, self.max_count_questions);
            // Not earlier: an ended flow may still get its name from a DNS answer in the same batch.
            self.hand_out(source, sink)?;
        }
        if control.is_break() {
            self.state.ask_all();
            self.ask_totals(source, usize::MAX);
            self.state.shutdown();
            self.hand_out(source, sink)?;
        }
        if let Some(time) = complete_until {
            sink.complete_until(source, time);
        }
        // After the last batch, answers are of no use here. But a recorder records them for the replay.
        if source.can_be_asked() && (complete_until.is_some() || control.is_continue()) {
            self.look_up_processes(source);
            self.check_existence(source);
        }
        Ok(control)
    }

    /// The time of the latest processed event, or the time up to which all events were processed if that is later.
    pub(crate) fn reached(&self) -> MonotonicTime {
        self.reached
    }

    /// The counters.
    pub(crate) fn stats(&self) -> StateStats {
        self.state.stats()
    }

    fn process_batch(&mut self, batch: &mut Batch) {
        batch.answers.drain(..).for_each(|answer| self.learn(answer));
        self.counted.extend(batch.totals.drain(..));
        self.reached = batch.events.last().map_or(self.reached, |event| event.time.max(self.reached));
        for event in batch.events.drain(..) {
            if let EventKind::Credentials(credentials) = event.kind {
                self.prefetch_names(Some(credentials));
            }
            self.state.ingest(&event);
        }
        if let Some(complete_until) = batch.complete_until.take() {
            self.now = self.now.max(complete_until);
            self.reached = self.reached.max(self.now);
            self.complete_until = Some(self.now);
            batch.names.drain(..).for_each(|answer| self.state.ingest(&answer));
            self.state.expire(self.now);
        }
    }

    fn learn(&mut self, answer: ProcessAnswer) {
        let process = match answer.pid {
            Some(pid) => self.state.take_wanted(pid),
            None => self.state.next_wanted(),
        };
        if let (Some(process), Some(found)) = (process, answer.found) {
            self.state.learn(&process, found);
        }
    }

    fn hand_out<S: Source, K: Sink<S>>(&mut self, source: &mut S, sink: &mut K) -> Result<(), K::Error> {
        let at = self.reached;
        for flow in self.state.finished() {
            if flow.is_final {
                source.forget(&flow);
            }
            sink.flow(source, flow, at)?;
        }
        self.state.names().for_each(|name| sink.name(name, at));
        self.state.socket_events().for_each(|event| sink.socket_event(event, at));
        self.state.losses().for_each(|loss| sink.loss(loss));
        Ok(())
    }

    /// Asks what the kernel has counted of sockets. An answer may know of packets that are later than all events so far, because
    /// the kernel goes on counting; the state machine uses it in order of time.
    fn ask_totals(&mut self, source: &mut impl Source, limit: usize) {
        for _ in 0..limit {
            let Some(question) = self.state.next_question() else { return };
            let sock = question.conversation.sock;
            let answer = if source.can_be_asked() {
                let totals = source.totals(&question.conversation);
                CountedAnswer { sock, at: source.answered(), totals }
            } else {
                let recorded = self.counted.iter().position(|answer| answer.sock == sock);
                let none = CountedAnswer { sock, at: self.now, totals: None };
                recorded.and_then(|at| self.counted.remove(at)).unwrap_or(none)
            };
            self.state.answer(question, answer.totals, answer.at);
        }
    }

    /// Looks up processes that have recently become owners of sockets.
    fn look_up_processes(&mut self, source: &mut impl Source) {
        for _ in 0..self.max_questions {
            let Some(process) = self.state.next_wanted() else { return };
            let known = process.credentials;
            let found = source.look_up(&process);
            self.prefetch_names(known.or(found.as_ref().and_then(|found| found.credentials)));
            if let Some(found) = found {
                self.state.learn(&process, found);
            }
        }
    }

    /// Checks whether processes still exist, because the events of their end may have been lost.
    fn check_existence(&mut self, source: &mut impl Source) {
        for _ in 0..self.max_questions {
            let Some(process) = self.state.next_unchecked() else { return };
            if source.is_gone(&process) {
                self.state.gone(&process);
            }
        }
    }

    /// Requests the user and group names of a process that owns a socket, or may own one later, before documents need them.
    fn prefetch_names(&self, owner: Option<Credentials>) {
        if let (Some(users), Some(owner)) = (&self.users, owner) {
            users.prefetch(&owner);
        }
    }
}

#[cfg(test)]
mod counted;
#[cfg(test)]
mod tests;
