//! Replaying a recording.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::sync::Arc;

use serde::Deserialize;
use socktrail_guess::Layout;
use socktrail_kprobes::Format;

use super::RecordingError;
use super::blocks::BlockReader;
use super::entries::{Entries, Entry, EventEntry, Header, NameEntry};
use super::names::Listener;
use crate::agent::Agent;
use crate::clock::Clock;
use crate::event::{Execs, Sight};
use crate::flow::Flow;
use crate::host::Host;
use crate::probes::{Missed, Probes};
use crate::state::{Config, Found, OldProcess, OldSocket, State, Stats};
use crate::users::Names;

/// A recording that is being replayed.
pub struct Replay<R: Read> {
    blocks: BlockReader<R>,
    header: Header,
    agent: Agent,
    names: RecordedNames,
    listener: Listener,
    state: State,
    sight: Sight,
    probes: Probes,
    rest: Vec<u8>,
    at: u64,
}

/// How a replay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Whether the recording was ended, and not broken off.
    pub complete: bool,
    /// What was counted.
    pub stats: Stats,
    /// Samples that could not be decoded.
    pub unreadable: u64,
}

impl<R: Read> Replay<R> {
    /// Reads the beginning of a recording. What `config` says of flows holds for the replay; the process that is not
    /// reported is the recorder.
    ///
    /// # Errors
    /// It is no recording, or a newer one, or damaged.
    pub fn open(from: R, config: Config) -> Result<Self, RecordingError> {
        let mut blocks = BlockReader::new(from)?;
        let rest = blocks.next()?.ok_or(RecordingError::NoHeader)?;
        let mut entries = Entries::new(&rest);
        let header = match entries.next() {
            Some(Ok(Entry::Header(header))) => *header,
            Some(Err(problem)) => return Err(RecordingError::Damaged { position: 8, problem }),
            _ => return Err(RecordingError::NoHeader),
        };
        let agent = Agent::in_run(&header.host, header.ephemeral_id.clone());
        let mut dns = socktrail_dns::Options::default();
        dns.ports.clone_from(&header.dns_ports);
        let listener = Listener::new(&dns);
        let state = State::new(Config { own_pid: header.own_pid, dns_ports: header.dns_ports.clone(), ..config });
        let sight = Sight { execs: Execs::Unseen, ..header.sight };
        let probes = Layout::deserialize(&header.layout).map_or_else(|_| Probes::none(), Probes::recorded);
        let names = RecordedNames::default();
        Ok(Self { blocks, agent, header, names, listener, state, sight, probes, rest, at: 8 })
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

    /// What the recording says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Runs the recording through the pipeline and hands every flow to `sink`, with the names of users and groups as
    /// they were. Live flows are handed out at the end.
    ///
    /// # Errors
    /// Those of `sink`, and [`RecordingError`] where the recording is damaged: what came before has been handed out.
    pub fn run<E: From<RecordingError>>(
        mut self,
        mut sink: impl FnMut(Flow, &RecordedNames) -> Result<(), E>,
    ) -> Result<Replayed, E> {
        let (mut complete, mut now) = (false, 0);
        let mut block = std::mem::take(&mut self.rest);
        loop {
            let mut entries = Entries::new(&block);
            while let Some(entry) = entries.next() {
                let damaged = |problem| RecordingError::Damaged { position: self.at, problem };
                match entry.map_err(damaged)? {
                    Entry::Until(time) => now = time.max(now),
                    Entry::End => complete = true,
                    other => {
                        self.entry(other)?;
                        continue;
                    }
                }
                self.listener.release(now, &mut self.state);
                self.state.expire(now);
                for flow in self.state.finished() {
                    sink(flow, &self.names)?;
                }
            }
            self.at = self.blocks.position();
            match self.blocks.next()? {
                Some(next) => block = next,
                None => break,
            }
        }
        self.state.shutdown();
        for flow in self.state.finished() {
            sink(flow, &self.names)?;
        }
        Ok(Replayed { complete, stats: self.state.stats(), unreadable: self.probes.unreadable })
    }

    fn entry(&mut self, entry: Entry<'_>) -> Result<(), RecordingError> {
        match entry {
            Entry::Event(event) => self.event(&event)?,
            Entry::Process(process) => self.state.adopt(OldProcess::from(process)),
            Entry::Socket(socket) => self.state.adopt_socket(&OldSocket::from(socket)),
            Entry::Packet(packet) => self.listener.ingest(&packet),
            Entry::PacketsMissed { since, until } => self.listener.missed(since, until),
            Entry::Name(name) => self.names.add(name),
            Entry::Record(record) => {
                if let Some(event) = self.probes.event(&record) {
                    self.state.ingest(&event);
                }
            }
            Entry::Missed(missed) => self.state.ingest(&Missed::from(missed).into()),
            Entry::Learned(learned) => {
                let process = match learned.pid {
                    Some(pid) => self.state.take_wanted(pid),
                    None => self.state.next_wanted(),
                };
                if let (Some(process), Some(found)) = (process, learned.found) {
                    self.state.learn(&process, Found::from(found));
                }
            }
            Entry::Header(_) | Entry::Until(_) | Entry::End => {}
        }
        Ok(())
    }

    fn event(&mut self, event: &EventEntry) -> Result<(), RecordingError> {
        let problem = |problem: String| RecordingError::Event { event: event.function.clone(), problem };
        let format = Format::parse(event.format.as_bytes()).map_err(|error| problem(error.to_string()))?;
        self.probes.add_recorded(event.feature, &event.function, &format).map_err(problem)?;
        self.sight.execs = self.sight.execs.max(event.feature.shows_execs());
        self.state.learn_sight(self.sight);
        Ok(())
    }
}

impl<R: Read> fmt::Debug for Replay<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Names of users and groups as the recorded host had them.
#[derive(Debug, Default)]
pub struct RecordedNames {
    names: HashMap<(bool, u32), Arc<str>>,
}

impl RecordedNames {
    fn add(&mut self, entry: NameEntry) {
        if let Some(name) = entry.name {
            self.names.insert((entry.group, entry.id), name.into());
        }
    }
}

impl Names for RecordedNames {
    fn user(&self, uid: u32) -> Option<Arc<str>> {
        self.names.get(&(false, uid)).cloned()
    }

    fn group(&self, gid: u32) -> Option<Arc<str>> {
        self.names.get(&(true, gid)).cloned()
    }
}
