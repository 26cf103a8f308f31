//! What the fuzz targets of `fuzz/` need that is private: a directory that is read as if it were a process's directory in `/proc`.

use std::path::PathBuf;

use procfs::process::Process as ProcEntry;

use super::living::LivingProcess;
use super::{arguments, process, sockets};
use crate::model::process::Process;

/// A process, and the number of listed sockets. The name of the directory is the pid.
pub fn read(directory: PathBuf) -> (Option<Process>, usize) {
    let Ok(entry) = ProcEntry::new_with_root(directory) else { return (None, 0) };
    let sockets = sockets::listed_sockets(&entry).len();
    let Some(living) = LivingProcess::of(entry) else { return (None, sockets) };
    let process = process(&living).process;
    if let Some(args) = arguments(living.directory()) {
        assert!(super::same_program(&process.image, &args), "it was read twice, and is the same");
    }
    (Some(process), sockets)
}
