//! Samples of forks, execs, changes of credentials, moves between control groups, and exits.

use socktrail_kprobes::{Array, Text, Word, sample, tracepoint};

use super::{Decoded, Interpret};
use crate::model::event::{EventKind, Exec, Fork, Moved, ThreadStarted};
use crate::model::process::Credentials;
use crate::model::time::BootTime;

/// From `linux/sched.h`: the child starts in the control group given by a descriptor.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

sample! {
    /// `wake_up_new_task`: a new task is about to run for the first time, in the context of its parent.
    pub struct WakeUpNewTask {
        /// The new task's own id.
        pub pid: u32 = "+{task_struct.pid}({p})",
        /// The id of its thread group.
        pub tgid: u32 = "+{task_struct.tgid}({p})",
        /// Nanoseconds since boot.
        pub start: Option<u64> = "+{task_struct.start_boottime}({p})",
        /// The seconds of `start` before Linux 3.17, where it is a `struct timespec`.
        pub seconds: Option<Word> = "+{task_struct.real_start_time}({p})",
        /// The nanoseconds of that `struct timespec`.
        pub nanos: Option<Word> = "+{task_struct.real_start_time+word}({p})",
    }

    /// `security_bprm_committed_creds`: an exec has passed the point of no return; the arguments are at the top of the new
    /// stack. Paths are read as windows of fixed size, because a `string` may have any length, and a sample that exceeds perf's
    /// buffer is lost. (`+u0(…)` for user memory does not support arrays; `+0(…)` decides by the address.)
    pub struct BprmCommittedCreds {
        /// How many arguments there are.
        pub argc: i32 = "+{linux_binprm.argc}({bprm})",
        /// The path given to `execve(2)`.
        pub filename: Array<u64, 32> = "+0(+{linux_binprm.filename}({bprm}))",
        /// The path of the file that is executed.
        pub interpreter: Array<u64, 32> = "+0(+{linux_binprm.interp}({bprm}))",
        /// The argument strings, one after the other.
        pub args_0: Array<u64, 64> = "+0(+{linux_binprm.p}({bprm}))",
        /// The next 512 bytes of them.
        pub args_1: Array<u64, 64> = "+512(+{linux_binprm.p}({bprm}))",
    }

    /// `commit_creds`: the running task gets new credentials.
    pub struct CommitCreds {
        /// Real user.
        pub uid: u32 = "+{cred.uid}({new})",
        /// Real group.
        pub gid: u32 = "+{cred.gid}({new})",
        /// Effective user.
        pub euid: u32 = "+{cred.euid}({new})",
        /// Effective group.
        pub egid: u32 = "+{cred.egid}({new})",
    }

    /// `sched:sched_process_exit` or `do_exit`: the running task ends. The sample has no fields.
    pub struct ProcessExit {}
}

/// The longest path in the kernel's control group events (`TRACE_CGROUP_PATH_LEN` without its NUL).
const MAX_PATH: usize = 1023;

tracepoint! {
    /// `cgroup:cgroup_attach_task`: a thread, or a whole process, has been moved into another control group.
    pub struct CgroupAttach {
        /// The id of the hierarchy.
        pub hierarchy: i32 = "dst_root",
        /// The thread, or the main thread of a whole process.
        pub tid: i32 = "pid",
        /// The group's path in its hierarchy.
        pub path: Text = "dst_path",
    }
}

sample! {
    /// `cgroup_post_fork` since Linux 5.7: a new task is put into its control group, in the context of its parent,
    /// before it is woken.
    pub struct CgroupPostFork {
        /// The flags of `clone3(2)`.
        pub flags: u64 = "+{kernel_clone_args.flags}({kargs})",
        /// The new task's own id.
        pub pid: u32 = "+{task_struct.pid}({child})",
        /// The id of its thread group.
        pub tgid: u32 = "+{task_struct.tgid}({child})",
    }
}

impl Interpret for WakeUpNewTask {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let Self { pid, tgid, .. } = *self;
        if pid != tgid {
            return Decoded::Event(EventKind::ThreadStarted(ThreadStarted { process: tgid, thread: pid }));
        }
        Decoded::Event(EventKind::Fork(Fork { child: tgid, start: self.since_boot() }))
    }
}

impl WakeUpNewTask {
    /// When the task started, from the form that this kernel has.
    fn since_boot(&self) -> Option<BootTime> {
        let timespec = self.seconds.zip(self.nanos);
        let nanos =
            self.start.or(timespec.map(|(seconds, nanos)| seconds.saturating_mul(1_000_000_000).saturating_add(nanos)));
        nanos.map(BootTime::from_nanos)
    }
}

impl Interpret for BprmCommittedCreds {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let mut arguments = self.args_0.bytes(raw).to_vec();
        arguments.extend_from_slice(self.args_1.bytes(raw));
        Decoded::Event(EventKind::Exec(Box::new(Exec {
            filename: c_string(self.filename.bytes(raw)),
            interpreter: c_string(self.interpreter.bytes(raw)),
            arguments,
            argument_count: u32::try_from(self.argc).ok(),
        })))
    }
}

impl Interpret for CgroupPostFork {
    fn interpret(&self, _: &[u8]) -> Decoded {
        if self.flags & CLONE_INTO_CGROUP == 0 || self.pid != self.tgid {
            return Decoded::Nothing;
        }
        Decoded::Event(EventKind::ForkElsewhere { child: self.tgid })
    }
}

