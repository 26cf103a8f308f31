//! Records a source.

use std::collections::HashSet;
use std::io::{self, Write};
use std::ops::ControlFlow;

use serde::Serialize;
use socktrail_dns::Packet;
use socktrail_kprobes::Record;

use super::RecordingError;
use super::blocks::BlockWriter;
use super::counted::{AnsweredEntry, ReportedEntry};
use super::entries::{
    Entry, EventEntry, FoundEntry, Header, LearnedEntry, NameEntry, ProcessEntry, SocketEntry, UserOrGroup,
};
use crate::model::clock::Clock;
use crate::model::event::SourceCapabilities;
use crate::model::flow::Flow;
use crate::model::names::UserNames;
use crate::model::process::{Credentials, Process};
use crate::model::time::MonotonicTime;
use crate::model::totals::{Conversation, Totals};
use crate::source::kprobes::Missed;
use crate::source::{Batch, CountedAnswer, Counts, EventSockets, Existing, Source, Tap, Waker};
use crate::state::FoundProcess;

/// The statistics of a recording.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Recorded {
    /// Samples.
    pub samples: u64,
    /// Samples that did not fit into a ring. The recording says where they are missing.
    pub lost: u64,
    /// Hits that probes missed. The recording has the probes and times.
    pub missed: u64,
    /// Flows, including those that were live at the end.
    pub flows: u64,
}

/// A source that records everything from another source: its events, preexisting processes and sockets, and its answers. The
/// caller adds the [names](Recorder::names) of users and the [times up to which it is complete](Recorder::complete_until).
#[derive(Debug)]
pub(crate) struct Recorder<S, W: Write> {
    source: S,
    writer: Writer<W>,
    /// The time of the last answer about the kernel's counts.
    answered: MonotonicTime,
}

impl<S: Source, W: Write> Recorder<S, W> {
    /// Begins a recording of the source, whose samples these events describe.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn new(
        source: S,
        to: W,
        header: Header,
        events: impl IntoIterator<Item = EventEntry>,
    ) -> Result<Self, RecordingError> {
        let to = BlockWriter::new(to)?;
        let mut writer = Writer { to, named: HashSet::new(), recorded: Recorded::default(), failed: None };
        writer.write(&Entry::Header(Box::new(header)));
        events.into_iter().for_each(|event| writer.write(&Entry::Event(event)));
        Ok(Self { source, writer, answered: MonotonicTime::ZERO })
    }

    /// Counts a flow.
    pub(crate) fn count_flow(&mut self) {
        self.writer.recorded.flows += 1;
    }

    /// Records the names of these users and groups. Call it before the [`complete_until`](Self::complete_until) at which their
    /// flow is replayed.
    pub(crate) fn names(&mut self, of: Credentials, names: &dyn UserNames) {
        let Credentials { uid, gid, euid, egid } = of;
        let (users, groups) = ([uid, euid].map(UserOrGroup::User), [gid, egid].map(UserOrGroup::Group));
        for id in users.into_iter().chain(groups) {
            if self.writer.named.contains(&id) {
                continue;
            }
            let name = match id {
                UserOrGroup::User(uid) => names.user(uid),
                UserOrGroup::Group(gid) => names.group(gid),
            };
            // An id without a name may still get one, when its lookup is done.
            if let Some(name) = name {
                self.writer.named.insert(id);
                self.writer.write(&Entry::Name(NameEntry::new(id, name.to_string())));
            }
        }
    }

    /// Records that all events from before this time have been recorded.
    pub(crate) fn complete_until(&mut self, time: MonotonicTime) {
        self.writer.write(&Entry::CompleteUntil(time));
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn end(mut self) -> Result<Recorded, RecordingError> {
        self.writer.write(&Entry::End);
        self.writer.failure()?;
        self.writer.to.flush()?;
        Ok(self.writer.recorded)
    }
}

impl<S: Source<Error: Into<RecordingError>>, W: Write> Source for Recorder<S, W> {
    type Error = RecordingError;

