//! The clock of kernels before 4.1: programs cannot read it, but a sample shows it.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use socktrail_kprobes::{Clock, Rings};

use crate::probes::{Feature, Probes};

/// What [`Options::mask`](super::Options::mask) calls the kernel's ability to give samples a clock that can be read.
const USE_CLOCKID: &str = "use_clockid";

/// Samples that this thread can cause, the least disturbing first: other tools may watch sockets, but hardly any watches
/// threads that begin.
const CAUSES: [(Feature, fn()); 3] = [
    (Feature::ProcessFork, begin_thread),
    (Feature::SocketRelease, open_and_close_socket),
    (Feature::SocketCreate, open_and_close_socket),
];

/// Which clock samples are to have.
pub(crate) fn wanted(mask: &[String]) -> Clock {
    if mask.iter().any(|masked| masked == USE_CLOCKID) { Clock::Local } else { Clock::Monotonic }
}

/// Compares the clocks now and then.
#[derive(Debug)]
pub(crate) struct Sync {
    period: Duration,
    last: Option<Instant>,
    /// Whether it was said that they cannot be compared.
    said: bool,
}

impl Sync {
    pub(crate) fn every(period: Duration) -> Self {
        Self { period, last: None, said: false }
    }

    /// Compares them if it is time to, by a sample that this thread causes.
    pub(crate) fn compare(&mut self, rings: &mut Rings, probes: &Probes) {
        let is_early = self.last.is_some_and(|last| last.elapsed() < self.period);
        if rings.clock() == Clock::Monotonic || is_early {
            return;
        }
        self.last = Some(Instant::now());
        let is_compared = CAUSES.iter().any(|(feature, cause)| {
            let compared = probes.installed(*feature).map(|event| rings.synchronise(event, cause));
            compared.is_some_and(|compared| {
                compared.unwrap_or_else(|error| {
                    tracing::debug!(%error, %feature, "the kernel's clock cannot be compared by this");
                    false
                })
            })
        });
        if !is_compared && !self.said {
            self.said = true;
            tracing::warn!("the kernel's clock cannot be compared: times are up to a tenth of a second early");
        }
    }
}

fn begin_thread() {
    let _ = thread::Builder::new().spawn(|| ()).map(thread::JoinHandle::join);
}

fn open_and_close_socket() {
    drop(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None));
}
