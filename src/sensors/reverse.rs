//! Names of remote hosts: what is known, what is being asked, and what waits for the answer.
//!
//! Nothing here asks anybody: [`ReverseNames::take_wanted`] says what should be asked, and whoever asks comes back with
//! [`ReverseNames::answer`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long anything waits for a name at most.
const PATIENCE: Duration = Duration::from_secs(2);
/// A domain name is no longer (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 253;

/// How much is remembered, and how much may wait.
#[derive(Debug, Clone, Copy)]
pub struct ReverseLimits {
    /// Answers at most.
    pub answers: usize,
    /// Things that wait at most.
    pub waiting: usize,
}

impl Default for ReverseLimits {
    fn default() -> Self {
        Self { answers: 16_384, waiting: 16_384 }
    }
}

/// Answers, and things that wait for them: those for one address in the order in which they came.
#[derive(Debug)]
pub struct ReverseNames<T> {
    answers: HashMap<IpAddr, Answer>,
    /// Asked, and not answered.
    asked: HashSet<IpAddr>,
    /// To be asked.
    wanted: Vec<IpAddr>,
    waiting: HashMap<IpAddr, Vec<T>>,
    /// The addresses of `waiting`, by the end of patience.
    deadlines: VecDeque<(Instant, IpAddr)>,
    waiting_count: usize,
    limits: ReverseLimits,
    /// Things that went on without an answer, because it took too long or too many others waited.
    pub unanswered: u64,
}

#[derive(Debug)]
struct Answer {
    /// `None`: it has no name.
    name: Option<Arc<str>>,
    at: Instant,
}

impl<T> ReverseNames<T> {
    /// Nothing is known.
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

    /// What is known of an address, if that is younger than `ttl`; `Some(None)`: that it has no name.
    pub fn find(&self, ip: IpAddr, ttl: Duration, now: Instant) -> Option<Option<Arc<str>>> {
        let answer = self.answers.get(&ip).filter(|answer| now.saturating_duration_since(answer.at) < ttl)?;
        Some(answer.name.clone())
    }

    /// Whether anything waits for the name of this address.
    pub fn is_awaited(&self, ip: IpAddr) -> bool {
        self.waiting.contains_key(&ip)
    }

    /// Lets a thing wait for the name of an address. Returns what must go on without a name to make room for it.
    pub fn wait(&mut self, ip: IpAddr, thing: T, now: Instant) -> Vec<T> {
        let others = if self.waiting_count >= self.limits.waiting { self.give_up_first() } else { Vec::new() };
        self.waiting_count += 1;
        let things = self.waiting.entry(ip).or_default();
        if things.is_empty() {
            self.deadlines.push_back((now + PATIENCE, ip));
            if self.asked.insert(ip) {
                self.wanted.push(ip);
            }
        }
        things.push(thing);
        others
    }

    /// The addresses that should be asked for, each once until it is answered.
    pub fn take_wanted(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.wanted)
    }

    /// An address has this name, or none. Returns what waited for it, and the name as it may be used: what is no host
    /// name is none, for whoever owns an address writes there what they like.
    pub fn answer(&mut self, ip: IpAddr, name: Option<String>, now: Instant) -> (Vec<T>, Option<Arc<str>>) {
        let name: Option<Arc<str>> = name.as_deref().and_then(host_name).map(Arc::from);
        self.make_room();
        self.answers.insert(ip, Answer { name: name.clone(), at: now });
        (self.refuse(ip), name)
    }

    /// An address could not be asked for. Returns what waited for it.
    pub fn refuse(&mut self, ip: IpAddr) -> Vec<T> {
        self.asked.remove(&ip);
        self.take(ip)
    }

    /// What has waited too long, and goes on without a name. A late answer is remembered all the same.
    pub fn give_up(&mut self, now: Instant) -> Vec<T> {
        let mut things = Vec::new();
        while self.deadlines.front().is_some_and(|(deadline, _)| *deadline <= now) {
            things.append(&mut self.give_up_first());
        }
        things
    }

    /// Everything goes on.
    pub fn give_up_all(&mut self) -> Vec<T> {
        let mut things = Vec::new();
        while !self.deadlines.is_empty() {
            things.append(&mut self.give_up_first());
        }
        things
    }

    fn give_up_first(&mut self) -> Vec<T> {
        let Some((_, ip)) = self.deadlines.front().copied() else { return Vec::new() };
        let things = self.take(ip);
        self.unanswered += things.len() as u64;
        things
    }

    fn take(&mut self, ip: IpAddr) -> Vec<T> {
        let things = self.waiting.remove(&ip).unwrap_or_default();
        if !things.is_empty() {
            self.deadlines.retain(|(_, other)| *other != ip);
        }
        self.waiting_count -= things.len();
        things
    }

    /// A host that talks to more addresses than fit pays with look-ups, not with memory.
    fn make_room(&mut self) {
        if self.answers.len() >= self.limits.answers {
            self.answers.clear();
        }
    }
}

