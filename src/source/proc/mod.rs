//! Facts from `/proc`: the processes that existed before the monitor, and details that no event has.
//!
//! `/proc/PID` describes the process that has this pid now. An answer counts only if it is provably about the right process: the
//! start time is the same before and after, and the arguments are those of its exec.

mod existing;
#[cfg(fuzzing)]
pub mod fuzzing;
mod living;
mod mounts;
mod sockets;
mod stat;

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use procfs::ProcError;
use procfs::process::Process as ProcEntry;

use crate::model::control_groups::ControlGroups;
use crate::model::process::{Credentials, Details, Image, Process};
use crate::model::time::{BootTime, MonotonicTime};
use crate::state::{FoundProcess, PreexistingProcess};

pub use self::existing::existing_sockets;
use self::living::LivingProcess;
pub use self::mounts::{host_has_control_groups, path_in_hierarchy, sees_all_control_groups, topmost_group};
pub use self::sockets::sockets;
use self::stat::Stat;

/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x0020_0000;
/// `TASK_COMM_LEN` without its NUL: longer names are truncated in `/proc/PID/comm`.
const COMM_LENGTH: usize = 15;
/// The maximum number of bytes of arguments that are read. The kernel's own limit is a quarter of the stack's, usually 2 MiB.
const MAX_ARGUMENTS: u64 = 2 << 20;
/// The maximum number of bytes read of `/proc/PID/cgroup`: more than the paths of all hierarchies need.
const MAX_CGROUPS: u64 = 128 << 10;

/// All living processes, except those that end meanwhile or cannot be read.
pub fn processes() -> Vec<PreexistingProcess> {
    LivingProcess::all().iter().map(process).collect()
}

/// The details of a process in `/proc`; `None` if it has ended or runs another program now. `now` reads the kernel's clock after
/// `/proc` has answered.
pub fn look_up(process: &Process, now: impl FnOnce() -> MonotonicTime) -> Option<FoundProcess> {
    let living = LivingProcess::of(ProcEntry::new(i32::try_from(process.pid).ok()?).ok()?)?;
    if process.start.is_some_and(|start| ticks(start) != living.stat.starttime) {
        return None;
    }
    let args = arguments(living.directory())?;
    if !same_program(&process.image, &args) {
        return None;
    }
    let groups = control_groups(living.directory());
    let mut found = FoundProcess {
        read: MonotonicTime::ZERO,
        start: Some(start(&living.stat)),
        parent_pid: Some(living.stat.ppid),
        credentials: credentials(living.directory()),
        details: details(living.directory(), &living.stat, &groups, args),
        control_groups: groups,
    };
    // If process and program are still the same, all of it was about them.
    let same = living.is_there() && arguments(living.directory()) == found.details.args;
    found.read = now();
    same.then_some(found)
}

/// Whether a process has certainly ended, or another has its id.
pub fn is_gone(process: &Process) -> bool {
    let Ok(pid) = i32::try_from(process.pid) else { return false };
    match ProcEntry::new(pid) {
        Ok(entry) => match Stat::of(&entry) {
            Some(stat) if process.start.is_some_and(|start| ticks(start) != stat.starttime) => true,
            Some(stat) if stat.has_ended() => LivingProcess::of(entry).is_none(),
            _ => false,
        },
        // If `/proc` hides other users' processes (`hidepid`), it hides process 1, too.
        Err(ProcError::NotFound(_)) => ProcEntry::new(1).is_ok(),
        Err(_) => false,
    }
}

/// Whether this kernel has IPv6.
pub fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

fn process(living: &LivingProcess) -> PreexistingProcess {
    let LivingProcess { pid, ref stat, ref threads, .. } = *living;
    let entry = living.directory();
    let args = arguments(entry).unwrap_or_default();
    let groups = control_groups(entry);
    let details = details(entry, stat, &groups, args.clone());
    let image = Image {
        name: details.name.clone().unwrap_or_default(),
        executable: details.executable.clone(),
        args,
        details: OnceLock::from(details),
        ..Image::default()
    };
    let process = Process {
        pid,
        parent_pid: Some(stat.ppid).filter(|pid| *pid != 0),
        start: Some(start(stat)),
        kernel: stat.flags & PF_KTHREAD != 0,
        credentials: credentials(entry),
        control_groups: Some(Arc::new(groups)),
        image: Arc::new(image),
    };
    PreexistingProcess { process, threads: threads.clone() }
}

fn details(entry: &ProcEntry, stat: &Stat, groups: &ControlGroups, args: Vec<String>) -> Details {
    let executable = entry.exe().ok().filter(|path| path.is_absolute());
    Details {
        name: Some(full_name(&stat.comm, executable.as_ref(), args.first())),
        executable,
        working_directory: entry.cwd().ok(),
        container_id: groups.container_id().map(str::to_owned),
        args: Some(args),
    }
}

fn control_groups(entry: &ProcEntry) -> ControlGroups {
    let mut text = Vec::new();
    // If it cannot be read, no group is known.
    let _ = entry.open_relative("cgroup").map(|file| file.take(MAX_CGROUPS).read_to_end(&mut text));
    ControlGroups::of_proc(&text)
}

