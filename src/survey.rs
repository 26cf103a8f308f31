//! Finds out which features a kernel supports, and which probe would serve each of them.

mod symbols;

use std::sync::Arc;

use serde::Serialize;
use socktrail_guess::Resolved;
use socktrail_kprobes::Group;

use crate::model::backend::Backend;
use crate::model::filter::Filter;
use crate::monitor::Options;
use crate::source::Error;
use crate::source::cgroup;
use crate::source::kprobes::{Feature, FeatureStatus, GROUP, Probe, Probes, SelfTest, all_features};
use crate::source::options;
use symbols::Symbols;

/// What may be missed if a probe may be on another function of the same name.
const AMBIGUOUS: &str = "perhaps all of it: several functions have this name, and only one of them is probed";

/// The support for one feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Which feature.
    pub feature: Feature,
    /// How well it is served.
    pub state: CapabilityState,
    /// The kernel function or tracepoint that serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<&'static str>,
    /// What is not seen: without a probe, or with an inferior one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// Whether the self-test has hit its probe; `false` also if none of its traffic reaches this probe.
    pub hit: bool,
    /// Why the better probes do not serve it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// How well a feature is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CapabilityState {
    /// By the best probe.
    Ok,
    /// By an inferior probe.
    Degraded,
    /// Not at all.
    Lost,
}

/// The maximum number of probes at once, for flows and socket events together. Each opens a perf event on each CPU.
pub fn max_probes() -> usize {
    all_features().count()
}

/// The features that a kernel supports.
#[derive(Debug)]
pub struct Survey {
    /// The support for each feature.
    pub capabilities: Vec<Capability>,
    /// The result of the self-test.
    pub self_test: SelfTest,
    /// Why packets are sampled ([`Options::accounting`]); `None` if the kernel counts them.
    pub sampled_because: Option<String>,
    /// The layout of the kernel's structures.
    pub layout: Resolved,
}

impl Survey {
    /// Installs every probe, enables it for this thread only, tests it by traffic over loopback, and removes it again. With
    /// [`Backend::Cgroup`], or on a kernel without kprobes, attaches the programs at a control group for a moment.
    ///
    /// # Errors
    /// As [`Monitor::start`](crate::monitor::Monitor::start), except [`Error::NothingToSee`].
    pub fn take(options: &Options) -> Result<Self, Error> {
        let options = options::Options { flows: true, filter: Filter::default(), ..options.into() };
        if options.backend == Backend::Cgroup {
            return Self::at_hooks(&options);
        }
        let tracefs = Arc::new(options.tracefs()?);
        let mut group = match Group::create(&tracefs, GROUP) {
            Err(socktrail_kprobes::Error::NoKprobes { .. }) if options.backend == Backend::Auto => {
                return Self::at_hooks(&options);
            }
            created => created?,
        };
        let layout = options.layout(&tracefs)?;
        let probes = Probes::install(&mut group, None, options.wanted(&layout.layout));
        let symbols = Symbols::read();
        let capabilities = probes.statuses.iter().map(|status| Capability::of(status, &symbols)).collect();
        let sampled_because = probes.sampled_because().map(ToString::to_string);
        Ok(Self { capabilities, self_test: probes.self_test, sampled_because, layout })
    }

    fn at_hooks(options: &options::Options) -> Result<Self, Error> {
        let layout = cgroup::layout()?;
        let probes = cgroup::open_with(options, layout.layout.clone())?.probes;
        let symbols = Symbols::default();
        let capabilities = probes.statuses.iter().map(|status| Capability::of(status, &symbols)).collect();
        let sampled_because = probes.sampled_because().map(ToString::to_string);
        let untested = Some("the kernel itself tells whether a program is attached".to_owned());
        Ok(Self { capabilities, self_test: SelfTest { untested, ..probes.self_test }, sampled_because, layout })
    }

    /// The number of probes that the self-test has hit.
    pub fn hits(&self) -> usize {
        self.capabilities.iter().filter(|one| one.hit).count()
    }

    /// Whether any flow could be seen.
    pub fn shows_flows(&self) -> bool {
        self.capabilities.iter().any(|one| one.state != CapabilityState::Lost && one.feature.shows_flows())
    }
}

impl Capability {
    fn of(served: &FeatureStatus, symbols: &Symbols) -> Self {
        let (state, missing) = match (served.probe, served.weakness()) {
            (None, _) => (CapabilityState::Lost, Some(served.feature.missing_without().to_owned())),
            (Some(_), Some(weaker)) => (CapabilityState::Degraded, Some(weaker)),
            (Some(_), None) => (CapabilityState::Ok, None),
        };
        let function = served.probe.map(Probe::function);
        let FeatureStatus { feature, hit, .. } = *served;
        let mut one = Self { feature, state, function, missing, hit, reason: served.reasons() };
        if let Some(function) = function.filter(|function| symbols.count(function) > 1) {
            one.state = CapabilityState::Degraded;
            one.missing = Some(AMBIGUOUS.to_owned());
            one.add(format!("the kernel has {} functions called {function}", symbols.count(function)));
        }
        for function in alternatives(served.feature).filter(|_| served.probe.is_none()) {
            let variants = symbols.variants_of(function);
            if !variants.is_empty() {
                one.add(format!(
                    "the compiler has replaced {function} by {}, with other arguments",
                    variants.join(", ")
                ));
            }
        }
        one
    }

    fn add(&mut self, reason: String) {
        if !self.reason.is_empty() {
            self.reason.push_str("; ");
        }
        self.reason.push_str(&reason);
    }
}

/// The functions that can serve a feature.
fn alternatives(feature: Feature) -> impl Iterator<Item = &'static str> {
    let of_feature = all_features().filter(move |(one, _)| *one == feature);
    of_feature.flat_map(|(_, probes)| probes.iter().map(Probe::function))
}
