//! The table of processes: who is who, now and a little after they are gone.
//!
//! A process lives as long as one of its threads. Each thread's start and end is an event. So is an exec, after which
//! only the thread that called it is left, with the leading thread's id. If such an event was lost, a later event of
//! the process shows that it still lives, and a periodic look into `/proc` shows that it does not.

mod moves;
mod programs;
#[cfg(test)]
mod properties;
mod threads;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;

use self::moves::Moves;
use self::programs::Programs;
use self::threads::Threads;
use crate::container::Containers;
use crate::event::{Credentials, Exec, Fork, KernelTime, Ran, ThreadStarted};
use crate::halves::Halves;
use crate::process::{Details, Image, Process};

/// How long an exited process is kept for events that name it late. Its flows keep it for as long as they need.
const LINGER: KernelTime = 10_000_000_000;
/// How long after a loss a further one does not put processes in doubt again: under a flood of losses, `/proc` must not
/// be read for every process all the time.
const DOUBT: KernelTime = 250_000_000;
/// How many processes may wait for `/proc` to be read.
const MAX_WANTED: usize = 1024;
/// Nanoseconds in a clock tick, the unit of times in `/proc`.
const TICK: u64 = 10_000_000;
/// How often to check that each process still exists: the event of its end may have been lost.
const CHECK_PERIOD: KernelTime = 300_000_000_000;

/// Processes by id.
#[derive(Debug)]
pub struct Processes {
    by_pid: HashMap<u32, Entry, foldhash::fast::RandomState>,
    exited: VecDeque<(KernelTime, u32)>,
    wanted: VecDeque<u32>,
    unchecked: VecDeque<u32>,
    /// When the last check began, and how many processes had been refused by then.
    checked: (KernelTime, u64),
    now: KernelTime,
    /// How many threads are known besides the leading ones.
    threads: usize,
    /// Execs that wait for the event with their file, and files that wait for the event of their exec.
    execs: Halves<(), Ran>,
    limit: usize,
    moves: Moves,
    programs: Programs,
    /// Incremented when events of processes may have been lost.
    epoch: u32,
    /// When it was last incremented.
    doubted: KernelTime,
    /// Whether it must be incremented once more, when enough time has passed.
    doubt_pending: bool,
    /// Processes that found no room.
    pub refused: u64,
    /// Threads that found no room: if such a thread is the last of its process, the process seems to end too early.
    pub threads_refused: u64,
}

#[derive(Debug)]
struct Entry {
    process: Arc<Process>,
    threads: Threads,
    /// When the last thread ended.
    exited: Option<KernelTime>,
    /// Whether its start or end is not known from an event: later events may then be older than what is known, or
    /// contradict it.
    unsure: bool,
    asked: bool,
    /// The last epoch in which what is known of it was certain.
    sure: u32,
    /// The epoch in which `/proc` was last asked about it.
    asked_in: u32,
    /// How many losses there had been when its program became known: see [`Programs`].
    losses: u32,
}

impl Entry {
    /// Whether this forked process is already known from `/proc`, which has start times in ticks only.
    fn is_this(&self, fork: &Fork) -> bool {
        let in_tick = |(start, began): (u64, u64)| (start..start.saturating_add(TICK)).contains(&began);
        self.unsure && self.process.start.zip(fork.start).is_some_and(in_tick)
    }

    /// Whether this is the same process. Where nothing tells when processes begin, another with the same id is told by its
    /// parent.
    fn is_the_same(&self, process: &Process) -> bool {
        self.process.start == process.start
            && (process.start.is_some() || self.process.parent_pid == process.parent_pid)
    }
}

/// A process that is older than the first event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldProcess {
    /// What is known of it.
    pub process: Process,
    /// Its living threads; the leading one need not be among them.
    pub threads: Vec<u32>,
}

