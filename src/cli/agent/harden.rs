//! The agent gives up what it does not need any more, in two steps: what monitor and outputs can do without before any
//! thread is started, and what only the monitor needs before the outputs are.
//!
//! What cannot be given up is said, and is no reason not to run.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use socktrail::config::{Config, Listen};
use socktrail::output::OutputError;
use socktrail::privileges::{self, Extra};

/// Before the first thread: capabilities and system calls.
pub fn before_the_monitor(config: &Config) {
    if !config.agent.harden {
        return;
    }
    let mut extra = Extra::default();
    extra.low_ports = ports(config).iter().any(|port| (1..1024).contains(port));
    match privileges::drop_capabilities(extra) {
        Ok(kept) => tracing::info!("capabilities that are kept: {kept}"),
        Err(error) => tracing::warn!("{error}"),
    }
    match privileges::filter_syscalls() {
        Ok(()) => tracing::info!("system calls are filtered"),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Before the outputs: files.
pub fn before_the_outputs(config: &Config) {
    if !config.agent.harden {
        return;
    }
    let made = made(config);
    for folder in &made {
        // Whoever needs it says why it cannot be had.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    }
    let folders = made.into_iter().chain(named(config)).collect::<Vec<_>>();
    let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
    match privileges::restrict_files(&folders, &ports(config)) {
        Ok(confined) => tracing::info!("restricted: {confined}"),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Folders that are made where they are missing, and written to.
fn made(config: &Config) -> Vec<PathBuf> {
    let spool = (!config.output.elasticsearch.hosts.is_empty()).then(|| config.spool.path.clone());
    let control = config.sensors.control.parent().filter(|_| !config.sensors.files.is_empty());
    spool.into_iter().chain(control.map(Path::to_owned)).collect()
}

/// Folders that are there, or else an output says that they are missing.
fn named(config: &Config) -> Vec<PathBuf> {
    let file = config.output.file.path.as_deref();
    let socket = match &config.metrics.listen {
        Some(Listen::Unix(path)) => Some(path.as_path()),
        _ => None,
    };
    file.into_iter().chain(socket).filter_map(Path::parent).map(Path::to_owned).collect()
}

/// Where something listens.
fn ports(config: &Config) -> Vec<u16> {
    match config.metrics.listen {
        Some(Listen::Tcp(address)) => vec![address.port()],
        _ => Vec::new(),
    }
}

/// What to do about an output that a reload could not start, where that may be because of what was given up.
pub fn remedy(config: &Config, error: &anyhow::Error) -> &'static str {
    let is_forbidden = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<OutputError>().is_some_and(OutputError::is_forbidden)
            || cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    if config.agent.harden && error.chain().any(is_forbidden) {
        "; a folder that was not configured at the start takes a restart"
    } else {
        ""
    }
}
