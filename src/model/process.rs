//! Processes, which own flows.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::model::control_groups::ControlGroups;
use crate::model::time::BootTime;

/// A process (a thread group, not a thread) as it was at one moment.
///
/// An exec or a change of credentials creates a new value; a flow keeps the one from when it was bound to its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// Its id, in the monitor's pid namespace.
    pub pid: u32,
    /// Its parent's id, where known.
    pub parent_pid: Option<u32>,
    /// When it began; `None` if no event and no file in `/proc` said so.
    pub start: Option<BootTime>,
    /// Whether it is a kernel thread.
    pub kernel: bool,
    /// Its users and groups, if known.
    pub credentials: Option<Credentials>,
    /// The containers that it is in, known from the kernel's events of forks and moves. `None` if there are no such
    /// events, or if its start was not seen: then `/proc` is used, see [`Process::container_id`].
    pub control_groups: Option<Arc<ControlGroups>>,
    /// The program that it runs.
    pub image: Arc<Image>,
}

/// The users and groups of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// Real user.
    pub uid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective user.
    pub euid: u32,
    /// Effective group.
    pub egid: u32,
}

/// The file that a process runs: for a script, its interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecutedFile {
    /// Its path at the exec, as in `/proc/PID/exe`. Links are resolved, and the path begins at the root of the process's mount
    /// namespace. If the file was removed before the exec, the path ends in ` (deleted)`. A file in memory only is
    /// `/memfd:NAME (deleted)`.
    Path(PathBuf),
    /// Its path has more parts, or longer ones, than are captured.
    TooDeep,
}

/// The program that a process runs, from one `execve(2)`; its forks share it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Image {
    /// The name of the file that `execve(2)` was given (for a script, the script's own), not truncated to 15 bytes. If the exec
    /// was not seen, as [`Details::name`]. Empty if unknown.
    pub name: String,
    /// The file that runs, as the kernel names it at the exec: see [`ExecutedFile`]. Known with the exec, or right after it.
    pub file: OnceLock<ExecutedFile>,
    /// The path of the program that runs, as given to the kernel, if that was absolute. It may be a link, and is used
    /// only if the file is not known.
    pub executable: Option<PathBuf>,
    /// All arguments, the program's own name first. Empty if unknown.
    pub args: Vec<String>,
    /// How many arguments there are, including those missing in `args`, if known from the kernel.
    pub argument_count: Option<u32>,
    /// Whether `args` were truncated, because they were longer than what is captured at exec.
    pub args_cut: bool,
    /// Details from `/proc`, if it was read while the process lived.
    pub details: OnceLock<Details>,
}

/// Details from `/proc/PID` that the kernel's events do not have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Details {
    /// The name (`comm`), for a process whose exec was not seen. The kernel truncates it to 15 bytes. It is completed from the
    /// executable's name or the first argument, if one of them begins with it.
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
    /// A process with this id; nothing else is known of it. Id 0 stands for the kernel.
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            parent_pid: None,
            start: None,
            kernel: pid == 0,
            credentials: None,
            control_groups: None,
            image: Arc::default(),
        }
    }

    /// The container that it is in: its id, or its name if the runtime has no ids. Events take precedence over `/proc`,
    /// whose answer is about just one of the processes that share an [`Image`].
    pub fn container_id(&self) -> Option<&str> {
        match &self.control_groups {
            Some(groups) => groups.container_id(),
            None => self.image.details.get()?.container_id.as_deref(),
        }
    }
}

impl Image {
    /// The best known name: of the file that `execve(2)` was given, else of the file that runs, else the one in `/proc`.
    pub fn name(&self) -> Option<&str> {
        let executed = Some(self.name.as_str()).filter(|name| !name.is_empty());
        let found = || self.details.get().and_then(|details| details.name.as_deref());
        executed.or_else(|| self.file_name()).or_else(found)
    }

    /// The name of the file that runs, whether or not it has been removed.
    fn file_name(&self) -> Option<&str> {
        let Some(ExecutedFile::Path(path)) = self.file.get() else { return None };
        let name = path.file_name()?.to_str()?;
        Some(name.strip_suffix(" (deleted)").unwrap_or(name))
    }

    /// The best known path of the program: the kernel's at the exec, else what `/proc` resolved later, else the path given to the
    /// kernel. The latter is not used if the file is [`ExecutedFile::TooDeep`], because it is then known to be a link.
    pub fn executable(&self) -> Option<&PathBuf> {
        let resolved = self.details.get().and_then(|details| details.executable.as_ref());
        match self.file.get() {
            Some(ExecutedFile::Path(path)) => Some(path),
            Some(ExecutedFile::TooDeep) => resolved,
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
