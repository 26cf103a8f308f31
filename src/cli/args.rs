//! The command line, except the flags that set keys of the configuration, which `flags.rs` adds. Scripts depend on these
//! names: they do not change.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use socktrail::config::Time;
use socktrail::monitor::{Options, Release};
use socktrail::output::Format;
use socktrail_guess::SAVED_LAYOUT;

use super::events::EventsArgs;
use super::sensors::{SensorsArgs, UnlockArgs};
use crate::receive::Limits;

/// Shows every TCP and UDP flow of this host, with the process and user it belongs to.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Log more to stderr; give it twice to log everything
    #[arg(long, short, global = true, action = ArgAction::Count, conflicts_with = "quiet", display_order = 900)]
    pub verbose: u8,

    /// Print only errors to stderr
    #[arg(long, short, global = true, display_order = 901)]
    pub quiet: bool,

    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print flows as they end, one per line; when it stops, also those that have not ended
    Flows(Box<FlowsArgs>),
    /// Print socket calls (bind, connect, …) of all processes, one per line
    Events(Box<EventsArgs>),
    /// Print the DNS names that processes look up, one per line
    Names(NamesArgs),
    /// Record raw samples from the kernel to a file, for `socktrail replay`
    Record(RecordArgs),
    /// Print the flows of a recording; needs no root
    Replay(ReplayArgs),
    /// Show the layout of this kernel: offsets in structures, positions of function arguments
    Layout(LayoutArgs),
    /// Check this host: what works, what would be missing, and how to fix it
    Doctor(DoctorArgs),
    /// Run as a service, and send documents to the outputs of a configuration
    Agent(AgentArgs),
    /// Print events of the sensors in a file (sockets that open and close), one per line
    Sensors(Box<SensorsArgs>),
    /// Unlock a locked event of a sensor, so that it is reported again
    Unlock(UnlockArgs),
    /// Install index templates and a lifecycle policy in Elasticsearch or OpenSearch
    Setup(SetupArgs),
    /// Write manual pages and shell completions to a directory; for packages
    #[command(hide = true)]
    Generate(GenerateArgs),
    /// Check or show a configuration
    Config(ConfigArgs),
    /// Run getent for another socktrail process (internal)
    #[command(hide = true, name = super::users::ASK_GETENT)]
    AskGetent,
}

/// `socktrail flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// The format of the output [default: text on a terminal, otherwise ecs]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,

    /// When to stop.
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Features to ignore.
    #[command(flatten)]
    pub without: WithoutArgs,
}

/// `socktrail names`.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// The format of the output: JSON (ecs), or columns (text) [default: text on a terminal, otherwise ecs]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,

    /// Stop after this time [default: run until Ctrl-C]
    #[arg(long, value_name = "TIME")]
    pub duration: Option<Time>,
}

/// `socktrail record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// The file to write; an existing file is overwritten
    pub file: PathBuf,

    /// Stop after this time [default: run until Ctrl-C]
    #[arg(long, value_name = "TIME")]
    pub duration: Option<Time>,

    /// Features to ignore.
    #[command(flatten)]
    pub without: WithoutArgs,
}

/// `socktrail replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The recording
    pub file: PathBuf,

    /// The format of the output [default: text on a terminal, otherwise ecs]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,

    /// Print statistics to stderr at the end, as a line of JSON
    #[arg(long)]
    pub stats: bool,
}

/// When a command that prints results stops, and whether it prints statistics.
#[derive(Debug, Clone, Args)]
pub struct LimitArgs {
    /// Stop after this time [default: run until Ctrl-C]
    #[arg(long, value_name = "TIME")]
    pub duration: Option<Time>,

    /// Stop after printing this number of lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Print statistics to stderr, as a line of JSON: at the end, and on SIGUSR1
    #[arg(long)]
    pub stats: bool,
}

