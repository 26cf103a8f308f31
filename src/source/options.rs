//! Options of the source that observes this kernel.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use socktrail_guess::{LayoutSource, ResolveOptions, Resolved, resolve};
use socktrail_kprobes::{RingOptions, Tracefs};

use super::kprobes::{GROUP, KernelAccounting, Wanted};
use super::{Error, proc};
use crate::model::accounting::Accounting;
use crate::model::backend::Backend;
use crate::model::clock::TimeSource;
use crate::model::filter::Filter;
use crate::model::socket_event::Actions;

/// Options of the source that observes this kernel. Fields without a description are those of the same names in
/// [`monitor::Options`](crate::monitor::Options).
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) tracefs_path: Option<PathBuf>,
    pub(crate) enable_ipv6: Option<bool>,
    pub(crate) backend: Backend,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) source: LayoutSource,
    pub(crate) guess_timeout: Duration,
    pub(crate) ring_size_exponent: u8,
    pub(crate) time: TimeSource,
    pub(crate) clock_max_drift: Duration,
    pub(crate) clock_sync_period: Duration,
    pub(crate) dns: socktrail_dns::Options,
    pub(crate) flows: bool,
    pub(crate) socket_events: Actions,
    pub(crate) mask: Vec<String>,
    /// Which packets to observe. Programs apply it as far as they can; the state machine applies all of it.
    pub(crate) filter: Filter,
    pub(crate) accounting: Accounting,
    pub(crate) max_conversations: usize,
    /// See [`KernelAccounting::pause`].
    pub(crate) pause: Duration,
}

impl Options {
    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Option`], with the name of the field.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        within("ring_size_exponent", self.ring_size_exponent.into(), 1, 14)?;
        nonzero("guess_timeout", self.guess_timeout)?;
        nonzero("clock_sync_period", self.clock_sync_period)?;
        self.dns.validate().map_err(|error| match error {
            socktrail_dns::Error::Option { option: "snaplen", problem } => {
                Error::Option { name: "dns.snaplen", problem }
            }
            socktrail_dns::Error::Option { option: "ports", problem } => Error::Option { name: "dns.ports", problem },
            other => Error::Option { name: "dns", problem: other.to_string() },
        })
    }

    /// The tracefs at the configured path, or else one that is found or mounted.
    pub(crate) fn tracefs(&self) -> Result<Tracefs, Error> {
        let tracefs = match &self.tracefs_path {
            Some(path) => Tracefs::at(path)?,
            None => Tracefs::find()?,
        };
        Ok(tracefs.without(&self.mask))
    }

    /// Whether to observe IPv6.
    pub(crate) fn ipv6(&self) -> bool {
        self.enable_ipv6.unwrap_or_else(proc::has_ipv6)
    }

    /// The kernel's layout, from the configured source.
    pub(crate) fn layout(&self, tracefs: &Arc<Tracefs>) -> Result<Resolved, Error> {
        let mut resolve_options = ResolveOptions::default();
        resolve_options.guess_timeout = self.guess_timeout;
        resolve_options.ipv6 = self.ipv6();
        resolve_options.socket_events = !self.socket_events.is_empty();
        resolve_options.tracefs = Some(Arc::clone(tracefs));
        resolve_options.group = GROUP.to_owned();
        let resolved = resolve(&self.source, &resolve_options)?;
        for error in resolved.btf_error.iter().chain(&resolved.saved_error) {
            tracing::warn!("{error}");
        }
        Ok(resolved)
    }

    /// The options of the rings.
    pub(crate) fn ring_options(&self) -> RingOptions {
        let mut options = RingOptions::default();
        options.page_exponent = self.ring_size_exponent;
        options
    }

    /// What the probes should observe on a kernel with this layout.
    pub(crate) fn wanted<'a>(&'a self, layout: &'a socktrail_guess::Layout) -> Wanted<'a> {
        let Self { flows, socket_events, ref mask, ref filter, .. } = *self;
        let conversations = u32::try_from(self.max_conversations).unwrap_or(u32::MAX);
        let accounting = KernelAccounting { pause: self.pause, conversations };
        let accounting = Some(accounting).filter(|_| flows && self.accounting != Accounting::Samples);
        Wanted { layout, ipv6: self.ipv6(), flows, socket_events, mask, filter, accounting }
    }
}

/// Refuses a value that is out of bounds.
pub(crate) fn within(name: &'static str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    let problem = || format!("{value} is not within {least} to {most}");
    if (least..=most).contains(&value) { Ok(()) } else { Err(Error::Option { name, problem: problem() }) }
}

/// Refuses a time of zero.
pub(crate) fn nonzero(name: &'static str, time: Duration) -> Result<(), Error> {
    if time.is_zero() {
        return Err(Error::Option { name, problem: "must be longer than 0".to_owned() });
    }
    Ok(())
}
