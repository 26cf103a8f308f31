//! The guest's initramfs: archives from the cache, which never change, and one for this run.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use socktrail_vm::COMMAND_FILE;

use crate::cpio::Writer;
use crate::options::Addition;
use crate::packages::{MERGED, in_usr};

/// The package of every guest's shell and tools.
pub const SHELL_PACKAGE: &str = "busybox-static";

/// The content of a guest's initramfs.
#[derive(Debug)]
pub struct Content<'a> {
    /// Archives to copy as they are.
    pub archives: &'a [PathBuf],
    /// The program that becomes process 1.
    pub init: &'a Path,
    /// Programs for the PATH.
    pub programs: &'a [PathBuf],
    /// Files and folders of the host.
    pub additions: &'a [Addition],
    /// The shell command to run.
    pub command: &'a str,
}

/// Writes the initramfs; returns its size.
pub fn write(content: &Content<'_>, path: &Path) -> Result<u64> {
    let context = || format!("write the initramfs {}", path.display());
    let mut file = File::create(path).with_context(context)?;
    // The links of the root come first, because later paths use them.
    file.write_all(&base().context("write the base archive")?).with_context(context)?;
    for archive in content.archives {
        let mut from = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
        io::copy(&mut from, &mut file).with_context(context)?;
    }
    file.write_all(&run_archive(content)?).with_context(context)?;
    Ok(file.metadata().with_context(context)?.len())
}

/// The archive with the folders and links of the root, and with the files in `/etc`.
fn base() -> io::Result<Vec<u8>> {
    let mut archive = Writer::new(Vec::new());
    archive.directory("usr", 0o755)?;
    for name in MERGED {
        archive.directory(&format!("usr/{name}"), 0o755)?;
        archive.symlink(name, &format!("usr/{name}"))?;
    }
    for folder in ["dev", "proc", "sys", "run", "etc", "var", "home", "srv", "mnt", "usr/local", "usr/local/bin"] {
        archive.directory(folder, 0o755)?;
    }
    archive.directory("root", 0o700)?;
    archive.directory("home/user", 0o777)?;
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n"),
        ("etc/group", "root:x:0:\nuser:x:1000:\n"),
        ("etc/hosts", "127.0.0.1 localhost guest\n::1 localhost guest\n"),
        ("etc/hostname", "guest\n"),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ("etc/os-release", "ID=socktrail-guest\nNAME=\"Socktrail guest\"\nPRETTY_NAME=\"Socktrail guest\"\n"),
        ("etc/machine-id", "5cc7a115cc7a115cc7a115cc7a115cc7\n"),
    ] {
        archive.file(path, 0o644, text.as_bytes())?;
    }
    archive.finish()
}

/// The archive for this run: programs, the user's files, and the command.
fn run_archive(content: &Content<'_>) -> Result<Vec<u8>> {
    let keep_all = |_: &str| false;
    let mut archive = Writer::new(Vec::new());
    archive.tree(content.init, "init", &keep_all)?;
    for program in content.programs {
        let name = program.file_name().context("a program's path has no name")?.to_string_lossy();
        archive.tree(program, &format!("usr/local/bin/{name}"), &keep_all)?;
    }
    for addition in content.additions {
        let path = in_usr(addition.guest.trim_matches('/'));
        archive.parents(&path).context("write the additions")?;
        let host = addition.host.canonicalize().with_context(|| format!("find {}", addition.host.display()))?;
        archive.tree(&host, &path, &keep_all)?;
    }
    archive
        .file(COMMAND_FILE.trim_start_matches('/'), 0o644, content.command.as_bytes())
        .context("write the command")?;
    archive.finish().context("finish the archive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_there() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let archives = [file("cached", "<an archive>")];
        let init = file("vm-init", "<init>");
        let programs = [file("socktrail", "<program>")];
        let additions = [Addition { host: file("data", "<data>"), guest: "/bin/data".into() }];
        let content = Content {
            archives: &archives,
            init: &init,
            programs: &programs,
            additions: &additions,
            command: "<command>",
        };
        let path = folder.path().join("initramfs");
        let size = write(&content, &path).unwrap();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len() as u64, size);
        let text = String::from_utf8(bytes).unwrap();
        for part in ["<an archive>", "<init>", "usr/local/bin/socktrail", "usr/bin/data", "<data>", "<command>"] {
            assert!(text.contains(part), "{part}");
        }
    }
}
