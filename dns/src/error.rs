//! Errors of the capture and of options. Errors in packets are counted: [`Counters`](crate::Counters).

use std::io;

/// Why a capture could not be started or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option has an invalid value.
    #[error("{option}: {problem}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// Why its value is invalid.
        problem: String,
    },
    /// The process may not capture packets.
    #[error("no permission to {what}: {source}; it needs root or {capability}")]
    Permission {
        /// What was tried.
        what: &'static str,
        /// The capability that permits it.
        capability: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A system call failed for another reason than a lack of permission.
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
        /// The name in the options.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// Whether the process lacks the permission to capture.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Permission { .. })
    }

    /// The error of a system call for which the process may lack `CAP_NET_RAW`.
    pub(crate) fn io(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::io_with_capability(what, "CAP_NET_RAW", source)
    }

    /// The error of a system call for which the process may lack this capability.
    pub(crate) fn io_with_capability(
        what: &'static str,
        capability: &'static str,
        source: impl Into<io::Error>,
    ) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission { what, capability, source },
            _ => Self::Io { what, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_permission_names_the_capability() {
        let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
        let error = Error::io_with_capability("enter a network namespace", "CAP_SYS_ADMIN", refused());
        assert!(error.is_permission());
        assert!(error.to_string().ends_with("; it needs root or CAP_SYS_ADMIN"), "{error}");
        let error = Error::io("open a packet socket", refused());
        assert!(error.to_string().ends_with("; it needs root or CAP_NET_RAW"), "{error}");
    }
}