impl From<&LimitArgs> for Limits {
    fn from(args: &LimitArgs) -> Self {
        Self { count: args.count, duration: args.duration.map(Duration::from) }
    }
}

/// Features of the kernel to ignore.
#[derive(Debug, Clone, Default, Args)]
pub struct WithoutArgs {
    /// Ignore what kernels of this release (such as 4.18) do not have, to see what would be missing on such a kernel
    #[arg(long, value_name = "RELEASE")]
    pub as_of: Option<Release>,
}

impl WithoutArgs {
    /// Applies them to the options of a monitor. Call it after all other options are set.
    pub fn apply(&self, options: &mut Options) {
        if let Some(release) = self.as_of {
            options.behave_as_of(release);
        }
    }
}

/// `socktrail layout`.
#[derive(Debug, Args)]
pub struct LayoutArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Save the layout to a file, for --source file:PATH. Without PATH, save it where --source auto falls back on it
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = SAVED_LAYOUT)]
    pub save: Option<PathBuf>,

    /// Compare two saved layouts instead; exit with status 1 if they differ
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["save", "source"])]
    pub diff: Option<Vec<PathBuf>>,
}

/// `socktrail doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Test the probes for socket events, too
    #[arg(long)]
    pub events: bool,

    /// Features to ignore.
    #[command(flatten)]
    pub without: WithoutArgs,
}

/// `socktrail agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The configuration file, in YAML (.yml, .yaml) or TOML (.toml); SIGHUP reloads it
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,

    /// Set a key of the configuration. Overrides the file and the environment; can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Print statistics to stderr at the end, as a line of JSON; SIGUSR1 prints them at any time
    #[arg(long)]
    pub stats: bool,

    /// Send the flows of a recording instead of this host's; needs no root
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,

    /// The maximum number of flows per second that are replayed [default: as fast as the outputs accept them]
    #[arg(long, value_name = "N", requires = "replay", value_parser = clap::value_parser!(u32).range(1..))]
    pub replay_rate: Option<u32>,

    /// How many times to replay the recording
    #[arg(long, value_name = "N", requires = "replay", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub replay_times: u64,
}

/// `socktrail setup`.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// The configuration file, whose output.elasticsearch section is used
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,

    /// Set a key of the configuration. Overrides the file and the environment; can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `socktrail generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The directory; it is created if it is missing
    pub folder: PathBuf,
}

/// `socktrail config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The subcommand.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// The subcommands of `socktrail config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file, together with the environment; exit with status 2 if there are mistakes
    Check(ConfigCheckArgs),
    /// Show every key with its value and where it is set; secrets are hidden
    Show(ConfigShowArgs),
}

/// `socktrail config check`.
#[derive(Debug, Args)]
pub struct ConfigCheckArgs {
    /// The configuration file, in YAML (.yml, .yaml) or TOML (.toml)
    pub file: PathBuf,

    /// Set a key of the configuration. Overrides the file and the environment; can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `socktrail config show`.
#[derive(Debug, Args)]
pub struct ConfigShowArgs {
    /// The configuration file, in YAML (.yml, .yaml) or TOML (.toml) [default: none]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Set a key of the configuration. Overrides the file and the environment; can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// The format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// ECS documents, one JSON object per line
    Ecs,
    /// Columns for people
    Text,
}

impl FormatArg {
    /// The given format, or else the default: text on a terminal.
    pub fn or_default(given: Option<Self>, stdout: &impl IsTerminal) -> Format {
        match given {
            Some(Self::Ecs) => Format::Ecs,
            Some(Self::Text) => Format::Text,
            None if stdout.is_terminal() => Format::Text,
            None => Format::Ecs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::command;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_recording_is_replayed_at_least_once() {
        let parses = |times: &str| {
            let line = ["socktrail", "agent", "--config", "file", "--replay", "recording", "--replay-times", times];
            command().try_get_matches_from(line).is_ok()
        };
        assert!(parses("1") && !parses("0"));
    }
}
