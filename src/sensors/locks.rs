//! Event ids that are not reported again until a user unlocks them.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::pattern::{BadPattern, Pattern};

/// The locked ids. When the table is full, the oldest is removed.
#[derive(Debug)]
pub struct Locks {
    locked: HashSet<Arc<str>>,
    /// The same ids, the oldest first.
    order: VecDeque<Arc<str>>,
    limit: usize,
    /// How many were removed before they were unlocked.
    pub evicted: u64,
}

impl Locks {
    /// A table for up to `limit` ids.
    pub fn new(limit: usize) -> Self {
        Self { locked: HashSet::new(), order: VecDeque::new(), limit, evicted: 0 }
    }

    /// Locks an id. Returns false if it was locked already.
    pub fn lock(&mut self, eid: &str) -> bool {
        if self.locked.contains(eid) {
            return false;
        }
        if self.order.len() >= self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.locked.remove(&oldest);
            self.evicted += 1;
        }
        let eid: Arc<str> = eid.into();
        self.order.push_back(Arc::clone(&eid));
        self.locked.insert(eid);
        true
    }

    /// Unlocks the id `text`, or else all ids that the pattern `text` matches. Returns how many were locked.
    ///
    /// # Errors
    /// `text` is neither a locked id nor a pattern.
    pub fn unlock(&mut self, text: &str) -> Result<usize, BadPattern> {
        if self.locked.remove(text) {
            self.order.retain(|eid| **eid != *text);
            return Ok(1);
        }
        let matches = Pattern::new(text)?.matcher();
        let before = self.order.len();
        self.order.retain(|eid| !matches(eid));
        self.locked.retain(|eid| !matches(eid));
        Ok(before - self.order.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: &str = "web|net.socket@x|opened@198.51.100.7:80|0";
    const IPV6: &str = "web|net.socket@x|opened@[2001:db8::1]:80|0";

    #[test]
    fn an_id_is_locked_until_it_is_unlocked() {
        let mut locks = Locks::new(9);
        assert!(locks.lock(HTTP) && !locks.lock(HTTP) && locks.lock(IPV6));
        assert_eq!(locks.unlock(HTTP), Ok(1));
        assert_eq!(locks.unlock(HTTP), Ok(0), "no longer locked");
        assert!(locks.lock(HTTP) && !locks.lock(IPV6), "the other one is still locked");
    }

    #[test]
    fn a_pattern_may_contain_an_ipv6_address() {
        let mut locks = Locks::new(9);
        locks.lock(IPV6);
        assert_eq!(locks.unlock("web|*[2001:db8::1]:80|0"), Ok(1));
    }

    #[test]
    fn patterns_unlock_all_that_they_match() {
        let mut locks = Locks::new(9);
        for eid in [HTTP, IPV6, "db|net.socket|closed@192.0.2.1:1|0"] {
            locks.lock(eid);
        }
        assert_eq!(locks.unlock("web|*"), Ok(2));
        assert!(locks.unlock("[").is_err());
        assert_eq!(locks.unlock("*"), Ok(1));
    }

    #[test]
    fn a_locked_id_is_not_taken_for_a_pattern() {
        let mut locks = Locks::new(9);
        assert!(locks.lock("a*|x") && locks.lock("ab|x"));
        assert_eq!(locks.unlock("a*|x"), Ok(1));
        assert!(!locks.lock("ab|x"));
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut locks = Locks::new(2);
        assert!(locks.lock("a") && locks.lock("b") && locks.lock("c"));
        assert_eq!((locks.evicted, locks.locked.len(), locks.order.len()), (1, 2, 2));
        assert!(locks.lock("a") && !locks.lock("c"));
    }
}
