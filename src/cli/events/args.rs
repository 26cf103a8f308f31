//! `socktrail events`: its arguments.

use clap::{Args, ValueEnum};
use socktrail::condition::Condition;
use socktrail::socket_event::Actions;

use super::super::args::{LimitArgs, WithoutArgs};
use super::write::Form;

/// `socktrail events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Print only these calls, separated by commas [default: all that the format has]
    #[arg(long, value_name = "ACTIONS", value_enum, value_delimiter = ',')]
    pub only: Vec<ActionArg>,

    /// Print only events that match this condition, such as 'remote.port == 443 && process.name in ["curl", "wget"]'
    #[arg(long = "where", value_name = "EXPR")]
    pub condition: Option<Condition>,

    /// The format of the output [default: text on a terminal, otherwise ecs]
    #[arg(long, value_enum)]
    pub format: Option<EventFormat>,

    /// The form of events with --format tracee
    #[arg(long, value_name = "VERSION", value_enum, default_value_t = TraceeVersion::Current)]
    pub tracee_version: TraceeVersion,

    /// When to stop.
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Features to ignore.
    #[command(flatten)]
    pub without: WithoutArgs,
}

/// A call on a socket.
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
    /// The last descriptor of the socket is closed
    Close,
}

/// The format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EventFormat {
    /// ECS documents, one JSON object per line
    Ecs,
    /// Socket objects of MITRE CAR in JSON, for bind, listen and close
    Car,
    /// Tracee's security_socket_… events in JSON, for all calls but close
    Tracee,
    /// Columns for people
    Text,
}

/// The form of Tracee's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TraceeVersion {
    /// The current form
    Current,
    /// The older form: trace.Event
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
    /// The form of a line.
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

    /// The actions of `--only`, or all actions that the form has.
    ///
    /// # Errors
    /// The form does not have one of the actions of `--only`.
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
