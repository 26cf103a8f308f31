//! Replays a recording, through the same pipeline as the kernel's samples.

use std::io::Read;

use crate::model::flow::Flow;
use crate::model::time::MonotonicTime;
use crate::pipeline::{Pipeline, Sink};
use crate::source::Source;
use crate::source::recording::{RecordedNames, RecordingError, Replay, Replayed};

impl<R: Read> Replay<R> {
    /// Runs the recording through the pipeline and passes every flow to `sink`, with the names of users and groups at the time of
    /// the recording. Live flows are passed at the end.
    ///
    /// # Errors
    /// Those of `sink`, and [`RecordingError`] if the recording is damaged. The flows before the damage have been passed then.
    pub fn run<E: From<RecordingError>>(
        mut self,
        sink: impl FnMut(Flow, &RecordedNames) -> Result<(), E>,
    ) -> Result<Replayed, E> {
        let mut sink = Flows(sink);
        let mut pipeline = Pipeline::new(self.config(), None);
        pipeline.begin(&mut self, &mut sink)?;
        while pipeline.step(&mut self, &mut sink)?.is_continue() {}
        let (complete, stats, unreadable) = (self.is_complete(), pipeline.stats(), self.counts().unreadable);
        Ok(Replayed { complete, stats, unreadable })
    }
}

/// Takes the flows of a recording.
struct Flows<F>(F);

impl<R, E, F> Sink<Replay<R>> for Flows<F>
where
    R: Read,
    F: FnMut(Flow, &RecordedNames) -> Result<(), E>,
{
    type Error = E;

    fn flow(&mut self, replay: &mut Replay<R>, flow: Flow, _at: MonotonicTime) -> Result<(), E> {
        (self.0)(flow, replay.names())
    }
}
