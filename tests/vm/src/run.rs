//! `vm run`: one command in a guest.

use std::io;

use anyhow::Result;
use socktrail_vm::SYSTEMD;

use crate::binaries::{Profile, Program};
use crate::guest::{Guest, Outcome};
use crate::options::RunOptions;

/// Boots, runs, and returns the command's exit status.
pub fn run(options: &RunOptions) -> Result<u8> {
    let mut programs = vec![Program::Socktrail];
    programs.extend(options.examples.iter().cloned().map(Program::Example));
    let mut machine = options.machine.clone();
    if options.systemd {
        machine.append = Some([machine.append.as_deref().unwrap_or_default(), SYSTEMD].join(" "));
    }
    let guest = Guest {
        machine: &machine,
        packages: &options.packages,
        programs: &programs,
        profile: Profile::Guest,
        additions: &options.add,
        out: options.out.as_deref(),
        timeout: options.timeout,
        command: &options.command.join(" "),
    };
    let outcome = guest.boot(Box::new(io::stdout()), Box::new(io::stderr()))?;
    if outcome == Outcome::Interrupted {
        eprintln!("vm: {outcome}");
    }
    Ok(outcome.exit_status())
}
