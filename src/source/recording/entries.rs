//! The entries of a recording, which are the contents of its blocks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use socktrail_dns::Packet;
use socktrail_kprobes::Record;

use super::counted::{AnsweredEntry, ReportedEntry};
use crate::host::Host;
use crate::model::clock::Clock;
use crate::model::control_groups::ControlGroups;
use crate::model::event::SourceCapabilities;
use crate::model::flow::{Endpoint, Transport};
use crate::model::process::{Credentials, Details, Image, Process};
use crate::model::time::{BootTime, MonotonicTime};
use crate::source::kprobes::{Feature, Missed};
use crate::state::{FoundProcess, PreexistingProcess, PreexistingSocket};

/// The first entry of a recording.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Header {
    /// The version of the program that recorded.
    pub recorder: String,
    /// The host.
    pub host: Host,
    /// See [`Agent::ephemeral_id`](crate::host::agent::Agent::ephemeral_id).
    pub ephemeral_id: String,
    /// How kernel time relates to wall time.
    pub clock: Clock,
    /// The recorder's own process.
    pub own_pid: u32,
    /// The ports of the name servers whose packets are in the recording.
    pub dns_ports: Vec<u16>,
    /// What the source could observe of sockets and datagrams.
    #[serde(rename = "sight")]
    pub capabilities: SourceCapabilities,
    /// The layout of the kernel's structures. A replay ignores the optional fields of samples that this layout lacks.
    pub layout: serde_json::Value,
}

/// A trace event whose samples are in the recording.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventEntry {
    /// The feature of its probe.
    pub feature: Feature,
    /// The kernel function or tracepoint.
    pub function: String,
    /// Its `format`, as the kernel writes it.
    pub format: String,
}

/// A process that `/proc` listed at the start. The fields are those of [`Process`], its image and its threads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessEntry {
    pub pid: u32,
    pub parent_pid: Option<u32>,
    pub start: Option<BootTime>,
    pub kernel: bool,
    pub credentials: Option<Credentials>,
    #[serde(default, rename = "containers")]
    pub control_groups: Option<ControlGroups>,
    pub name: String,
    pub executable: Option<PathBuf>,
    pub args: Vec<String>,
    pub args_cut: bool,
    pub details: Option<Details>,
    /// The threads that existed then; not in older recordings.
    #[serde(default)]
    pub threads: Option<Vec<u32>>,
}

/// A socket that existed at the start. The fields are those of [`PreexistingSocket`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketEntry {
    pub namespace: u64,
    pub transport: Transport,
    pub local: SocketAddr,
    pub remote: Option<SocketAddr>,
    pub pid: u32,
}

/// An answer of `/proc` about a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LearnedEntry {
    /// The pid. `None` in older recordings: the entry then answers the oldest question that has no answer yet.
    #[serde(default)]
    pub pid: Option<u32>,
    /// What `/proc` showed; `None` if the process had ended or ran another program.
    pub found: Option<FoundEntry>,
}

/// See [`FoundProcess`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FoundEntry {
    pub start: Option<BootTime>,
    pub parent_pid: Option<u32>,
    pub credentials: Option<Credentials>,
    #[serde(default, rename = "containers")]
    pub control_groups: ControlGroups,
    pub details: Details,
    /// When `/proc` was read. In older recordings, which lack it, it is never reached. If the answer may be used only once all
    /// events up to this time have been processed (which may show another program), it is then not used at all.
    #[serde(default = "never")]
    pub read: MonotonicTime,
}

/// A time that is never reached.
fn never() -> MonotonicTime {
    MonotonicTime::MAX
}

/// The name of a user or group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NameEntry {
    /// Whether it is a group's.
    pub group: bool,
    /// The id.
    pub id: u32,
    /// The name, if it has one.
    pub name: Option<String>,
}

/// The id of a user or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UserOrGroup {
    User(u32),
    Group(u32),
}

