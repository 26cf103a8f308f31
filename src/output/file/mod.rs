//! An output that writes documents to a file, which is rotated when it is large or old.
//!
//! Rotated files are named after the current one, with a number; the highest number is the newest: `flows.json.000017`, or
//! `flows.json.000017.gz` when compressed. Files contain only whole lines: if a full disk takes only a part of a batch, that
//! part is removed, and so is an incomplete line that a crash has left.

mod lines;
mod rotated;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::lines::LinesFile;
use self::rotated::{Compressor, RotatedFile};
use super::fanout::UPKEEP;
use super::trouble::Cause;
use super::{Batch, Meter, Output, OutputError};

/// When the file is flushed to disk (`fdatasync(2)`), so that it survives a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Never; the kernel decides when to write.
    Never,
    /// After each batch.
    Always,
    /// At most this time after a write.
    Every(Duration),
}

/// The options of a [`FileOutput`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// The file to write to.
    pub path: PathBuf,
    /// The file is rotated before it grows larger than this, in bytes, unless a single batch is larger.
    pub rotate_size: u64,
    /// The file is rotated this long after it was opened; `None`: time does not matter.
    pub rotate_every: Option<Duration>,
    /// How many rotated files to keep.
    pub keep: usize,
    /// Whether to compress rotated files with gzip.
    pub gzip: bool,
    /// When to flush the file to disk.
    pub sync: SyncPolicy,
}

/// Writes documents to a file.
#[derive(Debug)]
pub struct FileOutput {
    options: FileOptions,
    meter: Arc<Meter>,
    file: LinesFile,
    opened: Instant,
    unsynced: Option<Instant>,
    compressor: Option<Compressor>,
}

impl FileOutput {
    /// Opens the file to append to it.
    ///
    /// # Errors
    /// The file cannot be opened or is not a regular file, or its directory cannot be read.
    pub fn open(options: FileOptions, meter: Arc<Meter>) -> Result<Self, OutputError> {
        let file = LinesFile::open(&options.path)?;
        let compressor = if options.gzip { Some(Compressor::start(&options.path)?) } else { None };
        Ok(Self { options, meter, file, opened: Instant::now(), unsynced: None, compressor })
    }

    fn rotate(&mut self) -> Result<(), OutputError> {
        self.sync()?;
        let rotated = RotatedFile::next(&self.options.path)?;
        match std::fs::rename(&self.options.path, &rotated) {
            // Another process has removed the file. Begin a new one.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            renamed => renamed.map_err(|error| OutputError::io("renaming", &self.options.path, &error))?,
        }
        self.file = LinesFile::open(&self.options.path)?;
        self.opened = Instant::now();
        if let Some(compressor) = &self.compressor {
            compressor.compress(rotated);
        }
        RotatedFile::prune(&self.options.path, self.options.keep, |_| ())
    }

    /// Removes all but the newest `keep` rotated files. Returns how many lines the removed files had.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn prune(path: &Path, keep: usize) -> Result<usize, OutputError> {
        let mut lines = 0;
        // The lines of an unreadable file are not counted.
        RotatedFile::prune(path, keep, |old| lines += lines::count(old).unwrap_or(0))?;
        Ok(lines)
    }

    fn sync(&mut self) -> Result<(), OutputError> {
        if self.unsynced.is_some() && self.options.sync != SyncPolicy::Never {
            self.file.sync()?;
        }
        self.unsynced = None;
        Ok(())
    }
}

impl Output for FileOutput {
    fn write(&mut self, batch: &Batch) -> Result<(), OutputError> {
        let larger = self.file.length() + batch.lines().len() as u64;
        if self.file.length() > 0 && larger > self.options.rotate_size {
            self.rotate()?;
        }
        self.file.append(batch.lines())?;
        self.unsynced.get_or_insert_with(Instant::now);
        self.meter.written.add(batch.len());
        if self.options.sync == SyncPolicy::Always {
            // The batch is written. An error here must not cause a second write.
            if let Err(error) = self.sync() {
                self.meter.note_failure("file", (&UPKEEP, "file"), Cause::System, &error.to_string());
            }
        }
        Ok(())
    }

    fn tick(&mut self, now: Instant) -> Result<(), OutputError> {
        let due = match self.options.sync {
            SyncPolicy::Never => None,
            // Retries a sync that failed after the write.
            SyncPolicy::Always => Some(Duration::ZERO),
            SyncPolicy::Every(time) => Some(time),
        };
        if due.zip(self.unsynced).is_some_and(|(due, since)| now.saturating_duration_since(since) >= due) {
            self.sync()?;
        }
        let age = now.saturating_duration_since(self.opened);
        if self.file.length() > 0 && self.options.rotate_every.is_some_and(|time| age >= time) {
            self.rotate()?;
        }
        Ok(())
    }

    fn close(mut self: Box<Self>, _deadline: Instant, _left: &mut Batch) -> Result<(), OutputError> {
        self.sync()
    }
}

#[cfg(test)]
mod tests;
