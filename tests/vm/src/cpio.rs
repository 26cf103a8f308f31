//! A writer of the `newc` cpio format of an initramfs.
//!
//! Archives can be concatenated: the kernel reads one after the other, and later files replace earlier ones.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const PERMISSIONS: u32 = 0o7777;

/// Writes one archive. Every file belongs to root. Paths have no leading `/`.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(to: W) -> Self {
        Self { to, inode: 0 }
    }

    /// Adds a folder.
    pub fn directory(&mut self, path: &str, permissions: u32) -> io::Result<()> {
        self.entry(path.as_bytes(), DIRECTORY | permissions, &[])
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path.as_bytes(), REGULAR | permissions, content)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path.as_bytes(), SYMLINK | 0o777, target.as_bytes())
    }

    /// Adds all parent folders of a path.
    pub fn parents(&mut self, path: &str) -> io::Result<()> {
        for (at, _) in path.match_indices('/') {
            self.directory(&path[..at], 0o755)?;
        }
        Ok(())
    }

    /// Adds a file or folder of this machine under the given path, except paths for which `skip` returns true.
    pub fn tree(&mut self, host: &Path, path: &str, skip: &dyn Fn(&str) -> bool) -> Result<()> {
        if skip(path) {
            return Ok(());
        }
        let context = || format!("put {} into an archive", host.display());
        let metadata = fs::symlink_metadata(host).with_context(context)?;
        let permissions = metadata.mode() & PERMISSIONS;
        if metadata.is_symlink() {
            let target = fs::read_link(host).with_context(context)?;
            self.entry(path.as_bytes(), SYMLINK | 0o777, target.as_os_str().as_bytes()).with_context(context)?;
        } else if metadata.is_dir() {
            self.directory(path, permissions).with_context(context)?;
            self.tree_content(host, path, skip)?;
        } else if metadata.is_file() {
            let content = fs::read(host).with_context(context)?;
            self.file(path, permissions, &content).with_context(context)?;
        }
        Ok(())
    }

    /// Adds the content of a folder of this machine, sorted by name; an empty path is the archive's root.
    pub fn tree_content(&mut self, host: &Path, path: &str, skip: &dyn Fn(&str) -> bool) -> Result<()> {
        let context = || format!("read the folder {}", host.display());
        let mut names = fs::read_dir(host)
            .with_context(context)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .with_context(context)?;
        names.sort();
        for name in names {
            let text = name.to_string_lossy();
            let inner = if path.is_empty() { text.into_owned() } else { format!("{path}/{text}") };
            self.tree(&host.join(&name), &inner, skip)?;
        }
        Ok(())
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry(b"TRAILER!!!", 0, &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    /// Writes a header of thirteen hexadecimal numbers, the name and the content, each padded to four bytes.
    fn entry(&mut self, name: &[u8], mode: u32, content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other("a file of 4 GiB or more"))?;
        let name_size = name.len() as u32 + 1;
        let (uid, gid, links, time, device, check) = (0, 0, 1, 0, 0, 0);
        let fields = [self.inode, mode, uid, gid, links, time, size, device, device, device, device, name_size, check];
        self.to.write_all(b"070701")?;
        for field in fields {
            write!(self.to, "{field:08x}")?;
        }
        self.to.write_all(name)?;
        self.to.write_all(&b"\0\0\0\0"[..1 + padding(110 + name.len() + 1)])?;
        self.to.write_all(content)?;
        self.to.write_all(&b"\0\0\0"[..padding(content.len())])
    }
}

/// The number of bytes to the next multiple of four.
fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    /// The `(name, mode, content)` of each entry of an archive.
    fn read(mut archive: &[u8]) -> Vec<(String, u32, String)> {
        let mut entries = Vec::new();
        loop {
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&archive[..6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(archive[110..110 + name_size - 1].to_vec()).unwrap();
            let content_at = (110 + name_size).next_multiple_of(4);
            let content = String::from_utf8(archive[content_at..content_at + size].to_vec()).unwrap();
            archive = &archive[(content_at + size).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                assert!(archive.is_empty());
                return entries;
            }
            entries.push((name, mode, content));
        }
    }

    #[test]
    fn a_written_archive_can_be_read() {
        let mut writer = Writer::new(Vec::new());
        writer.parents("usr/bin/x").unwrap();
        writer.file("usr/bin/x", 0o4755, b"hello").unwrap();
        writer.symlink("bin", "usr/bin").unwrap();
        let entries = read(&writer.finish().unwrap());
        assert_eq!(
            entries,
            [
                ("usr".into(), 0o040_755, String::new()),
                ("usr/bin".into(), 0o040_755, String::new()),
                ("usr/bin/x".into(), 0o104_755, "hello".into()),
                ("bin".into(), 0o120_777, "usr/bin".into()),
            ]
        );
    }

    #[test]
    fn a_tree_keeps_permissions_and_links_and_leaves_out_what_is_skipped() {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("doc")).unwrap();
        fs::write(folder.path().join("doc/readme"), "no").unwrap();
        fs::write(folder.path().join("tool"), "abc").unwrap();
        fs::set_permissions(folder.path().join("tool"), fs::Permissions::from_mode(0o711)).unwrap();
        symlink("tool", folder.path().join("alias")).unwrap();

        let mut writer = Writer::new(Vec::new());
        writer.tree_content(folder.path(), "", &|path| path == "doc").unwrap();
        let entries = read(&writer.finish().unwrap());
        assert_eq!(entries, [("alias".into(), 0o120_777, "tool".into()), ("tool".into(), 0o100_711, "abc".into())]);
    }

    #[test]
    fn archives_are_padded_so_that_they_can_be_concatenated() {
        for name in ["a", "ab", "abc", "abcd"] {
            for content in ["", "1", "12", "123", "1234"] {
                let mut writer = Writer::new(Vec::new());
                writer.file(name, 0o644, content.as_bytes()).unwrap();
                assert_eq!(writer.finish().unwrap().len() % 4, 0, "{name} {content}");
            }
        }
    }
}
