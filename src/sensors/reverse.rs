//! Names of remote hosts: a cache of answers, lookups in progress, and the changes that wait for them.
//!
//! This module does no I/O: [`ReverseNames::take_wanted`] returns the addresses to look up, and the caller passes the
//! results to [`ReverseNames::answer`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a change waits for a name.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// The maximum length of a domain name as text: 255 octets in a message (RFC 1035, section 2.3.4).
const MAX_NAME_LEN: usize = 253;

/// Limits for names of remote hosts.
#[derive(Debug, Clone, Copy)]
pub struct ReverseLimits {
    /// The maximum number of cached answers.
    pub answers: usize,
    /// The maximum number of waiting items.
    pub waiting: usize,
}

impl Default for ReverseLimits {
    fn default() -> Self {
        Self { answers: 16_384, waiting: 16_384 }
    }
}

/// Answers, and the items that wait for them. Items that wait for the same address keep their order.
#[derive(Debug)]
pub struct ReverseNames<T> {
    answers: HashMap<IpAddr, Answer>,
    /// Addresses that are being looked up.
    asked: HashSet<IpAddr>,
    /// Addresses to look up.
    wanted: Vec<IpAddr>,
    waiting: HashMap<IpAddr, Vec<T>>,
    /// The addresses of `waiting` with the end of their wait, the earliest first.
    deadlines: VecDeque<(Instant, IpAddr)>,
    waiting_count: usize,
    limits: ReverseLimits,
    /// How many items continued without an answer, because it took too long or too many were waiting.
    pub unanswered: u64,
}

#[derive(Debug)]
struct Answer {
    /// `None` if the address has no name.
    name: Option<Arc<str>>,
    at: Instant,
}

impl<T> ReverseNames<T> {
    /// An empty cache.
    pub fn new(limits: ReverseLimits) -> Self {
        Self {
            answers: HashMap::new(),
            asked: HashSet::new(),
            wanted: Vec::new(),
            waiting: HashMap::new(),
            deadlines: VecDeque::new(),
            waiting_count: 0,
            limits,
            unanswered: 0,
        }
    }

    /// The answer for an address, if it is younger than `ttl`; `Some(None)` if the address has no name.
    pub fn find(&self, ip: IpAddr, ttl: Duration, now: Instant) -> Option<Option<Arc<str>>> {
        let answer = self.answers.get(&ip).filter(|answer| now.saturating_duration_since(answer.at) < ttl)?;
        Some(answer.name.clone())
    }

    /// Whether something waits for the name of this address.
    pub fn is_awaited(&self, ip: IpAddr) -> bool {
        self.waiting.contains_key(&ip)
    }

    /// Makes an item wait for the name of an address. Returns the items that had to make room for it: they continue without a
    /// name.
    pub fn wait(&mut self, ip: IpAddr, item: T, now: Instant) -> Vec<T> {
        let others = if self.waiting_count >= self.limits.waiting { self.give_up_first() } else { Vec::new() };
        self.waiting_count += 1;
        let items = self.waiting.entry(ip).or_default();
        if items.is_empty() {
            self.deadlines.push_back((now + MAX_WAIT, ip));
            if self.asked.insert(ip) {
                self.wanted.push(ip);
            }
        }
        items.push(item);
        others
    }

    /// The addresses to look up, each only once until it is answered.
    pub fn take_wanted(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.wanted)
    }

    /// Stores the answer for an address. Returns the items that waited for it, and the name if it is a valid host name. (The owner
    /// of an address can set any text.)
    pub fn answer(&mut self, ip: IpAddr, name: Option<String>, now: Instant) -> (Vec<T>, Option<Arc<str>>) {
        let name: Option<Arc<str>> = name.as_deref().and_then(host_name).map(Arc::from);
        self.make_room();
        self.answers.insert(ip, Answer { name: name.clone(), at: now });
        (self.end_lookup(ip), name)
    }

    /// Ends the lookup of an address. Returns the items that waited for its name.
    pub fn end_lookup(&mut self, ip: IpAddr) -> Vec<T> {
        self.asked.remove(&ip);
        self.take(ip)
    }

    /// Returns the items that have waited too long, and continue without a name. A late answer is still stored.
    pub fn give_up(&mut self, now: Instant) -> Vec<T> {
        let mut items = Vec::new();
        while self.deadlines.front().is_some_and(|(deadline, _)| *deadline <= now) {
            items.append(&mut self.give_up_first());
        }
        items
    }

    /// Returns all waiting items, which continue without a name.
    pub fn give_up_all(&mut self) -> Vec<T> {
        let mut items = Vec::new();
        while !self.deadlines.is_empty() {
            items.append(&mut self.give_up_first());
        }
        items
    }

    fn give_up_first(&mut self) -> Vec<T> {
        let Some((_, ip)) = self.deadlines.front().copied() else { return Vec::new() };
        let items = self.take(ip);
        self.unanswered += items.len() as u64;
        items
    }

    fn take(&mut self, ip: IpAddr) -> Vec<T> {
        let items = self.waiting.remove(&ip).unwrap_or_default();
        if !items.is_empty() {
            self.deadlines.retain(|(_, other)| *other != ip);
        }
        self.waiting_count -= items.len();
        items
    }

    /// Makes room for another answer. A host with more addresses than fit costs more lookups, not more memory.
    fn make_room(&mut self) {
        if self.answers.len() >= self.limits.answers {
            self.answers.clear();
        }
    }
}

