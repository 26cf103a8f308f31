//! Which program a process runs, where its execs are no events.
//!
//! Then what is known of its program may be out of date at any time, and a wrong program is worse than none. A fork
//! still runs its parent's program, though, and each exec commits new credentials. So where those are events, a program
//! is known until the next of them. Only `/proc` tells the new one: its answer counts if no new credentials were
//! committed before it was read, and no events were lost. Where not even those are events, no program is known.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Entry, MAX_WANTED, Processes};
use crate::event::{Execs, KernelTime};
use crate::process::{Details, Image, Process};

/// What is known of programs without events of execs.
#[derive(Debug, Default)]
pub struct Programs {
    seen: Execs,
    /// Answers of `/proc` that wait for the events from before they were read.
    unproven: VecDeque<Answer>,
    /// How many times events were lost: new credentials may have been among them.
    losses: u32,
}

#[derive(Debug)]
struct Answer {
    process: Arc<Process>,
    details: Details,
    read: KernelTime,
}

impl Programs {
    /// Prepares a process that is older than the first event.
    pub fn adopted(&self, process: Process) -> Process {
        let image = self.inherited(&process);
        Process { image, ..process }
    }

    /// What a fork of this process runs.
    pub fn inherited(&self, parent: &Process) -> Arc<Image> {
        if self.seen == Execs::Unseen { Arc::default() } else { Arc::clone(&parent.image) }
    }

    /// Whether a process with new credentials may run another program.
    pub fn may_change_with_credentials(&self) -> bool {
        self.seen == Execs::AsCredentials
    }

    /// Events were lost.
    pub fn lost(&mut self) {
        self.losses = self.losses.wrapping_add(1);
    }

    /// How many times events were lost.
    pub fn losses(&self) -> u32 {
        self.losses
    }

    /// Whether these are the same process running the same program.
    pub fn are_the_same(&self, one: &Process, other: &Process) -> bool {
        one.start == other.start && (self.seen == Execs::Seen || Arc::ptr_eq(&one.image, &other.image))
    }

    /// What of the details of a process, read at that time, is about the program it ran when it was asked for.
    pub fn proven(&mut self, process: &Arc<Process>, details: Details, read: KernelTime) -> Option<Details> {
        match self.seen {
            Execs::Seen => Some(details),
            Execs::AsCredentials => {
                // During an exec, no arguments are listed until it has committed its credentials.
                let is_whole = details.args.as_ref().is_some_and(|args| !args.is_empty());
                if is_whole && self.unproven.len() < MAX_WANTED {
                    self.unproven.push_back(Answer { process: Arc::clone(process), details, read });
                }
                None
            }
            Execs::Unseen => Some(Details { container_id: details.container_id, ..Details::default() }),
        }
    }
}

impl Processes {
    /// Sets how execs are seen. Call it before any process is added.
    pub fn see_execs(&mut self, seen: Execs) {
        self.programs.seen = seen;
    }

    /// Uses answers of `/proc` about programs that have not changed until then. All events up to `now` have been taken
    /// in.
    pub(super) fn learn_programs(&mut self, now: KernelTime) {
        while self.programs.unproven.front().is_some_and(|answer| answer.read < now) {
            let Some(Answer { process, details, .. }) = self.programs.unproven.pop_front() else { return };
            let losses = self.programs.losses;
            let is_the_same =
                |known: &Entry| known.losses == losses && Arc::ptr_eq(&known.process.image, &process.image);
            if self.by_pid.get(&process.pid).is_some_and(is_the_same) {
                let _ = process.image.details.set(details);
            }
        }
    }
}
