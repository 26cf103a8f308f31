//! Which names a host looked up, from its DNS traffic.
//!
//! An address says little of what a program wants from it. The name that it was looked up by does, and it passes by
//! just before: a query for the name, and an answer with the address. This crate watches for the two and tells who
//! asked, what for, and where it led. It is a chain of parts, each of them usable alone:
//!
//! 1. [`Capture`] receives packets of DNS servers' ports from the kernel, through a filter and a ring of shared
//!    memory. It is all there is of I/O; whatever else can give a [`Packet`] will do.
//! 2. [`Frame`] reads its IP and transport headers: IPv4 and IPv6, UDP and TCP, with VLAN tags or without.
//! 3. [`Message`] reads header and question of a DNS message, and follows the question through aliases to
//!    [`Address`]es.
//! 4. [`Tracker`] puts TCP segments together and matches answers to queries. What is proven goes to a [`Sink`] as
//!    [`Learned`]; what is not is counted in [`Counters`].
//! 5. [`Names`] remembers it by owner, whoever the caller thinks that is, for as long as the answer is good.
//!
//! # What is believed
//!
//! An answer names an address if a query waits for it: same client, same server, same transport, same id, same
//! question. Of the answer, only those records count that the question leads to through aliases (CNAME, the alias
//! form of HTTPS and SVCB), and the name given is the name asked for. So an answer that is forged without knowing the
//! query, too late, or from someone else names nothing; neither does a negative one, nor a record for some other name
//! that comes along. Of several answers to one query the first one counts, as for whoever asked. A truncated answer
//! (TC) names what it has, as some clients make do with it; the query that follows over TCP is one of its own.
//!
//! What is encrypted (DNS over TLS, HTTPS or QUIC) cannot be seen, and what a program keeps to itself (a cache, a hosts
//! file) is not asked for. Full mDNS has answers without questions, which name nothing here.
//!
//! # Bounds
//!
//! Packets are written by others. No part panics or works for long on any bytes; every table has a bound in
//! [`Options`] or [`NamesOptions`], and a counter for what gave way. Apart from tables, memory is only taken for what
//! is learned.
//!
//! # Time
//!
//! All times are nanoseconds of `CLOCK_MONOTONIC`. Apart from [`Capture`] nothing reads a clock.
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//! use socktrail_dns::{Capture, Learned, Options, Tracker};
//!
//! let options = Options::default();
//! let mut capture = Capture::open(&options)?;
//! let mut tracker = Tracker::new(&options);
//! loop {
//!     capture.wait(Some(Duration::from_secs(1)))?;
//!     capture.drain(&mut |packet| {
//!         tracker.ingest(packet, &mut |learned: Learned| {
//!             println!("{} looked up {}: {:?}", learned.client, learned.name, learned.addresses);
//!         });
//!     });
//!     tracker.expire(capture.now());
//! }
//! # #[allow(unreachable_code)]
//! # Ok::<(), socktrail_dns::Error>(())
//! ```

mod aged;
mod answer;
mod capture;
mod clock;
mod counters;
mod endpoint;
mod error;
mod filter;
mod frame;
mod matching;
mod message;
mod names;
mod options;
#[allow(unsafe_code, reason = "rings that are mapped from the kernel, and system calls without a safe wrapper")]
mod sys;
mod tcp;
#[cfg(test)]
mod testing;
mod tracker;

pub use answer::Found;
pub use capture::{Capture, Waker};
pub use counters::{Counters, TcpCounters};
pub use endpoint::{Address, Endpoint, Transport};
pub use error::Error;
pub use frame::{Frame, Header, Packet, Unreadable};
pub use matching::{Learned, Sink};
pub use message::{Kind, Message, Unusable};
pub use names::{Names, NamesCounters, NamesOptions};
pub use options::{Bounds, Options};
pub use tracker::Tracker;
