//! Reads of small files that are never longer than they should be.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// No file that is read whole is larger than this.
const MOST: u64 = 64 * 1024;

/// The file's text, cut at 64 KiB; what is no UTF-8 in it is replaced.
pub(crate) fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first line of the file without surrounding space; `None` if there is no file or nothing on that line.
pub(crate) fn line(path: &Path) -> Option<String> {
    let text = text(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}
