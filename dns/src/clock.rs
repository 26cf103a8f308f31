//! Packets are stamped with wall time; everything else is measured by a clock that nobody sets.

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

const SECOND: i64 = 1_000_000_000;
/// Two clock readings are close enough if they are at most this many nanoseconds apart.
const CLOSE: i64 = 500;
/// How many times to try for a close pair.
const READINGS: usize = 8;

/// Now, in nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now() -> u64 {
    read(ClockId::CLOCK_MONOTONIC).unsigned_abs()
}

fn read(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |time| time.num_nanoseconds())
}

/// Turns wall time into `CLOCK_MONOTONIC`. The default is good for no packet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Conversion {
    /// Wall time minus monotonic time.
    offset: i64,
    /// The present, which no packet comes after.
    now: u64,
}

impl Conversion {
    /// The clocks as they are now. The closest of several readings is taken, because microseconds decide whether an
    /// answer came before the connect that follows it.
    pub(crate) fn read() -> Self {
        let mut closest = i64::MAX;
        let mut conversion = Self::default();
        for _ in 0..READINGS {
            let (before, wall) = (read(ClockId::CLOCK_MONOTONIC), read(ClockId::CLOCK_REALTIME));
            let after = read(ClockId::CLOCK_MONOTONIC);
            conversion.now = after.unsigned_abs();
            if after - before < closest {
                closest = after - before;
                conversion.offset = wall - (before + closest / 2);
            }
            if closest < CLOSE {
                break;
            }
        }
        conversion
    }

    /// Whether it was read after a packet came.
    pub(crate) fn covers(&self, time: (u32, u32)) -> bool {
        self.unclamped(time) <= self.now
    }

    /// The time of a packet. It is never before that of the packet `earlier`, nor after the present, so that a step of
    /// the wall clock between the packet and now does little harm.
    pub(crate) fn monotonic(&self, time: (u32, u32), earlier: u64) -> u64 {
        self.unclamped(time).min(self.now).max(earlier)
    }

    fn unclamped(&self, (seconds, nanoseconds): (u32, u32)) -> u64 {
        let wall = i64::from(seconds) * SECOND + i64::from(nanoseconds);
        u64::try_from(wall - self.offset).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_kept_when_the_wall_clock_steps() {
        let conversion = Conversion { offset: 1_000 * SECOND, now: 50 * SECOND as u64 };
        let second = SECOND as u64;
        assert_eq!(conversion.monotonic((1_049, 500), 0), 49 * second + 500);
        assert!(conversion.covers((1_050, 0)) && !conversion.covers((1_050, 1)));
        assert_eq!(conversion.monotonic((9_999, 0), 0), 50 * second, "not after the present");
        assert_eq!(conversion.monotonic((900, 0), 48 * second), 48 * second, "not before the packet before");
    }
}
