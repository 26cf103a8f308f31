//! A monitor: everything wired together, from the kernel to flows.
//!
//! ```text
//! kernel --probes--> rings (one per CPU) --> reader thread: decode, order by time --> batches of events
//!                                                                                         |
//! /proc: what was there before, details ----------------------------------------> state thread: the state machine
//!                                                                                         |
//!                                                             flows --> whoever calls Monitor::recv
//! ```
//!
//! The reader thread owns the rings and the probes; the state thread owns the state machine, so there are no locks.
//! All channels are bounded. When the state thread falls behind, the reader waits and samples pile up in the rings,
//! where the kernel counts what finds no room; when nobody takes the flows, they are dropped and counted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use serde::Serialize;
use socktrail_dns::{Capture, Learned, Tracker};
use socktrail_guess::{ResolveOptions, Resolved, Source, resolve};
use socktrail_kprobes::{Group, Horizon, Record, RingOptions, Rings, Tracefs, Waker};

use crate::clock::{Clock, Readings};
use crate::error::Error;
use crate::event::{Event, EventKind, KernelTime};
use crate::filter::Filter;
use crate::flow::Flow;
use crate::probes::{Feature, Probes, Wanted};
use crate::proc;
use crate::recording::Waiting;
use crate::socket_event::{Actions, Socket, SocketEvent};
use crate::state::{self, Config, NameLearned, State};
use crate::switches::Switches;

pub(crate) mod names;

/// The first part of the names of our groups of probes.
pub(crate) const GROUP: &str = "socktrail";
/// How many events go from thread to thread at once.
const BATCH: usize = 512;
/// How long samples may rest in a ring that has not reached its watermark.
const ROUND: Duration = Duration::from_millis(100);
/// How long to wait for more when a ring still holds much that is too young to be released.
const SHORT_ROUND: Duration = Duration::from_millis(1);
/// How often to look for CPUs that came online and to ask the kernel what it missed: well within the time for which a
/// closed flow is kept.
const CHECK: Duration = Duration::from_secs(1);
/// How many answers may wait between the capture and the state machine.
const NAME_QUEUE: usize = 4096;
/// How many processes to look up in `/proc` between two batches.
const LOOK_UPS: usize = 64;

/// How to monitor.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Where tracefs is; `None`: at one of its usual places, where it is mounted when missing.
    pub tracefs_path: Option<PathBuf>,
    /// Whether to watch IPv6; `None`: if the kernel has it.
    pub enable_ipv6: Option<bool>,
    /// Where the layout of kernel structures is learnt from.
    pub source: Source,
    /// How long one guess may take.
    pub guess_timeout: Duration,
    /// See [`Config::flow_inactive_timeout`].
    pub flow_inactive_timeout: Duration,
    /// See [`Config::flow_termination_timeout`].
    pub flow_termination_timeout: Duration,
    /// See [`Config::flow_report_interval`].
    pub flow_report_interval: Option<Duration>,
    /// See [`Config::socket_inactive_timeout`].
    pub socket_inactive_timeout: Duration,
    /// A ring has 2^n pages, one ring per CPU: 512 KiB with the default of 7.
    pub ring_size_exponent: u8,
    /// How many samples may wait between the rings and the state machine.
    pub perf_queue_size: usize,
    /// How many flows may wait for whoever receives them.
    pub flow_queue_size: usize,
    /// See [`Config::max_flows`].
    pub max_flows: usize,
    /// See [`Config::max_sockets`].
    pub max_sockets: usize,
    /// See [`Config::max_processes`].
    pub max_processes: usize,
    /// By how much the wall clock may move against the kernel's before that is a step: times after it follow.
    pub clock_max_drift: Duration,
    /// What is of no interest.
    pub filter: Filter,
    /// Whether and how names are learned.
    pub dns: socktrail_dns::Options,
    /// How much is remembered of them.
    pub names: socktrail_dns::NamesOptions,
    /// Whether [`Received::Name`] is wanted.
    pub report_names: bool,
    /// Whether flows are wanted. Without them no packet is sampled.
    pub flows: bool,
    /// Of which calls [`Received::Socket`] is wanted: none, unless asked for.
    pub socket_events: Actions,
    /// Kernel functions to do without, as if the kernel did not have them: to see what would be lost.
    pub mask: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let config = Config::default();
        Self {
            tracefs_path: None,
            enable_ipv6: None,
            source: Source::Auto,
            guess_timeout: Duration::from_secs(15),
            flow_inactive_timeout: config.flow_inactive_timeout,
            flow_termination_timeout: config.flow_termination_timeout,
            flow_report_interval: config.flow_report_interval,
            socket_inactive_timeout: config.socket_inactive_timeout,
            ring_size_exponent: 7,
            perf_queue_size: 4096,
            flow_queue_size: 65_536,
            max_flows: config.max_flows,
            max_sockets: config.max_sockets,
            max_processes: config.max_processes,
            clock_max_drift: Duration::from_millis(100),
            filter: config.filter,
            dns: socktrail_dns::Options::default(),
            names: config.names,
            report_names: config.report_names,
            flows: true,
            socket_events: Actions::NONE,
            mask: Vec::new(),
        }
    }
}

