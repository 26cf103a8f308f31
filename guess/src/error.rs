//! The errors of this crate. A single key that is not found is not an error: see
//! [`Resolved::skipped`](crate::Resolved::skipped).

use crate::{KernelIdentity, MalformedBtf};
use std::io;
use std::path::PathBuf;

/// Why [`resolve`](crate::resolve()) or a saved layout failed. Messages say what failed, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Guesses need kprobes, and the kernel has none, or this process may not use them.
    #[error("guessing the kernel's layout: {0}")]
    Kprobes(#[from] socktrail_kprobes::Error),
    /// Guesses send packets over loopback, and this host does not deliver them.
    #[error(
        "guessing the kernel's layout: this host cannot send itself a packet: {source}; loopback must be up \
         (`ip link set lo up`) and a firewall must let 127.0.0.0/8 through"
    )]
    NoLoopback {
        /// The system's answer.
        source: io::Error,
    },
    /// Guesses follow words that may not be pointers. Some kernels warn about this, and this one panics at a warning.
    #[error(
        "guessing the kernel's layout: this kernel panics at a warning (kernel.panic_on_warn), and may warn when guesses \
         follow a word that is not a pointer; use type information, or a layout saved on this kernel while that was off \
         (`socktrail layout --save`)"
    )]
    PanicOnWarn,
    /// No thread could be started for a guess.
    #[error("guessing the kernel's layout: starting a thread: {source}")]
    Thread {
        /// The system's answer.
        source: io::Error,
    },
    /// Type information was requested, but there is none.
    #[error(
        "no type information (BTF) at {path}: {source}; a kernel built with CONFIG_DEBUG_INFO_BTF has it at \
         /sys/kernel/btf/vmlinux; otherwise use guesses"
    )]
    NoBtf {
        /// Where it was expected.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The type information is malformed.
    #[error("the type information (BTF) at {path} cannot be used: {source}; use guesses instead")]
    BadBtf {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        source: MalformedBtf,
    },
    /// Neither type information nor guesses found a layout, and the saved one cannot be used.
    #[error("{found}; nor could a saved layout be used: {saved}")]
    NoSource {
        /// Why no layout was found.
        found: Box<Error>,
        /// Why the saved layout cannot be used.
        saved: Box<Error>,
    },
    /// A saved layout could not be read or written.
    #[error("{what} the layout saved at {path}: {source}")]
    SavedIo {
        /// What failed: reading or writing.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is not a saved layout of this version.
    #[error(
        "{path} is not a layout that this version can read: {problem}; save it again with `socktrail layout --save`"
    )]
    BadSaved {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Users other than root and this process's own can change a saved layout, and with it which kernel memory is read.
    #[error(
        "the layout saved at {path} is not used, because users other than root can write {writable}; make root its owner \
         and take the write permission of others away (chmod go-w {writable})"
    )]
    UntrustedSaved {
        /// Where it is.
        path: PathBuf,
        /// The file, or the folder that holds it.
        writable: PathBuf,
    },
    /// The layout was saved on another kernel.
    #[error(
        "the layout at {path} was saved on another kernel: {saved}, but {running} is running; save it again on this kernel"
    )]
    OtherKernel {
        /// Where it is.
        path: PathBuf,
        /// The kernel that it was saved on.
        saved: Box<KernelIdentity>,
        /// The kernel that runs here.
        running: Box<KernelIdentity>,
    },
    /// The running kernel could not be identified.
    #[error("identifying the running kernel: {what}: {source}")]
    Identity {
        /// What failed: reading a file, or a system call.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}