/// A name that says nothing but a name: letters, digits, `-`, `_` and `.`, not an address, without the root's dot.
fn host_name(text: &str) -> Option<&str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_sound = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let is_name = is_sound && !name.is_empty() && name.len() <= LONGEST_NAME && name != "-";
    (is_name && name.parse::<IpAddr>().is_err()).then_some(name)
}

/// Whether no server outside this host's own networks can know a name for it: private, loopback, link-local,
/// multicast, broadcast and unspecified addresses.
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
    fn an_address_is_asked_for_once_and_all_that_waits_goes_on_in_order() {
        let (mut names, now) = names(9);
        for (thing, last) in [(1, 1), (2, 2), (3, 1)] {
            assert!(names.wait(ip(last), thing, now).is_empty());
        }
        assert_eq!(names.take_wanted(), [ip(1), ip(2)]);
        assert!(names.take_wanted().is_empty() && names.is_awaited(ip(1)));
        assert_eq!(names.answer(ip(1), Some("a.example".into()), now), (vec![1, 3], Some("a.example".into())));
        assert!(!names.is_awaited(ip(1)) && names.is_awaited(ip(2)));
    }

    #[test]
    fn answers_are_kept_for_their_time_misses_too() {
        let (mut names, now) = names(9);
        names.answer(ip(1), Some("a.example.".into()), now);
        names.answer(ip(2), None, now);
        assert_eq!(names.find(ip(1), TTL, now), Some(Some("a.example".into())), "without the root's dot");
        assert_eq!(names.find(ip(2), TTL, now + TTL / 2), Some(None));
        assert_eq!(names.find(ip(2), TTL, now + TTL), None, "too old");
        assert_eq!(names.find(ip(3), TTL, now), None, "never asked");
    }

    #[test]
    fn nothing_waits_for_ever_and_a_late_answer_still_counts() {
        let (mut names, now) = names(9);
        names.wait(ip(1), 1, now);
        names.wait(ip(2), 2, now + PATIENCE / 2);
        assert_eq!(names.take_wanted().len(), 2);
        assert!(names.give_up(now + PATIENCE / 2).is_empty());
        assert_eq!(names.give_up(now + PATIENCE), [1]);
        assert_eq!(names.unanswered, 1);
        names.wait(ip(1), 3, now + PATIENCE);
        assert!(names.take_wanted().is_empty(), "the first question is still open");
        assert_eq!(names.answer(ip(1), None, now + PATIENCE).0, [3]);
        assert_eq!(names.give_up_all(), [2]);
    }

    #[test]
    fn the_table_of_those_who_wait_is_bounded() {
        let (mut names, now) = names(2);
        assert!(names.wait(ip(1), 1, now).is_empty());
        assert!(names.wait(ip(2), 2, now).is_empty());
        assert_eq!(names.wait(ip(3), 3, now), [1], "who waited longest goes on");
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
    fn what_could_not_be_asked_may_be_asked_again() {
        let (mut names, now) = names(2);
        names.wait(ip(1), 1, now);
        names.take_wanted();
        assert_eq!(names.refuse(ip(1)), [1]);
        assert_eq!(names.find(ip(1), TTL, now), None);
        names.wait(ip(1), 2, now);
        assert_eq!(names.take_wanted(), [ip(1)]);
    }

    #[test]
    fn only_host_names_are_names() {
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
    fn routable_is_what_the_world_can_name() {
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
