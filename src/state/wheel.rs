//! A timing wheel: finds timers that are due, at a cost that does not depend on the number of timers.

use std::time::Duration;

use crate::model::time::{MonotonicTime, nanos};

/// The resolution of timers in nanoseconds: a tenth of a second.
const TICK: u64 = nanos(Duration::from_millis(100));
/// The number of ticks ahead that a timer can be set. A timer that is set further ahead comes up early and must be set again.
const SLOTS: usize = 1024;

/// The tick at which a key comes up. The caller remembers the tick of its latest [`Wheel::set`]: a key that is taken out with
/// another tick comes from an earlier `set`, and is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(u32);

/// A timing wheel of keys.
///
/// It does not know whether a deadline has moved. The caller checks each key that it takes out, and sets it again if it is not
/// due yet. So a packet, which moves the deadline of its flow, costs nothing here: a key is touched once per timeout.
#[derive(Debug)]
pub struct Wheel<K> {
    slots: Vec<Vec<K>>,
    /// All ticks before this one are empty; in ticks since the clock began.
    next: u64,
    len: usize,
}

impl<K> Wheel<K> {
    /// An empty wheel.
    pub fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), next: 0, len: 0 }
    }

    /// Sets a timer that runs from `start`, a time that is not in the future, to `deadline`. Returns when it comes up: at
    /// `deadline` rounded up, earlier if that is too far ahead, and at once or at the next tick if it has passed.
    pub fn set(&mut self, start: MonotonicTime, deadline: MonotonicTime, key: K) -> Tick {
        let wanted = deadline.as_nanos().div_ceil(TICK);
        if self.len == 0 {
            // After a long time without timers, and at the start, empty slots are not walked through. `deadline` may be far
            // ahead, and nearer ones may follow, so the slots begin at `start`.
            self.next = self.next.max(start.as_nanos() / TICK);
        }
        let tick = wanted.clamp(self.next, self.next + (SLOTS as u64) - 1);
        self.slots[slot(tick)].push(key);
        self.len += 1;
        Tick::of(tick)
    }

    /// Takes out one key that is due at `now`, with its tick.
    pub fn pop(&mut self, now: MonotonicTime) -> Option<(Tick, K)> {
        let last = now.as_nanos() / TICK;
        while self.len > 0 && self.next <= last {
            if let Some(key) = self.slots[slot(self.next)].pop() {
                self.len -= 1;
                return Some((Tick::of(self.next), key));
            }
            self.next += 1;
        }
        None
    }

    /// Takes out the key that would come up next, however far ahead. Other keys still come up at their ticks.
    pub fn pop_earliest(&mut self) -> Option<(Tick, K)> {
        let ahead = (self.next..).take(if self.len > 0 { SLOTS } else { 0 });
        let tick = ahead.into_iter().find(|tick| !self.slots[slot(*tick)].is_empty())?;
        let key = self.slots[slot(tick)].pop()?;
        self.len -= 1;
        Some((Tick::of(tick), key))
    }
}

impl Tick {
    /// The lower 32 bits, which are unique for 13 years.
    fn of(tick: u64) -> Self {
        Self(tick as u32)
    }
}

fn slot(tick: u64) -> usize {
    // SLOTS is far below u32::MAX, so the remainder fits any usize.
    (tick % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::monotonic;

    fn due(wheel: &mut Wheel<u32>, now: MonotonicTime) -> Vec<u32> {
        let mut all: Vec<_> = std::iter::from_fn(|| wheel.pop(now)).map(|(_, key)| key).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn comes_up_at_its_deadline_and_not_before() {
        let mut wheel = Wheel::new();
        wheel.set(monotonic(0), monotonic(1_000_000_000), 1);
        wheel.set(monotonic(0), monotonic(3_000_000_001), 3);
        assert!(due(&mut wheel, monotonic(999_999_999)).is_empty());
        assert_eq!(due(&mut wheel, monotonic(1_000_000_000)), [1]);
        assert!(due(&mut wheel, monotonic(3_000_000_001)).is_empty(), "rounded up, never early");
        assert_eq!(due(&mut wheel, monotonic(3_100_000_000)), [3]);
        assert!(due(&mut wheel, MonotonicTime::MAX).is_empty());
    }

    #[test]
    fn a_deadline_in_the_past_comes_up_at_once() {
        let mut wheel = Wheel::new();
        wheel.set(monotonic(20_000_000_000), monotonic(50_000_000_000), 1);
        assert_eq!(due(&mut wheel, monotonic(60_000_000_000)), [1]);
        wheel.set(monotonic(5), monotonic(10), 2);
        assert_eq!(due(&mut wheel, monotonic(60_000_000_000)), [2]);
    }

    #[test]
    fn a_deadline_too_far_ahead_comes_up_early() {
        let mut wheel = Wheel::new();
        let hour = 3_600_000_000_000;
        let early = wheel.set(monotonic(0), monotonic(hour), 1);
        assert!(early < Tick::of(hour / TICK));
        assert_eq!(due(&mut wheel, monotonic(hour / 2)), [1]);
    }

    /// A long timeout of one flow must not delay the short timeouts of others.
    #[test]
    fn a_near_deadline_comes_up_in_time_after_a_far_one() {
        let (second, hour) = (1_000_000_000, 3_600_000_000_000);
        let mut wheel = Wheel::new();
        for (key, start) in [(1, hour), (2, 5 * hour)] {
            wheel.set(monotonic(start), monotonic(start + hour), 0);
            wheel.set(monotonic(start), monotonic(start + 5 * second), key);
            assert!(due(&mut wheel, monotonic(start + 4 * second)).is_empty());
            assert_eq!(due(&mut wheel, monotonic(start + 5 * second)), [key]);
            assert_eq!(due(&mut wheel, monotonic(start + hour)), [0]);
        }
    }

    #[test]
    fn the_earliest_goes_first_when_room_is_needed() {
        let mut wheel = Wheel::new();
        wheel.set(monotonic(0), monotonic(9_000_000_000), 9);
        wheel.set(monotonic(0), monotonic(4_000_000_000), 4);
        assert_eq!(wheel.pop_earliest().map(|(_, key)| key), Some(4));
        wheel.set(monotonic(0), monotonic(1_000_000_000), 1);
        assert_eq!(due(&mut wheel, monotonic(1_000_000_000)), [1], "what is due sooner still comes up in time");
        assert_eq!(wheel.pop_earliest().map(|(_, key)| key), Some(9));
        assert_eq!(wheel.pop_earliest().map(|(_, key)| key), None);
    }
}
