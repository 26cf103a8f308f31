//! Processes: whose a flow is.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::container::Containers;
use crate::event::{Credentials, Ran};

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
    /// The containers that it is in, known from the kernel's events of forks and moves. `None` if there are no such
    /// events, or if its start was not seen: then `/proc` is used, see [`Process::container_id`].
    pub containers: Option<Arc<Containers>>,
    /// What it runs.
    pub image: Arc<Image>,
}

/// What a process runs: one program from one `execve(2)`, shared by the forks that go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// The full name: of the file that was executed, not cut at 15 bytes. Empty where unknown.
    pub name: String,
    /// The file that runs, as the kernel names it at the exec: see [`Ran`]. Known with the exec, or right after it.
    pub file: OnceLock<Ran>,
    /// The path of the program that runs, as given to the kernel, if that was absolute. It may be a link, and is used
    /// only if the file is not known.
    pub executable: Option<PathBuf>,
    /// All arguments, the program's own name first. Empty where unknown.
    pub args: Vec<String>,
    /// How many arguments there are, including those missing in `args`, if known from the kernel.
    pub argument_count: Option<u32>,
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
    /// The container's id, from `/proc/PID/cgroup`: see [`Process::container_id`].
    pub container_id: Option<String>,
}

impl Process {
    /// The container that it is in: its id, or its name if the runtime has no ids. Events take precedence over `/proc`,
    /// whose answer is about just one of the processes that share an [`Image`].
    pub fn container_id(&self) -> Option<&str> {
        match &self.containers {
            Some(containers) => containers.id(),
            None => self.image.details.get()?.container_id.as_deref(),
        }
    }
}

impl Image {
    /// The best known name: of the executed file, else of the file that runs, else what `/proc` says.
    pub fn name(&self) -> Option<&str> {
        let executed = Some(self.name.as_str()).filter(|name| !name.is_empty());
        let found = || self.details.get().and_then(|details| details.name.as_deref());
        executed.or_else(|| self.file_name()).or_else(found)
    }

    /// The name of the file that runs, whether or not it has been removed.
    fn file_name(&self) -> Option<&str> {
        let Some(Ran::Path(path)) = self.file.get() else { return None };
        let name = path.file_name()?.to_str()?;
        Some(name.strip_suffix(" (deleted)").unwrap_or(name))
    }

    /// The best known path of the program: the kernel's at the exec, else what `/proc` resolved later, else the
    /// executed path, unless that is known to be another file's.
    pub fn executable(&self) -> Option<&PathBuf> {
        let resolved = self.details.get().and_then(|details| details.executable.as_ref());
        match self.file.get() {
            Some(Ran::Path(path)) => Some(path),
            Some(Ran::TooDeep) => resolved,
            None => resolved.or(self.executable.as_ref()),
        }
    }

    /// The best known arguments: those captured at exec, unless they were cut and `/proc` had them whole.
    pub fn args(&self) -> &[String] {
        match self.details.get().and_then(|d| d.args.as_ref()) {
            Some(whole) if self.args_cut || self.args.is_empty() => whole,
            _ => &self.args,
        }
    }

    /// How many arguments it was given, even if [`args`](Self::args) does not have them all.
    pub fn args_count(&self) -> usize {
        self.argument_count.map_or_else(|| self.args().len(), |count| count as usize)
    }

    /// Whether [`args`](Self::args) has fewer arguments than the program was given.
    pub fn lacks_args(&self) -> bool {
        let whole = self.details.get().and_then(|details| details.args.as_ref());
        self.args_cut && whole.is_none_or(|args| args.len() < self.args_count())
    }
}
