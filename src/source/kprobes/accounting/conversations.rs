//! The maps and programs of one monitor in the kernel, and how user space reads the counts.

use std::fmt;

use socktrail_kprobes::bpf::{Array, Map, Program};
use socktrail_kprobes::{Clock, Error, HookSamples, Resolver, Rings};

use super::entry::{self, SIZE, WORDS_WITH_REMOVED};
use super::table::{BUCKET_SIZE, BUCKET_WORDS, SLOTS, Table, WAYS};
use super::{Rules, programs};
use crate::model::kernel_address::SockAddress;
use crate::model::time::MonotonicTime;
use crate::model::totals::{Conversation, Totals};
use crate::source::kprobes::{Feature, Probe};

/// The reason why packets are not counted in the kernel, so that each is sampled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Unaccounted {
    /// The user does not want it, or wants no flows.
    #[error("it is switched off")]
    Unwanted,
    /// Before Linux 4.1, samples have the time of a clock that programs cannot read.
    #[error("the kernel has no clock that samples and BPF programs share: this needs Linux 4.1")]
    Clock,
    /// No probe shows when connections end, or none when sockets are freed, so that entries would not be removed in time.
    #[error("no probe shows when connections end, or when sockets are freed")]
    NoEnd,
    /// `bpf` is in [`Options::mask`](crate::monitor::Options::mask).
    #[error("bpf is masked")]
    Masked,
    /// The kernel refused a map or a program.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// How often an entry is read again at most, if a program changes it between two readings.
const READINGS: usize = 8;

/// The conversations that the kernel counts, and the programs that count them.
pub(crate) struct Conversations {
    table: Table,
    sockets: Array,
    entries: Array,
    outputs: Map,
    /// In the order in which they are to be attached, each with its probe.
    programs: Vec<(usize, Feature, Program)>,
}

