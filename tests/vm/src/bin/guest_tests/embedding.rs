//! The library in a program outside the workspace, `tests/embedding`, which checks the result itself.

use anyhow::{Result, ensure};

use crate::helpers::process::Process;
use crate::helpers::tracefs::Tracefs;

tests![a_program_outside_the_workspace_gets_flows_from_two_monitors];

fn a_program_outside_the_workspace_gets_flows_from_two_monitors() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let finished = Process::start(&["embedding", Tracefs::PATH])?.finish()?;
    ensure!(finished.status == 0, "{}{}", finished.stdout, finished.stderr);
    ensure!(
        finished.stdout == "embedding: all holds\n" && finished.stderr.is_empty(),
        "a library must print nothing: {finished:?}"
    );
    let left = tracefs.kprobe_events()?;
    ensure!(left.is_empty(), "probes are left:\n{left}");
    Ok(())
}
