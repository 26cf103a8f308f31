//! Perf rings: one for each CPU, or one for a thread.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io, thread};

use nix::sys::eventfd::EventFd;
use nix::unistd::gettid;

use crate::clock::Teller;
use crate::cpus;
use crate::group::Probe;
use crate::merge::Merge;
use crate::pieces::Joiner;
use crate::ring::Ring;
use crate::sys::limits;
use crate::sys::mapping::Mapping;
use crate::sys::perf::{self, Event, Settings, Source};
use crate::sys::poll::{Poller, monotonic};
use crate::{Clock, Drained, Error, Installed, Losses, Record, RingOptions};

/// Rings that the samples of attached events arrive in.
///
/// Each ring belongs to a perf event that counts nothing, so that probes may come and go. The events of probes
/// write into it (`PERF_EVENT_IOC_SET_OUTPUT`), one file descriptor for each probe and CPU.
#[derive(Debug)]
pub struct Rings {
    /// The rings, and at the same index what belongs to each.
    rings: Vec<Ring<Mapping>>,
    posts: Vec<Post>,
    /// What is attached. Dropped after `posts`: a probe cannot be removed while a perf event uses it.
    attachments: Vec<Attachment>,
    /// Losses of rings that are gone, one entry for each CPU.
    past: Vec<Losses>,
    merge: Merge,
    joiner: Joiner,
    teller: Teller,
    poller: Poller,
    settings: Settings,
    page_exponent: u8,
}

/// A ring's descriptors.
#[derive(Debug)]
struct Post {
    source: Source,
    /// The event that owns the ring.
    owner: OwnedFd,
    /// The events that write into it, by the id of their trace event.
    events: Vec<(u32, OwnedFd)>,
    /// A timer that writes one sample on request, so that the kernel also reports pending losses. A thread's ring has
    /// none, because its timer would run only while the thread does.
    timer: Option<OwnedFd>,
    /// Its CPU went offline: to be dropped once it is empty.
    retired: bool,
}

/// What a new CPU's ring must be given.
#[derive(Debug)]
struct Attachment {
    id: u32,
    name: String,
    filter: Option<CString>,
    _probes: Vec<Arc<Probe>>,
}

/// Ends a [`Rings::wait`], from another thread or a signal handler's thread.
#[derive(Clone)]
pub struct Waker {
    bell: Arc<EventFd>,
}

/// What [`Rings::follow_cpus`] changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuChanges {
    /// CPUs that have a ring now and had none, or had been offline in between.
    pub came: Vec<u32>,
    /// CPUs that went offline. Their rings go once they are read.
    pub left: Vec<u32>,
}

impl Rings {
    /// A ring for every CPU that is online.
    ///
    /// # Errors
    /// [`Error::Permission`] (not root, `kernel.perf_event_paranoid`, lockdown), [`Error::Limit`] (files, locked
    /// memory; both are raised first where we may).
    pub fn per_cpu(options: &RingOptions) -> Result<Self, Error> {
        let cpus: Vec<Source> = cpus::online()?.into_iter().map(Source::Cpu).collect();
        Self::open(options, &cpus)
    }

    /// One ring for the samples of thread `tid`, on whatever CPU it runs.
    ///
    /// # Errors
    /// As [`Rings::per_cpu`].
    pub fn for_thread(tid: u32, options: &RingOptions) -> Result<Self, Error> {
        Self::open(options, &[Source::Thread(tid)])
    }

    fn open(options: &RingOptions, sources: &[Source]) -> Result<Self, Error> {
        let poller = Poller::new().map_err(|source| limits::why_not_open("an epoll set", source))?;
        let settings = settings(options, sources)?;
        let mut rings = Self {
            rings: Vec::new(),
            posts: Vec::new(),
            attachments: Vec::new(),
            past: Vec::new(),
            merge: Merge::new(),
            joiner: Joiner::default(),
            teller: Teller::new(settings.clock),
            poller,
            settings,
            page_exponent: options.page_exponent,
        };
        sources.iter().try_for_each(|source| rings.add(*source).map(drop))?;
        Ok(rings)
    }

