//! The state thread: turns batches of events into results.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Sender;

use super::Received;
use super::losses::LossReporter;
use super::readiness::SetOnDrop;
use super::stats::SharedCounts;
use crate::model::flow::Flow;
use crate::model::loss::{Loss, LossCause};
use crate::model::names::NameLearned;
use crate::model::socket_event::{EventSocket, SocketEvent};
use crate::model::time::MonotonicTime;
use crate::pipeline::{Pipeline, Sink};
use crate::source::Source;

/// The state thread, which owns the pipeline.
pub(super) struct StateThread<S> {
    pub(super) pipeline: Pipeline,
    pub(super) source: S,
    pub(super) to_caller: ToCaller,
    /// Dropped once the existing processes and sockets are known.
    pub(super) ready_guard: Sender<()>,
}

/// The queues to the caller of [`Monitor::recv`](super::Monitor::recv).
pub(super) struct ToCaller {
    pub(super) results: Sender<Received>,
    pub(super) losses: LossReporter,
    pub(super) counts: Arc<SharedCounts>,
    /// Set when something is sent to one of the queues. Dropped last, after both queues are closed.
    pub(super) readiness: SetOnDrop,
}

impl<S: Source<Error = Infallible>> StateThread<S> {
    pub(super) fn run(self) {
        let Self { mut pipeline, mut source, mut to_caller, ready_guard } = self;
        let Ok(()) = pipeline.begin(&mut source, &mut to_caller);
        drop(ready_guard);
        loop {
            source.wait();
            let Ok(control) = pipeline.step(&mut source, &mut to_caller);
            to_caller.report_losses(if control.is_break() { MonotonicTime::MAX } else { pipeline.reached() });
            *to_caller.counts.state.lock() = pipeline.stats();
            if control == ControlFlow::Break(()) {
                return;
            }
        }
    }
}

impl ToCaller {
    fn send(&mut self, result: Received, now: MonotonicTime) {
        match self.results.try_send(result) {
            Ok(()) => self.readiness.0.set(),
            Err(_) => {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                self.losses.add(Loss { cause: LossCause::Results, count: 1, first: now, last: now });
            }
        }
    }

    fn report_losses(&mut self, now: MonotonicTime) {
        if self.losses.report(now) {
            self.readiness.0.set();
        }
    }
}

impl<S> Sink<S> for ToCaller {
    type Error = Infallible;

    fn flow(&mut self, _source: &mut S, flow: Flow, at: MonotonicTime) -> Result<(), Infallible> {
        self.send(Received::Flow(Box::new(flow)), at);
        Ok(())
    }

    fn name(&mut self, name: NameLearned, at: MonotonicTime) {
        self.send(Received::Name(Box::new(name)), at);
    }

    fn socket_event(&mut self, event: SocketEvent, at: MonotonicTime) {
        self.send(Received::Socket(Box::new(event)), at);
    }

    fn existing_sockets(&mut self, sockets: Vec<EventSocket>) {
        self.send(Received::Existing(sockets.into()), MonotonicTime::ZERO);
    }

    fn loss(&mut self, loss: Loss) {
        self.losses.add(loss);
    }
}
