//! Perf rings: one for each CPU, or one for a thread.

mod counter;
mod events;
mod hooks;
mod outputs;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io, thread};

use nix::sys::eventfd::EventFd;
use nix::unistd::gettid;

use self::counter::HitCounter;
use self::events::{RingDescriptors, is_offline, map, open, settings};
use self::hooks::StartedHook;
use crate::bpf::{Map, Program, Running};
use crate::clock::ClockEstimator;
use crate::cpus;
use crate::group::Probe;
use crate::merge::Merge;
use crate::pieces::Joiner;
use crate::probe::STATIC;
use crate::ring::Ring;
use crate::sys::limits;
use crate::sys::mapping::Mapping;
use crate::sys::perf::{self, EventKind, RingSource, Settings};
use crate::sys::poll::{Poller, monotonic};
use crate::{Clock, Drained, Error, Installed, Losses, Record, RingOptions};

/// Rings that the samples of attached events arrive in.
///
/// Each ring belongs to a perf event that counts nothing, so that probes may come and go. The events of probes
/// write into it (`PERF_EVENT_IOC_SET_OUTPUT`), one file descriptor for each probe and CPU.
#[derive(Debug)]
pub struct Rings {
    /// The rings. Each has its descriptors at the same index of `descriptors`.
    rings: Vec<Ring<Mapping>>,
    descriptors: Vec<RingDescriptors>,
    /// The attached events. Dropped after `descriptors`: a probe cannot be removed while a perf event uses it.
    attachments: Vec<Attachment>,
    /// The counters of hits, which must also count on a new CPU.
    counters: Vec<HitCounter>,
    /// The programs at hooks.
    hooks: Vec<StartedHook>,
    /// The outputs of BPF programs that are connected with the rings.
    outputs: Vec<Map>,
    /// Losses of dropped rings, one entry for each CPU.
    past: Vec<Losses>,
    merge: Merge,
    joiner: Joiner,
    clock_estimator: ClockEstimator,
    poller: Poller,
    settings: Settings,
    page_exponent: u8,
}

/// An attached event, which the ring of a new CPU must get too.
#[derive(Debug)]
struct Attachment {
    id: u32,
    name: String,
    filter: Option<CString>,
    /// The BPF program that we have set on its trace event.
    program: Option<Running>,
    /// Dropped last: a probe cannot be removed while a perf event uses it.
    _probes: Vec<Arc<Probe>>,
}

/// Ends a [`Rings::wait`] from another thread.
#[derive(Clone)]
pub struct Waker {
    event_fd: Arc<EventFd>,
}

/// The changes made by [`Rings::follow_cpus`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuChanges {
    /// CPUs that got a new ring: they came online, or were offline in between.
    pub came: Vec<u32>,
    /// CPUs that went offline. Their rings are dropped once they have been read.
    pub left: Vec<u32>,
}

impl Rings {
    /// A ring for every CPU that is online.
    ///
    /// # Errors
    /// [`Error::Permission`] (not root, `kernel.perf_event_paranoid`, lockdown), [`Error::Limit`] (files, locked
    /// memory; both limits are raised first if that is permitted).
    pub fn per_cpu(options: &RingOptions) -> Result<Self, Error> {
        let cpus: Vec<RingSource> = cpus::online()?.into_iter().map(RingSource::Cpu).collect();
        Self::open(options, &cpus)
    }

    /// One ring for the samples of thread `tid`, on any CPU.
    ///
    /// # Errors
    /// As [`Rings::per_cpu`].
    pub fn for_thread(tid: u32, options: &RingOptions) -> Result<Self, Error> {
        Self::open(options, &[RingSource::Thread(tid)])
    }

    fn open(options: &RingOptions, sources: &[RingSource]) -> Result<Self, Error> {
        let poller = Poller::new().map_err(|source| limits::open_error("an epoll set", source))?;
        let settings = settings(options, sources)?;
        let mut rings = Self {
            rings: Vec::new(),
            descriptors: Vec::new(),
            attachments: Vec::new(),
            counters: Vec::new(),
            hooks: Vec::new(),
            outputs: Vec::new(),
            past: Vec::new(),
            merge: Merge::new(),
            joiner: Joiner::default(),
            clock_estimator: ClockEstimator::new(settings.clock),
            poller,
            settings,
            page_exponent: options.page_exponent,
        };
        sources.iter().try_for_each(|source| rings.add(*source).map(drop))?;
        Ok(rings)
    }

