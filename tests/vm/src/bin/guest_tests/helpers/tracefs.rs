//! The kernel's view of probes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// tracefs, mounted by the test and unmounted when dropped; guests boot without.
#[derive(Debug)]
pub(crate) struct Tracefs(());

impl Tracefs {
    /// Where it is mounted.
    pub(crate) const PLACE: &str = "/sys/kernel/tracing";

    /// Mounts it.
    pub(crate) fn mount() -> Result<Self> {
        mount(Some("tracefs"), Self::PLACE, Some("tracefs"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount tracefs at {}", Self::PLACE))?;
        Ok(Self(()))
    }

    /// The probes that exist, one a line.
    pub(crate) fn kprobe_events(&self) -> Result<String> {
        self.read("kprobe_events")
    }

    /// How often a probe was not run though the kernel came by: `kprobe_profile` has name, hits and misses.
    pub(crate) fn missed(&self) -> Result<u64> {
        let profile = self.read("kprobe_profile")?;
        let misses = profile.lines().map(|line| {
            let count = line.split_ascii_whitespace().nth(2).with_context(|| format!("no misses in `{line}`"))?;
            count.parse::<u64>().with_context(|| format!("no number of misses in `{line}`"))
        });
        misses.sum()
    }

    /// Writes to a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = Path::new(Self::PLACE).join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// The content of a file.
    pub(crate) fn read(&self, name: &str) -> Result<String> {
        let path = Path::new(Self::PLACE).join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        umount2(Self::PLACE, MntFlags::MNT_DETACH).ok();
    }
}
