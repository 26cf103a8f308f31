//! Asks the host. Leaves nothing behind.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::utsname::{UtsName, uname};
use nix::unistd::{SysconfVar, sysconf};
use procfs::process::{LimitValue, Process, all_processes};
use socktrail::privileges::{Kept, Trial};
use socktrail::switches::Switches;
use socktrail::users::Sources;
use socktrail_kprobes::{self as kprobes, Kind};

use super::facts::{Facts, Limit, Tracefs};

/// What this host and this process's rights are.
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
        lockdown: fs::read_to_string("/sys/kernel/security/lockdown").ok().and_then(|modes| chosen(&modes)),
        ipv6: Path::new("/proc/sys/net/ipv6").exists(),
        ipv6_off_on_lo: number("/proc/sys/net/ipv6/conf/lo/disable_ipv6").map(|off: u8| off != 0),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        cpus: configured(SysconfVar::_NPROCESSORS_ONLN, 1),
        files: limits
            .as_ref()
            .map_or(UNKNOWN, |limits| limit(limits.max_open_files.soft_limit, limits.max_open_files.hard_limit)),
        locked_memory: limits
            .as_ref()
            .map_or(UNKNOWN, |limits| limit(limits.max_locked_memory.soft_limit, limits.max_locked_memory.hard_limit)),
        perf_event_mlock_kb: number("/proc/sys/kernel/perf_event_mlock_kb").unwrap_or(0),
        page_size: configured(SysconfVar::PAGE_SIZE, 4096),
    }
}

/// Where tracefs is, and whether it has kprobe events, if it let itself be asked.
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

/// Where tracefs and debugfs are mounted.
fn mount_points() -> Vec<PathBuf> {
    let mounts = Process::myself().and_then(|myself| myself.mountinfo());
    let mounts = mounts.map(|mounts| mounts.0).unwrap_or_default();
    let ours = mounts.into_iter().filter(|mount| matches!(&*mount.fs_type, "tracefs" | "debugfs"));
    ours.map(|mount| mount.mount_point).collect()
}

/// What each `socktrail agent` that runs now may still do, as the kernel has it.
fn agents() -> Vec<String> {
    let processes = all_processes().into_iter().flatten().filter_map(Result::ok);
    let is_agent = |process: &Process| {
        let arguments = process.cmdline().unwrap_or_default();
        let program = arguments.first().map(Path::new).and_then(Path::file_name);
        program == Some(OsStr::new("socktrail")) && arguments.iter().any(|argument| argument == "agent")
    };
    let told = |process: Process| {
        let status = process.status().ok()?;
        let (kept, pid) = (Kept::from_bits(status.capeff), process.pid());
        let filtered = if status.seccomp == Some(2) { "system calls filtered" } else { "system calls not filtered" };
        let privileges = if status.nonewprivs == Some(1) { "no new privileges" } else { "new privileges possible" };
        Some(format!("process {pid} keeps {kept}; {filtered}; {privileges}"))
    };
    processes.filter(is_agent).filter_map(told).collect()
}

/// Kernels from 4.17 on show anyone whether they have kprobe events.
fn kprobe_pmu() -> Option<bool> {
    let sources = Path::new("/sys/bus/event_source/devices");
    let newer = sources.join("uprobe").exists() || sources.join("kprobe").exists();
    newer.then(|| sources.join("kprobe").exists())
}

/// The modules of `nsswitch.conf(5)` for users that neither files nor the service manager stand for.
fn user_modules(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("passwd:")).unwrap_or_default();
    let line = line.split('#').next().unwrap_or_default();
    // Actions are in brackets, and may have spaces.
    let words = line.split('[').flat_map(|part| part.rsplit(']').next()).flat_map(str::split_whitespace);
    words.filter(|word| !["files", "compat", "systemd"].contains(word)).map(str::to_owned).collect()
}

/// The word in brackets: `none [integrity] confidentiality`.
fn chosen(modes: &str) -> Option<String> {
    let (mode, _) = modes.split_once('[')?.1.split_once(']')?;
    Some(mode.to_owned())
}

fn number<N: std::str::FromStr>(path: &str) -> Option<N> {
    let text = fs::read_to_string(path).ok()?;
    text.trim().parse().ok()
}

fn configured(variable: SysconfVar, otherwise: u64) -> u64 {
    let value = sysconf(variable).ok().flatten();
    value.and_then(|value| u64::try_from(value).ok()).unwrap_or(otherwise)
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
    fn the_mode_of_lockdown() {
        assert_eq!(chosen("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(chosen(""), None);
    }

    #[test]
    fn modules_of_other_sources() {
        let text = "# passwd: nis\npasswd:   files [SUCCESS=merge] sss systemd ldap # winbind\ngroup: nis\n";
        assert_eq!(user_modules(text), ["sss", "ldap"]);
        assert_eq!(user_modules("passwd: compat [ NOTFOUND=return ] systemd\n"), [""; 0]);
        assert_eq!(user_modules(""), [""; 0]);
    }

    #[test]
    fn this_host_answers() {
        let facts = gather();
        assert_eq!(facts.release, fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
        assert!(facts.version() > (2, 6));
        assert!(facts.cpus >= 1);
    }
}
