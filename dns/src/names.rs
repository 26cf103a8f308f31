//! For each owner, the names that resolved to an address, and when.
//!
//! The caller chooses what an owner is: a process, a container, a client's address. An owner can
//! [inherit](KnownNames::inherit) the names of another. The two share one table until either learns a new name.
//!
//! Several names may resolve to one address. The latest answer counts. Earlier answers are kept for a while, so that
//! the name at an earlier time can still be found.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::Address;
use crate::lru::{Index, LruTable};

type Hasher = foldhash::fast::RandomState;

/// How long an answer is kept after a later one replaced it, in nanoseconds.
const SUPERSEDED_KEPT_FOR: u64 = 2_000_000_000;
/// How many answers are kept for one address of one owner.
const MAX_ANSWERS: usize = 64;
/// How many intervals with missed answers are kept. If there are more, the oldest two are merged.
const MAX_GAPS: usize = 8;

/// How many names are kept, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamesOptions {
    /// How many owners may have names. One more evicts the owner that learned or inherited names longest
    /// ago. Default 8192.
    pub owners: usize,
    /// How many addresses one owner may have names for. One more evicts the address that was learned longest ago.
    /// Default 1024.
    pub per_owner: usize,
    /// How many names all owners may have together, shared ones counted once. If there are more, whole owners are
    /// evicted. A name takes about 100 bytes besides its text. Default 65,536.
    pub total: usize,
    /// For how long an answer with a shorter time to live is kept. Programs use addresses for longer than the time to
    /// live allows. Default 60 s.
    pub ttl_floor: Duration,
    /// For how long an answer with a longer time to live is kept. Default 1 day.
    pub ttl_ceiling: Duration,
}

impl Default for NamesOptions {
    fn default() -> Self {
        Self {
            owners: 8192,
            per_owner: 1024,
            total: 65_536,
            ttl_floor: Duration::from_secs(60),
            ttl_ceiling: Duration::from_secs(86_400),
        }
    }
}

/// What was forgotten, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamesCounters {
    /// Owners that were evicted to make room for others.
    pub evicted_owners: u64,
    /// Addresses that were evicted to make room for others of the same owner.
    pub evicted_addresses: u64,
    /// Addresses that were forgotten because all their answers had expired.
    pub expired_addresses: u64,
}

/// For each owner, the names that resolved to an address.
///
/// ```
/// use std::sync::Arc;
/// use socktrail_dns::{Address, KnownNames, NamesOptions};
///
/// let mut names: KnownNames<u32> = KnownNames::new(&NamesOptions::default());
/// let ip = "192.0.2.1".parse().unwrap();
/// names.learn(&1, &Arc::from("example.org"), Address { ip, ttl: 300 }, 0);
/// names.inherit(&1, &2);
/// assert_eq!(names.find(&2, ip, 1_000_000_000).unwrap().as_ref(), "example.org");
/// assert!(names.find(&2, ip, 301_000_000_000).is_none());
/// ```
#[derive(Debug)]
pub struct KnownNames<K> {
    owners: LruTable<Owner<K>>,
    hasher: Hasher,
    options: NamesOptions,
    /// How many names all tables hold, shared tables counted once.
    total: usize,
    /// Intervals in which answers may have been missed, the oldest first.
    gaps: VecDeque<RangeInclusive<u64>>,
    counters: NamesCounters,
}

#[derive(Debug)]
struct Owner<K> {
    key: K,
    table: Arc<Table>,
}

/// An address, and the name in the latest answer that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownAddress<'a> {
    /// The address.
    pub ip: IpAddr,
    /// The name.
    pub name: &'a Arc<str>,
    /// When the name expires, in nanoseconds of the caller's clock.
    pub until: u64,
}

/// The names of one owner, or of several that share them by inheritance.
#[derive(Clone, Debug)]
struct Table {
    addresses: LruTable<AddressNames>,
    /// How many names all addresses have.
    names: usize,
    /// No address expires before this time.
    earliest_expiry: u64,
}

/// The names of one address.
#[derive(Clone, Debug)]
struct AddressNames {
    ip: IpAddr,
    latest: Answer,
    /// Earlier answers, the oldest first.
    superseded: Vec<Answer>,
}

#[derive(Clone, Debug)]
struct Answer {
    name: Arc<str>,
    /// When the answer arrived, in nanoseconds.
    since: u64,
    /// The last nanosecond at which the answer counts.
    until: u64,
}

impl<K: Hash + Eq + Clone> KnownNames<K> {
    /// Creates an empty table.
    pub fn new(options: &NamesOptions) -> Self {
        Self {
            owners: LruTable::default(),
            hasher: Hasher::default(),
            options: options.clone(),
            total: 0,
            gaps: VecDeque::new(),
            counters: NamesCounters::default(),
        }
    }

