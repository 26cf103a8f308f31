//! What is said on stderr beside flows and errors.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts logging to stderr. `RUST_LOG` decides what is said unless the command line does.
pub fn start(verbose: u8, quiet: bool) {
    let (ours, others) = match (quiet, verbose) {
        (true, _) => ("error", "error"),
        (false, 0) => ("info", "warn"),
        (false, 1) => ("debug", "info"),
        (false, _) => ("trace", "debug"),
    };
    let asked_for = quiet || verbose > 0;
    let from_environment = (!asked_for).then(|| EnvFilter::try_from_default_env().ok()).flatten();
    // `socktrail` is the start of our libraries' names too.
    let filter = from_environment.unwrap_or_else(|| EnvFilter::new(format!("{others},socktrail={ours}")));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours);
    // Fails only when a program that embeds this has set one up already: then that one stays.
    let _ = format.without_time().with_target(false).try_init();
}