impl Processes {
    /// An empty table for at most `limit` processes, and as many threads besides the leading ones.
    pub fn new(limit: usize) -> Self {
        Self {
            by_pid: HashMap::default(),
            exited: VecDeque::new(),
            wanted: VecDeque::new(),
            unchecked: VecDeque::new(),
            checked: (0, 0),
            now: 0,
            threads: 0,
            execs: Halves::default(),
            limit,
            moves: Moves::default(),
            programs: Programs::default(),
            epoch: 0,
            doubted: 0,
            doubt_pending: false,
            refused: 0,
            threads_refused: 0,
        }
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.by_pid.len()
    }

    /// How many threads are known besides the leading ones.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The process that has this id now, if it is known.
    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.by_pid.get(&pid).map(|entry| &*entry.process)
    }

    /// The same, to keep.
    pub fn known(&self, pid: u32) -> Option<Arc<Process>> {
        self.by_pid.get(&pid).map(|entry| Arc::clone(&entry.process))
    }

    /// The process of the thread with these ids, which does something now; a nameless process if nothing else is known
    /// of it. Its details in `/proc` are asked for, since it has come to matter.
    pub fn actor(&mut self, pid: u32, tid: u32) -> Arc<Process> {
        self.make_known(pid, Some(tid));
        self.acts(pid, tid);
        self.matters(pid)
    }

    /// The same for a thread that may have ended already: its descriptors are closed after its end.
    pub fn leaver(&mut self, pid: u32) -> Arc<Process> {
        self.make_known(pid, None);
        self.matters(pid)
    }

    /// A thread does something, so it is alive: it is added to its process, if that is known.
    pub fn acts(&mut self, pid: u32, tid: u32) {
        match self.by_pid.get(&pid) {
            Some(entry) if entry.exited.is_some() && tid == pid && !entry.unsure => {
                // The id has a new owner whose start was not seen.
                self.insert(nameless(pid), Threads::leader());
            }
            // If all its threads seemed to have ended, this one's start was not seen, or `/proc` was ahead of the
            // events.
            Some(_) => self.add_thread(pid, tid),
            None => {}
        }
    }

    /// Events of processes were lost: any process may run another program than is known, or be another process.
    pub fn doubt(&mut self, now: KernelTime) {
        self.doubt_pending = true;
        self.doubt_what_is_pending(now);
    }

    /// The same for a doubt that was postponed, so that `/proc` is not asked about all processes too often.
    pub fn doubt_what_is_pending(&mut self, now: KernelTime) {
        if self.doubt_pending && now >= self.doubted.saturating_add(DOUBT) {
            (self.epoch, self.doubted, self.doubt_pending) = (self.epoch.wrapping_add(1), now, false);
        }
    }

    /// Whether what is known of a process may be out of date because of a loss. If so, `/proc` is asked about it.
    pub fn confirm(&mut self, process: &Process) -> bool {
        let is_doubtful = self.is_doubtful(process);
        if is_doubtful {
            self.ask_about(process.pid);
        }
        is_doubtful
    }

    /// Whether what is known of it may be out of date because of a loss, and has not been confirmed since.
    pub fn is_doubtful(&self, process: &Process) -> bool {
        let is_this = |entry: &&Entry| self.programs.are_the_same(&entry.process, process);
        let entry = self.by_pid.get(&process.pid).filter(is_this);
        let is_sure = entry.is_some_and(|entry| entry.sure == self.epoch && !self.doubt_pending);
        !is_sure && !process.kernel && (self.epoch, self.doubt_pending) != (0, false)
    }

    /// The present form of a process that was seen earlier: with its new program or credentials, if it is still
    /// the same process.
    pub fn latest(&self, process: &Arc<Process>) -> Arc<Process> {
        match self.by_pid.get(&process.pid) {
            Some(entry) if entry.is_the_same(process) => Arc::clone(&entry.process),
            _ => Arc::clone(process),
        }
    }

    /// A process that was there before events were: from `/proc`. What events said already is kept.
    pub fn adopt(&mut self, old: OldProcess) {
        let pid = old.process.pid;
        let process = self.programs.adopted(self.moves.adopted(old.process));
        if self.by_pid.contains_key(&pid) || !self.insert(process, Threads::default()) {
            return;
        }
        old.threads.into_iter().for_each(|tid| self.add_thread(pid, tid));
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            entry.unsure = true;
        }
    }

    /// `parent` made a process.
    pub fn fork(&mut self, parent: u32, fork: Fork) {
        let start_group = self.moves.begins_elsewhere(fork.child);
        if let Some(entry) = self.by_pid.get_mut(&fork.child).filter(|entry| entry.is_this(&fork)) {
            // What `/proc` said of it is newer than what is known of its parent.
            let process = Arc::make_mut(&mut entry.process);
            (process.parent_pid, process.start) = (Some(parent), fork.start);
            return self.add_thread(fork.child, fork.child);
        }
        let process = match self.by_pid.get(&parent) {
            Some(entry) => Process {
                pid: fork.child,
                parent_pid: Some(parent),
                start: fork.start,
                image: self.programs.inherited(&entry.process),
                ..(*entry.process).clone()
            },
            None => Process { parent_pid: Some(parent), start: fork.start, ..nameless(fork.child) },
        };
        // It is a copy of its parent, and just as certain.
        let (sure, losses) = match self.by_pid.get(&parent) {
            Some(entry) => (entry.sure, entry.losses),
            None => (self.epoch, self.programs.losses()),
        };
        let process = match &start_group {
            Some(group) => moves::in_control_group(process, group),
            None => process,
        };
        let is_to_find = start_group.is_some() && process.containers.is_none();
        if self.insert(process, Threads::leader())
            && let Some(entry) = self.by_pid.get_mut(&fork.child)
        {
            (entry.sure, entry.losses) = (sure, losses);
        }
        if is_to_find {
            self.matters(fork.child);
        }
    }

    /// A known process has one more thread.
    pub fn thread(&mut self, started: ThreadStarted) {
        self.add_thread(started.process, started.thread);
    }

    /// `pid` executed another program. All its threads have ended but the one that did it, which is now the leading
    /// one.
    pub fn exec(&mut self, pid: u32, exec: &Exec) {
        let ran = self.execs.join_left(pid, ()).map(|((), ran)| ran);
        self.change(pid, pid, |process| process.image = Arc::new(image(exec, ran, &process.image)));
        self.set_threads(pid, Threads::leader());
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            entry.sure = self.epoch;
        }
        self.find_container(pid);
    }

    /// The file that `pid` runs since its exec of this moment.
    pub fn ran(&mut self, pid: u32, ran: &Ran) {
        if let Some(((), ran)) = self.execs.join_right(pid, ran.clone())
            && let Some(entry) = self.by_pid.get(&pid)
        {
            // The exec came first and made a new image, so its file cannot have been set before.
            let _ = entry.process.image.file.set(ran);
        }
    }

    /// Events were lost: the other half of what waits may be among them, and so may moves into other control groups.
    pub fn samples_lost(&mut self) {
        self.execs.clear();
        self.moves_lost();
        self.programs.lost();
    }

    /// `pid` acts as somebody else from now on.
    pub fn credentials(&mut self, pid: u32, tid: u32, credentials: Credentials) {
        self.acts(pid, tid);
        // This is the first event of an exec, so a half that still waits belongs to an earlier one.
        self.execs.forget(pid);
        let may_exec = self.programs.may_change_with_credentials();
        if !may_exec && self.by_pid.get(&pid).is_some_and(|entry| entry.process.credentials == Some(credentials)) {
            return;
        }
        self.change(pid, tid, |process| {
            process.credentials = Some(credentials);
            if may_exec {
                process.image = Arc::default();
            }
        });
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            entry.losses = self.programs.losses();
        }
    }

    /// A thread ended, and if it was the last one, so did its process. An unknown thread changes nothing.
    pub fn exit(&mut self, pid: u32, tid: u32, now: KernelTime) {
        let Some(entry) = self.by_pid.get_mut(&pid) else { return };
        if !entry.threads.remove(pid, tid) {
            return;
        }
        self.threads -= usize::from(tid != pid);
        if entry.threads.is_empty() {
            self.ends(pid, now);
        }
    }

    /// A process that should be looked up in `/proc`. If it does not exist any more, call [`Self::gone`].
    pub fn next_unchecked(&mut self) -> Option<Arc<Process>> {
        while let Some(pid) = self.unchecked.pop_front() {
            if let Some(entry) = self.by_pid.get(&pid).filter(|entry| entry.exited.is_none()) {
                return Some(Arc::clone(&entry.process));
            }
        }
        None
    }

    /// The process has ended without an event.
    pub fn gone(&mut self, process: &Process) {
        let known = self.by_pid.get(&process.pid);
        if known.is_some_and(|entry| entry.is_the_same(process) && entry.exited.is_none()) {
            self.set_threads(process.pid, Threads::default());
            self.ends_unseen(process.pid);
        }
    }

    /// Forgets processes that have been gone for a while.
    pub fn expire(&mut self, now: KernelTime) {
        self.now = self.now.max(now);
        self.learn_programs(now);
        let (checked, refused) = self.checked;
        let period = if self.refused > refused { LINGER } else { CHECK_PERIOD };
        if checked == 0 {
            self.checked.0 = now;
        } else if checked + period <= now && self.unchecked.is_empty() {
            self.checked = (now, self.refused);
            self.unchecked.extend(self.by_pid.keys().filter(|pid| **pid != 0));
        }
        while let Some(&(when, pid)) = self.exited.front() {
            if when.saturating_add(LINGER) > now {
                break;
            }
            self.exited.pop_front();
            self.forget(pid, when);
        }
    }

    /// A process whose details somebody should read from `/proc`.
    pub fn next_wanted(&mut self) -> Option<Arc<Process>> {
        while let Some(pid) = self.wanted.pop_front() {
            if let Some(process) = self.known(pid) {
                return Some(process);
            }
        }
        None
    }

    /// The process of this id, whose details need not be read any more.
    pub fn take_wanted(&mut self, pid: u32) -> Option<Arc<Process>> {
        self.wanted.retain(|wanted| *wanted != pid);
        self.known(pid)
    }

    /// Takes what `/proc` said about `process`. The caller has made sure that it is the same process running the
    /// same program: a wrong answer is worse than none.
    pub fn learn(&mut self, process: &Arc<Process>, mut found: Found) {
        let details = std::mem::take(&mut found.details);
        if let Some(details) = self.programs.proven(process, details, found.read) {
            // Somebody else cannot have set it: each image is asked about once.
            let _ = process.image.details.set(details);
        }
        let Some(entry) = self.by_pid.get_mut(&process.pid).filter(|entry| entry.is_the_same(process)) else {
            return;
        };
        let now = Arc::make_mut(&mut entry.process);
        now.start = now.start.or(found.start);
        now.parent_pid = now.parent_pid.or(found.parent_pid);
        if now.credentials.is_some() && found.credentials.is_some() && now.credentials != found.credentials {
            now.credentials = found.credentials; // a change of user was lost: what came before stays in doubt
        } else {
            now.credentials = now.credentials.or(found.credentials);
            entry.sure = entry.asked_in;
        }
        self.moves.learn(now, found.containers);
    }

    /// Makes sure that there is a process with this id, if there is room. A new one has only this thread or, without a
    /// `tid`, may have ended already.
    fn make_known(&mut self, pid: u32, tid: Option<u32>) {
        if self.by_pid.contains_key(&pid) || !self.insert(nameless(pid), Threads::default()) {
            return;
        }
        match tid {
            Some(tid) => self.add_thread(pid, tid),
            None => self.ends_unseen(pid),
        }
    }

    /// Returns a process and asks for its details.
    fn matters(&mut self, pid: u32) -> Arc<Process> {
        self.ask_about(pid);
        self.known(pid).unwrap_or_else(|| Arc::new(nameless(pid)))
    }

    /// Asks for what `/proc` knows of a process: once for each program, and again when what is known is in doubt.
    fn ask_about(&mut self, pid: u32) {
        let Some(entry) = self.by_pid.get_mut(&pid).filter(|entry| !entry.process.kernel) else { return };
        let is_in_doubt = entry.sure != self.epoch && entry.asked_in != self.epoch;
        let may_have_changed = self.programs.may_change_with_credentials() && entry.losses != self.programs.losses();
        if (!entry.asked || is_in_doubt || may_have_changed) && self.wanted.len() < MAX_WANTED {
            if may_have_changed {
                Arc::make_mut(&mut entry.process).image = Arc::default();
                entry.losses = self.programs.losses();
            }
            (entry.asked, entry.asked_in) = (true, self.epoch);
            self.wanted.push_back(pid);
        }
    }

    fn insert(&mut self, process: Process, threads: Threads) -> bool {
        let pid = process.pid;
        if self.by_pid.len() >= self.limit && !self.by_pid.contains_key(&pid) && !self.make_room() {
            self.refused += 1;
            return false;
        }
        self.remove(pid);
        let (process, epoch, losses) = (Arc::new(process), self.epoch, self.programs.losses());
        let (exited, unsure, asked) = (None, false, false);
        let entry = Entry { process, threads, exited, unsure, asked, sure: epoch, asked_in: epoch, losses };
        self.by_pid.insert(pid, entry);
        true
    }

    fn remove(&mut self, pid: u32) {
        if let Some(entry) = self.by_pid.remove(&pid) {
            self.threads -= entry.threads.others();
        }
    }

    /// A process has no more threads.
    fn ends(&mut self, pid: u32, now: KernelTime) {
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            entry.exited = Some(now);
            self.exited.push_back((now, pid));
        }
    }

    /// The same without an event.
    fn ends_unseen(&mut self, pid: u32) {
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            entry.unsure = true;
        }
        self.ends(pid, self.now);
    }

    fn add_thread(&mut self, pid: u32, tid: u32) {
        let Some(entry) = self.by_pid.get_mut(&pid).filter(|entry| !entry.threads.contains(pid, tid)) else { return };
        let is_other = tid != pid;
        if is_other && self.threads >= self.limit {
            self.threads_refused += 1;
            return;
        }
        entry.threads.insert(pid, tid);
        entry.exited = None;
        self.threads += usize::from(is_other);
    }

    fn set_threads(&mut self, pid: u32, threads: Threads) {
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            self.threads = self.threads + threads.others() - entry.threads.others();
            entry.threads = threads;
        }
    }

    /// Changes a process, which is added if it is not known. Its details are not asked for: it may never own a socket.
    fn change(&mut self, pid: u32, tid: u32, change: impl FnOnce(&mut Process)) {
        self.make_known(pid, Some(tid));
        self.acts(pid, tid);
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
        if gone {
            self.remove(pid);
        }
        gone
    }
}

