//! The types that all parts of the library share: events, flows, processes, socket events. The only I/O here is
//! reading clocks and small files.

pub mod accounting;
pub mod backend;
#[cfg(any(feature = "documents", feature = "recording"))]
pub(crate) mod bounded;
pub mod clock;
pub mod control_groups;
#[cfg(feature = "documents")]
pub(crate) mod errno;
pub mod escape;
pub mod event;
pub mod feature;
pub mod filter;
pub mod flow;
pub mod kernel_address;
pub mod loss;
pub mod names;
pub(crate) mod pairing;
pub mod process;
pub mod socket_event;
#[cfg(test)]
pub(crate) mod testing;
pub mod time;
pub mod totals;
#[cfg(feature = "sensors")]
pub mod units;
