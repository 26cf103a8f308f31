//! Errors, with remedies.

use std::io;
use std::path::PathBuf;

use crate::WordSize;
use crate::bpf::{AssemblyError, Unreadable};

/// All errors of this crate.
///
/// The message names the thing (probe, function, path, limit), the cause and, if there is one, the remedy.
/// [`Error::kind`] classifies errors for a caller that wants to continue without the failed probe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path exists but is not a tracefs.
    #[error(
        "{path} is not a tracefs: {problem}; give the directory that holds kprobe_events, usually /sys/kernel/tracing"
    )]
    NotTracefs {
        /// The path that was tried.
        path: PathBuf,
        /// What is missing or different.
        problem: String,
    },
    /// This kernel has no tracefs, or no place to mount it.
    #[error(
        "no tracefs is mounted, and mounting one failed: {source}; the kernel needs CONFIG_TRACING, and sysfs must be at /sys"
    )]
    NoTracefs {
        /// The error of the last mount.
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
    /// Another program at a control group, or at one above it, was attached so that no other can be beside it.
    #[error(
        "{what} cannot be started: another program there, or at a control group above, allows none beside it; find it with \
         bpftool cgroup tree, and have it attached with BPF_F_ALLOW_MULTI"
    )]
    HookTaken {
        /// The program and its hook.
        what: String,
    },
    /// A resource limit was hit and could not be raised.
    #[error("{limit} is too low ({value}) for {what}: {remedy}")]
    Limit {
        /// The limit, such as `RLIMIT_NOFILE`.
        limit: &'static str,
        /// Its value now.
        value: String,
        /// What needed more.
        what: String,
        /// How to raise it.
        remedy: String,
    },
    /// The kernel would not accept this name of a group, a probe or an argument.
    #[error("{name:?} is not a valid name of {what}: {rule}")]
    BadName {
        /// What it should name, with an article: a probe, a fetch argument, a kernel function.
        what: &'static str,
        /// The name.
        name: String,
        /// What a valid name may contain.
        rule: String,
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
        /// The problem.
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
    /// More fetch arguments or text than one probe can have, or more stack than its BPF program can have.
    #[error("probe {probe} is too large: {count} {what}, the kernel accepts {most}")]
    TooLarge {
        /// The probe, or the BPF program.
        probe: String,
        /// `fetch arguments`, `bytes in a record`, `bytes of text`, or `bytes of stack` for a BPF program.
        what: &'static str,
        /// The actual number.
        count: usize,
        /// The maximum number.
        most: usize,
    },
    /// The kernel refused a probe.
    #[error("probe {probe} on {target} was refused: {source}{}", in_parentheses(.message))]
    Refused {
        /// The probe.
        probe: String,
        /// The kernel function or tracepoint.
        target: String,
        /// The text that tracefs wrote to `error_log`; empty before Linux 5.2.
        message: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not accept a filter on an event because of an unknown field or a syntax error.
    #[error("{event} does not accept the filter {filter:?}: {source}")]
    Filter {
        /// The event.
        event: String,
        /// The filter.
        filter: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A `format` file could not be understood.
    #[error("format of {}, line {line}: {problem}", if event.is_empty() { "an event" } else { event.as_str() })]
    Format {
        /// The event; empty if the line with its name was not reached.
        event: String,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// An event does not have the fields that a sample needs, or that were asked for.
    #[error("event {event} does not fit its sample: {}{problem}", prefix_for_field(.field))]
    Mismatch {
        /// The event.
        event: String,
        /// The field; empty if the problem is not about one.
        field: String,
        /// The problem: for instance, the field is missing or has another size.
        problem: String,
    },
    /// The kernel has no BPF programs.
    #[error("this kernel has no bpf(2): it needs Linux 4.1 and CONFIG_BPF_SYSCALL")]
    NoBpf,
    /// The kernel has BPF programs, but cannot run them at kprobes.
    #[error(
        "this kernel cannot run BPF programs at kprobes: {source}; it needs CONFIG_BPF_EVENTS{}", or_version(*.version)
    )]
    NoBpfEvents {
        /// The `LINUX_VERSION_CODE` that the program states, if the kernel may have refused the program because of it:
        /// before Linux 5.0.
        version: Option<u32>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel has BPF programs, but cannot run them at this hook.
    #[error(
        "this kernel cannot run BPF programs at {hook}: {source}; hooks need CONFIG_BPF_EVENTS, CONFIG_CGROUP_BPF and Linux 5.9"
    )]
    NoHook {
        /// The hook.
        hook: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No BPF program can run at this event.
    #[error("no BPF program can run at {event}: {problem}")]
    NotProgrammable {
        /// The event.
        event: String,
        /// Why.
        problem: &'static str,
    },
    /// A BPF program has a mistake that was found before the kernel saw it.
    #[error("BPF program {program}: {source}")]
    BadProgram {
        /// The program.
        program: String,
        /// The mistake.
        source: AssemblyError,
    },
    /// A BPF program cannot read a fetch argument.
    #[error("no BPF program can read {argument}: {source}")]
    Unreadable {
        /// The fetch argument, as written for tracefs.
        argument: String,
        /// Why.
        source: Unreadable,
    },
    /// The kernel's verifier refused a BPF program.
    #[error("the kernel refused the BPF program {program}: {source}{}", in_parentheses(.log))]
    ProgramRefused {
        /// The program.
        program: String,
        /// The end of the verifier's log.
        log: String,
        /// The kernel's answer.
        source: io::Error,
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

/// The part of the message about a version that the kernel may have refused.
fn or_version(code: Option<u32>) -> String {
    let text = |code: u32| format!(", or its real version is not {}.{}.{}", code >> 16, code >> 8 & 0xff, code & 0xff);
    code.map(text).unwrap_or_default()
}

/// The part of a message that names a field, if there is one.
fn prefix_for_field(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("field {field}: ") }
}

/// The kernel's message in parentheses, if it gave one.
fn in_parentheses(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

/// The kind of an [`Error`], by which a caller decides whether to try another function, to give up, or to report a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The kernel lacks tracefs, kprobes, or BPF programs at kprobes, or these lack a needed feature.
    Unsupported,
    /// The function or tracepoint is missing or cannot be probed: try an alternative.
    NoFunction,
    /// Not privileged enough, locked down, or read-only.
    Permission,
    /// A limit on memory, files or kernel resources.
    Limit,
    /// The name is taken, or something else uses the probe.
    Busy,
    /// A name is not in the layout.
    Unresolved,
    /// The declaration of a probe is wrong, or does not match the kernel's format.
    Declaration,
    /// Anything else.
    Other,
}

impl Error {
    /// The kind of this error.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotTracefs { .. } => Kind::Other,
            Self::NoTracefs { .. } | Self::NoKprobes { .. } | Self::WordSizeMismatch { .. } => Kind::Unsupported,
            Self::NoBpf
            | Self::NoBpfEvents { .. }
            | Self::NoHook { .. }
            | Self::NotProgrammable { .. }
            | Self::Unreadable { .. } => Kind::Unsupported,
            Self::ReadOnly { .. } | Self::Permission { .. } => Kind::Permission,
            Self::Limit { .. } => Kind::Limit,
            Self::HookTaken { .. } => Kind::Busy,
            Self::Unresolved { .. } => Kind::Unresolved,
            Self::BadName { .. } | Self::BadTemplate { .. } | Self::TooLarge { .. } => Kind::Declaration,
            Self::BadProgram { .. } | Self::ProgramRefused { .. } => Kind::Declaration,
            Self::Format { .. } | Self::Mismatch { .. } | Self::Filter { .. } => Kind::Declaration,
            Self::Refused { source, .. } if is_about_the_function(source) => Kind::NoFunction,
            Self::Refused { source, .. } | Self::Io { source, .. } => kind_of(source),
        }
    }

    pub(crate) fn not_programmable(event: &str, problem: &'static str) -> Self {
        Self::NotProgrammable { event: event.to_owned(), problem }
    }

    pub(crate) fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }
}

/// Whether the kernel refused a probe because its function is missing or cannot be probed. `EINVAL` may also be about a fetch
/// argument. An alternative may help then, too.
fn is_about_the_function(refusal: &io::Error) -> bool {
    matches!(
        refusal.raw_os_error(),
        Some(libc::ENOENT | libc::EINVAL | libc::EADDRNOTAVAIL | libc::EILSEQ | libc::EOPNOTSUPP | libc::ERANGE)
    )
}

fn kind_of(source: &io::Error) -> Kind {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::EROFS) => Kind::Permission,
        Some(libc::ENOMEM | libc::ENOSPC | libc::EMFILE | libc::ENFILE | libc::E2BIG) => Kind::Limit,
        Some(libc::EBUSY | libc::EEXIST) => Kind::Busy,
        _ => Kind::Other,
    }
}
