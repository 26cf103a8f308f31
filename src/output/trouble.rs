//! Keeps track of the troubles of an output, and decides when they are worth a line in the log.
//!
//! A trouble belongs to one [`Scope`]. Its members are the spools of the output, or the output itself. It lasts from the
//! first failure until every member that failed has succeeded again and nothing has failed for [`CALM`]: a server that
//! refuses every second request is one trouble, not a hundred. It is logged when it begins, once for each further [`Cause`],
//! and when it ends. Nothing here writes to the log or reads a clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long there must be no failures before a trouble is over.
const CALM: Duration = Duration::from_secs(5);
/// How many causes of one trouble are logged, including the first.
const MAX_CAUSES: usize = 6;
/// How many troubles a status names.
const MAX_NAMED: usize = 3;

/// The part of an output that a trouble concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// An activity on this host: `writing`, `syncing`.
    Local(&'static str),
    /// The whole server.
    Server,
    /// One index, while the server works.
    Index(String),
}

/// The kind of reason for a failure. Each is logged once per trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// An error of this host's system.
    System,
    /// No answer, or an answer that says to come back later.
    Unavailable,
    /// A certificate that this host or the server does not trust.
    Untrusted,
    /// An answer with this status, which will probably stay until someone acts.
    Refused(u16),
    /// An answer that cannot be understood.
    Malformed,
}

/// All troubles of one output.
#[derive(Debug, Default)]
pub struct Troubles(Vec<Trouble>);

#[derive(Debug)]
struct Trouble {
    scope: Scope,
    since: Instant,
    reason: String,
    /// The causes that were logged.
    logged: Vec<Cause>,
    /// The members that have failed. Each has the number of documents that waited when it succeeded again, or `None` while it
    /// still fails.
    members: BTreeMap<&'static str, Option<u64>>,
    /// Since when all members have succeeded.
    recovered: Option<Instant>,
}

