//! DNS answers whose asking process is not known.
//!
//! The query may have been missed, so any process may have asked. From such an answer on, an earlier name of its address is
//! uncertain for every process that knows it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use crate::model::time::MonotonicTime;

/// The maximum number of addresses that are remembered.
pub(super) const MAX_ADDRESSES: usize = 4096;
/// The maximum number of answers that are kept individually for one address. Of older ones, only the time range is kept.
const MAX_ANSWERS: usize = 16;
/// The greatest delay between two captures of one answer. With address translation (NAT), an answer is captured twice: before
/// it is translated, when no flow matches it, and after that, on its way to the process that asked.
const MAX_COPY_DELAY: Duration = Duration::from_millis(100);

/// The parts of a DNS transaction that address translation does not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transaction {
    /// The query's id.
    pub(super) id: u16,
    /// The name asked for.
    pub(super) name: Arc<str>,
}

/// DNS answers whose asking process is not known, by the addresses that they contain.
#[derive(Debug, Default)]
pub(super) struct Unclaimed {
    by_ip: HashMap<IpAddr, Answers, foldhash::fast::RandomState>,
    /// How many addresses were forgotten, because there were too many.
    pub(super) forgotten: u64,
}

/// The answers with one address.
#[derive(Debug, Default)]
struct Answers {
    /// The time range of older answers, which are no longer kept individually.
    older: Option<(MonotonicTime, MonotonicTime)>,
    /// The latest answers.
    recent: VecDeque<(MonotonicTime, Transaction)>,
}

/// Whether there was room for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Room {
    /// There was: nothing was forgotten.
    Enough,
    /// There were too many addresses, so all earlier answers were forgotten.
    Cleared,
}

impl Unclaimed {
    /// Remembers an answer with this address.
    pub(super) fn insert(&mut self, ip: IpAddr, answer: Transaction, time: MonotonicTime) -> Room {
        let room = if self.by_ip.len() >= MAX_ADDRESSES && !self.by_ip.contains_key(&ip) {
            self.forgotten = self.forgotten.saturating_add(self.by_ip.len() as u64);
            self.by_ip.clear();
            Room::Cleared
        } else {
            Room::Enough
        };
        self.by_ip.entry(ip).or_default().insert(answer, time);
        room
    }

    /// A process has asked for this answer. Forgets the copies of it that were captured before.
    pub(super) fn claim(&mut self, ip: IpAddr, answer: &Transaction, time: MonotonicTime) {
        let Some(answers) = self.by_ip.get_mut(&ip) else { return };
        answers.recent.retain(|(other, of)| of != answer || other.abs_diff(time) >= MAX_COPY_DELAY);
        if answers.recent.is_empty() && answers.older.is_none() {
            self.by_ip.remove(&ip);
        }
    }

    /// Whether an answer between `since` and `until` may have given this address another name.
    pub(super) fn may_rename(&self, ip: IpAddr, name: &str, since: MonotonicTime, until: MonotonicTime) -> bool {
        let Some(answers) = self.by_ip.get(&ip) else { return false };
        answers.older.is_some_and(|(first, last)| first <= until && since <= last)
            || answers.recent.iter().any(|(time, of)| (since..=until).contains(time) && *of.name != *name)
    }
}

impl Answers {
    fn insert(&mut self, answer: Transaction, time: MonotonicTime) {
        self.recent.push_back((time, answer));
        if self.recent.len() > MAX_ANSWERS
            && let Some((time, _)) = self.recent.pop_front()
        {
            let first = self.older.map_or(time, |(first, _)| first.min(time));
            let last = self.older.map_or(time, |(_, last)| last.max(time));
            self.older = Some((first, last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(millis * 1_000_000)
    }

    fn of(id: u16, name: &str) -> Transaction {
        Transaction { id, name: Arc::from(name) }
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn every_answer_in_the_interval_counts() {
        let (mut unclaimed, ip) = (Unclaimed::default(), address(1));
        for (time, name) in [(10, "one"), (20, "two"), (30, "two")] {
            assert_eq!(unclaimed.insert(ip, of(time as u16, name), at(time)), Room::Enough);
        }
        assert!(unclaimed.may_rename(ip, "two", at(5), at(25)));
        assert!(!unclaimed.may_rename(ip, "two", at(15), at(25)), "the same name");
        assert!(!unclaimed.may_rename(ip, "two", at(5), at(9)), "before");
        assert!(!unclaimed.may_rename(address(2), "two", at(5), at(25)), "another address");
    }

    #[test]
    fn only_a_copy_is_claimed() {
        let (mut unclaimed, ip) = (Unclaimed::default(), address(1));
        let _ = unclaimed.insert(ip, of(7, "one"), at(10));
        unclaimed.claim(ip, &of(8, "one"), at(11));
        assert!(unclaimed.may_rename(ip, "two", at(5), at(12)), "another query for the same name");
        unclaimed.claim(ip, &of(7, "one"), at(500));
        assert!(unclaimed.may_rename(ip, "two", at(5), at(12)), "much later");
        unclaimed.claim(ip, &of(7, "one"), at(11));
        assert!(!unclaimed.may_rename(ip, "two", at(5), at(12)));
        assert!(unclaimed.by_ip.is_empty());
    }

    #[test]
    fn too_many_answers_are_merged_and_too_many_addresses_forgotten() {
        let (mut unclaimed, ip) = (Unclaimed::default(), address(0));
        for number in 0..=MAX_ANSWERS as u64 {
            let _ = unclaimed.insert(ip, of(1, "one"), at(10 + number));
        }
        assert!(unclaimed.may_rename(ip, "one", at(5), at(10)), "its name is no longer known");
        assert!(!unclaimed.may_rename(ip, "one", at(11), at(100)));
        let rooms = (1..=MAX_ADDRESSES as u32).map(|number| unclaimed.insert(address(number), of(1, "one"), at(50)));
        let rooms: Vec<_> = rooms.collect();
        assert_eq!(rooms.iter().position(|room| *room == Room::Cleared), Some(MAX_ADDRESSES - 1));
        assert_eq!((unclaimed.forgotten, unclaimed.by_ip.len()), (MAX_ADDRESSES as u64, 1));
        assert!(!unclaimed.may_rename(ip, "two", at(5), at(100)));
    }
}
