//! `process.*` and `container.*`: whose the flow is.

use std::borrow::Cow;
use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Context;
use crate::clock::Millis;
use crate::host::Host;
use crate::process;

/// `process.*`. Bytes in names and arguments that are no UTF-8 are replaced.
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
    /// Its arguments, its own name first.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub args: &'a [String],
    /// How many arguments it was given: more than are in `args` if that is truncated.
    #[serde(skip_serializing_if = "is_zero")]
    pub args_count: usize,
    /// The arguments with spaces between.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command_line: String,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Millis>,
    /// The same, as Beats call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Millis>,
    /// Names this process among all of all hosts and boots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity_id: Option<String>,
    /// Its parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The thread that acted; in socket events only.
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

/// A name for a process that every monitor on this host gives it, before and after a restart of the monitor.
///
/// The start time counts in ticks of 10 ms, which is all that `/proc/PID/stat` tells of processes that were there
/// before the monitor; it starts anew with every boot, so the boot's id is hashed too. Lengths are hashed with the ids,
/// so that no two hosts run into one another.
fn entity_id(host: &Host, pid: u32, boot_nanos: u64) -> String {
    const TICK: u64 = 10_000_000;
    let boot_id = host.boot.as_ref().map_or("", |boot| &boot.id);
    let mut hash = Sha256::new();
    for id in [host.id.as_deref().unwrap_or_default(), boot_id] {
        hash.update((id.len() as u64).to_le_bytes());
        hash.update(id);
    }
    hash.update(pid.to_le_bytes());
    hash.update((boot_nanos / TICK).to_le_bytes());
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

    fn host(id: &str, boot: &str) -> Host {
        Host { id: Some(id.into()), boot: Some(Boot { id: boot.into() }), ..Host::default() }
    }

    #[test]
    fn an_entity_id_is_a_known_hash() {
        // python3 -c "import hashlib,struct; q=lambda s: struct.pack('<Q',len(s))+s; \
        //   print(hashlib.sha256(q(b'machine')+q(b'boot')+struct.pack('<IQ',4970,123)).hexdigest()[:24])"
        assert_eq!(entity_id(&host("machine", "boot"), 4970, 1_234_567_890), "221f3987c49f114b6cbadf41");
    }

    #[test]
    fn what_the_id_hangs_on() {
        let id = entity_id(&host("a", "b"), 1, 20_000_000);
        assert_eq!(id, entity_id(&host("a", "b"), 1, 29_999_999), "procfs tells ticks only");
        assert_ne!(id, entity_id(&host("a", "b"), 1, 30_000_000));
        assert_ne!(id, entity_id(&host("a", "b"), 2, 20_000_000));
        assert_ne!(id, entity_id(&host("a", "c"), 1, 20_000_000));
        assert_ne!(id, entity_id(&host("ab", ""), 1, 20_000_000));
    }
}
