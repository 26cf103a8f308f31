//! The offsets of fields in kernel structures, and the positions of arguments of kernel functions.
//!
//! A probe that reads the remote port of a socket needs the offset of `skc_dport` in a `sock_common`, and the position
//! of `sk` among the arguments of `tcp_v4_connect`. Both change from kernel to kernel. [`resolve()`] finds them and
//! returns a [`Layout`], from which [`socktrail_kprobes`] fills in templates such as `+{sock_common.skc_dport}({sk})`.
//!
//! ```no_run
//! use socktrail_guess::{LayoutSource, ResolveOptions, resolve};
//!
//! let found = resolve(&LayoutSource::Auto, &ResolveOptions::default())?;
//! println!("the remote port is at {:?}", found.layout.offset("sock_common.skc_dport"));
//! for skipped in &found.skipped {
//!     eprintln!("{}: {}", skipped.key, skipped.reason);
//! }
//! # Ok::<(), socktrail_guess::Error>(())
//! ```
//!
//! # What is needed
//!
//! [`FIELDS`] and [`FUNCTIONS`] list all that is needed. To add a field or an argument, add a line. Type information then
//! finds it without further work. Guesses do so too for an argument that points to a structure that they know. Anything
//! else needs a new guess.
//!
//! # Three sources
//!
//! **Type information** (BTF), where the kernel has it. A scanner made for this ([`find_in_btf`]) reads it in a
//! millisecond or two.
//!
//! **A saved layout** ([`SavedLayout`]), which is valid only for the kernel that it was found on.
//!
//! **Guesses**, on any kernel since 3.12 that has kprobes. A guess makes the kernel handle values that it knows, and
//! searches kernel memory for them. For example, it connects a socket from 127.83.6.201:40113 to 127.9.177.52:51846 and
//! closes it. A kprobe on `inet_release` captures the first kilobyte of the `sock`, and the guess looks for the
//! addresses and ports in it. An offset that fits by chance does not fit the next time, with other addresses. Arguments
//! are found in the same way: the one that leads to the packet that was just sent is the `sk_buff`.
//!
//! Each guess says which keys it needs and which it gives. This decides the order in which they run:
//!
//! ```text
//! socket -> sock, sock6, net_device -+-> arguments, flow6
//! sk_buff ---------------------------+-> arguments6 -> fragments6
//!    |
//!    +-> fragments
//! socket -> tcp, socket_events, sender
//! dentry_name -> dentry_links -> mount
//! dentry_name, binprm -> binprm_file
//! cred, task
//! ```
//!
//! A guess runs on a thread of its own, and its probes record only that thread and the children that it follows. It
//! repeats with new random values until one candidate is left and three runs agree on it; each run that contradicts it
//! demands one more that agrees. A field is looked for only where it can be, for example a field of a packet's control
//! block within that block. A guess does not disturb the host: it sends packets over loopback, between unused addresses,
//! with sockets, threads and children of its own, and leaves nothing behind. If it is not certain, it says so and names
//! the candidates; it never takes the likeliest one. On a host without IPv6, keys that only IPv6 needs are skipped.
//!
//! On every kernel that has type information, guesses must agree with it on every key: `examples/agree.rs` compares
//! them.
//!
//! # Modules
//!
//! `catalog` lists what is needed, and `abi` what never changes. `btf` reads type information. `guesses` has the
//! guesses, and `engine` runs them. `resolve` combines the sources. `sys` is the only module with unsafe code.

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

pub use btf::{BtfLayout, BtfPosition, MalformedBtf, MissingKey, find as find_in_btf};
pub use catalog::{ArgumentSpec, FIELDS, FUNCTIONS, FieldSpec, FunctionSpec, HOOK_FIELDS};
pub use error::Error;
pub use layout::{ArgumentPosition, Difference, FieldOffset, Layout, ValueOrigin};
pub use resolve::{
    LayoutSource, LayoutSourceError, ResolveOptions, Resolved, SAVED_LAYOUT, SkipKind, Skipped, layout_for_hooks,
    resolve,
};
pub use saved::{KernelIdentity, SavedLayout};
