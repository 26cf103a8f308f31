//! A control group (cgroup v2), by its directory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use crate::Error;
use crate::sys::files;
use crate::tracefs::{forbidden, forbids};

/// The open directory of a control group (cgroup v2).
#[derive(Clone, Debug)]
pub struct ControlGroup(Arc<OwnedFd>);

impl ControlGroup {
    /// Opens the directory of a control group.
    ///
    /// # Errors
    /// [`Error::Io`]: it cannot be opened, or does not belong to cgroup v2.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::io(format!("opening the control group {}", path.display()), source);
        let flags = (OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits();
        let directory = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let kind = fstatfs(&directory).map_err(|error| failed(error.into()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(failed(io::Error::new(io::ErrorKind::Unsupported, "it is not a directory of cgroup v2")));
        }
        Ok(Self(Arc::new(directory.into())))
    }

    /// Mounts the hierarchy of cgroup v2 where only this descriptor leads to it, and opens its topmost group. Since Linux 5.2.
    ///
    /// # Errors
    /// [`Error::Permission`]; [`Error::Io`]: the kernel has no control groups v2, or cannot mount them so.
    pub fn mount_topmost() -> Result<Self, Error> {
        let failed = |source: io::Error| {
            let what = "mounting control groups v2";
            if forbids(&source) { forbidden(what, source) } else { Error::io(what, source) }
        };
        let mount = files::detached("cgroup2").map_err(failed)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let topmost = openat(&mount, ".", flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        Ok(Self(Arc::new(topmost)))
    }

    /// Whether the control group has been removed. Another one may have its path by now.
    pub fn is_removed(&self) -> bool {
        let opened = openat(&*self.0, "cgroup.procs", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        matches!(opened, Err(Errno::ENOENT | Errno::ENODEV))
    }
}

impl AsFd for ControlGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_file_system_is_no_control_group() {
        let said = |path: &str| ControlGroup::open(Path::new(path)).unwrap_err().to_string();
        assert_eq!(said("/proc"), "opening the control group /proc: it is not a directory of cgroup v2");
        assert!(said("/proc/self/status").starts_with("opening the control group /proc/self/status: Not a directory"));
        assert!(said("/no/such/folder").starts_with("opening the control group /no/such/folder: No such file"));
    }
}
