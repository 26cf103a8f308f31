//! Observes kernels without kprobes: programs at the hooks of a control group, and at tracepoints.
//!
//! Programs write the same records as the kernel does for kprobes, so everything after the rings is the same. They see packets
//! where a control group may filter them: outgoing ones after all of netfilter's hooks, incoming ones at their socket.

pub(in crate::source) mod packets;
mod processes;
mod sockets;
mod table;

use std::sync::Arc;

use socktrail_guess::{Error as LayoutError, Layout, Resolved, layout_for_hooks};
use socktrail_kprobes::{ControlGroup, Error as KprobesError, Fetch, HookPoint, Hooks, Installed, Rings, Target};

use self::table::FURTHER_FIELDS;
pub(in crate::source) use self::table::PROBES;
use super::kprobes::{
    Conversations, Decode, Feature, FeatureStatus, Opened, Probe, Probes, Unaccounted, Wanted, release,
};
use super::options::Options;
use super::{Error, MissingFeature, MissingForPrograms, proc};
use crate::model::event::{Execs, SourceCapabilities};

/// The first release with the hook of closed sockets.
const SINCE: (u32, u32) = (5, 9);

/// Loads the programs and attaches them to the control group that the options name, or to the topmost one.
///
/// # Errors
/// The kernel has no type information, control groups v2 or BPF, a permission is missing, or no program that shows the
/// requested data could be attached.
pub(super) fn open(options: &Options) -> Result<Opened, Error> {
    if !options.flows {
        let problem = "programs at a control group observe flows, not socket events".to_owned();
        return Err(Error::Option { name: "backend", problem });
    }
    if release() < SINCE {
        return Err(Error::NoPrograms(MissingForPrograms::Release));
    }
    let opened = open_with(options, layout()?.layout)?;
    // With one direction only, flows would lack half of their packets.
    let lacks_packets = |status: &FeatureStatus| status.probe.is_none() && status.feature.shows_flows();
    if opened.probes.statuses.iter().any(lacks_packets) {
        return Err(Error::NothingToSee(MissingFeature::all_of(opened.probes.statuses)));
    }
    Ok(opened)
}

/// The layout of the kernel's structures, from its type information.
pub(crate) fn layout() -> Result<Resolved, Error> {
    layout_for_hooks().map_err(|error| {
        let (path, cause) = match error {
            LayoutError::NoBtf { path, source } => (path, source.to_string()),
            LayoutError::BadBtf { path, source } => (path, source.to_string()),
            error => return error.into(),
        };
        Error::NoPrograms(MissingForPrograms::TypeInformation { path, cause })
    })
}

/// Like [`open`], with this layout, and even if nothing that is wanted can be seen.
pub(crate) fn open_with(options: &Options, layout: Layout) -> Result<Opened, Error> {
    if cfg!(target_pointer_width = "32") {
        return Err(Error::NoPrograms(MissingForPrograms::WordSize));
    }
    let tracefs = Arc::new(options.tracefs()?);
    let mut rings = Rings::per_cpu(&options.ring_options())?;
    let cgroup = match options.cgroup.clone().or_else(proc::topmost_group) {
        Some(path) => ControlGroup::open(&path)?,
        // Another mount would change the options of the host's own, such as `nsdelegate`.
        None if proc::host_has_control_groups() => {
            let problem = "control groups v2 are mounted on the host, but not where this process sees them: give a directory of them";
            return Err(Error::Option { name: "cgroup", problem: problem.to_owned() });
        }
        None => ControlGroup::mount_topmost()?,
    };
    if options.cgroup.is_none() && !proc::sees_all_control_groups() {
        tracing::warn!(
            "only this container's control group is observed, not the whole host: start socktrail in the host's cgroup namespace \
             (docker run --cgroupns host)"
        );
    }
    let mut hooks = Hooks::at(cgroup.clone(), &tracefs)?;
    rings.receive(hooks.outputs())?;
    let probes = install(&mut hooks, &mut rings, options.wanted(&layout));
    Ok(Opened { rings, probes, group: None, cgroup: Some(cgroup), layout, tracefs })
}

