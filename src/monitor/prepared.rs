//! From options to probes that are in place.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socktrail_dns::Capture;
use socktrail_guess::{ResolveOptions, Resolved, resolve};
use socktrail_kprobes::{Group, RingOptions, Rings, Tracefs};

use super::sync::{self, Sync};
use super::{GROUP, Monitor, Options, names};
use crate::clock::{Clock, Readings};
use crate::error::Error;
use crate::probes::{Feature, Misses, Probes, Wanted};
use crate::proc;
use crate::switches::Switches;
use crate::users::Users;

/// Probes that are in place and a host that is watched, but not a thread yet: what happens waits in the rings.
///
/// Threads inherit what the thread that starts them may do. So this is the moment to give up privileges: all that takes
/// many of them is done. Dropping it instead removes the probes.
pub struct Prepared {
    options: Options,
    users: Option<Users>,
    watch: Watch,
    capture: Option<Capture>,
    summary: Summary,
    clock: Clock,
    tracefs: PathBuf,
}

impl Prepared {
    /// Finds out the kernel's layout and installs the probes.
    pub(super) fn new(options: &Options, users: Option<Users>) -> Result<Self, Error> {
        options.validate()?;
        let tracefs = Arc::new(tracefs(options)?);
        let mut group = Group::create(&tracefs, GROUP)?;
        if let Some(silenced) = Switches::read().silenced(std::env::consts::ARCH) {
            return Err(Error::Silenced(silenced));
        }
        let ipv6 = options.enable_ipv6.unwrap_or_else(proc::has_ipv6);
        let layout = layout(options, &tracefs, ipv6)?.layout;
        let mut ring_options = RingOptions::default();
        ring_options.page_exponent = options.ring_size_exponent;
        ring_options.clock = sync::wanted(&options.mask);
        let mut rings = Rings::per_cpu(&ring_options)?;
        let wanted = Wanted {
            layout: &layout,
            ipv6,
            flows: options.flows,
            socket_events: options.socket_events,
            mask: &options.mask,
            loopback: !options.filter.exclude_loopback,
        };
        let probes = Probes::install(&mut group, Some(&mut rings), wanted);
        if !probes.show_something(wanted) {
            return Err(Error::NothingToSee(probes.served));
        }
        let mut sync = Sync::every(options.clock_sync_period);
        sync.compare(&mut rings, &probes);
        let readings = Readings::by(&options.time, || rings.now()).map_err(Error::Clock)?;
        let clock = Clock::from_readings(readings);
        let mut summary = Summary::of(&probes, &rings, ipv6);
        let capture = names::capture(&options.dns).unwrap_or_else(|error| {
            summary.lost.push(format!("names that are looked up: {error}"));
            None
        });
        let misses = Misses::of(&probes);
        let watch = Watch { rings, probes, misses, group, sync };
        Ok(Self { options: options.clone(), users, watch, capture, summary, clock, tracefs: tracefs.path("") })
    }

    /// What will be watched.
    pub fn describe(&self) -> &Summary {
        &self.summary
    }

    /// Where the kernel's tracing files are, which the monitor reads and writes as long as it lives: a path of this
    /// process.
    pub fn tracefs(&self) -> &Path {
        &self.tracefs
    }

    /// Starts the threads, and waits until they have learned what was there before.
    ///
    /// # Errors
    /// [`Error::Thread`]. What had been installed is removed.
    pub fn start(self) -> Result<Monitor, Error> {
        let Self { options, users, watch, capture, summary, clock, .. } = self;
        Monitor::spawn(&options, users, watch, capture, summary, clock)
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("summary", &self.summary).finish_non_exhaustive()
    }
}

/// What a running monitor watches.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Features that have a probe.
    pub features: Vec<Feature>,
    /// What is not seen, and why.
    pub lost: Vec<String>,
    /// CPUs with a ring.
    pub cpus: usize,
    /// Whether IPv6 is watched.
    pub ipv6: bool,
}

impl Summary {
    fn of(probes: &Probes, rings: &Rings, ipv6: bool) -> Self {
        let told = probes.served.iter().filter_map(|served| {
            let missing = if served.by.is_some() { served.weaker() } else { Some(served.feature.loss()) };
            let reasons = served.reasons();
            let why = if reasons.is_empty() { String::new() } else { format!(" ({reasons})") };
            missing.map(|missing| format!("{}: {missing}{why}", served.feature))
        });
        Self { features: probes.features().collect(), lost: told.collect(), cpus: rings.losses().count(), ipv6 }
    }
}

/// Tracefs where the options say, or where it is found.
pub(crate) fn tracefs(options: &Options) -> Result<Tracefs, Error> {
    let tracefs = match &options.tracefs_path {
        Some(path) => Tracefs::at(path)?,
        None => Tracefs::find()?,
    };
    Ok(tracefs.without(&options.mask))
}

/// The kernel's layout, from where the options say.
pub(crate) fn layout(options: &Options, tracefs: &Arc<Tracefs>, ipv6: bool) -> Result<Resolved, Error> {
    let mut how = ResolveOptions::default();
    how.guess_timeout = options.guess_timeout;
    how.ipv6 = ipv6;
    how.socket_events = !options.socket_events.is_empty();
    how.tracefs = Some(Arc::clone(tracefs));
    how.group = GROUP.to_owned();
    Ok(resolve(&options.source, &how)?)
}

/// What the reader thread owns. The rings go first: a probe that is in use cannot be removed.
pub(super) struct Watch {
    pub(super) rings: Rings,
    pub(super) probes: Probes,
    pub(super) misses: Misses,
    pub(super) group: Group,
    pub(super) sync: Sync,
}
