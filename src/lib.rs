//! Sees every TCP and UDP flow of a Linux host and whose it is.
//!
//! No kernel module, no compiler and no headers: text kprobes are written into tracefs, samples come back through perf
//! rings, and a state machine makes flows of them. This crate is all of that as a library; the `socktrail` command is one
//! of its users. As root, on a kernel with kprobes:
//!
//! ```no_run
//! use socktrail::monitor::Monitor;
//!
//! let monitor = Monitor::builder().start()?;
//! for flow in monitor.flows() {
//!     println!("{} -> {} {} bytes, {}", flow.local, flow.remote, flow.sent.bytes, flow.owner);
//! }
//! # Ok::<(), socktrail::Error>(())
//! ```
//!
//! # From the kernel to a document
//!
//! | step | where |
//! |---|---|
//! | how to watch, and the way of the data from end to end | [`monitor`] |
//! | which kernel functions are probed, and what a sample of each means | [`probes`], [`event`] |
//! | when a flow begins and ends, and whose it is: a state machine without clock or I/O | [`state`] |
//! | what comes out: a [`Flow`](flow::Flow), a [`SocketEvent`](socket_event::SocketEvent), a [`SensorEvent`](sensors::SensorEvent) | [`flow`], [`process`], [`socket_event`], [`sensors`] |
//! | kernel time to time of day | [`clock`] |
//! | documents, for who wants them: a value in the Elastic Common Schema for each flow | [`ecs`], with [`host`], [`agent`] and [`users`] |
//! | where documents go: lines, files, Elasticsearch, or an [`Output`](output::Output) of your own | [`output`] |
//!
//! What leaves the kernel can be kept and played again, without root and on any machine: [`recording`]. Which flows are of
//! no interest says a [`filter`]; what a running program can do without says [`privileges`]; what a host offers and what would be lost says a [`survey`]. Under all of it lie three
//! libraries of their own: `socktrail-kprobes`, `socktrail-guess` and `socktrail-dns`.
//!
//! # What a program can rely on
//!
//! - Flows and events are typed values. Nothing is a document before [`ecs`] is asked for one.
//! - A [`Monitor`](monitor::Monitor) that is dropped has removed its probes and ended its threads. Several may run in one
//!   process.
//! - There is no global state: no logger is set up (what is worth saying goes to [`tracing`]), no signal is caught, and the
//!   process is never ended.
//! - Every [`Error`] names the thing, the cause and, where there is one, the remedy.
//! - Memory is bounded. What finds no room is counted, in the kernel ([`Stats::lost_by_cpu`](monitor::Stats::lost_by_cpu))
//!   as well as here ([`Stats::flows_dropped`](monitor::Stats::flows_dropped)), and told as it happens: [`loss`].
//! - Time and tracefs can be given: [`Options::time`](monitor::Options::time),
//!   [`Options::tracefs_path`](monitor::Options::tracefs_path).
//!
//! The repository's `examples/` has programs to begin with: `embed.rs`, `custom_sink.rs`, `elasticsearch.rs`, `replay.rs`;
//! `docs/embedding.md` explains them.

pub mod agent;
mod bounded;
pub mod clock;
pub mod config;
pub mod container;
pub mod control;
pub mod ecs;
mod error;
pub mod event;
pub mod feature;
pub mod filter;
pub mod flow;
mod halves;
pub mod host;
pub mod loss;
pub mod monitor;
pub mod output;
pub mod privileges;
pub mod probes;
#[cfg(not(fuzzing))]
mod proc;
#[cfg(fuzzing)]
pub mod proc;
pub mod process;
pub mod recording;
pub mod sensors;
pub mod socket_event;
pub mod state;
pub mod survey;
pub mod switches;
pub mod users;

pub use error::Error;
