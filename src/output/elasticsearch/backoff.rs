//! How long to wait before the next attempt.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Twice as long after every failure, up to a limit, and by chance a little less, so that many agents that failed together
/// do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    init: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// The first and the longest wait.
    pub fn new(init: Duration, most: Duration) -> Self {
        Self { init, most, next: init.min(most) }
    }

    /// How long to wait now: between half and all of what it may be.
    pub fn wait(&mut self) -> Duration {
        let longest = self.next;
        self.next = (longest * 2).min(self.most);
        longest.mul_f64(0.5 + 0.5 * chance())
    }

    /// It worked: the next failure is the first one again.
    pub fn reset(&mut self) {
        self.next = self.init.min(self.most);
    }
}

/// From 0 to 1; std seeds every `RandomState` differently.
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
