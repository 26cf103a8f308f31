//! The programs of processes on kernels where execs are not seen.
//!
//! There, what is known of a program may be out of date at any time, and a wrong program is worse than none. But a fork runs
//! its parent's program, and each exec commits new credentials. If new credentials are events, a program is known until the
//! next such event. Only `/proc` shows the new program. Its answer is used if no new credentials were committed before it was
//! read, and no events were lost. If new credentials are not events either, no program is known.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Entry, MAX_WANTED, Processes};
use crate::model::event::Execs;
use crate::model::process::{Details, Image, Process};
use crate::model::time::MonotonicTime;

/// What is known of programs without events of execs.
#[derive(Debug, Default)]
pub struct Programs {
    seen: Execs,
    /// Results of lookups that wait until all events from before they were read have been processed.
    unproven: VecDeque<UnprovenDetails>,
    /// The number of times that events were lost, perhaps new credentials among them.
    losses: u32,
    /// Results that found no room in `unproven`.
    pub refused: u64,
}

/// The result of a lookup that may be about an earlier program.
#[derive(Debug)]
struct UnprovenDetails {
    process: Arc<Process>,
    details: Details,
    read: MonotonicTime,
}

impl Programs {
    /// The process, which existed before the first event, without what is uncertain.
    pub fn preexisting(&self, process: Process) -> Process {
        let image = self.inherited(&process);
        Process { image, ..process }
    }

    /// The image that a fork of this process runs.
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

    /// The number of times that events were lost.
    pub fn losses(&self) -> u32 {
        self.losses
    }

    /// Whether these are the same process running the same program.
    pub fn are_the_same(&self, one: &Process, other: &Process) -> bool {
        one.start == other.start && (self.seen == Execs::Seen || Arc::ptr_eq(&one.image, &other.image))
    }

    /// The part of a process's details, read at this time, that is certain to be about its known program. Other details may wait
    /// to be proven by later events.
    pub fn about_known_program(
        &mut self,
        process: &Arc<Process>,
        details: Details,
        read: MonotonicTime,
    ) -> Option<Details> {
        match self.seen {
            Execs::Seen => Some(details),
            Execs::AsCredentials => {
                // During an exec, no arguments are listed until it has committed its credentials.
                let is_whole = details.args.as_ref().is_some_and(|args| !args.is_empty());
                if is_whole && self.unproven.len() < MAX_WANTED {
                    self.unproven.push_back(UnprovenDetails { process: Arc::clone(process), details, read });
                } else if is_whole {
                    self.refused += 1;
                }
                None
            }
            Execs::Unseen => Some(Details { container_id: details.container_id, ..Details::default() }),
        }
    }
}

impl Processes {
    /// Sets how execs are seen. Call it before any process is added.
    pub fn set_execs_seen(&mut self, seen: Execs) {
        self.programs.seen = seen;
    }

    /// Uses results of lookups about programs that had not changed when they were read. All events up to `now` have been
    /// processed.
    pub(super) fn learn_programs(&mut self, now: MonotonicTime) {
        while self.programs.unproven.front().is_some_and(|answer| answer.read < now) {
            let Some(UnprovenDetails { process, details, .. }) = self.programs.unproven.pop_front() else { return };
            let losses = self.programs.losses;
            let is_the_same =
                |known: &Entry| known.losses == losses && Arc::ptr_eq(&known.process.image, &process.image);
            if self.by_pid.get(&process.pid).is_some_and(is_the_same) {
                let _ = process.image.details.set(details);
            }
        }
    }
}
