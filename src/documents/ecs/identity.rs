//! `user.*` and `group.*`: the credentials of the owner when the flow began, or of the process that made a call.

use std::fmt::Display;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::model::names::UserNames;
use crate::model::process::Credentials;

/// `user.*`: the real user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// The user id, written as a string.
    #[serde(serialize_with = "as_string")]
    pub id: u32,
    /// Its name.
    #[serde(serialize_with = "name", skip_serializing_if = "Option::is_none")]
    pub name: Option<Arc<str>>,
    /// The effective user.
    pub effective: Effective,
}

/// `user.effective.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// The effective user id, written as a string.
    #[serde(serialize_with = "as_string")]
    pub id: u32,
    /// Its name.
    #[serde(serialize_with = "name", skip_serializing_if = "Option::is_none")]
    pub name: Option<Arc<str>>,
}

/// `group.*`: the real group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The group id, written as a string.
    #[serde(serialize_with = "as_string")]
    pub id: u32,
    /// Its name.
    #[serde(serialize_with = "name", skip_serializing_if = "Option::is_none")]
    pub name: Option<Arc<str>>,
}

impl User {
    pub(super) fn of(credentials: &Credentials, names: &dyn UserNames) -> Self {
        Self {
            id: credentials.uid,
            name: names.user(credentials.uid),
            effective: Effective { id: credentials.euid, name: names.user(credentials.euid) },
        }
    }

    /// The values for `related.user`: the user's and the effective user's name, or id if it has no name.
    pub(super) fn related(&self) -> Vec<Arc<str>> {
        let either = |id: u32, name: &Option<Arc<str>>| name.clone().unwrap_or_else(|| id.to_string().into());
        let mut related = vec![either(self.id, &self.name), either(self.effective.id, &self.effective.name)];
        related.dedup();
        related
    }
}

impl Group {
    pub(super) fn of(credentials: &Credentials, names: &dyn UserNames) -> Self {
        Self { id: credentials.gid, name: names.group(credentials.gid) }
    }
}

pub(super) fn as_string<S: Serializer>(number: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

pub(super) fn name<S: Serializer>(name: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    name.as_deref().serialize(serializer)
}
