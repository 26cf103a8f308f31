//! The hooks of one control group, and the programs at them.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use crate::bpf::Register::{R0, R1};
use crate::bpf::{Assembler, Buffer, Code, Condition, Map, Program, Reader, Record};
use crate::pieces::Pieces;
use crate::sys::bpf;
use crate::sys::{limits, privileges};
use crate::{ControlGroup, Error, Expression, Fetch, Hook, Installed, Resolver, Target, Tracefs};

/// The first `common_type` of the records of hooks. The kernel counts up the types of its own events from a few hundred.
const FIRST_ID: u16 = 0xf000;
/// The offset of the eight bytes of the stack that a reader uses.
const READER: i16 = -8;

/// Numbers of maps in the programs that are made here.
mod map {
    pub(super) const OUTPUTS: u32 = 0;
    /// Where a record is built that is too large for the stack.
    pub(super) const RECORD: u32 = 1;
}

/// The hooks of a control group (cgroup v2) and of the kernel's tracepoints. Needs Linux 5.7, and [`Hook::SocketRelease`] 5.9.
///
/// Programs at them write records into rings: connect the [outputs](Self::outputs) first
/// ([`Rings::receive`](crate::Rings::receive)). The kernel removes the programs when this process ends, however it ends.
#[derive(Debug)]
pub struct Hooks {
    tracefs: Arc<Tracefs>,
    cgroup: ControlGroup,
    outputs: Map,
    next_id: u16,
}

