//! Where system calls are not filtered: 32-bit machines have many more, in two generations, and there is no list of them.

use super::PrivilegesError;

/// Fails: this machine's system calls are in no list.
///
/// # Errors
/// [`PrivilegesError::Syscalls`], always.
pub fn filter_syscalls() -> Result<(), PrivilegesError> {
    Err(PrivilegesError::Syscalls(format!("that is not supported on {}", std::env::consts::ARCH)))
}
