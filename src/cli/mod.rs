//! The command line: turns arguments into options, starts a monitor, prints its results and returns an exit status.
//!
//! Results go to stdout, everything else to stderr. The library itself writes to neither.

mod args;
mod config;
mod doctor;
mod events;
mod exit;
mod failure;
mod flags;
mod flows;
mod generate;
mod interrupt;
mod layout;
mod log;
mod names;
mod print;
mod record;
mod sensors;
mod setup;
mod table;
mod users;

use std::io::{self, Write};

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use socktrail::config::Loader;

use args::{AgentArgs, Cli, Command};
use exit::Status;

use crate::agent::{self, Options, ReplayOptions};

/// Runs the command of the command line.
pub fn main() -> Status {
    let (cli, matches) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help and the version go to stdout and are a success; a closed stdout is not a failure.
            let _ = error.print();
            return if error.use_stderr() { Status::Usage } else { Status::Success };
        }
    };
    log::start(cli.verbose, cli.quiet);
    run(cli, &matches).unwrap_or_else(|error| fail(&error))
}

fn run(cli: Cli, matches: &ArgMatches) -> anyhow::Result<Status> {
    let options = flags::options(matches)?;
    match cli.command {
        Command::Flows(args) => flows::run(*args, options, cli.quiet),
        Command::Events(args) => events::run(*args, options, cli.quiet),
        Command::Names(args) => names::run(args, options, cli.quiet),
        Command::Record(args) => record::record_to_file(args, options, cli.quiet),
        Command::Replay(args) => record::replay(args, &options),
        Command::Layout(args) => layout::run(&args, &options, io::stdout().lock()),
        Command::Agent(args) => run_agent(args, cli.quiet),
        Command::Setup(args) => setup::run(args, io::stdout().lock()),
        Command::Generate(args) => generate::run(&args, command()),
        Command::Config(args) => config::run(args, io::stdout().lock()),
        Command::Doctor(args) => doctor::run(&args, options, io::stdout().lock()),
        Command::Sensors(args) => sensors::run(&args, options, cli.quiet),
        Command::AskGetent => users::ask_getent(),
        Command::Unlock(args) => sensors::unlock(args, io::stdout().lock()),
    }
}

fn run_agent(args: AgentArgs, quiet: bool) -> anyhow::Result<Status> {
    let load = || config::load(Loader::new().file(&args.config), args.set.clone());
    let replay = args.replay.map(|file| ReplayOptions { file, rate: args.replay_rate, times: args.replay_times });
    agent::run(load, Options { stats: args.stats, replay, quiet, start_helper: users::start_helper })?;
    Ok(Status::Success)
}

fn parse() -> Result<(Cli, ArgMatches), clap::Error> {
    let matches = command().try_get_matches()?;
    Ok((Cli::from_arg_matches(&matches)?, matches))
}

fn command() -> clap::Command {
    flags::add_to(Cli::command()).after_help(Status::help())
}

fn fail(error: &anyhow::Error) -> Status {
    if failure::is_closed_pipe(error) {
        return Status::Success;
    }
    let report = failure::explain(error);
    let _ = writeln!(io::stderr(), "socktrail: error: {}", report.message);
    report.status
}
