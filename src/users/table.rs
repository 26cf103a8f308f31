//! A bounded cache of names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Answer, Id};

/// The maximum number of ids.
const CAPACITY: usize = 8192;
/// How long an answer is used before the id is looked up again. This includes the answer that there is no name.
const FRESH: Duration = Duration::from_secs(60);
/// How long to wait before the next lookup if no source could answer.
const RETRY: Duration = Duration::from_secs(10);
/// How long a name is used without being confirmed, because an id may be reassigned to another user.
const LIFETIME: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<Id, Entry>,
}

#[derive(Debug)]
struct Entry {
    name: Option<Arc<str>>,
    /// When a source last confirmed the name.
    learned: Instant,
    /// When to look it up again.
    due: Instant,
}

impl Table {
    /// Whether it is time to look up an id.
    pub(super) fn is_due(&self, id: Id, now: Instant) -> bool {
        self.entries.get(&id).is_none_or(|entry| now >= entry.due)
    }

    /// The name of an id, if it is known and not too old.
    pub(super) fn name(&self, id: Id, now: Instant) -> Option<Arc<str>> {
        let entry = self.entries.get(&id)?;
        entry.name.clone().filter(|_| now.saturating_duration_since(entry.learned) < LIFETIME)
    }

    /// Notes that an id is being looked up. Until the answer arrives, the known name is used.
    pub(super) fn wait_for(&mut self, id: Id, now: Instant) {
        self.entry(id, now).due = now + FRESH;
    }

    /// Stores an answer. After a failure, the known name stays.
    pub(super) fn learn(&mut self, id: Id, answer: Answer, now: Instant) {
        let name = match answer {
            Answer::Named(name) => Some(Arc::from(name)),
            Answer::Unknown => None,
            Answer::Failed => {
                self.entry(id, now).due = now + RETRY;
                return;
            }
        };
        *self.entry(id, now) = Entry { name, learned: now, due: now + FRESH };
    }

    fn entry(&mut self, id: Id, now: Instant) -> &mut Entry {
        if !self.entries.contains_key(&id) {
            self.make_room(now);
        }
        self.entries.entry(id).or_insert(Entry { name: None, learned: now, due: now })
    }

    /// Makes room for another id. A host with more ids than fit costs more lookups, not more memory. Ids without a name are
    /// removed first, because any user with a user namespace can have thousands of them.
    fn make_room(&mut self, now: Instant) {
        if self.entries.len() >= CAPACITY {
            self.entries.retain(|_, entry| now < entry.due);
        }
        if self.entries.len() >= CAPACITY {
            self.entries.retain(|_, entry| entry.name.is_some());
        }
        if self.entries.len() >= CAPACITY {
            self.entries.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id::User(1);

    fn named(name: &str) -> Answer {
        Answer::Named(name.to_owned())
    }

    #[test]
    fn every_answer_is_renewed_once_a_minute() {
        for answer in [named("one"), Answer::Unknown] {
            let (mut table, start) = (Table::default(), Instant::now());
            let due = |table: &Table, seconds| table.is_due(ID, start + Duration::from_secs(seconds));
            assert!(due(&table, 0), "not known yet");
            table.learn(ID, answer, start);
            assert!(!due(&table, 59), "still fresh");
            assert!(due(&table, 60), "a minute old");
            table.wait_for(ID, start + Duration::from_secs(60));
            assert!(!due(&table, 61), "being looked up");
            assert!(table.is_due(Id::Group(1), start), "groups are not users");
        }
    }

    #[test]
    fn a_name_outlives_sources_that_fail_but_not_for_long() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.learn(ID, named("one"), start);
        let at = |seconds| start + Duration::from_secs(seconds);
        table.learn(ID, Answer::Failed, at(60));
        assert_eq!((table.is_due(ID, at(69)), table.is_due(ID, at(70))), (false, true));
        assert_eq!(table.name(ID, at(299)).as_deref(), Some("one"));
        assert_eq!(table.name(ID, at(300)), None);
        table.learn(ID, named("two"), at(300));
        assert_eq!(table.name(ID, at(301)).as_deref(), Some("two"));
        table.learn(ID, Answer::Unknown, at(302));
        assert_eq!(table.name(ID, at(303)), None, "a removed user has no name");
    }

    #[test]
    fn the_table_is_bounded_and_ids_without_a_name_go_first() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.learn(ID, named("one"), now);
        for id in 0..3 * u32::try_from(CAPACITY).unwrap() {
            table.wait_for(Id::Group(id), now);
            assert!(table.entries.len() <= CAPACITY);
        }
        assert_eq!(table.name(ID, now).as_deref(), Some("one"));
        for id in 0..3 * u32::try_from(CAPACITY).unwrap() {
            table.learn(Id::Group(id), named("g"), now);
            assert!(table.entries.len() <= CAPACITY);
        }
    }
}
