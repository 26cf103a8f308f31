//! The table of processes: who is who, now and a little after they are gone.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::event::{Credentials, Exec, Fork, KernelTime};
use crate::process::{Details, Image, Process};

/// How long an exited process is kept for events that name it late. Its flows keep it for as long as they need.
const LINGER: KernelTime = 10_000_000_000;
/// How many processes may wait for `/proc` to be read.
const MAX_WANTED: usize = 1024;

/// Processes by id.
#[derive(Debug)]
pub struct Processes {
    by_pid: HashMap<u32, Entry, foldhash::fast::RandomState>,
    exited: VecDeque<(KernelTime, u32)>,
    wanted: VecDeque<u32>,
    limit: usize,
    /// Processes that found no room.
    pub refused: u64,
}

#[derive(Debug)]
struct Entry {
    process: Arc<Process>,
    exited: Option<KernelTime>,
    asked: bool,
}

impl Processes {
    /// An empty table for at most `limit` processes.
    pub fn new(limit: usize) -> Self {
        Self { by_pid: HashMap::default(), exited: VecDeque::new(), wanted: VecDeque::new(), limit, refused: 0 }
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.by_pid.len()
    }

    /// The process that has this id now, if it is known.
    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.by_pid.get(&pid).map(|entry| &*entry.process)
    }

    /// The same, to keep.
    pub fn known(&self, pid: u32) -> Option<Arc<Process>> {
        self.by_pid.get(&pid).map(|entry| Arc::clone(&entry.process))
    }

    /// The process that acts under this id now; a nameless one when nothing is known but that it acts.
    /// Its details in `/proc` are asked for, since it has come to matter.
    pub fn actor(&mut self, pid: u32) -> Arc<Process> {
        if !self.by_pid.contains_key(&pid) {
            let nameless = Process {
                pid,
                parent_pid: None,
                start: None,
                kernel: pid == 0,
                credentials: None,
                image: Arc::default(),
            };
            if !self.insert(nameless.clone()) {
                return Arc::new(nameless);
            }
        }
        let entry = self.by_pid.get_mut(&pid).expect("was there or has just been put in");
        if !entry.asked && !entry.process.kernel && self.wanted.len() < MAX_WANTED {
            entry.asked = true;
            self.wanted.push_back(pid);
        }
        Arc::clone(&entry.process)
    }

    /// The present form of a process that was seen earlier: with its new program or credentials, if it is still
    /// the same process.
    pub fn latest(&self, process: &Arc<Process>) -> Arc<Process> {
        match self.by_pid.get(&process.pid) {
            Some(entry) if entry.process.start == process.start => Arc::clone(&entry.process),
            _ => Arc::clone(process),
        }
    }

    /// A process that was there before events were: from `/proc`. What events said already is kept.
    pub fn adopt(&mut self, process: Process) {
        if !self.by_pid.contains_key(&process.pid) {
            self.insert(process);
        }
    }

    /// `parent` made a process.
    pub fn fork(&mut self, parent: u32, fork: Fork) {
        let process = match self.by_pid.get(&parent) {
            Some(entry) => Process {
                pid: fork.child,
                parent_pid: Some(parent),
                start: Some(fork.start),
                ..(*entry.process).clone()
            },
            None => Process {
                pid: fork.child,
                parent_pid: Some(parent),
                start: Some(fork.start),
                kernel: false,
                credentials: None,
                image: Arc::default(),
            },
        };
        self.insert(process);
    }

    /// `pid` became another program.
    pub fn exec(&mut self, pid: u32, exec: &Exec) {
        self.change(pid, |process| process.image = Arc::new(image(exec, &process.image)));
    }

    /// `pid` acts as somebody else from now on.
    pub fn credentials(&mut self, pid: u32, credentials: Credentials) {
        if self.by_pid.get(&pid).is_some_and(|entry| entry.process.credentials == Some(credentials)) {
            return;
        }
        self.change(pid, |process| process.credentials = Some(credentials));
    }

    /// `pid` ended.
    pub fn exit(&mut self, pid: u32, now: KernelTime) {
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            entry.exited = Some(now);
            self.exited.push_back((now, pid));
        }
    }

    /// Forgets processes that have been gone for a while.
    pub fn expire(&mut self, now: KernelTime) {
        while let Some(&(when, pid)) = self.exited.front() {
            if when + LINGER > now {
                break;
            }
            self.exited.pop_front();
            self.forget(pid, when);
        }
    }

    /// A process whose details somebody should read from `/proc`.
    pub fn next_wanted(&mut self) -> Option<Arc<Process>> {
        let pid = self.wanted.pop_front()?;
        self.by_pid.get(&pid).map(|entry| Arc::clone(&entry.process))
    }

    /// Takes what `/proc` said about `process`. The caller has made sure that it is the same process running the
    /// same program: a wrong answer is worse than none.
    pub fn learn(&mut self, process: &Arc<Process>, found: Found) {
        // Somebody else cannot have set it: each image is asked about once.
        let _ = process.image.details.set(found.details);
        let Some(entry) = self.by_pid.get_mut(&process.pid).filter(|e| e.process.start == process.start) else {
            return;
        };
        let now = Arc::make_mut(&mut entry.process);
        now.start = now.start.or(found.start);
        now.parent_pid = now.parent_pid.or(found.parent_pid);
        now.credentials = now.credentials.or(found.credentials);
    }

    fn insert(&mut self, process: Process) -> bool {
        if self.by_pid.len() >= self.limit && !self.by_pid.contains_key(&process.pid) && !self.make_room() {
            self.refused += 1;
            return false;
        }
        self.by_pid.insert(process.pid, Entry { process: Arc::new(process), exited: None, asked: false });
        true
    }

    fn change(&mut self, pid: u32, change: impl FnOnce(&mut Process)) {
        let start = self.by_pid.get(&pid).and_then(|entry| entry.process.start);
        if start.is_none() {
            // An unknown process is made known without asking for its details: it has no socket yet.
            self.adopt(Process {
                pid,
                parent_pid: None,
                start: None,
                kernel: false,
                credentials: None,
                image: Arc::default(),
            });
        }
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            change(Arc::make_mut(&mut entry.process));
            entry.asked = false;
        }
    }

    /// Drops the process that has been gone longest.
    fn make_room(&mut self) -> bool {
        while let Some((when, pid)) = self.exited.pop_front() {
            if self.forget(pid, when) {
                return true;
            }
        }
        false
    }

    /// Forgets `pid` unless the id has gone to a new process since.
    fn forget(&mut self, pid: u32, exited: KernelTime) -> bool {
        let gone = self.by_pid.get(&pid).is_some_and(|entry| entry.exited == Some(exited));
        gone && self.by_pid.remove(&pid).is_some()
    }
}

