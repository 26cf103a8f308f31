//! The agent drops privileges that it does not need any more, in two steps. Before it starts the first thread, it drops what
//! neither monitor nor outputs need. Before it starts the outputs, it drops access to files that only the start of the
//! monitor needs.
//!
//! If a privilege cannot be dropped, the agent logs it and goes on.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use socktrail::config::{Config, Listen};
use socktrail::output::OutputError;
use socktrail::privileges::{self, Extra};

/// The first step, before any thread is started: capabilities and system calls.
/// `runs_bpf` says whether BPF programs run.
pub fn before_the_monitor(config: &Config, runs_bpf: bool) {
    if !config.agent.harden {
        return;
    }
    let mut extra = Extra::default();
    extra.low_ports = ports(config).iter().any(|port| (1..1024).contains(port));
    extra.bpf = runs_bpf;
    match privileges::drop_capabilities(extra) {
        Ok(kept) => tracing::info!("kept capabilities: {kept}"),
        Err(error) => tracing::warn!("{error}"),
    }
    match privileges::filter_syscalls() {
        Ok(()) => tracing::info!("system calls are filtered"),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// The second step, before the outputs are started: access to files.
pub fn before_the_outputs(config: &Config) {
    if !config.agent.harden {
        return;
    }
    let own = own_directories(config);
    for directory in &own {
        // If this fails, the output that needs the directory reports the reason.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    }
    let directories = own.into_iter().chain(given_directories(config)).collect::<Vec<_>>();
    let directories: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
    match privileges::restrict_files(&directories, &ports(config)) {
        Ok(confined) => tracing::info!("{confined}"),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Directories that the agent writes to, and creates if they are missing.
fn own_directories(config: &Config) -> Vec<PathBuf> {
    let spool = (!config.output.elasticsearch.hosts.is_empty()).then(|| config.spool.path.clone());
    let control = config.sensors.control.parent().filter(|_| !config.sensors.files.is_empty());
    spool.into_iter().chain(control.map(Path::to_owned)).collect()
}

/// Directories that the agent writes to, but does not create. An output, or the metrics, reports a missing one.
fn given_directories(config: &Config) -> Vec<PathBuf> {
    let file = config.output.file.path.as_deref();
    let socket = match &config.metrics.listen {
        Some(Listen::Unix(path)) => Some(path.as_path()),
        _ => None,
    };
    file.into_iter().chain(socket).filter_map(Path::parent).map(Path::to_owned).collect()
}

/// The TCP ports that the agent listens on.
fn ports(config: &Config) -> Vec<u16> {
    match config.metrics.listen {
        Some(Listen::Tcp(address)) => vec![address.port()],
        _ => Vec::new(),
    }
}

/// The remedy for an output that a reload could not start, if missing privileges may be the reason.
pub fn remedy(config: &Config, error: &anyhow::Error) -> &'static str {
    let is_forbidden = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<OutputError>().is_some_and(OutputError::is_forbidden)
            || cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    if config.agent.harden && error.chain().any(is_forbidden) {
        "; restart the agent: it can only use directories that were configured when it started"
    } else {
        ""
    }
}
