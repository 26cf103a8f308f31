//! Processes: whose a flow is.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::event::Credentials;

/// A process (a thread group, not a thread) as it was at one moment.
///
/// A change of program or of credentials makes a new value; flows keep the one that was true when they were bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id, in the monitor's pid namespace.
    pub pid: u32,
    /// Its parent's id, where known.
    pub parent_pid: Option<u32>,
    /// When it began: nanoseconds since boot (`CLOCK_BOOTTIME`). `None` where nothing told.
    pub start: Option<u64>,
    /// Whether it is a thread of the kernel.
    pub kernel: bool,
    /// Who it acts as, where known.
    pub credentials: Option<Credentials>,
    /// What it runs.
    pub image: Arc<Image>,
}

/// What a process runs: one program from one `execve(2)`, shared by the forks that go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// The full name: of the file that was executed, not cut at 15 bytes. Empty where unknown.
    pub name: String,
    /// The absolute path of the program that runs, as given to the kernel, where that was absolute.
    pub executable: Option<PathBuf>,
    /// All arguments, the program's own name first. Empty where unknown.
    pub args: Vec<String>,
    /// Whether `args` were cut, because they were longer than what is captured at exec.
    pub args_cut: bool,
    /// What only `/proc` knows; read while the process was alive, or never.
    pub details: OnceLock<Details>,
}

/// What `/proc/PID` adds to what the kernel's events said.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Details {
    /// The name, for a process whose exec nobody saw. Cut at 15 bytes where nothing longer fits it.
    pub name: Option<String>,
    /// `/proc/PID/exe`: the resolved path.
    pub executable: Option<PathBuf>,
    /// `/proc/PID/cmdline`, whole.
    pub args: Option<Vec<String>>,
    /// `/proc/PID/cwd`.
    pub working_directory: Option<PathBuf>,
    /// The container's id, from `/proc/PID/cgroup`.
    pub container_id: Option<String>,
}

impl Image {
    /// The best known name: of the file that was executed, else what `/proc` says.
    pub fn name(&self) -> Option<&str> {
        let found = self.details.get().and_then(|d| d.name.as_deref());
        Some(self.name.as_str()).filter(|name| !name.is_empty()).or(found)
    }

    /// The best known path of the program: what `/proc` resolved, else what was executed.
    pub fn executable(&self) -> Option<&PathBuf> {
        self.details.get().and_then(|d| d.executable.as_ref()).or(self.executable.as_ref())
    }

    /// The best known arguments: those captured at exec, unless they were cut and `/proc` had them whole.
    pub fn args(&self) -> &[String] {
        match self.details.get().and_then(|d| d.args.as_ref()) {
            Some(whole) if self.args_cut || self.args.is_empty() => whole,
            _ => &self.args,
        }
    }
}
