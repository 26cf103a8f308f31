//! The source for kernels without kprobes: programs at the hooks of a control group, and at tracepoints.
//!
//! Programs write the same records as the kernel does for kprobes, so all that follows is the same. They see packets where a control
//! group may filter them: outgoing ones after all of netfilter's hooks, incoming ones at their socket.

mod packets;
mod processes;
mod sockets;
mod table;

use std::convert::Infallible;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socktrail_guess::layout_for_hooks;
use socktrail_kprobes::{Clock as RingClock, Decoder, Format, Hooks, Horizon, Record, RingOptions, Rings};

use self::table::{FURTHER_FIELDS, HOOKS, HookProbe};
use super::options::Options;
use super::processes::{CgroupAttach, ProcessExit};
use super::source::{Summary, now_of};
use super::{Decode, Probes, Wanted};
use crate::model::clock::{Clock, Readings, TimeSource};
use crate::model::event::{Execs, SourceCapabilities};
use crate::model::feature::Feature;
use crate::model::process::Process;
use crate::model::time::MonotonicTime;
use crate::source::capture::NameCapture;
use crate::source::{Batch, Counts, Error, EventSockets, Existing, Source, Tap, Waker, proc};
use crate::state::FoundProcess;

/// How long records may wait in a ring that has not reached its watermark.
const ROUND: Duration = Duration::from_millis(100);
/// How often to look for CPUs that came online.
const CHECK_PERIOD: Duration = Duration::from_secs(1);

/// Programs at hooks, the rings of their records, and the capture of DNS packets.
pub(crate) struct CgroupSource {
    rings: Rings,
    probes: Probes,
    capture: Result<Option<NameCapture>, socktrail_dns::Error>,
    summary: Summary,
    tracefs: PathBuf,
    time: TimeSource,
    max_drift: Duration,
    clock: Clock,
    horizon: Horizon,
    checked: Instant,
    stopping: bool,
    batch: Batch,
    late: u64,
    malformed: u64,
}

impl CgroupSource {
    /// Loads the programs and attaches them to the control group of this directory.
    ///
    /// # Errors
    /// An option is invalid, the kernel has no type information, control groups v2 or BPF, or a permission is missing.
    pub(crate) fn open(options: &Options, cgroup: &Path) -> Result<Self, Error> {
        options.validate()?;
        let tracefs = Arc::new(options.tracefs()?);
        let layout = layout_for_hooks()?;
        let wanted = options.wanted(&layout);
        let mut ring_options = RingOptions::default();
        ring_options.page_exponent = options.ring_size_exponent;
        let mut rings = Rings::per_cpu(&ring_options)?;
        if rings.clock() == RingClock::Local {
            return Err(Error::Option {
                name: "backend",
                problem: "cgroup needs a newer kernel: Linux 5.9".to_owned(),
            });
        }
        let mut hooks = Hooks::at(cgroup, &tracefs)?;
        rings.receive(hooks.outputs())?;
        let mut probes = Probes::none();
        let (features, missing) = install(&mut hooks, &mut rings, &mut probes, wanted);
        probes.decoders.sort_by_key(|(id, _)| *id);
        probes.capabilities =
            SourceCapabilities { programs: true, single_datagrams: true, execs: Execs::Seen, ..Default::default() };
        let readings = Readings::with_time_source(&options.time, || now_of(&rings)).map_err(Error::Clock)?;
        let capture = NameCapture::start(&options.dns);
        let cpus = rings.losses().count();
        let sampled_because = Some("the source is cgroup".to_owned());
        let summary = Summary { features, missing, cpus, ipv6: wanted.ipv6, sampled_because };
        Ok(Self {
            rings,
            probes,
            capture,
            summary,
            tracefs: tracefs.path(""),
            time: options.time.clone(),
            max_drift: options.clock_max_drift,
            clock: Clock::from_readings(readings),
            horizon: Horizon::default(),
            checked: Instant::now(),
            stopping: false,
            batch: Batch::default(),
            late: 0,
            malformed: 0,
        })
    }
}

/// Attaches the programs of all hooks. Returns the features that they show, and what is missing.
fn install(
    hooks: &mut Hooks,
    rings: &mut Rings,
    probes: &mut Probes,
    wanted: Wanted<'_>,
) -> (Vec<Feature>, Vec<String>) {
    let (mut features, mut missing) = (Vec::new(), Vec::new());
    let mut note = |feature: Feature, attached: Result<(u16, Box<dyn Decode>), socktrail_kprobes::Error>| match attached
    {
        Ok(decoder) => {
            probes.decoders.push(decoder);
            features.push(feature);
        }
        Err(error) => missing.push(format!("{feature}: {} ({error})", feature.missing_without())),
    };
    for probe in HOOKS.iter().filter(|probe| wanted.ipv6 || !probe.feature.is_ipv6()) {
        note(probe.feature, attach(probe, hooks, rings, wanted));
    }
    let exit = attach_tracepoint(hooks, rings, "sched", "sched_process_exit", |format| {
        Ok(Box::new(Decoder::<ProcessExit>::new(format)?))
    });
    note(Feature::ProcessExit, exit);
    let moved = attach_tracepoint(hooks, rings, "cgroup", "cgroup_attach_task", |format| {
        Ok(Box::new(Decoder::<CgroupAttach>::new(format)?))
    });
    note(Feature::ControlGroup, moved);
    features.sort_unstable();
    features.dedup();
    (features, missing)
}

