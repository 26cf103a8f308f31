//! The perf events behind the rings: opening them, and their file descriptors.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use super::Attachment;
use crate::sys::limits;
use crate::sys::mapping::Mapping;
use crate::sys::perf::{self, EventKind, RingSource, Settings};
use crate::{Clock, Error, RingOptions};

/// The file descriptors of a ring.
#[derive(Debug)]
pub(super) struct RingDescriptors {
    pub(super) source: RingSource,
    /// The event that owns the ring.
    pub(super) owner: OwnedFd,
    /// The events that write into it, by the id of their trace event.
    pub(super) events: Vec<(u32, OwnedFd)>,
    /// The events that BPF programs write through.
    pub(super) outputs: Vec<OwnedFd>,
    /// A timer that writes one sample on request, so that the kernel also reports pending losses. A thread's ring has
    /// none, because its timer would run only while the thread does.
    pub(super) timer: Option<OwnedFd>,
    /// Its CPU went offline. The ring is dropped once it is empty.
    pub(super) retired: bool,
}

impl RingDescriptors {
    /// Opens an event that writes into this ring, not yet enabled. `None` if the CPU has gone offline.
    pub(super) fn open(
        &self,
        attachment: &Attachment,
        settings: &Settings,
        others: usize,
    ) -> Result<Option<OwnedFd>, Error> {
        let what = || format!("a perf event on {} for {}", attachment.name, self.source);
        let fd = match open(EventKind::Trace(attachment.id), self.source, settings, others) {
            Ok(fd) => fd,
            Err(error) if is_offline(self.source, &error) => return Ok(None),
            Err(error) => return Err(limits::open_error(&what(), error)),
        };
        perf::set_output(fd.as_fd(), self.owner.as_fd()).map_err(|error| Error::io(what(), error))?;
        if let Some(filter) = &attachment.filter {
            set_filter(&fd, &attachment.name, filter)?;
        }
        Ok(Some(fd))
    }

    /// Opens the timer of a CPU's ring. Without it losses are still reported, but only with the next sample.
    pub(super) fn timer(source: RingSource, owner: &OwnedFd, settings: &Settings, others: usize) -> Option<OwnedFd> {
        let RingSource::Cpu(_) = source else { return None };
        let timer = open(EventKind::Timer, source, settings, others).ok()?;
        perf::set_output(timer.as_fd(), owner.as_fd()).ok()?;
        Some(timer)
    }

    /// Whether its events still run. They stop for good when their CPU goes offline, even if it comes back. Their
    /// enabled time then no longer advances.
    pub(super) fn is_alive(&self) -> bool {
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

    /// Closes the events that wrote into the ring, since no more records will come.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.events.clear();
        self.outputs.clear();
        self.timer = None;
    }
}

/// Finds out which flags and clocks the kernel supports, by opening one event that does nothing.
pub(super) fn settings(options: &RingOptions, sources: &[RingSource]) -> Result<Settings, Error> {
    let watermark = options.watermark_bytes()?;
    let asked = Settings { clock: options.clock, close_on_exec: true, dummy: true, watermark };
    // Older kernels refuse flags and events that they do not know.
    let with_flags = Settings { clock: Clock::Local, ..asked };
    let with_dummy = Settings { close_on_exec: false, ..with_flags };
    let fallbacks = [asked, with_flags, with_dummy, Settings { dummy: false, ..with_dummy }];
    let is_unknown = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT));
    let mut refusal = io::Error::from_raw_os_error(libc::ENODEV);
    for (source, settings) in sources.iter().flat_map(|source| fallbacks.map(|settings| (*source, settings))) {
        match open(EventKind::Dummy, source, &settings, 1) {
            Ok(_) => return Ok(settings),
            Err(error) if is_offline(source, &error) || is_unknown(&error) => refusal = error,
            Err(error) => return Err(limits::open_error(&format!("the ring of {source}"), error)),
        }
    }
    Err(limits::open_error("a perf event", refusal))
}

/// Makes an event ignore the hits that do not match a filter.
pub(super) fn set_filter(fd: &OwnedFd, event: &str, filter: &CStr) -> Result<(), Error> {
    perf::set_filter(fd.as_fd(), filter).map_err(|source| Error::Filter {
        event: event.to_owned(),
        filter: filter.to_string_lossy().into_owned(),
        source,
    })
}

/// Opens an event. If the limit on open files prevents that, it is raised for this one and `others` more.
pub(super) fn open(event: EventKind, source: RingSource, settings: &Settings, others: usize) -> io::Result<OwnedFd> {
    loop {
        match perf::open(event, source, settings) {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) && limits::raise_files(others) => {}
            opened_or_not => return opened_or_not,
        }
    }
}

/// Maps a ring. If the limit on locked memory prevents that, it is raised once.
pub(super) fn map(owner: &OwnedFd, page_exponent: u8) -> io::Result<Mapping> {
    match Mapping::new(owner.as_fd(), page_exponent) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && limits::raise_memory() => {
            Mapping::new(owner.as_fd(), page_exponent)
        }
        mapped => mapped,
    }
}

/// Whether an event could not be opened because its CPU is offline.
pub(super) fn is_offline(source: RingSource, error: &io::Error) -> bool {
    matches!(source, RingSource::Cpu(_)) && error.raw_os_error() == Some(libc::ENODEV)
}

impl fmt::Display for RingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(cpu) => write!(f, "CPU {cpu}"),
            Self::Thread(tid) => write!(f, "thread {tid}"),
        }
    }
}