impl NameEntry {
    /// An entry with a name.
    pub fn new(of: UserOrGroup, name: String) -> Self {
        let (group, id) = match of {
            UserOrGroup::User(uid) => (false, uid),
            UserOrGroup::Group(gid) => (true, gid),
        };
        Self { group, id, name: Some(name) }
    }

    /// The user or group that has the name.
    pub fn of(&self) -> UserOrGroup {
        if self.group { UserOrGroup::Group(self.id) } else { UserOrGroup::User(self.id) }
    }
}

/// Hits that a probe missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedEntry {
    /// The feature of the probe.
    pub feature: Feature,
    /// How many hits.
    pub count: u64,
    /// The last time when none of these had been missed.
    pub since: MonotonicTime,
    /// When the misses were noticed.
    pub time: MonotonicTime,
}

/// One entry.
#[derive(Debug)]
pub enum Entry<'a> {
    Header(Box<Header>),
    Event(EventEntry),
    Process(ProcessEntry),
    Socket(SocketEntry),
    Record(Record<'a>),
    /// Hits that a probe missed.
    Missed(MissedEntry),
    /// A DNS packet.
    Packet(Packet<'a>),
    /// DNS packets may be missing between these times.
    PacketsMissed {
        since: MonotonicTime,
        until: MonotonicTime,
    },
    /// All events from before this time have been recorded.
    CompleteUntil(MonotonicTime),
    Learned(LearnedEntry),
    /// Counts that the kernel has reported.
    Reported(ReportedEntry),
    /// An answer about the kernel's counts.
    Answered(AnsweredEntry),
    Name(NameEntry),
    /// The end of a complete recording.
    End,
}

const HEADER: u8 = 1;
const EVENT: u8 = 2;
const PROCESS: u8 = 3;
const SAMPLE: u8 = 4;
const LOST: u8 = 5;
const UNTIL: u8 = 6;
const LEARNED: u8 = 7;
const NAME: u8 = 8;
const END: u8 = 9;
const SOCKET: u8 = 10;
const PACKET: u8 = 11;
/// As [`LOST`], but with the start of the interval, too.
const LOST_SINCE: u8 = 12;
const MISSED: u8 = 13;
const PACKETS_MISSED: u8 = 14;
const REPORTED: u8 = 15;
const ANSWERED: u8 = 16;

impl Entry<'_> {
    /// Appends the entry to a block.
    pub fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Header(header) => json(to, HEADER, header),
            Self::Event(event) => json(to, EVENT, event),
            Self::Process(process) => json(to, PROCESS, process),
            Self::Socket(socket) => json(to, SOCKET, socket),
            Self::Learned(learned) => json(to, LEARNED, learned),
            Self::Reported(reported) => json(to, REPORTED, reported),
            Self::Answered(answered) => json(to, ANSWERED, answered),
            Self::Name(name) => json(to, NAME, name),
            Self::Missed(missed) => json(to, MISSED, missed),
            Self::Record(record) => write_record(to, record),
            Self::Packet(packet) => write_packet(to, packet),
            Self::PacketsMissed { since, until } => {
                to.push(PACKETS_MISSED);
                to.extend_from_slice(&since.as_nanos().to_le_bytes());
                to.extend_from_slice(&until.as_nanos().to_le_bytes());
            }
            Self::CompleteUntil(time) => {
                to.push(UNTIL);
                to.extend_from_slice(&time.as_nanos().to_le_bytes());
            }
            Self::End => to.push(END),
        }
    }
}

fn json(to: &mut Vec<u8>, tag: u8, value: &impl Serialize) {
    // Plain structures with text keys always serialize.
    let text = serde_json::to_vec(value).unwrap_or_default();
    to.push(tag);
    to.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_le_bytes());
    to.extend_from_slice(&text);
}

