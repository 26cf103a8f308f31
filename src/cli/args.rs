//! The command line. Names here are a contract.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use socktrail::config::Time;
use socktrail::filter::{Choice, Filter, Network};
use socktrail::monitor::{Options, Release};
use socktrail::output::Format;
use socktrail_guess::{SAVED_LAYOUT, Source};

use super::events::EventsArgs;
use super::sensors::{SensorsArgs, UnlockArgs};

/// Sees every TCP and UDP flow of this host and whose it is.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Says more on stderr; twice, all there is
    #[arg(long, short, global = true, action = ArgAction::Count, conflicts_with = "quiet", display_order = 900)]
    pub verbose: u8,

    /// Says nothing on stderr but errors
    #[arg(long, short, global = true, display_order = 901)]
    pub quiet: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Writes finished flows to stdout, one a line
    Flows(Box<FlowsArgs>),
    /// Writes what programs do with sockets, one call a line
    Events(Box<EventsArgs>),
    /// Writes the names that processes look up, as they do
    Names(NamesArgs),
    /// Keeps what the kernel says in a file, to be replayed elsewhere
    Record(RecordArgs),
    /// Writes the flows of a recording to stdout; needs no root
    Replay(ReplayArgs),
    /// Shows where this kernel's structures keep what is needed
    Layout(LayoutArgs),
    /// Shows what this host offers, what would be missing, and what to do about it
    Doctor(DoctorArgs),
    /// Ships documents to the outputs that a configuration names, until it is told to end
    Agent(AgentArgs),
    /// Writes the events of sensors that a file defines: sockets that open and close, one a line
    Sensors(Box<SensorsArgs>),
    /// Lets a locked event of a sensor be said again
    Unlock(UnlockArgs),
    /// Installs index templates and a lifecycle policy in Elasticsearch
    Setup(SetupArgs),
    /// Writes manual pages and completions for shells into a folder; for packages
    #[command(hide = true)]
    Generate(GenerateArgs),
    /// Checks a configuration, or shows what it comes down to
    Config(ConfigArgs),
    /// Runs getent for another socktrail process (internal)
    #[command(hide = true, name = super::users::ASK_GETENT)]
    AskGetent,
}

/// `socktrail flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// What a line is: an ECS document, or columns for people [default: text on a terminal, else ecs]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,

    /// Stops after this time; flows that are alive then are written too, with flow.final false
    #[arg(long, value_name = "TIME")]
    pub duration: Option<Time>,

    /// Stops after so many flows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// A flow without traffic for so long has ended
    #[arg(long, value_name = "TIME", default_value_t = defaults().flow_inactive_timeout.into())]
    pub flow_inactive_timeout: Time,

    /// How long packets are still counted in after a socket was closed
    #[arg(long, value_name = "TIME", default_value_t = defaults().flow_termination_timeout.into())]
    pub flow_termination_timeout: Time,

    /// How often a flow with traffic is written while it lives, with flow.final false [default: never]
    #[arg(long, value_name = "TIME")]
    pub flow_report_interval: Option<Time>,

    /// A socket without traffic for so long is forgotten
    #[arg(long, value_name = "TIME", default_value_t = defaults().socket_inactive_timeout.into())]
    pub socket_inactive_timeout: Time,

    /// The mount point of tracefs, or the tracing directory of debugfs [default: found, else mounted]
    #[arg(long, value_name = "PATH")]
    pub tracefs_path: Option<PathBuf>,

    /// Each CPU's ring has 2^N pages
    #[arg(long, value_name = "N", default_value_t = defaults().ring_size_exponent)]
    pub ring_size_exponent: u8,

    /// Whether IPv6 is watched [default: where the kernel has it]
    #[arg(long, value_name = "BOOL")]
    pub enable_ipv6: Option<bool>,

    /// How many samples may wait to be taken in
    #[arg(long, value_name = "N", default_value_t = defaults().perf_queue_size)]
    pub perf_queue_size: usize,

    /// How many reports of losses may wait; beyond, they are joined
    #[arg(long, value_name = "N", default_value_t = defaults().lost_queue_size)]
    pub lost_queue_size: usize,

    /// Live flows at most; beyond, those closest to their end are written early
    #[arg(long, value_name = "N", default_value_t = defaults().max_flows)]
    pub max_flows: usize,

    /// Known sockets at most
    #[arg(long, value_name = "N", default_value_t = defaults().max_sockets)]
    pub max_sockets: usize,

    /// Known processes at most
    #[arg(long, value_name = "N", default_value_t = defaults().max_processes)]
    pub max_processes: usize,

    /// Writes a line with what was counted to stderr, at the end and on SIGUSR1
    #[arg(long)]
    pub stats: bool,

    /// How names are listened to.
    #[command(flatten)]
    pub dns: DnsArgs,

    /// What is left out.
    #[command(flatten)]
    pub filter: FilterArgs,

    /// What to do without.
    #[command(flatten)]
    pub without: WithoutArgs,

    /// Where the layout comes from.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// `socktrail names`.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// What a line is: JSON, or text for people [default: text on a terminal, else ecs]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,

    /// Stops after this time [default: at Ctrl-C]
    #[arg(long, value_name = "TIME")]
    pub duration: Option<Time>,

    /// The mount point of tracefs, or the tracing directory of debugfs [default: found, else mounted]
    #[arg(long, value_name = "PATH")]
    pub tracefs_path: Option<PathBuf>,

    /// How names are listened to.
    #[command(flatten)]
    pub dns: DnsArgs,

    /// Where the layout comes from.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// How names are listened to.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Names")]
