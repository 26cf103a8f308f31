//! The source that observes this kernel: turns the contents of the rings into batches of events. Kprobes write into the rings, or
//! programs at a control group.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socktrail_guess::Layout;
use socktrail_kprobes::{Clock as RingClock, ControlGroup, Format, Group, Horizon, Record, Rings};

use super::cgroup;
use super::kprobes::clock_comparison::ClockComparison;
use super::kprobes::{Feature, Missed, Misses, Opened, Probes, now_of, of_record};
use super::options::Options;
use super::{Batch, Counts, Error, EventSockets, Existing, Source, Tap, TotalsReader, Waker, kprobes, proc};
use crate::model::accounting::Accounting;
use crate::model::backend::Backend;
use crate::model::clock::{Clock, Readings, TimeSource};
use crate::model::event::{Event, EventKind, SourceCapabilities};
use crate::model::process::Process;
use crate::model::time::MonotonicTime;
use crate::model::totals::{Conversation, Totals};
use crate::source::capture::NameCapture;
use crate::state::FoundProcess;

/// How long samples may wait in a ring that has not reached its watermark.
const ROUND: Duration = Duration::from_millis(100);
/// How long to wait if a ring still has many samples that are too recent to be released.
const SHORT_ROUND: Duration = Duration::from_millis(1);
/// How often to check for CPUs that came online, to read the kernel's counts of missed hits while no samples arrive, to read
/// its counts of hits at which it did not run a program, to remove probes that killed monitors have left, and to see whether the
/// control group still exists. Must be shorter
/// than the time for which closed flows are kept.
const CHECK_PERIOD: Duration = Duration::from_secs(1);
/// How often to read the kernel's counts of missed hits while samples arrive. A miss marks all flows that were open since the last
/// reading.
const MISSES_PERIOD: Duration = ROUND;

/// The installed probes, the rings of their samples, and the capture of DNS packets.
pub(crate) struct LiveSource {
    // The rings are dropped first, because a probe in use cannot be removed.
    rings: Rings,
    probes: Probes,
    misses: Misses,
    /// The kprobes; `None` if there are none.
    group: Option<Group>,
    /// The control group that is observed. `None` if kprobes observe the whole host, or if the group has been removed.
    cgroup: Option<ControlGroup>,
    sync: ClockComparison,
    /// The capture of DNS packets, if wanted, or why it could not be started.
    capture: Result<Option<NameCapture>, socktrail_dns::Error>,
    layout: Layout,
    tracefs: PathBuf,
    summary: Summary,
    time: TimeSource,
    max_drift: Duration,
    clock: Clock,
    horizon: Horizon,
    pause: Duration,
    checked: Instant,
    misses_read: Instant,
    is_busy: bool,
    stopping: bool,
    /// When the latest round began.
    round: MonotonicTime,
    /// Missed probe hits that were not delivered yet.
    missed: Vec<Missed>,
    /// The events of the present round.
    batch: Batch,
    late: u64,
    malformed: u64,
}

impl LiveSource {
    /// Finds the kernel's layout, installs the probes or programs that the options choose, and enables them. Samples wait in the
    /// rings.
    ///
    /// # Errors
    /// An option is invalid, the kernel has neither kprobes nor such programs, kprobes are switched off, a permission is
    /// missing or a limit too low, the layout could not be found, or nothing that shows the requested data could be installed.
    /// Installed probes are removed.
    pub(crate) fn open(options: &Options) -> Result<Self, Error> {
        options.validate()?;
        let opened = match options.backend {
            Backend::Cgroup => cgroup::open(options)?,
            Backend::Kprobes => kprobes::open(options)?,
            Backend::Auto => match kprobes::open(options) {
                Err(Error::Kprobes(socktrail_kprobes::Error::NoKprobes { .. })) if options.flows => {
                    tracing::info!("this kernel has no kprobes: flows are observed by programs at a control group");
                    cgroup::open(options)?
                }
                opened => opened?,
            },
        };
        Self::of_opened(opened, options)
    }

