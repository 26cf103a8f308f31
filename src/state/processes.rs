//! The table of processes: those that live, and those that ended a short time ago.
//!
//! A process lives as long as one of its threads. The start and the end of each thread is an event, and so is an exec, which
//! ends all threads but its caller and gives the caller the main thread's id. If such an event was lost, a later event of the
//! process shows that it still lives, and a periodic check in `/proc` shows that it does not.

mod doubt;
mod image;
mod lookups;
mod moves;
mod programs;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
mod threads;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

pub use self::lookups::FoundProcess;

use self::image::image;
use self::moves::Moves;
use self::programs::Programs;
use self::threads::Threads;
use crate::model::event::{Exec, Fork, ThreadStarted};
use crate::model::pairing::Joiner;
use crate::model::process::{Credentials, ExecutedFile, Process};
use crate::model::time::{BootTime, MonotonicTime};

/// How long a process is kept after its end, for late events of it. Its flows hold it for as long as they need.
const LINGER: Duration = Duration::from_secs(10);
/// The maximum number of processes that wait for a lookup in `/proc`.
const MAX_WANTED: usize = 1024;
/// A clock tick, the unit of times in `/proc`.
const TICK: Duration = Duration::from_millis(10);
/// The time between two checks that each process still exists. The event of its end may have been lost.
const CHECK_PERIOD: Duration = Duration::from_secs(300);

/// Processes by id.
#[derive(Debug)]
pub struct Processes {
    by_pid: HashMap<u32, Entry, foldhash::fast::RandomState>,
    /// Processes that have ended, in order of time.
    exited: VecDeque<(MonotonicTime, u32)>,
    /// Processes that wait for a lookup in `/proc`.
    wanted: VecDeque<u32>,
    /// Requests for such a lookup that found no room.
    wanted_refused: u64,
    /// Processes that wait for a check that they still exist.
    unchecked: VecDeque<u32>,
    last_check: Check,
    /// The latest time that was passed to [`Processes::expire`].
    now: MonotonicTime,
    /// The number of known threads besides main threads.
    threads: usize,
    /// Execs that wait for the event of their file, and files that wait for the event of their exec.
    execs: Joiner<(), ExecutedFile>,
    limit: usize,
    moves: Moves,
    programs: Programs,
    /// The number of the present epoch: see [`doubt`].
    epoch: u32,
    /// When the epoch began.
    epoch_began: MonotonicTime,
    /// Whether another epoch must begin as soon as this one is long enough.
    epoch_postponed: bool,
    /// Processes that found no room.
    pub refused: u64,
    /// Threads that found no room: if such a thread is the last of its process, the process seems to end too early.
    pub threads_refused: u64,
}

/// A check that all processes still exist.
#[derive(Debug)]
struct Check {
    /// When it began; zero if there was none.
    began: MonotonicTime,
    /// How many processes had found no room by then.
    refused: u64,
}

#[derive(Debug)]
struct Entry {
    process: Arc<Process>,
    threads: Threads,
    /// When the last thread ended.
    exited: Option<MonotonicTime>,
    /// Whether its start or end is known from `/proc` only, or assumed. A later event may then be older than what is known, or
    /// contradict it.
    tentative: bool,
    /// Whether `/proc` was asked about its present program.
    asked: bool,
    /// The last epoch in which what is known of it was confirmed.
    confirmed_in: u32,
    /// The epoch in which `/proc` was last asked about it.
    asked_in: u32,
    /// The number of losses before its program became known: see [`Programs`].
    losses: u32,
}

impl Entry {
    /// Whether it is the process that this fork created, and is already known from `/proc`, which has start times in ticks only.
    fn is_result_of(&self, fork: &Fork) -> bool {
        let in_tick = |(start, began): (BootTime, BootTime)| (start..start.saturating_add(TICK)).contains(&began);
        self.tentative && self.process.start.zip(fork.start).is_some_and(in_tick)
    }

    /// Whether it is the same process. If start times are not known, processes with the same id are distinguished by their
    /// parents.
    fn is_the_same(&self, process: &Process) -> bool {
        self.process.start == process.start
            && (process.start.is_some() || self.process.parent_pid == process.parent_pid)
    }
}

/// A process that existed before the first event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreexistingProcess {
    /// What is known of it.
    pub process: Process,
    /// Its living threads. The main thread may have ended.
    pub threads: Vec<u32>,
}

impl Processes {
    /// An empty table for at most `limit` processes, and as many threads besides main threads.
    pub fn new(limit: usize) -> Self {
        Self {
            by_pid: HashMap::default(),
            exited: VecDeque::new(),
            wanted: VecDeque::new(),
            wanted_refused: 0,
            unchecked: VecDeque::new(),
            last_check: Check { began: MonotonicTime::ZERO, refused: 0 },
            now: MonotonicTime::ZERO,
            threads: 0,
            execs: Joiner::default(),
            limit,
            moves: Moves::default(),
            programs: Programs::default(),
            epoch: 0,
            epoch_began: MonotonicTime::ZERO,
            epoch_postponed: false,
            refused: 0,
            threads_refused: 0,
        }
    }

