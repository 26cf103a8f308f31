//! The time of the rings' clock, also where user space cannot read that clock.

use crate::Clock;

/// For how long an estimate is kept, in nanoseconds: the two clocks drift apart by some 0.5 ms in it at worst.
const KEPT: u64 = 5_000_000_000;
/// The same for one that comes of a comparison, which the next comparison replaces: records alone tell the time worse than
/// any drift makes it.
const COMPARISON_KEPT: u64 = 60_000_000_000;

/// Tells the time of a [`Clock`], given `CLOCK_MONOTONIC`.
///
/// The kernel's local clock shows itself only in records. One of time T that is read at M proves that the local
/// clock is ahead of the monotonic by T - M or more. The greatest such lead of the last seconds is taken: the
/// time told is never later than the true one (but for drift), as a horizon must be.
#[derive(Debug)]
pub(crate) struct Teller {
    clock: Clock,
    /// The greatest leads in the present and the previous period.
    leads: [Option<i128>; 2],
    period_began: u64,
    period: u64,
}

impl Teller {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, leads: [None; 2], period_began: 0, period: KEPT }
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Takes note of a record of time `seen` that existed at `monotonic`.
    pub(crate) fn note(&mut self, seen: u64, monotonic: u64) {
        if self.clock == Clock::Monotonic || seen == 0 {
            return;
        }
        if monotonic.saturating_sub(self.period_began) > self.period {
            self.leads = [None, self.leads[0]];
            (self.period_began, self.period) = (monotonic, KEPT);
        }
        let lead = i128::from(seen) - i128::from(monotonic);
        self.leads[0] = self.leads[0].max(Some(lead));
    }

    /// Begins anew with records that were caused and read at once, each as [`Teller::note`] takes it. Says whether there
    /// were any; else all stays as it is.
    pub(crate) fn compare(&mut self, records: &[(u64, u64)]) -> bool {
        let mut anew = Self { period_began: u64::MAX, period: COMPARISON_KEPT, ..Self::new(self.clock) };
        for (seen, monotonic) in records.iter().filter(|(seen, _)| *seen != 0) {
            anew.note(*seen, *monotonic);
            anew.period_began = *monotonic;
        }
        let is_known = anew.leads[0].is_some();
        if is_known {
            *self = anew;
        }
        is_known
    }

    /// The clock's time at `monotonic`; 0 as long as nothing is known of it.
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
    fn monotonic_is_what_it_is() {
        let mut teller = Teller::new(Clock::Monotonic);
        teller.note(900, 1_000);
        assert_eq!(teller.at(2_000), 2_000);
    }

    #[test]
    fn local_is_told_from_records_and_never_ahead() {
        let mut teller = Teller::new(Clock::Local);
        assert_eq!(teller.at(1_000), 0);
        teller.note(0, 1_000);
        assert_eq!(teller.at(1_000), 0);
        // The true lead is 500; each record is read some time after it was written.
        for (written, read) in [(1_000, 1_900), (2_000, 2_010), (3_000, 3_400)] {
            teller.note(written + 500, read);
            assert!(teller.at(read) <= read + 500);
        }
        assert_eq!(teller.at(4_000), 4_490);
        // A lead of old is forgotten, a smaller one takes its place.
        for period in 1..4 {
            let now = period * (KEPT + 1) + 10_000;
            teller.note(now + 300, now);
        }
        assert_eq!(teller.at(20_000_000_000), 20_000_000_300);
    }

    #[test]
    fn a_comparison_holds_until_the_next_however_late_records_are_read() {
        const SECOND: u64 = 1_000_000_000;
        let mut teller = Teller::new(Clock::Local);
        assert!(!teller.compare(&[(0, 900)]), "no record was there");
        assert_eq!(teller.at(1_000), 0);
        let mut lead = 5_000_000;
        for comparison in 1..4 {
            let begins = comparison * 10 * SECOND;
            assert!(teller.compare(&[(begins + lead - 700, begins), (begins + lead - 30, begins), (0, begins)]));
            // Ten times a second, of records that are 20 ms old by then.
            for round in 0..100 {
                let now = begins + round * SECOND / 10;
                teller.note(now + lead - 20_000_000, now);
                assert_eq!(teller.at(now), now + lead - 30);
            }
            lead -= 1_000; // the clocks drift apart
        }
        // Without any more comparisons records tell it.
        for round in 0..700 {
            let now = 30 * SECOND + round * SECOND / 10;
            teller.note(now + 1_000_000, now);
        }
        assert_eq!(teller.at(100 * SECOND), 100 * SECOND + 1_000_000);
    }
}