/// A probe whose samples are declared, and whether it is attached.
struct Declared {
    feature: Feature,
    probe: &'static Probe,
    installed: Result<(Installed, Box<dyn Decode>), KprobesError>,
    is_attached: bool,
}

impl Declared {
    /// Attaches it, if that has not been done.
    fn attach(&mut self, rings: &mut Rings) {
        if let (Ok((installed, _)), false) = (&self.installed, self.is_attached) {
            match rings.attach(installed, None) {
                Ok(()) => self.is_attached = true,
                Err(error) => self.installed = Err(error),
            }
        }
    }
}

/// Attaches all probes, and the programs that count packets.
fn install(hooks: &mut Hooks, rings: &mut Rings, wanted: Wanted<'_>) -> Probes {
    let all = PROBES.iter().filter(|(feature, _)| wanted.ipv6 || !feature.is_ipv6());
    let all = all.map(|(feature, probe)| {
        let installed = declare(&feature.to_string(), probe, hooks, wanted);
        Declared { feature: *feature, probe, installed, is_attached: false }
    });
    let mut declared: Vec<_> = all.collect();
    let mut probes = Probes::none();
    // A process is known before its sockets.
    for one in declared.iter_mut().filter(|one| one.feature.reports_processes()) {
        one.attach(rings);
    }
    probes.conversations = count(&mut declared, rings, wanted);
    for mut one in declared {
        one.attach(rings);
        probes.add(FeatureStatus::of(one.feature), one.probe, one.installed);
    }
    probes.capabilities = SourceCapabilities {
        programs: true,
        single_datagrams: true,
        execs: Execs::Seen,
        totals: probes.conversations.is_ok(),
        full_sockets_only: true,
        ..Default::default()
    };
    probes
}

/// The conditions of a probe: for each, the field and the values that it may have.
pub(in crate::source) fn conditions(probe: &Probe) -> Vec<(Fetch<'static>, &'static [i32])> {
    let condition = |(name, numbers): &(&'static str, &'static [i32])| {
        let mut fields = probe.fetches.iter().chain(FURTHER_FIELDS);
        fields.find(|fetch| fetch.name == *name).map(|fetch| (fetch.clone(), *numbers))
    };
    probe.conditions.iter().filter_map(condition).collect()
}

/// Declares the samples of a probe.
fn declare(
    name: &str,
    probe: &Probe,
    hooks: &mut Hooks,
    wanted: Wanted<'_>,
) -> Result<(Installed, Box<dyn Decode>), KprobesError> {
    let installed = match probe.target {
        Target::Hook(hook) => {
            let conditions = conditions(probe);
            // The kernel allows names of 15 characters.
            hooks.install(name.get(..15).unwrap_or(name), hook, probe.fetches, &conditions, &wanted)?
        }
        Target::Tracepoint { category, name } => hooks.tracepoint(category, name)?,
        Target::Kprobe { .. } | Target::Kretprobe { .. } => unreachable!("the table has none"),
    };
    let decoder = (probe.decoder)(installed.format())?;
    Ok((installed, decoder))
}

/// Counts packets in the kernel: attaches the probes that take part in that, all of them or none.
fn count(declared: &mut [Declared], rings: &mut Rings, wanted: Wanted<'_>) -> Result<Arc<Conversations>, Unaccounted> {
    let (rules, conversations) = wanted.rules(0, None)?;
    let places = declared.iter().map(|one| {
        let point = one.installed.as_ref().ok().and_then(|(installed, _)| installed.hook());
        (one.feature, one.probe, point.map(HookPoint::samples))
    });
    let conversations = Conversations::load(places, &wanted, &rules, conversations, rings.clock())?;
    conversations.connect(rings)?;
    let mut attached = Vec::new();
    for (index, _, program) in conversations.programs() {
        let Ok((installed, _)) = &declared[index].installed else { continue };
        if let Err(error) = rings.attach_with_program(installed, None, program) {
            for index in attached {
                let one: &mut Declared = &mut declared[index];
                one.is_attached = false;
                one.installed.iter().for_each(|(installed, _)| rings.detach(installed));
            }
            return Err(error.into());
        }
        declared[index].is_attached = true;
        attached.push(index);
    }
    Ok(Arc::new(conversations))
}
