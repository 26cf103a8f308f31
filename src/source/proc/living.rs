//! Living processes, and the `/proc` directory that describes each of them.
//!
//! A process is alive as long as one of its threads is. If its main thread has ended before others, the process's own
//! directory no longer shows program, users and file descriptors, but the directories of its other threads do.

use std::path::PathBuf;

use procfs::process::{Process as ProcEntry, all_processes};

use super::stat::Stat;

/// A living process.
#[derive(Debug)]
pub struct LivingProcess {
    /// Its id.
    pub pid: u32,
    /// The `stat` of its main thread, which may have ended. It has the process's start and name.
    pub stat: Stat,
    /// Its living threads: at least one.
    pub threads: Vec<u32>,
    entry: ProcEntry,
    thread: Option<ProcEntry>,
}

impl LivingProcess {
    /// All living processes, except those that end meanwhile or cannot be read.
    pub fn all() -> Vec<Self> {
        let Ok(all) = all_processes() else { return Vec::new() };
        all.filter_map(Result::ok).filter_map(Self::of).collect()
    }

    /// The process of this `/proc` directory, if it is alive.
    pub fn of(entry: ProcEntry) -> Option<Self> {
        let pid = u32::try_from(entry.pid()).ok()?;
        let stat = Stat::of(&entry)?;
        let leads = !stat.has_ended();
        let threads = if stat.threads > 1 { living_threads(&entry, pid, leads) } else { vec![pid; leads.into()] };
        let first = *threads.first()?;
        let thread = if leads { None } else { Some(thread(pid, first)?) };
        // The thread's directory is found by its id, which may be reused. It belongs to this process if the process still
        // exists.
        Stat::of(&entry).is_some().then_some(Self { pid, stat, threads, entry, thread })
    }

    /// The `/proc` directory that shows its program, users and file descriptors.
    pub fn directory(&self) -> &ProcEntry {
        self.thread.as_ref().unwrap_or(&self.entry)
    }

    /// Whether the process still exists and is the same.
    pub fn is_there(&self) -> bool {
        Stat::of(&self.entry).is_some_and(|now| now.starttime == self.stat.starttime)
    }
}

fn living_threads(entry: &ProcEntry, pid: u32, leads: bool) -> Vec<u32> {
    let tasks = entry.tasks().into_iter().flatten().filter_map(Result::ok);
    let others = tasks.filter_map(|task| u32::try_from(task.tid).ok()).filter(|tid| *tid != pid);
    let living = others.filter(|tid| Stat::of_thread(entry, *tid).is_some_and(|stat| !stat.has_ended()));
    leads.then_some(pid).into_iter().chain(living).collect()
}

fn thread(pid: u32, tid: u32) -> Option<ProcEntry> {
    ProcEntry::new_with_root(PathBuf::from(format!("/proc/{pid}/task/{tid}"))).ok()
}
