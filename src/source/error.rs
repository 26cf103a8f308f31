//! Errors that keep a monitor from starting.

use std::fmt;
use std::path::PathBuf;

use super::kprobes::switches::DisabledSwitch;
use super::kprobes::{Feature, FeatureStatus, Refusal};
#[cfg(feature = "recording")]
use super::recording::RecordingError;

/// Why a monitor could not start. The message says what failed, why and, if there is one, the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of tracefs, a probe, or the perf rings.
    #[error(transparent)]
    Kprobes(#[from] socktrail_kprobes::Error),
    /// The layout of kernel structures could not be found.
    #[error(transparent)]
    Layout(#[from] socktrail_guess::Error),
    /// No probe that shows what was asked for could be installed. Holds all features without a probe.
    #[error("nothing could be seen on this kernel: {}", refusals(.0))]
    NothingToSee(Vec<MissingFeature>),
    /// Probes can be installed, but a switch of the kernel keeps them from firing.
    #[error("{0}; {remedy}", remedy = .0.remedy())]
    ProbesDisabled(DisabledSwitch),
    /// This kernel cannot run the programs that observe flows at a control group.
    #[error("flows cannot be observed by programs at a control group: {0}")]
    NoPrograms(MissingForPrograms),
    /// A thread could not be started.
    #[error("cannot start the {name} thread: {source}; raise the limit of processes (ulimit -u)")]
    Thread {
        /// The name of the thread.
        name: &'static str,
        /// The error.
        source: std::io::Error,
    },
    /// The `eventfd(2)` that signals available results could not be created.
    #[error("cannot create an eventfd: {0}; raise the limit of open files (ulimit -n)")]
    EventFd(std::io::Error),
    /// A recording could not be written.
    #[cfg(feature = "recording")]
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// A clock cannot be read.
    #[error("cannot read the clocks: {0}")]
    Clock(std::io::Error),
    /// An option has an invalid value.
    #[error("option {name}: {problem}")]
    Option {
        /// The name of the option.
        name: &'static str,
        /// What is wrong, and what is expected.
        problem: String,
    },
}

/// What a kernel lacks for programs that observe flows at a control group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MissingForPrograms {
    /// It is older than Linux 5.9.
    #[error("they need Linux 5.9 or newer")]
    Release,
    /// This is a build of 32 bits.
    #[error("they need a build and a kernel of 64 bits")]
    WordSize,
    /// It has no usable type information.
    #[error("they need the kernel's type information (CONFIG_DEBUG_INFO_BTF): {path}: {cause}")]
    TypeInformation {
        /// Where it should be.
        path: PathBuf,
        /// The system's answer, or what is wrong with it.
        cause: String,
    },
}

/// A feature without a probe. It displays as what cannot be seen, and why.
#[derive(Debug)]
#[non_exhaustive]
pub struct MissingFeature {
    /// The feature.
    pub feature: Feature,
    /// Why each of the probes that can serve it was not installed, the best probe first.
    pub refusals: Vec<Refusal>,
}

impl MissingFeature {
    /// One for each probe that could not be used, where several serve one feature at once; else the features without a probe.
    pub(crate) fn all_of(statuses: Vec<FeatureStatus>) -> Vec<Self> {
        let missing = statuses.into_iter().filter(|status| status.probe.is_none());
        missing.map(|FeatureStatus { feature, refusals, .. }| Self { feature, refusals }).collect()
    }
}

impl fmt::Display for MissingFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.feature.missing_without(), Refusal::list(&self.refusals))
    }
}

fn refusals(missing: &[MissingFeature]) -> String {
    let asked_for = missing.iter().filter(|one| one.feature.shows_flows() || one.feature.needed_by_actions().is_some());
    asked_for.map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
