//! The command line: arguments to options, options to a monitor, results to stdout and an exit status.
//!
//! stdout belongs to results, stderr to everything else. Only this part of the program knows of either.

mod agent;
mod args;
mod config;
mod doctor;
mod events;
mod exit;
mod failure;
mod flows;
mod generate;
mod interrupt;
mod layout;
mod log;
mod names;
mod record;
mod sensors;
mod setup;
mod source;
mod table;
mod users;

use std::io::{self, Write};

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Command};
use exit::Status;

/// Does what the command line asks for.
pub fn main() -> Status {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version go to stdout and are a success; nobody to tell is no failure.
            let _ = error.print();
            return if error.use_stderr() { Status::Usage } else { Status::Success };
        }
    };
    log::start(cli.verbose, cli.quiet);
    let result = match cli.command {
        Command::Flows(args) => flows::run(*args, cli.quiet),
        Command::Events(args) => events::run(*args, cli.quiet),
        Command::Names(args) => names::run(args, cli.quiet),
        Command::Record(args) => record::record_to_file(args, cli.quiet),
        Command::Replay(args) => record::replay(args),
        Command::Layout(args) => layout::run(&args, io::stdout().lock()),
        Command::Agent(args) => agent::run(&args, cli.quiet),
        Command::Setup(args) => setup::run(args, io::stdout().lock()),
        Command::Generate(args) => generate::run(&args, command()),
        Command::Config(args) => config::run(args, io::stdout().lock()),
        Command::Doctor(args) => doctor::run(&args, io::stdout().lock()),
        Command::Sensors(args) => sensors::run(&args, cli.quiet),
        Command::AskGetent => users::ask_getent(),
        Command::Unlock(args) => sensors::unlock(args, io::stdout().lock()),
    };
    result.unwrap_or_else(|error| fail(&error))
}

fn parse() -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command().try_get_matches()?)
}

fn command() -> clap::Command {
    Cli::command().after_help(Status::help())
}

fn fail(error: &anyhow::Error) -> Status {
    if failure::is_closed_pipe(error) {
        return Status::Success;
    }
    let told = failure::tell(error);
    let _ = writeln!(io::stderr(), "socktrail: error: {}", told.message);
    told.status
}
