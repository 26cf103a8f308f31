//! What can go wrong before anything is found. A single key that is not found is no error: see
//! [`Resolved::skipped`](crate::Resolved::skipped).

use crate::{KernelIdentity, MalformedBtf};
use std::io;
use std::path::PathBuf;

/// Everything that [`resolve`](crate::resolve()) and saved layouts can fail with: what failed, why, and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Guesses need kprobes, and there are none or we may not use them. Its message has the remedy.
    #[error("guessing the kernel's layout: {0}")]
    Kprobes(#[from] socktrail_kprobes::Error),
    /// Guesses talk to themselves, and that does not work here.
    #[error(
        "guessing the kernel's layout: this host cannot send itself a packet: {source}; loopback must be up \
         (`ip link set lo up`) and a firewall must let 127.0.0.0/8 through"
    )]
    NoLoopback {
        /// The system's answer.
        source: io::Error,
    },
    /// Guesses read through what may be no pointer, which some kernels warn of, and this one panics at a warning.
    #[error(
        "guessing the kernel's layout: this kernel panics at a warning (kernel.panic_on_warn), and may warn when guesses \
         read through what is no pointer; use type information, or a layout saved on this kernel while that was off \
         (`socktrail layout --save`)"
    )]
    PanicOnWarn,
    /// A thread for a guess could not be started.
    #[error("guessing the kernel's layout: starting a thread: {source}")]
    Thread {
        /// The system's answer.
        source: io::Error,
    },
    /// Type information was asked for and is not there.
    #[error(
        "no type information (BTF) at {path}: {source}; a kernel built with CONFIG_DEBUG_INFO_BTF has it at \
         /sys/kernel/btf/vmlinux; otherwise use guesses"
    )]
    NoBtf {
        /// Where it should be.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Type information that cannot be understood.
    #[error("the type information (BTF) at {path} cannot be used: expected {source}; use guesses instead")]
    BadBtf {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        source: MalformedBtf,
    },
    /// A saved layout could not be read or written.
    #[error("{what} the layout saved at {path}: {source}")]
    SavedIo {
        /// Reading or writing.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file that is no saved layout of this version.
    #[error("{path} is no layout that this version can read: {problem}; save it again with `socktrail layout --save`")]
    BadSaved {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A layout that was saved on another kernel.
    #[error(
        "the layout at {path} is of another kernel: of {saved}, but {running} is running; save it again on this kernel"
    )]
    OtherKernel {
        /// Where it is.
        path: PathBuf,
        /// The kernel that it was saved on.
        saved: Box<KernelIdentity>,
        /// The kernel that runs here.
        running: Box<KernelIdentity>,
    },
    /// It could not be found out which kernel runs here.
    #[error("finding out which kernel runs here: reading {path}: {source}")]
    Identity {
        /// What was read.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}