/// What a running monitor watches.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Features that have a probe.
    pub features: Vec<Feature>,
    /// What is not seen, and why.
    pub lost: Vec<String>,
    /// CPUs with a ring.
    pub cpus: usize,
    /// Whether IPv6 is watched.
    pub ipv6: bool,
}

/// What [`Monitor::recv`] brings.
#[derive(Debug)]
pub enum Received {
    /// A flow.
    Flow(Box<Flow>),
    /// A name that a process looked up, where [`Options::report_names`] asks for them.
    Name(Box<NameLearned>),
    /// A call on a socket, where [`Options::socket_events`] asks for it.
    Socket(Box<SocketEvent>),
    /// The sockets that were there before the monitor, where [`Options::socket_events`] asks for any: once, before any
    /// [`Received::Socket`].
    Existing(Box<[Socket]>),
    /// Nothing within the time given.
    Idle,
    /// The monitor has stopped and everything was handed out.
    Ended,
}

/// Numbers of the monitor itself, beside those of its state machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Stats {
    /// The state machine's.
    #[serde(flatten)]
    pub state: state::Stats,
    /// How many features are lost or served less well: [`Summary::lost`] says which and why.
    pub features_lost: usize,
    /// Samples that could not be decoded.
    pub samples_unreadable: u64,
    /// Samples that came after a later one had been released.
    pub samples_late: u64,
    /// Ring records of impossible size.
    pub records_malformed: u64,
    /// Flows, names and socket events that nobody took in time.
    pub flows_dropped: u64,
    /// Answers with names that the state thread had no time for.
    pub names_dropped: u64,
    /// Packets with names that the kernel had no room for.
    pub name_packets_lost: u64,
    /// Hits that probes missed (`kprobe_profile`): returns of too many calls at once, or a hit during another's.
    pub probe_misses: u64,
    /// Samples that found no room, by CPU; CPUs that lost none are left out.
    pub lost_by_cpu: BTreeMap<u32, u64>,
}

/// A running monitor. Dropping it removes its probes and ends its threads.
#[derive(Debug)]
pub struct Monitor {
    results: Receiver<Received>,
    stopping: Arc<AtomicBool>,
    waker: Waker,
    name_waker: Option<socktrail_dns::Waker>,
    threads: Vec<JoinHandle<()>>,
    counts: Arc<Counts>,
    summary: Summary,
    clock: Arc<Mutex<Clock>>,
}

/// What the threads count for [`Monitor::stats`].
#[derive(Debug, Default)]
struct Counts {
    unreadable: AtomicU64,
    late: AtomicU64,
    malformed: AtomicU64,
    dropped: AtomicU64,
    misses: AtomicU64,
    names_dropped: AtomicU64,
    name_packets_lost: AtomicU64,
    lost: Mutex<BTreeMap<u32, u64>>,
    state: Mutex<state::Stats>,
}