impl Conversations {
    /// Makes a table for this number of conversations and loads the programs for these probes, each with its samples, if it is at a hook.
    /// Does not attach them.
    ///
    /// # Errors
    /// The reason why packets have to be sampled.
    pub(in crate::source) fn load<'a>(
        probes: impl Iterator<Item = (Feature, &'a Probe, Option<&'a HookSamples>)>,
        resolver: &dyn Resolver,
        rules: &Rules,
        conversations: u32,
        clock: Clock,
    ) -> Result<Self, Unaccounted> {
        if clock != Clock::Monotonic {
            return Err(Unaccounted::Clock);
        }
        let mut probes: Vec<_> = probes.enumerate().collect();
        let has = |needed: &Feature| probes.iter().any(|(_, (feature, ..))| feature == needed);
        if ![Feature::SocketFree, Feature::TcpState].iter().all(has) {
            return Err(Unaccounted::NoEnd);
        }
        probes.sort_by_key(|(_, (feature, ..))| attach_order(*feature));
        let table = Table::of(conversations);
        let sockets = Array::new("sockets", BUCKET_SIZE, table.buckets())?;
        let entries = Array::new("entries", u32::from(SIZE), table.entries())?;
        let ends = Array::new("ends", BUCKET_SIZE, table.buckets())?;
        let outputs = Map::outputs("outputs")?;
        let mut loaded = Vec::new();
        for (index, (feature, probe, hook)) in probes {
            if let Some((name, code)) = programs::program(feature, probe, hook, resolver, rules, table) {
                let (code, maps) = (code?, [sockets.as_ref(), entries.as_ref(), ends.as_ref(), &outputs]);
                let program = match hook {
                    Some(samples) => Program::load_at(samples.hook(), name, &code, &maps)?,
                    None => Program::load(name, &code, &maps)?,
                };
                loaded.push((index, feature, program));
            }
        }
        Ok(Self { table, sockets, entries, outputs, programs: loaded })
    }

    /// Connects the programs with the rings, into which they write reports.
    ///
    /// # Errors
    /// Those of [`Rings::receive`].
    pub(in crate::source) fn connect(&self, rings: &mut Rings) -> Result<(), Error> {
        rings.receive(&self.outputs)
    }

    /// For each program, the number of hits at which the kernel did not run it. Programs without this count are left out.
    pub(in super::super) fn skipped(&self) -> impl Iterator<Item = (Feature, u64)> {
        self.programs.iter().filter_map(|(_, feature, program)| Some((*feature, program.skipped()?)))
    }

    /// The features whose programs count packets.
    pub(in super::super) fn counting(&self) -> impl Iterator<Item = Feature> {
        self.programs.iter().map(|(_, feature, _)| *feature).filter(|feature| attach_order(*feature) > 0)
    }

    /// The programs in the order in which they are to be attached. Each with the number of its probe, counted from 0 in the order of
    /// [`Conversations::load`], and its feature.
    pub(in crate::source) fn programs(&self) -> impl Iterator<Item = (usize, Feature, &Program)> {
        self.programs.iter().map(|(index, feature, program)| (*index, *feature, program))
    }

    /// What has been counted of a conversation, or of its socket's first conversation if this one has no entry. A removed
    /// entry's counts are in its last report. If the entry was removed at `round` or later, they are also returned here,
    /// because the report may not have been received yet.
    pub(crate) fn totals(&self, of: &Conversation, round: MonotonicTime) -> Option<Totals> {
        let key = of.sock.get();
        let mut ways = 0;
        for (used, totals) in self.entries_of(key, of.sock, round) {
            if totals.conversation() == *of {
                return Some(totals);
            }
            ways |= used;
        }
        let ways = (0..WAYS).filter(|way| ways >> way & 1 == 1);
        let of_ways = ways.flat_map(|way| self.entries_of(key + 1 + u64::from(way), of.sock, round));
        let found = of_ways.map(|(_, totals)| totals).find(|totals| totals.conversation() == *of);
        let first = || Some(self.entry_of(key)?.1).filter(|totals| totals.sock == of.sock);
        found.or_else(first)
    }

    /// How many packets were sampled because the table had no room for their conversation.
    pub(in crate::source) fn refused_packets(&self) -> u64 {
        self.entry(self.table.refused_entry()).and_then(|bytes| entry::refused_packets(&bytes)).unwrap_or(0)
    }

    /// The entry of a key: the ways of its socket that are in use, and its counts.
    fn entry_of(&self, key: u64) -> Option<(u64, Totals)> {
        let (bucket, mut words) = (self.table.bucket(key), [0; BUCKET_WORDS]);
        let is_read = self.sockets.read(bucket, &mut words);
        let slot = words[..SLOTS].iter().position(|word| *word == key).filter(|_| is_read)?;
        let bytes = self.read_consistently(Table::entry(bucket, slot as u32))?;
        Some((entry::ways(&bytes)?, entry::totals(&bytes)?))
    }

    /// The entry of a key, and this socket's entries in the same bucket that were removed at `round` or later.
    fn entries_of(&self, key: u64, sock: SockAddress, round: MonotonicTime) -> impl Iterator<Item = (u64, Totals)> {
        let bucket = self.table.bucket(key);
        let removed = (0..SLOTS as u32).filter_map(move |slot| {
            let number = Table::entry(bucket, slot);
            let mut words = [0; WORDS_WITH_REMOVED];
            let is_read = self.entries.read(number, &mut words);
            if !is_read || entry::removed(words) < round {
                return None;
            }
            let bytes = self.entry(number)?;
            Some((entry::ways(&bytes)?, entry::totals(&bytes)?))
        });
        self.entry_of(key).into_iter().chain(removed).filter(move |(_, totals)| totals.sock == sock)
    }

    /// The bytes of an entry. A program may change it during a reading, so it is read until two readings agree, but at most
    /// [`READINGS`] times again. After that, a packet may be in one count and not yet in another, until the next reading.
    fn read_consistently(&self, number: u32) -> Option<[u8; SIZE as usize]> {
        let mut entry = self.entry(number)?;
        for _ in 0..READINGS {
            let again = self.entry(number)?;
            if again == entry {
                break;
            }
            entry = again;
        }
        Some(entry)
    }

    /// The bytes of an entry.
    fn entry(&self, number: u32) -> Option<[u8; SIZE as usize]> {
        let mut words = [0; SIZE as usize / 8];
        let mut bytes = [0; SIZE as usize];
        let is_read = self.entries.read(number, &mut words);
        bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_ne_bytes());
        is_read.then_some(bytes)
    }
}

/// The order in which programs are attached. The first are those that remove entries, so that each entry is removed in time,
/// and the one that has nothing to do with entries. Those that only count in entries come next, so that they miss no packet of
/// an entry. Those that make entries are the last.
const fn attach_order(feature: Feature) -> u8 {
    match feature {
        Feature::SocketFree | Feature::SocketCreate | Feature::TcpState | Feature::LocalDrops => 0,
        Feature::TcpIpv4In | Feature::TcpIpv6In => 1,
        _ => 2,
    }
}

impl fmt::Debug for Conversations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversations").field("programs", &self.programs.len()).finish_non_exhaustive()
    }
}
