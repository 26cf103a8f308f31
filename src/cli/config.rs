//! `socktrail config`: whether a configuration makes sense, and what it comes down to.

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

/// The configuration as the agent would have it: the environment and the command line over the file.
pub fn load(loader: Loader, assignments: Vec<String>) -> anyhow::Result<Loaded> {
    let text =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(loader.environment(text).set(assignments).load()?)
}

fn check(loaded: &Loaded, file: &str, mut out: impl Write) -> io::Result<()> {
    for note in &loaded.notes {
        writeln!(out, "{note}")?;
    }
    writeln!(out, "{file}: ok")
}

/// As YAML, one key a line.
fn show(loaded: &Loaded, mut out: impl Write) -> io::Result<()> {
    for resolved in &loaded.resolved {
        let line = format!("{}: {}", resolved.key, resolved.value);
        writeln!(out, "{line:<60} # {}", resolved.origin)?;
    }
    Ok(())
}
