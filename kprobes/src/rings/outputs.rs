//! The outputs of BPF programs: a perf event for each CPU, which writes into the CPU's ring.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::Rings;
use super::events::{RingDescriptors, is_offline, open};
use crate::Error;
use crate::bpf::Map;
use crate::sys::limits;
use crate::sys::perf::{self, EventKind, RingSource, Settings};

impl Rings {
    /// Connects an [array of outputs](Map::outputs) with these rings: what a program writes there on a CPU becomes a
    /// [`Record::Sample`](crate::Record::Sample) of that CPU's ring, in order with the samples of probes. Its bytes
    /// begin with a `u16`, like those of every record. Use 0, because no trace event has this id. CPUs that come later are
    /// connected, too.
    ///
    /// # Errors
    /// As [`Rings::attach`]. [`Error::Io`] before Linux 4.4, and for the ring of a thread. After an error, some CPUs may
    /// be connected; what is written on others is lost.
    pub fn receive(&mut self, outputs: &Map) -> Result<(), Error> {
        let others = self.descriptors.len();
        for ring_fds in self.descriptors.iter_mut().filter(|ring_fds| !ring_fds.retired) {
            ring_fds.connect(outputs, &self.settings, others)?;
        }
        self.outputs.push(outputs.clone());
        Ok(())
    }
}

impl RingDescriptors {
    /// Opens and starts an output into this ring. Returns `false` if its CPU has gone offline.
    pub(super) fn connect(&mut self, outputs: &Map, settings: &Settings, others: usize) -> Result<bool, Error> {
        let what = format!("an output of BPF programs on {}", self.source);
        let RingSource::Cpu(cpu) = self.source else {
            return Err(Error::io(what, io::ErrorKind::Unsupported));
        };
        let event = match open(EventKind::Output, self.source, settings, others) {
            Ok(event) => event,
            Err(error) if is_offline(self.source, &error) => return Ok(false),
            Err(error) => return Err(limits::open_error(&what, error)),
        };
        perf::set_output(event.as_fd(), self.owner.as_fd()).map_err(|error| Error::io(&what, error))?;
        perf::enable(event.as_fd()).map_err(|error| Error::io(&what, error))?;
        outputs.update(&cpu.to_ne_bytes(), &event.as_raw_fd().to_ne_bytes())?;
        self.outputs.push(event);
        Ok(true)
    }
}

/// Removes the output of a CPU that went offline, so that its ring can be freed.
pub(super) fn disconnect(outputs: &Map, cpu: u32) {
    // It fails if the CPU was never connected. Then the map does not keep its ring.
    let _ = outputs.delete(&cpu.to_ne_bytes());
}
