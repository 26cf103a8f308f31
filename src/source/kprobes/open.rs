//! Opens the rings and installs the kprobes.

use std::sync::Arc;

use socktrail_guess::Layout;
use socktrail_kprobes::{Group, Hooks, Rings, Tracefs};

use super::switches::Switches;
use super::{GROUP, Probes, clock_comparison};
use crate::model::time::MonotonicTime;
use crate::source::options::Options;
use crate::source::{Error, MissingFeature};

/// Probes or programs that write into rings.
pub(crate) struct Opened {
    pub(in crate::source) rings: Rings,
    pub(crate) probes: Probes,
    /// The group of the kprobes; `None` if there are none.
    pub(in crate::source) group: Option<Group>,
    /// The hooks of a control group; `None` if there are none.
    pub(in crate::source) hooks: Option<Hooks>,
    /// The layout of the kernel's structures.
    pub(in crate::source) layout: Layout,
    pub(in crate::source) tracefs: Arc<Tracefs>,
}

/// Finds the kernel's layout and installs the kprobes.
///
/// # Errors
/// The kernel has no kprobes or they are switched off, a permission is missing or a limit too low, the layout could not be found,
/// or no probe that shows the requested data could be installed. Installed probes are removed.
pub(in crate::source) fn open(options: &Options) -> Result<Opened, Error> {
    let tracefs = Arc::new(options.tracefs()?);
    let mut group = Group::create(&tracefs, GROUP)?;
    if let Some(disabled) = Switches::read().disabling_probes(std::env::consts::ARCH) {
        return Err(Error::ProbesDisabled(disabled));
    }
    let layout = options.layout(&tracefs)?.layout;
    let mut ring_options = options.ring_options();
    ring_options.clock = clock_comparison::wanted(&options.mask);
    let mut rings = Rings::per_cpu(&ring_options)?;
    let wanted = options.wanted(&layout);
    let probes = Probes::install(&mut group, Some(&mut rings), wanted);
    if !probes.can_show_wanted(wanted) {
        return Err(Error::NothingToSee(MissingFeature::all_of(probes.statuses)));
    }
    Ok(Opened { rings, probes, group: Some(group), hooks: None, layout, tracefs })
}

/// The time by the clock of the samples.
pub(in crate::source) fn now_of(rings: &Rings) -> MonotonicTime {
    MonotonicTime::from_nanos(rings.now())
}
