//! A BPF program on a control group.
//!
//! `union bpf_attr`, `struct bpf_insn` and the numbers are those of `linux/bpf.h`.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::sys::bpf;

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_DETACH: i32 = 9;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_CGROUP_INET_EGRESS: u32 = 1;

/// Other programs at the control group run as well.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// `r0 = 0; exit`: no packet may leave.
const DROP: [u64; 2] = [0xb7, 0x95];

/// A program that drops every packet that sockets of a control group send; detached on drop.
pub(crate) struct DropAll {
    group: File,
    program: OwnedFd,
    flags: u32,
}

impl DropAll {
    /// Attaches it as the only program of the control group and those below it.
    pub(crate) fn attach(group: &Path) -> Result<Self> {
        Self::with_flags(group, 0)
    }

    /// Attaches it so that other programs may be beside it.
    pub(crate) fn attach_beside_others(group: &Path) -> Result<Self> {
        Self::with_flags(group, BPF_F_ALLOW_MULTI)
    }

    fn with_flags(group: &Path, flags: u32) -> Result<Self> {
        // Before Linux 5.11 a program's memory counts as locked, as perf rings do.
        setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
        let group = File::open(group).with_context(|| format!("open {}", group.display()))?;
        let instructions = DROP.map(u64::to_le);
        let license = c"Apache-2.0";
        let mut load = Vec::new();
        load.extend(BPF_PROG_TYPE_CGROUP_SKB.to_ne_bytes());
        load.extend((instructions.len() as u32).to_ne_bytes());
        load.extend((instructions.as_ptr().expose_provenance() as u64).to_ne_bytes());
        load.extend((license.as_ptr().expose_provenance() as u64).to_ne_bytes());
        load.extend([0; 44]); // no log, no version, no flags, no name, no interface
        load.extend(BPF_CGROUP_INET_EGRESS.to_ne_bytes());
        let program = bpf(BPF_PROG_LOAD, &load).context("load a BPF program")?.context("no descriptor")?;
        let drops = Self { group, program, flags };
        drops.control(BPF_PROG_ATTACH).context("attach a BPF program")?;
        Ok(drops)
    }

    fn control(&self, command: i32) -> Result<()> {
        let [group, program] = [self.group.as_raw_fd(), self.program.as_raw_fd()];
        let arguments = [group as u32, program as u32, BPF_CGROUP_INET_EGRESS, self.flags];
        bpf(command, &arguments.map(u32::to_ne_bytes).concat())?;
        Ok(())
    }
}

impl Drop for DropAll {
    fn drop(&mut self) {
        self.control(BPF_PROG_DETACH).ok();
    }
}
