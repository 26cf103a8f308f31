//! Kernel probes through tracefs and perf rings: text in, time-ordered samples out.
//!
//! A kprobe event needs no kernel module, no compiler and no headers on the host: a line written to tracefs names a
//! kernel function and what to fetch there, and perf delivers what was fetched through rings of shared memory. This
//! crate does all of that, and knows nothing about the functions that are probed:
//!
//! 1. [`Tracefs`] finds the kernel's tracing files, and mounts them if necessary.
//! 2. A [`Group`] names the probes of this process, and removes those that dead processes left behind.
//! 3. A [`sample!`] declares what a probe fetches. The one declaration gives the probe's text and its [`Decoder`],
//!    so that the two cannot differ. The text has names (`{sk_buff.len}`, `{skb}`), for which a [`Resolver`] gives
//!    offsets and argument positions. [`tracepoint!`] does the same for the kernel's static tracepoints.
//! 4. [`Group::install`] writes the line and gives [`Installed`], which removes the probe with its last user.
//! 5. [`Rings`] hold the samples: one ring for each CPU, or one for a thread. Probes are [attached](Rings::attach), and
//!    the kernel filters their hits. Records are [drained](Rings::drain) as one stream, oldest first, up to a
//!    [`Horizon`]: samples that are still being written are newer than it. A record is lent where it is, and copied only
//!    if it wraps around the end of its ring or comes in pieces.
//! 6. A [BPF program](bpf) may run first at each hit of a probe: it counts in the kernel, reads values by the same
//!    declaration, and chooses which hits become samples ([`Rings::attach_with_program`]).
//! 7. Where the kernel has no kprobes, programs at [`Hooks`] of a control group and at tracepoints write the same records.
//! 8. Losses are counted: a full ring ([`Record::Lost`], [`Rings::losses`]), calls that a kretprobe could not follow
//!    ([`Group::misses`]), records that came late ([`Drained::late`]).
//!
//! Everything that is put into the kernel is owned by a value whose `Drop` removes it; after a `SIGKILL`, the next
//! [`Group::create`] does so. Every [`Error`] names the thing, the cause and, if there is one, the remedy.
//! [`Error::kind`] distinguishes a function that this kernel does not have from a lack of privilege.
//!
//! # Example
//!
//! This prints which process opens which file:
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use socktrail_kprobes::{
//!     Decoder, Group, Horizon, Record, RingOptions, Rings, Sample, Target, Term, Text, Tracefs, sample,
//! };
//!
//! sample! {
//!     /// `do_sys_openat2(dfd, filename, how)`
//!     struct Open {
//!         dfd: i32 = "{dfd}",
//!         path: Text = "+u0({filename})",
//!         flags: u64 = "+{open_how.flags}({how})",
//!     }
//! }
//!
//! fn layout(_function: &str, name: &str) -> Option<Term> {
//!     match name {
//!         "dfd" => Some(Term::Argument(1)),
//!         "filename" => Some(Term::Argument(2)),
//!         "how" => Some(Term::Argument(3)),
//!         "open_how.flags" => Some(Term::Offset(0)),
//!         _ => None,
//!     }
//! }
//!
//! let group = Group::create(&Arc::new(Tracefs::find()?), "example")?;
//! let event = group.install("open", Target::Kprobe { function: "do_sys_openat2" }, Open::FETCHES, &layout)?;
//! let decoder = Decoder::<Open>::new(event.format())?;
//!
//! let mut rings = Rings::per_cpu(&RingOptions::default())?;
//! rings.attach(&event, Some("flags != 0"))?;
//!
//! let mut horizon = Horizon::default();
//! loop {
//!     rings.wait(Some(Duration::from_millis(100)))?;
//!     let until = horizon.next(rings.now());
//!     rings.drain(until, &mut |record| match record {
//!         Record::Sample { time, pid, raw, .. } => {
//!             let Some(open) = decoder.decode(raw) else { return };
//!             let path = String::from_utf8_lossy(open.path.bytes(raw));
//!             println!("{time} {pid} opened {path} from {}", open.dfd);
//!         }
//!         Record::Lost { cpu, count, .. } => println!("CPU {cpu} lost {count}"),
//!         _ => {}
//!     });
//! }
//! # #[allow(unreachable_code)]
//! # Ok::<(), socktrail_kprobes::Error>(())
//! ```
//!
//! Sources: `perf_event_open(2)`, `bpf(2)`, and in the kernel's documentation trace/kprobetrace.rst, trace/events.rst
//! and bpf/standardization/instruction-set.rst. The oldest supported kernel is 3.12. Later features are used if the
//! kernel has them ([`Features`], [`Clock`]).

pub mod bpf;
mod clock;
mod control_group;
mod cpus;
mod error;
mod expression;
mod format;
#[cfg(fuzzing)]
pub mod fuzzing;
mod group;
mod hook;
mod hooks;
mod merge;
mod options;
mod owner;
mod pieces;
mod probe;
mod ring;
mod rings;
mod sample;
mod sweep;
mod symbols;
#[allow(unsafe_code, reason = "rings that are mapped from the kernel, and system calls without a safe wrapper")]
mod sys;
mod tracefs;
mod value;

pub use control_group::ControlGroup;
pub use error::{Error, Kind};
pub use expression::{Expression, Resolver, Term};
pub use format::{Format, FormatField};
pub use group::{Group, Installed, Misses};
pub use hook::Hook;
pub use hooks::{HookPoint, HookSamples, Hooks};
pub use merge::{Drained, Horizon, Losses, Record};
pub use options::{Clock, RingOptions};
pub use probe::{Fetch, Target};
pub use rings::{CpuChanges, Rings, Waker};
pub use sample::{Decoder, Field, Place, Sample};
pub use tracefs::{Features, Tracefs};
pub use value::{Array, SignedWord, StringWindow, Text, Type, Value, Word, WordSize};
