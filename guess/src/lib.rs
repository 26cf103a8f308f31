//! Where kernel structures keep their fields, and which argument of a kernel function is what.
//!
//! A probe that is to read the remote port of a socket must know that `skc_dport` lies 12 bytes into a `sock_common`, and
//! that `sk` is the first argument of `tcp_v4_connect`. Both change from kernel to kernel. [`resolve()`] finds them all
//! out and gives a [`Layout`]: names to numbers, each with where it was learnt. A layout is what the templates of
//! [`socktrail_kprobes`] are filled in from: `+{sock_common.skc_dport}({sk})`.
//!
//! ```no_run
//! use socktrail_guess::{ResolveOptions, Source, resolve};
//!
//! let found = resolve(&Source::Auto, &ResolveOptions::default())?;
//! println!("the remote port is at {:?}", found.layout.offset("sock_common.skc_dport"));
//! for skipped in &found.skipped {
//!     eprintln!("{}: {}", skipped.key, skipped.reason);
//! }
//! # Ok::<(), socktrail_guess::Error>(())
//! ```
//!
//! # What is needed
//!
//! One list says it: [`FIELDS`] and [`FUNCTIONS`]. To need one more, add a line. Type information then finds it by itself;
//! so do guesses when it is an argument that points to something they know.
//!
//! # Three sources
//!
//! **Type information** (BTF), where the kernel has it: read by a scanner of our own ([`find_in_btf`]), in a millisecond or
//! two.
//!
//! **A saved layout** ([`SavedLayout`]), bound to the kernel that it was found on.
//!
//! **Guesses**, on any kernel since 3.12 that has kprobes. A guess does what it can see the effect of: it connects a socket
//! from 127.83.6.201:40113 to 127.9.177.52:51846, with a kprobe on `inet_release` that fetches the first kilobyte of the
//! `sock`, word by word; closes the socket; and looks where in it these addresses and ports lie. What fits by chance the
//! first time does not fit the second, with other addresses. Argument by argument, it is found out in the same way what
//! they are: the one behind which the packet is that was just sent is the `sk_buff`.
//!
//! Each guess says what it needs and what it gives, and so they run in the order of what builds on what:
//!
//! ```text
//! socket -> sock, sock6, tcp, net_device -+
//! sk_buff --------------------------------+-> arguments, flow6
//!    |                                    +-> arguments6 -> fragments6
//!    +-> fragments
//! cred, binprm, task
//! ```
//!
//! A guess runs on a thread of its own that only its own probes watch, and repeats with new random values until one
//! candidate is left that three runs agree on, and one more for each run that speaks against it. A field is looked for only
//! where it can be: what is in a packet's control block, within that. A guess does not disturb the host: it talks to itself
//! over loopback, between unused addresses, with sockets, threads and children of its own, and leaves nothing behind.
//! When it cannot be certain, it says so and names the candidates; it never takes the likelier one. Of a host
//! without IPv6, what only IPv6 needs is left out.
//!
//! On every kernel that has both, guesses and type information agree on every field: `examples/agree.rs` compares them.
//!
//! # Where things are
//!
//! `catalog` lists what is needed, `abi` what never changes; `btf` reads type information; `engine` runs guesses, of which
//! `guesses` has one in each file; `resolve` puts the sources together; `sys` is the only module with unsafe code.

mod abi;
mod btf;
mod catalog;
mod engine;
mod error;
mod guesses;
mod layout;
mod resolve;
mod saved;
#[allow(unsafe_code, reason = "system calls that have no safe wrapper")]
mod sys;

pub use btf::{Found as FoundInBtf, Malformed as MalformedBtf, find as find_in_btf};
pub use catalog::{ArgumentSpec, FIELDS, FUNCTIONS, FieldSpec, FunctionSpec};
pub use error::Error;
pub use layout::{Argument, Difference, Field, Layout, Origin};
pub use resolve::{ResolveOptions, Resolved, SAVED_LAYOUT, SkipKind, Skipped, Source, SourceError, resolve};
pub use saved::{KernelIdentity, SavedLayout};
