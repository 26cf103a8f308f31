//! Builds a monitor in one expression.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use socktrail_guess::LayoutSource;

use super::{Monitor, Options, Prepared};
use crate::model::clock::TimeSource;
use crate::model::filter::Filter;
use crate::model::names::PrefetchNames;
use crate::model::socket_event::Actions;
use crate::source::Error;

/// Builds a monitor: see [`Monitor::builder`]. Options that are not set have the values of [`Options::default`].
///
/// ```no_run
/// use std::time::Duration;
/// use socktrail::Monitor;
/// use socktrail::filter::Filter;
///
/// let mut filter = Filter::default();
/// filter.exclude_loopback = true;
/// let monitor = Monitor::builder()
///     .flow_report_interval(Duration::from_secs(60))
///     .filter(filter)
///     .with(|options| options.max_flows = 10_000)
///     .start()?;
/// # Ok::<(), socktrail::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "nothing is watched before it is started"]
pub struct Builder {
    options: Options,
    user_names: Option<Arc<dyn PrefetchNames>>,
}

impl Builder {
    /// Replaces all options.
    pub fn options(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// Requests the names of users as soon as they own a socket, so that the names are known when the flow is reported. The
    /// caller must have started `users`, for instance by `Users::start` of the module `users`.
    pub fn users(self, users: impl PrefetchNames + 'static) -> Self {
        Self { user_names: Some(Arc::new(users)), ..self }
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
    pub fn source(self, source: LayoutSource) -> Self {
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

    /// Whether DNS traffic is captured: see [`Options::dns`].
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

    /// Finds the kernel's layout, installs the probes, starts the threads, and waits until the existing processes and sockets are
    /// known.
    ///
    /// # Errors
    /// The kernel has no kprobes or they are switched off, a permission is missing, a limit is too low, the layout could not be
    /// found, or no probe that shows what is wanted could be installed. The probes are then removed.
    pub fn start(self) -> Result<Monitor, Error> {
        self.prepare()?.start()
    }

    /// The first half of [`Builder::start`]: everything except the threads.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn prepare(self) -> Result<Prepared, Error> {
        Prepared::new(&self.options, self.user_names)
    }
}
