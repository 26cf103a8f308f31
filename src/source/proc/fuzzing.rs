//! What the fuzz targets of `fuzz/` need that is private: a folder that is read as a process's in `/proc`.

use std::path::PathBuf;

use procfs::process::Process as ProcEntry;

use super::living::Living;
use super::{arguments, process, sockets};
use crate::model::process::Process;

/// What is read of a process and of its sockets' list; the folder's name is the pid.
pub fn read(folder: PathBuf) -> (Option<Process>, usize) {
    let Ok(entry) = ProcEntry::new_with_root(folder) else { return (None, 0) };
    let sockets = sockets::listed(&entry).len();
    let Some(living) = Living::of(entry) else { return (None, sockets) };
    let process = process(&living).process;
    if let Some(args) = arguments(living.folder()) {
        assert!(super::same_program(&process.image, &args), "it was read twice, and is the same");
    }
    (Some(process), sockets)
}
