//! Executes a program by path, by descriptor, in a chroot or in a container.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::fcntl::{AtFlags, OFlag};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, execveat, pivot_root};

/// `become METHOD DIRECTORY FILE ARGUMENTS...`: executes the file; the first of ARGUMENTS is the program's own name.
/// The meaning of DIRECTORY depends on METHOD. In names, bytes other than letters, digits and `/.-_` are written `%XX`.
pub(super) fn become_program(arguments: &[String]) -> Result<()> {
    let [method, directory, file, arguments @ ..] = arguments else {
        bail!("become METHOD DIRECTORY FILE ARGUMENTS...")
    };
    let (directory, file) = (unescape(directory), unescape(file));
    let (directory, file) = (Path::new(OsStr::from_bytes(&directory)), Path::new(OsStr::from_bytes(&file)));
    match method.as_str() {
        "path" => chdir(directory)?,
        "descriptor" => return by_descriptor(open_path(file)?, arguments),
        "deleted" => {
            let open = open_path(file)?;
            fs::remove_file(file)?;
            return by_descriptor(open, arguments);
        }
        "descriptor-path" => {
            let open = open_path(file)?;
            return by_path(Path::new(&format!("/proc/self/fd/{}", open.as_raw_fd())), arguments);
        }
        "memory" => {
            let memory = memfd_create(c"in memory", MFdFlags::empty())?;
            let mut memory = File::from(memory);
            std::io::copy(&mut File::open(file)?, &mut memory)?;
            return by_descriptor(memory.into(), arguments);
        }
        "root" => {
            chroot(directory)?;
            chdir("/")?;
        }
        "container" => enter_container(directory)?,
        other => bail!("unknown method `{other}`"),
    }
    by_path(file, arguments)
}

/// Escapes a name for `become`.
pub(crate) fn escape(path: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte);
    path.iter().map(|&byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") }).collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (number, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(number, 16).unwrap_or(b'?'));
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}

fn by_path(file: &Path, arguments: &[String]) -> Result<()> {
    let (name, rest) = arguments.split_first().context("the name of a program is missing")?;
    Err(Command::new(file).arg0(name).args(rest).exec()).with_context(|| format!("execute {file:?}"))
}

fn by_descriptor(open: OwnedFd, arguments: &[String]) -> Result<()> {
    let arguments = arguments.iter().map(|argument| CString::new(argument.as_str())).collect::<Result<Vec<_>, _>>()?;
    execveat(open, c"", &arguments, &[] as &[CString], AtFlags::AT_EMPTY_PATH).context("execute an open file")?;
    Ok(())
}

/// A descriptor without `O_CLOEXEC`, because a script's interpreter opens it again.
fn open_path(file: &Path) -> Result<OwnedFd> {
    Ok(nix::fcntl::open(file, OFlag::O_RDONLY, Mode::empty())?)
}

/// Makes a directory the root of a new mount namespace, as container runtimes do.
fn enter_container(directory: &Path) -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // `pivot_root(2)` cannot move the initial root file system, so another one is mounted over it first.
    mount(Some("/"), "/mnt", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    chdir("/mnt")?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    chroot(".")?;
    mount(Some(directory), directory, none, MsFlags::MS_BIND, none)?;
    chdir(directory)?;
    pivot_root(".", ".").context("pivot_root")?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)?;
    chdir("/")?;
    Ok(())
}
