//! Waits between retries.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// An exponential backoff: the wait doubles with every failure, up to a limit. It is shortened at random, so that many agents do
/// not retry at the same time.
#[derive(Debug, Clone)]
pub struct Backoff {
    init: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// A backoff with this first and this longest wait.
    pub fn new(init: Duration, max: Duration) -> Self {
        Self { init, max, next: init.min(max) }
    }

    /// The next wait: between half and all of the current limit.
    pub fn wait(&mut self) -> Duration {
        let longest = self.next;
        self.next = (longest * 2).min(self.max);
        longest.mul_f64(0.5 + 0.5 * chance())
    }

    /// Resets the backoff after a success.
    pub fn reset(&mut self) {
        self.next = self.init.min(self.max);
    }
}

/// A random number from 0 to 1: std seeds every `RandomState` differently.
pub fn chance() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_vary() {
        let seconds = Duration::from_secs_f64;
        let mut backoff = Backoff::new(seconds(1.0), seconds(5.0));
        for longest in [1.0, 2.0, 4.0, 5.0, 5.0] {
            let wait = backoff.wait();
            assert!(wait >= seconds(longest / 2.0) && wait <= seconds(longest), "{wait:?} of {longest} s");
        }
        backoff.reset();
        assert!(backoff.wait() <= seconds(1.0));
        let waits: std::collections::HashSet<_> =
            (0..50).map(|_| Backoff::new(seconds(1.0), seconds(1.0)).wait()).collect();
        assert!(waits.len() > 40);
    }
}
