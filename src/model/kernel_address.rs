//! Addresses of kernel objects: a type for each kind, so that one cannot be taken for the other.

use std::fmt;
use std::num::NonZeroU64;

/// Declares the address type of one kind of kernel object.
macro_rules! kernel_address {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        ///
        /// An address identifies the object while the object lives; afterwards the kernel may reuse the address. An unknown
        /// address is `None`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(NonZeroU64);

        impl $name {
            /// The object at this address; `None` for a null pointer.
            pub const fn new(address: u64) -> Option<Self> {
                match NonZeroU64::new(address) {
                    Some(address) => Some(Self(address)),
                    None => None,
                }
            }

            /// The address as a number.
            pub const fn get(self) -> u64 {
                self.0.get()
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

kernel_address! {
    /// The address of a `struct sock`, the kernel's side of a socket.
    SockAddress
}

kernel_address! {
    /// The address of a `struct net`, a network namespace. It cannot be mixed up with a socket's address:
    ///
    /// ```compile_fail,E0308
    /// use socktrail::{NetAddress, SockAddress};
    ///
    /// assert_ne!(NetAddress::new(64), SockAddress::new(64));
    /// ```
    NetAddress
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_null_pointer_is_none_and_an_option_is_as_small_as_an_address() {
        assert_eq!(SockAddress::new(0), None);
        assert_eq!(SockAddress::new(0xffff_8880_0000_0040).map(SockAddress::get), Some(0xffff_8880_0000_0040));
        assert_eq!(size_of::<Option<NetAddress>>(), size_of::<u64>());
    }
}
