//! File systems, devices, names and the loopback interface.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use socktrail_vm::OUT_DIR;

/// Sets the machine up. It does not mount tracefs: socktrail must do that.
pub(crate) fn machine() -> Result<()> {
    file_system("proc", "/proc", "")?;
    file_system("sysfs", "/sys", "")?;
    file_system("devtmpfs", "/dev", "mode=0755")?;
    file_system("devpts", "/dev/pts", "mode=0620,ptmxmode=0666")?;
    file_system("tmpfs", "/dev/shm", "mode=1777")?;
    file_system("tmpfs", "/run", "mode=0755")?;
    open_to_all("/tmp")?;
    open_to_all(OUT_DIR)?;
    device_links()?;
    nix::unistd::sethostname("guest").context("set the host name")?;
    applets()?;
    // A kernel with a built-in driver has no such module.
    for driver in ["virtio_pci", "virtio_console"] {
        busybox(&["modprobe", "-q", driver]).ok();
    }
    busybox(&["ip", "link", "set", "lo", "up"])
}

/// Mounts a file system that needs no device.
fn file_system(kind: &str, at: &str, options: &str) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("create {at}"))?;
    mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options)).with_context(|| format!("mount {kind} at {at}"))
}

/// Creates a folder that every user can write to.
fn open_to_all(path: &str) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {path}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o1777)).with_context(|| format!("chmod {path}"))
}

/// Makes the links of `/dev` that devtmpfs lacks.
fn device_links() -> Result<()> {
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, link) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("link {link}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Installs links for busybox's applets, except where a package has the program.
fn applets() -> Result<()> {
    // It fails if a name exists, but installs the others.
    busybox(&["--install", "-s"]).or_else(|error| if Path::new("/bin/ls").exists() { Ok(()) } else { Err(error) })
}

/// Runs a busybox applet, silently.
fn busybox(arguments: &[&str]) -> Result<()> {
    let status = Command::new("/bin/busybox")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("start /bin/busybox")?;
    if !status.success() {
        bail!("busybox {}: {status}", arguments.join(" "));
    }
    Ok(())
}
