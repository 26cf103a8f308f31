//! Short forms for tests.

use super::kernel_address::SockAddress;
use super::time::{BootTime, MonotonicTime};

/// This many nanoseconds after the kernel's clock began.
pub(crate) const fn monotonic(nanos: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(nanos)
}

/// This many nanoseconds after boot.
pub(crate) const fn since_boot(nanos: u64) -> BootTime {
    BootTime::from_nanos(nanos)
}

/// The `struct sock` at this address, which is not 0.
pub(crate) fn sock_at(address: u64) -> SockAddress {
    SockAddress::new(address).expect("not a null pointer")
}
