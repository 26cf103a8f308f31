//! Programs that are attached to a trace event.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::Program;
use crate::Error;
use crate::sys::perf;

/// Keeps a program running at each hit of a trace event until it is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    /// The perf event through which it was set. It is never enabled and serves no other purpose, so it can stay open as
    /// long as the program should run.
    event: OwnedFd,
    program: Program,
}

impl Running {
    /// Sets the program through `event`, a perf event on the trace event of this name.
    pub(crate) fn start(program: &Program, event: OwnedFd, name: &str) -> Result<Self, Error> {
        perf::set_program(event.as_fd(), program.descriptor()).map_err(|error| start_error(program, name, error))?;
        Ok(Self { event, program: program.clone() })
    }

    /// Sets the program again. Before Linux 4.14 the kernel removes it when another perf event on the trace event is
    /// closed.
    pub(crate) fn resume(&self) {
        // Later kernels return `EEXIST`. After any other failure every hit becomes a sample, as without a program.
        let _ = perf::set_program(self.event.as_fd(), self.program.descriptor());
    }
}

/// The error for a program that could not be set. Older kernels do not know the ioctl, and those without
/// `CONFIG_BPF_EVENTS` cannot run the program.
fn start_error(program: &Program, name: &str, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EINVAL | libc::ENOTTY | libc::EOPNOTSUPP) => Error::NoBpfEvents { version: None, source },
        _ => Error::io(format!("the BPF program {} at {name}", program.name()), source),
    }
}