/// What `/proc` said of one process.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Nanoseconds since boot.
    pub start: Option<u64>,
    /// Parent.
    pub parent_pid: Option<u32>,
    /// Users and groups.
    pub credentials: Option<Credentials>,
    /// The rest.
    pub details: Details,
}

fn image(exec: &Exec, before: &Image) -> Image {
    let (args, args_cut) = split(&exec.arguments, exec.argument_count);
    // A program that executes itself again, as busybox does, says so by a link that means another file to us.
    let itself = exec.filename == b"/proc/self/exe";
    let (name, executable) = match before.executable().filter(|_| itself) {
        Some(path) => (base_name(path.as_os_str().as_encoded_bytes()), Some(path.clone())),
        None => (base_name(&exec.filename), absolute(&exec.interpreter)),
    };
    Image { name, executable, args, args_cut, details: std::sync::OnceLock::new() }
}

fn base_name(path: &[u8]) -> String {
    text(path.rsplit(|b| *b == b'/').next().unwrap_or_default())
}

fn absolute(path: &[u8]) -> Option<PathBuf> {
    Some(PathBuf::from(text(path))).filter(|path| path.is_absolute())
}

/// Splits an argument area; the second result says whether the area ended before the arguments did.
fn split(area: &[u8], count: Option<u32>) -> (Vec<String>, bool) {
    let wanted = count.map_or(usize::MAX, |n| n as usize);
    let mut args = Vec::new();
    let mut rest = area;
    while args.len() < wanted {
        let Some(end) = rest.iter().position(|b| *b == 0) else {
            if !rest.is_empty() {
                args.push(text(rest));
            }
            return (args, true);
        };
        args.push(text(&rest[..end]));
        rest = &rest[end + 1..];
    }
    (args, false)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(name: &str, args: &[u8], count: u32) -> Exec {
        Exec { filename: name.into(), interpreter: name.into(), arguments: args.to_vec(), argument_count: Some(count) }
    }

    #[test]
    fn environment_after_the_arguments_is_not_taken_for_arguments() {
        let (args, cut) = split(b"curl\0-s\0\0PATH=/bin\0", Some(3));
        assert_eq!(args, ["curl", "-s", ""]);
        assert!(!cut);
    }

    #[test]
    fn a_cut_area_is_said_to_be_cut() {
        let (args, cut) = split(b"curl\0http://exam", Some(2));
        assert_eq!(args, ["curl", "http://exam"]);
        assert!(cut);
    }

    #[test]
    fn a_fork_keeps_program_and_credentials_until_it_changes_them() {
        let mut table = Processes::new(10);
        table.fork(1, Fork { child: 10, start: 5 });
        table.exec(10, &exec("/bin/sh", b"sh\0", 1));
        table.credentials(10, Credentials { uid: 7, ..Credentials::default() });
        table.fork(10, Fork { child: 11, start: 6 });
        let child = table.actor(11);
        assert_eq!((child.parent_pid, child.image.name.as_str()), (Some(10), "sh"));
        assert_eq!(child.credentials.map(|c| c.uid), Some(7));
        table.exec(11, &exec("/usr/bin/curl", b"curl\0", 1));
        assert_eq!(child.image.name, "sh", "what was bound earlier stays as it was");
        assert_eq!(table.latest(&child).image.name, "curl");
        assert_eq!(table.actor(10).image.name, "sh");
    }

    #[test]
    fn a_program_that_executes_itself_again_is_named_by_its_file() {
        let mut table = Processes::new(10);
        table.fork(1, Fork { child: 10, start: 5 });
        table.exec(10, &exec("/bin/busybox", b"sh\0", 1));
        table.exec(10, &exec("/proc/self/exe", b"wget\0", 1));
        let process = table.actor(10);
        assert_eq!(process.image.name, "busybox");
        assert_eq!(process.image.executable(), Some(&PathBuf::from("/bin/busybox")));
        assert_eq!(process.image.args(), ["wget"]);
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut table = Processes::new(10);
        table.fork(1, Fork { child: 10, start: 5 });
        let old = table.actor(10);
        table.exit(10, 100);
        table.fork(1, Fork { child: 10, start: 200 });
        assert_eq!(table.latest(&old).start, Some(5));
        table.expire(100 + LINGER);
        assert_eq!(table.actor(10).start, Some(200), "the old one's end does not take the new one away");
    }

    #[test]
    fn the_table_is_bounded_and_the_gone_make_room() {
        let mut table = Processes::new(2);
        table.fork(1, Fork { child: 10, start: 1 });
        table.fork(1, Fork { child: 11, start: 2 });
        table.fork(1, Fork { child: 12, start: 3 });
        assert_eq!((table.len(), table.refused), (2, 1));
        table.exit(10, 9);
        table.fork(1, Fork { child: 12, start: 3 });
        assert_eq!((table.len(), table.refused), (2, 1));
    }
}