impl Interpret for CgroupAttach {
    fn interpret(&self, raw: &[u8]) -> Decoded {
        let (Ok(tid), Ok(hierarchy)) = (u32::try_from(self.tid), u32::try_from(self.hierarchy)) else {
            return Decoded::Unreadable(None);
        };
        let path = whole_groups(self.path.bytes(raw)).to_vec();
        Decoded::Event(EventKind::Moved(Box::new(Moved { tid, hierarchy, path })))
    }
}

impl Interpret for CommitCreds {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let Self { uid, gid, euid, egid } = *self;
        Decoded::Event(EventKind::Credentials(Credentials { uid, gid, euid, egid }))
    }
}

impl Interpret for ProcessExit {
    fn interpret(&self, _: &[u8]) -> Decoded {
        Decoded::Event(EventKind::Exit)
    }
}

/// A path without its last group, if the kernel may have truncated that.
fn whole_groups(path: &[u8]) -> &[u8] {
    let may_be_truncated = path.len() >= MAX_PATH;
    let end = path.iter().rposition(|byte| *byte == b'/').filter(|_| may_be_truncated);
    &path[..end.unwrap_or(path.len())]
}

/// A C string within a window; empty if the window is too short for it, because a truncated path is useless.
pub(in crate::source) fn c_string(window: &[u8]) -> Vec<u8> {
    match window.iter().position(|byte| *byte == 0) {
        Some(end) => window[..end].to_vec(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use socktrail_kprobes::{Decoder, Format};

    use super::*;
    use crate::model::testing::since_boot;
    use crate::source::kprobes::Decode;

    /// As Linux 6.1 writes it.
    const ATTACH: &[u8] = b"name: cgroup_attach_task\nID: 118\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int dst_root;\toffset:8;\tsize:4;\tsigned:1;\n\
        \tfield:int dst_level;\toffset:12;\tsize:4;\tsigned:1;\n\
        \tfield:u64 dst_id;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:int pid;\toffset:24;\tsize:4;\tsigned:1;\n\
        \tfield:__data_loc char[] dst_path;\toffset:28;\tsize:4;\tsigned:0;\n\
        \tfield:__data_loc char[] comm;\toffset:32;\tsize:4;\tsigned:0;\n";

    fn moved(path: &str) -> Moved {
        let mut raw = vec![0; 36];
        raw[8] = 4;
        raw[24..28].copy_from_slice(&321_u32.to_ne_bytes());
        raw[28..32].copy_from_slice(&((path.len() as u32 + 1) << 16 | 36).to_ne_bytes());
        raw.extend_from_slice(path.as_bytes());
        raw.push(0);
        let decoder = Decoder::<CgroupAttach>::new(&Format::parse(ATTACH).unwrap()).unwrap();
        match Decode::decode(&decoder, &raw) {
            Decoded::Event(EventKind::Moved(moved)) => *moved,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_moved_task_is_in_the_group_with_its_new_path() {
        assert_eq!(moved("/lxc/web"), Moved { tid: 321, hierarchy: 4, path: b"/lxc/web".into() });
        assert_eq!(moved("/").path, b"/");
        assert_eq!(moved("").path, b"");
    }

    #[test]
    fn a_start_is_nanoseconds_in_either_form() {
        let fork = |event| match event {
            Decoded::Event(EventKind::Fork(fork)) => fork,
            other => panic!("{other:?}"),
        };
        let woken = WakeUpNewTask { pid: 10, tgid: 10, start: None, seconds: None, nanos: None };
        let timespec = WakeUpNewTask { seconds: Some(61), nanos: Some(234_567_890), ..woken };
        for (sample, start) in [
            (WakeUpNewTask { start: Some(61_234_567_890), ..woken }, Some(since_boot(61_234_567_890))),
            (timespec, Some(since_boot(61_234_567_890))),
            (woken, None),
        ] {
            assert_eq!(fork(sample.interpret(&[])), Fork { child: 10, start });
        }
        let thread = WakeUpNewTask { pid: 11, ..timespec }.interpret(&[]);
        assert!(matches!(thread, Decoded::Event(EventKind::ThreadStarted(ThreadStarted { process: 10, thread: 11 }))));
    }

    #[test]
    fn only_a_process_that_begins_in_another_group_is_a_fork_elsewhere() {
        let begins = |flags: u64, pid: u32| CgroupPostFork { flags, pid, tgid: 10 }.interpret(&[]);
        let child = |event: Decoded| match event {
            Decoded::Event(EventKind::ForkElsewhere { child }) => Some(child),
            _ => None,
        };
        assert_eq!(child(begins(CLONE_INTO_CGROUP | 0x100, 10)), Some(10));
        assert_eq!(child(begins(CLONE_INTO_CGROUP, 11)), None, "a thread");
        assert_eq!(child(begins(0x100, 10)), None, "in its parent's group");
    }

    #[test]
    fn a_truncated_name_is_not_used() {
        let path = |length: usize| format!("/lxc/outer{}/lxc/inner", "/x".repeat(length));
        assert_eq!(moved(&path(3)).path, path(3).as_bytes());
        let [whole, truncated] = ["inn", "inne"].map(|name| format!("/lxc/outer{}/lxc/{name}", "/x".repeat(502)));
        assert_eq!((whole.len(), moved(&whole).path), (MAX_PATH - 1, whole.into_bytes()));
        assert_eq!((truncated.len(), moved(&truncated).path.len()), (MAX_PATH, MAX_PATH - "/inne".len()));
    }
}
