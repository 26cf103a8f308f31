//! Documents in a file that is changed for a new one when it is large or old.
//!
//! A file that is done with is called like the present one with a number after it, the newest with the highest:
//! `flows.json.000017`, `flows.json.000017.gz` once it is packed. Whole lines only: what a full disk let through of a
//! batch is taken back, and so is a line that a crash left unfinished.

mod lines;
mod pack;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::lines::LinesFile;
use self::pack::{Numbered, Packer};
use super::fanout::UPKEEP;
use super::trouble::Cause;
use super::{Batch, Meter, Output, OutputError};

/// When what was written is made to survive a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// When the kernel thinks fit.
    Never,
    /// Before the next documents are taken.
    Always,
    /// After so long at the latest.
    Every(Duration),
}

/// Where and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// The present file.
    pub path: PathBuf,
    /// A file is done with before it would be larger.
    pub rotate_size: u64,
    /// A file is done with when it is so old; none: however old.
    pub rotate_every: Option<Duration>,
    /// How many files that are done with are kept.
    pub keep: usize,
    /// Whether they are packed.
    pub gzip: bool,
    /// When the disk is to have it.
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
    packer: Option<Packer>,
}

impl FileOutput {
    /// Opens the file, to write after what is in it.
    ///
    /// # Errors
    /// It cannot be opened or is no regular file, or its folder cannot be read.
    pub fn open(options: FileOptions, meter: Arc<Meter>) -> Result<Self, OutputError> {
        let file = LinesFile::open(&options.path)?;
        let packer = if options.gzip { Some(Packer::start(&options.path)?) } else { None };
        Ok(Self { options, meter, file, opened: Instant::now(), unsynced: None, packer })
    }

    fn rotate(&mut self) -> Result<(), OutputError> {
        self.sync()?;
        let done = Numbered::next(&self.options.path)?;
        match std::fs::rename(&self.options.path, &done) {
            // Someone has taken it away: a new one begins all the same.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            renamed => renamed.map_err(|error| OutputError::io("renaming", &self.options.path, &error))?,
        }
        self.file = LinesFile::open(&self.options.path)?;
        self.opened = Instant::now();
        if let Some(packer) = &self.packer {
            packer.pack(done);
        }
        Numbered::prune(&self.options.path, self.options.keep, |_| ())
    }

    /// Removes all but the newest `keep` of the files that are done with; returns how many lines those had.
    ///
    /// # Errors
    /// One of them cannot be removed.
    pub fn prune(path: &Path, keep: usize) -> Result<usize, OutputError> {
        let mut lines = 0;
        // A file that cannot be read goes uncounted.
        Numbered::prune(path, keep, |old| lines += lines::count(old).unwrap_or(0))?;
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
            // The batch was taken: it must not be given again because of this.
            if let Err(error) = self.sync() {
                self.meter.failed("file", (&UPKEEP, "file"), Cause::System, &error.to_string());
            }
        }
        Ok(())
    }

    fn tick(&mut self, now: Instant) -> Result<(), OutputError> {
        let due = match self.options.sync {
            SyncPolicy::Never => None,
            // Files that could not be synced when they were written.
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
