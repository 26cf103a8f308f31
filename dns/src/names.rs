//! The name by which an owner knows an address, and since when.
//!
//! The owner is whatever the caller says: a process, a container, a client's address. A table that is
//! [inherited](Names::inherit) is shared until one of the two learns something new.
//!
//! Several names may lead to one address. The last answer counts. Earlier answers are kept for a while, because answers
//! may be learned out of order: what an owner knew a moment ago can then still be looked up.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::Address;
use crate::aged::{Aged, Place};

type Hasher = foldhash::fast::RandomState;

/// How long a name is kept after another one replaced it, in nanoseconds.
const KEPT_SUPERSEDED: u64 = 2_000_000_000;
/// How many names for one address an owner may have at different times.
const MOST_VERSIONS: usize = 64;
/// How many gaps are remembered separately; older ones are merged.
const MOST_GAPS: usize = 8;

/// How much is kept, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamesOptions {
    /// Owners that know names; the one that learned nothing for longest gives way. Default 8192.
    pub owners: usize,
    /// Addresses that one owner knows; the one learned longest ago gives way. Default 1024.
    pub per_owner: usize,
    /// Names for addresses that all owners know together, shared ones counted once; whole owners give way. Default
    /// 65,536, about 100 bytes each besides the name.
    pub total: usize,
    /// An answer with a shorter time to live is kept for this long, because programs go on using an address for longer
    /// than they may. Default 60 s.
    pub ttl_floor: Duration,
    /// An answer with a longer time to live is forgotten after this. Default 1 day.
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

/// What gave way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamesCounters {
    /// Owners whose names gave way to other owners'.
    pub evicted_owners: u64,
    /// Addresses that gave way to others of their owner.
    pub evicted_addresses: u64,
    /// Addresses forgotten because their time was over.
    pub expired_addresses: u64,
}

/// The names that owners know addresses by.
///
/// ```
/// use std::sync::Arc;
/// use socktrail_dns::{Address, Names, NamesOptions};
///
/// let mut names: Names<u32> = Names::new(&NamesOptions::default());
/// let ip = "192.0.2.1".parse().unwrap();
/// names.learn(&1, &Arc::from("example.org"), Address { ip, ttl: 300 }, 0);
/// names.inherit(&1, &2);
/// assert_eq!(names.find(&2, ip, 1_000_000_000).unwrap().as_ref(), "example.org");
/// assert!(names.find(&2, ip, 301_000_000_000).is_none());
/// ```
#[derive(Debug)]
pub struct Names<K> {
    owners: Aged<Owner<K>>,
    hasher: Hasher,
    options: NamesOptions,
    /// Names in all tables, shared ones counted once.
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

/// What one owner knows, or several that inherited it.
#[derive(Clone, Debug)]
struct Table {
    known: Aged<Known>,
    /// Names of all addresses.
    names: usize,
    /// No address is forgotten before.
    earliest: u64,
}

/// The names of one address.
#[derive(Clone, Debug)]
struct Known {
    ip: IpAddr,
    latest: Version,
    /// Earlier answers, the oldest first.
    superseded: Vec<Version>,
}

/// One answer.
#[derive(Clone, Debug)]
struct Version {
    name: Arc<str>,
    /// When the answer arrived, in nanoseconds.
    since: u64,
    /// The last moment that it counts, in nanoseconds.
    until: u64,
}

impl<K: Hash + Eq + Clone> Names<K> {
    /// Nobody knows anything.
    pub fn new(options: &NamesOptions) -> Self {
        Self {
            owners: Aged::default(),
            hasher: Hasher::default(),
            options: options.clone(),
            total: 0,
            gaps: VecDeque::new(),
            counters: NamesCounters::default(),
        }
    }

