//! What processes do with themselves.

use socktrail_kprobes::{Array, sample};

use super::{Decoded, IntoEvent};
use crate::event::{Credentials, EventKind, Exec, Fork};

sample! {
    /// `wake_up_new_task`: a new task is about to run for the first time, in the context of its parent.
    pub struct Woken {
        /// The new task's own id.
        pub pid: u32 = "+{task_struct.pid}({p})",
        /// Its thread group's.
        pub tgid: u32 = "+{task_struct.tgid}({p})",
        /// Nanoseconds since boot.
        pub start: u64 = "+{task_struct.start_boottime}({p})",
    }

    /// `security_bprm_committed_creds`: an exec has passed the point of no return; the arguments lie at the top of the
    /// new stack. Paths are read as fixed windows: a `string` may be as long as its caller likes, and a sample that
    /// outgrows perf's buffer is lost. (`+u0(…)` would say that the stack is user memory, but takes no arrays; plain
    /// memory is told apart by its address.)
    pub struct Committed {
        /// How many arguments there are.
        pub argc: i32 = "+{linux_binprm.argc}({bprm})",
        /// The path given to `execve(2)`.
        pub filename: Array<u64, 32> = "+0(+{linux_binprm.filename}({bprm}))",
        /// The path of the program that runs.
        pub interpreter: Array<u64, 32> = "+0(+{linux_binprm.interp}({bprm}))",
        /// The argument strings, one after the other.
        pub args_0: Array<u64, 64> = "+0(+{linux_binprm.p}({bprm}))",
        /// The next 512 bytes.
        pub args_1: Array<u64, 64> = "+512(+{linux_binprm.p}({bprm}))",
    }

    /// `commit_creds`: the running task gets new credentials.
    pub struct Credited {
        /// Real user.
        pub uid: u32 = "+{cred.uid}({new})",
        /// Real group.
        pub gid: u32 = "+{cred.gid}({new})",
        /// Effective user.
        pub euid: u32 = "+{cred.euid}({new})",
        /// Effective group.
        pub egid: u32 = "+{cred.egid}({new})",
    }

    /// `sched:sched_process_exit` or `do_exit`: the running task ends. That is all there is to know.
    pub struct Exited {}
}

impl IntoEvent for Woken {
    fn event(&self, _: &[u8]) -> Decoded {
        if self.pid != self.tgid {
            return Decoded::Nothing; // a thread
        }
        Decoded::Event(EventKind::Fork(Fork { child: self.tgid, start: self.start }))
    }
}

impl IntoEvent for Committed {
    fn event(&self, raw: &[u8]) -> Decoded {
        let mut arguments = self.args_0.bytes(raw).to_vec();
        arguments.extend_from_slice(self.args_1.bytes(raw));
        Decoded::Event(EventKind::Exec(Box::new(Exec {
            filename: until_nul(self.filename.bytes(raw)),
            interpreter: until_nul(self.interpreter.bytes(raw)),
            arguments,
            argument_count: u32::try_from(self.argc).ok(),
        })))
    }
}

impl IntoEvent for Credited {
    fn event(&self, _: &[u8]) -> Decoded {
        let Self { uid, gid, euid, egid } = *self;
        Decoded::Event(EventKind::Credentials(Credentials { uid, gid, euid, egid }))
    }
}

impl IntoEvent for Exited {
    fn event(&self, _: &[u8]) -> Decoded {
        Decoded::Event(EventKind::Exit)
    }
}

/// A C string within a window; empty when the window is too short for it: half a path is none.
fn until_nul(window: &[u8]) -> Vec<u8> {
    match window.iter().position(|byte| *byte == 0) {
        Some(end) => window[..end].to_vec(),
        None => Vec::new(),
    }
}
