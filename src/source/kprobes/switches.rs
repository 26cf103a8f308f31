//! Kernel switches that keep installed probes from firing.

use std::fmt;
use std::fs;
use std::str::FromStr;

/// The states of the switches; `None` if the kernel does not show one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Switches {
    /// `kprobes/enabled` in debugfs, which may not be mounted.
    pub kprobes: Option<bool>,
    /// `kernel.ftrace_enabled`; a kernel without the function tracer has none.
    pub ftrace: Option<bool>,
}

/// A switch of the kernel that is off, so that no probe fires.
///
/// It displays as what is off; [`DisabledSwitch::remedy`] is the command that switches it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DisabledSwitch {
    /// `/sys/kernel/debug/kprobes/enabled`: all kprobes are switched off.
    Kprobes,
    /// `kernel.ftrace_enabled` of `sysctl(8)`: the function tracer is off. On x86_64, probes on the first instruction of a
    /// function use it.
    Ftrace,
}

impl Switches {
    /// Reads the switches.
    pub fn read() -> Self {
        let on = |path| number::<u8>(path).map(|value| value != 0);
        Self { kprobes: on("/sys/kernel/debug/kprobes/enabled"), ftrace: on("/proc/sys/kernel/ftrace_enabled") }
    }

    /// The switch that keeps probes from firing on an architecture (`uname -m`), if there is one.
    pub fn disabling_probes(self, architecture: &str) -> Option<DisabledSwitch> {
        match self {
            Self { kprobes: Some(false), .. } => Some(DisabledSwitch::Kprobes),
            Self { ftrace: Some(false), .. } if architecture == "x86_64" => Some(DisabledSwitch::Ftrace),
            _ => None,
        }
    }
}

impl DisabledSwitch {
    /// How to switch it on again: a shell command.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Kprobes => "as root: echo 1 > /sys/kernel/debug/kprobes/enabled",
            Self::Ftrace => "as root: sysctl kernel.ftrace_enabled=1",
        }
    }
}

impl fmt::Display for DisabledSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kprobes => "kprobes are switched off: probes can be set but never fire",
            Self::Ftrace => "kernel.ftrace_enabled is 0: probes never fire",
        })
    }
}

fn number<N: FromStr>(path: &str) -> Option<N> {
    let text = fs::read_to_string(path).ok()?;
    // On some kernels, `kprobes/enabled` has more than a newline after the digit.
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_switch_that_keeps_probes_from_firing_counts() {
        let switches = |kprobes, ftrace| Switches { kprobes, ftrace };
        for (found, architecture, disabled) in [
            (switches(None, None), "x86_64", None),
            (switches(Some(true), Some(true)), "x86_64", None),
            (switches(Some(false), Some(true)), "aarch64", Some(DisabledSwitch::Kprobes)),
            (switches(Some(true), Some(false)), "x86_64", Some(DisabledSwitch::Ftrace)),
            (switches(Some(true), Some(false)), "aarch64", None),
        ] {
            assert_eq!(found.disabling_probes(architecture), disabled, "{found:?} on {architecture}");
        }
    }
}
