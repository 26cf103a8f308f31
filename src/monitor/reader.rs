//! The reader thread: sends a source's batches to the state thread.

use std::convert::Infallible;
use std::fmt::Display;
use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::stats::SharedCounts;
use crate::model::clock::{Clock, monotonic};
use crate::model::event::SourceCapabilities;
use crate::model::process::Process;
use crate::model::time::MonotonicTime;
use crate::model::totals::{Conversation, Totals};
use crate::source::{self, Batch, EventSockets, Existing, Source, Tap, TotalsReader, proc};
use crate::state::FoundProcess;

/// The reader thread, which owns the source.
pub(super) struct Reader<S> {
    pub(super) source: S,
    pub(super) to_state: Sender<Batch>,
    /// Batches that the state thread has emptied, for reuse.
    pub(super) returned_batches: Receiver<Batch>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) counts: Arc<SharedCounts>,
    pub(super) clock: Arc<Mutex<Clock>>,
}

impl<S: Source<Error: Display>> Reader<S> {
    pub(super) fn run(mut self) {
        loop {
            self.source.wait();
            *self.clock.lock() = self.source.clock();
            if self.stopping.load(Ordering::Acquire) {
                self.source.stop();
            }
            self.counts.begin_round(self.source.now());
            let Self { source, to_state, returned_batches, .. } = &mut self;
            let mut is_gone = false;
            let handed_over = source.hand_over(&mut (), &mut |batch| {
                let empty = returned_batches.try_recv().unwrap_or_default();
                is_gone |= to_state.send(mem::replace(batch, empty)).is_err();
            });
            *self.counts.source.lock() = self.source.counts();
            match handed_over {
                Ok(ControlFlow::Continue(())) if !is_gone => {}
                Ok(_) => return,
                Err(error) => return tracing::error!(%error, "the monitor ends: its source has failed"),
            }
        }
    }
}

/// The state thread's source: the batches of the reader thread, and `/proc` for questions about processes. It has no samples
/// for a [`Tap`], because only events arrive.
pub(super) struct FromReader {
    pub(super) batches: Receiver<Batch>,
    /// Gives emptied batches back to the reader thread.
    pub(super) return_batch: Sender<Batch>,
    pub(super) capabilities: SourceCapabilities,
    pub(super) counts: Arc<SharedCounts>,
    pub(super) clock: Arc<Mutex<Clock>>,
    pub(super) totals: TotalsReader,
    /// The batch that the last wait received.
    pub(super) next: Option<Batch>,
}

impl Source for FromReader {
    type Error = Infallible;

    fn capabilities(&self) -> SourceCapabilities {
        self.capabilities.clone()
    }

    /// When the reader's latest round began. Before Linux 4.1, only the reader can read the clock of the samples.
    fn now(&self) -> MonotonicTime {
        self.counts.round()
    }

    fn clock(&self) -> Clock {
        *self.clock.lock()
    }

    fn counts(&self) -> source::Counts {
        self.counts.source.lock().clone()
    }

    /// The probes are installed, so they see every process that starts after this read of `/proc`.
    fn existing(&mut self, event_sockets: EventSockets) -> Result<Existing, Infallible> {
        Ok(Existing::here(event_sockets))
    }

    fn wait(&mut self) {
        self.next = self.batches.recv().ok();
    }

    fn hand_over<T: Tap>(
        &mut self,
        _tap: &mut T,
        take: &mut dyn FnMut(&mut Batch),
    ) -> Result<ControlFlow<()>, Infallible> {
        let Some(mut batch) = self.next.take() else { return Ok(ControlFlow::Break(())) };
        take(&mut batch);
        let _ = self.return_batch.try_send(batch);
        Ok(ControlFlow::Continue(()))
    }

    fn look_up(&mut self, process: &Process) -> Option<FoundProcess> {
        // Not the beginning of the round: an exec between that and the look-up is not in the batch yet.
        proc::look_up(process, || self.counts.now())
    }

    fn is_gone(&mut self, process: &Process) -> bool {
        proc::is_gone(process)
    }

    fn totals(&mut self, of: &Conversation) -> Option<Totals> {
        self.totals.totals(of, self.now())
    }

    /// Unlike [`FromReader::now`], it is after the answer. Totals are only read from kernels that stamp events with this clock.
    fn answered(&self) -> MonotonicTime {
        monotonic()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::bounded;

    use super::*;

    /// An exec between the beginning of the round and the look-up is not in the batch yet.
    #[test]
    fn a_look_up_is_later_than_what_it_has_read() {
        let counts = Arc::new(SharedCounts::default());
        let samples = MonotonicTime::from_nanos(5_000_000_000); // the clock of samples may be another one
        counts.begin_round(samples);
        std::thread::sleep(Duration::from_millis(2));
        let (to_reader, batches) = bounded(1);
        let mut source = FromReader {
            batches,
            return_batch: to_reader,
            capabilities: SourceCapabilities::default(),
            counts,
            clock: Arc::new(Mutex::new(Clock::now().unwrap())),
            totals: TotalsReader::default(),
            next: None,
        };
        let this = Existing::here(EventSockets::Unwanted).processes.into_iter();
        let this = this.map(|existing| existing.process).find(|process| process.pid == std::process::id()).unwrap();
        let found = source.look_up(&this).unwrap();
        assert!(found.read >= samples.saturating_add(Duration::from_millis(2)), "{:?}", found.read);
        assert!(found.read < samples.saturating_add(Duration::from_secs(600)), "{:?}", found.read);
    }
}