/// A process whose id is known, and nothing else.
pub(super) fn nameless(pid: u32) -> Process {
    Process {
        pid,
        parent_pid: None,
        start: None,
        kernel: pid == 0,
        credentials: None,
        containers: None,
        image: Arc::default(),
    }
}

/// What `/proc` said of one process.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// When it was read. Once [`State::expire`](super::State::expire) is told a later time, all events from before have
    /// been taken in.
    pub read: KernelTime,
    /// Nanoseconds since boot.
    pub start: Option<u64>,
    /// Parent.
    pub parent_pid: Option<u32>,
    /// Users and groups.
    pub credentials: Option<Credentials>,
    /// Containers.
    pub containers: Containers,
    /// The rest.
    pub details: Details,
}

fn image(exec: &Exec, ran: Option<Ran>, before: &Image) -> Image {
    let (args, args_cut) = split(&exec.arguments, exec.argument_count);
    // A program that executes itself again, as busybox does, says so by a link that means another file to us.
    let itself = exec.filename == b"/proc/self/exe";
    let (name, executable) = match before.executable().filter(|_| itself) {
        Some(path) => (base_name(path.as_os_str().as_encoded_bytes()), Some(path.clone())),
        None => (named(&exec.filename), absolute(&exec.interpreter)),
    };
    let file = ran.map_or_else(OnceLock::new, OnceLock::from);
    Image { name, file, executable, args, argument_count: exec.argument_count, args_cut, details: OnceLock::new() }
}

