//! Gathers facts about the host. Undoes all its changes.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::utsname::{UtsName, uname};
use nix::unistd::{SysconfVar, gettid, sysconf};
use procfs::process::{LimitValue, Process, all_processes};
use socktrail::privileges::{Kept, Trial};
use socktrail::switches::Switches;
use socktrail::users::Sources;
use socktrail_kprobes::{self as kprobes, Clock, Kind, RingOptions, Rings};

use super::facts::{Facts, Limit, Tracefs};

/// Gathers facts about this host and this process's privileges.
pub fn gather() -> Facts {
    let name = uname().ok();
    let text = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let status = Process::myself().and_then(|myself| myself.status()).ok();
    let limits = Process::myself().and_then(|myself| myself.limits()).ok();
    let (tracefs, kprobes) = tracefs();
    Facts {
        release: text(name.as_ref().map(UtsName::release)),
        architecture: text(name.as_ref().map(UtsName::machine)),
        tracefs,
        kprobes: kprobes.or_else(kprobe_pmu),
        switches: Switches::read(),
        perf_event_paranoid: number("/proc/sys/kernel/perf_event_paranoid"),
        samples_clock: samples_clock(),
        clock_source: fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
            .ok()
            .map(|name| name.trim().to_owned()),
        euid: nix::unistd::geteuid().as_raw(),
        capabilities: status.map_or(0, |status| status.capeff),
        confinement: Trial::take().map_or_else(|error| error.to_string(), |trial| trial.to_string()),
        agents: agents(),
        user_services: Sources::system().services(),
        getent: Sources::system().getent(),
        user_modules: fs::read_to_string("/etc/nsswitch.conf").map_or_else(|_| Vec::new(), |text| user_modules(&text)),
        lockdown: fs::read_to_string("/sys/kernel/security/lockdown").ok().and_then(|modes| selected(&modes)),
        ipv6: Path::new("/proc/sys/net/ipv6").exists(),
        ipv6_off_on_lo: number("/proc/sys/net/ipv6/conf/lo/disable_ipv6").map(|off: u8| off != 0),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        cpus: sysconf_or(SysconfVar::_NPROCESSORS_ONLN, 1),
        files: limits
            .as_ref()
            .map_or(UNKNOWN, |limits| limit(limits.max_open_files.soft_limit, limits.max_open_files.hard_limit)),
        locked_memory: limits
            .as_ref()
            .map_or(UNKNOWN, |limits| limit(limits.max_locked_memory.soft_limit, limits.max_locked_memory.hard_limit)),
        perf_event_mlock_kb: number("/proc/sys/kernel/perf_event_mlock_kb").unwrap_or(0),
        page_size: sysconf_or(SysconfVar::PAGE_SIZE, 4096),
    }
}

/// The state of tracefs, and whether it has kprobe events; `None` if it cannot be accessed.
fn tracefs() -> (Tracefs, Option<bool>) {
    let mounted_before = mount_points();
    match kprobes::Tracefs::find() {
        Ok(tracefs) => {
            let root = tracefs.root().to_owned();
            let kprobes = Some(tracefs.has_kprobes());
            let was_there = mounted_before.iter().any(|point| root.starts_with(point));
            (if was_there { Tracefs::Mounted(root) } else { Tracefs::Mountable(root) }, kprobes)
        }
        Err(error) if error.kind() == Kind::Permission => (Tracefs::Forbidden(error.to_string()), None),
        Err(error) => (Tracefs::Missing(error.to_string()), None),
    }
}

/// The clock of samples when `use_clockid` is requested. Distributions have backported this, so the kernel's release does
/// not show it.
fn samples_clock() -> Option<Clock> {
    let mut options = RingOptions::default();
    options.page_exponent = 0;
    let rings = Rings::for_thread(gettid().as_raw().cast_unsigned(), &options);
    rings.ok().map(|rings| rings.clock())
}

