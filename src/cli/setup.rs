//! `socktrail setup`: installs index templates and a lifecycle policy on a server.

use std::io::Write;

use anyhow::Context as _;
use socktrail::config::Loader;
use socktrail::output::elasticsearch;

use super::args::SetupArgs;
use super::config::load;
use super::exit::Status;

/// Runs the command.
pub fn run(args: SetupArgs, mut out: impl Write) -> anyhow::Result<Status> {
    let loaded = load(Loader::new().file(&args.config), args.set)?;
    let output = &loaded.config.output.elasticsearch;
    anyhow::ensure!(!output.hosts.is_empty(), "{}: output.elasticsearch.hosts is empty", args.config.display());
    let installed = elasticsearch::setup(output.client(), &output.index, output.data_stream)?;
    let lifecycle = if installed.policy {
        "lifecycle policy socktrail"
    } else {
        "no lifecycle policy: OpenSearch does not support them"
    };
    writeln!(out, "index templates {}; {lifecycle}", installed.templates.join(", ")).context("writing to stdout")?;
    Ok(Status::Success)
}
