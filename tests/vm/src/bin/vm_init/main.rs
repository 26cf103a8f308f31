//! Process 1 of a guest: sets the machine up, runs one command, sends home what it wrote and how it ended.
#![allow(clippy::print_stderr, reason = "standard error is the kernel's console, the only place to complain")]

mod command;
mod ports;
mod setup;

use std::process::ExitCode;

use anyhow::Result;
use nix::sys::reboot::{RebootMode, reboot};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("vm-init is process 1 of a guest; on a host use `cargo vm run`");
        return ExitCode::FAILURE;
    }
    if let Err(error) = run() {
        eprintln!("vm-init: {error:#}");
    }
    // What the host has not acknowledged, it reports as a guest that ended early.
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(error) => eprintln!("vm-init: power off: {error}"),
    }
    ExitCode::FAILURE
}

/// Everything between power on and power off.
fn run() -> Result<()> {
    setup::machine()?;
    let ports = ports::open()?;
    command::run(ports)
}