    /// The owner got an answer at `now`: it knows the address by this name until another answer replaces it.
    ///
    /// `now` is in nanoseconds of whatever clock the caller uses throughout. Answers may be learned late, that is,
    /// after more recent ones.
    pub fn learn(&mut self, owner: &K, name: &Arc<str>, address: Address, now: u64) {
        let place = self.owner(owner);
        let version = Version { name: Arc::clone(name), since: now, until: now.saturating_add(self.keep(address.ttl)) };
        let hash = self.hasher.hash_one(address.ip);
        let table = own(&mut self.owners.get_mut(place).table, &mut self.total);
        let before = table.names;
        table.earliest = table.earliest.min(version.until);
        match table.place(hash, address.ip) {
            Some(place) => {
                let known = table.known.get_mut(place);
                table.names -= known.names();
                known.learn(version);
                table.names += known.names();
                table.known.renew(place);
            }
            None => {
                if table.known.len() >= self.options.per_owner.max(1)
                    && let Some(oldest) = table.known.oldest()
                {
                    table.names -= table.known.remove(oldest).names();
                    self.counters.evicted_addresses += 1;
                }
                table.known.insert(hash, Known { ip: address.ip, latest: version, superseded: Vec::new() });
                table.names += 1;
            }
        }
        self.total = self.total - before + table.names;
        self.shrink(owner);
    }

    /// Answers that came between `from` and `to` may have been missed. So names that were known before may be out of
    /// date.
    pub fn missed(&mut self, from: u64, to: u64) {
        if self.gaps.len() >= MOST_GAPS
            && let (Some(oldest), Some(next)) = (self.gaps.pop_front(), self.gaps.front_mut())
        {
            *next = *oldest.start()..=*next.end();
        }
        self.gaps.push_back(from..=to.max(from));
    }

    /// The name by which the owner knew an address at a moment: that of the last answer before it. `None` if answers
    /// may have been missed in between. Does not allocate.
    pub fn find(&self, owner: &K, ip: IpAddr, at: u64) -> Option<&Arc<str>> {
        let ip = ip.to_canonical();
        let table = &self.owners.get(self.place(owner)?).table;
        let known = table.known.get(table.place(self.hasher.hash_one(ip), ip)?);
        let version = known.at(at).filter(|version| at <= version.until)?;
        let is_certain = self.gaps.iter().all(|gap| at < *gap.start() || *gap.end() < version.since);
        is_certain.then_some(&version.name)
    }

    /// All that an owner knows, what it learned longest ago first: address, name, and until when.
    pub fn known_to(&self, owner: &K) -> impl Iterator<Item = (IpAddr, &Arc<str>, u64)> {
        let table = self.place(owner).map(|place| &self.owners.get(place).table);
        table
            .into_iter()
            .flat_map(|table| table.known.iter())
            .map(|known| (known.ip, &known.latest.name, known.latest.until))
    }

    /// What the parent knows the child knows too, from now on, in place of what it knew. What either learns later is
    /// its own. Cheap: nothing is copied before one of them learns something.
    pub fn inherit(&mut self, parent: &K, child: &K) {
        if parent == child {
            return;
        }
        self.forget(child);
        let Some(parent) = self.place(parent) else { return };
        let table = Arc::clone(&self.owners.get(parent).table);
        self.insert(Owner { key: child.clone(), table });
    }

    /// The owner is gone.
    pub fn forget(&mut self, owner: &K) {
        if let Some(place) = self.place(owner) {
            self.remove(place);
        }
    }

    /// Forgets addresses whose time is over. It looks at every owner, but not into a table before something in it is
    /// due: every ten seconds or so is often enough.
    pub fn expire(&mut self, now: u64) {
        let mut next = self.owners.oldest();
        while let Some(place) = next {
            next = self.owners.newer(place);
            self.expire_owner(place, now);
        }
    }

    /// How many owners know something.
    pub fn owners(&self) -> usize {
        self.owners.len()
    }

    /// How many names for addresses all owners know together, shared ones counted once.
    pub fn known_names(&self) -> usize {
        self.total
    }

    /// What gave way.
    pub fn counters(&self) -> NamesCounters {
        self.counters
    }

    /// For how many nanoseconds an answer is kept.
    fn keep(&self, ttl: u32) -> u64 {
        let NamesOptions { ttl_floor, ttl_ceiling, .. } = self.options;
        let kept = Duration::from_secs(ttl.into()).max(ttl_floor).min(ttl_ceiling);
        u64::try_from(kept.as_nanos()).unwrap_or(u64::MAX)
    }

