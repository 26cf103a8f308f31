//! Joins two events into one: the kernel reports some things in two halves, in either order.

use std::collections::VecDeque;

/// The maximum number of halves that wait. Both halves come at almost the same time; if one waits longer, the other was lost.
const MAX_WAITING: usize = 64;

/// Joins two halves into one. Either may come first and waits for the other.
#[derive(Debug)]
pub(crate) struct Joiner<L, R>(VecDeque<(u32, Half<L, R>)>);

#[derive(Debug)]
enum Half<L, R> {
    Left(L),
    Right(R),
}

impl<L, R> Default for Joiner<L, R> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<L, R> Joiner<L, R> {
    /// Takes a left half. Returns the pair if the right half is waiting; otherwise the left half waits.
    pub(crate) fn join_left(&mut self, key: u32, left: L) -> Option<(L, R)> {
        match self.take(key) {
            Some(Half::Right(right)) => Some((left, right)),
            _ => self.wait(key, Half::Left(left)),
        }
    }

    /// Takes a right half. Returns the pair if the left half is waiting; otherwise the right half waits.
    pub(crate) fn join_right(&mut self, key: u32, right: R) -> Option<(L, R)> {
        match self.take(key) {
            Some(Half::Left(left)) => Some((left, right)),
            _ => self.wait(key, Half::Right(right)),
        }
    }

    /// Forgets a waiting half, whose other half will not come.
    pub(crate) fn forget(&mut self, key: u32) {
        self.take(key);
    }

    /// Forgets all waiting halves: after a loss they could be joined with a half that is not theirs.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    fn take(&mut self, key: u32) -> Option<Half<L, R>> {
        let at = self.0.iter().position(|(of, _)| *of == key)?;
        self.0.remove(at).map(|(_, half)| half)
    }

    fn wait(&mut self, key: u32, half: Half<L, R>) -> Option<(L, R)> {
        if self.0.len() == MAX_WAITING {
            self.0.pop_front();
        }
        self.0.push_back((key, half));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_meet_in_either_order() {
        let mut joiner = Joiner::default();
        assert_eq!(joiner.join_left(1, 'a'), None);
        assert_eq!(joiner.join_right(2, "B"), None);
        assert_eq!(joiner.join_right(1, "A"), Some(('a', "A")));
        assert_eq!(joiner.join_left(2, 'b'), Some(('b', "B")));
        assert_eq!(joiner.join_left(2, 'c'), None, "each half is joined once");
    }

    #[test]
    fn a_repeated_or_forgotten_half_is_not_joined_with_an_old_one() {
        let mut joiner = Joiner::default();
        joiner.join_left(1, 'a');
        joiner.join_left(1, 'b');
        assert_eq!(joiner.join_right(1, ()), Some(('b', ())));
        joiner.join_left(1, 'c');
        joiner.forget(1);
        assert_eq!(joiner.join_right(1, ()), None);
        joiner.clear();
        assert_eq!(joiner.join_left(1, 'd'), None);
    }

    #[test]
    fn the_number_of_waiting_halves_is_bounded() {
        let mut joiner = Joiner::<u32, u32>::default();
        for key in 0..1000 {
            joiner.join_left(key, key);
        }
        assert_eq!(joiner.0.len(), MAX_WAITING);
        assert_eq!((joiner.join_right(0, 0), joiner.join_right(999, 7)), (None, Some((999, 7))));
    }
}
