//! Every system call of the crate that is more than reading a file, and all of its unsafe code.

pub(crate) mod files;
pub(crate) mod limits;
pub(crate) mod mapping;
pub(crate) mod perf;
pub(crate) mod poll;
pub(crate) mod privileges;