/// The name of the file at an executed path; empty if the path is that of a descriptor.
fn named(path: &[u8]) -> String {
    if is_link_of_a_task(path) { String::new() } else { base_name(path) }
}

/// Whether a path may lead to a different file for each task: `/dev/fd` is a link to `/proc/self/fd`.
fn is_link_of_a_task(path: &[u8]) -> bool {
    path.starts_with(b"/proc/") || path.starts_with(b"/dev/fd/")
}

fn base_name(path: &[u8]) -> String {
    text(path.rsplit(|b| *b == b'/').next().unwrap_or_default())
}

fn absolute(path: &[u8]) -> Option<PathBuf> {
    let path = Some(path).filter(|path| path.starts_with(b"/") && !is_link_of_a_task(path))?;
    Some(OsStr::from_bytes(path).into())
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
        table.fork(1, Fork { child: 10, start: Some(5) });
        table.exec(10, &exec("/bin/sh", b"sh\0", 1));
        table.credentials(10, 10, Credentials { uid: 7, ..Credentials::default() });
        table.fork(10, Fork { child: 11, start: Some(6) });
        let child = table.actor(11, 11);
        assert_eq!((child.parent_pid, child.image.name.as_str()), (Some(10), "sh"));
        assert_eq!(child.credentials.map(|c| c.uid), Some(7));
        table.exec(11, &exec("/usr/bin/curl", b"curl\0", 1));
        assert_eq!(child.image.name, "sh", "what was bound earlier stays as it was");
        assert_eq!(table.latest(&child).image.name, "curl");
        assert_eq!(table.actor(10, 10).image.name, "sh");
    }

    #[test]
    fn a_program_that_executes_itself_again_is_named_by_its_file() {
        let mut table = Processes::new(10);
        table.fork(1, Fork { child: 10, start: Some(5) });
        table.exec(10, &exec("/bin/busybox", b"sh\0", 1));
        table.exec(10, &exec("/proc/self/exe", b"wget\0", 1));
        let process = table.actor(10, 10);
        assert_eq!(process.image.name, "busybox");
        assert_eq!(process.image.executable(), Some(&PathBuf::from("/bin/busybox")));
        assert_eq!(process.image.args(), ["wget"]);
    }

    fn ran(path: &str) -> Ran {
        Ran::Path(path.into())
    }

    #[test]
    fn an_exec_and_the_file_that_it_runs_meet_in_either_order() {
        for file_first in [true, false] {
            let mut table = Processes::new(10);
            table.fork(1, Fork { child: 10, start: Some(5) });
            let before = table.actor(10, 10);
            if file_first {
                table.ran(10, &ran("/usr/bin/python3.11"));
            }
            table.exec(10, &exec("/usr/bin/python3", b"python3\0", 1));
            if !file_first {
                table.ran(10, &ran("/usr/bin/python3.11"));
            }
            let process = table.actor(10, 10);
            assert_eq!(process.image.executable(), Some(&PathBuf::from("/usr/bin/python3.11")));
            assert_eq!(before.image.executable(), None);
            let later = Details { executable: Some("/usr/bin/python3.11 (deleted)".into()), ..Details::default() };
            table.learn(&process, Found { details: later, ..Found::default() });
            assert_eq!(process.image.executable(), Some(&PathBuf::from("/usr/bin/python3.11")), "as at the exec");
        }
    }

    #[test]
    fn a_file_whose_exec_was_lost_is_not_that_of_the_next() {
        let mut table = Processes::new(10);
        table.fork(1, Fork { child: 10, start: Some(5) });
        table.ran(10, &ran("/bin/lost"));
        table.credentials(10, 10, Credentials::default());
        table.exec(10, &exec("/bin/next", b"next\0", 1));
        assert_eq!(table.actor(10, 10).image.executable(), Some(&PathBuf::from("/bin/next")));
        table.ran(11, &ran("/bin/lost"));
        table.samples_lost();
        table.exec(11, &exec("/bin/next", b"next\0", 1));
        assert_eq!(table.actor(11, 11).image.executable(), Some(&PathBuf::from("/bin/next")));
    }

    #[test]
    fn what_cannot_be_the_file_is_not_told() {
        let mut table = Processes::new(10);
        for (pid, path) in [(10, "/proc/self/fd/4"), (11, "/dev/fd/4"), (12, "./nc"), (13, "nc")] {
            table.exec(pid, &exec(path, b"nc\0", 1));
            assert_eq!(table.actor(pid, pid).image.executable(), None, "{path}");
        }
        table.exec(14, &exec("/a/link", b"nc\0", 1));
        table.ran(14, &Ran::TooDeep);
        assert_eq!(table.actor(14, 14).image.executable(), None, "it may be a link");
        table.exec(15, &exec("/dev/fd/4", b"nc\0", 1));
        table.ran(15, &ran("/memfd:x (deleted)"));
        assert_eq!(table.actor(15, 15).image.name(), Some("memfd:x"));
    }

    #[test]
    fn arguments_are_counted_also_when_they_are_cut() {
        let mut table = Processes::new(10);
        table.exec(10, &exec("/bin/sh", b"sh\0-c\0ech", 13));
        let image = &table.actor(10, 10).image;
        assert_eq!((image.args().len(), image.args_count(), image.lacks_args()), (3, 13, true));
        let whole = Details { args: Some(vec![String::new(); 13]), ..Details::default() };
        image.details.set(whole).unwrap();
        assert_eq!((image.args().len(), image.args_count(), image.lacks_args()), (13, 13, false));
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut table = Processes::new(10);
        table.fork(1, Fork { child: 10, start: Some(5) });
        let old = table.actor(10, 10);
        table.exit(10, 10, 100);
        table.fork(1, Fork { child: 10, start: Some(200) });
        assert_eq!(table.latest(&old).start, Some(5));
        table.expire(100 + LINGER);
        assert_eq!(table.actor(10, 10).start, Some(200), "the old one's end does not take the new one away");
    }

    #[test]
    fn without_starts_a_reused_pid_is_told_by_the_parent() {
        let mut table = Processes::new(10);
        let fork = |table: &mut Processes, parent| table.fork(parent, Fork { child: 10, start: None });
        fork(&mut table, 1);
        table.exec(10, &exec("/usr/bin/curl", b"curl\0", 1));
        let old = table.actor(10, 10);
        assert_eq!((old.start, old.image.name.as_str()), (None, "curl"));
        assert_eq!(table.latest(&old).image.name, "curl");
        fork(&mut table, 2);
        table.exec(10, &exec("/bin/cat", b"cat\0", 1));
        assert_eq!(table.latest(&old).image.name, "curl");
        table.gone(&old);
        assert_eq!(table.actor(10, 10).image.name, "cat");
    }

    #[test]
    fn the_table_is_bounded_and_the_gone_make_room() {
        let mut table = Processes::new(2);
        table.fork(1, Fork { child: 10, start: Some(1) });
        table.fork(1, Fork { child: 11, start: Some(2) });
        table.fork(1, Fork { child: 12, start: Some(3) });
        assert_eq!((table.len(), table.refused), (2, 1));
        table.exit(10, 10, 9);
        table.fork(1, Fork { child: 12, start: Some(3) });
        assert_eq!((table.len(), table.refused), (2, 1));
    }
}