impl Troubles {
    /// Notes a failure of a member of a scope. Returns what to log, if it is worth a line.
    pub fn note_failure(
        &mut self,
        (scope, member): (&Scope, &'static str),
        cause: Cause,
        reason: &str,
        now: Instant,
    ) -> Option<String> {
        let at = self.0.iter().position(|trouble| trouble.scope == *scope).unwrap_or_else(|| {
            self.0.push(Trouble::new(scope.clone(), now));
            self.0.len() - 1
        });
        let trouble = &mut self.0[at];
        trouble.members.insert(member, None);
        trouble.recovered = None;
        reason.clone_into(&mut trouble.reason);
        if trouble.logged.contains(&cause) || trouble.logged.len() >= MAX_CAUSES {
            return None;
        }
        trouble.logged.push(cause);
        Some(trouble.to_string())
    }

    /// Notes a success of a member, and the number of documents that have waited for it.
    pub fn note_success(&mut self, (scope, member): (&Scope, &'static str), waiting: u64, now: Instant) {
        let Some(trouble) = self.0.iter_mut().find(|trouble| trouble.scope == *scope) else { return };
        let Some(waited) = trouble.members.get_mut(member) else { return };
        *waited = Some(waited.unwrap_or(0).max(waiting));
        if trouble.recovered.is_none() && trouble.members.values().all(Option::is_some) {
            trouble.recovered = Some(now);
        }
    }

    /// Removes the troubles that are over, and returns lines to log. `at_once` is for the end, when there will be no further
    /// attempts: a trouble is then over as soon as all members have succeeded.
    pub fn take_ended(&mut self, now: Instant, at_once: bool) -> Vec<String> {
        let mut lines = Vec::new();
        self.0.retain(|trouble| match trouble.recovered {
            Some(recovered) if at_once || now.saturating_duration_since(recovered) >= CALM => {
                lines.push(trouble.end(recovered));
                false
            }
            _ => true,
        });
        lines
    }

    /// Forgets all troubles: the next failure is logged again.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// The number of troubles.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The troubles in one line, if there are any.
    pub fn status(&self) -> Option<String> {
        let named: Vec<_> = self.0.iter().take(MAX_NAMED).map(ToString::to_string).collect();
        let more = self.0.len().saturating_sub(MAX_NAMED);
        let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
        (!named.is_empty()).then(|| named.join("; ") + &rest)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.scope {
            Scope::Index(index) => write!(f, "index {index}: {}", self.reason),
            Scope::Local(_) | Scope::Server => f.write_str(&self.reason),
        }
    }
}

impl Trouble {
    fn new(scope: Scope, since: Instant) -> Self {
        Self { scope, since, reason: String::new(), logged: Vec::new(), members: BTreeMap::new(), recovered: None }
    }

    fn end(&self, recovered: Instant) -> String {
        let what = match &self.scope {
            Scope::Index(index) => format!("index {index}: "),
            Scope::Local(what) => format!("{what}: "),
            Scope::Server => String::new(),
        };
        let seconds = recovered.saturating_duration_since(self.since).as_secs_f64();
        let waited: u64 = self.members.values().flatten().sum();
        let waited = if waited > 0 { format!("; {waited} documents waited") } else { String::new() };
        format!("{what}it works again after {seconds:.1} s{waited}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_trouble_is_two_lines_however_often_it_fails() {
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        let flow = (&Scope::Server, "flow");
        let event = (&Scope::Server, "event");
        let first = troubles.note_failure(flow, Cause::Unavailable, "http://one: refused", start);
        assert_eq!(first.as_deref(), Some("http://one: refused"));
        for second in 1..60 {
            assert_eq!(
                troubles.note_failure(event, Cause::Unavailable, "http://one: reset", start + second * SECOND),
                None
            );
            assert!(troubles.take_ended(start + second * SECOND, false).is_empty());
        }
        assert_eq!(troubles.status().as_deref(), Some("http://one: reset"), "the last reason");
        troubles.note_success(flow, 12, start + 60 * SECOND);
        assert!(troubles.take_ended(start + 90 * SECOND, true).is_empty(), "the other still fails");
        troubles.note_success(event, 3, start + 90 * SECOND);
        assert!(troubles.take_ended(start + 92 * SECOND, false).is_empty(), "it may come back");
        assert_eq!(troubles.len(), 1);
        let ended = troubles.take_ended(start + 95 * SECOND, false);
        assert_eq!(ended, ["it works again after 90.0 s; 15 documents waited"]);
        assert_eq!((troubles.len(), troubles.status()), (0, None));
    }

    #[test]
    fn repeated_failures_are_one_trouble() {
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        let member = (&Scope::Local("writing"), "");
        let mut lines = 0;
        for round in 0..100 {
            let now = start + round * 2 * SECOND;
            lines += usize::from(troubles.note_failure(member, Cause::System, "no room", now).is_some());
            troubles.note_success(member, 0, now + SECOND);
            lines += troubles.take_ended(now + SECOND, false).len();
        }
        assert_eq!(lines, 1);
        assert_eq!(troubles.take_ended(start + 300 * SECOND, false), ["writing: it works again after 199.0 s"]);
    }

    #[test]
    fn a_success_for_one_index_ends_only_the_trouble_of_that_index() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        let [flow, event] = ["flow", "event"].map(|name| Scope::Index(name.to_owned()));
        troubles.note_failure((&flow, "all"), Cause::Refused(403), "no", now);
        troubles.note_failure((&event, "all"), Cause::Refused(403), "no", now);
        troubles.note_success((&event, "all"), 1, now);
        assert_eq!(troubles.take_ended(now, true), ["index event: it works again after 0.0 s; 1 documents waited"]);
        assert_eq!(troubles.status().as_deref(), Some("index flow: no"));
    }

    #[test]
    fn each_cause_is_logged_once_for_each_index() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        let [flow, event] = ["flow", "event"].map(|name| Scope::Index(name.to_owned()));
        assert_eq!(
            troubles.note_failure((&flow, "flow"), Cause::Refused(403), "no", now).as_deref(),
            Some("index flow: no")
        );
        assert_eq!(
            troubles.note_failure((&event, "event"), Cause::Refused(403), "no", now).as_deref(),
            Some("index event: no")
        );
        let is_logged = |status| troubles.note_failure((&flow, "flow"), Cause::Refused(status), "no", now).is_some();
        assert_eq!((400..500).map(is_logged).filter(|logged| *logged).count(), MAX_CAUSES - 1);
        troubles.note_success((&flow, "flow"), 5, now);
        assert_eq!(troubles.take_ended(now, true), ["index flow: it works again after 0.0 s; 5 documents waited"]);
        assert_eq!(troubles.status().as_deref(), Some("index event: no"));
    }
}
