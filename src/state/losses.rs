//! The times of losses, and the kinds of facts that were lost: they decide which flows a loss may have affected.

use crate::model::loss::LostFacts;
use crate::model::time::MonotonicTime;

/// The maximum number of intervals that are kept individually. Beyond that, the two oldest are merged, with the time between
/// them, when nothing was lost. Flows of that time have most likely ended by then.
const MAX_SPANS: usize = 256;

/// The losses so far.
#[derive(Debug, Default)]
pub struct LossHistory(Vec<Span>);

/// An interval in which facts of some kinds were lost.
#[derive(Debug, Clone, Copy)]
struct Span {
    since: MonotonicTime,
    until: MonotonicTime,
    facts: LostFacts,
}

impl LossHistory {
    /// Adds a loss.
    pub fn add(&mut self, since: MonotonicTime, until: MonotonicTime, facts: LostFacts) {
        let new = Span { since: since.min(until), until, facts };
        match self.0.iter_mut().rev().find(|span| span.facts == facts && span.until >= new.since) {
            Some(span) => span.merge(new),
            None => self.0.push(new),
        }
        if self.0.len() > MAX_SPANS {
            let oldest = self.0.remove(0);
            self.0[0].merge(oldest);
        }
    }

    /// Whether anything of `facts` may have been lost between `from` and `to`, both included.
    pub fn overlaps(&self, facts: LostFacts, from: MonotonicTime, to: MonotonicTime) -> bool {
        self.0.iter().any(|span| span.facts.intersects(facts) && span.since <= to && span.until >= from)
    }
}

impl Span {
    fn merge(&mut self, other: Self) {
        self.since = self.since.min(other.since);
        self.until = self.until.max(other.until);
        self.facts = self.facts.or(other.facts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::monotonic;

    fn add(history: &mut LossHistory, since: u64, until: u64, facts: LostFacts) {
        history.add(monotonic(since), monotonic(until), facts);
    }

    fn overlaps(history: &LossHistory, facts: LostFacts, from: u64, to: u64) -> bool {
        history.overlaps(facts, monotonic(from), monotonic(to))
    }

    #[test]
    fn a_loss_affects_only_its_own_time_and_kinds_of_facts() {
        let mut history = LossHistory::default();
        add(&mut history, 10, 20, LostFacts::TCP_IPV4.or(LostFacts::OWNERS));
        for (facts, from, to, expected) in [
            (LostFacts::TCP_IPV4, 20, 30, true),
            (LostFacts::TCP_IPV4, 0, 10, true),
            (LostFacts::TCP_IPV4, 12, 13, true),
            (LostFacts::TCP_IPV4, 21, 30, false),
            (LostFacts::TCP_IPV4, 0, 9, false),
            (LostFacts::OWNERS, 0, 30, true),
            (LostFacts::UDP_IPV4, 0, 30, false),
            (LostFacts::NONE, 0, 30, false),
        ] {
            assert_eq!(overlaps(&history, facts, from, to), expected, "{facts:?} {from} {to}");
        }
    }

    #[test]
    fn a_loss_that_seems_to_end_before_it_began_covers_only_its_end() {
        let mut history = LossHistory::default();
        add(&mut history, 20, 10, LostFacts::TCP_IPV4);
        assert!(overlaps(&history, LostFacts::TCP_IPV4, 10, 10) && !overlaps(&history, LostFacts::TCP_IPV4, 11, 30));
    }

    #[test]
    fn losses_of_different_kinds_are_merged_only_if_there_is_no_room() {
        let mut history = LossHistory::default();
        add(&mut history, 10, 20, LostFacts::TCP_IPV4);
        add(&mut history, 15, 40, LostFacts::UDP_IPV4);
        assert!(!overlaps(&history, LostFacts::TCP_IPV4, 30, 35), "only datagrams were lost then");
        assert!(!overlaps(&history, LostFacts::UDP_IPV4, 0, 12));
        (1..MAX_SPANS as u64).for_each(|at| add(&mut history, 100 * at, 100 * at, LostFacts::ALL));
        for (facts, at) in [(LostFacts::TCP_IPV4, 12), (LostFacts::UDP_IPV4, 30)] {
            assert!(overlaps(&history, facts, at, at), "it is merged, and not forgotten: {at}");
        }
    }

    #[test]
    fn any_number_of_losses_is_kept_in_little_room_and_none_is_forgotten() {
        let mut history = LossHistory::default();
        (0..1000).for_each(|at| add(&mut history, 10 * at, 10 * at + 1, LostFacts::ALL));
        assert!(history.0.len() <= MAX_SPANS);
        assert!((0..1000).all(|at| overlaps(&history, LostFacts::UDP_IPV6, 10 * at, 10 * at)));
        assert!(!overlaps(&history, LostFacts::ALL, 9995, 10_000) && !overlaps(&history, LostFacts::ALL, 9985, 9985));
        let mut overlapping = LossHistory::default();
        (0..1000).for_each(|at| add(&mut overlapping, 10 * at, 10 * at + 10, LostFacts::ALL));
        assert_eq!(overlapping.0.len(), 1);
    }
}
