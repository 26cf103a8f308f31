//! Tests which privileges can be dropped on this host.

use std::{fmt, io, thread};

use super::{Confined, Extra, Kept, PrivilegesError, drop_capabilities, filter_syscalls, restrict_files};

/// The results of dropping privileges in a temporary thread.
#[derive(Debug)]
pub struct Trial {
    /// Capabilities.
    pub capabilities: Result<Kept, PrivilegesError>,
    /// System calls.
    pub syscalls: Result<(), PrivilegesError>,
    /// Files.
    pub files: Result<Confined, PrivilegesError>,
}

impl Trial {
    /// Drops all privileges in a temporary thread; other threads are not affected.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn take() -> io::Result<Self> {
        let trial = || Self {
            capabilities: drop_capabilities(Extra::default()),
            syscalls: filter_syscalls(),
            files: restrict_files(&[], &[]),
        };
        let thread = thread::Builder::new().name("trial".to_owned()).spawn(trial)?;
        thread.join().map_err(|_| io::Error::other("the thread has failed; this is a bug: please report it"))
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.capabilities {
            Ok(kept) => write!(f, "capabilities are reduced to {kept}")?,
            Err(error) => write!(f, "{error}")?,
        }
        match &self.syscalls {
            Ok(()) => f.write_str("; system calls are filtered")?,
            Err(error) => write!(f, "; {error}")?,
        }
        match &self.files {
            Ok(confined) => write!(f, "; {confined}"),
            Err(error) => write!(f, "; {error}"),
        }
    }
}