    fn capabilities(&self) -> SourceCapabilities {
        self.source.capabilities()
    }

    fn now(&self) -> MonotonicTime {
        self.source.now()
    }

    fn clock(&self) -> Clock {
        self.source.clock()
    }

    fn counts(&self) -> Counts {
        self.source.counts()
    }

    fn existing(&mut self, event_sockets: EventSockets) -> Result<Existing, RecordingError> {
        let existing = self.source.existing(event_sockets).map_err(Into::into)?;
        existing.processes.iter().for_each(|process| self.writer.write(&Entry::Process(ProcessEntry::from(process))));
        existing.sockets.iter().for_each(|socket| self.writer.write(&Entry::Socket(SocketEntry::from(socket))));
        Ok(existing)
    }

    fn wait(&mut self) {
        self.source.wait();
    }

    fn hand_over<T: Tap>(
        &mut self,
        tap: &mut T,
        take: &mut dyn FnMut(&mut Batch),
    ) -> Result<ControlFlow<()>, RecordingError> {
        let control = self.source.hand_over(&mut (tap, &mut self.writer), take).map_err(Into::into)?;
        self.writer.failure()?;
        Ok(control)
    }

    fn stop(&mut self) {
        self.source.stop();
    }

    fn waker(&self) -> Waker {
        self.source.waker()
    }

    fn can_be_asked(&self) -> bool {
        self.source.can_be_asked()
    }

    fn look_up(&mut self, process: &Process) -> Option<FoundProcess> {
        let found = self.source.look_up(process);
        let entry = LearnedEntry { pid: Some(process.pid), found: found.as_ref().map(FoundEntry::from) };
        self.writer.write(&Entry::Learned(entry));
        found
    }

    /// Always false: a recording has no entry for this, and the pipeline must get the same answers now as in a replay.
    fn is_gone(&mut self, _process: &Process) -> bool {
        false
    }

    fn totals(&mut self, of: &Conversation) -> Option<Totals> {
        let totals = self.source.totals(of);
        let answer = CountedAnswer { sock: of.sock, at: self.source.answered(), totals };
        self.answered = answer.at;
        self.writer.write(&Entry::Answered(AnsweredEntry::from(&answer)));
        totals
    }

    /// The recorded time, so that a replay uses the same.
    fn answered(&self) -> MonotonicTime {
        self.answered
    }

    fn forget(&mut self, flow: &Flow) {
        self.source.forget(flow);
    }
}

/// Writes entries.
struct Writer<W: Write> {
    to: BlockWriter<W>,
    /// Users and groups whose names are in the recording.
    named: HashSet<UserOrGroup>,
    recorded: Recorded,
    /// The error that ended the recording: nothing more can be written.
    failed: Option<io::Error>,
}

impl<W: Write> Writer<W> {
    fn write(&mut self, entry: &Entry<'_>) {
        entry.write(self.to.buffer());
        if let Err(error) = self.to.entry_done() {
            self.failed.get_or_insert(error);
        }
    }

    fn failure(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl<W: Write> Tap for Writer<W> {
    fn record(&mut self, record: &Record<'_>) {
        match record {
            Record::Lost { count, .. } => self.recorded.lost = self.recorded.lost.saturating_add(*count),
            _ => self.recorded.samples += 1,
        }
        self.write(&Entry::Record(*record));
    }

    fn missed(&mut self, missed: &Missed) {
        self.recorded.missed = self.recorded.missed.saturating_add(missed.count);
        self.write(&Entry::Missed((*missed).into()));
    }

    fn totals(&mut self, time: MonotonicTime, totals: &Totals) {
        self.write(&Entry::Reported(ReportedEntry { time, totals: totals.into() }));
    }

    fn packet(&mut self, packet: &Packet<'_>) {
        self.write(&Entry::Packet(*packet));
    }

    fn packets_missed(&mut self, since: MonotonicTime, until: MonotonicTime) {
        self.write(&Entry::PacketsMissed { since, until });
    }
}

impl<W: Write> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("recorded", &self.recorded).finish_non_exhaustive()
    }
}