    fn of_opened(opened: Opened, options: &Options) -> Result<Self, Error> {
        let Opened { mut rings, probes, group, cgroup, layout, tracefs } = opened;
        if let Err(reason) = &probes.conversations {
            match options.accounting {
                Accounting::Kernel => {
                    return Err(Error::Option {
                        name: "accounting",
                        problem: format!("kernel is not possible: {reason}"),
                    });
                }
                Accounting::Auto => tracing::info!(%reason, "packets are sampled, not counted in the kernel"),
                Accounting::Samples => {}
            }
        }
        let mut sync = ClockComparison::every(options.clock_sync_period);
        sync.compare(&mut rings, &probes);
        let readings = Readings::with_time_source(&options.time, || now_of(&rings)).map_err(Error::Clock)?;
        let mut summary = Summary::of(&probes, &rings, options.ipv6(), group.is_none());
        if group.is_none() && !options.socket_events.is_empty() {
            summary.missing.push("socket events and sensors: programs at a control group do not show them".to_owned());
        }
        let capture = NameCapture::start(&options.dns);
        if let Err(error) = &capture {
            summary.missing.push(format!("names that are looked up: {error}"));
        }
        let misses = Misses::of(&probes);
        let now = Instant::now();
        Ok(Self {
            rings,
            probes,
            misses,
            group,
            cgroup,
            sync,
            capture,
            layout,
            tracefs: tracefs.path(""),
            summary,
            time: options.time.clone(),
            max_drift: options.clock_max_drift,
            clock: Clock::from_readings(readings),
            horizon: Horizon::default(),
            pause: ROUND,
            checked: now,
            misses_read: now,
            is_busy: false,
            stopping: false,
            round: MonotonicTime::ZERO,
            missed: Vec::new(),
            batch: Batch::default(),
            late: 0,
            malformed: 0,
        })
    }

    /// What the source observes.
    pub(crate) fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The path of tracefs, for this process.
    pub(crate) fn tracefs(&self) -> &Path {
        &self.tracefs
    }

    /// The layout of the kernel's structures.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The installed probes: feature, function, and the format of the samples.
    pub(crate) fn formats(&self) -> Vec<(Feature, &'static str, Format)> {
        self.probes.formats()
    }

    /// Why DNS packets are not captured, if they are wanted.
    pub(crate) fn names_unseen(&self) -> Option<&socktrail_dns::Error> {
        self.capture.as_ref().err()
    }

    /// Reads the clocks. This is cheap, so it is done every round, and a step of the wall clock is noticed within one round.
    /// `is_compared` says whether the kernel's clock was compared just now.
    fn follow_clock(&mut self, is_compared: bool) {
        if self.now() == MonotonicTime::ZERO {
            return; // no sample has shown the kernel's clock yet
        }
        let Ok(readings) = Readings::with_time_source(&self.time, || self.now()) else { return };
        let follow = match self.rings.clock() {
            RingClock::Local if is_compared => Clock::follow_comparison,
            RingClock::Local => Clock::follow_samples,
            _ => Clock::follow,
        };
        if let Some(moved) = follow(&mut self.clock, readings, self.max_drift) {
            tracing::info!(seconds = moved as f64 / 1e9, "the wall clock was set, or the machine slept");
        }
    }

