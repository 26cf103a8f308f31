//! Programs at hooks, which write into the rings.

use std::os::fd::OwnedFd;

use super::Rings;
use crate::bpf::{Program, Running};
use crate::hooks::HookPoint;
use crate::{Error, Installed};

/// A program at a hook, which runs as long as this lives.
#[derive(Debug)]
#[expect(dead_code, reason = "they are only dropped")]
pub(super) enum StartedHook {
    /// Through a perf event.
    AtTracepoint(Running),
    /// Through a link.
    Linked(OwnedFd),
}

impl Rings {
    /// Starts a program at a hook.
    pub(super) fn start_at(&mut self, hook: &HookPoint, event: &Installed, program: &Program) -> Result<(), Error> {
        let started = match hook.trace_id() {
            Some(id) => StartedHook::AtTracepoint(self.run(program, id, event.name())?),
            None => StartedHook::Linked(hook.start(program)?),
        };
        self.hooks.push((event.id(), started));
        Ok(())
    }
}
