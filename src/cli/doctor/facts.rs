//! What a host can be asked about itself: plain data, so that hosts can be invented.

use std::path::PathBuf;

use socktrail::switches::Switches;

/// What was found out about a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub architecture: String,
    /// Where tracefs is.
    pub tracefs: Tracefs,
    /// Whether the kernel has kprobe events; `None` where nothing told.
    pub kprobes: Option<bool>,
    /// Switches that let probes be installed and never fire.
    pub switches: Switches,
    /// `/proc/sys/kernel/perf_event_paranoid`; `None` where the kernel has no perf events.
    pub perf_event_paranoid: Option<i32>,
    /// The clock source that the kernel's time comes from, such as `tsc`; `None` where the kernel does not show it.
    pub clock_source: Option<String>,
    /// The effective user.
    pub euid: u32,
    /// The effective capabilities, a bit each.
    pub capabilities: u64,
    /// What an agent could give up here once it watches: told by having tried.
    pub confinement: String,
    /// What agents that run now keep, a line for each.
    pub agents: Vec<String>,
    /// The services of systemd's user database, by name.
    pub user_services: Vec<String>,
    /// The `getent` that can be asked for users.
    pub getent: Option<PathBuf>,
    /// What `nsswitch.conf` names for users beside files.
    pub user_modules: Vec<String>,
    /// The mode of `/sys/kernel/security/lockdown`; `None` where the kernel has no lockdown or does not show it.
    pub lockdown: Option<String>,
    /// Whether the kernel has IPv6: built in, or its module is loaded.
    pub ipv6: bool,
    /// Whether IPv6 is switched off on the loopback interface; `None` without IPv6.
    pub ipv6_off_on_lo: Option<bool>,
    /// Whether the kernel carries its type information.
    pub btf: bool,
    /// CPUs online.
    pub cpus: u64,
    /// Open files: soft and hard limit.
    pub files: Limit,
    /// Locked memory in bytes: soft and hard limit.
    pub locked_memory: Limit,
    /// `/proc/sys/kernel/perf_event_mlock_kb`: what a user may lock for rings on each CPU beside that, in KiB.
    pub perf_event_mlock_kb: u64,
    /// The size of a memory page in bytes.
    pub page_size: u64,
}

/// Where tracefs is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracefs {
    /// It is mounted.
    Mounted(PathBuf),
    /// It was not mounted, could be, and is not any more.
    Mountable(PathBuf),
    /// It is there, but not for this user. Holds what was refused.
    Forbidden(String),
    /// There is none. Holds why.
    Missing(String),
}

/// A resource limit; `u64::MAX` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What holds.
    pub soft: u64,
    /// Up to where the process may raise it.
    pub hard: u64,
}

/// Bits of [`Facts::capabilities`], by their names in `capabilities(7)`.
pub mod capability {
    /// Read files whatever their mode.
    pub const DAC_OVERRIDE: u64 = 1 << 1;
    /// Lock memory without limit.
    pub const IPC_LOCK: u64 = 1 << 14;
    /// Look into other users' processes.
    pub const SYS_PTRACE: u64 = 1 << 19;
    /// Nearly all of system administration.
    pub const SYS_ADMIN: u64 = 1 << 21;
    /// Raise limits.
    pub const SYS_RESOURCE: u64 = 1 << 24;
    /// Perf events of everything (Linux 5.8).
    pub const PERFMON: u64 = 1 << 38;
}

impl Facts {
    /// Whether any of these capabilities is there.
    pub fn can(&self, capabilities: u64) -> bool {
        self.capabilities & capabilities != 0
    }

    /// The first two numbers of the kernel's release; zeroes where it has another form.
    pub fn version(&self) -> (u32, u32) {
        let mut numbers = self.release.split(|char: char| !char.is_ascii_digit()).map(|digits| digits.parse().ok());
        let mut next = || numbers.next().flatten().unwrap_or(0);
        (next(), next())
    }
}
