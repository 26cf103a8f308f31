//! The times of losses, and the kinds of facts that were lost: they decide which flows a loss may have affected.

use crate::model::loss::Harm;
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
    harm: Harm,
}

impl LossHistory {
    /// Adds a loss.
    pub fn add(&mut self, since: MonotonicTime, until: MonotonicTime, harm: Harm) {
        let new = Span { since: since.min(until), until, harm };
        match self.0.iter_mut().rev().find(|span| span.harm == harm && span.until >= new.since) {
            Some(span) => span.merge(new),
            None => self.0.push(new),
        }
        if self.0.len() > MAX_SPANS {
            let oldest = self.0.remove(0);
            self.0[0].merge(oldest);
        }
    }

    /// Whether anything of `harm` may have been lost between `from` and `to`, both included.
    pub fn overlaps(&self, harm: Harm, from: MonotonicTime, to: MonotonicTime) -> bool {
        self.0.iter().any(|span| span.harm.intersects(harm) && span.since <= to && span.until >= from)
    }
}

impl Span {
    fn merge(&mut self, other: Self) {
        self.since = self.since.min(other.since);
        self.until = self.until.max(other.until);
        self.harm = self.harm.or(other.harm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::monotonic;

    fn add(history: &mut LossHistory, since: u64, until: u64, harm: Harm) {
        history.add(monotonic(since), monotonic(until), harm);
    }

    fn overlaps(history: &LossHistory, harm: Harm, from: u64, to: u64) -> bool {
        history.overlaps(harm, monotonic(from), monotonic(to))
    }

    #[test]
    fn a_loss_affects_only_its_own_time_and_kinds_of_facts() {
        let mut history = LossHistory::default();
        add(&mut history, 10, 20, Harm::TCP_IPV4.or(Harm::OWNERS));
        for (harm, from, to, expected) in [
            (Harm::TCP_IPV4, 20, 30, true),
            (Harm::TCP_IPV4, 0, 10, true),
            (Harm::TCP_IPV4, 12, 13, true),
            (Harm::TCP_IPV4, 21, 30, false),
            (Harm::TCP_IPV4, 0, 9, false),
            (Harm::OWNERS, 0, 30, true),
            (Harm::UDP_IPV4, 0, 30, false),
            (Harm::NONE, 0, 30, false),
        ] {
            assert_eq!(overlaps(&history, harm, from, to), expected, "{harm:?} {from} {to}");
        }
    }

    #[test]
    fn a_loss_that_seems_to_end_before_it_began_touches_its_end() {
        let mut history = LossHistory::default();
        add(&mut history, 20, 10, Harm::TCP_IPV4);
        assert!(overlaps(&history, Harm::TCP_IPV4, 10, 10) && !overlaps(&history, Harm::TCP_IPV4, 11, 30));
    }

    #[test]
    fn losses_of_different_kinds_are_merged_only_if_there_is_no_room() {
        let mut history = LossHistory::default();
        add(&mut history, 10, 20, Harm::TCP_IPV4);
        add(&mut history, 15, 40, Harm::UDP_IPV4);
        assert!(!overlaps(&history, Harm::TCP_IPV4, 30, 35), "only datagrams were lost then");
        assert!(!overlaps(&history, Harm::UDP_IPV4, 0, 12));
        (1..MAX_SPANS as u64).for_each(|at| add(&mut history, 100 * at, 100 * at, Harm::ALL));
        for (harm, at) in [(Harm::TCP_IPV4, 12), (Harm::UDP_IPV4, 30)] {
            assert!(overlaps(&history, harm, at, at), "it is merged, and not forgotten: {at}");
        }
    }

    #[test]
    fn any_number_of_losses_is_kept_in_little_room_and_none_is_forgotten() {
        let mut history = LossHistory::default();
        (0..1000).for_each(|at| add(&mut history, 10 * at, 10 * at + 1, Harm::ALL));
        assert!(history.0.len() <= MAX_SPANS);
        assert!((0..1000).all(|at| overlaps(&history, Harm::UDP_IPV6, 10 * at, 10 * at)));
        assert!(!overlaps(&history, Harm::ALL, 9995, 10_000) && !overlaps(&history, Harm::ALL, 9985, 9985));
        let mut overlapping = LossHistory::default();
        (0..1000).for_each(|at| add(&mut overlapping, 10 * at, 10 * at + 10, Harm::ALL));
        assert_eq!(overlapping.0.len(), 1);
    }
}
