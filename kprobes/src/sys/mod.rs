//! Most system calls of this crate, and all of its unsafe code.

pub(crate) mod bpf;
pub(crate) mod files;
pub(crate) mod limits;
pub(crate) mod mapping;
pub(crate) mod perf;
pub(crate) mod poll;
pub(crate) mod privileges;
pub(crate) mod shared_memory;