    /// Records an answer that an owner got at `now`. The name counts for the address until a later answer replaces it or it
    /// expires.
    ///
    /// `now` is in nanoseconds of any clock, the same one in all calls. Answers may be recorded out of order.
    pub fn learn(&mut self, owner: &K, name: &Arc<str>, address: Address, now: u64) {
        let index = self.touch_or_insert(owner);
        let answer =
            Answer { name: Arc::clone(name), since: now, until: now.saturating_add(self.lifetime(address.ttl)) };
        let hash = self.hasher.hash_one(address.ip);
        let table = unshare(&mut self.owners.get_mut(index).table, &mut self.total);
        let before = table.names;
        table.earliest_expiry = table.earliest_expiry.min(answer.until);
        match table.index(hash, address.ip) {
            Some(index) => {
                let address = table.addresses.get_mut(index);
                table.names -= address.names();
                address.learn(answer);
                table.names += address.names();
                table.addresses.touch(index);
            }
            None => {
                if table.addresses.len() >= self.options.per_owner.max(1)
                    && let Some(oldest) = table.addresses.oldest()
                {
                    table.names -= table.addresses.remove(oldest).names();
                    self.counters.evicted_addresses += 1;
                }
                table.addresses.insert(hash, AddressNames { ip: address.ip, latest: answer, superseded: Vec::new() });
                table.names += 1;
            }
        }
        self.total = self.total - before + table.names;
        self.shrink(owner);
    }

    /// Answers between `from` and `to` may have been missed, so names that were learned before may be out of date.
    pub fn missed(&mut self, from: u64, to: u64) {
        if self.gaps.len() >= MAX_GAPS
            && let (Some(oldest), Some(next)) = (self.gaps.pop_front(), self.gaps.front_mut())
        {
            *next = *oldest.start()..=*next.end();
        }
        self.gaps.push_back(from..=to.max(from));
    }

    /// The owner's name for an address at the time `at`: the name in the latest answer that arrived by then. `None` if there is
    /// no such answer, if it had expired, or if later answers may have been missed. Does not allocate.
    pub fn find(&self, owner: &K, ip: IpAddr, at: u64) -> Option<&Arc<str>> {
        self.find_with_time(owner, ip, at).map(|(name, _)| name)
    }

    /// Like [`find`](Self::find), together with the time of the answer in nanoseconds.
    pub fn find_with_time(&self, owner: &K, ip: IpAddr, at: u64) -> Option<(&Arc<str>, u64)> {
        let ip = ip.to_canonical();
        let table = &self.owners.get(self.index(owner)?).table;
        let address = table.addresses.get(table.index(self.hasher.hash_one(ip), ip)?);
        let answer = address.at(at).filter(|answer| at <= answer.until)?;
        let is_certain = self.gaps.iter().all(|gap| at < *gap.start() || *gap.end() < answer.since);
        is_certain.then_some((&answer.name, answer.since))
    }