impl Monitor {
    /// Finds out the kernel's layout, installs the probes and begins to watch.
    ///
    /// # Errors
    /// The kernel has no kprobes or they are switched off, something is not permitted or a limit too low, the layout
    /// could not be found, or no probe that shows flows could be installed. What had been installed is removed.
    pub fn start(options: &Options) -> Result<Self, Error> {
        options.validate()?;
        let tracefs = Arc::new(tracefs(options)?);
        let mut group = Group::create(&tracefs, GROUP)?;
        if let Some(silenced) = Switches::read().silenced(std::env::consts::ARCH) {
            return Err(Error::Silenced(silenced));
        }
        let ipv6 = options.enable_ipv6.unwrap_or_else(proc::has_ipv6);
        let layout = layout(options, &tracefs, ipv6)?.layout;
        let mut ring_options = RingOptions::default();
        ring_options.page_exponent = options.ring_size_exponent;
        let mut rings = Rings::per_cpu(&ring_options)?;
        let wanted = Wanted {
            layout: &layout,
            ipv6,
            flows: options.flows,
            socket_events: options.socket_events,
            mask: &options.mask,
            loopback: !options.filter.exclude_loopback,
        };
        let probes = Probes::install(&mut group, Some(&mut rings), wanted);
        if options.flows && !probes.features().any(Feature::shows_flows) {
            return Err(Error::NothingToSee(probes.served));
        }
        let readings = Readings::now(|| rings.now()).map_err(Error::Clock)?;
        let clock = Clock::from_readings(readings);
        let mut summary = Summary::of(&probes, &rings, ipv6);
        let capture = names::capture(&options.dns).unwrap_or_else(|error| {
            summary.lost.push(format!("names that are looked up: {error}"));
            None
        });
        spawn(options, Watch { rings, probes, group }, capture, summary, clock)
    }

    /// The next flow, waited for at most `timeout`.
    pub fn recv(&self, timeout: Duration) -> Received {
        match self.results.recv_timeout(timeout) {
            Ok(received) => received,
            Err(RecvTimeoutError::Timeout) => Received::Idle,
            Err(RecvTimeoutError::Disconnected) => Received::Ended,
        }
    }

    /// Asks the monitor to stop: what the kernel has seen so far is taken in, live flows are handed out, and after
    /// the last one [`Monitor::recv`] says that it has [ended](Received::Ended).
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.waker.wake();
        self.name_waker.iter().for_each(socktrail_dns::Waker::wake);
    }

    /// How the times of flows relate to wall time; with every flow that was received, ask again.
    pub fn clock(&self) -> Clock {
        *locked(&self.clock)
    }

    /// What is watched.
    pub fn describe(&self) -> &Summary {
        &self.summary
    }

    /// The numbers so far; those of the state machine are of a moment ago.
    pub fn stats(&self) -> Stats {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            state: *locked(&self.counts.state),
            features_lost: self.summary.lost.len(),
            samples_unreadable: read(&self.counts.unreadable),
            samples_late: read(&self.counts.late),
            records_malformed: read(&self.counts.malformed),
            flows_dropped: read(&self.counts.dropped),
            names_dropped: read(&self.counts.names_dropped),
            name_packets_lost: read(&self.counts.name_packets_lost),
            probe_misses: read(&self.counts.misses),
            lost_by_cpu: locked(&self.counts.lost).clone(),
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop();
        // The state thread never waits for whoever receives, so it comes to its end.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Summary {
    fn of(probes: &Probes, rings: &Rings, ipv6: bool) -> Self {
        let told = probes.served.iter().filter_map(|served| {
            let missing = if served.by.is_some() { served.weaker() } else { Some(served.feature.loss()) };
            let reasons = served.reasons();
            let why = if reasons.is_empty() { String::new() } else { format!(" ({reasons})") };
            missing.map(|missing| format!("{}: {missing}{why}", served.feature))
        });
        Self { features: probes.features().collect(), lost: told.collect(), cpus: rings.losses().count(), ipv6 }
    }
}

