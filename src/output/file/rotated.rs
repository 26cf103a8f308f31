//! Rotated files: their numbers, and compressing them.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use crossbeam_channel::{Sender, bounded};
use flate2::Compression;
use flate2::write::GzEncoder;
use nix::libc::O_NOFOLLOW;

use crate::output::OutputError;

/// How many files may wait to be compressed. Others are compressed after the next start.
const QUEUE: usize = 64;
/// The suffix of compressed files.
const COMPRESSED: &str = ".gz";
/// The suffix of files that are being compressed.
const INCOMPLETE: &str = ".gz.part";

/// A rotated file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RotatedFile {
    number: u64,
    path: PathBuf,
    compressed: bool,
}

impl RotatedFile {
    /// All rotated files of `file`, in order.
    fn all(file: &Path) -> Result<Vec<Self>, OutputError> {
        let folder = folder(file);
        let prefix = format!("{}.", file.file_name().unwrap_or_default().to_string_lossy());
        let error = |error| OutputError::io("reading", folder, &error);
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix(&prefix) else { continue };
            let (digits, compressed) = rest.strip_suffix(COMPRESSED).map_or((rest, false), |digits| (digits, true));
            if let (true, Ok(number)) = (digits.bytes().all(|byte| byte.is_ascii_digit()), digits.parse()) {
                found.push(Self { number, path, compressed });
            }
        }
        found.sort();
        Ok(found)
    }

    /// The path for the next rotated file.
    pub fn next(file: &Path) -> Result<PathBuf, OutputError> {
        let number = Self::all(file)?.last().map_or(1, |last| last.number.saturating_add(1));
        Ok(with_suffix(file, &format!(".{number:06}")))
    }

    /// Removes all but the newest `keep` files. Calls `before_removal` before it removes a file.
    pub fn prune(file: &Path, keep: usize, mut before_removal: impl FnMut(&Path)) -> Result<(), OutputError> {
        let all = Self::all(file)?;
        for old in all.iter().rev().skip(keep) {
            before_removal(&old.path);
            fs::remove_file(&old.path).map_err(|error| OutputError::io("removing", &old.path, &error))?;
        }
        Ok(())
    }
}

fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(suffix);
    name.into()
}

/// Compresses files on its own thread. Files that are not compressed when the program ends are compressed after the next
/// start.
#[derive(Debug)]
pub struct Compressor {
    files: Sender<PathBuf>,
}

impl Compressor {
    /// Starts the thread, which first compresses files that an earlier run has left.
    pub fn start(file: &Path) -> Result<Self, OutputError> {
        let (files, waiting) = bounded::<PathBuf>(QUEUE);
        remove_incomplete(file);
        for left in RotatedFile::all(file)?.into_iter().filter(|rotated| !rotated.compressed) {
            let _ = files.try_send(left.path);
        }
        let run = move || {
            for path in waiting {
                match compress(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!("{}", OutputError::io("compressing", &path, &error));
                    }
                    _ => {}
                }
            }
        };
        let thread = thread::Builder::new().name("output-pack".to_owned()).spawn(run);
        thread
            .map_err(|error| OutputError::new(format!("starting a thread: {error}"), "raise the limit of processes"))?;
        Ok(Self { files })
    }

    /// Compresses a file as soon as possible.
    pub fn compress(&self, path: PathBuf) {
        if self.files.try_send(path).is_err() {
            tracing::debug!("a file stays uncompressed until the next start: too many are waiting");
        }
    }
}

/// Removes incomplete compressed files that an earlier run has left.
fn remove_incomplete(file: &Path) {
    let prefix = format!("{}.", file.file_name().unwrap_or_default().to_string_lossy());
    let is_ours = |name: &str| {
        let number = name.strip_prefix(&*prefix).and_then(|rest| rest.strip_suffix(INCOMPLETE));
        number.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    for entry in fs::read_dir(folder(file)).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_ours) {
            // If this fails, the next start tries again.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Compresses a file, and removes it only when the compressed file is complete. The compressed file has mode 0600.
fn compress(path: &Path) -> io::Result<()> {
    let (incomplete, compressed) = (with_suffix(path, INCOMPLETE), with_suffix(path, COMPRESSED));
    let mut from = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(O_NOFOLLOW);
    let mut to = GzEncoder::new(options.open(&incomplete)?, Compression::default());
    io::copy(&mut from, &mut to)?;
    to.finish()?.sync_all()?;
    fs::rename(&incomplete, &compressed)?;
    match fs::remove_file(path) {
        // It was pruned meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::remove_file(&compressed),
        removed => removed,
    }
}