fn write_record(to: &mut Vec<u8>, record: &Record<'_>) {
    match *record {
        Record::Sample { time, cpu, pid, tid, id, raw } => {
            to.push(SAMPLE);
            to.extend_from_slice(&time.to_le_bytes());
            for number in [cpu, pid, tid] {
                to.extend_from_slice(&number.to_le_bytes());
            }
            to.extend_from_slice(&id.to_le_bytes());
            // The raw data fits 16 bits, because a ring's record has a 16-bit length.
            to.extend_from_slice(&u16::try_from(raw.len()).unwrap_or(0).to_le_bytes());
            to.extend_from_slice(raw);
        }
        Record::Lost { since, time, cpu, count } => {
            to.push(LOST_SINCE);
            to.extend_from_slice(&since.to_le_bytes());
            to.extend_from_slice(&time.to_le_bytes());
            to.extend_from_slice(&cpu.to_le_bytes());
            to.extend_from_slice(&count.to_le_bytes());
        }
        _ => {}
    }
}

fn write_packet(to: &mut Vec<u8>, packet: &Packet<'_>) {
    let Packet { time, interface, ethertype, length, bytes } = *packet;
    // A captured TCP packet can be longer than 16 bits can say. The rest is left out, as if it had not been captured.
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    to.push(PACKET);
    to.extend_from_slice(&time.to_le_bytes());
    to.extend_from_slice(&interface.to_le_bytes());
    to.extend_from_slice(&ethertype.to_le_bytes());
    to.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    to.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
    to.extend_from_slice(bytes);
}

/// Reads the entries of a block.
#[derive(Debug)]
pub struct Entries<'a> {
    left: &'a [u8],
}

impl<'a> Entries<'a> {
    /// The entries in the plain bytes of a block.
    pub fn new(plain: &'a [u8]) -> Self {
        Self { left: plain }
    }

    /// The next entry or its error; `None` at the end of the block.
    pub fn next(&mut self) -> Option<Result<Entry<'a>, String>> {
        (!self.left.is_empty()).then(|| self.entry())
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.left.len()
    }

    fn entry(&mut self) -> Result<Entry<'a>, String> {
        let [tag] = self.fixed()?;
        Ok(match tag {
            HEADER => Entry::Header(self.json()?),
            EVENT => Entry::Event(self.json()?),
            PROCESS => Entry::Process(self.json()?),
            SOCKET => Entry::Socket(self.json()?),
            PACKET => Entry::Packet(self.packet()?),
            LEARNED => Entry::Learned(self.json()?),
            REPORTED => Entry::Reported(self.json()?),
            ANSWERED => Entry::Answered(self.json()?),
            NAME => Entry::Name(self.json()?),
            SAMPLE => Entry::Record(self.sample()?),
            LOST => self.lost(0)?,
            LOST_SINCE => {
                let since = u64::from_le_bytes(self.fixed()?);
                self.lost(since)?
            }
            PACKETS_MISSED => {
                let since = self.time()?;
                Entry::PacketsMissed { since, until: self.time()? }
            }
            MISSED => Entry::Missed(self.json()?),
            UNTIL => Entry::CompleteUntil(self.time()?),
            END => Entry::End,
            other => return Err(format!("an entry has the unknown tag {other}")),
        })
    }

    fn time(&mut self) -> Result<MonotonicTime, String> {
        Ok(MonotonicTime::from_nanos(u64::from_le_bytes(self.fixed()?)))
    }

    fn lost(&mut self, since: u64) -> Result<Entry<'a>, String> {
        let time = u64::from_le_bytes(self.fixed()?);
        let cpu = u32::from_le_bytes(self.fixed()?);
        Ok(Entry::Record(Record::Lost { since, time, cpu, count: u64::from_le_bytes(self.fixed()?) }))
    }

    fn sample(&mut self) -> Result<Record<'a>, String> {
        let time = u64::from_le_bytes(self.fixed()?);
        let cpu = u32::from_le_bytes(self.fixed()?);
        let pid = u32::from_le_bytes(self.fixed()?);
        let tid = u32::from_le_bytes(self.fixed()?);
        let id = u16::from_le_bytes(self.fixed()?);
        let length = u16::from_le_bytes(self.fixed()?);
        Ok(Record::Sample { time, cpu, pid, tid, id, raw: self.bytes(usize::from(length))? })
    }

    fn packet(&mut self) -> Result<Packet<'a>, String> {
        let time = u64::from_le_bytes(self.fixed()?);
        let interface = u32::from_le_bytes(self.fixed()?);
        let ethertype = u16::from_le_bytes(self.fixed()?);
        let length = u32::from_le_bytes(self.fixed()?) as usize;
        let captured = u16::from_le_bytes(self.fixed()?);
        Ok(Packet { time, interface, ethertype, length, bytes: self.bytes(usize::from(captured))? })
    }

    fn json<T: Deserialize<'a>>(&mut self) -> Result<T, String> {
        let length = u32::from_le_bytes(self.fixed()?);
        let text = self.bytes(length as usize)?;
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (bytes, left) = self.left.split_at_checked(length).ok_or("an entry is longer than its block")?;
        self.left = left;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (bytes, left) = self.left.split_first_chunk().ok_or("an entry is longer than its block")?;
        self.left = left;
        Ok(*bytes)
    }
}