/// Parses `/proc/PID/cmdline`: strings with a NUL after each; they may be empty.
fn arguments(entry: &ProcEntry) -> Option<Vec<String>> {
    let mut bytes = Vec::new();
    entry.open_relative("cmdline").ok()?.take(MAX_ARGUMENTS).read_to_end(&mut bytes).ok()?;
    Some(split_arguments(&bytes))
}

fn split_arguments(bytes: &[u8]) -> Vec<String> {
    let Some(strings) = bytes.strip_suffix(b"\0").or(Some(bytes)).filter(|_| !bytes.is_empty()) else {
        return Vec::new();
    };
    strings.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
}

fn credentials(entry: &ProcEntry) -> Option<Credentials> {
    let status = entry.status().ok()?;
    Some(Credentials { uid: status.ruid, gid: status.rgid, euid: status.euid, egid: status.egid })
}

/// Whether a process with these arguments may still run the program of `image`: true if they are the arguments of its exec. A
/// process that has rewritten its arguments is not recognised, and keeps what was captured at its exec.
fn same_program(image: &Image, args: &[String]) -> bool {
    if image.args.is_empty() {
        return true; // no arguments are known to compare with
    }
    match image.args.split_last() {
        Some((cut, whole)) if image.args_cut => {
            args.starts_with(whole) && args.get(whole.len()).is_some_and(|arg| arg.starts_with(cut.as_str()))
        }
        _ => image.args == args,
    }
}

/// The name without its truncation to 15 bytes, if the executable's or the first argument's file name begins with it.
fn full_name(comm: &str, executable: Option<&PathBuf>, first_arg: Option<&String>) -> String {
    if comm.len() < COMM_LENGTH {
        return comm.to_owned();
    }
    let of_executable = executable.and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
    let of_arg = first_arg.and_then(|arg| arg.rsplit('/').next()).map(str::to_owned);
    [of_executable, of_arg].into_iter().flatten().find(|name| name.starts_with(comm)).unwrap_or_else(|| comm.to_owned())
}

/// When a process began. `/proc` counts in ticks of `_SC_CLK_TCK`.
fn start(stat: &Stat) -> BootTime {
    BootTime::from_nanos(stat.starttime.saturating_mul(1_000_000_000 / procfs::ticks_per_second()))
}

fn ticks(time: BootTime) -> u64 {
    time.as_nanos() / (1_000_000_000 / procfs::ticks_per_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::monotonic;

    fn image(args: &[&str], args_cut: bool) -> Image {
        Image { args: args.iter().map(ToString::to_string).collect(), args_cut, ..Image::default() }
    }

    fn strings(args: &[&str]) -> Vec<String> {
        args.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn another_program_under_the_same_pid_is_recognised() {
        let curl = image(&["curl", "http://h/"], false);
        assert!(same_program(&curl, &strings(&["curl", "http://h/"])));
        assert!(!same_program(&curl, &strings(&["sh"])));
        assert!(!same_program(&curl, &strings(&["curl", "http://h/", "more"])));
    }

    #[test]
    fn arguments_that_were_cut_are_compared_as_far_as_they_go() {
        let long = image(&["java", "-cp", "/opt/li"], true);
        assert!(same_program(&long, &strings(&["java", "-cp", "/opt/lib/a.jar", "Main"])));
        assert!(!same_program(&long, &strings(&["java", "-jar", "/opt/lib/a.jar"])));
        assert!(!same_program(&long, &strings(&["java", "-cp"])));
    }

    #[test]
    fn empty_arguments_are_arguments() {
        assert_eq!(split_arguments(b"curl\0\0-s\0\0"), ["curl", "", "-s", ""]);
        assert_eq!(split_arguments(b"renamed: worker 3"), ["renamed: worker 3"]);
        assert!(split_arguments(b"").is_empty());
    }

    #[test]
    fn cut_names_are_completed() {
        let path = PathBuf::from("/usr/lib/systemd/systemd-resolved");
        assert_eq!(full_name("systemd-resolve", Some(&path), None), "systemd-resolved");
        assert_eq!(full_name("systemd-resolve", None, None), "systemd-resolve");
        assert_eq!(full_name("sh", Some(&PathBuf::from("/bin/shell")), None), "sh");
    }

    #[test]
    fn this_very_process_is_found_as_it_is() {
        let PreexistingProcess { process: own, threads } =
            processes().into_iter().find(|old| old.process.pid == std::process::id()).expect("it runs");
        assert!(threads.contains(&own.pid) && threads.contains(&(nix::unistd::gettid().as_raw() as u32)));
        assert_eq!(own.image.executable().cloned(), std::env::current_exe().ok());
        assert_eq!(own.image.args(), std::env::args().collect::<Vec<_>>());
        assert_eq!(own.credentials.map(|c| c.uid), Some(nix::unistd::getuid().as_raw()));
        assert!(!own.kernel);
        let found = look_up(&own, || monotonic(0)).expect("it still runs");
        assert_eq!(found.details.working_directory, std::env::current_dir().ok());
        let other = Process {
            start: own.start.map(|start| start.saturating_add(std::time::Duration::from_secs(1))),
            ..own.clone()
        };
        assert!(look_up(&other, || monotonic(0)).is_none(), "another process had this pid");
        assert!(is_gone(&other) && !is_gone(&own));
    }
}
