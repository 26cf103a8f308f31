//! Making a recording: one thread that reads the rings, keeps what they say, and runs the state machine along with it,
//! because that decides which processes are looked up.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use socktrail_kprobes::{Group, Horizon, Record, RingOptions, Rings};

use super::RecordingError;
use super::blocks::BlockWriter;
use super::entries::{Entry, EventEntry, FoundEntry, Header, LearnedEntry, NameEntry, ProcessEntry, SocketEntry};
use crate::agent::Agent;
use crate::clock::{Clock, Readings};
use crate::error::Error;
use crate::event::{EventKind, KernelTime};
use crate::flow::{Flow, Owner};
use crate::host::Host;
use crate::monitor::names::{self, Heard, Names};
use crate::monitor::sync::{self, Sync};
use crate::monitor::{GROUP, Options, layout, tracefs};
use crate::probes::{Feature, Missed, Misses, Probes, Wanted};
use crate::proc;
use crate::socket_event::Actions;
use crate::state::{Config, State};
use crate::users::{Names as _, Users};

/// How long samples may rest in a ring.
const ROUND: Duration = Duration::from_millis(100);
/// How often to ask the kernel for missed hits while no samples come; else each round.
const CHECK: Duration = Duration::from_secs(1);

/// What was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// Samples.
    pub samples: u64,
    /// Samples that found no room in a ring: the recording says where.
    pub lost: u64,
    /// Hits that probes missed: the recording says which and when.
    pub missed: u64,
    /// Flows that came of it, those alive at the end included.
    pub flows: u64,
}

