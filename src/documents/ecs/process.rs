//! `process.*` and `container.*`.

use std::borrow::Cow;
use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Context;
use crate::host::Host;
use crate::model::clock::Millis;
use crate::model::process;
use crate::model::time::BootTime;

/// `process.*`. In names and arguments, invalid UTF-8 is replaced by U+FFFD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process<'a> {
    /// The process id.
    pub pid: u32,
    /// The program's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// The program's absolute path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<Cow<'a, str>>,
    /// The arguments, beginning with the program's name.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub args: &'a [String],
    /// The number of arguments. If `args` is truncated, this is more than its length.
    #[serde(skip_serializing_if = "is_zero")]
    pub args_count: usize,
    /// The arguments, separated by spaces.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command_line: String,
    /// When the process was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Millis>,
    /// The same as `start`; the name that Beats uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Millis>,
    /// An id of the process that is unique over all hosts and boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity_id: Option<String>,
    /// Its parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The thread that made the call; only in socket events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread: Option<Thread<'a>>,
    /// Its working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<Cow<'a, str>>,
}

/// `process.thread.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Thread<'a> {
    /// Its id.
    pub id: u32,
    /// Its own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
}

/// `process.parent.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parent {
    /// The parent's process id.
    pub pid: u32,
}

/// `container.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Container<'a> {
    /// The container's id.
    pub id: &'a str,
}

impl<'a> Process<'a> {
    pub(super) fn of(process: &'a process::Process, context: &Context<'_>) -> Self {
        let image = &process.image;
        let details = image.details.get();
        let start = process.start.map(|boot| context.clock.wall_of_boot(boot).millis());
        let args = image.args();
        Self {
            pid: process.pid,
            name: image.name(),
            executable: image.executable().map(|path| path.to_string_lossy()).filter(|path| !path.is_empty()),
            args,
            args_count: image.args_count(),
            command_line: args.join(" "),
            start,
            created: start,
            entity_id: process.start.map(|boot| entity_id(context.host, process.pid, boot)),
            parent: process.parent_pid.map(|pid| Parent { pid }),
            thread: None,
            working_directory: details
                .and_then(|details| details.working_directory.as_ref())
                .map(|path| path.to_string_lossy())
                .filter(|path| !path.is_empty()),
        }
    }
}

impl<'a> Container<'a> {
    pub(super) fn of(process: &'a process::Process) -> Option<Self> {
        let id = process.container_id()?;
        (!id.is_empty()).then_some(Self { id })
    }
}

/// An id of a process that is the same for every monitor on this host, and after a restart of the monitor.
///
/// The start time is in ticks of 10 ms, because `/proc/PID/stat` is no more precise, and it is the only source for processes
/// that are older than the monitor. It counts from boot, so the boot's id is hashed, too. The lengths of the ids are hashed
/// with them, so that different pairs of ids never yield the same input.
fn entity_id(host: &Host, pid: u32, start: BootTime) -> String {
    const TICK: u64 = 10_000_000;
    let boot_id = host.boot.as_ref().map_or("", |boot| &boot.id);
    let mut hash = Sha256::new();
    for id in [host.id.as_deref().unwrap_or_default(), boot_id] {
        hash.update((id.len() as u64).to_le_bytes());
        hash.update(id);
    }
    hash.update(pid.to_le_bytes());
    hash.update((start.as_nanos() / TICK).to_le_bytes());
    hash.finalize().iter().take(12).fold(String::with_capacity(24), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Boot;
    use crate::model::testing::since_boot;

    fn host(id: &str, boot: &str) -> Host {
        Host { id: Some(id.into()), boot: Some(Boot { id: boot.into() }), ..Host::default() }
    }

    #[test]
    fn an_entity_id_is_a_known_hash() {
        // python3 -c "import hashlib,struct; q=lambda s: struct.pack('<Q',len(s))+s; \
        //   print(hashlib.sha256(q(b'machine')+q(b'boot')+struct.pack('<IQ',4970,123)).hexdigest()[:24])"
        assert_eq!(entity_id(&host("machine", "boot"), 4970, since_boot(1_234_567_890)), "221f3987c49f114b6cbadf41");
    }

    #[test]
    fn the_id_depends_on_host_boot_pid_and_start() {
        let id = entity_id(&host("a", "b"), 1, since_boot(20_000_000));
        assert_eq!(id, entity_id(&host("a", "b"), 1, since_boot(29_999_999)), "procfs has only ticks");
        assert_ne!(id, entity_id(&host("a", "b"), 1, since_boot(30_000_000)));
        assert_ne!(id, entity_id(&host("a", "b"), 2, since_boot(20_000_000)));
        assert_ne!(id, entity_id(&host("a", "c"), 1, since_boot(20_000_000)));
        assert_ne!(id, entity_id(&host("ab", ""), 1, since_boot(20_000_000)));
    }
}
