//! Remedies for a lack of privilege.

use std::fs;

use nix::unistd::geteuid;

/// The remedy for an operation that was refused: it needs `capability`, and a kernel in lockdown mode `confidentiality`
/// refuses it to everyone.
pub(crate) fn remedy(capability: &str) -> String {
    if !geteuid().is_root() {
        return format!("run as root or with {capability}");
    }
    match lockdown() {
        Some(mode) => format!("the kernel is locked down: boot without lockdown={mode}"),
        None => format!("it needs {capability}, and a kernel that is not locked down (lockdown=confidentiality)"),
    }
}

/// Whether this process has a capability that allows it to create maps and load programs.
pub(crate) fn may_use_bpf() -> bool {
    may_use_bpf_by(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// Whether this process has a capability that allows it to attach programs to a control group.
pub(crate) fn may_attach_to_cgroups() -> bool {
    /// `CAP_NET_ADMIN`; `CAP_SYS_ADMIN` is enough on newer kernels only.
    const ENOUGH: u64 = 1 << 12;
    has_one_of(ENOUGH, &fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn may_use_bpf_by(status: &str) -> bool {
    /// `CAP_SYS_ADMIN` and `CAP_BPF` of `linux/capability.h`, which is ABI.
    const ENOUGH: u64 = 1 << 21 | 1 << 39;
    has_one_of(ENOUGH, status)
}

/// Whether one of these capabilities is effective, according to the text of `/proc/PID/status`.
fn has_one_of(capabilities: u64, status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim_ascii(), 16).ok());
    effective.is_some_and(|set| set & capabilities != 0)
}

/// The lockdown mode of the kernel (`integrity`, `confidentiality`). `None` if it is `none` or cannot be read.
fn lockdown() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let mode = text.split_once('[')?.1.split_once(']')?.0;
    (mode != "none").then(|| mode.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_capability_is_enough() {
        let may = |set: &str| may_use_bpf_by(&format!("Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{set}\n"));
        assert!(may("0000000000200000") && may("0000008000000000") && may("000001ffffffffff"));
        assert!(!may("0000000000000000") && !may("0000017fffdfffff") && !may("x"));
        assert!(!may_use_bpf_by(""));
    }
}
