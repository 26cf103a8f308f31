//! The library in a program of somebody else's: `tests/embedding`, which says itself what it expects.

use anyhow::{Result, ensure};

use crate::helpers::process::Process;
use crate::helpers::tracefs::Tracefs;

tests![an_outsiders_program_gets_flows_from_two_monitors];

fn an_outsiders_program_gets_flows_from_two_monitors() -> Result<()> {
    let tracefs = Tracefs::mount()?;
    let finished = Process::start(&["embedding", Tracefs::PLACE])?.finish()?;
    ensure!(finished.status == 0, "{}{}", finished.stdout, finished.stderr);
    ensure!(
        finished.stdout == "embedding: all holds\n" && finished.stderr.is_empty(),
        "a library is silent: {finished:?}"
    );
    let left = tracefs.kprobe_events()?;
    ensure!(left.is_empty(), "probes are left:\n{left}");
    Ok(())
}
