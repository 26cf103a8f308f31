//! What a kernel offers: which feature would be served by which probe, without watching anything.

mod symbols;

use std::sync::Arc;

use serde::Serialize;
use socktrail_guess::Resolved;
use socktrail_kprobes::Group;

use crate::error::Error;
use crate::monitor::{GROUP, Options, layout, tracefs};
use crate::probes::{Feature, Probe, Probes, SelfTest, Served, Wanted, every};
use crate::proc;
use symbols::Symbols;

/// What it means when a probe may sit on another function than the one that is meant.
const AMBIGUOUS: &str = "perhaps all of it: several functions have this name, and only one of them is probed";

/// How one feature would be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Which feature.
    pub feature: Feature,
    /// Well, less well, or not at all.
    pub state: CapabilityState,
    /// The kernel function or tracepoint that serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<&'static str>,
    /// What is lost without it, or worse with a substitute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<&'static str>,
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
    /// As well as can be.
    Ok,
    /// By a substitute that misses something.
    Degraded,
    /// Not at all.
    Lost,
}

/// What a kernel offers.
#[derive(Debug)]
pub struct Survey {
    /// Every feature.
    pub capabilities: Vec<Capability>,
    /// What came of the self-test.
    pub self_test: SelfTest,
    /// Where its structures keep what is read.
    pub layout: Resolved,
}

impl Survey {
    /// Installs every probe, switches it on for this thread alone, tests it by traffic of its own over loopback, and removes it
    /// again.
    ///
    /// # Errors
    /// As [`Monitor::start`](crate::monitor::Monitor::start), except that it is no error when there is nothing to see.
    pub fn take(options: &Options) -> Result<Self, Error> {
        let tracefs = Arc::new(tracefs(options)?);
        let mut group = Group::create(&tracefs, GROUP)?;
        let ipv6 = options.enable_ipv6.unwrap_or_else(proc::has_ipv6);
        let layout = layout(options, &tracefs, ipv6)?;
        let wanted = Wanted {
            layout: &layout.layout,
            ipv6,
            flows: true,
            socket_events: options.socket_events,
            mask: &options.mask,
            loopback: true,
        };
        let probes = Probes::install(&mut group, None, wanted);
        let symbols = Symbols::read();
        let capabilities = probes.served.iter().map(|served| Capability::of(served, &symbols)).collect();
        Ok(Self { capabilities, self_test: probes.self_test, layout })
    }

    /// How many probes the self-test has hit.
    pub fn hits(&self) -> usize {
        self.capabilities.iter().filter(|one| one.hit).count()
    }

    /// Whether any flow could be seen.
    pub fn shows_flows(&self) -> bool {
        self.capabilities.iter().any(|one| one.state != CapabilityState::Lost && one.feature.shows_flows())
    }
}

impl Capability {
    fn of(served: &Served, symbols: &Symbols) -> Self {
        let (state, missing) = match (served.by, served.weaker()) {
            (None, _) => (CapabilityState::Lost, Some(served.feature.loss())),
            (Some(_), Some(weaker)) => (CapabilityState::Degraded, Some(weaker)),
            (Some(_), None) => (CapabilityState::Ok, None),
        };
        let function = served.by.map(Probe::function);
        let Served { feature, hit, .. } = *served;
        let mut one = Self { feature, state, function, missing, hit, reason: served.reasons() };
        if let Some(function) = function.filter(|function| symbols.of(function) > 1) {
            one.state = CapabilityState::Degraded;
            one.missing = Some(AMBIGUOUS);
            one.add(format!("the kernel has {} functions called {function}", symbols.of(function)));
        }
        for masked_or_missing in alternatives(served.feature).filter(|_| served.by.is_none()) {
            let made = symbols.made_of(masked_or_missing);
            if !made.is_empty() {
                one.add(format!("the compiler made {} of {masked_or_missing}, with other arguments", made.join(", ")));
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
    let of_feature = every().filter(move |(one, _)| *one == feature);
    of_feature.flat_map(|(_, probes)| probes.iter().map(Probe::function))
}
