//! The maps and programs in the kernel.

use std::fmt;

use socktrail_kprobes::bpf::{Map, Program};
use socktrail_kprobes::{Clock, Error, Installed, Kind, Resolver, Rings};

use super::entry::{self, ENDS_SIZE, NO_ROOM, SIZE};
use super::{Rules, programs};
use crate::model::kernel_address::SockAddress;
use crate::model::totals::Totals;
use crate::source::kprobes::{Feature, Probe};

/// The features whose programs every conversation needs: without them, an address that is reused would be mistaken.
const NEEDED: [Feature; 1] = [Feature::SocketFree];

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
    /// No probe shows that a socket is freed, so that entries would never be removed.
    #[error("no probe shows when sockets are freed")]
    NoEnd,
    /// `bpf` is in [`Options::mask`](crate::monitor::Options::mask).
    #[error("bpf is masked")]
    Masked,
    /// The kernel refused a map or a program.
    #[error(transparent)]
    Kernel(#[from] Error),
}

impl Unaccounted {
    /// Whether the user, and not the kernel, has decided so.
    pub(crate) fn is_wanted(&self) -> bool {
        matches!(self, Self::Unwanted | Self::Masked)
    }

    /// The kind of the kernel's refusal.
    pub(crate) fn kind(&self) -> Option<Kind> {
        match self {
            Self::Kernel(error) => Some(error.kind()),
            _ => None,
        }
    }
}

/// The conversations that the kernel counts, and the programs that count them.
pub(crate) struct Accounting {
    conversations: Map,
    programs: Vec<(Feature, Program)>,
    /// The latest number of conversations that found no room.
    without_room: u64,
    /// Whether a look-up has failed, which is told once.
    failed: bool,
}

impl Accounting {
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
        let probes: Vec<_> = probes.collect();
        if !NEEDED.iter().all(|needed| probes.iter().any(|(feature, _)| feature == needed)) {
            return Err(Unaccounted::NoEnd);
        }
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
        Ok(Self { conversations, programs: loaded, without_room: 0, failed: false })
    }

    /// The program for the probe of a feature.
    pub(in super::super) fn program(&self, feature: Feature) -> Option<&Program> {
        self.programs.iter().find(|(of, _)| *of == feature).map(|(_, program)| program)
    }

    /// What has been counted of a socket's conversation.
    pub(in super::super) fn totals(&mut self, sock: SockAddress) -> Option<Totals> {
        entry::totals(&self.look_up(sock.get())?)
    }

    /// How many conversations found no room so far. Their packets are sampled.
    pub(in super::super) fn without_room(&mut self) -> u64 {
        if let Some(count) = self.look_up(NO_ROOM).and_then(|bytes| entry::without_room(&bytes)) {
            self.without_room = count;
        }
        self.without_room
    }

    fn look_up(&mut self, key: u64) -> Option<[u8; SIZE as usize]> {
        let mut bytes = [0; SIZE as usize];
        match self.conversations.lookup(&key.to_ne_bytes(), &mut bytes) {
            Ok(true) => Some(bytes),
            Ok(false) => None,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::error!(%error, "packets that the kernel has counted cannot be read");
                }
                None
            }
        }
    }
}

impl fmt::Debug for Accounting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accounting").field("programs", &self.programs.len()).finish_non_exhaustive()
    }
}

/// Attaches a probe to the rings, with its program if it has one.
pub(in super::super) fn attach(
    rings: &mut Rings,
    installed: &Installed,
    filter: Option<&str>,
    program: Option<&Program>,
) -> Result<(), Error> {
    match program {
        Some(program) => rings.attach_with_program(installed, filter, program),
        None => rings.attach(installed, filter),
    }
}
