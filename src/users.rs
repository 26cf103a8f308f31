//! Names of users and groups.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User};

/// Gives names to user and group ids.
pub trait Names {
    /// The name of a user, `None` where it has none.
    fn user(&self, uid: u32) -> Option<Arc<str>>;
    /// The name of a group, `None` where it has none.
    fn group(&self, gid: u32) -> Option<Arc<str>>;
}

/// Knows no names.
impl Names for () {
    fn user(&self, _uid: u32) -> Option<Arc<str>> {
        None
    }

    fn group(&self, _gid: u32) -> Option<Arc<str>> {
        None
    }
}

/// The names that this host's user database gives, kept for a while.
///
/// A look-up may read files or ask a directory server (whatever `nsswitch.conf` says; a static binary reads
/// `/etc/passwd` and `/etc/group` only), so answers are kept for a minute, misses too.
#[derive(Debug, Default)]
pub struct Users {
    users: RefCell<Cache>,
    groups: RefCell<Cache>,
}

impl Users {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The names as they are at `now`.
    pub fn at(&self, now: Instant) -> UsersAt<'_> {
        UsersAt { users: self, now }
    }
}

/// [`Users`] at one moment.
#[derive(Debug, Clone, Copy)]
pub struct UsersAt<'a> {
    users: &'a Users,
    now: Instant,
}

impl Names for UsersAt<'_> {
    fn user(&self, uid: u32) -> Option<Arc<str>> {
        self.users.users.borrow_mut().get(uid, self.now, |uid| Some(User::from_uid(Uid::from_raw(uid)).ok()??.name))
    }

    fn group(&self, gid: u32) -> Option<Arc<str>> {
        self.users.groups.borrow_mut().get(gid, self.now, |gid| Some(Group::from_gid(Gid::from_raw(gid)).ok()??.name))
    }
}

/// A bounded table of answers with an age.
#[derive(Debug, Default)]
struct Cache {
    answers: HashMap<u32, Answer>,
}

#[derive(Debug)]
struct Answer {
    name: Option<Arc<str>>,
    asked: Instant,
}

impl Cache {
    const CAPACITY: usize = 4096;
    const LIFETIME: Duration = Duration::from_secs(60);

    fn get(&mut self, id: u32, now: Instant, ask: impl FnOnce(u32) -> Option<String>) -> Option<Arc<str>> {
        if let Some(answer) = self.answers.get(&id).filter(|answer| answer.is_fresh(now)) {
            return answer.name.clone();
        }
        self.make_room(now);
        let name: Option<Arc<str>> = ask(id).filter(|name| !name.is_empty()).map(Arc::from);
        self.answers.insert(id, Answer { name: name.clone(), asked: now });
        name
    }

    /// A host with more live ids than fit pays with look-ups, not with memory.
    fn make_room(&mut self, now: Instant) {
        if self.answers.len() >= Self::CAPACITY {
            self.answers.retain(|_, answer| answer.is_fresh(now));
        }
        if self.answers.len() >= Self::CAPACITY {
            self.answers.clear();
        }
    }
}

impl Answer {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.asked) < Cache::LIFETIME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_a_name_and_the_last_id_has_none() {
        let users = Users::new();
        let names = users.at(Instant::now());
        assert_eq!(names.user(0).as_deref(), Some("root"));
        assert_eq!(names.group(0).as_deref(), Some("root"));
        assert_eq!(names.user(u32::MAX - 7), None);
    }

    #[test]
    fn an_answer_is_asked_for_once_a_minute_misses_too() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        let mut asks = |seconds, id| {
            let mut asked = false;
            let _ = cache.get(id, start + Duration::from_secs(seconds), |id| {
                asked = true;
                (id == 1).then(|| "one".to_owned())
            });
            asked
        };
        assert!(asks(0, 1), "not known yet");
        assert!(!asks(59, 1), "still fresh");
        assert!(asks(60, 1), "a minute old");
        assert!(asks(61, 2), "not known yet");
        assert!(!asks(62, 2), "known to have no name");
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for id in 0..3 * u32::try_from(Cache::CAPACITY).unwrap() {
            assert_eq!(cache.get(id, now, |id| Some(id.to_string())).as_deref(), Some(&*id.to_string()));
            assert!(cache.answers.len() <= Cache::CAPACITY);
        }
    }

    #[test]
    fn an_empty_name_is_none() {
        assert_eq!(Cache::default().get(1, Instant::now(), |_| Some(String::new())), None);
    }
}
