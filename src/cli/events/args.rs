//! `socktrail events`: its arguments.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use socktrail::config::Time;
use socktrail::socket_event::Actions;
use socktrail::socket_event::condition::Condition;

use super::super::args::{SourceArgs, WithoutArgs, defaults};
use super::write::Form;

/// `socktrail events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only these, separated by commas [default: all]
    #[arg(long, value_name = "ACTIONS", value_enum, value_delimiter = ',')]
    pub only: Vec<ActionArg>,

    /// Only events that fulfil this, as in 'remote.port == 443 && process.name in ["curl", "wget"]'
    #[arg(long = "where", value_name = "EXPR")]
    pub condition: Option<Condition>,

    /// What a line is [default: text on a terminal, else ecs]
    #[arg(long, value_enum)]
    pub format: Option<EventFormat>,

    /// Which of Tracee's forms
    #[arg(long, value_name = "VERSION", value_enum, default_value_t = TraceeVersion::Current)]
    pub tracee_version: TraceeVersion,

    /// Stops after this time [default: at Ctrl-C]
    #[arg(long, value_name = "TIME")]
    pub duration: Option<Time>,

    /// Stops after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// The mount point of tracefs, or the tracing directory of debugfs [default: found, else mounted]
    #[arg(long, value_name = "PATH")]
    pub tracefs_path: Option<PathBuf>,

    /// Each CPU's ring has 2^N pages
    #[arg(long, value_name = "N", default_value_t = defaults().ring_size_exponent)]
    pub ring_size_exponent: u8,

    /// Known sockets at most
    #[arg(long, value_name = "N", default_value_t = defaults().max_sockets)]
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

/// What is done to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActionArg {
    /// socket(2), socketpair(2)
    Create,
    /// bind(2)
    Bind,
    /// listen(2)
    Listen,
    /// accept(2)
    Accept,
    /// connect(2)
    Connect,
    /// setsockopt(2)
    #[value(name = "setsockopt")]
    SetSockOpt,
    /// The last descriptor is gone
    Close,
}

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EventFormat {
    /// One ECS document in JSON
    Ecs,
    /// The socket object of MITRE CAR in JSON: bind, listen and close
    Car,
    /// The security_socket_… event of Tracee in JSON: all but close
    Tracee,
    /// Aligned columns
    Text,
}

/// Which of Tracee's forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TraceeVersion {
    /// Today's
    Current,
    /// The older trace.Event
    Legacy,
}

impl From<ActionArg> for Actions {
    fn from(action: ActionArg) -> Self {
        match action {
            ActionArg::Create => Self::CREATE,
            ActionArg::Bind => Self::BIND,
            ActionArg::Listen => Self::LISTEN,
            ActionArg::Accept => Self::ACCEPT,
            ActionArg::Connect => Self::CONNECT,
            ActionArg::SetSockOpt => Self::SETSOCKOPT,
            ActionArg::Close => Self::CLOSE,
        }
    }
}

impl EventsArgs {
    /// What a line is to be.
    pub fn form(&self, to_terminal: bool) -> Form {
        match (self.format, self.tracee_version) {
            (Some(EventFormat::Ecs), _) => Form::Ecs,
            (Some(EventFormat::Car), _) => Form::Car,
            (Some(EventFormat::Tracee), TraceeVersion::Current) => Form::Tracee,
            (Some(EventFormat::Tracee), TraceeVersion::Legacy) => Form::TraceeLegacy,
            (Some(EventFormat::Text), _) => Form::Text,
            (None, _) if to_terminal => Form::Text,
            (None, _) => Form::Ecs,
        }
    }

    /// The actions of `--only`, or all that the form has.
    ///
    /// # Errors
    /// The form does not have one of them: it would never be written.
    pub fn actions(&self, form: Form) -> anyhow::Result<Actions> {
        let all = match form {
            Form::Car => Actions::BIND.or(Actions::LISTEN).or(Actions::CLOSE),
            Form::Tracee | Form::TraceeLegacy => Actions::CREATE
                .or(Actions::BIND)
                .or(Actions::LISTEN)
                .or(Actions::ACCEPT)
                .or(Actions::CONNECT)
                .or(Actions::SETSOCKOPT),
            Form::Ecs | Form::Text => Actions::ALL,
        };
        for action in &self.only {
            let known = all.contains((*action).into());
            anyhow::ensure!(known, "--only {}: there is no such event in this --format", action.name());
        }
        Ok(match &self.only[..] {
            [] => all,
            some => some.iter().fold(Actions::NONE, |set, action| set.or((*action).into())),
        })
    }
}

impl ActionArg {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}
