//! Counts of hits that make no samples.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::Rings;
use super::events::{is_offline, open, set_filter};
use crate::group::Probe;
use crate::sys::limits;
use crate::sys::perf::{self, EventKind, RingSource, Settings};
use crate::{Error, Installed};

/// Counts the hits of a trace event that match a filter, on the CPUs or for the thread of the rings.
#[derive(Debug)]
pub(super) struct HitCounter {
    /// The id of the trace event.
    pub(super) id: u32,
    name: String,
    filter: CString,
    events: Vec<(RingSource, OwnedFd)>,
    /// The hits that closed events have counted.
    past: u64,
    /// Dropped last: a probe cannot be removed while a perf event uses it.
    _probes: Vec<Arc<Probe>>,
}

impl HitCounter {
    /// A counter that counts nowhere yet.
    pub(super) fn new(id: u32, name: String, filter: CString, probes: Vec<Arc<Probe>>) -> Self {
        Self { id, name, filter, events: Vec::new(), past: 0, _probes: probes }
    }

    /// Counts on one more CPU, or for a thread. Returns `false` if the CPU has gone offline.
    pub(super) fn add(&mut self, source: RingSource, settings: &Settings, others: usize) -> Result<bool, Error> {
        let what = || format!("a counter of {} for {source}", self.name);
        let fd = match open(EventKind::Count(self.id), source, settings, others) {
            Ok(fd) => fd,
            Err(error) if is_offline(source, &error) => return Ok(false),
            Err(error) => return Err(limits::open_error(&what(), error)),
        };
        set_filter(&fd, &self.name, &self.filter)?;
        perf::enable(fd.as_fd()).map_err(|error| Error::io(what(), error))?;
        // The CPU may be here already, if an earlier attempt to add its ring failed after this call.
        self.remove(source);
        self.events.push((source, fd));
        Ok(true)
    }

    /// Stops counting on a CPU. The hits there so far remain in the count.
    pub(super) fn remove(&mut self, source: RingSource) {
        for (_, fd) in self.events.extract_if(.., |(counted, _)| *counted == source) {
            self.past += perf::count(fd.as_fd()).unwrap_or(0);
        }
    }

    /// The hits so far.
    pub(super) fn count(&self) -> Result<u64, Error> {
        let counts = self.events.iter().map(|(_, fd)| perf::count(fd.as_fd()));
        let present: u64 = counts
            .sum::<Result<_, _>>()
            .map_err(|error| Error::io(format!("reading a counter of {}", self.name), error))?;
        Ok(self.past + present)
    }
}

impl Rings {
    /// Counts the hits of an event that match `filter`, without samples, until [`Rings::detach`]. The event may be attached as
    /// well, before or afterwards. Hits that a program ends are not counted.
    ///
    /// # Errors
    /// As [`Rings::per_cpu`]; [`Error::Filter`] as for [`Rings::attach`]. After an error nothing is counted.
    pub fn count_hits(&mut self, event: &Installed, filter: &str) -> Result<(), Error> {
        let not_a_filter = |source| Error::Filter { event: event.name().to_owned(), filter: filter.to_owned(), source };
        let text = CString::new(filter).map_err(|error| not_a_filter(error.into()))?;
        if event.ids().len() > 1 {
            return Err(not_a_filter(io::Error::from(io::ErrorKind::Unsupported)));
        }
        let mut counter = HitCounter::new(event.id(), event.name().to_owned(), text, event.probes());
        let mut present = self.descriptors.iter().filter(|ring_fds| !ring_fds.retired);
        let others = self.descriptors.len();
        match present.try_for_each(|ring_fds| counter.add(ring_fds.source, &self.settings, others).map(drop)) {
            Ok(()) => self.counters.push(counter),
            Err(error) => {
                drop(counter);
                self.resume_programs();
                return Err(error);
            }
        }
        Ok(())
    }

    /// The hits of an event that have been [counted](Rings::count_hits) so far, on all CPUs. 0 if its hits are not counted.
    ///
    /// # Errors
    /// [`Error::Io`]: a counter cannot be read.
    pub fn counted_hits(&self, event: &Installed) -> Result<u64, Error> {
        self.counters.iter().filter(|counter| counter.id == event.id()).map(HitCounter::count).sum()
    }
}