/// The name without the root's dot, if it is valid: it has only letters, digits, `-`, `_` and `.`, and is not an address.
fn host_name(text: &str) -> Option<&str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_sound = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let is_name = is_sound && !name.is_empty() && name.len() <= MAX_NAME_LEN && name != "-";
    (is_name && name.parse::<IpAddr>().is_err()).then_some(name)
}

/// Whether only this host's own networks can know a name for it: a private, loopback, link-local, multicast, broadcast or
/// unspecified address.
pub fn is_non_routable(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_unspecified()
        }
        IpAddr::V6(ip) => {
            ip.is_unique_local()
                || ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
                || ip.is_unspecified()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn names(waiting: usize) -> (ReverseNames<u32>, Instant) {
        (ReverseNames::new(ReverseLimits { answers: 3, waiting }), Instant::now())
    }

    #[test]
    fn an_address_is_looked_up_once_and_its_items_keep_their_order() {
        let (mut names, now) = names(9);
        for (item, last) in [(1, 1), (2, 2), (3, 1)] {
            assert!(names.wait(ip(last), item, now).is_empty());
        }
        assert_eq!(names.take_wanted(), [ip(1), ip(2)]);
        assert!(names.take_wanted().is_empty() && names.is_awaited(ip(1)));
        assert_eq!(names.answer(ip(1), Some("a.example".into()), now), (vec![1, 3], Some("a.example".into())));
        assert!(!names.is_awaited(ip(1)) && names.is_awaited(ip(2)));
    }

    #[test]
    fn answers_are_used_until_they_expire_with_and_without_a_name() {
        let (mut names, now) = names(9);
        names.answer(ip(1), Some("a.example.".into()), now);
        names.answer(ip(2), None, now);
        assert_eq!(names.find(ip(1), TTL, now), Some(Some("a.example".into())), "without the root's dot");
        assert_eq!(names.find(ip(2), TTL, now + TTL / 2), Some(None));
        assert_eq!(names.find(ip(2), TTL, now + TTL), None, "too old");
        assert_eq!(names.find(ip(3), TTL, now), None, "never asked");
    }

    #[test]
    fn waits_are_limited_and_a_late_answer_is_stored() {
        let (mut names, now) = names(9);
        names.wait(ip(1), 1, now);
        names.wait(ip(2), 2, now + MAX_WAIT / 2);
        assert_eq!(names.take_wanted().len(), 2);
        assert!(names.give_up(now + MAX_WAIT / 2).is_empty());
        assert_eq!(names.give_up(now + MAX_WAIT), [1]);
        assert_eq!(names.unanswered, 1);
        names.wait(ip(1), 3, now + MAX_WAIT);
        assert!(names.take_wanted().is_empty(), "the first question is still open");
        assert_eq!(names.answer(ip(1), None, now + MAX_WAIT).0, [3]);
        assert_eq!(names.give_up_all(), [2]);
    }

    #[test]
    fn the_table_of_waiting_items_is_bounded() {
        let (mut names, now) = names(2);
        assert!(names.wait(ip(1), 1, now).is_empty());
        assert!(names.wait(ip(2), 2, now).is_empty());
        assert_eq!(names.wait(ip(3), 3, now), [1], "the item that waited longest makes room");
        assert_eq!(names.wait(ip(2), 4, now), [2], "and in order");
        assert_eq!(names.unanswered, 2);
        assert_eq!(names.give_up_all(), [3, 4]);
    }

    #[test]
    fn the_table_of_answers_is_bounded() {
        let (mut names, now) = names(2);
        for last in 0..20 {
            names.answer(ip(last), None, now);
            assert!(names.answers.len() <= 3 && names.find(ip(last), TTL, now).is_some());
        }
    }

    #[test]
    fn failed_look_ups_can_be_repeated() {
        let (mut names, now) = names(2);
        names.wait(ip(1), 1, now);
        names.take_wanted();
        assert_eq!(names.end_lookup(ip(1)), [1]);
        assert_eq!(names.find(ip(1), TTL, now), None);
        names.wait(ip(1), 2, now);
        assert_eq!(names.take_wanted(), [ip(1)]);
    }

    #[test]
    fn invalid_host_names_are_rejected() {
        for good in ["a", "www.example.org", "_srv.x-1.example", "1.2.0.192.in-addr.arpa", "xn--bcher-kva.example"] {
            assert_eq!(host_name(good), Some(good));
        }
        for bad in ["", ".", "-", "a b", "x ESTABLISHED", "\u{1b}[2J", "a\nb", "é.example", "a|b", "192.0.2.1", "::1"]
        {
            assert_eq!(host_name(bad), None, "{bad:?}");
        }
        assert_eq!(host_name(&"a".repeat(254)), None);
    }

    #[test]
    fn private_and_local_addresses_are_non_routable() {
        for local in [
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.2",
            "169.254.1.1",
            "224.0.0.251",
            "255.255.255.255",
            "0.0.0.0",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::fb",
            "::ffff:10.0.0.1",
        ] {
            assert!(is_non_routable(local.parse().unwrap()), "{local}");
        }
        for global in ["8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(!is_non_routable(global.parse().unwrap()), "{global}");
        }
    }
}