    /// If due, reads the counts of missed hits and of hits at which no program ran, follows CPUs that came online, removes
    /// probes of killed monitors, and checks that the control group still exists.
    fn run_due_checks(&mut self) {
        let is_due = self.stopping || self.checked.elapsed() >= CHECK_PERIOD;
        if is_due || (self.is_busy && self.misses_read.elapsed() >= MISSES_PERIOD) {
            self.misses_read = Instant::now();
            match self.group.as_mut().map(|group| self.misses.read(group, &self.probes, &self.rings)) {
                Some(Ok(missed)) => self.missed.extend(missed),
                Some(Err(error)) => tracing::debug!(%error, "cannot read the counts of missed hits"),
                None => {}
            }
        }
        if is_due {
            self.checked = Instant::now();
            self.read_skipped();
            self.follow_cpus();
            if let Some(group) = &mut self.group {
                group.sweep_again();
            }
            if self.cgroup.take_if(|cgroup| cgroup.is_removed()).is_some() {
                let what_now = match self.probes.capabilities.control_group {
                    Some(_) => ": nothing is reported until its path exists again",
                    None => ", so nothing is observed: start socktrail again",
                };
                tracing::warn!("the control group was removed{what_now}");
            }
        }
    }

    /// Reads the counts of hits at which the kernel did not run a program.
    fn read_skipped(&mut self) {
        let before = now_of(&self.rings);
        let skipped = self.probes.skipped(&self.rings);
        self.missed.extend(self.misses.skipped(skipped.into_iter(), (before, now_of(&self.rings))));
    }

    fn follow_cpus(&mut self) {
        match self.rings.follow_cpus() {
            Ok(changes) if changes != Default::default() => tracing::info!(?changes, "CPUs changed"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "CPUs that came online are not watched"),
        }
    }

    /// The time up to which samples of all CPUs have arrived.
    fn next_horizon(&mut self) -> MonotonicTime {
        MonotonicTime::from_nanos(self.horizon.next(self.rings.now()))
    }

    /// Delivers full batches of samples from before `until`.
    fn drain<T: Tap>(&mut self, until: MonotonicTime, tap: &mut T, take: &mut dyn FnMut(&mut Batch)) {
        let Self { rings, probes, batch, .. } = self;
        let drained = rings.drain(until.as_nanos(), &mut |record: Record<'_>| {
            match reported(&record) {
                Some((time, totals)) => {
                    tap.totals(time, &totals);
                    batch.events.push(Event { time, pid: 0, tid: 0, kind: EventKind::Totals(Box::new(totals)) });
                }
                None => {
                    tap.record(&record);
                    batch.events.extend(probes.event(&record));
                }
            }
            if batch.events.len() >= Batch::SIZE {
                take(batch);
            }
        });
        self.late += drained.late;
        self.malformed += drained.malformed;
        self.is_busy = drained.records > 0;
        self.pause = if drained.backlog { SHORT_ROUND } else { ROUND };
    }
}

/// What a program that counts packets has reported, and when.
#[inline]
fn reported(record: &Record<'_>) -> Option<(MonotonicTime, Totals)> {
    // No trace event has this id.
    let Record::Sample { id: 0, time, raw, .. } = *record else { return None };
    Some((MonotonicTime::from_nanos(time), of_record(raw)?))
}

impl Source for LiveSource {
    type Error = Infallible;

    fn capabilities(&self) -> SourceCapabilities {
        self.probes.capabilities.clone()
    }

