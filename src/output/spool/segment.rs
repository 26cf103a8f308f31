//! The files of a spool.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NOFOLLOW;

use super::record::{self, Entry};

/// The first bytes of every segment. The last one is the version.
const MAGIC: [u8; 8] = *b"STSPOOL\x01";
const EXTENSION: &str = "spool";
const DAMAGED: &str = "damaged";

/// The facts about a segment.
#[derive(Debug)]
pub struct Segment {
    /// The number of the segment; later segments have higher numbers.
    pub number: u64,
    /// The length in bytes.
    pub length: u64,
    /// The number of documents that have not been sent.
    pub left: u64,
}

/// The directory of a spool.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Opens the directory, or creates it with mode 0700.
    pub fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(Self(path.to_owned()))
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Opens or creates a file other than a segment.
    pub fn file(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(O_NOFOLLOW);
        options.open(self.0.join(name))
    }

    /// The path of a segment.
    pub fn segment(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:016}.{EXTENSION}"))
    }

    /// The numbers of all segments, in order.
    pub fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let number: Option<u64> = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                numbers.extend(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Creates a segment.
    pub fn create(&self, number: u64) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.append(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW);
        let path = self.segment(number);
        let mut file = options.open(&path)?;
        if let Err(error) = file.write_all(&MAGIC) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(file)
    }

    /// Opens a segment to read it.
    pub fn read(&self, number: u64) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(self.segment(number))
    }

    /// Removes a segment.
    pub fn remove(&self, number: u64) -> io::Result<()> {
        match fs::remove_file(self.segment(number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Counts the documents of a segment from an offset on.
    pub fn count(&self, number: u64, from: u64) -> io::Result<Segment> {
        let mut bytes = Vec::new();
        self.read(number)?.read_to_end(&mut bytes)?;
        let mut left = 0;
        let mut at = usize::try_from(from).unwrap_or(usize::MAX).max(header_len(0, &bytes));
        while let Some((entry, length)) = bytes.get(at..).and_then(record::next) {
            left += u64::from(entry != Entry::Damage);
            at += length;
        }
        Ok(Segment { number, length: bytes.len() as u64, left })
    }

    /// Writes damaged bytes to a file in `damaged/`, which is named after segment and offset.
    pub fn set_aside(&self, number: u64, offset: u64, bytes: &[u8]) -> io::Result<PathBuf> {
        let folder = self.0.join(DAMAGED);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let path = folder.join(format!("{number:016}-{offset:012}"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(O_NOFOLLOW);
        options.open(&path)?.write_all(bytes)?;
        Ok(path)
    }

    /// Removes the oldest files of damaged bytes, until the rest has at most `max_bytes`. The newest file stays. Returns the
    /// removed files.
    pub fn prune_damaged(&self, max_bytes: u64) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.0.join(DAMAGED))? {
            let entry = entry?;
            files.push((entry.path(), entry.metadata()?.len()));
        }
        files.sort();
        let mut size: u64 = files.iter().map(|(_, length)| length).sum();
        let mut removed = Vec::new();
        files.pop();
        for (path, length) in files {
            if size <= max_bytes {
                break;
            }
            fs::remove_file(&path)?;
            size -= length;
            removed.push(path);
        }
        Ok(removed)
    }
}

/// How many bytes at an offset of a segment belong to the segment's header.
pub fn header_len(offset: u64, bytes: &[u8]) -> usize {
    if offset == 0 && bytes.starts_with(&MAGIC) { MAGIC.len() } else { 0 }
}