impl Options {
    /// Says which option makes no sense, and why.
    ///
    /// # Errors
    /// [`Error::Option`], with the name of the field.
    pub fn validate(&self) -> Result<(), Error> {
        let size = |name, value: usize| within(name, value, 1, 100_000_000);
        within("ring_size_exponent", self.ring_size_exponent.into(), 1, 14)?;
        size("perf_queue_size", self.perf_queue_size)?;
        size("flow_queue_size", self.flow_queue_size)?;
        size("max_flows", self.max_flows)?;
        size("max_sockets", self.max_sockets)?;
        size("max_processes", self.max_processes)?;
        for (name, time) in [
            ("guess_timeout", Some(self.guess_timeout)),
            ("flow_inactive_timeout", Some(self.flow_inactive_timeout)),
            ("flow_termination_timeout", Some(self.flow_termination_timeout)),
            ("flow_report_interval", self.flow_report_interval),
        ] {
            if time.is_some_and(|time| time.is_zero()) {
                return Err(Error::Option { name, problem: "must be longer than nothing".to_owned() });
            }
        }
        self.dns.validate().map_err(|error| match error {
            socktrail_dns::Error::Option { option: "snaplen", problem } => {
                Error::Option { name: "dns.snaplen", problem }
            }
            socktrail_dns::Error::Option { option: "ports", problem } => Error::Option { name: "dns.ports", problem },
            other => Error::Option { name: "dns", problem: other.to_string() },
        })
    }
}

fn within(name: &'static str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    let problem = || format!("{value} is not within {least} to {most}");
    if (least..=most).contains(&value) { Ok(()) } else { Err(Error::Option { name, problem: problem() }) }
}

/// Tracefs where the options say, or where it is found.
pub(crate) fn tracefs(options: &Options) -> Result<Tracefs, Error> {
    Ok(match &options.tracefs_path {
        Some(path) => Tracefs::at(path)?,
        None => Tracefs::find()?,
    })
}

/// The kernel's layout, from where the options say.
pub(crate) fn layout(options: &Options, tracefs: &Arc<Tracefs>, ipv6: bool) -> Result<Resolved, Error> {
    let mut how = ResolveOptions::default();
    how.guess_timeout = options.guess_timeout;
    how.ipv6 = ipv6;
    how.socket_events = !options.socket_events.is_empty();
    how.tracefs = Some(Arc::clone(tracefs));
    how.group = GROUP.to_owned();
    Ok(resolve(&options.source, &how)?)
}

/// What the reader thread owns. The rings go first: a probe that is in use cannot be removed.
struct Watch {
    rings: Rings,
    probes: Probes,
    group: Group,
}

/// What the reader hands to the state thread.
struct Batch {
    events: Vec<Event>,
    /// When set, every event before this time has been handed over.
    until: Option<KernelTime>,
}

