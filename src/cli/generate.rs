//! `socktrail generate`: manual pages and shell completions, made from the command line's declaration.

use std::fs;

use anyhow::Context as _;
use clap_complete::Shell;

use super::args::GenerateArgs;
use super::exit::Status;

/// The shells that completions are written for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Runs the command.
pub fn run(args: &GenerateArgs, mut command: clap::Command) -> anyhow::Result<Status> {
    let folder = args.folder.display();
    fs::create_dir_all(&args.folder).with_context(|| format!("creating {folder}"))?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut command, "socktrail", &args.folder)
            .with_context(|| format!("writing completions to {folder}"))?;
    }
    clap_mangen::generate_to(command, &args.folder).with_context(|| format!("writing manual pages to {folder}"))?;
    Ok(Status::Success)
}
