//! Lookups of processes in `/proc`: which are wanted, and what their results change.

use std::sync::Arc;

use super::threads::Threads;
use super::{MAX_WANTED, Processes};
use crate::model::control_groups::ControlGroups;
use crate::model::process::{Credentials, Details, Process};
use crate::model::time::{BootTime, MonotonicTime};

/// A process as `/proc` shows it.
#[derive(Debug, Clone, Default)]
pub struct FoundProcess {
    /// When it was read. All events from before have been processed once [`State::expire`](crate::state::State::expire) was
    /// called with a later time.
    pub read: MonotonicTime,
    /// When it began.
    pub start: Option<BootTime>,
    /// Its parent's id.
    pub parent_pid: Option<u32>,
    /// Its users and groups.
    pub credentials: Option<Credentials>,
    /// The containers that it is in.
    pub control_groups: ControlGroups,
    /// Its name, paths and arguments.
    pub details: Details,
}

impl Processes {
    /// The next process to check. If it no longer exists, call [`Self::gone`].
    pub fn next_unchecked(&mut self) -> Option<Arc<Process>> {
        while let Some(pid) = self.unchecked.pop_front() {
            if let Some(entry) = self.by_pid.get(&pid).filter(|entry| entry.exited.is_none()) {
                return Some(Arc::clone(&entry.process));
            }
        }
        None
    }

    /// The process no longer exists, but the event of its end was not seen.
    pub fn gone(&mut self, process: &Process) {
        let known = self.by_pid.get(&process.pid);
        if known.is_some_and(|entry| entry.is_the_same(process) && entry.exited.is_none()) {
            self.forget_other_threads(process.pid, Threads::default());
            self.ends_unseen(process.pid);
        }
    }

    /// The next process to look up.
    pub fn next_wanted(&mut self) -> Option<Arc<Process>> {
        while let Some(pid) = self.wanted.pop_front() {
            if let Some(process) = self.known(pid) {
                return Some(process);
            }
        }
        None
    }

    /// The process with this id, which need not be looked up any more.
    pub fn take_wanted(&mut self, pid: u32) -> Option<Arc<Process>> {
        self.wanted.retain(|wanted| *wanted != pid);
        self.known(pid)
    }

    /// Applies the result of a lookup. The caller has verified that it is about this process, running the same program: a wrong
    /// result is worse than none.
    pub fn learn(&mut self, process: &Arc<Process>, mut found: FoundProcess) {
        let details = std::mem::take(&mut found.details);
        if let Some(details) = self.programs.about_known_program(process, details, found.read) {
            // They cannot have been set before, because each image is looked up once.
            let _ = process.image.details.set(details);
        }
        let Some(entry) = self.by_pid.get_mut(&process.pid).filter(|entry| entry.is_the_same(process)) else {
            return;
        };
        let now = Arc::make_mut(&mut entry.process);
        now.start = now.start.or(found.start);
        now.parent_pid = now.parent_pid.or(found.parent_pid);
        if now.credentials.is_some() && found.credentials.is_some() && now.credentials != found.credentials {
            now.credentials = found.credentials; // a change was lost, so what came before stays in doubt
        } else {
            now.credentials = now.credentials.or(found.credentials);
            entry.confirmed_in = entry.asked_in;
        }
        self.moves.learn(now, found.control_groups);
    }

    /// Returns a process, and requests its lookup.
    pub(super) fn want_details(&mut self, pid: u32) -> Arc<Process> {
        self.ask_about(pid);
        self.known(pid).unwrap_or_else(|| Arc::new(Process::new(pid)))
    }

    /// Requests a lookup of a process: once for each program, and again when what is known is in doubt.
    pub(super) fn ask_about(&mut self, pid: u32) {
        let Some(entry) = self.by_pid.get_mut(&pid).filter(|entry| !entry.process.kernel) else { return };
        let is_in_doubt = entry.confirmed_in != self.epoch && entry.asked_in != self.epoch;
        let may_have_changed = self.programs.may_change_with_credentials() && entry.losses != self.programs.losses();
        if entry.asked && !is_in_doubt && !may_have_changed {
            return;
        }
        if self.wanted.len() >= MAX_WANTED {
            self.wanted_refused += 1;
            return;
        }
        if may_have_changed {
            Arc::make_mut(&mut entry.process).image = Arc::default();
            entry.losses = self.programs.losses();
        }
        (entry.asked, entry.asked_in) = (true, self.epoch);
        self.wanted.push_back(pid);
    }
}
