//! Joins two events into one: the kernel reports some things in two halves, in either order.

use std::collections::VecDeque;

/// The maximum number of halves that wait. Both halves come at almost the same time; if one waits longer, the other was lost.
const MAX_WAITING: usize = 64;

/// Halves that wait for the matching half. Either may come first.
#[derive(Debug)]
pub(crate) struct Halves<L, R>(VecDeque<(u32, Half<L, R>)>);

#[derive(Debug)]
enum Half<L, R> {
    Left(L),
    Right(R),
}

impl<L, R> Default for Halves<L, R> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<L, R> Halves<L, R> {
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
        let mut halves = Halves::default();
        assert_eq!(halves.join_left(1, 'a'), None);
        assert_eq!(halves.join_right(2, "B"), None);
        assert_eq!(halves.join_right(1, "A"), Some(('a', "A")));
        assert_eq!(halves.join_left(2, 'b'), Some(('b', "B")));
        assert_eq!(halves.join_left(2, 'c'), None, "each meets one");
    }

    #[test]
    fn a_repeated_or_forgotten_half_is_not_joined_with_an_old_one() {
        let mut halves = Halves::default();
        halves.join_left(1, 'a');
        halves.join_left(1, 'b');
        assert_eq!(halves.join_right(1, ()), Some(('b', ())));
        halves.join_left(1, 'c');
        halves.forget(1);
        assert_eq!(halves.join_right(1, ()), None);
        halves.clear();
        assert_eq!(halves.join_left(1, 'd'), None);
    }

    #[test]
    fn the_number_of_waiting_halves_is_bounded() {
        let mut halves = Halves::<u32, u32>::default();
        for key in 0..1000 {
            halves.join_left(key, key);
        }
        assert_eq!(halves.0.len(), MAX_WAITING);
        assert_eq!((halves.join_right(0, 0), halves.join_right(999, 7)), (None, Some((999, 7))));
    }
}