    /// Opens a perf event on `event` in every ring, lets through only what matches `filter` where one is given,
    /// and starts it. The filter's language is that of Documentation/trace/events.rst: `dport == 443 && len > 0`.
    ///
    /// The rings keep the probe installed until [`Rings::detach`] or until they are dropped.
    ///
    /// # Errors
    /// As [`Rings::per_cpu`]; [`Error::Filter`] when the kernel does not take the filter, or when the probe takes several
    /// events because the kernel has no arrays: such a probe cannot have a filter. Then nothing is attached.
    pub fn attach(&mut self, event: &Installed, filter: Option<&str>) -> Result<(), Error> {
        let not_a_filter = |source| Error::Filter {
            event: event.name().to_owned(),
            filter: filter.unwrap_or_default().to_owned(),
            source,
        };
        let filter = filter.map(CString::new).transpose().map_err(|error| not_a_filter(error.into()))?;
        if filter.is_some() && event.ids().len() > 1 {
            // Each of the events would need all the fields of the filter.
            return Err(not_a_filter(io::Error::from(io::ErrorKind::Unsupported)));
        }
        let attached = event.ids().into_iter().try_for_each(|id| {
            let (name, filter) = (event.name().to_owned(), filter.clone());
            self.attach_one(Attachment { id, name, filter, _probes: event.hold() })
        });
        match attached {
            Ok(()) => self.joiner.add(event.pieces()),
            Err(_) => self.detach(event),
        }
        attached
    }

    fn attach_one(&mut self, attachment: Attachment) -> Result<(), Error> {
        // All of them are opened before the first of them starts.
        let mut opened = Vec::with_capacity(self.posts.len());
        for post in &self.posts {
            let fd = if post.retired { None } else { post.open(&attachment, &self.settings, self.posts.len())? };
            opened.push(fd);
        }
        for fd in opened.iter().flatten() {
            perf::enable(fd.as_fd()).map_err(|source| Error::io(format!("enabling {}", attachment.name), source))?;
        }
        for (post, fd) in self.posts.iter_mut().zip(opened) {
            post.events.extend(fd.map(|fd| (attachment.id, fd)));
        }
        self.attachments.push(attachment);
        Ok(())
    }

    /// Closes the perf events on `event`. What it has written stays in the rings.
    pub fn detach(&mut self, event: &Installed) {
        let ids = event.ids();
        for post in &mut self.posts {
            post.events.retain(|(id, _)| !ids.contains(id));
        }
        self.attachments.retain(|attachment| !ids.contains(&attachment.id));
        self.joiner.remove(event.pieces());
    }

    /// Which clock the records carry. [`Clock::Local`] when the kernel did not take the one asked for.
    pub fn clock(&self) -> Clock {
        self.teller.clock()
    }

    /// That clock's time now, in nanoseconds. [`Clock::Local`] cannot be read: its time is estimated from the
    /// records drained, a little too early, and is 0 before the first.
    pub fn now(&self) -> u64 {
        self.teller.at(monotonic())
    }

    /// Compares [`Clock::Local`] with the monotonic clock, by samples of `event` that `cause` has this thread write: from
    /// then on [`Rings::now`] is too early by no more than the quickest `cause` takes. A clock that can be read needs none.
    /// `cause` is called four times, or up to 24 times until one call took less than 0.5 ms.
    /// Says whether it is known now: `false` where `cause` has not made a sample.
    ///
    /// # Errors
    /// As [`Rings::attach`].
    pub fn synchronise(&mut self, event: &Installed, cause: impl Fn()) -> Result<bool, Error> {
        const ROUNDS: usize = 4;
        const MOST_ROUNDS: usize = 24;
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
        while records.len() < ROUNDS || (quickest > UNDISTURBED && records.len() < MOST_ROUNDS) {
            let before = monotonic();
            cause();
            let after = monotonic();
            quickest = quickest.min(after.saturating_sub(before));
            ring.merge.drain(&mut ring.rings, u64::MAX, 0, &mut |_| {});
            records.push((ring.merge.seen(), after));
        }
        Ok(self.teller.compare(&records))
    }

