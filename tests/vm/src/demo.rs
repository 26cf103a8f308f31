//! `cargo demo`: real traffic in a guest, and socktrail's documents about it.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use crate::binaries::{Profile, Program};
use crate::guest::{Guest, Outcome};
use crate::options::{DemoOptions, EXIT_RUNNER, MachineOptions};

/// The script that the guest runs.
const SCRIPT: &str = include_str!("demo.sh");
/// The Debian packages that it needs.
pub const PACKAGES: &[&str] = &["curl", "dnsmasq-base", "netcat-openbsd"];

/// Runs the demo; documents go to standard output.
pub fn run(options: &DemoOptions) -> Result<u8> {
    say_how_to_run_natively();
    let machine = MachineOptions::standard(options.kernel, options.arch);
    let documents = LineCounter::default();
    let guest = Guest {
        machine: &machine,
        packages: &PACKAGES.iter().map(ToString::to_string).collect::<Vec<_>>(),
        programs: &[Program::Socktrail],
        profile: Profile::Guest,
        additions: &[],
        out: None,
        timeout: options.timeout,
        command: &script(&arguments(options.source.as_deref())),
    };
    let outcome = guest.boot(Box::new(documents.clone()), Box::new(io::stderr()))?;
    let count = documents.lines();
    eprintln!("vm: {count} documents");
    match outcome {
        Outcome::Ended(0) if count == 0 => {
            eprintln!("vm: the demo failed: there were no documents");
            Ok(EXIT_RUNNER)
        }
        Outcome::Ended(0) => Ok(0),
        outcome => {
            eprintln!("vm: the demo failed: {outcome}");
            Ok(outcome.exit_status())
        }
    }
}

/// The arguments of socktrail.
fn arguments(source: Option<&str>) -> String {
    let flows = "flows --format ecs";
    source.map_or_else(|| flows.to_owned(), |source| format!("{flows} --source {source}"))
}

/// The script with the arguments for socktrail.
pub fn script(arguments: &str) -> String {
    format!("set -- {arguments}\n{SCRIPT}")
}

/// If this machine's kernel has kprobes, says how to run socktrail on it.
fn say_how_to_run_natively() {
    let places = ["/sys/kernel/tracing/kprobe_events", "/sys/kernel/debug/tracing/kprobe_events"];
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    if places.iter().any(|place| Path::new(place).exists()) || symbols.contains(" register_kprobe\n") {
        eprintln!("vm: this machine's kernel has kprobes, too; to run socktrail on it:");
        eprintln!("vm:     cargo build --release && sudo target/release/socktrail flows");
    }
}

/// Standard output, with a count of the lines written to it.
#[derive(Debug, Clone, Default)]
struct LineCounter(Arc<AtomicU64>);

impl LineCounter {
    fn lines(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Write for LineCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ends = bytes.iter().filter(|&&byte| byte == b'\n').count();
        self.0.fetch_add(ends as u64, Ordering::Relaxed);
        // Lines are counted even if the reader has closed the pipe.
        io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()).ok();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_passed_on() {
        assert!(script(&arguments(Some("btf"))).starts_with("set -- flows --format ecs --source btf\n# What"));
        assert_eq!(script(&arguments(None)), format!("set -- flows --format ecs\n{SCRIPT}"));
    }
}
