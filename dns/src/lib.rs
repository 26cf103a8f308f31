//! Which names a host looked up, from its DNS traffic.
//!
//! An address says little about what a program connects to; the name that was looked up for it says more. The lookup
//! precedes the connection: a query with the name, and an answer with the address. This crate captures both and reports
//! each [`Lookup`]: the client, the name and the addresses. It is a chain of parts, and each can be used alone:
//!
//! 1. [`Capture`] receives packets with DNS ports from the kernel, through a filter and a ring in shared memory. It is
//!    the only part that does I/O. Packets may come from elsewhere too.
//! 2. [`ParsedPacket`] reads IP and transport headers: IPv4 and IPv6, UDP and TCP, with or without VLAN tags.
//! 3. [`Message`] reads header and question of a DNS message, and follows the question through aliases to
//!    [`Address`]es.
//! 4. [`Tracker`] reassembles messages from TCP segments and matches answers to queries. A query that was answered with
//!    addresses goes to a [`Sink`] as a [`Lookup`]; everything else is counted in [`Counters`].
//! 5. [`KnownNames`] keeps the names by owner until they expire. The caller chooses what an owner is, such as a process.
//!
//! # Which answers count
//!
//! An answer counts if its query waits: same client, same server, same transport, same id, same question. Only records
//! that the question leads to count, directly or through aliases (CNAME, and the alias form of HTTPS and SVCB), and the
//! name of a lookup is the name in the query. So a forged answer does not count unless its sender knows the query;
//! neither does a late answer, a negative one, or a record for some other name. Of several answers to one query the
//! first counts, as it does for the client. The addresses in a truncated answer (TC) count, because some clients use
//! them; a query that follows over TCP is a separate lookup.
//!
//! Encrypted DNS (over TLS, HTTPS or QUIC) cannot be read, and a name from a cache or a hosts file is not queried. Full
//! mDNS sends answers without questions, which do not count here.
//!
//! # Bounds
//!
//! Anyone can send packets. No bytes make any part panic or run for long. Every table has a bound. [`Options`] and
//! [`NamesOptions`] set those of the large ones, and counters say what these have evicted. Apart from tables, only lookups
//! take memory.
//!
//! # Time
//!
//! All times are nanoseconds of `CLOCK_MONOTONIC`. Only [`Capture`] reads a clock.
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//! use socktrail_dns::{Capture, Lookup, Options, Tracker};
//!
//! let options = Options::default();
//! let mut capture = Capture::open(&options)?;
//! let mut tracker = Tracker::new(&options);
//! loop {
//!     capture.wait(Some(Duration::from_secs(1)))?;
//!     capture.drain(&mut |packet| {
//!         tracker.ingest(packet, &mut |lookup: Lookup| {
//!             println!("{} looked up {}: {:?}", lookup.client, lookup.name, lookup.addresses);
//!         });
//!     });
//!     tracker.expire(capture.now());
//! }
//! # #[allow(unreachable_code)]
//! # Ok::<(), socktrail_dns::Error>(())
//! ```

mod addresses;
mod capture;
mod clock;
mod counters;
mod endpoint;
mod error;
mod filter;
mod lru;
mod matcher;
mod message;
mod names;
mod options;
mod packet;
#[allow(unsafe_code, reason = "a ring in memory shared with the kernel, and system calls without a safe wrapper")]
mod sys;
mod tcp;
#[cfg(test)]
mod testing;
mod tracker;

pub use addresses::UnrelatedRecords;
pub use capture::{Capture, Waker};
pub use counters::{Counters, TcpCounters};
pub use endpoint::{Address, Endpoint, Transport};
pub use error::Error;
pub use matcher::{Lookup, Sink};
pub use message::{Completeness, Message, MessageError, QueryType};
pub use names::{KnownAddress, KnownNames, NamesCounters, NamesOptions};
pub use options::{Bounds, Options};
pub use packet::{Packet, PacketError, ParsedPacket, TransportHeader};
pub use tracker::Tracker;
