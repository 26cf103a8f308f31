//! Opens the rings and installs the kprobes.

use std::path::Path;
use std::sync::Arc;

use socktrail_guess::Layout;
use socktrail_kprobes::{ControlGroup, Group, Rings, Tracefs};

use super::switches::Switches;
use super::{GROUP, Probes, clock_comparison};
use crate::model::time::MonotonicTime;
use crate::source::options::Options;
use crate::source::{Error, MissingFeature, proc};

/// Probes or programs that write into rings.
pub(crate) struct Opened {
    pub(in crate::source) rings: Rings,
    pub(crate) probes: Probes,
    /// The group of the kprobes; `None` if there are none.
    pub(in crate::source) group: Option<Group>,
    /// The control group that is observed. `None` if kprobes observe the whole host.
    pub(in crate::source) cgroup: Option<ControlGroup>,
    /// The layout of the kernel's structures.
    pub(in crate::source) layout: Layout,
    pub(in crate::source) tracefs: Arc<Tracefs>,
}

/// Finds the kernel's layout and installs the kprobes.
///
/// # Errors
/// The kernel has no kprobes or they are switched off, a permission is missing or a limit too low, the layout could not be found,
/// no probe that shows the requested data could be installed, or what is reported cannot be restricted to the control group.
/// Installed probes are removed.
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
    let mut probes = Probes::install(&mut group, Some(&mut rings), wanted);
    if !probes.can_show_wanted(wanted) {
        return Err(Error::NothingToSee(MissingFeature::all_of(probes.statuses)));
    }
    let cgroup = options.cgroup.as_deref().map(|path| restrict_to(path, &mut probes)).transpose()?;
    Ok(Opened { rings, probes, group: Some(group), cgroup, layout, tracefs })
}

/// Restricts what is reported to the processes of the control group with this directory.
fn restrict_to(path: &Path, probes: &mut Probes) -> Result<ControlGroup, Error> {
    let cgroup = ControlGroup::open(path)?;
    if !probes.capabilities.control_group_moves {
        let problem = "with kprobes, it needs the tracepoint cgroup_attach_task, which this kernel lacks";
        return Err(Error::Option { name: "cgroup", problem: problem.into() });
    }
    let in_hierarchy = proc::path_in_hierarchy(path).map_err(|problem| Error::Option { name: "cgroup", problem })?;
    probes.capabilities.control_group = Some(in_hierarchy);
    Ok(cgroup)
}

/// The time by the clock of the samples.
pub(in crate::source) fn now_of(rings: &Rings) -> MonotonicTime {
    MonotonicTime::from_nanos(rings.now())
}