    fn now(&self) -> MonotonicTime {
        now_of(&self.rings)
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn counts(&self) -> Counts {
        let capture = self.capture.as_ref().ok().and_then(Option::as_ref);
        let mut lost_by_cpu = BTreeMap::new();
        for loss in self.rings.losses().filter(|loss| loss.records > 0) {
            *lost_by_cpu.entry(loss.cpu.unwrap_or_default()).or_default() += loss.records;
        }
        Counts {
            unreadable: self.probes.unreadable,
            late: self.late,
            malformed: self.malformed,
            names_dropped: capture.map_or(0, NameCapture::dropped),
            name_packets_lost: capture.map_or(0, NameCapture::packets_lost),
            names: capture.map(NameCapture::counters).unwrap_or_default(),
            lost_by_cpu,
            misses_by_probe: self.misses.so_far(),
            conversations_refused: self
                .probes
                .conversations
                .as_ref()
                .map_or(0, |conversations| conversations.refused_packets()),
        }
    }

    /// The probes are already enabled, so they see all processes and sockets that begin after this.
    fn existing(&mut self, event_sockets: EventSockets) -> Result<Existing, Infallible> {
        Ok(Existing::here(event_sockets))
    }

    fn wait(&mut self) {
        if let Err(error) = self.rings.wait(Some(self.pause)) {
            tracing::warn!(%error, "cannot wait for samples");
            std::thread::sleep(self.pause);
        }
        let is_compared = self.sync.compare(&mut self.rings, &self.probes);
        self.follow_clock(is_compared);
    }

    fn hand_over<T: Tap>(
        &mut self,
        tap: &mut T,
        take: &mut dyn FnMut(&mut Batch),
    ) -> Result<ControlFlow<()>, Infallible> {
        self.round = self.now();
        if self.stopping {
            // After this, no program changes a count, so the counts may be read after the rings.
            self.probes.stop_counting(&mut self.rings);
        }
        let until = if self.stopping { MonotonicTime::MAX } else { self.next_horizon() };
        self.run_due_checks();
        self.drain(until, tap, take);
        if self.stopping && self.rings.settle() {
            self.drain(until, tap, take);
        }
        let until = if self.stopping { self.now() } else { until };
        let batch = &mut self.batch;
        // A miss concerns all flows that began before it was noticed, so it is delivered after their events.
        for missed in self.missed.extract_if(.., |missed| missed.time <= until) {
            let missed = Missed { time: until, ..missed };
            tap.missed(&missed);
            batch.events.push(missed.into());
        }
        // After the rings, so that all packets from before `until` have been captured.
        if let Ok(Some(capture)) = &mut self.capture {
            capture.drain(tap);
            batch.names.extend(capture.answers(until));
        }
        batch.complete_until = Some(until);
        take(batch);
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

    fn totals(&mut self, of: &Conversation) -> Option<Totals> {
        self.probes.conversations.as_ref().ok()?.totals(of, self.round)
    }

    fn totals_reader(&self) -> TotalsReader {
        self.probes.conversations.as_ref().ok().map(Arc::clone).into()
    }
}

impl fmt::Debug for LiveSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSource").field("summary", &self.summary).finish_non_exhaustive()
    }
}

/// What a running monitor observes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Summary {
    /// The features that have a probe.
    pub features: Vec<Feature>,
    /// What is missing, and why.
    pub missing: Vec<String>,
    /// The number of CPUs with a ring.
    pub cpus: usize,
    /// Whether IPv6 is observed.
    pub ipv6: bool,
    /// Why each packet is sampled ([`Options::accounting`](crate::monitor::Options::accounting)); `None` if the kernel counts
    /// them.
    pub sampled_because: Option<String>,
    /// Whether BPF programs run: they count packets, or observe sockets and processes.
    pub bpf: bool,
}

impl Summary {
    fn of(probes: &Probes, rings: &Rings, ipv6: bool, at_hooks: bool) -> Self {
        let missing = probes.statuses.iter().filter_map(|status| {
            let missing =
                if status.probe.is_some() { status.weakness() } else { Some(status.feature.missing_without().into()) };
            let reasons = status.reasons();
            let why = if reasons.is_empty() { String::new() } else { format!(" ({reasons})") };
            missing.map(|missing| format!("{}: {missing}{why}", status.feature))
        });
        // At a control group, several probes serve one feature.
        let mut missing: Vec<_> = missing.collect();
        missing.dedup();
        let mut features: Vec<_> = probes.features().collect();
        features.sort_unstable();
        features.dedup();
        Self {
            features,
            missing,
            cpus: rings.losses().count(),
            ipv6,
            sampled_because: probes.sampled_because().map(ToString::to_string),
            bpf: at_hooks || probes.conversations.is_ok(),
        }
    }
}
