//! Runs the kernel tests of the crate `kprobes/`.

use anyhow::{Result, ensure};
use socktrail_vm::KPROBES_TESTS;

use crate::helpers::process::Process;

tests![tests_of_the_crate];

fn tests_of_the_crate() -> Result<()> {
    let finished = Process::start(&[KPROBES_TESTS, "--ignored", "--test-threads", "1"])?.finish()?;
    ensure!(finished.status == 0, "{}{}", finished.stdout, finished.stderr);
    ensure!(
        finished.stdout.contains("new_misses_are_reported_once ... ok"),
        "the tests did not run:\n{}",
        finished.stdout
    );
    Ok(())
}
