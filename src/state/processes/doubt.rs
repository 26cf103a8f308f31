//! Doubt after a loss: a known process may run another program by now, or its id may belong to another process.
//!
//! Each loss begins a new epoch. What is known of a process is certain if it was confirmed in the present epoch, by an
//! event or by `/proc`.

use std::time::Duration;

use super::{Entry, Processes};
use crate::model::process::Process;
use crate::model::time::MonotonicTime;

/// The minimum length of an epoch. Under a flood of losses, `/proc` must not be read for every process all the time.
const MIN_EPOCH: Duration = Duration::from_millis(250);

impl Processes {
    /// Events of processes were lost: what is known of any process may be out of date.
    pub fn doubt(&mut self, now: MonotonicTime) {
        self.epoch_postponed = true;
        self.begin_postponed_epoch(now);
    }

    /// Begins the epoch of a loss that came too soon after the one before, once that epoch is long enough.
    pub fn begin_postponed_epoch(&mut self, now: MonotonicTime) {
        if self.epoch_postponed && now >= self.epoch_began.saturating_add(MIN_EPOCH) {
            (self.epoch, self.epoch_began, self.epoch_postponed) = (self.epoch.wrapping_add(1), now, false);
        }
    }

    /// Returns whether what is known of a process may be out of date because of a loss. If so, requests a lookup.
    pub fn ask_if_doubtful(&mut self, process: &Process) -> bool {
        let is_doubtful = self.is_doubtful(process);
        if is_doubtful {
            self.ask_about(process.pid);
        }
        is_doubtful
    }

    /// Whether what is known of a process may be out of date because of a loss, and was not confirmed since.
    pub fn is_doubtful(&self, process: &Process) -> bool {
        let is_this = |entry: &&Entry| self.programs.are_the_same(&entry.process, process);
        let entry = self.by_pid.get(&process.pid).filter(is_this);
        let is_sure = entry.is_some_and(|entry| entry.confirmed_in == self.epoch && !self.epoch_postponed);
        !is_sure && !process.kernel && (self.epoch, self.epoch_postponed) != (0, false)
    }

    /// Events were lost: perhaps the other half of one that waits, moves into other control groups, or new credentials.
    pub fn samples_lost(&mut self) {
        self.execs.clear();
        self.moves_lost();
        self.programs.lost();
    }
}