/// The samples of a hook: which values a program writes into the ring, and at which hits.
#[derive(Clone, Debug)]
pub struct HookSamples {
    hook: Hook,
    record: Record,
    conditions: Vec<(Expression, &'static [i32])>,
}

/// A hook of a control group or tracepoint, and its samples.
#[derive(Debug)]
pub struct HookPoint {
    samples: HookSamples,
    /// The id of its trace event, for the return of a system call.
    trace_id: Option<u32>,
    cgroup: ControlGroup,
    outputs: Map,
}

impl HookSamples {
    /// Declares samples. `conditions` are pairs of a value and numbers: a hit makes a sample only if each value is one of
    /// its numbers. `id` is the
    /// `common_type` of their records.
    ///
    /// # Errors
    /// [`Error::Unresolved`], [`Error::BadTemplate`].
    pub fn new(
        name: &str,
        id: u16,
        hook: Hook,
        fetches: &[Fetch<'_>],
        conditions: &[(Fetch<'_>, &'static [i32])],
        resolver: &dyn Resolver,
    ) -> Result<Self, Error> {
        let record = Record::new(name, id, hook, fetches, resolver)?;
        let condition = |(fetch, numbers): &(Fetch<'_>, &'static [i32])| {
            Ok((fetch.expression(name, Target::Hook(hook), resolver)?, *numbers))
        };
        let conditions = conditions.iter().map(condition).collect::<Result<_, Error>>()?;
        Ok(Self { hook, record, conditions })
    }

    /// The hook.
    pub const fn hook(&self) -> Hook {
        self.hook
    }

    /// The records.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// The conditions: a value, and the numbers that it may be.
    pub fn conditions(&self) -> &[(Expression, &'static [i32])] {
        &self.conditions
    }

    /// The code of a program that makes a record of each hit that meets the conditions, and lets every packet and call through.
    fn code(&self, name: &str) -> Result<Code, Error> {
        let mut asm = Assembler::new();
        let end = asm.label();
        let reader = Reader::at_hook(&mut asm, self.hook, READER, end);
        for (value, numbers) in &self.conditions {
            let is_met = asm.label();
            reader.value(&mut asm, value, R1)?;
            numbers.iter().for_each(|one| asm.jump_if(Condition::Equal, R1, *one, is_met));
            asm.jump(end);
            asm.bind(is_met);
        }
        let buffer = if self.record.fits_stack(READER) { Buffer::Stack(READER) } else { Buffer::Map(map::RECORD) };
        self.record.write(&mut asm, &reader, map::OUTPUTS, buffer)?;
        asm.bind(end);
        asm.mov(R0, self.hook.verdict());
        asm.exit();
        asm.finish(name)
    }
}

impl Hooks {
    /// Hooks at this control group, and at tracepoints; `tracefs` has the ids of their trace events.
    ///
    /// # Errors
    /// Those of [`Map::outputs`].
    pub fn at(cgroup: ControlGroup, tracefs: &Arc<Tracefs>) -> Result<Self, Error> {
        let tracefs = Arc::clone(tracefs);
        Ok(Self { tracefs, cgroup, outputs: Map::outputs("outputs")?, next_id: FIRST_ID })
    }

    /// The outputs of all programs.
    pub fn outputs(&self) -> &Map {
        &self.outputs
    }

    /// Looks up a static tracepoint, whose records the kernel writes.
    ///
    /// # Errors
    /// [`Error::Refused`]: the kernel does not have it.
    pub fn tracepoint(&self, category: &str, name: &str) -> Result<Installed, Error> {
        let format = self.tracefs.format(category, name)?;
        Ok(Installed { format, pieces: Pieces::default(), probes: Vec::new(), hook: None })
    }

    /// Declares the samples of a hook: see [`HookSamples::new`]. [`Rings::attach`](crate::Rings::attach) loads and starts the
    /// program.
    ///
    /// # Errors
    /// Those of [`HookSamples::new`]. [`Error::Refused`]: the kernel does not have the tracepoint.
    pub fn install(
        &mut self,
        name: &str,
        hook: Hook,
        fetches: &[Fetch<'_>],
        conditions: &[(Fetch<'_>, &'static [i32])],
        resolver: &dyn Resolver,
    ) -> Result<Installed, Error> {
        let samples = HookSamples::new(name, self.next_id, hook, fetches, conditions, resolver)?;
        let trace_id = match hook {
            Hook::SyscallExit { name } => Some(self.tracefs.format("syscalls", name)?.id),
            _ => None,
        };
        self.next_id += 1;
        let format = samples.record.format().clone();
        let point = HookPoint { samples, trace_id, cgroup: self.cgroup.clone(), outputs: self.outputs.clone() };
        Ok(Installed { format, pieces: Pieces::default(), probes: Vec::new(), hook: Some(Arc::new(point)) })
    }
}

impl HookPoint {
    /// Its samples.
    pub const fn samples(&self) -> &HookSamples {
        &self.samples
    }

    /// The program that makes the samples.
    pub(crate) fn program(&self, name: &str) -> Result<Program, Error> {
        let code = self.samples.code(name)?;
        let scratch = Map::scratch("record", u32::from(self.samples.record.size()))?;
        Program::load_at(self.samples.hook, name, &code, &[&self.outputs, &scratch])
    }

    /// For the return of a system call, the id of the trace event whose perf events run the program; `None` for other hooks.
    pub(crate) const fn trace_id(&self) -> Option<u32> {
        self.trace_id
    }

    /// Starts a program at this hook. It runs as long as the returned descriptor is open.
    pub(crate) fn start(&self, program: &Program) -> Result<OwnedFd, Error> {
        let hook = self.samples.hook;
        let what = || format!("the BPF program {} at {}", program.name(), hook.name());
        let started = match (hook, hook.attach_type()) {
            (_, Some(attach_type)) => bpf::attach_to_cgroup(program.descriptor(), self.cgroup.as_fd(), attach_type),
            (Hook::RawTracepoint { name, .. }, _) => {
                let name = CString::new(name).map_err(|error| Error::io(what(), error))?;
                bpf::attach_to_tracepoint(program.descriptor(), &name)
            }
            (_, None) => Err(io::ErrorKind::Unsupported.into()),
        };
        started.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) if hook.attach_type().is_some() && privileges::may_attach_to_cgroups() => {
                Error::HookTaken { what: what() }
            }
            Some(Errno::EPERM) if hook.attach_type().is_some() => {
                Error::Permission { what: what(), remedy: privileges::remedy("CAP_NET_ADMIN"), source: error }
            }
            _ => limits::bpf_error(&what(), error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Term, Type};

    fn names(_: &str, name: &str) -> Option<Term> {
        name.contains('.').then_some(Term::Offset(8 * name.len() as i64))
    }

    /// A program at a control group that returned anything but 1 would refuse a packet or a call.
    #[test]
    fn every_end_of_a_program_lets_the_hit_through() {
        let tracepoint = Hook::RawTracepoint { name: "sched_process_exec", arguments: &["p", "old_pid", "sk"] };
        for hook in [Hook::Egress, Hook::Ingress, Hook::SocketCreate, Hook::SocketRelease, tracepoint] {
            let argument = if matches!(hook, Hook::Egress | Hook::Ingress) { "skb" } else { "sk" };
            let value = |name: &'static str, reads: &str, kind| Fetch::new(name, reads.replace("ARG", argument), kind);
            let small = [value("a", "+{x.y}({ARG})", Type::U64), value("b", "+4(+{x.yz}({ARG}))", Type::U16)];
            let large = [&small[..], &[value("c", "+0(+{x.y}({ARG}))", Type::Bytes(300))]].concat();
            for fetches in [&small[..], &large] {
                let conditions: [(_, &[i32]); 1] = [(fetches[1].clone(), &[1, 7])];
                let samples = HookSamples::new("test", FIRST_ID, hook, fetches, &conditions, &names).unwrap();
                let code = samples.code("test").unwrap().bytes();
                let (instructions, _) = code.as_chunks::<8>();
                // R0 = number, then the end.
                let verdict = [0xb7, 0, 0, 0, hook.verdict() as u8, 0, 0, 0];
                let ends = instructions.windows(2).filter(|pair| pair[1][0] == 0x95);
                assert_eq!(ends.map(|pair| pair[0]).collect::<Vec<_>>(), [verdict], "{hook:?}");
                assert_eq!(hook.verdict(), i32::from(hook.attach_type().is_some()), "{hook:?}");
            }
        }
    }
}
