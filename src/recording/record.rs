//! Making a recording: one thread that reads the rings, keeps what they say, and runs the state machine along with it,
//! because that decides which processes are looked up.

use std::collections::HashSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use socktrail_dns::Packet;
use socktrail_kprobes::{Group, Horizon, Record, RingOptions, Rings};

use super::RecordingError;
use super::blocks::BlockWriter;
use super::entries::{Entry, EventEntry, FoundEntry, Header, LearnedEntry, NameEntry, ProcessEntry, SocketEntry};
use super::names::Listener;
use crate::agent::Agent;
use crate::clock::Clock;
use crate::error::Error;
use crate::event::KernelTime;
use crate::flow::{Flow, Owner};
use crate::host::Host;
use crate::monitor::{GROUP, Options, layout, names, tracefs};
use crate::probes::{Feature, Probes, Wanted};
use crate::proc;
use crate::socket_event::Actions;
use crate::state::{Config, State};
use crate::users::{Names, Users};

/// How long samples may rest in a ring.
const ROUND: Duration = Duration::from_millis(100);

/// What was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// Samples.
    pub samples: u64,
    /// Samples that found no room in a ring: the recording says where.
    pub lost: u64,
    /// Flows that came of it, those alive at the end included.
    pub flows: u64,
}

/// Records until `stop`, or for `duration`. `ready` is called once everything is being watched.
///
/// # Errors
/// As [`Monitor::start`](crate::monitor::Monitor::start), and [`Error::Recording`] when it cannot be written.
pub fn record(
    options: &Options,
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

    let mut capture = names::capture(&options.dns).unwrap_or_else(|error| {
        tracing::warn!(%error, "names that are looked up are not recorded");
        None
    });
    let host = Host::gather();
    let own_pid = std::process::id();
    let header = Header {
        recorder: env!("CARGO_PKG_VERSION").to_owned(),
        ephemeral_id: Agent::of(&host).ephemeral_id,
        host,
        clock: Clock::now().map_err(Error::Clock)?,
        own_pid,
        dns_ports: options.dns.ports.clone(),
        sight: probes.sight,
        layout: serde_json::to_value(&resolved.layout).unwrap_or_default(),
    };
    let mut recorder = Recorder {
        to: BlockWriter::new(to).map_err(RecordingError::from)?,
        listener: Listener::new(&header.dns_ports),
        state: State::new(Config { own_pid, dns_ports: header.dns_ports.clone(), ..Config::default() }),
        probes,
        named: HashSet::new(),
        recorded: Recorded::default(),
        failed: None,
    };
    recorder.begin(header);
    ready();

    let (began, mut horizon) = (Instant::now(), Horizon::default());
    loop {
        let _ = rings.wait(Some(ROUND));
        let over = stop.load(Ordering::Acquire) || duration.is_some_and(|duration| began.elapsed() >= duration);
        let until = if over { KernelTime::MAX } else { horizon.next(rings.now()) };
        rings.drain(until, &mut |record: Record<'_>| recorder.record(&record));
        if let Some(capture) = &mut capture {
            capture.drain(&mut |packet| recorder.packet(packet));
        }
        recorder.until(if over { rings.now() } else { until }, over);
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
    listener: Listener,
    state: State,
    probes: Probes,
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
            self.state.ingest(&event);
        }
    }

    fn packet(&mut self, packet: &Packet<'_>) {
        self.write(&Entry::Packet(*packet));
        self.listener.ingest(packet);
    }

    /// Names of users come before the mark, since a replay writes documents at the mark; answers of `/proc` after it.
    fn until(&mut self, time: KernelTime, over: bool) {
        self.listener.release(time, &mut self.state);
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
            let found = proc::look_up(&process);
            self.write(&Entry::Learned(LearnedEntry { found: found.as_ref().map(FoundEntry::from) }));
            if let Some(found) = found {
                self.state.learn(&process, found);
            }
        }
    }

    fn names(&mut self, flows: &[Flow]) {
        let users = Users::new();
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
                if self.named.insert((group, id)) {
                    let name = if group { names.group(id) } else { names.user(id) };
                    self.write(&Entry::Name(NameEntry { group, id, name: name.map(|name| name.to_string()) }));
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
