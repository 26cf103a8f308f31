//! Errors of outputs.

use std::fmt;
use std::io;
use std::path::Path;

use nix::errno::Errno;

/// An error of an output: what failed, why, and what to do about it.
#[derive(Debug)]
pub struct OutputError {
    problem: String,
    remedy: &'static str,
    is_forbidden: bool,
}

impl OutputError {
    /// An error with a remedy, which may be empty.
    pub fn new(problem: impl Into<String>, remedy: &'static str) -> Self {
        Self { problem: problem.into(), remedy, is_forbidden: false }
    }

    /// Whether the operation was not permitted (`EACCES`, `EPERM`).
    pub fn is_forbidden(&self) -> bool {
        self.is_forbidden
    }

    /// An I/O error. `doing` is what was tried, such as `writing`.
    pub fn io(doing: &str, path: &Path, error: &io::Error) -> Self {
        let remedy = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => "make room on its file system",
            Some(Errno::EFBIG) => "raise the limit of a file's size (ulimit -f)",
            Some(Errno::EROFS) => "its file system is read-only: remount it, or choose another path",
            Some(Errno::EACCES | Errno::EPERM) => "allow it, or run as root",
            Some(Errno::ENOENT | Errno::ENOTDIR) => "create its directory",
            Some(Errno::ELOOP) => "it is a symbolic link, and links are not followed: remove it",
            _ => "",
        };
        let is_forbidden = error.kind() == io::ErrorKind::PermissionDenied;
        Self { problem: format!("{doing} {}: {error}", path.display()), remedy, is_forbidden }
    }
}

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, ": {}", self.remedy) }
    }
}

impl std::error::Error for OutputError {}
