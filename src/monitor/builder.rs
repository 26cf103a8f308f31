//! A monitor in one expression.

use std::path::PathBuf;
use std::time::Duration;

use socktrail_guess::Source;

use super::{Monitor, Options, Prepared};
use crate::clock::TimeSource;
use crate::error::Error;
use crate::filter::Filter;
use crate::socket_event::Actions;
use crate::users::Users;

/// What [`Monitor::builder`] begins with. Everything that is not said is as [`Options::default`] has it.
///
/// ```no_run
/// use std::time::Duration;
/// use socktrail::monitor::Monitor;
///
/// let monitor = Monitor::builder()
///     .flow_report_interval(Duration::from_secs(60))
///     .filter(socktrail::filter::Filter { exclude_loopback: true, ..Default::default() })
///     .with(|options| options.max_flows = 10_000)
///     .start()?;
/// # Ok::<(), socktrail::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "nothing is watched before it is started"]
pub struct Builder {
    options: Options,
    users: Option<Users>,
}

impl Builder {
    /// Takes all options at once.
    pub fn options(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// Asks for the names of those who come to own a socket, so that they are known once a flow tells of them. Their thread
    /// is the caller's to [start](Users::start).
    pub fn users(self, users: Users) -> Self {
        Self { users: Some(users), ..self }
    }

    /// Changes options that have no method of their own.
    pub fn with(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    /// See [`Options::tracefs_path`].
    pub fn tracefs_path(self, path: impl Into<PathBuf>) -> Self {
        self.with(|options| options.tracefs_path = Some(path.into()))
    }

    /// See [`Options::enable_ipv6`].
    pub fn enable_ipv6(self, enabled: bool) -> Self {
        self.with(|options| options.enable_ipv6 = Some(enabled))
    }

    /// See [`Options::source`].
    pub fn source(self, source: Source) -> Self {
        self.with(|options| options.source = source)
    }

    /// See [`Options::time`].
    pub fn time(self, time: TimeSource) -> Self {
        self.with(|options| options.time = time)
    }

    /// See [`Options::flow_inactive_timeout`].
    pub fn flow_inactive_timeout(self, timeout: Duration) -> Self {
        self.with(|options| options.flow_inactive_timeout = timeout)
    }

    /// See [`Options::flow_termination_timeout`].
    pub fn flow_termination_timeout(self, timeout: Duration) -> Self {
        self.with(|options| options.flow_termination_timeout = timeout)
    }

    /// See [`Options::flow_report_interval`].
    pub fn flow_report_interval(self, interval: Duration) -> Self {
        self.with(|options| options.flow_report_interval = Some(interval))
    }

    /// See [`Options::filter`].
    pub fn filter(self, filter: Filter) -> Self {
        self.with(|options| options.filter = filter)
    }

    /// Whether names that processes look up are listened to, on the wire: see [`Options::dns`].
    pub fn names(self, enabled: bool) -> Self {
        self.with(|options| options.dns.enabled = enabled)
    }

    /// See [`Options::flows`].
    pub fn flows(self, wanted: bool) -> Self {
        self.with(|options| options.flows = wanted)
    }

    /// See [`Options::socket_events`].
    pub fn socket_events(self, actions: Actions) -> Self {
        self.with(|options| options.socket_events = actions)
    }

    /// See [`Options::own_process`].
    pub fn own_process(self, reported: bool) -> Self {
        self.with(|options| options.own_process = reported)
    }

    /// Finds out the kernel's layout, installs the probes, begins to watch and learns what was there before.
    ///
    /// # Errors
    /// The kernel has no kprobes or they are switched off, something is not permitted or a limit too low, the layout
    /// could not be found, or no probe that shows flows could be installed. What had been installed is removed.
    pub fn start(self) -> Result<Monitor, Error> {
        self.prepare()?.start()
    }

    /// The first half of [`Builder::start`]: all but the threads.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn prepare(self) -> Result<Prepared, Error> {
        Prepared::new(&self.options, self.users)
    }
}
