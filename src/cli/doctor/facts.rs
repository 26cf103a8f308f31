//! Facts about a host, as plain data, so that tests can make up hosts.

use std::path::PathBuf;

use socktrail::switches::Switches;
use socktrail_kprobes::Clock;

/// Facts about a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub architecture: String,
    /// The state of tracefs.
    pub tracefs: Tracefs,
    /// Whether the kernel has kprobe events; `None` if unknown.
    pub kprobes: Option<bool>,
    /// Kernel switches that keep installed probes from firing.
    pub switches: Switches,
    /// `/proc/sys/kernel/perf_event_paranoid`; `None` where the kernel has no perf events.
    pub perf_event_paranoid: Option<i32>,
    /// The clock of samples, found by opening a ring; `None` if none could be opened.
    pub samples_clock: Option<Clock>,
    /// The kernel's clock source, such as `tsc`; `None` if the kernel does not show it.
    pub clock_source: Option<String>,
    /// The effective user id.
    pub euid: u32,
    /// The effective capabilities, one bit each.
    pub capabilities: u64,
    /// The privileges that an agent can drop on this host, found by trying.
    pub confinement: String,
    /// The privileges that running agents have kept, a line for each agent.
    pub agents: Vec<String>,
    /// The services of systemd's user database, by name.
    pub user_services: Vec<String>,
    /// The `getent` program that looks up users.
    pub getent: Option<PathBuf>,
    /// The modules for users in `nsswitch.conf`, except `files`, `compat` and `systemd`.
    pub user_modules: Vec<String>,
    /// The mode of `/sys/kernel/security/lockdown`; `None` if the kernel has no lockdown or does not show it.
    pub lockdown: Option<String>,
    /// Whether the kernel has IPv6: built in, or its module is loaded.
    pub ipv6: bool,
    /// Whether IPv6 is disabled on the loopback interface; `None` without IPv6.
    pub ipv6_off_on_lo: Option<bool>,
    /// Whether the kernel has its type information (BTF).
    pub btf: bool,
    /// The number of online CPUs.
    pub cpus: u64,
    /// Open files: soft and hard limit.
    pub files: Limit,
    /// Locked memory in bytes: soft and hard limit.
    pub locked_memory: Limit,
    /// `/proc/sys/kernel/perf_event_mlock_kb`: how much memory of the rings on each CPU does not count against
    /// `locked_memory`, in KiB.
    pub perf_event_mlock_kb: u64,
    /// The size of a memory page in bytes.
    pub page_size: u64,
}

/// The state of tracefs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracefs {
    /// It is mounted.
    Mounted(PathBuf),
    /// It was not mounted. A mount worked, and was undone.
    Mountable(PathBuf),
    /// This user cannot access it. Holds the error.
    Forbidden(String),
    /// It does not exist. Holds the error.
    Missing(String),
}

/// A resource limit; `u64::MAX` means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The limit in effect.
    pub soft: u64,
    /// The highest value to which the process may raise it.
    pub hard: u64,
}

/// Bits of [`Facts::capabilities`], with their names from `capabilities(7)`.
pub mod capability {
    /// Bypass permission checks of files.
    pub const DAC_OVERRIDE: u64 = 1 << 1;
    /// Lock any amount of memory.
    pub const IPC_LOCK: u64 = 1 << 14;
    /// Inspect processes of other users.
    pub const SYS_PTRACE: u64 = 1 << 19;
    /// Most of system administration.
    pub const SYS_ADMIN: u64 = 1 << 21;
    /// Raise limits.
    pub const SYS_RESOURCE: u64 = 1 << 24;
    /// Open perf events for all processes (Linux 5.8).
    pub const PERFMON: u64 = 1 << 38;
}

impl Facts {
    /// Whether the process has one of these capabilities.
    pub fn has_any(&self, capabilities: u64) -> bool {
        self.capabilities & capabilities != 0
    }

    /// The major and minor version of the kernel's release; zeroes if it has another form.
    pub fn version(&self) -> (u32, u32) {
        let mut numbers = self.release.split(|char: char| !char.is_ascii_digit()).map(|digits| digits.parse().ok());
        let mut next = || numbers.next().flatten().unwrap_or(0);
        (next(), next())
    }
}
