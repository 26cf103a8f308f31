//! The time of the rings' clock, even if user space cannot read that clock.

use crate::Clock;

/// How long an estimate is kept, in nanoseconds. In this time the two clocks drift apart by about 0.5 ms at worst.
const ESTIMATE_LIFETIME: u64 = 5_000_000_000;
/// How long an estimate from a comparison is kept, in nanoseconds, unless another comparison replaces it earlier. It is kept
/// longer, because even after much drift it is more exact than an estimate from records alone.
const COMPARISON_LIFETIME: u64 = 60_000_000_000;

/// Estimates the time of a [`Clock`] from `CLOCK_MONOTONIC`.
///
/// User space sees the kernel's local clock only in records. A record of time T that is read at M proves that the local
/// clock is ahead of the monotonic clock by at least T - M. The estimate uses the greatest such lead of the last
/// seconds. Except for drift, it is never later than the true time, as a horizon requires.
#[derive(Debug)]
pub(crate) struct ClockEstimator {
    clock: Clock,
    /// The greatest leads in the present and the previous period.
    leads: [Option<i128>; 2],
    period_began: u64,
    period: u64,
}

impl ClockEstimator {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, leads: [None; 2], period_began: 0, period: ESTIMATE_LIFETIME }
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Notes that a record of time `seen` existed at `monotonic`.
    pub(crate) fn note(&mut self, seen: u64, monotonic: u64) {
        if self.clock == Clock::Monotonic || seen == 0 {
            return;
        }
        if monotonic.saturating_sub(self.period_began) > self.period {
            self.leads = [None, self.leads[0]];
            (self.period_began, self.period) = (monotonic, ESTIMATE_LIFETIME);
        }
        let lead = i128::from(seen) - i128::from(monotonic);
        self.leads[0] = self.leads[0].max(Some(lead));
    }

    /// Starts over with records that were caused on purpose and read at once, each a pair as for
    /// [`ClockEstimator::note`]. Returns `false`, and changes nothing, if there are none.
    pub(crate) fn compare(&mut self, records: &[(u64, u64)]) -> bool {
        let mut fresh = Self { period_began: u64::MAX, period: COMPARISON_LIFETIME, ..Self::new(self.clock) };
        for (seen, monotonic) in records.iter().filter(|(seen, _)| *seen != 0) {
            fresh.note(*seen, *monotonic);
            fresh.period_began = *monotonic;
        }
        let is_known = fresh.leads[0].is_some();
        if is_known {
            *self = fresh;
        }
        is_known
    }

    /// The clock's time at `monotonic`; 0 as long as no record was seen.
    pub(crate) fn at(&self, monotonic: u64) -> u64 {
        if self.clock == Clock::Monotonic {
            return monotonic;
        }
        let lead = self.leads[0].max(self.leads[1]);
        lead.map_or(0, |lead| u64::try_from(i128::from(monotonic) + lead).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_is_not_estimated() {
        let mut estimator = ClockEstimator::new(Clock::Monotonic);
        estimator.note(900, 1_000);
        assert_eq!(estimator.at(2_000), 2_000);
    }

    #[test]
    fn the_local_clock_is_estimated_from_records_and_never_ahead() {
        let mut estimator = ClockEstimator::new(Clock::Local);
        assert_eq!(estimator.at(1_000), 0);
        estimator.note(0, 1_000);
        assert_eq!(estimator.at(1_000), 0);
        // The true lead is 500; each record is read some time after it was written.
        for (written, read) in [(1_000, 1_900), (2_000, 2_010), (3_000, 3_400)] {
            estimator.note(written + 500, read);
            assert!(estimator.at(read) <= read + 500);
        }
        assert_eq!(estimator.at(4_000), 4_490);
        // An old lead is forgotten, and a smaller one replaces it.
        for period in 1..4 {
            let now = period * (ESTIMATE_LIFETIME + 1) + 10_000;
            estimator.note(now + 300, now);
        }
        assert_eq!(estimator.at(20_000_000_000), 20_000_000_300);
    }

    #[test]
    fn a_comparison_holds_until_the_next_however_late_records_are_read() {
        const SECOND: u64 = 1_000_000_000;
        let mut estimator = ClockEstimator::new(Clock::Local);
        assert!(!estimator.compare(&[(0, 900)]), "no record was there");
        assert_eq!(estimator.at(1_000), 0);
        let mut lead = 5_000_000;
        for comparison in 1..4 {
            let begins = comparison * 10 * SECOND;
            assert!(estimator.compare(&[(begins + lead - 700, begins), (begins + lead - 30, begins), (0, begins)]));
            // Ten times a second, from records that are 20 ms old by then.
            for round in 0..100 {
                let now = begins + round * SECOND / 10;
                estimator.note(now + lead - 20_000_000, now);
                assert_eq!(estimator.at(now), now + lead - 30);
            }
            lead -= 1_000; // the clocks drift apart
        }
        // Without further comparisons the records give the estimate.
        for round in 0..700 {
            let now = 30 * SECOND + round * SECOND / 10;
            estimator.note(now + 1_000_000, now);
        }
        assert_eq!(estimator.at(100 * SECOND), 100 * SECOND + 1_000_000);
    }
}
