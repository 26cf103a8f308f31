//! An anonymous file that can be executed: in memory (`memfd_create`), or else an unlinked one, for example before
//! Linux 3.17.

use crate::engine::{Random, WORD};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::unlink;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The directories in which an unlinked file is tried, first those in memory. After them comes the directory of this
/// program.
const DIRECTORIES: [&str; 4] = ["/dev/shm", "/run", "/tmp", "/var/tmp"];
/// The kernel puts this before the name of a file in memory.
const MEMFD_PREFIX: &str = "memfd:";

/// The offset of the part of the name that is compared. There are random letters at this offset in both kinds of names: in that
/// of a file in memory (after `memfd:`, 6 bytes) and in that of an unlinked one.
pub(super) const RANDOM_AT: &str = "6";

/// The word of a name that begins at [`RANDOM_AT`].
pub(super) fn random_part(name: &str) -> Option<&[u8; WORD as usize]> {
    name.as_bytes().get(6..)?.first_chunk()
}

/// An anonymous file. An unlinked one is open only for reading, because the kernel does not execute a file that is open
/// for writing.
#[derive(Debug)]
pub(super) struct AnonymousFile {
    pub(super) file: OwnedFd,
    /// The name in its `dentry`.
    pub(super) name: String,
}

impl AnonymousFile {
    /// Creates a file. Its name begins with random letters, and the rest says in audit logs that it belongs to a guess.
    pub(super) fn new(content: &[u8], random: &mut Random) -> io::Result<Self> {
        let name = name(random);
        // Newer kernels may be configured to refuse executable files in memory (`vm.memfd_noexec`).
        Self::in_memory(content, &name).or_else(|_| Self::unlinked(content, &name))
    }

    fn in_memory(content: &[u8], name: &str) -> io::Result<Self> {
        // Linux 6.3 and later want this flag for files that are executed; older kernels do not know it.
        let executable = MFdFlags::from_bits_retain(libc::MFD_EXEC);
        let c_name = CString::new(name)?;
        let create = |flags| memfd_create(c_name.as_c_str(), MFdFlags::MFD_CLOEXEC | flags);
        let file = match create(executable) {
            Err(Errno::EINVAL) => create(MFdFlags::empty()),
            other => other,
        };
        let mut file = File::from(file?);
        file.write_all(content)?;
        Ok(Self { file: file.into(), name: format!("{MEMFD_PREFIX}{name}") })
    }

    /// Creates the file in the first directory where files can be created and executed.
    fn unlinked(content: &[u8], name: &str) -> io::Result<Self> {
        let own_directory = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
        let directories = DIRECTORIES.into_iter().map(PathBuf::from).chain(own_directory);
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for directory in directories {
            match unlinked_in(&directory, content, name) {
                Ok(file) => return Ok(Self { file, name: name.to_owned() }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn unlinked_in(directory: &Path, content: &[u8], name: &str) -> io::Result<OwnedFd> {
    let path = directory.join(name);
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let mut written = File::from(open(&path, flags, Mode::S_IRWXU)?);
    unlink(&path)?;
    if fstatvfs(&written)?.flags().contains(FsFlags::ST_NOEXEC) {
        return Err(Errno::EACCES.into());
    }
    written.write_all(content)?;
    let again = format!("/proc/self/fd/{}", written.as_raw_fd());
    Ok(open(again.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn name(random: &mut Random) -> String {
    let letters = (0..8).map(|_| char::from(random.within(u32::from(b'a')..=u32::from(b'z')) as u8));
    letters.chain("-socktrail-guess".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;

    #[test]
    fn an_unlinked_file_can_be_read_and_executed() {
        let program = fs::read("/bin/true").unwrap();
        let name = name(&mut Random::new());
        let made = AnonymousFile::unlinked(&program, &name).unwrap();
        assert_eq!(made.name, name);
        let path = format!("/proc/{}/fd/{}", std::process::id(), made.file.as_raw_fd());
        let target = fs::read_link(&path).unwrap();
        assert!(target.to_str().unwrap().ends_with(&format!("/{name} (deleted)")), "{target:?}");
        assert!(std::process::Command::new(path).status().unwrap().success());
        let mut read = Vec::new();
        File::from(made.file).read_to_end(&mut read).unwrap();
        assert_eq!(read, program);
        assert!(DIRECTORIES.iter().all(|directory| !Path::new(directory).join(&name).exists()));
    }

    #[test]
    fn a_directory_where_no_file_can_be_created_is_an_error() {
        // No files can be created in `/proc`, and `/nowhere` does not exist.
        for directory in ["/proc", "/nowhere"] {
            assert!(unlinked_in(Path::new(directory), b"", "socktrail-guess").is_err());
        }
    }

    #[test]
    fn names_differ() {
        let [one, other] = [(); 2].map(|()| AnonymousFile::new(b"x", &mut Random::new()).unwrap().name);
        let (one, other) = (one.strip_prefix(MEMFD_PREFIX).unwrap(), other.strip_prefix(MEMFD_PREFIX).unwrap());
        assert_ne!(one[..8], other[..8]);
    }
}
