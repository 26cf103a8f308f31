//! Replays a recording.

use std::collections::HashMap;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::{fmt, mem};

use serde::Deserialize;
use socktrail_guess::Layout;
use socktrail_kprobes::Format;

use super::RecordingError;
use super::blocks::BlockReader;
use super::entries::{Entries, Entry, EventEntry, Header, LearnedEntry, NameEntry, UserOrGroup};
use crate::host::Host;
use crate::host::agent::Agent;
use crate::model::clock::Clock;
use crate::model::event::{Event, EventKind, Execs, SourceCapabilities};
use crate::model::names::UserNames;
use crate::model::process::Process;
use crate::model::socket_event::Actions;
use crate::model::time::MonotonicTime;
use crate::model::totals::Totals;
use crate::source::kprobes::{Missed, Probes};
use crate::source::names::NameListener;
use crate::source::{Batch, CountedAnswer, Counts, EventSockets, Existing, ProcessAnswer, Source, Tap};
use crate::state::{FoundProcess, StateConfig, StateStats};

/// A recording that is being replayed.
pub struct Replay<R: Read> {
    blocks: BlockReader<R>,
    header: Header,
    agent: Agent,
    config: StateConfig,
    names: RecordedNames,
    listener: NameListener,
    capabilities: SourceCapabilities,
    probes: Probes,
    /// The plain bytes of the current block.
    block: Vec<u8>,
    /// How many of them have been read.
    block_read: usize,
    /// The offset of the block in the recording, in bytes.
    block_offset: u64,
    /// The time up to which all events have been read.
    now: MonotonicTime,
    batch: Batch,
    /// An answer that follows the events of the last batch.
    later: Option<ProcessAnswer>,
    complete: bool,
}

/// The result of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// Whether the recording is complete, not truncated.
    pub complete: bool,
    /// The statistics.
    pub stats: StateStats,
    /// Samples that could not be decoded.
    pub unreadable: u64,
}

impl<R: Read> Replay<R> {
    /// Reads the beginning of a recording. The options for flows in `config` apply to the replay; the recorder's own process is
    /// not reported. A replay yields only flows, so requests for names or socket events in `config` have no effect.
    ///
    /// # Errors
    /// It is not a recording, has an unsupported version, or is damaged.
    pub fn open(from: R, config: StateConfig) -> Result<Self, RecordingError> {
        let mut blocks = BlockReader::new(from)?;
        let block_offset = blocks.position();
        let block = blocks.next()?.ok_or(RecordingError::NoHeader)?;
        let mut entries = Entries::new(&block);
        let header = match entries.next() {
            Some(Ok(Entry::Header(header))) => *header,
            Some(Err(problem)) => return Err(RecordingError::Damaged { position: block_offset, problem }),
            _ => return Err(RecordingError::NoHeader),
        };
        let block_read = block.len() - entries.left();
        let agent = Agent::with_ephemeral_id(&header.host, header.ephemeral_id.clone());
        let mut dns = socktrail_dns::Options::default();
        dns.ports.clone_from(&header.dns_ports);
        let config = StateConfig {
            own_pid: header.own_pid,
            dns_ports: header.dns_ports.clone(),
            report_names: false,
            socket_events: Actions::NONE,
            flows: true,
            ..config
        };
        Ok(Self {
            blocks,
            agent,
            config,
            names: RecordedNames::default(),
            listener: NameListener::new(&dns),
            capabilities: SourceCapabilities { execs: Execs::Unseen, ..header.capabilities.clone() },
            probes: Layout::deserialize(&header.layout).map_or_else(|_| Probes::none(), Probes::recorded),
            header,
            block,
            block_read,
            block_offset,
            now: MonotonicTime::ZERO,
            batch: Batch::default(),
            later: None,
            complete: false,
        })
    }

    /// The host that was recorded.
    pub fn host(&self) -> &Host {
        &self.header.host
    }

    /// The agent that recorded.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// How the times of flows relate to wall time.
    pub fn clock(&self) -> Clock {
        self.header.clock
    }

    /// The header of the recording.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The names of users and groups read so far.
    pub(crate) fn names(&self) -> &RecordedNames {
        &self.names
    }

    /// The options of the state machine.
    pub(crate) fn config(&self) -> StateConfig {
        self.config.clone()
    }

