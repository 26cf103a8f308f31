//! What a guess is.

use super::board::Posted;
use super::clues::Clues;
use super::probe::Probe;
use super::random::Random;
use super::shot::{Assembler, Shot};
use socktrail_kprobes::{Error, Record, RingOptions, Rings};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// A ring of 2^n pages holds what one trigger shows.
const RING: u8 = 5;

/// One idea of how to find some keys.
pub(crate) trait Guess {
    /// What a trigger chose, for the solver to look for.
    type Sent;

    /// What it is called in logs and reasons.
    fn name(&self) -> &'static str;

    /// The keys without which it cannot begin.
    fn needs(&self) -> Vec<String>;

    /// The keys that it finds.
    fn gives(&self) -> Vec<String>;

    /// Whether it can only work where there is IPv6.
    fn ipv6(&self) -> bool {
        false
    }

    /// How many different places it can look at, the likeliest first.
    fn attempts(&self) -> u32 {
        1
    }

    /// What it wants to see, in the attempt of that number.
    fn probes(&self, attempt: u32) -> Vec<Probe>;

    /// Makes the kernel call the probed functions with new values. Touches nothing but what it made itself, and
    /// leaves nothing behind.
    ///
    /// # Errors
    ///
    /// What the system refused.
    fn trigger(&mut self, stage: &mut dyn Scene) -> io::Result<Self::Sent>;

    /// Finds in what was seen, oldest first, the values that were sent.
    fn solve(&self, sent: &Self::Sent, shots: &[Shot]) -> Clues;
}

/// Where a guess acts: what it takes its values from, and what is seen of it.
pub(crate) trait Scene {
    /// Where triggers take their values from.
    fn random(&mut self) -> &mut Random;

    /// Sees what another process does as well, until the next [`Scene::shots`].
    ///
    /// # Errors
    ///
    /// What the system refused.
    fn watch(&mut self, pid: u32) -> io::Result<()>;

    /// Every call seen since the last time, oldest first.
    fn shots(&mut self) -> Vec<Shot>;
}

/// A guess, whatever it sends.
pub(crate) trait AnyGuess: Send {
    fn name(&self) -> &'static str;
    fn needs(&self) -> Vec<String>;
    fn gives(&self) -> Vec<String>;
    fn ipv6(&self) -> bool;
    fn attempts(&self) -> u32;
    fn probes(&self, attempt: u32) -> Vec<Probe>;
    /// Triggers and solves once.
    fn once(&mut self, stage: &mut dyn Scene) -> io::Result<Clues>;
}

impl<G: Guess + Send> AnyGuess for G {
    fn name(&self) -> &'static str {
        Guess::name(self)
    }

    fn needs(&self) -> Vec<String> {
        Guess::needs(self)
    }

    fn gives(&self) -> Vec<String> {
        Guess::gives(self)
    }

    fn ipv6(&self) -> bool {
        Guess::ipv6(self)
    }

    fn attempts(&self) -> u32 {
        Guess::attempts(self)
    }

    fn probes(&self, attempt: u32) -> Vec<Probe> {
        Guess::probes(self, attempt)
    }

    fn once(&mut self, stage: &mut dyn Scene) -> io::Result<Clues> {
        // What an earlier run left is not of this one.
        stage.shots();
        let sent = self.trigger(stage)?;
        Ok(self.solve(&sent, &stage.shots()))
    }
}

/// The calling thread, as the kernel sees it through the guess's probes.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    random: Random,
    posted: &'a Posted,
    rings: Vec<Rings>,
    /// What puts the records of the guess's own probes together, by the number of the probe.
    assemblers: BTreeMap<usize, Assembler>,
    /// The functions that were called.
    called: BTreeSet<String>,
}

impl<'a> Stage<'a> {
    /// The stage of the calling thread, for a guess whose probes have these numbers among those that are posted.
    pub(crate) fn new(posted: &'a Posted, probes: &[usize]) -> Result<Self, Error> {
        let assembler = |&probe: &usize| Some((probe, posted.assembler(probe)?));
        let assemblers = probes.iter().filter_map(assembler).collect();
        let mut stage = Self { random: Random::new(), posted, rings: Vec::new(), assemblers, called: BTreeSet::new() };
        stage.follow(nix::unistd::gettid().as_raw() as u32)?;
        Ok(stage)
    }

    fn follow(&mut self, tid: u32) -> Result<(), Error> {
        let mut options = RingOptions::default();
        options.page_exponent = RING;
        let mut rings = Rings::for_thread(tid, &options)?;
        let probes: Vec<usize> = self.assemblers.keys().copied().collect();
        for (event, filter) in self.posted.events_of(&probes) {
            rings.attach(event, filter.as_deref())?;
        }
        self.rings.push(rings);
        Ok(())
    }

    /// The functions that were called so far.
    pub(crate) fn called(&self) -> &BTreeSet<String> {
        &self.called
    }
}

impl Scene for Stage<'_> {
    fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    fn watch(&mut self, pid: u32) -> io::Result<()> {
        self.follow(pid).map_err(io::Error::other)
    }

    fn shots(&mut self) -> Vec<Shot> {
        for rings in &mut self.rings {
            let (posted, assemblers) = (&self.posted, &mut self.assemblers);
            rings.drain(u64::MAX, &mut |record| {
                if let Record::Sample { time, id, raw, .. } = record
                    && let Some((probe, part)) = posted.site_of(id, raw)
                    && let Some(assembler) = assemblers.get_mut(&probe)
                {
                    assembler.take(part, time, raw);
                }
            });
        }
        self.rings.truncate(1);
        let mut shots: Vec<_> = self.assemblers.values_mut().flat_map(Assembler::finish).collect();
        shots.sort_by_key(|&(time, _)| time);
        let shots: Vec<Shot> = shots.into_iter().map(|(_, shot)| shot).collect();
        self.called.extend(shots.iter().map(|shot| shot.function.clone()));
        shots
    }
}
