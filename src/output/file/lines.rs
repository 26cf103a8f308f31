//! A file that contains only whole lines.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc::O_NOFOLLOW;

use crate::output::OutputError;

/// How many bytes are read at once, when searching backwards for the last newline.
const WINDOW: u64 = 64 * 1024;

/// A file that lines are appended to.
#[derive(Debug)]
pub struct LinesFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// Whether an incomplete line must be removed from the end.
    torn: bool,
}

impl LinesFile {
    /// Opens the file, or creates it with mode 0600. Symbolic links are not followed.
    pub fn open(path: &Path) -> Result<Self, OutputError> {
        let error = |error| OutputError::io("opening", path, &error);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600).custom_flags(O_NOFOLLOW);
        let mut file = options.open(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        if !metadata.is_file() {
            return Err(OutputError::new(format!("{} is not a regular file", path.display()), "choose another path"));
        }
        let length = whole_lines(&mut file, metadata.len()).map_err(error)?;
        let mut lines = Self { path: path.to_owned(), file, length, torn: length < metadata.len() };
        lines.remove_incomplete_line()?;
        Ok(lines)
    }

    /// The length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends all lines or, after an error, none.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), OutputError> {
        self.remove_incomplete_line()?;
        if let Err(error) = self.file.write_all(lines) {
            self.torn = true;
            self.remove_incomplete_line()?;
            return Err(OutputError::io("writing", &self.path, &error));
        }
        self.length += lines.len() as u64;
        Ok(())
    }

    /// Flushes the file to disk.
    pub fn sync(&self) -> Result<(), OutputError> {
        self.file.sync_data().map_err(|error| OutputError::io("syncing", &self.path, &error))
    }

    /// Removes an incomplete line from the end.
    fn remove_incomplete_line(&mut self) -> Result<(), OutputError> {
        if self.torn {
            self.file.set_len(self.length).map_err(|error| OutputError::io("truncating", &self.path, &error))?;
            self.torn = false;
        }
        Ok(())
    }
}

/// The number of whole lines in a file.
pub fn count(path: &Path) -> io::Result<usize> {
    let mut file = BufReader::with_capacity(WINDOW as usize, File::open(path)?);
    let mut lines = 0;
    loop {
        let piece = file.fill_buf()?;
        let length = piece.len();
        if length == 0 {
            return Ok(lines);
        }
        lines += piece.iter().filter(|&&byte| byte == b'\n').count();
        file.consume(length);
    }
}

/// The length of a file without an incomplete line at its end.
fn whole_lines(file: &mut File, length: u64) -> io::Result<u64> {
    let mut end = length;
    let mut window = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(WINDOW);
        file.seek(SeekFrom::Start(start))?;
        window.clear();
        Read::by_ref(file).take(end - start).read_to_end(&mut window)?;
        if let Some(at) = window.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
