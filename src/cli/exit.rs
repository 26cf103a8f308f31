//! Exit statuses and their meanings.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The command succeeded.
    Success = 0,
    /// A failure without a status of its own.
    Failure = 1,
    /// The command line or the configuration is invalid.
    Usage = 2,
    /// This kernel cannot show flows.
    Kernel = 3,
    /// Privileges are missing.
    Privileges = 4,
    /// tracefs cannot be found.
    Tracefs = 5,
    /// A limit is too low.
    Limit = 6,
    /// The layout of the kernel's structures cannot be found.
    Layout = 7,
}

impl Status {
    const ALL: [Self; 8] = [
        Self::Success,
        Self::Failure,
        Self::Usage,
        Self::Kernel,
        Self::Privileges,
        Self::Tracefs,
        Self::Limit,
        Self::Layout,
    ];

    /// Its meaning, for `--help`.
    const fn meaning(self) -> &'static str {
        match self {
            Self::Success => "success; also after Ctrl-C, or when the reader closed the pipe",
            Self::Failure => "another failure; doctor: some data would be missing",
            Self::Usage => "usage error, or an invalid configuration",
            Self::Kernel => "this kernel cannot show flows (no kprobes, lockdown); doctor: no flow could be seen",
            Self::Privileges => "privileges are missing",
            Self::Tracefs => "tracefs is missing, or the given path is not tracefs",
            Self::Limit => "a limit is too low (open files, locked memory, perf events)",
            Self::Layout => "the kernel's layout could not be found, or a kernel function is missing",
        }
    }

    /// The table for `--help`.
    pub fn help() -> String {
        let lines = Self::ALL.map(|status| format!("  {}  {}", status as u8, status.meaning()));
        format!("Exit status:\n{}", lines.join("\n"))
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_status_at_its_number() {
        let help = Status::help();
        for (number, line) in help.lines().skip(1).enumerate() {
            assert!(line.starts_with(&format!("  {number}  ")), "{line}");
        }
        assert_eq!(help.lines().count(), 9);
    }
}
