//! What was lost and when, to tell which flows a loss may have affected.

use crate::event::KernelTime;
use crate::loss::Harm;

/// How many losses are kept apart. Beyond that the oldest are merged, together with the time between them, when nothing
/// was lost. Flows from that time alone are most likely over by then.
const MOST: usize = 256;

/// The losses so far.
#[derive(Debug, Default)]
pub struct History(Vec<Span>);

/// Something was lost in this interval.
#[derive(Debug, Clone, Copy)]
struct Span {
    since: KernelTime,
    until: KernelTime,
    harm: Harm,
}

impl History {
    /// Adds a loss.
    pub fn add(&mut self, since: KernelTime, until: KernelTime, harm: Harm) {
        let new = Span { since: since.min(until), until, harm };
        match self.0.iter_mut().rev().find(|span| span.harm == harm && span.until >= new.since) {
            Some(span) => span.take_in(new),
            None => self.0.push(new),
        }
        if self.0.len() > MOST {
            let oldest = self.0.remove(0);
            self.0[0].take_in(oldest);
        }
    }

    /// Whether anything of `harm` may have been lost between `from` and `to`, both included.
    pub fn touches(&self, harm: Harm, from: KernelTime, to: KernelTime) -> bool {
        self.0.iter().any(|span| span.harm.intersects(harm) && span.since <= to && span.until >= from)
    }
}

impl Span {
    fn take_in(&mut self, other: Self) {
        self.since = self.since.min(other.since);
        self.until = self.until.max(other.until);
        self.harm = self.harm.or(other.harm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_touches_what_overlaps_it_and_needs_what_was_lost() {
        let mut history = History::default();
        history.add(10, 20, Harm::TCP_IPV4.or(Harm::OWNERS));
        for (harm, from, to, touches) in [
            (Harm::TCP_IPV4, 20, 30, true),
            (Harm::TCP_IPV4, 0, 10, true),
            (Harm::TCP_IPV4, 12, 13, true),
            (Harm::TCP_IPV4, 21, 30, false),
            (Harm::TCP_IPV4, 0, 9, false),
            (Harm::OWNERS, 0, 30, true),
            (Harm::UDP_IPV4, 0, 30, false),
            (Harm::NONE, 0, 30, false),
        ] {
            assert_eq!(history.touches(harm, from, to), touches, "{harm:?} {from} {to}");
        }
    }

    #[test]
    fn a_loss_that_seems_to_end_before_it_began_touches_its_end() {
        let mut history = History::default();
        history.add(20, 10, Harm::TCP_IPV4);
        assert!(history.touches(Harm::TCP_IPV4, 10, 10) && !history.touches(Harm::TCP_IPV4, 11, 30));
    }

    #[test]
    fn losses_of_two_sorts_are_kept_apart_until_there_is_no_room() {
        let mut history = History::default();
        history.add(10, 20, Harm::TCP_IPV4);
        history.add(15, 40, Harm::UDP_IPV4);
        assert!(!history.touches(Harm::TCP_IPV4, 30, 35), "only datagrams were lost then");
        assert!(!history.touches(Harm::UDP_IPV4, 0, 12));
        (1..MOST as u64).for_each(|at| history.add(100 * at, 100 * at, Harm::ALL));
        for (harm, at) in [(Harm::TCP_IPV4, 12), (Harm::UDP_IPV4, 30)] {
            assert!(history.touches(harm, at, at), "it is merged, and not forgotten: {at}");
        }
    }

    #[test]
    fn any_number_of_losses_is_kept_in_little_room_and_none_is_forgotten() {
        let mut history = History::default();
        (0..1000).for_each(|at| history.add(10 * at, 10 * at + 1, Harm::ALL));
        assert!(history.0.len() <= MOST);
        assert!((0..1000).all(|at| history.touches(Harm::UDP_IPV6, 10 * at, 10 * at)));
        assert!(!history.touches(Harm::ALL, 9995, 10_000) && !history.touches(Harm::ALL, 9985, 9985));
        let mut overlapping = History::default();
        (0..1000).for_each(|at| overlapping.add(10 * at, 10 * at + 10, Harm::ALL));
        assert_eq!(overlapping.0.len(), 1);
    }
}
