//! The clock of kernels before 4.1: programs cannot read it, but a sample shows it.

use std::thread;
use std::time::{Duration, Instant};

use socktrail_kprobes::{Clock, Rings};

use crate::probes::{Feature, Probes};

/// What [`Options::mask`](super::Options::mask) calls the kernel's ability to give samples a clock that can be read.
const USE_CLOCKID: &str = "use_clockid";

/// Which clock samples are to have.
pub(super) fn wanted(mask: &[String]) -> Clock {
    if mask.iter().any(|masked| masked == USE_CLOCKID) { Clock::Local } else { Clock::Monotonic }
}

/// Compares the clocks now and then.
#[derive(Debug)]
pub(super) struct Sync {
    period: Duration,
    last: Option<Instant>,
}

impl Sync {
    pub(super) fn every(period: Duration) -> Self {
        Self { period, last: None }
    }

    /// Compares them if it is time to: a thread that begins is a sample, and costs nobody anything.
    pub(super) fn compare(&mut self, rings: &mut Rings, probes: &Probes) {
        let is_early = self.last.is_some_and(|last| last.elapsed() < self.period);
        if rings.clock() == Clock::Monotonic || is_early {
            return;
        }
        self.last = Some(Instant::now());
        let Some(begins) = probes.installed(Feature::ProcessFork) else { return };
        let begin = || {
            let _ = thread::Builder::new().spawn(|| ()).map(thread::JoinHandle::join);
        };
        if let Err(error) = rings.synchronise(begins, begin) {
            tracing::warn!(%error, "the kernel's clock cannot be compared: times are a little early");
        }
    }
}
