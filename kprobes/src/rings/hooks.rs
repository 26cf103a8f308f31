//! Programs at hooks, which write into the rings.

use std::os::fd::OwnedFd;

use super::Rings;
use crate::bpf::{Program, Running};
use crate::hooks::HookPoint;
use crate::{Error, Installed};

/// A program at a hook, which runs as long as this lives.
#[derive(Debug)]
pub(super) struct StartedHook {
    /// The type of its records.
    pub(super) id: u32,
    /// The program, unless the caller of [`Rings::attach_with_program`] has it.
    own: Option<Program>,
    #[expect(dead_code, reason = "it is only dropped")]
    attached: Attached,
}

/// How a program is attached to a hook.
#[derive(Debug)]
#[expect(dead_code, reason = "they are only dropped")]
enum Attached {
    /// Through a perf event.
    AtTracepoint(Running),
    /// Through a link.
    Linked(OwnedFd),
}

impl Rings {
    /// Starts the program of a hook that writes its records.
    pub(super) fn start_own(&mut self, hook: &HookPoint, event: &Installed) -> Result<(), Error> {
        let program = hook.program(event.name())?;
        self.start_at(hook, event, &program)?;
        if let Some(started) = self.hooks.last_mut() {
            started.own = Some(program);
        }
        Ok(())
    }

    /// Starts a program at a hook.
    pub(super) fn start_at(&mut self, hook: &HookPoint, event: &Installed, program: &Program) -> Result<(), Error> {
        let attached = match hook.trace_id() {
            Some(id) => Attached::AtTracepoint(self.run(program, id, event.name())?),
            None => Attached::Linked(hook.start(program)?),
        };
        self.hooks.push(StartedHook { id: event.id(), own: None, attached });
        Ok(())
    }

    /// The number of hits of a hook at which the kernel did not run the program that [`Rings::attach`] has started there: see
    /// [`Program::skipped`]. `None` if there is no such program, or the kernel does not count them.
    pub fn skipped(&self, event: &Installed) -> Option<u64> {
        self.hooks.iter().find(|started| started.id == event.id())?.own.as_ref()?.skipped()
    }
}
