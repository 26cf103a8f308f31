//! The kernel tests of `kprobes/`, which say themselves what they expect.

use anyhow::{Result, ensure};
use socktrail_vm::KPROBES_TESTS;

use crate::helpers::process::Process;

tests![tests_of_the_crate];

fn tests_of_the_crate() -> Result<()> {
    let finished = Process::start(&[KPROBES_TESTS, "--ignored", "--test-threads", "1"])?.finish()?;
    ensure!(finished.status == 0, "{}{}", finished.stdout, finished.stderr);
    ensure!(finished.stdout.contains("misses_are_told_once ... ok"), "which ran?\n{}", finished.stdout);
    Ok(())
}
