//! The interface of guesses, and the thread that they run on.

use super::call::{Call, CallAssembler};
use super::candidates::Evidence;
use super::installer::InstalledProbes;
use super::probe::Probe;
use super::random::Random;
use socktrail_kprobes::{Error, Record, RingOptions, Rings};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// A ring has 2 to the power of this many pages, enough for the records of one trigger.
const RING_PAGE_EXPONENT: u8 = 5;

/// A way to find some keys.
pub(crate) trait Guess {
    /// What the trigger knows about the calls that it caused, such as the values that it chose. `solve` looks for it.
    type Expected;

    /// A name for the guess's thread.
    fn name(&self) -> &'static str;

    /// The keys that must be known before it can run.
    fn needs(&self) -> Vec<String>;

    /// The keys that it finds.
    fn gives(&self) -> Vec<String>;

    /// Whether it works only on a host with IPv6.
    fn ipv6(&self) -> bool {
        false
    }

    /// How many attempts it may take, each with other probes. The first is the likeliest to succeed.
    fn attempts(&self) -> u32 {
        1
    }

    /// The probes that the attempt with this number uses.
    fn probes(&self, attempt: u32) -> Vec<Probe>;

    /// Makes the kernel call the probed functions with new values. It touches only what it has made itself, and leaves
    /// nothing behind.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    fn trigger(&mut self, context: &mut dyn Context) -> io::Result<Self::Expected>;

    /// Finds the expected values in the calls, the oldest call first.
    fn solve(&self, expected: &Self::Expected, calls: &[Call]) -> Evidence;
}

/// What a trigger may use.
pub(crate) trait Context {
    /// Random values for the trigger.
    fn random(&mut self) -> &mut Random;

    /// Also records the calls of another process, until the next [`Context::calls`].
    ///
    /// # Errors
    ///
    /// When the system refuses.
    fn follow(&mut self, pid: u32) -> io::Result<()>;

    /// The calls since the last time, the oldest first.
    fn calls(&mut self) -> Vec<Call>;
}

/// A context that records no calls.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct NoCalls(pub(crate) Random);

#[cfg(test)]
impl Context for NoCalls {
    fn random(&mut self) -> &mut Random {
        &mut self.0
    }

    fn follow(&mut self, _pid: u32) -> io::Result<()> {
        Ok(())
    }

    fn calls(&mut self) -> Vec<Call> {
        Vec::new()
    }
}

/// A guess, whatever its type [`Guess::Expected`] is.
pub(crate) trait AnyGuess: Send {
    fn name(&self) -> &'static str;
    fn needs(&self) -> Vec<String>;
    fn gives(&self) -> Vec<String>;
    fn ipv6(&self) -> bool;
    fn attempts(&self) -> u32;
    fn probes(&self, attempt: u32) -> Vec<Probe>;
    /// Triggers and solves.
    fn run_once(&mut self, context: &mut dyn Context) -> io::Result<Evidence>;
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

    fn run_once(&mut self, context: &mut dyn Context) -> io::Result<Evidence> {
        // A run that failed may have left calls behind.
        context.calls();
        let expected = self.trigger(context)?;
        Ok(self.solve(&expected, &context.calls()))
    }
}

/// The calling thread, with rings that receive the records of its calls.
#[derive(Debug)]
pub(crate) struct ProbedThread<'a> {
    random: Random,
    installed: &'a InstalledProbes,
    /// The first is the thread's own, the others those of processes that it follows.
    rings: Vec<Rings>,
    /// The assemblers of the guess's probes, by the index of the probe.
    assemblers: BTreeMap<usize, CallAssembler>,
    called_functions: BTreeSet<String>,
}

impl<'a> ProbedThread<'a> {
    /// Attaches rings to the calling thread, for the probes with these indices.
    pub(crate) fn attach(installed: &'a InstalledProbes, probes: &[usize]) -> Result<Self, Error> {
        let assembler = |&probe: &usize| Some((probe, installed.assembler(probe)?));
        let assemblers = probes.iter().filter_map(assembler).collect();
        let mut thread =
            Self { random: Random::new(), installed, rings: Vec::new(), assemblers, called_functions: BTreeSet::new() };
        thread.attach_rings(nix::unistd::gettid().as_raw() as u32)?;
        Ok(thread)
    }

    fn attach_rings(&mut self, tid: u32) -> Result<(), Error> {
        let mut options = RingOptions::default();
        options.page_exponent = RING_PAGE_EXPONENT;
        let mut rings = Rings::for_thread(tid, &options)?;
        let probes: Vec<usize> = self.assemblers.keys().copied().collect();
        for (event, filter) in self.installed.events_of(&probes) {
            rings.attach(event, filter.as_deref())?;
        }
        self.rings.push(rings);
        Ok(())
    }

    /// The probed functions that have been called so far.
    pub(crate) fn called_functions(&self) -> &BTreeSet<String> {
        &self.called_functions
    }
}

impl Context for ProbedThread<'_> {
    fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    fn follow(&mut self, pid: u32) -> io::Result<()> {
        self.attach_rings(pid).map_err(io::Error::other)
    }

    fn calls(&mut self) -> Vec<Call> {
        for rings in &mut self.rings {
            let (installed, assemblers) = (&self.installed, &mut self.assemblers);
            rings.drain(u64::MAX, &mut |record| {
                if let Record::Sample { time, id, raw, .. } = record
                    && let Some(part) = installed.part_of_record(id, raw)
                    && let Some(assembler) = assemblers.get_mut(&part.probe)
                {
                    assembler.add(part.part, time, raw);
                }
            });
        }
        self.rings.truncate(1);
        let mut calls: Vec<_> = self.assemblers.values_mut().flat_map(CallAssembler::finish).collect();
        calls.sort_by_key(|timed| timed.time);
        let calls: Vec<Call> = calls.into_iter().map(|timed| timed.call).collect();
        self.called_functions.extend(calls.iter().map(|call| call.function.clone()));
        calls
    }
}