    /// Opens a perf event on `event` in every ring and starts it. With a `filter`, only matching hits become samples.
    /// The filter is written as in Documentation/trace/events.rst: `dport == 443 && len > 0`.
    ///
    /// The rings keep the probe installed until [`Rings::detach`] or until they are dropped.
    ///
    /// # Errors
    /// As [`Rings::per_cpu`]; [`Error::Filter`] if the kernel does not accept the filter, or if the probe takes several
    /// events because the kernel has no arrays: such a probe cannot have a filter. After an error the event is
    /// [detached](Rings::detach), even if it was attached before.
    pub fn attach(&mut self, event: &Installed, filter: Option<&str>) -> Result<(), Error> {
        match event.hook() {
            Some(hook) => self.start_own(hook, event),
            None => self.attach_as(event, filter, None),
        }
    }

    /// Like [`Rings::attach`], and lets the kernel run `program` at each hit, before any sample is written. A hit for
    /// which it returns 0 makes no sample. The program runs on every CPU, for every thread and regardless of the
    /// filter, and decides for all rings that the event is attached to, until [`Rings::detach`] or until these rings
    /// are dropped.
    ///
    /// # Errors
    /// Those of [`Rings::attach`]. [`Error::NoBpfEvents`]; [`Error::NotProgrammable`] for a tracepoint, and for a probe that
    /// takes several events. [`Error::Io`] of kind [`Busy`](crate::Kind::Busy) if a program already runs at this event.
    pub fn attach_with_program(
        &mut self,
        event: &Installed,
        filter: Option<&str>,
        program: &Program,
    ) -> Result<(), Error> {
        if let Some(hook) = event.hook() {
            return self.start_at(hook, event, program);
        }
        if event.probes().is_empty() {
            return Err(Error::not_programmable(event.name(), STATIC));
        }
        if event.ids().len() > 1 {
            return Err(Error::not_programmable(
                event.name(),
                "it takes several events, because the kernel has no arrays",
            ));
        }
        self.attach_as(event, filter, Some(program))
    }

    fn attach_as(&mut self, event: &Installed, filter: Option<&str>, program: Option<&Program>) -> Result<(), Error> {
        let not_a_filter = |source| Error::Filter {
            event: event.name().to_owned(),
            filter: filter.unwrap_or_default().to_owned(),
            source,
        };
        let filter = filter.map(CString::new).transpose().map_err(|error| not_a_filter(error.into()))?;
        if filter.is_some() && event.ids().len() > 1 {
            // Each of the events would need all fields of the filter.
            return Err(not_a_filter(io::Error::from(io::ErrorKind::Unsupported)));
        }
        let attached = event.ids().into_iter().try_for_each(|id| {
            let (name, filter) = (event.name().to_owned(), filter.clone());
            // The program runs before the first sample can be written.
            let program = program.map(|program| self.run(program, id, &name)).transpose()?;
            self.attach_one(Attachment { id, name, filter, program, _probes: event.probes() })
        });
        match attached {
            Ok(()) => self.joiner.add(event.pieces()),
            Err(_) => self.detach(event),
        }
        attached
    }

    /// Runs a program at a trace event. This takes a perf event on a CPU or thread of these rings. It remains when the CPU or
    /// thread is gone.
    fn run(&self, program: &Program, id: u32, name: &str) -> Result<Running, Error> {
        let what = || format!("a perf event on {name} for the BPF program {}", program.name());
        let mut refusal = io::Error::from_raw_os_error(libc::ENODEV);
        for ring_fds in self.descriptors.iter().filter(|ring_fds| !ring_fds.retired) {
            match open(EventKind::Trace(id), ring_fds.source, &self.settings, 1) {
                Ok(event) => return Running::start(program, event, name),
                Err(error) if is_offline(ring_fds.source, &error) => refusal = error,
                Err(error) => return Err(limits::open_error(&what(), error)),
            }
        }
        Err(limits::open_error(&what(), refusal))
    }

