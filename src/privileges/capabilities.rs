//! Drops capabilities, except those that a running monitor needs.

use std::fmt;
use std::io;
use std::thread;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, rlim_t, setrlimit};
use nix::unistd::{SysconfVar, geteuid, sysconf};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use socktrail_kprobes::{RingOptions, Rings, bpf};

use super::PrivilegesError;

/// How many open files each CPU needs, including CPUs that come online later.
const FILES_PER_CPU: rlim_t = 64;
/// How many open files everything else needs.
const OTHER_FILES: rlim_t = 1024;

/// Capabilities that are needed in addition to the monitor's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extra {
    /// Listening on ports below 1024 (`CAP_NET_BIND_SERVICE`).
    pub low_ports: bool,
    /// Following CPUs that come and go while BPF programs run ([`Summary::bpf`](crate::monitor::Summary::bpf)): `CAP_BPF`, on
    /// kernels where that takes a capability.
    pub bpf: bool,
}

/// The capabilities that were kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept(CapabilitySet);

impl Kept {
    /// From a capability mask, such as `CapEff` in `/proc/PID/status`.
    pub fn from_bits(bits: u64) -> Self {
        Self(CapabilitySet::from_bits_retain(bits))
    }

    /// The capability mask, as in `/proc/PID/status`.
    pub fn bits(self) -> u64 {
        self.0.bits()
    }
}

impl fmt::Display for Kept {
    /// Writes their names from `capabilities(7)`.
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

/// Drops all capabilities of this thread except those that a running monitor needs, and sets `no_new_privs`. Raises the
/// limits on open files and locked memory first, for CPUs that come online later.
///
/// These are kept, if the thread has them:
/// - `CAP_PERFMON`, to open perf events on CPUs that come online; `CAP_SYS_ADMIN` instead if a test shows that it is not
///   enough: before Linux 5.8, and if `kernel.perf_event_paranoid` is at the level that Debian (3) or Ubuntu (4) has added.
/// - `CAP_SYS_PTRACE` and `CAP_DAC_READ_SEARCH`, to read program, arguments and sockets of other users' processes in `/proc`.
/// - `CAP_DAC_OVERRIDE`, unless the user is root: removing probes writes to tracefs, which root owns.
/// - `CAP_BPF`, before Linux 5.19 and if wanted, to connect CPUs that come online with the programs that count packets. Not if
///   `CAP_SYS_ADMIN` is kept, which is enough.
/// - `CAP_NET_BIND_SERVICE`, if wanted, to listen on ports below 1024.
/// - `CAP_IPC_LOCK`, if the limit on locked memory could not be removed.
///
/// # Errors
/// [`PrivilegesError::Capabilities`], [`PrivilegesError::NoNewPrivileges`].
pub fn drop_capabilities(extra: Extra) -> Result<Kept, PrivilegesError> {
    let unlimited = raise_limits();
    let failed = |error: rustix::io::Errno| PrivilegesError::Capabilities(error.into());
    let had = capabilities(None).map_err(failed)?.permitted;
    let rest = needed(geteuid().is_root(), unlimited, extra) & had;
    let perfmon = CapabilitySet::PERFMON & had;
    let perf = if opens_perf_events(rest | perfmon) { perfmon } else { CapabilitySet::SYS_ADMIN & had };
    let bpf = CapabilitySet::BPF & had;
    let bpf = if extra.bpf && !changes_maps(rest | perf) { bpf } else { CapabilitySet::empty() };
    let keep = rest | perf | bpf;
    limit_bounding_set_to(keep);
    keep_only(keep)?;
    Ok(Kept(keep))
}

/// Removes all other capabilities from the bounding set. This needs `CAP_SETPCAP`. A failure does no harm: with
/// `no_new_privs`, the bounding set has no effect.
pub(super) fn limit_bounding_set_to(keep: CapabilitySet) {
    for capability in bits(CapabilitySet::from_bits_retain(u64::MAX) & !keep) {
        let _ = remove_capability_from_bounding_set(capability);
    }
}

/// Drops all other capabilities, and sets `no_new_privs`.
pub(super) fn keep_only(keep: CapabilitySet) -> Result<(), PrivilegesError> {
    // Fails before Linux 4.3, which has no ambient capabilities. They are always a subset of the permitted ones.
    let _ = clear_ambient_capability_set();
    set_capabilities(None, exactly(keep)).map_err(|error| PrivilegesError::Capabilities(error.into()))?;
    set_no_new_privs(true).map_err(|error| PrivilegesError::NoNewPrivileges(error.into()))
}

fn exactly(set: CapabilitySet) -> CapabilitySets {
    CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() }
}

/// Whether a thread with only these capabilities can open perf events on a CPU.
fn opens_perf_events(set: CapabilitySet) -> bool {
    let mut smallest = RingOptions::default();
    smallest.page_exponent = 0;
    with_only(set, || Rings::per_cpu(&smallest).is_ok())
}

/// Whether a thread with only these capabilities can change BPF maps.
fn changes_maps(set: CapabilitySet) -> bool {
    with_only(set, bpf::may_change_maps)
}

/// Whether an attempt succeeds in a temporary thread that has only these capabilities.
fn with_only(set: CapabilitySet, attempt: impl FnOnce() -> bool + Send) -> bool {
    let attempt = || set_capabilities(None, exactly(set)).is_ok() && attempt();
    thread::scope(|scope| scope.spawn(attempt).join().unwrap_or(false))
}

/// The capabilities that a running monitor needs, except those for perf events.
fn needed(is_root: bool, unlimited_memory: bool, extra: Extra) -> CapabilitySet {
    let mut keep = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
    keep.set(CapabilitySet::DAC_OVERRIDE, !is_root);
    keep.set(CapabilitySet::IPC_LOCK, !unlimited_memory);
    keep.set(CapabilitySet::NET_BIND_SERVICE, extra.low_ports);
    keep
}

/// Splits a set into single capabilities.
fn bits(set: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)).filter(move |one| set.contains(*one))
}

/// Raises the limits on open files and locked memory. Returns whether locked memory is unlimited.
fn raise_limits() -> bool {
    let cpus = sysconf(SysconfVar::_NPROCESSORS_CONF).ok().flatten().unwrap_or(1);
    let files = rlim_t::try_from(cpus).unwrap_or(1).saturating_mul(FILES_PER_CPU) + OTHER_FILES;
    let _ = raise(Resource::RLIMIT_NOFILE, files);
    raise(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY).unwrap_or(false)
}

/// Raises a limit to `wanted`, or else to the hard limit. Returns whether it is at least `wanted`.
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
        Kept(needed(is_root, unlimited, Extra { low_ports, bpf: false })).to_string()
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