fn spawn(
    options: &Options,
    watch: Watch,
    capture: Option<Capture>,
    summary: Summary,
    clock: Clock,
) -> Result<Monitor, Error> {
    let (to_state, from_reader) = bounded(options.perf_queue_size.div_ceil(BATCH));
    let (to_reader, from_state) = bounded(options.perf_queue_size.div_ceil(BATCH) + 1);
    let (to_user, results) = bounded(options.flow_queue_size);
    let (names_to_state, names) = bounded(NAME_QUEUE);
    let stopping = Arc::new(AtomicBool::new(false));
    let counts = Arc::new(Counts::default());
    let clock = Arc::new(Mutex::new(clock));
    let waker = watch.rings.waker();

    let reader = Reader {
        watch,
        to_state,
        spare: from_state,
        stopping: Arc::clone(&stopping),
        counts: Arc::clone(&counts),
        clock: Arc::clone(&clock),
        max_drift: options.clock_max_drift,
    };
    let config = Config {
        flow_inactive_timeout: options.flow_inactive_timeout,
        flow_termination_timeout: options.flow_termination_timeout,
        flow_report_interval: options.flow_report_interval,
        socket_inactive_timeout: options.socket_inactive_timeout,
        max_flows: options.max_flows,
        max_sockets: options.max_sockets,
        max_processes: options.max_processes,
        own_pid: std::process::id(),
        filter: options.filter.clone(),
        dns_ports: options.dns.ports.clone(),
        names: options.names.clone(),
        report_names: options.report_names,
        socket_events: options.socket_events,
    };
    let keeper = Keeper {
        state: State::new(config),
        events: from_reader,
        spare: to_reader,
        names,
        waiting: Waiting::default(),
        watches_calls: !options.socket_events.is_empty(),
        results: to_user,
        counts: Arc::clone(&counts),
    };

    let name_waker = capture.as_ref().map(Capture::waker);
    let listener = capture.map(|capture| names::Listener {
        capture,
        tracker: Tracker::new(&options.dns),
        to_state: names_to_state,
        stopping: Arc::clone(&stopping),
        counts: Arc::clone(&counts),
    });
    let mut monitor = Monitor { results, stopping, waker, name_waker, threads: Vec::new(), counts, summary, clock };
    monitor.threads.push(thread("socktrail-state", move || keeper.run())?);
    monitor.threads.push(thread("socktrail-rings", move || reader.run())?);
    if let Some(listener) = listener {
        monitor.threads.push(thread("socktrail-names", move || listener.run())?);
    }
    Ok(monitor)
}

/// A value that no thread leaves half-written.
fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn thread(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|source| Error::Thread { name, source })
}

/// The reader thread: rings to batches of events.
struct Reader {
    watch: Watch,
    to_state: Sender<Batch>,
    spare: Receiver<Vec<Event>>,
    stopping: Arc<AtomicBool>,
    counts: Arc<Counts>,
    clock: Arc<Mutex<Clock>>,
    max_drift: Duration,
}

impl Reader {
    fn run(mut self) {
        let mut horizon = Horizon::default();
        let mut pause = ROUND;
        let mut checked = Instant::now();
        loop {
            if let Err(error) = self.watch.rings.wait(Some(pause)) {
                tracing::warn!(%error, "waiting for samples");
                std::thread::sleep(pause);
            }
            self.follow_clock();
            let stopping = self.stopping.load(Ordering::Acquire);
            let until = if stopping { u64::MAX } else { horizon.next(self.watch.rings.now()) };
            let mut missed = 0;
            if stopping || checked.elapsed() >= CHECK {
                checked = Instant::now();
                missed = self.count_losses();
                self.follow_cpus();
            }
            let Some(backlog) = self.round(until, missed) else { return };
            if stopping {
                return;
            }
            pause = if backlog { SHORT_ROUND } else { ROUND };
        }
    }

    /// Hands over what the rings hold from before `until`, and that probes have `missed` something. `None` when nobody
    /// is there to take it.
    fn round(&mut self, until: KernelTime, missed: u64) -> Option<bool> {
        let Watch { rings, probes, .. } = &mut self.watch;
        let mut events = fresh(&self.spare);
        let mut gone = false;
        let unreadable = probes.unreadable;
        let drained = rings.drain(until, &mut |record: Record<'_>| {
            events.extend(probes.event(&record));
            if events.len() >= BATCH {
                let full = std::mem::replace(&mut events, fresh(&self.spare));
                gone |= self.to_state.send(Batch { events: full, until: None }).is_err();
            }
        });
        self.counts.unreadable.fetch_add(probes.unreadable - unreadable, Ordering::Relaxed);
        self.counts.late.fetch_add(drained.late, Ordering::Relaxed);
        self.counts.malformed.fetch_add(drained.malformed, Ordering::Relaxed);
        let until = if until == u64::MAX { rings.now() } else { until };
        if missed > 0 {
            events.push(Event { time: until, pid: 0, tid: 0, kind: EventKind::Lost { count: missed } });
        }
        gone |= self.to_state.send(Batch { events, until: Some(until) }).is_err();
        (!gone).then_some(drained.backlog)
    }

    /// Reading clocks costs next to nothing, so it is done every round: a step is noticed within one.
    fn follow_clock(&self) {
        let Ok(readings) = Readings::now(|| self.watch.rings.now()) else { return };
        if let Some(moved) = locked(&self.clock).follow(readings, self.max_drift) {
            tracing::info!(seconds = moved as f64 / 1e9, "the wall clock was set, or the machine slept");
        }
    }

    /// How often probes have missed since this was last asked.
    fn count_losses(&self) -> u64 {
        let mut lost = BTreeMap::new();
        for loss in self.watch.rings.losses().filter(|loss| loss.records > 0) {
            *lost.entry(loss.cpu.unwrap_or_default()).or_default() += loss.records;
        }
        *locked(&self.counts.lost) = lost;
        match self.watch.group.misses() {
            Ok(misses) => {
                // A socket that never came to be has no sock to read from, and before Linux 5.14 a read that faults counts
                // as a hit that was missed.
                let faults = Feature::SocketClose.to_string();
                let all: u64 = misses.iter().filter(|probe| probe.name != faults).map(|probe| probe.misses).sum();
                all.saturating_sub(self.counts.misses.swap(all, Ordering::Relaxed))
            }
            Err(error) => {
                tracing::debug!(%error, "misses of probes are not known");
                0
            }
        }
    }

    fn follow_cpus(&mut self) {
        match self.watch.rings.follow_cpus() {
            Ok(changes) if changes != Default::default() => tracing::info!(?changes, "CPUs changed"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "CPUs that came online are not watched"),
        }
    }
}

