//! Samples of processes at hooks.

use socktrail_kprobes::{Array, sample};

use crate::model::event::{EventKind, Exec};
use crate::model::process::Credentials;
use crate::source::kprobes::processes::c_string;
use crate::source::kprobes::{Decoded, Interpret};

sample! {
    /// `sched:sched_process_exec`: the running task runs another program. Its arguments lie one after the other, from `arg_start`
    /// on, in programs of 32 bits as well.
    pub struct ProcessExecuted {
        /// How many arguments there are.
        pub argc: i32 = "+{linux_binprm.argc}({bprm})",
        /// The path given to `execve(2)`.
        pub filename: Array<u64, 32> = "+0(+{linux_binprm.filename}({bprm}))",
        /// The path of the file that runs in the end: for a script, of its interpreter.
        pub interpreter: Array<u64, 32> = "+0(+{linux_binprm.interp}({bprm}))",
        /// The argument strings, one after the other.
        pub args_0: Array<u64, 64> = "+0(+{mm_struct.arg_start}(+{task_struct.mm}($task)))",
        /// The next 512 bytes of them.
        pub args_1: Array<u64, 64> = "+512(+{mm_struct.arg_start}(+{task_struct.mm}($task)))",
    }

    /// The credentials of the running task.
    pub struct OwnCredentials {
        /// Real user.
        pub uid: u32 = "+{cred.uid}(+{task_struct.cred}($task))",
        /// Real group.
        pub gid: u32 = "+{cred.gid}(+{task_struct.cred}($task))",
        /// Effective user.
        pub euid: u32 = "+{cred.euid}(+{task_struct.cred}($task))",
        /// Effective group.
        pub egid: u32 = "+{cred.egid}(+{task_struct.cred}($task))",
    }
}

impl Interpret for ProcessExecuted {
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

impl Interpret for OwnCredentials {
    fn interpret(&self, _: &[u8]) -> Decoded {
        let Self { uid, gid, euid, egid } = *self;
        Decoded::Event(EventKind::Credentials(Credentials { uid, gid, euid, egid }))
    }
}