impl From<Missed> for MissedEntry {
    fn from(missed: Missed) -> Self {
        let Missed { feature, count, since, time } = missed;
        Self { feature, count, since, time }
    }
}

impl From<MissedEntry> for Missed {
    fn from(entry: MissedEntry) -> Self {
        let MissedEntry { feature, count, since, time } = entry;
        Self { feature, count, since, time }
    }
}

impl From<&PreexistingProcess> for ProcessEntry {
    fn from(old: &PreexistingProcess) -> Self {
        let PreexistingProcess { process, threads } = old;
        let Process { pid, parent_pid, start, kernel, credentials, ref control_groups, ref image } = *process;
        Self {
            pid,
            parent_pid,
            start,
            kernel,
            credentials,
            control_groups: control_groups.as_deref().cloned(),
            name: image.name.clone(),
            executable: image.executable.clone(),
            args: image.args.clone(),
            args_cut: image.args_cut,
            details: image.details.get().cloned(),
            threads: Some(threads.clone()),
        }
    }
}

impl From<ProcessEntry> for PreexistingProcess {
    fn from(entry: ProcessEntry) -> Self {
        let ProcessEntry { pid, parent_pid, start, kernel, credentials, .. } = entry;
        let ProcessEntry { name, executable, args, args_cut, control_groups, details, threads, .. } = entry;
        let control_groups = control_groups.map(Arc::new);
        let details = details.map_or_else(OnceLock::new, OnceLock::from);
        let image = Arc::new(Image { name, executable, args, args_cut, details, ..Image::default() });
        let process = Process { pid, parent_pid, start, kernel, credentials, control_groups, image };
        Self { process, threads: threads.unwrap_or_else(|| vec![pid]) }
    }
}

impl From<&PreexistingSocket> for SocketEntry {
    fn from(socket: &PreexistingSocket) -> Self {
        let PreexistingSocket { namespace, transport, local, remote, pid } = *socket;
        let address = |end: Endpoint| SocketAddr::new(end.ip, end.port);
        Self { namespace, transport, local: address(local), remote: remote.map(address), pid }
    }
}

impl From<SocketEntry> for PreexistingSocket {
    fn from(entry: SocketEntry) -> Self {
        let SocketEntry { namespace, transport, local, remote, pid } = entry;
        Self { namespace, transport, local: local.into(), remote: remote.map(Endpoint::from), pid }
    }
}

impl From<&FoundProcess> for FoundEntry {
    fn from(found: &FoundProcess) -> Self {
        let FoundProcess { start, parent_pid, credentials, control_groups, details, read } = found.clone();
        Self { start, parent_pid, credentials, control_groups, details, read }
    }
}

impl From<FoundEntry> for FoundProcess {
    fn from(entry: FoundEntry) -> Self {
        let FoundEntry { start, parent_pid, credentials, control_groups, details, read } = entry;
        Self { start, parent_pid, credentials, control_groups, details, read }
    }
}
