//! A file that no path leads to, and that may be executed: in memory, or where that cannot be had (before Linux 3.17) one
//! that was unlinked.

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

/// Where an unlinked file may be, the cheapest first. Another is beside our own program.
const FOLDERS: [&str; 4] = ["/dev/shm", "/run", "/tmp", "/var/tmp"];
/// A file in memory has a name that begins like this.
const IN_MEMORY: &str = "memfd:";

/// Offset in the name where random letters begin, whether the file is a memfd (`memfd:` is 6 bytes) or was unlinked.
pub(super) const RANDOM_AT: &str = "6";

/// The part of a name that begins there, as long as a word.
pub(super) fn random_part(name: &str) -> Option<&[u8; WORD as usize]> {
    name.as_bytes().get(6..)?.first_chunk()
}

/// An open file. An unlinked one is open for reading only, since the kernel executes no file that is open for writing.
#[derive(Debug)]
pub(super) struct NamelessFile {
    pub(super) file: OwnedFd,
    /// What the kernel's directory entry calls it.
    pub(super) name: String,
}

impl NamelessFile {
    /// Makes a file of that content. Its name begins at random, and says to who audits programs whose it is.
    pub(super) fn new(content: &[u8], random: &mut Random) -> io::Result<Self> {
        let name = name(random);
        // Newer kernels may be set to refuse files in memory that can be executed (`vm.memfd_noexec`).
        Self::in_memory(content, &name).or_else(|_| Self::unlinked(content, &name))
    }

    fn in_memory(content: &[u8], name: &str) -> io::Result<Self> {
        // The flag that it may be executed is known from Linux 6.3 on, and asked for there.
        let executable = MFdFlags::from_bits_retain(libc::MFD_EXEC);
        let called = CString::new(name)?;
        let create = |flags| memfd_create(called.as_c_str(), MFdFlags::MFD_CLOEXEC | flags);
        let file = match create(executable) {
            Err(Errno::EINVAL) => create(MFdFlags::empty()),
            other => other,
        };
        let mut file = File::from(file?);
        file.write_all(content)?;
        Ok(Self { file: file.into(), name: format!("{IN_MEMORY}{name}") })
    }

    /// In the first folder where files can be made and executed.
    fn unlinked(content: &[u8], name: &str) -> io::Result<Self> {
        let beside_us = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
        let folders = FOLDERS.into_iter().map(PathBuf::from).chain(beside_us);
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for folder in folders {
            match unlinked_in(&folder, content, name) {
                Ok(file) => return Ok(Self { file, name: name.to_owned() }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn unlinked_in(folder: &Path, content: &[u8], name: &str) -> io::Result<OwnedFd> {
    let path = folder.join(name);
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
    fn an_unlinked_file_is_nowhere_and_can_be_read_and_executed() {
        let script = fs::read("/bin/true").unwrap();
        let name = name(&mut Random::new());
        let made = NamelessFile::unlinked(&script, &name).unwrap();
        assert_eq!(made.name, name);
        let path = format!("/proc/{}/fd/{}", std::process::id(), made.file.as_raw_fd());
        let target = fs::read_link(&path).unwrap();
        assert!(target.to_str().unwrap().ends_with(&format!("/{name} (deleted)")), "{target:?}");
        assert!(std::process::Command::new(path).status().unwrap().success());
        let mut read = Vec::new();
        File::from(made.file).read_to_end(&mut read).unwrap();
        assert_eq!(read, script);
        assert!(FOLDERS.iter().all(|folder| !Path::new(folder).join(&name).exists()));
    }

    #[test]
    fn a_folder_whose_files_are_not_executed_is_passed_over() {
        // `/proc` takes no files at all, and `/nowhere` does not exist.
        for folder in ["/proc", "/nowhere"] {
            assert!(unlinked_in(Path::new(folder), b"", "socktrail-guess").is_err());
        }
    }

    #[test]
    fn each_has_another_name() {
        let [one, other] = [(); 2].map(|()| NamelessFile::new(b"x", &mut Random::new()).unwrap().name);
        let (one, other) = (one.strip_prefix(IN_MEMORY).unwrap(), other.strip_prefix(IN_MEMORY).unwrap());
        assert_ne!(one[..8], other[..8]);
    }
}
