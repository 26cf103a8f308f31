//! Where a test takes the kernel's layout from.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::helpers::process::Process;

/// The kernel's type information.
pub(crate) const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Whether the kernel has type information. Every tested 64-bit kernel has it, and Debian's 32-bit kernels do not.
pub(crate) fn has_type_information() -> bool {
    !cfg!(target_arch = "x86") || Path::new(BTF).exists()
}

/// A value of `--source` that makes Socktrail guess nothing at its start.
pub(crate) fn without_guesses() -> Result<String> {
    const FILE: &str = "/tmp/known-layout.json";
    if Path::new(BTF).exists() {
        return Ok("btf".to_owned());
    }
    if !Path::new(FILE).exists() {
        let saved = Process::start(&["socktrail", "layout", "--save", FILE])?.finish()?;
        ensure!(saved.status == 0, "{saved:?}");
    }
    Ok(format!("file:{FILE}"))
}
