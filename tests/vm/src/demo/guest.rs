//! The demo in a guest.

use std::io;
use std::time::Duration;

use anyhow::Result;

use super::LineCounter;
use crate::binaries::{Profile, Program};
use crate::guest::{Guest, Outcome};
use crate::matrix::{Arch, Kernel};
use crate::options::{EXIT_RUNNER, MachineOptions};

/// The script that the guest runs.
const SCRIPT: &str = include_str!("guest.sh");
/// The Debian packages that it needs.
pub const PACKAGES: &[&str] = &["curl", "dnsmasq-base", "netcat-openbsd"];

/// Runs the demo; documents go to standard output. `source` is the source of the kernel's layout.
pub fn run(kernel: Kernel, arch: Arch, source: Option<&str>, timeout: Duration) -> Result<u8> {
    let machine = MachineOptions::standard(kernel, arch);
    let documents = LineCounter::default();
    let guest = Guest {
        machine: &machine,
        packages: &PACKAGES.iter().map(ToString::to_string).collect::<Vec<_>>(),
        programs: &[Program::Socktrail],
        profile: Profile::Guest,
        additions: &[],
        out: None,
        timeout,
        command: &script(&arguments(source)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_passed_on() {
        assert!(script(&arguments(Some("btf"))).starts_with("set -- flows --format ecs --source btf\n# What"));
        assert_eq!(script(&arguments(None)), format!("set -- flows --format ecs\n{SCRIPT}"));
    }
}