    fn place(&self, owner: &K) -> Option<Place> {
        self.owners.find(self.hasher.hash_one(owner), |other| other.key == *owner)
    }

    /// The owner, which is about to learn something.
    fn owner(&mut self, owner: &K) -> Place {
        match self.place(owner) {
            Some(place) => {
                self.owners.renew(place);
                place
            }
            None => self.insert(Owner { key: owner.clone(), table: Arc::default() }),
        }
    }

    fn insert(&mut self, owner: Owner<K>) -> Place {
        if self.owners.len() >= self.options.owners.max(1) {
            self.evict();
        }
        self.owners.insert(self.hasher.hash_one(&owner.key), owner)
    }

    /// Takes from others until all is within bounds again.
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

    fn remove(&mut self, place: Place) {
        if let Some(table) = Arc::into_inner(self.owners.remove(place).table) {
            self.total -= table.names;
        }
    }

    fn expire_owner(&mut self, place: Place, now: u64) {
        let table = &mut self.owners.get_mut(place).table;
        if now <= table.earliest {
            return;
        }
        if let Some(table) = Arc::get_mut(table) {
            let (addresses, names) = (table.known.len(), table.names);
            table.known.retain(|known| now <= known.until());
            table.names = table.known.iter().map(Known::names).sum();
            table.earliest = table.known.iter().map(Known::until).min().unwrap_or(u64::MAX);
            self.total -= names - table.names;
            self.counters.expired_addresses += (addresses - table.known.len()) as u64;
        }
        // A table that others share is not copied for this; but once all of it is over it is let go.
        if self.owners.get(place).table.known.iter().all(|known| now > known.until()) {
            self.remove(place);
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { known: Aged::default(), names: 0, earliest: u64::MAX }
    }
}

impl Table {
    fn place(&self, hash: u64, ip: IpAddr) -> Option<Place> {
        self.known.find(hash, |known| known.ip == ip)
    }
}

impl Known {
    /// How many names are known for the address.
    fn names(&self) -> usize {
        1 + self.superseded.len()
    }

    /// When the last of them expires.
    fn until(&self) -> u64 {
        self.superseded.iter().map(|version| version.until).fold(self.latest.until, u64::max)
    }

    /// The last answer that had arrived by a moment.
    fn at(&self, at: u64) -> Option<&Version> {
        let newest_first = std::iter::once(&self.latest).chain(self.superseded.iter().rev());
        newest_first.into_iter().find(|version| version.since <= at)
    }

    /// Inserts an answer in order of its time.
    fn learn(&mut self, version: Version) {
        if version.since >= self.latest.since {
            let before = std::mem::replace(&mut self.latest, version);
            if before.since < self.latest.since {
                self.superseded.push(before);
            }
        } else if version.since >= self.oldest_needed() {
            let place = self.superseded.partition_point(|other| other.since <= version.since);
            self.superseded.insert(place, version);
        }
        self.forget_superseded();
    }

    /// Nothing older than this is ever asked for.
    fn oldest_needed(&self) -> u64 {
        self.latest.since.saturating_sub(KEPT_SUPERSEDED)
    }

    /// Forgets names that were replaced long ago, and the oldest if there are too many.
    fn forget_superseded(&mut self) {
        let needed = self.superseded.iter().rposition(|version| version.since <= self.oldest_needed()).unwrap_or(0);
        let too_many = self.names().saturating_sub(MOST_VERSIONS);
        self.superseded.drain(..needed.max(too_many));
        if self.superseded.is_empty() {
            self.superseded = Vec::new();
        }
    }
}

/// The table, no longer shared with anyone.
fn own<'a>(table: &'a mut Arc<Table>, total: &mut usize) -> &'a mut Table {
    if Arc::get_mut(table).is_none() {
        *total += table.names;
    }
    Arc::make_mut(table)
}

#[cfg(test)]
mod tests;
