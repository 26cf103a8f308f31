//! What would allow what was forbidden.

use std::fs;

use nix::unistd::geteuid;

/// What to do about a refusal of what takes `capability`, or that a kernel locked down to confidentiality refuses
/// to anybody.
pub(crate) fn remedy(capability: &str) -> String {
    if !geteuid().is_root() {
        return format!("run as root or with {capability}");
    }
    match lockdown() {
        Some(mode) => format!("the kernel is locked down: boot without lockdown={mode}"),
        None => format!("it takes {capability}, and a kernel that is not locked down (lockdown=confidentiality)"),
    }
}

/// The lockdown mode of the kernel (`integrity`, `confidentiality`), when it is not `none` and can be read.
fn lockdown() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let mode = text.split_once('[')?.1.split_once(']')?.0;
    (mode != "none").then(|| mode.to_owned())
}
