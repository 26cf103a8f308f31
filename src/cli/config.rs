//! `socktrail config`: checks or shows a configuration.

use std::io::{self, Write};

use anyhow::Context;
use socktrail::config::{Loaded, Loader};

use super::args::{ConfigArgs, ConfigCommand};
use super::exit::Status;

/// Runs the command.
pub fn run(args: ConfigArgs, out: impl Write) -> anyhow::Result<Status> {
    match args.command {
        ConfigCommand::Check(args) => {
            let loaded = load(Loader::new().file(&args.file), args.set)?;
            loaded.config.sensors.read()?;
            check(&loaded, &args.file.display().to_string(), out).context("writing to stdout")?;
        }
        ConfigCommand::Show(args) => {
            let loader = args.config.iter().fold(Loader::new(), Loader::file);
            show(&load(loader, args.set)?, out).context("writing to stdout")?;
        }
    }
    Ok(Status::Success)
}

/// Loads a configuration as the agent does: the environment and `--set` override the file.
pub fn load(loader: Loader, assignments: Vec<String>) -> anyhow::Result<Loaded> {
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(loader.environment(variables).set(assignments).load()?)
}

fn check(loaded: &Loaded, file: &str, mut out: impl Write) -> io::Result<()> {
    for note in &loaded.notes {
        writeln!(out, "{note}")?;
    }
    writeln!(out, "{file}: ok")
}

/// Prints YAML, one key per line.
fn show(loaded: &Loaded, mut out: impl Write) -> io::Result<()> {
    for resolved in &loaded.resolved {
        let line = format!("{}: {}", resolved.key, resolved.value);
        writeln!(out, "{line:<60} # {}", resolved.origin)?;
    }
    Ok(())
}
