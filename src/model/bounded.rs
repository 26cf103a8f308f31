//! Reads small files, each up to a limit.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The maximum number of bytes read from a file.
const MAX_BYTES: u64 = 64 * 1024;

/// The file's text, truncated to 64 KiB; invalid UTF-8 is replaced.
pub(crate) fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first line of the file without surrounding space; `None` if the file cannot be read or the line is empty.
pub(crate) fn line(path: &Path) -> Option<String> {
    let text = text(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}
