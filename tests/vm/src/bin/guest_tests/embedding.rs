//! The library in a program outside the workspace, `tests/embedding`. The program checks the flows itself.

use anyhow::{Result, ensure};

use crate::helpers::process::Process;
use crate::helpers::tracefs::Tracefs;
use crate::lifetime::expect_no_probes;

tests![a_program_outside_the_workspace_gets_flows_from_two_monitors];

fn a_program_outside_the_workspace_gets_flows_from_two_monitors() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let finished = Process::start(&["embedding", Tracefs::PATH])?.finish()?;
    ensure!(finished.status == 0, "{}{}", finished.stdout, finished.stderr);
    ensure!(
        finished.stdout == "embedding: all holds\n" && finished.stderr.is_empty(),
        "a library must print nothing: {finished:?}"
    );
    expect_no_probes(&tracefs)
}
