//! The arguments of `socktrail sensors` and `socktrail unlock`.

use std::path::PathBuf;

use clap::Args;
use socktrail::control::CONTROL_PATH;

use super::super::args::{LimitArgs, WithoutArgs};

/// `socktrail sensors`.
#[derive(Debug, Args)]
pub struct SensorsArgs {
    /// The file with the sensors, in YAML
    pub file: PathBuf,

    /// Run only sensors of this profile, and sensors without a profile; can be given several times [default: all sensors]
    #[arg(long, value_name = "ID")]
    pub profile: Vec<String>,

    /// When to stop.
    #[command(flatten)]
    pub limits: LimitArgs,

    /// The control socket for `socktrail unlock`; it is created if a sensor locks events
    #[arg(long, value_name = "PATH", default_value = CONTROL_PATH)]
    pub control: PathBuf,

    /// Features to ignore.
    #[command(flatten)]
    pub without: WithoutArgs,
}

/// `socktrail unlock`.
#[derive(Debug, Args)]
pub struct UnlockArgs {
    /// The id of an event, or a pattern that matches several, such as 'web|*'
    pub eid: String,

    /// The control socket of the running `socktrail sensors` or `socktrail agent`
    #[arg(long, value_name = "PATH", default_value = CONTROL_PATH)]
    pub control: PathBuf,
}