    /// Waits until a ring has passed its watermark or a [`Waker`] is used (`true`), or until `timeout` is over
    /// (`false`). Records below the watermark wake nobody: drain after each timeout as well.
    ///
    /// # Errors
    /// [`Error::Io`] of `epoll_wait(2)`. A signal ends the wait early and is no error.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool, Error> {
        let ended = |fd| {
            // The thread has ended; left in the set, its ring would end every wait.
            if let Some(post) = self.posts.iter().find(|post| post.owner.as_raw_fd() == fd) {
                self.poller.remove(post.owner.as_fd());
            }
        };
        self.poller.wait(timeout, ended).map_err(|source| Error::io("waiting for perf rings", source))
    }

    /// A handle that ends [`Rings::wait`].
    pub fn waker(&self) -> Waker {
        Waker { bell: self.poller.bell() }
    }

    /// Lends every record with a time below `horizon` to `f`, oldest first; those at or after it stay. `u64::MAX`
    /// for all of them; see [`Horizon`](crate::Horizon) for a stream without gaps.
    ///
    /// Their room in the rings is given back at the end, also when `f` panics. Nothing is allocated.
    ///
    /// The kernel reports a loss only with the next record that finds room. If none has come since a ring was found
    /// crowded, a timer is made to write one, so that a loss at the end of a burst is reported in one of the next
    /// rounds. Before the last round, call [`Rings::settle`].
    pub fn drain(&mut self, horizon: u64, f: &mut impl FnMut(Record<'_>)) -> Drained {
        self.ask_for_losses();
        let watermark = u64::from(self.settings.watermark);
        let Self { merge, joiner, rings, .. } = self;
        let drained = if joiner.is_idle() {
            merge.drain(rings, horizon, watermark, f)
        } else {
            merge.drain(rings, horizon, watermark, &mut |record| joiner.take(record, f))
        };
        self.teller.note(self.merge.seen(), monotonic());
        drained
    }

    /// Makes the kernel report pending losses, as [`Rings::drain`] does, and waits a moment for them. Returns whether
    /// there may be any: then drain once more.
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
        for (ring, post) in self.rings.iter_mut().zip(&self.posts) {
            let Some(timer) = post.timer.as_ref().filter(|_| !post.retired && ring.may_hide_loss()) else { continue };
            // This fails if the CPU is offline; what it lost is then not known.
            asked |= perf::enable_once(timer.as_fd()).is_ok();
        }
        asked
    }

    /// Opens rings, with all that is attached, for CPUs that came online, and lets go of those that left once
    /// their last records have been drained. The other rings are not touched. Does nothing for a thread's ring.
    ///
    /// A CPU that was offline between two calls is noticed, too: its events had stopped.
    ///
    /// # Errors
    /// As [`Rings::attach`]. What could not be opened is tried again at the next call.
    pub fn follow_cpus(&mut self) -> Result<CpuChanges, Error> {
        let mut changes = CpuChanges::default();
        if self.posts.iter().any(|post| matches!(post.source, Source::Thread(_))) {
            return Ok(changes);
        }
        let mut missing = cpus::online()?;
        for post in self.posts.iter_mut().filter(|post| !post.retired) {
            let Source::Cpu(cpu) = post.source else { continue };
            let online = missing.contains(&cpu);
            if online && post.is_alive() {
                missing.remove(&cpu);
            } else {
                post.retire();
                self.poller.remove(post.owner.as_fd());
                changes.left.extend((!online).then_some(cpu));
            }
        }
        self.bury();
        for cpu in missing {
            if self.add(Source::Cpu(cpu))? {
                changes.came.push(cpu);
            }
        }
        Ok(changes)
    }

    /// Records lost, CPU by CPU, since these rings were opened. A CPU that has been offline has one entry for its
    /// present ring and one for those before.
    pub fn losses(&self) -> impl Iterator<Item = Losses> {
        let present = self.rings.iter().map(|ring| Losses { cpu: ring.cpu(), records: ring.lost() });
        self.past.iter().copied().chain(present)
    }

    /// Adds a ring with all that is attached. Not done (`false`) when its CPU has gone offline meanwhile.
    fn add(&mut self, source: Source) -> Result<bool, Error> {
        let what = format!("the ring of {source}");
        let more = self.attachments.len() + 1;
        let owner = match open(Event::Dummy, source, &self.settings, more) {
            Ok(owner) => owner,
            Err(error) if has_gone(source, &error) => return Ok(false),
            Err(error) => return Err(limits::why_not_open(&what, error)),
        };
        let memory = map(&owner, self.page_exponent)
            .map_err(|error| limits::why_not_map(&what, crate::options::bytes(self.page_exponent), error))?;
        let timer = Post::timer(source, &owner, &self.settings, more);
        let mut post = Post { source, owner, events: Vec::new(), timer, retired: false };
        for attachment in &self.attachments {
            let Some(fd) = post.open(attachment, &self.settings, more)? else { return Ok(false) };
            post.events.push((attachment.id, fd));
        }
        let start = |fd: &OwnedFd| perf::enable(fd.as_fd()).map_err(|error| Error::io(&what, error));
        start(&post.owner)?;
        post.events.iter().try_for_each(|(_, fd)| start(fd))?;
        self.poller.add(post.owner.as_fd()).map_err(|error| Error::io(&what, error))?;
        let cpu = match source {
            Source::Cpu(cpu) => Some(cpu),
            Source::Thread(_) => None,
        };
        self.rings.push(Ring::new(memory, cpu));
        self.posts.push(post);
        Ok(true)
    }

    /// Drops the rings of offline CPUs that have been read to their end.
    fn bury(&mut self) {
        for index in (0..self.posts.len()).rev() {
            if self.posts[index].retired && self.rings[index].refresh() == 0 {
                let ring = self.rings.swap_remove(index);
                self.posts.swap_remove(index);
                match self.past.iter_mut().find(|past| past.cpu == ring.cpu()) {
                    Some(past) => past.records = past.records.saturating_add(ring.lost()),
                    None => self.past.push(Losses { cpu: ring.cpu(), records: ring.lost() }),
                }
            }
        }
    }
}

