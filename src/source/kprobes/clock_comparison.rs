//! The clock of samples on kernels before 4.1. Programs cannot read it, but a sample shows it.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use socktrail_kprobes::{Clock, Rings};

use crate::source::kprobes::{Feature, Probes};

/// The name, in [`Options::mask`](crate::monitor::Options::mask), of the kernel's ability to give samples a clock that
/// programs can read.
const USE_CLOCKID: &str = "use_clockid";

/// Samples that this thread can cause, the least disturbing first: other tools may monitor sockets, but few monitor new threads.
const CAUSES: [(Feature, fn()); 3] = [
    (Feature::ProcessFork, begin_thread),
    (Feature::SocketRelease, open_and_close_socket),
    (Feature::SocketCreate, open_and_close_socket),
];

/// The clock to request for samples.
pub(crate) fn wanted(mask: &[String]) -> Clock {
    if mask.iter().any(|masked| masked == USE_CLOCKID) { Clock::Local } else { Clock::Monotonic }
}

/// Compares the clocks from time to time.
#[derive(Debug)]
pub(crate) struct ClockComparison {
    period: Duration,
    last: Option<Instant>,
    /// Whether a failed comparison was logged.
    is_logged: bool,
}

impl ClockComparison {
    pub(crate) fn every(period: Duration) -> Self {
        Self { period, last: None, is_logged: false }
    }

    /// Compares the clocks if it is due, with a sample that this thread causes. Returns whether it did.
    pub(crate) fn compare(&mut self, rings: &mut Rings, probes: &Probes) -> bool {
        let is_early = self.last.is_some_and(|last| last.elapsed() < self.period);
        if rings.clock() == Clock::Monotonic || is_early {
            return false;
        }
        self.last = Some(Instant::now());
        let is_compared = CAUSES.iter().any(|(feature, cause)| {
            let compared = probes.installed(*feature).map(|event| rings.synchronise(event, cause));
            compared.is_some_and(|compared| {
                compared.unwrap_or_else(|error| {
                    tracing::debug!(%error, %feature, "this feature's samples cannot be used to compare the clocks");
                    false
                })
            })
        });
        if !is_compared && !self.is_logged {
            self.is_logged = true;
            tracing::warn!("the kernel's clock cannot be compared: times are up to a tenth of a second late");
        }
        is_compared
    }
}

fn begin_thread() {
    let _ = thread::Builder::new().spawn(|| ()).map(thread::JoinHandle::join);
}

fn open_and_close_socket() {
    drop(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None));
}
