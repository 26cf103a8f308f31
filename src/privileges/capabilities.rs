//! Which capabilities are kept, and why.

use std::fmt;
use std::io;
use std::thread;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};
use nix::unistd::{SysconfVar, geteuid, sysconf};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use socktrail_kprobes::{RingOptions, Rings};

use super::PrivilegesError;

/// Open files for each CPU that may come, and for all else.
const FILES_PER_CPU: rlim_t = 64;
const OTHER_FILES: rlim_t = 1024;

/// What is needed beside a monitor's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extra {
    /// Listening on ports below 1024 (`CAP_NET_BIND_SERVICE`).
    pub low_ports: bool,
}

/// The capabilities that were kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept(CapabilitySet);

impl Kept {
    /// From what `/proc/PID/status` says of a process.
    pub fn from_bits(bits: u64) -> Self {
        Self(CapabilitySet::from_bits_retain(bits))
    }

    /// A bit each, as in `/proc/PID/status`.
    pub fn bits(self) -> u64 {
        self.0.bits()
    }
}

impl fmt::Display for Kept {
    /// By their names in `capabilities(7)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, (name, _)) in self.0.iter_names().enumerate() {
            write!(f, "{}CAP_{name}", if index > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// Keeps those capabilities of this thread that a running monitor needs, and lets no program that it starts have more
/// (`no_new_privs`). Limits on files and locked memory are raised before, for CPUs that come online later.
///
/// - `CAP_PERFMON`: a perf event on each CPU that comes online. `CAP_SYS_ADMIN` in its place where that has been tried and
///   is not enough: before Linux 5.8, and on Debian's kernels with `kernel.perf_event_paranoid` at 3.
/// - `CAP_SYS_PTRACE`, `CAP_DAC_READ_SEARCH`: the program, arguments and sockets of other users' processes in `/proc`.
/// - `CAP_DAC_OVERRIDE`, unless it runs as root: tracefs is root's, and probes are taken out by writing to it.
/// - `CAP_IPC_LOCK`, only where the limit on locked memory could not be lifted.
///
/// # Errors
/// [`PrivilegesError::Capabilities`], [`PrivilegesError::NoNewPrivileges`].
pub fn drop_capabilities(extra: Extra) -> Result<Kept, PrivilegesError> {
    let unlimited = make_room();
    let failed = |error: rustix::io::Errno| PrivilegesError::Capabilities(error.into());
    let had = capabilities(None).map_err(failed)?.permitted;
    let rest = needed(geteuid().is_root(), unlimited, extra) & had;
    let perfmon = CapabilitySet::PERFMON & had;
    let perf = if opens_perf_events(rest | perfmon) { perfmon } else { CapabilitySet::SYS_ADMIN & had };
    let keep = rest | perf;
    limit_bounding_set_to(keep);
    keep_only(keep)?;
    Ok(Kept(keep))
}

/// Removes all other capabilities from the bounding set. This needs `CAP_SETPCAP`. Without it nothing is lost, because
/// `no_new_privs` makes the bounding set meaningless.
pub(super) fn limit_bounding_set_to(keep: CapabilitySet) {
    for capability in bits(CapabilitySet::from_bits_retain(u64::MAX) & !keep) {
        let _ = remove_capability_from_bounding_set(capability);
    }
}

/// Gives up all other capabilities, and the means to get more.
pub(super) fn keep_only(keep: CapabilitySet) -> Result<(), PrivilegesError> {
    // Linux 4.3; what is not permitted is not ambient either.
    let _ = clear_ambient_capability_set();
    set_capabilities(None, exactly(keep)).map_err(|error| PrivilegesError::Capabilities(error.into()))?;
    set_no_new_privs(true).map_err(|error| PrivilegesError::NoNewPrivileges(error.into()))
}

fn exactly(set: CapabilitySet) -> CapabilitySets {
    CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() }
}

/// Whether a thread with just these may watch a CPU: tried out in one that ends then.
fn opens_perf_events(set: CapabilitySet) -> bool {
    let attempt = || {
        let mut small = RingOptions::default();
        small.page_exponent = 0;
        set_capabilities(None, exactly(set)).is_ok() && Rings::per_cpu(&small).is_ok()
    };
    thread::scope(|scope| scope.spawn(attempt).join().unwrap_or(false))
}

/// What a running monitor needs beside perf events.
fn needed(is_root: bool, unlimited_memory: bool, extra: Extra) -> CapabilitySet {
    let mut keep = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
    keep.set(CapabilitySet::DAC_OVERRIDE, !is_root);
    keep.set(CapabilitySet::IPC_LOCK, !unlimited_memory);
    keep.set(CapabilitySet::NET_BIND_SERVICE, extra.low_ports);
    keep
}

/// The capabilities of a set, one by one.
fn bits(set: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)).filter(move |one| set.contains(*one))
}

/// Raises limits while we may. Whether locked memory has none.
fn make_room() -> bool {
    let cpus = sysconf(SysconfVar::_NPROCESSORS_CONF).ok().flatten().unwrap_or(1);
    let files = rlim_t::try_from(cpus).unwrap_or(1).saturating_mul(FILES_PER_CPU) + OTHER_FILES;
    let _ = raise(Resource::RLIMIT_NOFILE, files);
    raise(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY).unwrap_or(false)
}

/// Raises a limit to what is wanted, or as far as we may. Whether it reaches that.
fn raise(resource: Resource, wanted: rlim_t) -> io::Result<bool> {
    let (soft, hard) = getrlimit(resource)?;
    if soft >= wanted || setrlimit(resource, wanted, wanted.max(hard)).is_ok() {
        return Ok(true);
    }
    setrlimit(resource, wanted.min(hard), hard)?;
    Ok(hard >= wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(is_root: bool, unlimited: bool, low_ports: bool) -> String {
        Kept(needed(is_root, unlimited, Extra { low_ports })).to_string()
    }

    #[test]
    fn what_is_kept_depends_on_the_user_and_the_limits() {
        let common = "CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE";
        assert_eq!(names(true, true, false), common);
        assert_eq!(names(false, true, false), format!("CAP_DAC_OVERRIDE, {common}"));
        let more = "CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE, CAP_IPC_LOCK, CAP_SYS_PTRACE";
        assert_eq!(names(true, false, true), more);
        assert_eq!(Kept(CapabilitySet::empty()).to_string(), "none");
    }
}
