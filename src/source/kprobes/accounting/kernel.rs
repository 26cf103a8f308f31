//! The maps and programs in the kernel.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use socktrail_kprobes::bpf::{Map, Program};
use socktrail_kprobes::{Clock, Error, Resolver, Rings};

use super::entry::{self, ENDS_SIZE, NO_ROOM, SIZE};
use super::{Rules, programs};
use crate::model::clock::monotonic;
use crate::model::kernel_address::SockAddress;
use crate::model::totals::Totals;
use crate::source::kprobes::{Feature, Probe};

/// Why packets are not counted in the kernel, but sampled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Unaccounted {
    /// It is not wanted.
    #[error("it is switched off")]
    Unwanted,
    /// Samples have the time of a clock that programs cannot read: before Linux 4.1.
    #[error("the kernel has no clock that samples and BPF programs share: this needs Linux 4.1")]
    Clock,
    /// No probe shows when connections end, or when sockets are freed, so that entries would not be removed in time.
    #[error("no probe shows when connections end, or when sockets are freed")]
    NoEnd,
    /// `bpf` is in [`Options::mask`](crate::monitor::Options::mask).
    #[error("bpf is masked")]
    Masked,
    /// The kernel refused a map or a program.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// Nanoseconds between two readings of a mere counter: while a CPU reads the map, its packets are not counted.
const READ_PERIOD: u64 = 60_000_000_000;

/// The conversations that the kernel counts, and the programs that count them.
pub(crate) struct Conversations {
    map: Map,
    /// In the order in which they are to be attached.
    programs: Vec<(Feature, Program)>,
    /// Whether a look-up has failed, which is told once.
    failed: AtomicBool,
    /// The number of [`Conversations::without_room`] as it was last read, and when to read it again, in nanoseconds.
    refused: AtomicU64,
    next_read: AtomicU64,
}

impl Conversations {
    /// Loads the programs for these probes, and connects them with the rings. Nothing is attached.
    ///
    /// # Errors
    /// Why packets are to be sampled.
    pub(in super::super) fn load<'a>(
        probes: impl Iterator<Item = (Feature, &'a Probe)>,
        resolver: &dyn Resolver,
        rules: &Rules,
        entries: u32,
        rings: &mut Rings,
    ) -> Result<Self, Unaccounted> {
        if rings.clock() != Clock::Monotonic {
            return Err(Unaccounted::Clock);
        }
        let mut probes: Vec<_> = probes.collect();
        let has = |needed: &Feature| probes.iter().any(|(feature, _)| feature == needed);
        if ![Feature::SocketFree, Feature::TcpState].iter().all(has) {
            return Err(Unaccounted::NoEnd);
        }
        probes.sort_by_key(|(feature, _)| order(*feature));
        let conversations = Map::hash("conversations", 8, u32::from(SIZE), entries.saturating_add(1))?;
        conversations.update(&NO_ROOM.to_ne_bytes(), &[0; SIZE as usize])?;
        let ends = Map::hash("ends", u32::from(ENDS_SIZE), 8, entries)?;
        let outputs = Map::outputs("outputs")?;
        let mut loaded = Vec::new();
        for (feature, probe) in probes {
            if let Some((name, code)) = programs::program(feature, probe, resolver, rules) {
                loaded.push((feature, Program::load(name, &code?, &[&conversations, &ends, &outputs])?));
            }
        }
        rings.receive(&outputs)?;
        Ok(Self {
            map: conversations,
            programs: loaded,
            failed: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            next_read: AtomicU64::new(0),
        })
    }

    /// The programs with their features, in the order in which they are to be attached.
    pub(in super::super) fn programs(&self) -> impl Iterator<Item = (Feature, &Program)> {
        self.programs.iter().map(|(feature, program)| (*feature, program))
    }

    /// What has been counted of a socket's conversation.
    pub(crate) fn totals(&self, sock: SockAddress) -> Option<Totals> {
        entry::totals(&self.look_up(sock.get())?)
    }

    /// How many packets were sampled because their conversation found no room, as of at most a minute ago.
    pub(in super::super) fn without_room(&self) -> u64 {
        let now = monotonic().as_nanos();
        if now >= self.next_read.load(Ordering::Relaxed) {
            self.next_read.store(now.saturating_add(READ_PERIOD), Ordering::Relaxed);
            let refused = self.look_up(NO_ROOM).and_then(|bytes| entry::without_room(&bytes)).unwrap_or(0);
            self.refused.store(refused, Ordering::Relaxed);
        }
        self.refused.load(Ordering::Relaxed)
    }

    fn look_up(&self, key: u64) -> Option<[u8; SIZE as usize]> {
        let mut bytes = [0; SIZE as usize];
        match self.map.lookup(&key.to_ne_bytes(), &mut bytes) {
            Ok(true) => Some(bytes),
            Ok(false) => None,
            Err(error) => {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "packets that the kernel has counted cannot be read");
                }
                None
            }
        }
    }
}

/// What a program needs is attached before it: the removal of entries first, then what makes none, then what does.
const fn order(feature: Feature) -> u8 {
    match feature {
        Feature::SocketFree | Feature::TcpState => 0,
        Feature::TcpIpv4In | Feature::TcpIpv6In => 1,
        _ => 2,
    }
}

impl fmt::Debug for Conversations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversations").field("programs", &self.programs.len()).finish_non_exhaustive()
    }
}
