//! Mounts and file systems.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use nix::sys::statfs::{DEBUGFS_MAGIC, TRACEFS_MAGIC};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// What kind of file system a path is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Tracefs,
    Debugfs,
    Other,
}

/// `statfs(2)`.
pub(crate) fn file_system(path: &Path) -> io::Result<FileSystem> {
    Ok(match nix::sys::statfs::statfs(path)?.filesystem_type() {
        TRACEFS_MAGIC => FileSystem::Tracefs,
        DEBUGFS_MAGIC => FileSystem::Debugfs,
        _ => FileSystem::Other,
    })
}

/// `mount(2)` of a file system that has no device.
pub(crate) fn mount(kind: &str, target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(nix::mount::mount(Some(kind), target, Some(kind), flags, None::<&str>)?)
}

/// `fsopen(2)`, `fsmount(2)`: a file system that is mounted nowhere, for whoever has the descriptor. From Linux 5.2 on.
pub(crate) fn detached(kind: &str) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// `umount2(2)`, never following a symbolic link. Who has a file there open keeps it.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)?)
}

/// The path of an open file or directory, wherever it is.
pub(crate) fn by_descriptor(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
