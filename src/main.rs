//! The `socktrail` command.

use std::process::ExitCode;

mod agent;
mod cli;
mod receive;

fn main() -> ExitCode {
    cli::main().into()
}