    /// The addresses that an owner has names for, the one that was learned longest ago first, each with its latest
    /// name.
    pub fn known_to(&self, owner: &K) -> impl Iterator<Item = KnownAddress<'_>> {
        let table = self.index(owner).map(|index| &self.owners.get(index).table);
        table.into_iter().flat_map(|table| table.addresses.iter()).map(|address| KnownAddress {
            ip: address.ip,
            name: &address.latest.name,
            until: address.latest.until,
        })
    }

    /// Replaces the child's names with the parent's. What one of them learns afterwards, the other does not. This is cheap:
    /// names are only copied once one of the two learns a new one.
    pub fn inherit(&mut self, parent: &K, child: &K) {
        if parent == child {
            return;
        }
        self.forget(child);
        let Some(parent) = self.index(parent) else { return };
        let table = Arc::clone(&self.owners.get(parent).table);
        self.insert(Owner { key: child.clone(), table });
    }

    /// Forgets an owner and its names.
    pub fn forget(&mut self, owner: &K) {
        if let Some(index) = self.index(owner) {
            self.remove(index);
        }
    }

    /// Forgets addresses whose answers have expired. It visits every owner, but searches only the names of those where
    /// something has expired. Calling it every ten seconds or so is often enough.
    pub fn expire(&mut self, now: u64) {
        let mut next = self.owners.oldest();
        while let Some(index) = next {
            next = self.owners.newer(index);
            self.expire_owner(index, now);
        }
    }

    /// How many owners have names.
    pub fn owners(&self) -> usize {
        self.owners.len()
    }

    /// How many names all owners have together, shared ones counted once.
    pub fn known_names(&self) -> usize {
        self.total
    }

    /// How many owners and addresses were forgotten.
    pub fn counters(&self) -> NamesCounters {
        self.counters
    }

    /// For how many nanoseconds an answer is kept.
    fn lifetime(&self, ttl: u32) -> u64 {
        let NamesOptions { ttl_floor, ttl_ceiling, .. } = self.options;
        let kept = Duration::from_secs(ttl.into()).max(ttl_floor).min(ttl_ceiling);
        u64::try_from(kept.as_nanos()).unwrap_or(u64::MAX)
    }

    fn index(&self, owner: &K) -> Option<Index> {
        self.owners.find(self.hasher.hash_one(owner), |other| other.key == *owner)
    }

    /// The index of an owner that is about to learn a name. It becomes the most recent one.
    fn touch_or_insert(&mut self, owner: &K) -> Index {
        match self.index(owner) {
            Some(index) => {
                self.owners.touch(index);
                index
            }
            None => self.insert(Owner { key: owner.clone(), table: Arc::default() }),
        }
    }

    fn insert(&mut self, owner: Owner<K>) -> Index {
        if self.owners.len() >= self.options.owners.max(1) {
            self.evict();
        }
        self.owners.insert(self.hasher.hash_one(&owner.key), owner)
    }

    /// Evicts owners other than `spared` until the total is within its bound.
    fn shrink(&mut self, spared: &K) {
        while self.total > self.options.total.max(self.options.per_owner) {
            match self.owners.oldest() {
                Some(oldest) if self.owners.get(oldest).key != *spared => self.evict(),
                _ => break,
            }
        }
    }

    fn evict(&mut self) {
        if let Some(oldest) = self.owners.oldest() {
            self.remove(oldest);
            self.counters.evicted_owners += 1;
        }
    }

    fn remove(&mut self, index: Index) {
        if let Some(table) = Arc::into_inner(self.owners.remove(index).table) {
            self.total -= table.names;
        }
    }

    fn expire_owner(&mut self, index: Index, now: u64) {
        let table = &mut self.owners.get_mut(index).table;
        if now <= table.earliest_expiry {
            return;
        }
        if let Some(table) = Arc::get_mut(table) {
            let (addresses, names) = (table.addresses.len(), table.names);
            table.addresses.retain(|address| now <= address.until());
            table.names = table.addresses.iter().map(AddressNames::names).sum();
            table.earliest_expiry = table.addresses.iter().map(AddressNames::until).min().unwrap_or(u64::MAX);
            self.total -= names - table.names;
            self.counters.expired_addresses += (addresses - table.addresses.len()) as u64;
        }
        // A shared table is not copied just to remove expired addresses from it. Each owner drops it when all its
        // addresses have expired.
        if self.owners.get(index).table.addresses.iter().all(|address| now > address.until()) {
            self.remove(index);
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { addresses: LruTable::default(), names: 0, earliest_expiry: u64::MAX }
    }
}

impl Table {
    fn index(&self, hash: u64, ip: IpAddr) -> Option<Index> {
        self.addresses.find(hash, |address| address.ip == ip)
    }
}

impl AddressNames {
    /// How many names are kept for the address: one for each answer.
    fn names(&self) -> usize {
        1 + self.superseded.len()
    }

    /// When the last of the answers expires.
    fn until(&self) -> u64 {
        self.superseded.iter().map(|answer| answer.until).fold(self.latest.until, u64::max)
    }

    /// The latest answer that arrived at `time` or earlier.
    fn at(&self, time: u64) -> Option<&Answer> {
        let newest_first = std::iter::once(&self.latest).chain(self.superseded.iter().rev());
        newest_first.into_iter().find(|answer| answer.since <= time)
    }

    /// Inserts an answer in order of arrival.
    fn learn(&mut self, answer: Answer) {
        if answer.since >= self.latest.since {
            let before = std::mem::replace(&mut self.latest, answer);
            if before.since < self.latest.since {
                self.superseded.push(before);
            }
        } else if answer.since >= self.oldest_needed() {
            let index = self.superseded.partition_point(|other| other.since <= answer.since);
            self.superseded.insert(index, answer);
        }
        self.forget_superseded();
    }

    /// Of the answers that arrived up to this time, only the latest is kept.
    fn oldest_needed(&self) -> u64 {
        self.latest.since.saturating_sub(SUPERSEDED_KEPT_FOR)
    }

    /// Forgets answers that were replaced long ago, and the oldest if there are too many.
    fn forget_superseded(&mut self) {
        let needed = self.superseded.iter().rposition(|answer| answer.since <= self.oldest_needed()).unwrap_or(0);
        let too_many = self.names().saturating_sub(MAX_ANSWERS);
        self.superseded.drain(..needed.max(too_many));
        if self.superseded.is_empty() {
            self.superseded = Vec::new();
        }
    }
}

/// Copies a shared table, so that one of its owners can change it. The copied names add to the total.
fn unshare<'a>(table: &'a mut Arc<Table>, total: &mut usize) -> &'a mut Table {
    if Arc::get_mut(table).is_none() {
        *total += table.names;
    }
    Arc::make_mut(table)
}

#[cfg(test)]
mod tests;
