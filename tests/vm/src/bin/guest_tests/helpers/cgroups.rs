//! Control groups.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A hierarchy of control groups, mounted by the test, because guests boot without. Its groups are not removed: they
/// are gone with the guest.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    place: PathBuf,
}

impl Hierarchy {
    /// That of cgroup v2.
    pub(crate) fn v2() -> Result<Self> {
        Self::mount("cgroup2", "/tmp/cgroup-v2", None)
    }

    /// A hierarchy of cgroup v1 without controllers, such as systemd has on hosts with cgroup v1.
    pub(crate) fn v1() -> Result<Self> {
        Self::mount("cgroup", "/tmp/cgroup-v1", Some("none,name=systemd"))
    }

    fn mount(kind: &str, place: &str, options: Option<&str>) -> Result<Self> {
        fs::create_dir_all(place)?;
        mount(Some("none"), place, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mount {kind} at {place}"))?;
        Ok(Self { place: place.into() })
    }

    /// Makes a group and its parents.
    pub(crate) fn make(&self, path: &str) -> Result<PathBuf> {
        let group = self.place.join(path.trim_start_matches('/'));
        fs::create_dir_all(&group).with_context(|| format!("make the group {}", group.display()))?;
        Ok(group)
    }

    /// Puts a process into a group, which is made if it is not there.
    pub(crate) fn put(&self, pid: u32, path: &str) -> Result<()> {
        let group = self.make(path)?;
        fs::write(procs(&group), pid.to_string()).with_context(|| format!("put {pid} into {}", group.display()))
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        umount2(&self.place, MntFlags::MNT_DETACH).ok();
    }
}

/// The file of a group that lists its processes.
pub(crate) fn procs(group: &Path) -> PathBuf {
    group.join("cgroup.procs")
}
