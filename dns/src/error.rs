//! What can go wrong outside of packets. What is wrong in packets is counted: [`Counters`](crate::Counters).

use std::io;

/// Why a capture could not be set up or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option that makes no sense.
    #[error("{option}: {problem}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The process may not capture packets.
    #[error("no permission to {what}: {source}; it needs root or CAP_NET_RAW")]
    Permission {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not do it.
    #[error("could not {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no such interface.
    #[error("no network interface {name:?}: {source}")]
    Interface {
        /// The name given.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// Whether the process lacks the right to capture.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Permission { .. })
    }

    pub(crate) fn io(what: &'static str, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission { what, source },
            _ => Self::Io { what, source },
        }
    }
}
