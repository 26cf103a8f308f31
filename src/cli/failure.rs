//! Failures: their exit statuses and messages.

use std::io;

use socktrail::Error;
use socktrail::config::ConfigError;
use socktrail::monitor::Refusal;
use socktrail::sensors::FileError;
use socktrail_kprobes::{self as kprobes, Kind};

use super::doctor;
use super::exit::Status;

/// A failure as users see it: a message for stderr and an exit status.
#[derive(Debug, PartialEq, Eq)]
pub struct FailureReport {
    /// The message, without a newline at its end.
    pub message: String,
    /// The exit status.
    pub status: Status,
}

/// Whether the command failed because the reader of a pipe, usually stdout, has closed it.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        let direct = cause.downcast_ref().map(io::Error::kind);
        direct.or_else(|| cause.downcast_ref().and_then(serde_json::Error::io_error_kind))
    };
    error.chain().filter_map(kind).any(|kind| kind == io::ErrorKind::BrokenPipe)
}

/// Describes why a command failed. If the host is the cause, adds the findings of [`doctor`].
pub fn explain(error: &anyhow::Error) -> FailureReport {
    let report = FailureReport { message: message(error), status: status(error) };
    if !may_be_caused_by_host(error, report.status) {
        return report;
    }
    let findings = doctor::examine();
    match doctor::blocking(&findings).first() {
        Some(cause) => FailureReport {
            message: format!("{}\n\n{}\n`socktrail doctor` shows all.", report.message, doctor::explanation(&findings)),
            status: cause.status,
        },
        None => report,
    }
}

/// The error and its causes, separated by colons. Leaves out a cause that the message already contains.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !message.contains(&cause) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&cause);
        }
    }
    message
}

/// Whether the host may be the cause, so that its examination says more than the error.
fn may_be_caused_by_host(error: &anyhow::Error, status: Status) -> bool {
    match status {
        Status::Kernel | Status::Privileges | Status::Tracefs | Status::Limit => {
            // The path that the user gave is the cause.
            !matches!(kprobes_error(error), Some(kprobes::Error::NotTracefs { .. }))
        }
        Status::Layout => matches!(error.downcast_ref(), Some(Error::NothingToSee(_))),
        Status::Success | Status::Failure | Status::Usage => false,
    }
}

fn status(error: &anyhow::Error) -> Status {
    if let Some(error) = kprobes_error(error) {
        return status_of_kprobes(error);
    }
    if error.is::<ConfigError>() || error.is::<FileError>() {
        return Status::Usage;
    }
    match error.downcast_ref::<Error>() {
        Some(Error::Layout(_)) => Status::Layout,
        Some(Error::NothingToSee(missing)) => {
            let refusals = missing.iter().flat_map(|missing| &missing.refusals);
            let kernels = refusals.filter_map(|refusal| match refusal {
                Refusal::Kernel(error) => Some(status_of_kprobes(error)),
                Refusal::NotHit(..) => Some(Status::Kernel),
                _ => None,
            });
            kernels.into_iter().find(|status| *status != Status::Layout).unwrap_or(Status::Layout)
        }
        Some(Error::Thread { .. } | Error::EventFd(_)) => Status::Limit,
        Some(Error::Clock(_) | Error::ProbesDisabled(_) | Error::NoPrograms(_)) => Status::Kernel,
        Some(Error::Option { .. }) => Status::Usage,
        _ => Status::Failure,
    }
}

/// The error of `socktrail-kprobes` among the causes, if there is one.
fn kprobes_error(error: &anyhow::Error) -> Option<&kprobes::Error> {
    if let Some(Error::Kprobes(error)) = error.downcast_ref::<Error>() {
        return Some(error);
    }
    error.chain().find_map(|cause| cause.downcast_ref())
}

fn status_of_kprobes(error: &kprobes::Error) -> Status {
    match (error, error.kind()) {
        (kprobes::Error::NotTracefs { .. } | kprobes::Error::NoTracefs { .. }, _) => Status::Tracefs,
        (_, Kind::Unsupported) => Status::Kernel,
        (_, Kind::Permission) => Status::Privileges,
        (_, Kind::Limit) => Status::Limit,
        (_, Kind::NoFunction | Kind::Unresolved) => Status::Layout,
        _ => Status::Failure,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use anyhow::Context;

    use super::*;

    fn of(error: kprobes::Error) -> Status {
        status(&Error::from(error).into())
    }

    #[test]
    fn each_kind_of_failure_has_its_status() {
        let path = PathBuf::from("/tmp");
        let refusal = || io::Error::from_raw_os_error(nix::libc::EPERM);
        assert_eq!(of(kprobes::Error::NotTracefs { path: path.clone(), problem: "x".into() }), Status::Tracefs);
        assert_eq!(of(kprobes::Error::NoTracefs { source: refusal() }), Status::Tracefs);
        assert_eq!(of(kprobes::Error::NoKprobes { root: path.clone() }), Status::Kernel);
        assert_eq!(of(kprobes::Error::ReadOnly { path }), Status::Privileges);
        let (what, remedy, source) = ("x".into(), "y".into(), refusal());
        assert_eq!(of(kprobes::Error::Permission { what, remedy, source }), Status::Privileges);
        let (value, what, remedy) = ("1".into(), "x".into(), "y".into());
        assert_eq!(of(kprobes::Error::Limit { limit: "RLIMIT_NOFILE", value, what, remedy }), Status::Limit);
        assert_eq!(status(&Error::Option { name: "x", problem: "y".into() }.into()), Status::Usage);
        assert_eq!(status(&anyhow::anyhow!("x")), Status::Failure);
    }

    #[test]
    fn context_does_not_hide_the_status() {
        let error = Err::<(), _>(Error::from(kprobes::Error::NoKprobes { root: "/x".into() })).context("starting");
        assert_eq!(status(&error.unwrap_err()), Status::Kernel);
    }

    #[test]
    fn a_cause_is_named_once() {
        let source = io::Error::from_raw_os_error(nix::libc::EPERM);
        let error = kprobes::Error::Io { what: "reading x".into(), source };
        let error = Err::<(), _>(Error::from(error)).context("starting").unwrap_err();
        assert_eq!(message(&error), "starting: reading x: Operation not permitted (os error 1)");
    }

    #[test]
    fn a_path_that_is_not_tracefs_needs_no_explanation() {
        let error = kprobes::Error::NotTracefs { path: "/tmp".into(), problem: "x".into() };
        let report = explain(&Error::from(error).into());
        assert_eq!((report.status, report.message.lines().count()), (Status::Tracefs, 1));
    }
}
