//! How the kernel is observed.

use serde::{Deserialize, Serialize};

/// How the kernel is observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// By kprobes if the kernel has any, else by programs at a control group.
    #[default]
    Auto,
    /// By kprobes.
    Kprobes,
    /// By BPF programs at a control group and at tracepoints.
    Cgroup,
}