fn attach(
    probe: &HookProbe,
    hooks: &mut Hooks,
    rings: &mut Rings,
    wanted: Wanted<'_>,
) -> Result<(u16, Box<dyn Decode>), socktrail_kprobes::Error> {
    let name = probe.feature.to_string();
    let name = name.get(..15).unwrap_or(&name);
    let condition = |(name, values): &(&'static str, &'static [i32])| {
        let mut fields = probe.fetches.iter().chain(FURTHER_FIELDS);
        fields.find(|fetch| fetch.name == *name).map(|fetch| (fetch.clone(), *values))
    };
    let conditions: Vec<_> = probe.conditions.iter().filter_map(condition).collect();
    let installed = hooks.install(name, probe.hook, probe.fetches, &conditions, &wanted)?;
    let decoder = (probe.decoder)(installed.format())?;
    rings.attach(&installed, None)?;
    Ok((installed.id() as u16, decoder))
}

fn attach_tracepoint(
    hooks: &Hooks,
    rings: &mut Rings,
    category: &str,
    name: &str,
    decoder: fn(&Format) -> Result<Box<dyn Decode>, socktrail_kprobes::Error>,
) -> Result<(u16, Box<dyn Decode>), socktrail_kprobes::Error> {
    let installed = hooks.tracepoint(category, name)?;
    let decoder = decoder(installed.format())?;
    rings.attach(&installed, None)?;
    Ok((installed.id() as u16, decoder))
}

impl CgroupSource {
    /// What the source observes.
    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The path of tracefs, for this process.
    pub(crate) fn tracefs(&self) -> &Path {
        &self.tracefs
    }

    /// Reads the clocks, and follows CPUs that come online.
    fn follow(&mut self) {
        if let Ok(readings) = Readings::with_time_source(&self.time, || now_of(&self.rings))
            && let Some(moved) = self.clock.follow(readings, self.max_drift)
        {
            tracing::info!(seconds = moved as f64 / 1e9, "the wall clock was set, or the machine slept");
        }
        if self.checked.elapsed() >= CHECK_PERIOD {
            self.checked = Instant::now();
            if let Err(error) = self.rings.follow_cpus() {
                tracing::warn!(%error, "CPUs that came online are not watched");
            }
        }
    }

    /// Delivers full batches of records from before `until`.
    fn drain<T: Tap>(&mut self, until: MonotonicTime, tap: &mut T, take: &mut dyn FnMut(&mut Batch)) {
        let Self { rings, probes, batch, .. } = self;
        let drained = rings.drain(until.as_nanos(), &mut |record: Record<'_>| {
            tap.record(&record);
            batch.events.extend(probes.event(&record));
            if batch.events.len() >= Batch::SIZE {
                take(batch);
            }
        });
        self.late += drained.late;
        self.malformed += drained.malformed;
    }
}

impl Source for CgroupSource {
    type Error = Infallible;

    fn capabilities(&self) -> SourceCapabilities {
        self.probes.capabilities
    }

    fn now(&self) -> MonotonicTime {
        now_of(&self.rings)
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts { unreadable: self.probes.unreadable, ..Counts::default() };
        (counts.late, counts.malformed) = (self.late, self.malformed);
        for loss in self.rings.losses().filter(|loss| loss.records > 0) {
            *counts.lost_by_cpu.entry(loss.cpu.unwrap_or_default()).or_default() += loss.records;
        }
        if let Ok(Some(capture)) = &self.capture {
            counts.names_dropped = capture.dropped();
            counts.name_packets_lost = capture.packets_lost();
            counts.names = capture.counters();
        }
        counts
    }

    /// The programs are already attached, so they see all processes and sockets that begin after this.
    fn existing(&mut self, event_sockets: EventSockets) -> Result<Existing, Infallible> {
        Ok(Existing::here(event_sockets))
    }

    fn wait(&mut self) {
        if let Err(error) = self.rings.wait(Some(ROUND)) {
            tracing::warn!(%error, "cannot wait for records");
            std::thread::sleep(ROUND);
        }
        self.follow();
    }

    fn hand_over<T: Tap>(
        &mut self,
        tap: &mut T,
        take: &mut dyn FnMut(&mut Batch),
    ) -> Result<ControlFlow<()>, Infallible> {
        let until = match self.stopping {
            true => MonotonicTime::MAX,
            false => MonotonicTime::from_nanos(self.horizon.next(self.rings.now())),
        };
        self.drain(until, tap, take);
        if self.stopping && self.rings.settle() {
            self.drain(until, tap, take);
        }
        let until = if self.stopping { self.now() } else { until };
        // After the rings, so that all packets from before `until` have been captured.
        if let Ok(Some(capture)) = &mut self.capture {
            capture.drain(tap);
            self.batch.names.extend(capture.answers(until));
        }
        self.batch.complete_until = Some(until);
        take(&mut self.batch);
        Ok(if self.stopping { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn stop(&mut self) {
        self.stopping = true;
    }

    fn waker(&self) -> Waker {
        self.rings.waker().into()
    }

    fn look_up(&mut self, process: &Process) -> Option<FoundProcess> {
        proc::look_up(process, || self.now())
    }

    fn is_gone(&mut self, process: &Process) -> bool {
        proc::is_gone(process)
    }
}

impl fmt::Debug for CgroupSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CgroupSource").field("summary", &self.summary).finish_non_exhaustive()
    }
}
