//! What can go wrong, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::WordSize;

/// Everything that this crate can fail with.
///
/// The message names the thing (probe, function, path, limit), the cause and, where there is one, the
/// remedy. [`Error::kind`] sorts errors for a caller that wants to go on without the probe that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path exists but is no tracefs.
    #[error(
        "{path} is no tracefs: {problem}; give the directory that holds kprobe_events, usually /sys/kernel/tracing"
    )]
    NotTracefs {
        /// The path that was tried.
        path: PathBuf,
        /// What is missing or different.
        problem: String,
    },
    /// This kernel has no tracefs at all, or no place to mount it.
    #[error(
        "no tracefs, nor could it be mounted: {source}; the kernel needs CONFIG_TRACING, and sysfs its place at /sys"
    )]
    NoTracefs {
        /// The answer to the last mount.
        source: io::Error,
    },
    /// The kernel is built without kprobe events.
    #[error("this kernel has no kprobes: {root}/kprobe_events is missing (the kernel needs CONFIG_KPROBE_EVENTS)")]
    NoKprobes {
        /// Where tracefs is mounted.
        root: PathBuf,
    },
    /// This is a 32-bit build, and the kernel is a 64-bit one.
    #[error(
        "this is a {}-bit build, and the kernel is {}-bit: install the build for the kernel's architecture",
        8 * ours.bytes(),
        8 * kernel.bytes()
    )]
    WordSizeMismatch {
        /// The word size of this program.
        ours: WordSize,
        /// The word size of the kernel.
        kernel: WordSize,
    },
    /// Tracefs is mounted read-only.
    #[error("{path} is read-only: remount it with `mount -o remount,rw {path}`")]
    ReadOnly {
        /// The mount point or file.
        path: PathBuf,
    },
    /// The process may not do this.
    #[error("no permission for {what}: {source}; {remedy}")]
    Permission {
        /// What was tried.
        what: String,
        /// What would allow it.
        remedy: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A resource limit was hit and could not be raised.
    #[error("{limit} is too low ({value}) for {what}: {remedy}")]
    Limit {
        /// The limit: `RLIMIT_NOFILE`, `RLIMIT_MEMLOCK`, `perf_event_mlock_kb`.
        limit: &'static str,
        /// Its value now.
        value: String,
        /// What needed more.
        what: String,
        /// How to raise it.
        remedy: String,
    },
    /// A name for a group, a probe or an argument that the kernel would not take.
    #[error("{name:?} cannot name a {what}: at most {most} letters, digits and underscores, no digit first")]
    BadName {
        /// What it was to name: a group, probe, fetch argument, kernel function.
        what: &'static str,
        /// The name.
        name: String,
        /// The most characters it may have.
        most: usize,
    },
    /// A template is malformed.
    #[error("probe {probe}, argument {argument}: template {template:?}: {problem}")]
    BadTemplate {
        /// The probe.
        probe: String,
        /// The fetch argument.
        argument: String,
        /// Its template.
        template: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The resolver does not know a name used by a template.
    #[error("probe {probe} on {function}, argument {argument}: the layout has no {name}")]
    Unresolved {
        /// The probe.
        probe: String,
        /// The kernel function.
        function: String,
        /// The fetch argument.
        argument: String,
        /// The name without its braces.
        name: String,
    },
    /// More fetch arguments or text than one probe may have.
    #[error("probe {probe} is too large: {count} {what}, the kernel takes {most}")]
    TooLarge {
        /// The probe.
        probe: String,
        /// `fetch arguments`, `bytes in a record` or `bytes of text`.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// The kernel refused a probe.
    #[error("probe {probe} on {target} was refused: {source}{}", said(.message))]
    Refused {
        /// The probe.
        probe: String,
        /// The kernel function or tracepoint.
        target: String,
        /// What tracefs wrote into `error_log`; empty before Linux 5.2.
        message: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not take a filter on an event: a field that is not there, or a syntax error.
    #[error("{event} takes no filter {filter:?}: {source}")]
    Filter {
        /// The event.
        event: String,
        /// The filter.
        filter: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A `format` file could not be understood.
    #[error("format of {event}, line {line}: {problem}")]
    Format {
        /// The event, or empty when only text was given.
        event: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// An event does not have a field that a sample needs.
    #[error("event {event} does not fit its sample: field {field}: {problem}")]
    Mismatch {
        /// The event.
        event: String,
        /// The field.
        field: String,
        /// Missing, or other size.
        problem: String,
    },
    /// Any other failure of a system call or file.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

/// What sort of failure an [`Error`] is: whether to try another function, to give up, or to report a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The kernel lacks tracefs or kprobes.
    Unsupported,
    /// The function or tracepoint is missing or cannot be probed: try an alternative.
    NoFunction,
    /// Not privileged enough, locked down, or read-only.
    Permission,
    /// A limit on memory, files or kernel resources.
    Limit,
    /// The kernel is busy with it: someone else uses the name or the probe.
    Busy,
    /// A name is not in the layout.
    Unresolved,
    /// The declaration of a probe is wrong, or does not fit the kernel's format.
    Declaration,
    /// Anything else.
    Other,
}

impl Error {
    /// Sorts the error.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotTracefs { .. } => Kind::Other,
            Self::NoTracefs { .. } | Self::NoKprobes { .. } | Self::WordSizeMismatch { .. } => Kind::Unsupported,
            Self::ReadOnly { .. } | Self::Permission { .. } => Kind::Permission,
            Self::Limit { .. } => Kind::Limit,
            Self::Unresolved { .. } => Kind::Unresolved,
            Self::BadName { .. } | Self::BadTemplate { .. } | Self::TooLarge { .. } => Kind::Declaration,
            Self::Format { .. } | Self::Mismatch { .. } | Self::Filter { .. } => Kind::Declaration,
            Self::Refused { source, .. } | Self::Io { source, .. } => {
                kind_of(source, matches!(self, Self::Refused { .. }))
            }
        }
    }

    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }
}

fn kind_of(source: &io::Error, of_probe: bool) -> Kind {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::EROFS) => Kind::Permission,
        Some(libc::ENOENT | libc::EINVAL | libc::EADDRNOTAVAIL | libc::EILSEQ | libc::EOPNOTSUPP | libc::ERANGE)
            if of_probe =>
        {
            Kind::NoFunction
        }
        Some(libc::ENOMEM | libc::ENOSPC | libc::EMFILE | libc::ENFILE | libc::E2BIG) => Kind::Limit,
        Some(libc::EBUSY | libc::EEXIST) => Kind::Busy,
        _ => Kind::Other,
    }
}
