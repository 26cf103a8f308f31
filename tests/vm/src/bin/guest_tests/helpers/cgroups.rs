//! Control groups.

use std::fs;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The root of the cgroup v2 hierarchy, which the first call mounts for good.
pub(crate) fn v2_root() -> Result<PathBuf> {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(root) = ROOT.get() {
        return Ok(root.clone());
    }
    let hierarchy = ManuallyDrop::new(Hierarchy::mount("cgroup2", "/tmp/cgroup-v2-root", None)?);
    Ok(ROOT.get_or_init(|| hierarchy.mount_point.clone()).clone())
}

/// A cgroup hierarchy, mounted by the test, because guests boot without one. Its groups are never removed.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    mount_point: PathBuf,
}

impl Hierarchy {
    /// The cgroup v2 hierarchy.
    pub(crate) fn v2() -> Result<Self> {
        Self::mount("cgroup2", "/tmp/cgroup-v2", None)
    }

    /// A cgroup v1 hierarchy without controllers, as systemd makes it.
    pub(crate) fn v1() -> Result<Self> {
        Self::mount("cgroup", "/tmp/cgroup-v1", Some("none,name=systemd"))
    }

    fn mount(kind: &str, place: &str, options: Option<&str>) -> Result<Self> {
        fs::create_dir_all(place)?;
        mount(Some("none"), place, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mount {kind} at {place}"))?;
        Ok(Self { mount_point: place.into() })
    }

    /// Makes a group and its parents.
    pub(crate) fn make(&self, path: &str) -> Result<PathBuf> {
        let group = self.mount_point.join(path.trim_start_matches('/'));
        fs::create_dir_all(&group).with_context(|| format!("make the group {}", group.display()))?;
        Ok(group)
    }

    /// Moves a process into a group, which is made if it does not exist.
    pub(crate) fn put(&self, pid: u32, path: &str) -> Result<()> {
        let group = self.make(path)?;
        fs::write(procs(&group), pid.to_string()).with_context(|| format!("move {pid} into {}", group.display()))
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        umount2(&self.mount_point, MntFlags::MNT_DETACH).ok();
    }
}

/// The file of a group that lists its processes.
pub(crate) fn procs(group: &Path) -> PathBuf {
    group.join("cgroup.procs")
}
