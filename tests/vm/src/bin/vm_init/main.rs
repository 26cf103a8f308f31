//! Process 1 of a guest: sets the machine up, runs one command, and sends its output and exit status to the host.
#![allow(clippy::print_stderr, reason = "standard error is the kernel's console, the only place for errors")]

mod command;
mod ports;
mod setup;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};
use socktrail_vm::SYSTEMD;

/// The argument of the process that runs the command if systemd is process 1.
const BESIDE_SYSTEMD: &str = "--beside-systemd";

fn main() -> ExitCode {
    let beside_systemd = std::env::args().nth(1).is_some_and(|argument| argument == BESIDE_SYSTEMD);
    if std::process::id() != 1 && !beside_systemd {
        eprintln!("vm-init is process 1 of a guest; on a host use `cargo vm run`");
        return ExitCode::FAILURE;
    }
    let result = if beside_systemd { run_command() } else { run() };
    if let Err(error) = result {
        eprintln!("vm-init: {error:#}");
    }
    // If the host has not acknowledged the ending, it reports a failure.
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(error) => eprintln!("vm-init: power off: {error}"),
    }
    ExitCode::FAILURE
}

/// Everything between power on and power off.
fn run() -> Result<()> {
    setup::machine()?;
    if std::fs::read_to_string("/proc/cmdline")?.split_ascii_whitespace().any(|word| word == SYSTEMD) {
        Command::new("/init").arg(BESIDE_SYSTEMD).spawn().context("start the command's process")?;
        // It returns only if it fails.
        return Err(Command::new("/lib/systemd/systemd").exec()).context("execute systemd");
    }
    run_command()
}

/// Opens the ports and runs the command.
fn run_command() -> Result<()> {
    let ports = ports::open()?;
    command::run(ports)
}