    /// The number of known processes.
    pub fn len(&self) -> usize {
        self.by_pid.len()
    }

    /// The number of known threads besides main threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The process that has this id now, if it is known.
    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.by_pid.get(&pid).map(|entry| &*entry.process)
    }

    /// Lookups in `/proc` that found no room.
    pub fn lookups_refused(&self) -> u64 {
        self.wanted_refused + self.programs.refused
    }

    /// Control groups of threads and new processes that were forgotten, because there were too many.
    pub fn control_groups_forgotten(&self) -> u64 {
        self.moves.forgotten
    }

    /// Like [`Processes::get`], as a shared value.
    pub fn known(&self, pid: u32) -> Option<Arc<Process>> {
        self.by_pid.get(&pid).map(|entry| Arc::clone(&entry.process))
    }

    /// The process of the thread that caused an event. If the process was not known, only its id is. Requests a lookup in `/proc`.
    pub fn process_of_running_thread(&mut self, pid: u32, tid: u32) -> Arc<Process> {
        self.ensure_known(pid, Some(tid));
        self.note_alive(pid, tid);
        self.want_details(pid)
    }

    /// The process that caused an event and may have ended before: the kernel closes descriptors after the end of their process.
    pub fn process_that_may_have_ended(&mut self, pid: u32) -> Arc<Process> {
        self.ensure_known(pid, None);
        self.want_details(pid)
    }

    /// A thread does something, so it lives: adds it to its process, if that is known.
    pub fn note_alive(&mut self, pid: u32, tid: u32) {
        match self.by_pid.get(&pid) {
            Some(entry) if entry.exited.is_some() && tid == pid && !entry.tentative => {
                // The id belongs to another process now, whose start was not seen.
                self.insert(Process::new(pid), Threads::leader());
            }
            // If all its threads seemed to have ended, this one's start was not seen, or `/proc` was ahead of the
            // events.
            Some(_) => self.add_thread(pid, tid),
            None => {}
        }
    }

    /// A process as it is now, with its present program and credentials, if the id still belongs to it.
    pub fn latest(&self, process: &Arc<Process>) -> Arc<Process> {
        match self.by_pid.get(&process.pid) {
            Some(entry) if entry.is_the_same(process) => Arc::clone(&entry.process),
            _ => Arc::clone(process),
        }
    }

    /// Whether a process is in the control group with this path, or in one below it. A process that is not known, or whose group is
    /// not, is in no group.
    pub fn is_in_group(&self, process: Option<&Arc<Process>>, path: &str) -> bool {
        let is_in_it = |process: &Process| process.control_groups.as_ref()?.is_in(path);
        // What was not known when the process did something may be known now.
        let found = |process: &Arc<_>| is_in_it(process).or_else(|| is_in_it(&self.latest(process)));
        process.and_then(found).unwrap_or(false)
    }

    /// Adds a process from `/proc` that existed before the first event, unless events have added it already.
    pub fn add_preexisting(&mut self, old: PreexistingProcess) {
        let pid = old.process.pid;
        let process = self.programs.preexisting(self.moves.preexisting(old.process));
        if self.by_pid.contains_key(&pid) || !self.insert(process, Threads::default()) {
            return;
        }
        old.threads.into_iter().for_each(|tid| self.add_thread(pid, tid));
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            entry.tentative = true;
        }
    }

    /// `parent` created a process.
    pub fn fork(&mut self, parent: u32, fork: Fork) {
        let start_group = self.moves.start_group(fork.child);
        if let Some(entry) = self.by_pid.get_mut(&fork.child).filter(|entry| entry.is_result_of(&fork)) {
            // What is known from `/proc` is newer than what is known of its parent.
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
            None => Process { parent_pid: Some(parent), start: fork.start, ..Process::new(fork.child) },
        };
        // What is known of a fork is as certain as what is known of its parent.
        let (confirmed_in, losses) = match self.by_pid.get(&parent) {
            Some(entry) => (entry.confirmed_in, entry.losses),
            None => (self.epoch, self.programs.losses()),
        };
        let process = match &start_group {
            Some(group) => moves::in_control_group(process, group),
            None => process,
        };
        let needs_lookup = start_group.is_some() && process.control_groups.is_none();
        if self.insert(process, Threads::leader())
            && let Some(entry) = self.by_pid.get_mut(&fork.child)
        {
            (entry.confirmed_in, entry.losses) = (confirmed_in, losses);
        }
        if needs_lookup {
            self.want_details(fork.child);
        }
    }

    /// A known process has one more thread.
    pub fn thread_started(&mut self, started: ThreadStarted) {
        self.add_thread(started.process, started.thread);
    }

    /// `pid` executed another program. Its calling thread is the only one left, and now the main thread.
    pub fn exec(&mut self, pid: u32, exec: &Exec) {
        let file = self.execs.join_left(pid, ()).map(|((), file)| file);
        self.change(pid, pid, |process| process.image = Arc::new(image(exec, file, &process.image)));
        self.forget_other_threads(pid, Threads::leader());
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            entry.confirmed_in = self.epoch;
        }
        self.find_container(pid);
    }

    /// The file that `pid` runs since its latest exec.
    pub fn executed_file(&mut self, pid: u32, file: &ExecutedFile) {
        if let Some(((), file)) = self.execs.join_right(pid, file.clone())
            && let Some(entry) = self.by_pid.get(&pid)
        {
            // The exec came first and made a new image, so its file cannot have been set before.
            let _ = entry.process.image.file.set(file);
        }
    }

    /// `pid` has these users and groups from now on.
    pub fn credentials(&mut self, pid: u32, tid: u32, credentials: Credentials) {
        self.note_alive(pid, tid);
        // An exec begins with new credentials, so a half that still waits belongs to an earlier exec.
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
    pub fn exit(&mut self, pid: u32, tid: u32, now: MonotonicTime) {
        self.moves.thread_ended(tid);
        let Some(entry) = self.by_pid.get_mut(&pid) else { return };
        if !entry.threads.remove(pid, tid) {
            return;
        }
        self.threads -= usize::from(tid != pid);
        if entry.threads.is_empty() {
            self.ends(pid, now);
        }
    }

    /// Forgets processes that ended [`LINGER`] ago, and calls `forgotten` for each.
    pub fn expire(&mut self, now: MonotonicTime, mut forgotten: impl FnMut(&Process)) {
        self.now = self.now.max(now);
        self.learn_programs(now);
        let Check { began, refused } = self.last_check;
        // If the table was full, processes whose end was missed are looked for sooner.
        let period = if self.refused > refused { LINGER } else { CHECK_PERIOD };
        if began == MonotonicTime::ZERO {
            self.last_check.began = now;
        } else if began.saturating_add(period) <= now && self.unchecked.is_empty() {
            self.last_check = Check { began: now, refused: self.refused };
            self.unchecked.extend(self.by_pid.keys().filter(|pid| **pid != 0));
        }
        while let Some(&(when, pid)) = self.exited.front() {
            if when.saturating_add(LINGER) > now {
                break;
            }
            self.exited.pop_front();
            if let Some(process) = self.forget(pid, when) {
                forgotten(&process);
            }
        }
    }

    /// Adds a process with this id if it is not known and there is room. It has only the thread `tid`; without a `tid`, it may
    /// have ended already.
    fn ensure_known(&mut self, pid: u32, tid: Option<u32>) {
        if self.by_pid.contains_key(&pid) || !self.insert(Process::new(pid), Threads::default()) {
            return;
        }
        match tid {
            Some(tid) => self.add_thread(pid, tid),
            None => self.ends_unseen(pid),
        }
    }

    /// Adds a process, or replaces the one with the same id. Returns whether there was room.
    fn insert(&mut self, process: Process, threads: Threads) -> bool {
        let pid = process.pid;
        if self.by_pid.len() >= self.limit && !self.by_pid.contains_key(&pid) && !self.make_room() {
            self.refused += 1;
            return false;
        }
        self.remove(pid);
        let (process, epoch, losses) = (Arc::new(process), self.epoch, self.programs.losses());
        let (exited, tentative, asked) = (None, false, false);
        let entry = Entry { process, threads, exited, tentative, asked, confirmed_in: epoch, asked_in: epoch, losses };
        self.by_pid.insert(pid, entry);
        true
    }

    fn remove(&mut self, pid: u32) -> Option<Arc<Process>> {
        let entry = self.by_pid.remove(&pid)?;
        self.threads -= entry.threads.others();
        Some(entry.process)
    }

    /// A process has no more threads.
    fn ends(&mut self, pid: u32, now: MonotonicTime) {
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            entry.exited = Some(now);
            self.exited.push_back((now, pid));
        }
    }

    /// A process has no more threads, although their ends were not seen.
    fn ends_unseen(&mut self, pid: u32) {
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            entry.tentative = true;
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

    /// A process has at most its main thread left.
    fn forget_other_threads(&mut self, pid: u32, left: Threads) {
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            self.threads -= entry.threads.others();
            entry.threads = left;
        }
    }

    /// Changes a process, which is added if it is not known. No lookup is requested, because it may never own a socket.
    fn change(&mut self, pid: u32, tid: u32, change: impl FnOnce(&mut Process)) {
        self.ensure_known(pid, Some(tid));
        self.note_alive(pid, tid);
        if let Some(entry) = self.by_pid.get_mut(&pid) {
            change(Arc::make_mut(&mut entry.process));
            entry.asked = false;
        }
    }

    /// Forgets the process that ended first. Returns whether there was one.
    fn make_room(&mut self) -> bool {
        while let Some((when, pid)) = self.exited.pop_front() {
            if self.forget(pid, when).is_some() {
                return true;
            }
        }
        false
    }

    /// Forgets the process `pid` that ended at this time, unless the id belongs to another process now.
    fn forget(&mut self, pid: u32, exited: MonotonicTime) -> Option<Arc<Process>> {
        let is_gone = self.by_pid.get(&pid).is_some_and(|entry| entry.exited == Some(exited));
        is_gone.then(|| self.remove(pid)).flatten()
    }
}
