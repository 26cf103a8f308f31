//! Architectures without a list of system calls. 32-bit ones have many more calls, often two for one purpose.

use super::PrivilegesError;

/// Always fails: there is no list of this architecture's system calls.
///
/// # Errors
/// [`PrivilegesError::Syscalls`], always.
pub fn filter_syscalls() -> Result<(), PrivilegesError> {
    Err(PrivilegesError::Syscalls(format!("that is not supported on {}", std::env::consts::ARCH)))
}