/// Records until `stop`, or for `duration`. `users` gives the names; the caller must have [started](Users::start) it.
/// `ready` is called once everything is being watched.
///
/// # Errors
/// As [`Monitor::start`](crate::monitor::Monitor::start), and [`Error::Recording`] when it cannot be written.
pub fn record(
    options: &Options,
    users: Users,
    to: impl Write,
    duration: Option<Duration>,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> Result<Recorded, Error> {
    let tracefs = Arc::new(tracefs(options)?);
    let mut group = Group::create(&tracefs, GROUP)?;
    let ipv6 = options.enable_ipv6.unwrap_or_else(proc::has_ipv6);
    let resolved = layout(options, &tracefs, ipv6)?;
    let mut ring_options = RingOptions::default();
    ring_options.page_exponent = options.ring_size_exponent;
    ring_options.clock = sync::wanted(&options.mask);
    let mut rings = Rings::per_cpu(&ring_options)?;
    let wanted = Wanted {
        layout: &resolved.layout,
        ipv6,
        flows: true,
        socket_events: Actions::NONE,
        mask: &options.mask,
        loopback: true,
    };
    let probes = Probes::install(&mut group, Some(&mut rings), wanted);
    if !probes.features().any(Feature::shows_flows) {
        return Err(Error::NothingToSee(probes.served));
    }

    let mut sync = Sync::every(options.clock_sync_period);
    sync.compare(&mut rings, &probes);
    let readings = Readings::by(&options.time, || rings.now()).map_err(Error::Clock)?;
    let capture = names::capture(&options.dns).unwrap_or_else(|error| {
        tracing::warn!(%error, "names that are looked up are not recorded");
        None
    });
    let mut names = capture.map(|capture| Names::new(capture, &options.dns));
    let host = Host::gather();
    let own_pid = std::process::id();
    let header = Header {
        recorder: env!("CARGO_PKG_VERSION").to_owned(),
        ephemeral_id: Agent::of(&host).ephemeral_id,
        host,
        clock: Clock::from_readings(readings),
        own_pid,
        dns_ports: options.dns.ports.clone(),
        sight: probes.sight,
        layout: serde_json::to_value(&resolved.layout).unwrap_or_default(),
    };
    let mut misses = Misses::of(&probes);
    let mut recorder = Recorder {
        to: BlockWriter::new(to).map_err(RecordingError::from)?,
        state: State::new(Config { own_pid, dns_ports: header.dns_ports.clone(), ..Config::default() }),
        probes,
        users,
        named: HashSet::new(),
        recorded: Recorded::default(),
        failed: None,
    };
    recorder.state.learn_sight(header.sight);
    recorder.begin(header);
    ready();

    let (began, mut horizon) = (Instant::now(), Horizon::default());
    let (mut checked, mut asked, mut missed) = (began, began, Vec::new());
    loop {
        let _ = rings.wait(Some(ROUND));
        sync.compare(&mut rings, &recorder.probes);
        let over = stop.load(Ordering::Acquire) || duration.is_some_and(|duration| began.elapsed() >= duration);
        let until = if over { KernelTime::MAX } else { horizon.next(rings.now()) };
        let is_busy = rings.drain(until, &mut |record: Record<'_>| recorder.record(&record)).records > 0;
        if over && rings.settle() {
            rings.drain(until, &mut |record: Record<'_>| recorder.record(&record));
        }
        let is_due = over || checked.elapsed() >= CHECK;
        if is_due || (is_busy && asked.elapsed() >= ROUND) {
            asked = Instant::now();
            missed.extend(misses.ask(&mut group, || rings.now()).unwrap_or_default());
        }
        if is_due {
            checked = Instant::now();
            group.sweep_again();
        }
        let reached = if over { rings.now() } else { until };
        missed.extract_if(.., |missed| missed.time <= reached).for_each(|missed| recorder.missed(missed, reached));
        if let Some(names) = &mut names {
            names.drain(&mut |heard| recorder.heard(heard));
            names.answers(reached).for_each(|answer| recorder.state.ingest(&answer));
        }
        recorder.until(reached, over, || rings.now());
        if let Some(error) = recorder.failed.take() {
            return Err(RecordingError::from(error).into());
        }
        if over {
            return recorder.end().map_err(|error| RecordingError::from(error).into());
        }
    }
}

struct Recorder<W: Write> {
    to: BlockWriter<W>,
    state: State,
    probes: Probes,
    users: Users,
    /// Users and groups whose names are in the recording.
    named: HashSet<(bool, u32)>,
    recorded: Recorded,
    failed: Option<std::io::Error>,
}

impl<W: Write> Recorder<W> {
    fn begin(&mut self, header: Header) {
        self.write(&Entry::Header(Box::new(header)));
        for event in self.probes.events() {
            let (feature, function, format) = event;
            let function = function.to_owned();
            self.write(&Entry::Event(EventEntry { feature, function, format: format.to_string() }));
        }
        // The probes are in place by now: who comes after this look is seen by them.
        for process in proc::processes() {
            self.write(&Entry::Process(ProcessEntry::from(&process)));
            self.state.adopt(process);
        }
        for socket in proc::sockets() {
            self.write(&Entry::Socket(SocketEntry::from(&socket)));
            self.state.adopt_socket(&socket);
        }
    }

    fn record(&mut self, record: &Record<'_>) {
        match record {
            Record::Lost { count, .. } => self.recorded.lost = self.recorded.lost.saturating_add(*count),
            _ => self.recorded.samples += 1,
        }
        self.write(&Entry::Record(*record));
        if let Some(event) = self.probes.event(record) {
            if let EventKind::Credentials(credentials) = &event.kind {
                self.users.expect(credentials);
            }
            self.state.ingest(&event);
        }
    }

    fn heard(&mut self, heard: Heard<'_>) {
        self.write(&match heard {
            Heard::Packet(packet) => Entry::Packet(*packet),
            Heard::Missed { since, until } => Entry::PacketsMissed { since, until },
        });
    }

    fn missed(&mut self, missed: Missed, time: KernelTime) {
        let missed = Missed { time, ..missed };
        self.recorded.missed = self.recorded.missed.saturating_add(missed.count);
        self.write(&Entry::Missed(missed.into()));
        self.state.ingest(&missed.into());
    }

    /// Names of users come before the mark, since a replay writes documents at the mark; answers of `/proc` after it.
    fn until(&mut self, time: KernelTime, over: bool, now: impl Fn() -> KernelTime) {
        self.state.expire(time);
        let mut flows: Vec<_> = self.state.finished().collect();
        if over {
            self.state.shutdown();
            flows.extend(self.state.finished());
        }
        self.recorded.flows += flows.len() as u64;
        self.names(&flows);
        self.write(&Entry::Until(time));
        while let Some(process) = self.state.next_wanted() {
            process.credentials.iter().for_each(|owner| self.users.expect(owner));
            let found = proc::look_up(&process, &now);
            self.write(&Entry::Learned(LearnedEntry {
                pid: Some(process.pid),
                found: found.as_ref().map(FoundEntry::from),
            }));
            if let Some(found) = found {
                found.credentials.iter().for_each(|owner| self.users.expect(owner));
                self.state.learn(&process, found);
            }
        }
    }

    fn names(&mut self, flows: &[Flow]) {
        let users = self.users.clone();
        let names = users.at(Instant::now());
        for flow in flows {
            let Owner::Process(process) = &flow.owner else { continue };
            let Some(credentials) = process.credentials else { continue };
            let ids = [
                (false, credentials.uid),
                (false, credentials.euid),
                (true, credentials.gid),
                (true, credentials.egid),
            ];
            for (group, id) in ids {
                if self.named.contains(&(group, id)) {
                    continue;
                }
                // One without a name may get it: the answer is on its way.
                if let Some(name) = if group { names.group(id) } else { names.user(id) } {
                    self.named.insert((group, id));
                    self.write(&Entry::Name(NameEntry { group, id, name: Some(name.to_string()) }));
                }
            }
        }
    }

    fn end(mut self) -> std::io::Result<Recorded> {
        self.write(&Entry::End);
        self.to.flush()?;
        Ok(self.recorded)
    }

    fn write(&mut self, entry: &Entry<'_>) {
        entry.write(self.to.buffer());
        if let Err(error) = self.to.entry_done() {
            self.failed.get_or_insert(error);
        }
    }
}
