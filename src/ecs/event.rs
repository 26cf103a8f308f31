//! `event.*` and `error.*`.

use nix::errno::Errno;
use serde::{Serialize, Serializer};

use crate::clock::{Clock, Timestamp};
use crate::flow::{Flow, Outcome, Reason};

/// `event.*` of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EventFields {
    /// `event`.
    pub kind: &'static str,
    /// `network_flow`.
    pub action: &'static str,
    /// `[network]`.
    pub category: [&'static str; 1],
    /// `[connection, end]` for the last report of a flow, `[connection, info]` for one before.
    #[serde(rename = "type")]
    pub kinds: [&'static str; 2],
    /// `system`.
    pub module: &'static str,
    /// `socket`.
    pub dataset: &'static str,
    /// The flow's first packet, or the call that began it.
    pub start: Timestamp,
    /// Its last packet, or the call that ended it.
    pub end: Timestamp,
    /// Nanoseconds from start to end.
    pub duration: u64,
    /// Whether there was a conversation: `success`, `failure` or `unknown`.
    pub outcome: &'static str,
    /// Why the flow is reported now: `closed`, `inactive`, `replaced`, `evicted`, `shutdown`.
    pub reason: &'static str,
}

impl EventFields {
    pub(super) fn of(flow: &Flow, clock: Clock) -> Self {
        Self {
            kind: "event",
            action: "network_flow",
            category: ["network"],
            kinds: ["connection", if flow.is_final { "end" } else { "info" }],
            module: "system",
            dataset: "socket",
            start: clock.wall(flow.start),
            end: clock.wall(flow.end),
            duration: flow.end.saturating_sub(flow.start),
            outcome: match flow.outcome {
                Outcome::Success => "success",
                Outcome::Failure(_) => "failure",
                Outcome::Unknown => "unknown",
            },
            reason: match flow.reason {
                Reason::Closed => "closed",
                Reason::Inactive => "inactive",
                Reason::Replaced => "replaced",
                Reason::Interim => "interim",
                Reason::Evicted => "evicted",
                Reason::Shutdown => "shutdown",
            },
        }
    }
}

/// `event.*` of what a sensor or the monitor itself has noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NoticeFields {
    /// `event` of a sensor's, `pipeline_error` of a loss.
    pub kind: &'static str,
    /// `socket_opened`, `socket_closed`, `loss`.
    pub action: &'static str,
    /// `[network]`.
    pub category: [&'static str; 1],
    /// `[start]`, `[end]`, `[error]`.
    #[serde(rename = "type")]
    pub kinds: [&'static str; 1],
    /// `system`.
    pub module: &'static str,
    /// `socket`.
    pub dataset: &'static str,
    /// Of a loss, when the first of it was noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Timestamp>,
    /// Of a loss, when the last of it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// Counts up within a run, where the writer counts: it tells apart what is alike in everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

impl NoticeFields {
    pub(super) const fn new(kind: &'static str, action: &'static str, of_type: &'static str) -> Self {
        Self {
            kind,
            action,
            category: ["network"],
            kinds: [of_type],
            module: "system",
            dataset: "socket",
            start: None,
            end: None,
            sequence: None,
        }
    }
}

/// `error.*`: why a connection did not come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ErrorFields {
    /// The error number's name: `ECONNREFUSED`; the number itself where it has no name.
    #[serde(serialize_with = "code")]
    pub code: i32,
    /// What it means: `Connection refused`.
    pub message: &'static str,
}

impl ErrorFields {
    /// The error of a flow that failed for a known reason.
    pub(super) fn of(flow: &Flow) -> Option<Self> {
        match flow.outcome {
            Outcome::Failure(code) if code != 0 => Some(Self::of_errno(code)),
            _ => None,
        }
    }

    /// The error of a positive errno.
    pub(super) fn of_errno(code: i32) -> Self {
        Self { code, message: Errno::from_raw(code).desc() }
    }
}

/// The name of a positive errno.
pub(crate) fn errno_name(code: i32) -> String {
    match Errno::from_raw(code) {
        Errno::UnknownErrno => code.to_string(),
        errno => format!("{errno:?}"),
    }
}

fn code<S: Serializer>(code: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&errno_name(*code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_numbers_have_the_names_of_asm_generic_errno() {
        for (code, name) in [(101, "ENETUNREACH"), (104, "ECONNRESET"), (110, "ETIMEDOUT"), (111, "ECONNREFUSED")] {
            assert_eq!(errno_name(code), name);
        }
        assert_eq!(errno_name(9999), "9999");
        assert_eq!(errno_name(-1), "-1");
    }
}