    /// Sets the attached programs again, because older kernels remove them when any perf event on the same trace event is
    /// closed.
    fn resume_programs(&self) {
        self.attachments.iter().filter_map(|attachment| attachment.program.as_ref()).for_each(Running::resume);
    }

    fn attach_one(&mut self, attachment: Attachment) -> Result<(), Error> {
        // All perf events are opened before the first one starts.
        let mut opened = Vec::with_capacity(self.descriptors.len());
        for ring_fds in &self.descriptors {
            let fd = if ring_fds.retired {
                None
            } else {
                ring_fds.open(&attachment, &self.settings, self.descriptors.len())?
            };
            opened.push(fd);
        }
        for fd in opened.iter().flatten() {
            perf::enable(fd.as_fd()).map_err(|source| Error::io(format!("enabling {}", attachment.name), source))?;
        }
        for (ring_fds, fd) in self.descriptors.iter_mut().zip(opened) {
            ring_fds.events.extend(fd.map(|fd| (attachment.id, fd)));
        }
        self.attachments.push(attachment);
        Ok(())
    }

    /// Ends the program at `event`, if one runs there: each hit that passes the filter becomes a sample again. At a hook, there are
    /// no samples any more.
    pub fn end_program(&mut self, event: &Installed) {
        let ids = event.ids();
        self.hooks.retain(|started| !ids.contains(&started.id));
        let of_event = |attachment: &&mut Attachment| ids.contains(&attachment.id);
        self.attachments.iter_mut().filter(of_event).for_each(|attachment| attachment.program = None);
    }

    /// Closes the perf events on `event`. Records that it has written stay in the rings.
    pub fn detach(&mut self, event: &Installed) {
        let ids = event.ids();
        for ring_fds in &mut self.descriptors {
            ring_fds.events.retain(|(id, _)| !ids.contains(id));
        }
        self.attachments.retain(|attachment| !ids.contains(&attachment.id));
        self.counters.retain(|counter| !ids.contains(&counter.id));
        self.hooks.retain(|started| !ids.contains(&started.id));
        self.joiner.remove(event.pieces());
    }

    /// The clock of the records. [`Clock::Local`] if the kernel did not accept the requested one.
    pub fn clock(&self) -> Clock {
        self.clock_estimator.clock()
    }

    /// The current time of that clock, in nanoseconds. [`Clock::Local`] cannot be read, so its time is estimated from
    /// the drained records. The estimate is a little too early, and 0 before the first record.
    pub fn now(&self) -> u64 {
        self.clock_estimator.at(monotonic())
    }

    /// Compares [`Clock::Local`] with the monotonic clock. `cause` must make this thread hit `event`; the samples show
    /// the time. From then on [`Rings::now`] is too early by no more than the shortest call of `cause`. A clock that
    /// can be read needs no comparison. `cause` is called at least four times and at most 24 times, until one call took no
    /// longer than 0.5 ms. Returns whether the time is known now: `false` if `cause` made no sample.
    ///
    /// # Errors
    /// As [`Rings::attach`].
    pub fn synchronise(&mut self, event: &Installed, cause: impl Fn()) -> Result<bool, Error> {
        const ROUNDS: usize = 4;
        const MAX_ROUNDS: usize = 24;
        /// Longer than it takes to start and end a thread on an idle CPU, in nanoseconds.
        const UNDISTURBED: u64 = 500_000;
        if self.clock() == Clock::Monotonic {
            return Ok(true);
        }
        let options = RingOptions { page_exponent: 0, clock: Clock::Local, watermark: None };
        let mut ring = Self::for_thread(gettid().as_raw().cast_unsigned(), &options)?;
        ring.attach(event, None)?;
        let mut records = Vec::with_capacity(ROUNDS);
        let mut quickest = u64::MAX;
        while records.len() < ROUNDS || (quickest > UNDISTURBED && records.len() < MAX_ROUNDS) {
            let before = monotonic();
            cause();
            let after = monotonic();
            quickest = quickest.min(after.saturating_sub(before));
            ring.merge.drain(&mut ring.rings, u64::MAX, 0, &mut |_| {});
            records.push((ring.merge.seen(), after));
        }
        drop(ring);
        self.resume_programs();
        Ok(self.clock_estimator.compare(&records))
    }