impl Post {
    /// Opens an event that writes into this ring, not yet enabled; `None` when the CPU has gone offline.
    fn open(&self, attachment: &Attachment, settings: &Settings, more: usize) -> Result<Option<OwnedFd>, Error> {
        let what = || format!("a perf event on {} for {}", attachment.name, self.source);
        let fd = match open(Event::Trace(attachment.id), self.source, settings, more) {
            Ok(fd) => fd,
            Err(error) if has_gone(self.source, &error) => return Ok(None),
            Err(error) => return Err(limits::why_not_open(&what(), error)),
        };
        perf::set_output(fd.as_fd(), self.owner.as_fd()).map_err(|error| Error::io(what(), error))?;
        if let Some(filter) = &attachment.filter {
            perf::set_filter(fd.as_fd(), filter).map_err(|source| Error::Filter {
                event: attachment.name.clone(),
                filter: filter.to_string_lossy().into_owned(),
                source,
            })?;
        }
        Ok(Some(fd))
    }

    /// The timer of a CPU's ring. Without it losses are still reported, but only with the next sample.
    fn timer(source: Source, owner: &OwnedFd, settings: &Settings, more: usize) -> Option<OwnedFd> {
        let Source::Cpu(_) = source else { return None };
        let timer = open(Event::Timer, source, settings, more).ok()?;
        perf::set_output(timer.as_fd(), owner.as_fd()).ok()?;
        Some(timer)
    }

    /// Whether its events still run. They stop for good when their CPU goes offline, even if it returns: then the
    /// time for which they have been enabled stands still.
    fn is_alive(&self) -> bool {
        /// Longer than a tick, for kernels whose clock advances by ticks.
        const MOMENT: Duration = Duration::from_millis(20);
        let enabled = || perf::time_enabled(self.owner.as_fd()).unwrap_or(0);
        let before = enabled();
        if enabled() > before {
            return true;
        }
        thread::sleep(MOMENT);
        enabled() > before
    }

    /// Nothing more will come: closes what wrote into the ring.
    fn retire(&mut self) {
        self.retired = true;
        self.events.clear();
        self.timer = None;
    }
}

/// Finds out what the kernel takes, by opening one event that does nothing.
fn settings(options: &RingOptions, sources: &[Source]) -> Result<Settings, Error> {
    let watermark = options.watermark_bytes()?;
    let asked = Settings { clock: options.clock, close_on_exec: true, dummy: true, watermark };
    // Older kernels refuse flags and events that they do not know.
    let with_flags = Settings { clock: Clock::Local, ..asked };
    let with_dummy = Settings { close_on_exec: false, ..with_flags };
    let fallbacks = [asked, with_flags, with_dummy, Settings { dummy: false, ..with_dummy }];
    let is_unknown = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT));
    let mut refusal = io::Error::from_raw_os_error(libc::ENODEV);
    for (source, settings) in sources.iter().flat_map(|source| fallbacks.map(|settings| (*source, settings))) {
        match open(Event::Dummy, source, &settings, 1) {
            Ok(_) => return Ok(settings),
            Err(error) if has_gone(source, &error) || is_unknown(&error) => refusal = error,
            Err(error) => return Err(limits::why_not_open(&format!("the ring of {source}"), error)),
        }
    }
    Err(limits::why_not_open("a perf event", refusal))
}

/// Opens an event; raises the limit on files while it stands in the way of this one and `more`.
fn open(event: Event, source: Source, settings: &Settings, more: usize) -> io::Result<OwnedFd> {
    loop {
        match perf::open(event, source, settings) {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) && limits::raise_files(more) => {}
            opened_or_not => return opened_or_not,
        }
    }
}

/// Maps a ring; raises the limit on locked memory once if it stands in the way.
fn map(owner: &OwnedFd, page_exponent: u8) -> io::Result<Mapping> {
    match Mapping::new(owner.as_fd(), page_exponent) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && limits::raise_memory() => {
            Mapping::new(owner.as_fd(), page_exponent)
        }
        mapped => mapped,
    }
}

/// Whether an event could not be opened because its CPU is offline.
fn has_gone(source: Source, error: &io::Error) -> bool {
    matches!(source, Source::Cpu(_)) && error.raw_os_error() == Some(libc::ENODEV)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(cpu) => write!(f, "CPU {cpu}"),
            Self::Thread(tid) => write!(f, "thread {tid}"),
        }
    }
}

impl Waker {
    /// Ends the present [`Rings::wait`], or the next one when there is none.
    pub fn wake(&self) {
        // It fails only when 2^64 - 2 others came before, and then it rings anyway.
        let _ = self.bell.write(1);
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}
