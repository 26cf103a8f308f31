//! Conversion of packet timestamps. The kernel stamps packets with wall time; everything else here is measured on a
//! clock that is never set.

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

const SECOND: i64 = 1_000_000_000;
/// The offset between the clocks is precise enough when its bounds are this many nanoseconds apart.
const PRECISE: i64 = 500;
/// How many times one refresh reads the clocks, at most, to reach [`PRECISE`].
const MAX_READINGS: usize = 8;

/// Now, in nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now() -> u64 {
    read(ClockId::CLOCK_MONOTONIC).unsigned_abs()
}

fn read(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |time| time.num_nanoseconds())
}

/// A time of `CLOCK_REALTIME`, as packets carry it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WallTime {
    pub(crate) seconds: u32,
    pub(crate) nanoseconds: u32,
}

/// Converts wall time to `CLOCK_MONOTONIC`.
///
/// The kernel slews both clocks alike, so the offset between them changes only when the wall clock is set or the machine was
/// suspended. Each reading gives bounds of the offset, and the intersection of all bounds is narrower. It needs to be
/// narrow: microseconds decide whether an answer came before the connect that follows it, and on a busy machine a single
/// reading may be off by many.
///
/// Before the first reading no time can be converted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WallToMonotonic {
    offset: Option<OffsetBounds>,
    /// When the clocks were read last. Packets from before that can be converted.
    now: u64,
}

/// The least and the greatest value that wall time minus monotonic time may have, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OffsetBounds {
    least: i64,
    greatest: i64,
}

/// The wall clock, read between two readings of the monotonic one.
#[derive(Clone, Copy, Debug)]
struct Reading {
    monotonic_before: i64,
    wall: i64,
    monotonic_after: i64,
}

impl Reading {
    fn take() -> Self {
        let (monotonic_before, wall) = (read(ClockId::CLOCK_MONOTONIC), read(ClockId::CLOCK_REALTIME));
        Self { monotonic_before, wall, monotonic_after: read(ClockId::CLOCK_MONOTONIC) }
    }

    fn offset(&self) -> OffsetBounds {
        OffsetBounds { least: self.wall - self.monotonic_after, greatest: self.wall - self.monotonic_before }
    }
}

impl WallToMonotonic {
    /// Reads the clocks until the offset is precise, up to [`MAX_READINGS`] times.
    pub(crate) fn refresh(&mut self) {
        for _ in 0..MAX_READINGS {
            self.add(Reading::take());
            if self.offset.is_some_and(|offset| offset.greatest - offset.least <= PRECISE) {
                break;
            }
        }
    }

    fn add(&mut self, reading: Reading) {
        self.now = reading.monotonic_after.unsigned_abs();
        let new = reading.offset();
        let both = self.offset.map_or(new, |known| OffsetBounds {
            least: new.least.max(known.least),
            greatest: new.greatest.min(known.greatest),
        });
        // Readings contradict each other when the wall clock was set between them. The new one is right.
        self.offset = Some(if both.least <= both.greatest { both } else { new });
    }

    /// Whether the clocks were read after the packet came.
    pub(crate) fn covers(&self, time: WallTime) -> bool {
        self.convert(time).is_some_and(|time| time <= self.now)
    }

    /// The time of a packet in nanoseconds of `CLOCK_MONOTONIC`. It is never before `earlier`, the time of the packet
    /// before, nor after the present, so that it is nearly right even if the wall clock was set since the packet came.
    pub(crate) fn monotonic(&self, time: WallTime, earlier: u64) -> u64 {
        self.convert(time).unwrap_or_default().min(self.now).max(earlier)
    }

    fn convert(&self, time: WallTime) -> Option<u64> {
        let OffsetBounds { least, greatest } = self.offset?;
        let wall = i64::from(time.seconds) * SECOND + i64::from(time.nanoseconds);
        Some(u64::try_from(wall - (least + (greatest - least) / 2)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSET: i64 = 1_000 * SECOND;

    /// A reading of the wall clock at `at`, with the monotonic clock read this long before and after.
    fn reading(at: i64, offset: i64, before: i64, after: i64) -> Reading {
        Reading { monotonic_before: at - before, wall: at + offset, monotonic_after: at + after }
    }

    fn wall(seconds: u32, nanoseconds: u32) -> WallTime {
        WallTime { seconds, nanoseconds }
    }

    #[test]
    fn a_packet_has_nearly_its_time_though_the_wall_clock_is_set() {
        let mut clock = WallToMonotonic::default();
        assert!(!clock.covers(wall(0, 0)), "no packet is covered before a reading");
        clock.add(reading(50 * SECOND, OFFSET, 0, 0));
        let second = SECOND as u64;
        assert_eq!(clock.monotonic(wall(1_049, 500), 0), 49 * second + 500);
        assert!(clock.covers(wall(1_050, 0)) && !clock.covers(wall(1_050, 1)));
        assert_eq!(clock.monotonic(wall(9_999, 0), 0), 50 * second, "not after the present");
        assert_eq!(clock.monotonic(wall(900, 0), 48 * second), 48 * second, "not before the previous packet");
        // The wall clock is set back.
        clock.add(reading(60 * SECOND, OFFSET - 30 * SECOND, 100, 100));
        assert_eq!(clock.monotonic(wall(1_029, 0), 0), 59 * second);
    }

    #[test]
    fn slow_readings_together_give_a_precise_offset() {
        const MILLISECOND: i64 = 1_000_000;
        let mut clock = WallToMonotonic::default();
        clock.add(reading(50 * SECOND, OFFSET, 3 * MILLISECOND, 200));
        assert_eq!(clock.monotonic(wall(1_049, 0), 0), 49 * SECOND as u64 - 1_499_900, "in the middle of 3 ms");
        clock.add(reading(51 * SECOND, OFFSET, 200, 3 * MILLISECOND));
        clock.add(reading(52 * SECOND, OFFSET, 9 * MILLISECOND, 9 * MILLISECOND));
        assert_eq!(clock.offset, Some(OffsetBounds { least: OFFSET - 200, greatest: OFFSET + 200 }));
        assert_eq!(clock.monotonic(wall(1_049, 0), 0), 49 * SECOND as u64);
    }
}