    /// Waits until a ring has passed its watermark or a [`Waker`] is used (`true`), or until `timeout` is over
    /// (`false`). Records below the watermark do not end the wait, so drain after each timeout as well.
    ///
    /// # Errors
    /// [`Error::Io`] of `epoll_wait(2)`. A signal ends the wait early and is not an error.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool, Error> {
        let ended = |fd| {
            // The thread has ended. If its ring stayed in the set, it would end every wait.
            if let Some(ring_fds) = self.descriptors.iter().find(|ring_fds| ring_fds.owner.as_raw_fd() == fd) {
                self.poller.remove(ring_fds.owner.as_fd());
            }
        };
        self.poller.wait(timeout, ended).map_err(|source| Error::io("waiting for perf rings", source))
    }

    /// A handle that ends [`Rings::wait`].
    pub fn waker(&self) -> Waker {
        Waker { event_fd: self.poller.event_fd() }
    }

    /// Lends every record with a time below `horizon` to `f`, oldest first; later records stay. `u64::MAX` lends all
    /// records; see [`Horizon`](crate::Horizon) for a stream in order.
    ///
    /// Their space in the rings is released at the end, even if `f` panics. Memory is allocated only for rings and probes whose
    /// records are read for the first time.
    ///
    /// The kernel reports a loss only with the next record that fits. If none has arrived since a ring was found
    /// crowded, a timer writes one, so that a loss at the end of a burst is reported in one of the next rounds. Before
    /// the last round, call [`Rings::settle`].
    pub fn drain(&mut self, horizon: u64, f: &mut impl FnMut(Record<'_>)) -> Drained {
        self.ask_for_losses();
        let watermark = u64::from(self.settings.watermark);
        let Self { merge, joiner, rings, .. } = self;
        let drained = if joiner.is_empty() {
            merge.drain(rings, horizon, watermark, f)
        } else {
            merge.drain(rings, horizon, watermark, &mut |record| joiner.take(record, f))
        };
        self.clock_estimator.note(self.merge.seen(), monotonic());
        drained
    }

    /// Makes the kernel report pending losses, as [`Rings::drain`] does, and waits a moment for them. If it returns
    /// `true`, there may be some: drain once more.
    pub fn settle(&mut self) -> bool {
        /// Much longer than the timers need.
        const MOMENT: Duration = Duration::from_millis(5);
        let asked = self.ask_for_losses();
        if asked {
            thread::sleep(MOMENT);
        }
        asked
    }

    /// Makes the timers of rings that may hide a loss write a sample. Returns whether there are such rings.
    fn ask_for_losses(&mut self) -> bool {
        let mut asked = false;
        for (ring, ring_fds) in self.rings.iter_mut().zip(&self.descriptors) {
            let Some(timer) = ring_fds.timer.as_ref().filter(|_| !ring_fds.retired && ring.may_hide_loss()) else {
                continue;
            };
            // This fails if the CPU is offline. Its losses are then unknown.
            asked |= perf::enable_once(timer.as_fd()).is_ok();
        }
        asked
    }

    /// Opens rings, with all attached events, for CPUs that came online. Drops the rings of CPUs that went offline once
    /// their last records have been drained. Other rings are not touched. Does nothing for a thread's ring.
    ///
    /// A CPU that was offline between two calls is noticed too, because its events have stopped.
    ///
    /// # Errors
    /// As [`Rings::attach`]. The next call tries again to open what failed.
    pub fn follow_cpus(&mut self) -> Result<CpuChanges, Error> {
        let mut changes = CpuChanges::default();
        if self.descriptors.iter().any(|ring_fds| matches!(ring_fds.source, RingSource::Thread(_))) {
            return Ok(changes);
        }
        let mut missing = cpus::online()?;
        for ring_fds in self.descriptors.iter_mut().filter(|ring_fds| !ring_fds.retired) {
            let RingSource::Cpu(cpu) = ring_fds.source else { continue };
            let online = missing.contains(&cpu);
            if online && ring_fds.is_alive() {
                missing.remove(&cpu);
            } else {
                ring_fds.retire();
                self.counters.iter_mut().for_each(|counter| counter.remove(ring_fds.source));
                self.outputs.iter().for_each(|output| outputs::disconnect(output, cpu));
                self.poller.remove(ring_fds.owner.as_fd());
                changes.left.extend((!online).then_some(cpu));
            }
        }
        self.resume_programs();
        self.drop_finished();
        for cpu in missing {
            if self.add(RingSource::Cpu(cpu))? {
                changes.came.push(cpu);
            }
        }
        Ok(changes)
    }

    /// Records lost since these rings were opened, by CPU. A CPU that has been offline has one entry for its present
    /// ring and one for its earlier rings.
    pub fn losses(&self) -> impl Iterator<Item = Losses> {
        let present = self.rings.iter().map(|ring| Losses { cpu: ring.cpu(), records: ring.lost() });
        self.past.iter().copied().chain(present)
    }

    /// Adds a ring with all attached events. Returns `false`, without adding it, if its CPU has gone offline meanwhile.
    fn add(&mut self, source: RingSource) -> Result<bool, Error> {
        let what = format!("the ring of {source}");
        let others = self.attachments.len() + self.counters.len() + self.outputs.len() + 1;
        let owner = match open(EventKind::Dummy, source, &self.settings, others) {
            Ok(owner) => owner,
            Err(error) if is_offline(source, &error) => return Ok(false),
            Err(error) => return Err(limits::open_error(&what, error)),
        };
        let memory = map(&owner, self.page_exponent)
            .map_err(|error| limits::map_error(&what, crate::options::data_size(self.page_exponent), error))?;
        let timer = RingDescriptors::timer(source, &owner, &self.settings, others);
        let (events, outputs) = (Vec::new(), Vec::new());
        let mut ring_fds = RingDescriptors { source, owner, events, outputs, timer, retired: false };
        for attachment in &self.attachments {
            let Some(fd) = ring_fds.open(attachment, &self.settings, others)? else { return Ok(false) };
            ring_fds.events.push((attachment.id, fd));
        }
        let start = |fd: &OwnedFd| perf::enable(fd.as_fd()).map_err(|error| Error::io(&what, error));
        start(&ring_fds.owner)?;
        // Before the events of probes, because their programs may write at the first hit.
        for output in &self.outputs {
            if !ring_fds.connect(output, &self.settings, others)? {
                return Ok(false);
            }
        }
        for counter in &mut self.counters {
            if !counter.add(source, &self.settings, others)? {
                return Ok(false);
            }
        }
        ring_fds.events.iter().try_for_each(|(_, fd)| start(fd))?;
        self.poller.add(ring_fds.owner.as_fd()).map_err(|error| Error::io(&what, error))?;
        let cpu = match source {
            RingSource::Cpu(cpu) => Some(cpu),
            RingSource::Thread(_) => None,
        };
        self.rings.push(Ring::new(memory, cpu));
        self.descriptors.push(ring_fds);
        Ok(true)
    }

    /// Drops the rings of offline CPUs once they have been read completely.
    fn drop_finished(&mut self) {
        for index in (0..self.descriptors.len()).rev() {
            if self.descriptors[index].retired && self.rings[index].refresh() == 0 {
                let ring = self.rings.swap_remove(index);
                self.descriptors.swap_remove(index);
                match self.past.iter_mut().find(|past| past.cpu == ring.cpu()) {
                    Some(past) => past.records = past.records.saturating_add(ring.lost()),
                    None => self.past.push(Losses { cpu: ring.cpu(), records: ring.lost() }),
                }
            }
        }
    }
}

impl Waker {
    /// Ends the present [`Rings::wait`], or the next one if none is in progress.
    pub fn wake(&self) {
        // It fails only if the counter is full, and then it wakes anyway.
        let _ = self.event_fd.write(1);
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}