pub struct DnsArgs {
    /// Whether names that processes look up are listened to
    #[arg(long, value_name = "BOOL", default_value_t = defaults().dns.enabled, action = ArgAction::Set)]
    pub dns_enabled: bool,

    /// Only on this interface [default: any]
    #[arg(long, value_name = "NAME")]
    pub dns_interface: Option<String>,

    /// Bytes read of each packet
    #[arg(long, value_name = "BYTES", default_value_t = defaults().dns.snaplen)]
    pub dns_snaplen: u32,

    /// A port that servers of names listen on; may be given several times
    #[arg(long, value_name = "PORT", default_values_t = defaults().dns.ports)]
    pub dns_port: Vec<u16>,
}

impl DnsArgs {
    /// Puts them into the options.
    pub fn apply(&self, options: &mut socktrail_dns::Options) {
        options.enabled = self.dns_enabled;
        options.interface = self.dns_interface.clone().filter(|name| name != "any");
        options.snaplen = self.dns_snaplen;
        options.ports = self.dns_port.clone();
    }
}

/// `socktrail record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// The file; one that exists is overwritten
    pub file: PathBuf,

    /// Stops after this time [default: at Ctrl-C]
    #[arg(long, value_name = "TIME")]
    pub duration: Option<Time>,

    /// The mount point of tracefs, or the tracing directory of debugfs [default: found, else mounted]
    #[arg(long, value_name = "PATH")]
    pub tracefs_path: Option<PathBuf>,

    /// Each CPU's ring has 2^N pages
    #[arg(long, value_name = "N", default_value_t = defaults().ring_size_exponent)]
    pub ring_size_exponent: u8,

    /// How names are listened to.
    #[command(flatten)]
    pub dns: DnsArgs,

    /// What to do without.
    #[command(flatten)]
    pub without: WithoutArgs,

    /// Where the layout comes from.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// `socktrail replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The recording
    pub file: PathBuf,

    /// What a line is: an ECS document, or columns for people [default: text on a terminal, else ecs]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,

    /// A flow without traffic for so long has ended
    #[arg(long, value_name = "TIME", default_value_t = defaults().flow_inactive_timeout.into())]
    pub flow_inactive_timeout: Time,

    /// How long packets are still counted in after a socket was closed
    #[arg(long, value_name = "TIME", default_value_t = defaults().flow_termination_timeout.into())]
    pub flow_termination_timeout: Time,

    /// How often a flow with traffic is written while it lives, with flow.final false [default: never]
    #[arg(long, value_name = "TIME")]
    pub flow_report_interval: Option<Time>,

    /// Writes a line with what was counted to stderr at the end
    #[arg(long)]
    pub stats: bool,

    /// What is left out.
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// What is left out. Each may be given several times.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What is left out")]
pub struct FilterArgs {
    /// Leaves out what the host says to itself
    #[arg(long)]
    pub exclude_loopback: bool,

    /// Only flows with this port at either end
    #[arg(long, value_name = "PORT")]
    pub only_port: Vec<u16>,

    /// No flows with this port at either end
    #[arg(long, value_name = "PORT")]
    pub exclude_port: Vec<u16>,

    /// Only flows with a remote in this network, as in 192.0.2.0/24
    #[arg(long, value_name = "NETWORK")]
    pub only_network: Vec<Network>,

    /// No flows with a remote in this network
    #[arg(long, value_name = "NETWORK")]
    pub exclude_network: Vec<Network>,

    /// Only flows of processes of this user id
    #[arg(long, value_name = "UID")]
    pub only_uid: Vec<u32>,

    /// No flows of processes of this user id
    #[arg(long, value_name = "UID")]
    pub exclude_uid: Vec<u32>,

    /// Only flows of this process
    #[arg(long, value_name = "PID")]
    pub only_pid: Vec<u32>,

    /// No flows of this process
    #[arg(long, value_name = "PID")]
    pub exclude_pid: Vec<u32>,
}

