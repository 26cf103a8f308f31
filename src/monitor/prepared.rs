//! A monitor with installed probes, whose threads do not run yet.

use std::path::Path;
use std::sync::Arc;

use super::{Monitor, Options};
use crate::model::names::PrefetchNames;
use crate::source::Error;
use crate::source::live::{LiveSource, Summary};

/// A monitor whose probes are installed, but whose threads do not run yet. Samples wait in the rings.
///
/// Threads inherit the privileges of the thread that starts them. So give up privileges now: what needs most of them is done.
/// Dropping this removes the probes.
#[derive(Debug)]
pub struct Prepared {
    options: Options,
    user_names: Option<Arc<dyn PrefetchNames>>,
    source: LiveSource,
}

impl Prepared {
    /// Finds the kernel's layout and installs the probes.
    pub(super) fn new(options: &Options, user_names: Option<Arc<dyn PrefetchNames>>) -> Result<Self, Error> {
        options.validate_own()?;
        let source = LiveSource::open(&options.into())?;
        Ok(Self { options: options.clone(), user_names, source })
    }

    /// What the monitor will observe, and what it cannot.
    pub fn summary(&self) -> &Summary {
        self.source.summary()
    }

    /// The mount point of tracefs, as a path of this process. The monitor reads and writes files there as long as it lives.
    pub fn tracefs(&self) -> &Path {
        self.source.tracefs()
    }

    /// Starts the threads, and waits until the existing processes and sockets are known.
    ///
    /// # Errors
    /// [`Error::Thread`] and [`Error::EventFd`]. The probes are then removed.
    pub fn start(self) -> Result<Monitor, Error> {
        let Self { options, user_names, source } = self;
        let summary = source.summary().clone();
        Monitor::spawn(&options, user_names, source, summary)
    }
}
