//! Kernel lockdown. It cannot be undone, so this test is the last one in a guest.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

use crate::helpers::process::Process;
use crate::lifetime::{KERNEL, expect_refusal};

// The test cannot check that no probes are left, because `kprobe_events` can no longer be read.
tests![a_kernel_that_is_locked_down];

const SECURITYFS: &str = "/sys/kernel/security";

fn a_kernel_that_is_locked_down() -> Result<()> {
    mount(Some("securityfs"), SECURITYFS, Some("securityfs"), MsFlags::empty(), None::<&str>)
        .context("mount securityfs")?;
    let switch = format!("{SECURITYFS}/lockdown");
    fs::write(&switch, "confidentiality").with_context(|| format!("write to {switch}"))?;
    let modes = fs::read_to_string(&switch)?;
    ensure!(modes.contains("[confidentiality]"), "the kernel is not locked down: {modes}");
    let refused = Process::start(&["socktrail", "flows"])?.finish()?;
    expect_refusal(
        &refused,
        KERNEL,
        &["kprobe_events", "not permitted", "locked down", "boot without lockdown=confidentiality"],
    )
}
