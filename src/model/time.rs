//! Times of the kernel's two clocks: a type for each, so that a wrong mix does not compile.
//!
//! [`Clock`](crate::model::clock::Clock) converts either to wall time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The nanoseconds of a [`Duration`], or `u64::MAX` if there are more.
pub(crate) const fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos() as u64)
}

/// Declares the type of times of one clock.
macro_rules! kernel_time {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The time at which the clock began.
            pub const ZERO: Self = Self(0);
            /// The last time that it can show.
            pub const MAX: Self = Self(u64::MAX);

            /// This many nanoseconds after the clock began.
            pub const fn from_nanos(nanos: u64) -> Self {
                Self(nanos)
            }

            /// Nanoseconds since the clock began.
            pub const fn as_nanos(self) -> u64 {
                self.0
            }

            /// The time `duration` later, or [`MAX`](Self::MAX).
            #[must_use]
            pub const fn saturating_add(self, duration: Duration) -> Self {
                Self(self.0.saturating_add(nanos(duration)))
            }

            /// The time `duration` earlier, or [`ZERO`](Self::ZERO).
            #[must_use]
            pub const fn saturating_sub(self, duration: Duration) -> Self {
                Self(self.0.saturating_sub(nanos(duration)))
            }

            /// How much later it is than `earlier`; zero if it is not later.
            pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
                Duration::from_nanos(self.0.saturating_sub(earlier.0))
            }

            /// The absolute difference.
            pub const fn abs_diff(self, other: Self) -> Duration {
                Duration::from_nanos(self.0.abs_diff(other.0))
            }
        }
    };
}

kernel_time! {
    /// A time by the clock that the kernel stamps events with: `CLOCK_MONOTONIC`, which stands still while the machine
    /// sleeps; before Linux 4.1, the tracing clock in its place. Not wall time.
    MonotonicTime
}

kernel_time! {
    /// A time by `CLOCK_BOOTTIME`, which goes on while the machine sleeps. Start times of processes use it. Not wall time.
    ///
    /// It cannot be compared with a time of the other clock, or passed in its place:
    ///
    /// ```compile_fail,E0308
    /// use socktrail::{BootTime, MonotonicTime};
    ///
    /// assert!(BootTime::ZERO <= MonotonicTime::ZERO);
    /// ```
    BootTime
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stay_within_their_range() {
        let second = Duration::from_secs(1);
        let at = MonotonicTime::from_nanos;
        assert_eq!(at(5).saturating_add(second), at(1_000_000_005));
        assert_eq!(at(1_000_000_005).saturating_sub(second), at(5));
        assert_eq!(at(5).saturating_sub(second), MonotonicTime::ZERO);
        assert_eq!(MonotonicTime::MAX.saturating_add(second), MonotonicTime::MAX);
        assert_eq!(at(5).saturating_add(Duration::MAX), MonotonicTime::MAX);
    }

    #[test]
    fn a_difference_is_a_duration() {
        let at = BootTime::from_nanos;
        assert_eq!(at(7).saturating_duration_since(at(5)), Duration::from_nanos(2));
        assert_eq!(at(5).saturating_duration_since(at(7)), Duration::ZERO);
        assert_eq!((at(5).abs_diff(at(7)), at(7).abs_diff(at(5))), (Duration::from_nanos(2), Duration::from_nanos(2)));
    }

    #[test]
    fn times_are_serialized_as_numbers() {
        assert_eq!(serde_json::to_string(&MonotonicTime::from_nanos(7)).unwrap(), "7");
        assert_eq!(serde_json::from_str::<BootTime>("7").unwrap(), BootTime::from_nanos(7));
    }
}
