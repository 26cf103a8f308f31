//! `event.*` and `error.*`.

use nix::errno::Errno;
use serde::{Serialize, Serializer};

use crate::model::clock::{Clock, Timestamp};
use crate::model::errno::errno_name;
use crate::model::flow::{Flow, Outcome, Reason};

/// `event.*` of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EventFields {
    /// `event`.
    pub kind: &'static str,
    /// `network_flow`.
    pub action: &'static str,
    /// `[network]`.
    pub category: [&'static str; 1],
    /// `[connection, end]` for a flow that has ended, `[connection, info]` for a live one.
    #[serde(rename = "type")]
    pub kinds: [&'static str; 2],
    /// `system`.
    pub module: &'static str,
    /// `socket`.
    pub dataset: &'static str,
    /// The time of the flow's first packet, or of the call that began it.
    pub start: Timestamp,
    /// The time of its last packet, or of the call that ended it.
    pub end: Timestamp,
    /// The time from start to end, in nanoseconds.
    pub duration: u64,
    /// Whether both ends communicated: `success`, `failure` or `unknown`.
    pub outcome: &'static str,
    /// Why the flow is reported now: `closed`, `inactive`, `replaced`, `interim`, `evicted` or `shutdown`.
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
            duration: flow.end.as_nanos().saturating_sub(flow.start.as_nanos()),
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

/// `event.*` of a sensor's event or a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NoticeFields {
    /// `event` for a sensor's event, `pipeline_error` for a loss.
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
    /// For a loss: when its first part was noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Timestamp>,
    /// For a loss: when its last part was noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    /// The number of the event since the start of the agent, which tells otherwise identical events apart.
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

/// `error.*`: why a connection or call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ErrorFields {
    /// The name of the errno, such as `ECONNREFUSED`; the number if it has no name.
    #[serde(serialize_with = "code")]
    pub code: i32,
    /// Its description, such as `Connection refused`.
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

fn code<S: Serializer>(code: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&errno_name(*code))
}