/// An empty list of events, used before if there is one.
fn fresh(spare: &Receiver<Vec<Event>>) -> Vec<Event> {
    spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(BATCH))
}

/// The state thread: events to flows.
struct Keeper {
    state: State,
    events: Receiver<Batch>,
    spare: Sender<Vec<Event>>,
    names: Receiver<Arc<Learned>>,
    /// Names that wait for the events before them.
    waiting: Waiting,
    /// Whether socket events are made.
    watches_calls: bool,
    results: Sender<Received>,
    counts: Arc<Counts>,
}

impl Keeper {
    fn run(mut self) {
        // The probes are in place by now: who comes after this look is seen by them.
        for process in proc::processes() {
            self.state.adopt(process);
        }
        for socket in proc::sockets() {
            self.state.adopt_socket(&socket);
        }
        if self.watches_calls {
            let existing = proc::existing_sockets().into_iter();
            let existing = existing.map(|(socket, pid)| self.state.adopt_event_socket(socket, pid)).collect();
            self.hand_over(Received::Existing(existing));
        }
        let mut now = 0;
        while let Ok(Batch { mut events, until }) = self.events.recv() {
            for event in events.drain(..) {
                self.state.ingest(&event);
            }
            let _ = self.spare.try_send(events);
            if let Some(until) = until {
                now = until.max(now);
                self.waiting.extend(self.names.try_iter());
                self.waiting.release(now, &mut self.state);
                self.state.expire(now);
            }
            self.look_up();
            self.hand_out();
            *locked(&self.counts.state) = self.state.stats();
        }
        self.state.shutdown();
        self.hand_out();
        *locked(&self.counts.state) = self.state.stats();
    }

    /// Looks up processes that have come to own a socket.
    fn look_up(&mut self) {
        for _ in 0..LOOK_UPS {
            let Some(process) = self.state.next_wanted() else { return };
            if let Some(found) = proc::look_up(&process) {
                self.state.learn(&process, found);
            }
        }
    }

    fn hand_out(&mut self) {
        let flows = self.state.finished().map(|flow| Received::Flow(Box::new(flow))).collect::<Vec<_>>();
        let names = self.state.names().map(|name| Received::Name(Box::new(name)));
        let results = flows.into_iter().chain(names).collect::<Vec<_>>();
        results.into_iter().for_each(|result| self.hand_over(result));
        let events = self.state.socket_events().map(|event| Received::Socket(Box::new(event))).collect::<Vec<_>>();
        events.into_iter().for_each(|event| self.hand_over(event));
    }

    fn hand_over(&self, result: Received) {
        match self.results.try_send(result) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
