//! A finding: the conclusion about one property of the host.

use serde::Serialize;

use crate::cli::exit::Status;

/// The conclusion about one property of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The property.
    pub subject: &'static str,
    /// Whether the property is good enough.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What would be missing because of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The exit status of `socktrail flows` because of it.
    #[serde(skip)]
    pub status: Status,
}

/// Whether a property is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is good enough.
    Ok,
    /// Some data would be missing.
    Degraded,
    /// No flow could be seen.
    Lost,
}

impl Finding {
    pub(super) fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        let found = found.into();
        Self { subject, state: State::Ok, found, missing: None, remedy: None, status: Status::Success }
    }

    pub(super) fn degraded(
        subject: &'static str,
        found: impl Into<String>,
        missing: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Degraded,
            missing: Some(missing.into()),
            remedy: Some(remedy.into()),
            ..Self::ok(subject, found)
        }
    }

    pub(super) fn lost(
        subject: &'static str,
        status: Status,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Lost,
            missing: Some("all flows".into()),
            remedy: Some(remedy.into()),
            status,
            ..Self::ok(subject, found)
        }
    }
}
