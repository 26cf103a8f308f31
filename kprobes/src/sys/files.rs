//! Mounts and file systems.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use nix::sys::statfs::{DEBUGFS_MAGIC, TRACEFS_MAGIC};

/// The file system that a path is on.
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

/// `mount(2)` of a file system without a device.
pub(crate) fn mount(kind: &str, target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(nix::mount::mount(Some(kind), target, Some(kind), flags, None::<&str>)?)
}

/// `fsopen(2)`, `fsmount(2)`: a file system that is mounted nowhere and can only be reached through the descriptor.
/// Since Linux 5.2.
pub(crate) fn detached(kind: &str) -> io::Result<OwnedFd> {
    // `FSOPEN_CLOEXEC`, `FSCONFIG_CMD_CREATE`, `FSMOUNT_CLOEXEC` and the attributes are from `linux/mount.h`, which is ABI.
    // nix does not have these calls.
    const CLOEXEC: libc::c_uint = 1;
    const CREATE: libc::c_uint = 6;
    const NOSUID_NODEV_NOEXEC: libc::c_uint = 2 | 4 | 8;
    let none = std::ptr::null::<libc::c_char>();
    let kind = CString::new(kind)?;
    // SAFETY: `kind` ends with a NUL and lives until the call has returned.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC) })?;
    // SAFETY: the descriptor is open; this command takes neither key nor value.
    match unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, none, none, 0) } {
        0 => {}
        _ => return Err(io::Error::last_os_error()),
    }
    // SAFETY: the descriptor is open; the others are plain numbers.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, NOSUID_NODEV_NOEXEC) })
}

/// The descriptor that a system call has opened.
fn descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(returned) {
        // SAFETY: the kernel has just opened it, so nothing else owns it.
        Ok(opened @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(opened) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `umount2(2)`, never following a symbolic link. Files that are open there stay open.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)?)
}

/// The path of an open file or directory by its descriptor.
pub(crate) fn by_descriptor(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
