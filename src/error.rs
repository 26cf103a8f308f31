//! What keeps a monitor from starting.

use crate::probes::Served;
use crate::recording::RecordingError;
use crate::switches::Silenced;

/// Why a monitor could not start. The message names the thing, the cause and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Tracefs, a probe, or the perf rings.
    #[error(transparent)]
    Kprobes(#[from] socktrail_kprobes::Error),
    /// Where kernel structures keep their fields could not be found out.
    #[error(transparent)]
    Layout(#[from] socktrail_guess::Error),
    /// Not one probe that shows what is asked for could be installed.
    #[error("nothing could be seen on this kernel: {}", refusals(.0))]
    NothingToSee(Vec<Served>),
    /// Probes can be installed, but a switch of the kernel keeps them from firing.
    #[error("{0}; {remedy}", remedy = .0.remedy())]
    Silenced(Silenced),
    /// A thread could not be started.
    #[error("cannot start the {name} thread: {source}; raise the limit of processes (ulimit -u)")]
    Thread {
        /// Which.
        name: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A recording could not be written.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// A clock cannot be read.
    #[error("cannot read the clocks: {0}")]
    Clock(nix::errno::Errno),
    /// An option has a value that makes no sense.
    #[error("option {name}: {problem}")]
    Option {
        /// Which.
        name: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

fn refusals(served: &[Served]) -> String {
    served
        .iter()
        .filter(|served| served.feature.shows_flows() || served.feature.serves().is_some())
        .map(|served| format!("{}: {}", served.feature.loss(), served.reasons()))
        .collect::<Vec<_>>()
        .join("; ")
}