    /// Whether the recording is complete, not truncated. Known after the last batch.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Passes entries to `each` until it has enough. Returns false if the recording ends before.
    fn read(
        &mut self,
        mut each: impl FnMut(&mut Self, Entry<'_>) -> Result<Then, RecordingError>,
    ) -> Result<bool, RecordingError> {
        loop {
            let block = mem::take(&mut self.block);
            let mut entries = Entries::new(&block[self.block_read..]);
            let mut then = Then::GoOn;
            while then == Then::GoOn
                && let Some(entry) = entries.next()
            {
                then = each(self, entry.map_err(|problem| self.damaged(problem))?)?;
                if then != Then::StopBefore {
                    self.block_read = block.len() - entries.left();
                }
            }
            self.block = block;
            if then != Then::GoOn {
                return Ok(true);
            }
            self.block_offset = self.blocks.position();
            match self.blocks.next()? {
                Some(next) => (self.block, self.block_read) = (next, 0),
                None => return Ok(false),
            }
        }
    }

    /// Adds an entry to the batch. Returns whether to deliver the batch.
    fn entry<T: Tap>(&mut self, entry: Entry<'_>, tap: &mut T) -> Result<Then, RecordingError> {
        let batch = &mut self.batch;
        match entry {
            Entry::Record(record) => {
                tap.record(&record);
                batch.events.extend(self.probes.event(&record));
                if batch.events.len() >= Batch::SIZE {
                    return Ok(Then::Stop);
                }
            }
            Entry::Missed(missed) => {
                let missed = Missed::from(missed);
                tap.missed(&missed);
                batch.events.push(missed.into());
            }
            Entry::Packet(packet) => {
                tap.packet(&packet);
                self.listener.ingest(&packet);
            }
            Entry::PacketsMissed { since, until } => {
                tap.packets_missed(since, until);
                self.listener.missed(since, until);
            }
            Entry::Reported(reported) => {
                let totals = Totals::try_from(reported.totals).map_err(|problem| self.damaged(problem))?;
                tap.totals(reported.time, &totals);
                let kind = EventKind::Totals(Box::new(totals));
                self.batch.events.push(Event { time: reported.time, pid: 0, tid: 0, kind });
            }
            Entry::Answered(answered) => {
                let answer = CountedAnswer::try_from(answered).map_err(|problem| self.damaged(problem))?;
                self.batch.totals.push(answer);
            }
            Entry::Name(name) => self.names.add(name),
            Entry::Learned(LearnedEntry { pid, found }) => {
                let answer = ProcessAnswer { pid, found: found.map(FoundProcess::from) };
                if !batch.events.is_empty() {
                    self.later = Some(answer);
                    return Ok(Then::Stop);
                }
                batch.answers.push(answer);
            }
            Entry::CompleteUntil(time) => {
                self.complete_until(time);
                return Ok(Then::Stop);
            }
            Entry::End => {
                self.complete = true;
                self.complete_until(self.now);
                return Ok(Then::Stop);
            }
            Entry::Header(_) | Entry::Event(_) | Entry::Process(_) | Entry::Socket(_) => {
                return Err(self.damaged(
                    "a header, event format, process or socket comes after the start of the recording".to_owned(),
                ));
            }
        }
        Ok(Then::GoOn)
    }

    /// All events before this time have been read.
    fn complete_until(&mut self, time: MonotonicTime) {
        self.now = self.now.max(time);
        self.batch.names.extend(self.listener.take(self.now));
        self.batch.complete_until = Some(self.now);
    }

    fn event(&mut self, event: &EventEntry) -> Result<(), RecordingError> {
        let problem = |problem: String| RecordingError::Event { event: event.function.clone(), problem };
        let format = Format::parse(event.format.as_bytes()).map_err(|error| problem(error.to_string()))?;
        self.probes.add_recorded(event.feature, &event.function, &format).map_err(problem)?;
        self.capabilities.execs = self.capabilities.execs.max(event.feature.shows_execs());
        Ok(())
    }

    fn damaged(&self, problem: String) -> RecordingError {
        RecordingError::Damaged { position: self.block_offset, problem }
    }
}

/// What to do after an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Read the next one.
    GoOn,
    /// Stop for now.
    Stop,
    /// Stop for now, and read this entry again later.
    StopBefore,
}

impl<R: Read> Source for Replay<R> {
    type Error = RecordingError;

    fn capabilities(&self) -> SourceCapabilities {
        self.capabilities.clone()
    }

    fn now(&self) -> MonotonicTime {
        self.now
    }

    fn clock(&self) -> Clock {
        self.header.clock
    }

    fn counts(&self) -> Counts {
        Counts { unreadable: self.probes.unreadable, ..Counts::default() }
    }

    /// Reads the entries at the start of the recording: event formats, processes, sockets, and names.
    fn existing(&mut self, _event_sockets: EventSockets) -> Result<Existing, RecordingError> {
        let mut existing = Existing::default();
        self.read(|replay, entry| {
            match entry {
                Entry::Event(event) => replay.event(&event)?,
                Entry::Process(process) => existing.processes.push(process.into()),
                Entry::Socket(socket) => existing.sockets.push(socket.into()),
                Entry::Name(name) => replay.names.add(name),
                _ => return Ok(Then::StopBefore),
            }
            Ok(Then::GoOn)
        })?;
        Ok(existing)
    }

    /// Hands over one batch.
    fn hand_over<T: Tap>(
        &mut self,
        tap: &mut T,
        take: &mut dyn FnMut(&mut Batch),
    ) -> Result<ControlFlow<()>, RecordingError> {
        self.batch.answers.extend(self.later.take());
        let is_more = self.read(|replay, entry| replay.entry(entry, tap))?;
        take(&mut self.batch);
        Ok(if is_more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    }

    fn can_be_asked(&self) -> bool {
        false
    }

    fn look_up(&mut self, _process: &Process) -> Option<FoundProcess> {
        None
    }

    fn is_gone(&mut self, _process: &Process) -> bool {
        false
    }
}

impl<R: Read> fmt::Debug for Replay<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").field("header", &self.header).finish_non_exhaustive()
    }
}

/// The names of users and groups on the recorded host.
#[derive(Debug, Default)]
pub struct RecordedNames {
    names: HashMap<UserOrGroup, Arc<str>>,
}

impl RecordedNames {
    fn add(&mut self, entry: NameEntry) {
        let of = entry.of();
        if let Some(name) = entry.name {
            self.names.insert(of, name.into());
        }
    }
}

impl UserNames for RecordedNames {
    fn user(&self, uid: u32) -> Option<Arc<str>> {
        self.names.get(&UserOrGroup::User(uid)).cloned()
    }

    fn group(&self, gid: u32) -> Option<Arc<str>> {
        self.names.get(&UserOrGroup::Group(gid)).cloned()
    }
}
