//! Counts of hits that make no samples.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::events::{is_offline, open, set_filter};
use crate::Error;
use crate::group::Probe;
use crate::sys::limits;
use crate::sys::perf::{self, EventKind, RingSource, Settings};

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