/// The mount points of tracefs and debugfs.
fn mount_points() -> Vec<PathBuf> {
    let mounts = Process::myself().and_then(|myself| myself.mountinfo());
    let mounts = mounts.map(|mounts| mounts.0).unwrap_or_default();
    let ours = mounts.into_iter().filter(|mount| matches!(&*mount.fs_type, "tracefs" | "debugfs"));
    ours.map(|mount| mount.mount_point).collect()
}

/// The privileges of each running `socktrail agent`, according to the kernel.
fn agents() -> Vec<String> {
    let processes = all_processes().into_iter().flatten().filter_map(Result::ok);
    let is_agent = |process: &Process| {
        let arguments = process.cmdline().unwrap_or_default();
        let program = arguments.first().map(Path::new).and_then(Path::file_name);
        program == Some(OsStr::new("socktrail")) && arguments.iter().any(|argument| argument == "agent")
    };
    let describe = |process: Process| {
        let status = process.status().ok()?;
        let (kept, pid) = (Kept::from_bits(status.capeff), process.pid());
        let filtered =
            if status.seccomp == Some(2) { "system calls are filtered" } else { "system calls are not filtered" };
        let privileges =
            if status.nonewprivs == Some(1) { "it cannot gain privileges" } else { "it can gain privileges" };
        Some(format!("process {pid} keeps {kept}; {filtered}; {privileges}"))
    };
    processes.filter(is_agent).filter_map(describe).collect()
}

/// Whether the kernel has kprobe events. Kernels from 4.17 on show this to all users; `None` on older ones.
fn kprobe_pmu() -> Option<bool> {
    let sources = Path::new("/sys/bus/event_source/devices");
    let is_shown = sources.join("uprobe").exists() || sources.join("kprobe").exists();
    is_shown.then(|| sources.join("kprobe").exists())
}

/// The modules for users in `nsswitch.conf(5)`, except `files`, `compat` and `systemd`.
fn user_modules(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("passwd:")).unwrap_or_default();
    let line = line.split('#').next().unwrap_or_default();
    // Actions are in brackets, and may contain spaces.
    let words = line.split('[').flat_map(|part| part.rsplit(']').next()).flat_map(str::split_whitespace);
    words.filter(|word| !["files", "compat", "systemd"].contains(word)).map(str::to_owned).collect()
}

/// The word in brackets, as in `none [integrity] confidentiality`.
fn selected(modes: &str) -> Option<String> {
    let (mode, _) = modes.split_once('[')?.1.split_once(']')?;
    Some(mode.to_owned())
}

fn number<N: std::str::FromStr>(path: &str) -> Option<N> {
    let text = fs::read_to_string(path).ok()?;
    text.trim().parse().ok()
}

fn sysconf_or(variable: SysconfVar, default: u64) -> u64 {
    let value = sysconf(variable).ok().flatten();
    value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default)
}

const UNKNOWN: Limit = Limit { soft: u64::MAX, hard: u64::MAX };

fn limit(soft: LimitValue, hard: LimitValue) -> Limit {
    let value = |value| match value {
        LimitValue::Value(value) => value,
        LimitValue::Unlimited => u64::MAX,
    };
    Limit { soft: value(soft), hard: value(hard) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selected_mode_of_lockdown_is_found() {
        assert_eq!(selected("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(selected(""), None);
    }

    #[test]
    fn nsswitch_modules_besides_files_are_found() {
        let text = "# passwd: nis\npasswd:   files [SUCCESS=merge] sss systemd ldap # winbind\ngroup: nis\n";
        assert_eq!(user_modules(text), ["sss", "ldap"]);
        assert_eq!(user_modules("passwd: compat [ NOTFOUND=return ] systemd\n"), [""; 0]);
        assert_eq!(user_modules(""), [""; 0]);
    }

    #[test]
    fn this_host_has_facts() {
        let facts = gather();
        assert_eq!(facts.release, fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
        assert!(facts.version() > (2, 6));
        assert!(facts.cpus >= 1);
    }
}
