//! Names of users and groups, and names that processes look up by DNS.

use std::fmt;
use std::sync::Arc;

use socktrail_dns::Lookup;

use crate::model::process::{Credentials, Process};
use crate::model::time::MonotonicTime;

/// Names of user and group ids.
pub trait UserNames {
    /// The name of a user; `None` if it has none, or none is known yet.
    fn user(&self, uid: u32) -> Option<Arc<str>>;
    /// The name of a group; `None` if it has none, or none is known yet.
    fn group(&self, gid: u32) -> Option<Arc<str>>;
}

/// Looks up names ahead of time, so that they are known when they are needed.
pub trait PrefetchNames: fmt::Debug + Send + Sync {
    /// Starts lookups of the names of the users and groups in these credentials. Does not wait for the answers.
    fn prefetch(&self, credentials: &Credentials);
}

/// Knows no names.
impl UserNames for () {
    fn user(&self, _uid: u32) -> Option<Arc<str>> {
        None
    }

    fn group(&self, _gid: u32) -> Option<Arc<str>> {
        None
    }
}

/// A name that a process has looked up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NameLearned {
    /// The process that asked.
    pub process: Arc<Process>,
    /// The query and its answer.
    pub lookup: Arc<Lookup>,
}

impl NameLearned {
    /// When the answer came.
    pub fn time(&self) -> MonotonicTime {
        MonotonicTime::from_nanos(self.lookup.time)
    }
}
