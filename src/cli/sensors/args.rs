//! The arguments of `socktrail sensors` and `socktrail unlock`.

use std::path::PathBuf;

use clap::Args;
use socktrail::config::Time;
use socktrail::control::CONTROL_PATH;
use socktrail::monitor::Options;
use socktrail::socket_event::Actions;

use super::super::args::{SourceArgs, WithoutArgs};

/// `socktrail sensors`.
#[derive(Debug, Args)]
pub struct SensorsArgs {
    /// The sensors, in YAML
    pub file: PathBuf,

    /// Only sensors of this profile, and those that name none; may be given several times [default: all sensors]
    #[arg(long, value_name = "ID")]
    pub profile: Vec<String>,

    /// Stops after this time [default: at Ctrl-C]
    #[arg(long, value_name = "TIME")]
    pub duration: Option<Time>,

    /// Stops after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Where locked events are unlocked; made if a sensor locks
    #[arg(long, value_name = "PATH", default_value = CONTROL_PATH)]
    pub control: PathBuf,

    /// The mount point of tracefs, or the tracing directory of debugfs [default: found, else mounted]
    #[arg(long, value_name = "PATH")]
    pub tracefs_path: Option<PathBuf>,

    /// Each CPU's ring has 2^N pages
    #[arg(long, value_name = "N", default_value_t = Options::default().ring_size_exponent)]
    pub ring_size_exponent: u8,

    /// Known sockets at most
    #[arg(long, value_name = "N", default_value_t = Options::default().max_sockets)]
    pub max_sockets: usize,

    /// Writes a line with what was counted to stderr, at the end and on SIGUSR1
    #[arg(long)]
    pub stats: bool,

    /// What to do without.
    #[command(flatten)]
    pub without: WithoutArgs,

    /// Where the layout comes from.
    #[command(flatten)]
    pub source: SourceArgs,
}

impl SensorsArgs {
    /// What sensors need of a monitor, and no more.
    pub fn options(&self) -> Options {
        let mut options = Options::default();
        options.flows = false;
        options.dns.enabled = false;
        options.socket_events = Actions::SENSORS;
        options.tracefs_path = self.tracefs_path.clone();
        options.source = self.source.source.clone();
        options.guess_timeout = self.source.guess_timeout.into();
        options.ring_size_exponent = self.ring_size_exponent;
        options.max_sockets = self.max_sockets;
        self.without.apply(&mut options);
        options
    }
}

/// `socktrail unlock`.
#[derive(Debug, Args)]
pub struct UnlockArgs {
    /// The event's id, or a pattern for several, as in 'web|*'
    pub eid: String,

    /// The control socket of the `socktrail sensors` or `socktrail agent` that is meant
    #[arg(long, value_name = "PATH", default_value = CONTROL_PATH)]
    pub control: PathBuf,
}