impl From<FilterArgs> for Filter {
    fn from(args: FilterArgs) -> Self {
        Self {
            exclude_loopback: args.exclude_loopback,
            ports: Choice { only: args.only_port, exclude: args.exclude_port },
            networks: Choice { only: args.only_network, exclude: args.exclude_network },
            uids: Choice { only: args.only_uid, exclude: args.exclude_uid },
            pids: Choice { only: args.only_pid, exclude: args.exclude_pid },
        }
    }
}

/// Where the layout comes from.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// How the kernel's layout is found: auto, guess, btf, btf:PATH or file:PATH
    #[arg(long, value_name = "SOURCE", default_value_t)]
    pub source: Source,

    /// The time that one guess may take
    #[arg(long, value_name = "TIME", default_value_t = defaults().guess_timeout.into())]
    pub guess_timeout: Time,
}

/// What to do without although the kernel has it.
#[derive(Debug, Clone, Default, Args)]
pub struct WithoutArgs {
    /// A kernel function to do without, as if the kernel did not have it: to see what would be lost
    #[arg(long, value_name = "FUNCTION")]
    pub mask: Vec<String>,

    /// Do without what a kernel of this release does not have, such as 4.18: to see what would be lost there
    #[arg(long, value_name = "RELEASE")]
    pub as_of: Option<Release>,
}

impl WithoutArgs {
    /// Puts them into a monitor's options, whose source is set already.
    pub fn apply(&self, options: &mut Options) {
        options.mask.clone_from(&self.mask);
        if let Some(release) = self.as_of {
            options.behave_as_of(release);
        }
    }
}

/// `socktrail layout`.
#[derive(Debug, Args)]
pub struct LayoutArgs {
    /// Where the layout comes from.
    #[command(flatten)]
    pub source: SourceArgs,

    /// Writes JSON
    #[arg(long)]
    pub json: bool,

    /// Writes the layout to a file, for --source file:PATH; where no path is given, to where --source auto looks last
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = SAVED_LAYOUT)]
    pub save: Option<PathBuf>,

    /// Compares two saved layouts instead; status 1 when they differ
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["save", "source"])]
    pub diff: Option<Vec<PathBuf>>,
}

/// `socktrail doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Writes JSON
    #[arg(long)]
    pub json: bool,

    /// Tries out socket events, too
    #[arg(long)]
    pub events: bool,

    /// The mount point of tracefs, or the tracing directory of debugfs [default: found, else mounted]
    #[arg(long, value_name = "PATH")]
    pub tracefs_path: Option<PathBuf>,

    /// What to do without.
    #[command(flatten)]
    pub without: WithoutArgs,

    /// Where the layout comes from.
    #[command(flatten)]
    pub source: SourceArgs,
}

/// `socktrail agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The configuration, in YAML (.yml, .yaml) or TOML (.toml); read again on SIGHUP
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,

    /// Sets a key over the file and the environment; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Writes a line with what was counted to stderr at the end; SIGUSR1 asks for it at any time
    #[arg(long)]
    pub stats: bool,

    /// Ships the flows of a recording, as new ones, instead of the kernel's; needs no root
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,

    /// Flows a second of a recording, at most [default: as many as outputs take]
    #[arg(long, value_name = "N", requires = "replay", value_parser = clap::value_parser!(u32).range(1..))]
    pub replay_rate: Option<u32>,

    /// How often to play a recording
    #[arg(long, value_name = "N", requires = "replay", default_value_t = 1)]
    pub replay_times: u64,
}

/// `socktrail setup`.
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// The configuration, which names the hosts
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,

    /// Sets a key over the file and the environment; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `socktrail generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The folder; it is made where it is missing
    pub folder: PathBuf,
}

/// `socktrail config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Which of both.
    #[command(subcommand)]
    pub command: ConfigCommand,
}

/// What to do with a configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Says whether a file makes sense, together with the environment; status 2 when it does not
    Check(ConfigCheckArgs),
    /// Shows every key with its value and where that comes from; secrets are left out
    Show(ConfigShowArgs),
}

/// `socktrail config check`.
#[derive(Debug, Args)]
pub struct ConfigCheckArgs {
    /// The file, in YAML (.yml, .yaml) or TOML (.toml)
    pub file: PathBuf,

    /// Sets a key over the file and the environment; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `socktrail config show`.
#[derive(Debug, Args)]
pub struct ConfigShowArgs {
    /// The file, in YAML (.yml, .yaml) or TOML (.toml) [default: none]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Sets a key over the file and the environment; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// One ECS document in JSON
    Ecs,
    /// Aligned columns
    Text,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Ecs => Self::Ecs,
            FormatArg::Text => Self::Text,
        }
    }
}

/// What is done unless the command line says otherwise.
pub fn defaults() -> Options {
    Options::default()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
