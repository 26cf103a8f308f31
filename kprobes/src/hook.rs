//! Hooks: places in the kernel where a BPF program runs without a kprobe.
//!
//! At a kprobe, the kernel fetches values and writes a record. At a hook the program does both, with the same declarations. So its
//! records are decoded like those of a kprobe.

use crate::bpf::Helper;
use crate::expression::Arguments;

/// A place where a BPF program runs.
///
/// All hooks but raw tracepoints and the returns of system calls belong to a control group. They run for the sockets that were
/// created in it or in a descendant, wherever their processes are now. Programs only observe: each lets every packet and every
/// call through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// A packet leaves a socket, after all of netfilter's hooks and before it is fragmented (`BPF_CGROUP_INET_EGRESS`). `skb->data`
    /// points to its IP header. Argument: `skb`.
    Egress,
    /// A packet has found its socket (`BPF_CGROUP_INET_INGRESS`). `skb->data` points to its IP header. Argument: `skb`.
    Ingress,
    /// The running task makes an IPv4 or IPv6 socket (`BPF_CGROUP_INET_SOCK_CREATE`). Argument: `sk`.
    SocketCreate,
    /// The running task closes the last descriptor of such a socket (`BPF_CGROUP_INET_SOCK_RELEASE`, Linux 5.9). Argument: `sk`.
    SocketRelease,
    /// A tracepoint, with the names of the arguments of its `TP_PROTO`.
    RawTracepoint {
        /// Its name, such as `sched_process_exec`.
        name: &'static str,
        /// The arguments' names, such as `p`, `old_pid` and `bprm`.
        arguments: &'static [&'static str],
    },
    /// A system call returns: its tracepoint `syscalls:sys_exit_…`. No arguments; `$file` is the `struct file` of the
    /// descriptor that the call returned. Only programs of 64 bits are seen.
    SyscallExit {
        /// The tracepoint's name, such as `sys_exit_accept4`.
        name: &'static str,
    },
}

/// `BPF_PROG_TYPE_*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum ProgramType {
    Kprobe = 2,
    CgroupSkb = 8,
    Tracepoint = 5,
    CgroupSock = 9,
    RawTracepoint = 17,
}

/// `enum bpf_attach_type`: `BPF_CGROUP_INET_*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum AttachType {
    Ingress = 0,
    Egress = 1,
    SockCreate = 2,
    SockRelease = 34,
}

impl Hook {
    /// Its name: that of the tracepoint, or that of libbpf's program section.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "cgroup_skb/egress",
            Self::Ingress => "cgroup_skb/ingress",
            Self::SocketCreate => "cgroup/sock_create",
            Self::SocketRelease => "cgroup/sock_release",
            Self::RawTracepoint { name, .. } | Self::SyscallExit { name } => name,
        }
    }

    /// The number of an argument, counted from 1.
    pub(crate) fn argument(self, name: &str) -> Option<u8> {
        let names: &[&str] = match self {
            Self::Egress | Self::Ingress => &["skb"],
            Self::SocketCreate | Self::SocketRelease => &["sk"],
            Self::RawTracepoint { arguments, .. } => arguments,
            Self::SyscallExit { .. } => &[],
        };
        names.iter().position(|one| *one == name).and_then(|index| u8::try_from(index + 1).ok())
    }

    pub(crate) const fn arguments(self) -> Arguments {
        match self {
            Self::RawTracepoint { .. } => Arguments::ContextWords,
            _ => Arguments::Context,
        }
    }

    /// What a program returns. At a control group, anything but 1 would refuse the packet or the call.
    pub const fn verdict(self) -> i32 {
        match self {
            Self::RawTracepoint { .. } | Self::SyscallExit { .. } => 0,
            _ => 1,
        }
    }

    pub(crate) const fn program_type(self) -> ProgramType {
        match self {
            Self::Egress | Self::Ingress => ProgramType::CgroupSkb,
            Self::SocketCreate | Self::SocketRelease => ProgramType::CgroupSock,
            Self::RawTracepoint { .. } => ProgramType::RawTracepoint,
            Self::SyscallExit { .. } => ProgramType::Tracepoint,
        }
    }

    /// How it is attached to a control group. `None` if it belongs to none.
    pub(crate) const fn attach_type(self) -> Option<AttachType> {
        match self {
            Self::Egress => Some(AttachType::Egress),
            Self::Ingress => Some(AttachType::Ingress),
            Self::SocketCreate => Some(AttachType::SockCreate),
            Self::SocketRelease => Some(AttachType::SockRelease),
            Self::RawTracepoint { .. } | Self::SyscallExit { .. } => None,
        }
    }

    /// The helper that reads memory.
    pub(crate) const fn read_helper(self) -> Helper {
        match self {
            // `ProbeRead` also reads user memory, such as arguments.
            Self::RawTracepoint { .. } | Self::SyscallExit { .. } => Helper::ProbeRead,
            _ => Helper::ProbeReadKernel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fetch, Target, Term, Type};

    #[test]
    fn arguments_are_known_by_their_names() {
        let layout = |_: &str, name: &str| (name == "task_struct.pid").then_some(Term::Offset(40));
        let fork = Hook::RawTracepoint { name: "sched_process_fork", arguments: &["parent", "p"] };
        let text = |hook, template| {
            let fetch = Fetch::constant("x", template, Type::U64);
            fetch.expression("test", Target::Hook(hook), &layout).map(|expression| expression.to_string())
        };
        assert_eq!(text(fork, "+{task_struct.pid}({p})").unwrap(), "+40($context[8])");
        assert_eq!(text(Hook::SocketCreate, "{sk}").unwrap(), "$context");
        assert_eq!(text(Hook::Egress, "+8(+{task_struct.pid}({skb}))").unwrap(), "+8(+40($context))");
        assert_eq!(text(fork, "+{task_struct.pid}($task)").unwrap(), "+40($task)");
        assert!(text(Hook::Egress, "{sk}").unwrap_err().to_string().contains("sk"));
    }
}
