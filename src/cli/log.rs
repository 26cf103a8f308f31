//! Logging to stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts logging to stderr. `-v` and `-q` set the level; without them, `RUST_LOG` does.
pub fn start(verbose: u8, quiet: bool) {
    let (ours, others) = match (quiet, verbose) {
        (true, _) => ("error", "error"),
        (false, 0) => ("info", "warn"),
        (false, 1) => ("debug", "info"),
        (false, _) => ("trace", "debug"),
    };
    let asked_for = quiet || verbose > 0;
    let from_environment = (!asked_for).then(|| EnvFilter::try_from_default_env().ok()).flatten();
    // This prefix includes socktrail_kprobes, socktrail_guess and socktrail_dns.
    let filter = from_environment.unwrap_or_else(|| EnvFilter::new(format!("{others},socktrail={ours}")));
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours);
    // Fails only if a subscriber is already set; that one then stays.
    let _ = format.without_time().with_target(false).try_init();
}
