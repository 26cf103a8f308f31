//! Monitors every TCP and UDP flow of a Linux host, with the process and user it belongs to.
//!
//! It needs no kernel module, compiler or kernel headers. It writes text kprobes to tracefs, reads their samples from perf
//! rings, and a state machine turns samples into flows. The `socktrail` command is one user of this library. As root, on a
//! kernel with kprobes:
//!
//! ```no_run
//! use socktrail::Monitor;
//!
//! let monitor = Monitor::builder().start()?;
//! for flow in monitor.flows() {
//!     println!("{} -> {} {} bytes, {}", flow.local, flow.remote, flow.sent.bytes, flow.owner);
//! }
//! # Ok::<(), socktrail::Error>(())
//! ```
//!
//! # Modules
//!
//! | for | see |
//! |---|---|
//! | starting a monitor, choosing flows, and receiving results | [`monitor`], [`filter`] |
//! | results: a [`Flow`], a [`SocketEvent`], a [`Loss`], a [`NameLearned`] | [`flow`], [`process`], [`socket_event`], [`loss`], [`names`] |
//! | conversion of kernel times to wall-clock times | [`clock`] |
//! | documents in the Elastic Common Schema (ECS) | [`documents`], with [`host`] and [`users`] |
//! | outputs for documents: lines, files, Elasticsearch, or an [`Output`](output::Output) of your own | [`output`] |
//! | recordings of raw samples, which can be replayed on any machine without root | [`recording`] |
//! | sysinspect's `net.socket` sensors | [`sensors`] |
//! | dropping privileges that a running monitor does not need | [`privileges`] |
//!
//! It builds on three separate libraries: `socktrail-kprobes`, `socktrail-guess` and `socktrail-dns`.
//!
//! # Guarantees
//!
//! - Flows and events are typed values. Documents are made only on request, by [`documents`].
//! - Dropping a [`Monitor`] removes its probes and ends its threads. Several monitors can run in one process.
//! - There is no global state: the library logs to [`tracing`] but sets up no logger, catches no signals, and never ends the
//!   process.
//! - Every [`Error`] says what failed, why and, if there is one, the remedy.
//! - Memory is bounded. Samples and flows that do not fit are counted
//!   ([`MonitorStats::lost_by_cpu`](monitor::MonitorStats::lost_by_cpu),
//!   [`MonitorStats::flows_dropped`](monitor::MonitorStats::flows_dropped)), and reported as they are lost: [`loss`].
//! - The clock and the path of tracefs can be set: [`Options::time`](monitor::Options::time),
//!   [`Options::tracefs_path`](monitor::Options::tracefs_path).
//!
//! The repository's `examples/` has small programs: `embed.rs`, `custom_sink.rs`, `poll.rs`, `elasticsearch.rs` and
//! `replay.rs`. `docs/embedding.md` explains them.

#![cfg_attr(not(feature = "agent"), allow(dead_code, reason = "some items are used by a single feature"))]

#[cfg(feature = "documents")]
pub mod condition;
#[cfg(feature = "documents")]
pub mod documents;
#[cfg(any(feature = "documents", feature = "recording"))]
pub mod host;
mod model;
pub mod monitor;
#[cfg(feature = "output")]
pub mod output;
mod pipeline;
#[cfg(any(feature = "privileges", feature = "users"))]
pub mod privileges;
#[cfg(feature = "sensors")]
pub mod sensors;
#[cfg(not(fuzzing))]
mod source;
#[cfg(fuzzing)]
pub mod source;
#[cfg(feature = "users")]
pub mod users;

pub use model::clock::{Clock, Timestamp};
pub use model::flow::{Endpoint, Flow, Owner, Transport};
pub use model::kernel_address::{NetAddress, SockAddress};
pub use model::loss::Loss;
pub use model::names::NameLearned;
pub use model::process::Process;
pub use model::socket_event::SocketEvent;
pub use model::time::{BootTime, MonotonicTime};
pub use model::{clock, control_groups, feature, filter, flow, loss, names, process, socket_event};
pub use monitor::{Builder, Handler, Monitor, Options, Received};
pub use source::Error;
#[cfg(feature = "recording")]
pub use source::recording;

// The rest is for this package's own program, benches and tests, which are separate crates. It is not part of the library's
// interface, and may change with any release.

#[cfg(feature = "agent")]
#[doc(hidden)]
pub mod config;
#[cfg(feature = "agent")]
#[doc(hidden)]
pub mod control;
#[doc(hidden)]
pub mod state;
#[cfg(feature = "agent")]
#[doc(hidden)]
pub mod survey;

#[doc(hidden)]
pub use model::{escape, event, totals};
#[doc(hidden)]
pub use source::kprobes::{self as probes, switches};
