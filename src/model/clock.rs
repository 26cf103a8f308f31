//! Converts kernel time to wall time.
//!
//! Events carry times of the kernel's clocks; documents need wall time. A [`Clock`] converts one into the other. It holds
//! the differences between the clocks instead of reading them, so the same value always gives the same answer.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::model::time::{BootTime, MonotonicTime};

/// A moment of wall time: nanoseconds since 1970-01-01T00:00:00Z. The latest one is in the year 2554.
///
/// It displays, and serializes, as RFC 3339 in UTC with nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The time this many nanoseconds after 1970-01-01T00:00:00Z.
    pub const fn from_unix_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub const fn unix_nanos(self) -> u64 {
        self.0
    }

    /// The same time, displayed with milliseconds (truncated, not rounded).
    pub const fn millis(self) -> Millis {
        Millis(self)
    }

    fn system_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.0)
    }
}

#[cfg(any(feature = "documents", feature = "sensors"))]
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_nanos(self.system_time()).fmt(f)
    }
}

#[cfg(any(feature = "documents", feature = "sensors"))]
impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A [`Timestamp`] that displays, and serializes, with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(Timestamp);

#[cfg(any(feature = "documents", feature = "sensors"))]
impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(self.0.system_time()).fmt(f)
    }
}

#[cfg(any(feature = "documents", feature = "sensors"))]
impl Serialize for Millis {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Readings of three clocks at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readings {
    /// The clock of the events' times: `CLOCK_MONOTONIC`, or the tracing clock on kernels before 4.1.
    pub kernel: MonotonicTime,
    /// `CLOCK_BOOTTIME`.
    pub boot: BootTime,
    /// The wall clock.
    pub wall: Timestamp,
}

/// Maps the kernel's clocks to wall time.
///
/// The wall clock may be set, and the machine may sleep. Both move the wall clock relative to the kernel's clock. A `Clock`
/// remembers the last few such steps, so that it converts a time from before a step to what the wall clock showed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// In order of time. The first one also applies to all time before it.
    epochs: [Epoch; MEMORY],
    /// The number of epochs in use; at least one.
    known: usize,
}

/// The maximum number of epochs.
const MEMORY: usize = 8;

/// The differences between the clocks from a certain time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Epoch {
    /// The kernel's clock at the beginning of the epoch.
    since: MonotonicTime,
    /// `CLOCK_BOOTTIME` at the beginning of the epoch.
    since_boot: BootTime,
    /// The wall time at which the kernel's clock is zero, in nanoseconds since 1970; may be negative.
    kernel: i128,
    /// The wall time at which `CLOCK_BOOTTIME` is zero, likewise.
    boot: i128,
}

impl Epoch {
    fn of(readings: Readings) -> Self {
        let wall = i128::from(readings.wall.unix_nanos());
        Self {
            since: readings.kernel,
            since_boot: readings.boot,
            kernel: wall - i128::from(readings.kernel.as_nanos()),
            boot: wall - i128::from(readings.boot.as_nanos()),
        }
    }
}

impl Clock {
    /// A clock that agrees with these readings.
    pub fn from_readings(readings: Readings) -> Self {
        let mut epochs = [Epoch::default(); MEMORY];
        epochs[0] = Epoch::of(readings);
        Self { epochs, known: 1 }
    }

    /// A clock for `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` as they are now.
    ///
    /// # Errors
    /// The kernel lacks one of the clocks (`CLOCK_BOOTTIME` came with Linux 2.6.39).
    pub fn now() -> io::Result<Self> {
        Readings::now(monotonic).map(Self::from_readings)
    }

    /// Begins a new epoch if the clocks have drifted apart by more than `max_drift` since the last one. Returns the nanoseconds
    /// by which the wall clock has moved in that case.
    pub fn follow(&mut self, readings: Readings, max_drift: Duration) -> Option<i128> {
        let (now, last) = (Epoch::of(readings), self.epochs[self.known - 1]);
        let most = i128::try_from(max_drift.as_nanos()).unwrap_or(i128::MAX);
        let moved = now.kernel - last.kernel;
        if moved.abs() <= most && (now.boot - last.boot).abs() <= most {
            return None;
        }
        if self.known == MEMORY {
            self.epochs.rotate_left(1);
            self.known -= 1;
        }
        self.epochs[self.known] = now;
        self.known += 1;
        Some(moved)
    }

    /// Like [`Clock::follow`], for a kernel's clock that can be read only from samples. A sample is read some time after it was
    /// written, so the reading may be too low. If the clock seems to leap forward while the other two do not, the earlier reading
    /// was too low, and this one corrects it.
    pub(crate) fn follow_samples(&mut self, readings: Readings, max_drift: Duration) -> Option<i128> {
        let most = i128::try_from(max_drift.as_nanos()).unwrap_or(i128::MAX);
        let (now, last) = (Epoch::of(readings), &mut self.epochs[self.known - 1]);
        if now.kernel < last.kernel && (now.boot - last.boot).abs() <= most {
            last.kernel = now.kernel;
            return None;
        }
        self.follow(readings, max_drift)
    }

    /// Like [`Clock::follow_samples`], right after a sample was caused in order to read the kernel's clock. The reading is exact, so it
    /// also corrects a drift of the kernel's clock against the other two.
    pub(crate) fn follow_comparison(&mut self, readings: Readings, max_drift: Duration) -> Option<i128> {
        let most = i128::try_from(max_drift.as_nanos()).unwrap_or(i128::MAX);
        let (now, last) = (Epoch::of(readings), &mut self.epochs[self.known - 1]);
        if (now.kernel - last.kernel).abs() <= most && (now.boot - last.boot).abs() <= most {
            last.kernel = now.kernel;
            return None;
        }
        self.follow_samples(readings, max_drift)
    }

    /// The wall time at `time` of the kernel's clock.
    pub fn wall(&self, time: MonotonicTime) -> Timestamp {
        timestamp(self.epoch(|epoch| epoch.since <= time).kernel + i128::from(time.as_nanos()))
    }

    /// The wall time at `time` of `CLOCK_BOOTTIME`.
    pub fn wall_of_boot(&self, time: BootTime) -> Timestamp {
        timestamp(self.epoch(|epoch| epoch.since_boot <= time).boot + i128::from(time.as_nanos()))
    }

    /// The latest epoch that had begun, or else the first one.
    fn epoch(&self, had_begun: impl Fn(&Epoch) -> bool) -> Epoch {
        let known = &self.epochs[..self.known];
        known.iter().rev().find(|epoch| had_begun(epoch)).copied().unwrap_or(self.epochs[0])
    }
}

/// The source of wall time: the system's wall clock, or a function of yours in tests.
///
/// ```
/// use socktrail::clock::{TimeSource, Timestamp};
///
/// let fixed = TimeSource::new(|| Timestamp::from_unix_nanos(1_000_000_000_000_000_000));
/// assert_eq!(fixed.now().to_string(), "2001-09-09T01:46:40.000000000Z");
/// ```
#[derive(Clone)]
pub struct TimeSource(Option<Arc<dyn Fn() -> Timestamp + Send + Sync>>);

impl TimeSource {
    /// A time source that asks `now`, from any thread.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(now)))
    }

    /// The current wall time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Some(now) => now(),
            None => Timestamp(nanos(ClockId::CLOCK_REALTIME).unwrap_or(0)),
        }
    }
}

impl Default for TimeSource {
    /// The system's wall clock.
    fn default() -> Self {
        Self(None)
    }
}

impl fmt::Debug for TimeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "TimeSource(own)" } else { "TimeSource(system)" })
    }
}

impl Readings {
    /// Reads the system's clocks; `kernel` reads the clock of the samples.
    ///
    /// They are read one after the other, so another task may run in between. The fastest of five rounds is used.
    ///
    /// # Errors
    /// The kernel lacks one of the clocks.
    pub fn now(kernel: impl Fn() -> MonotonicTime) -> io::Result<Self> {
        Self::with_time_source(&TimeSource::default(), kernel)
    }

    /// Like [`Readings::now`], with wall time from this source.
    ///
    /// # Errors
    /// The kernel lacks one of the clocks.
    pub fn with_time_source(wall: &TimeSource, kernel: impl Fn() -> MonotonicTime) -> io::Result<Self> {
        let mut best = read_clocks(wall, &kernel)?;
        for _ in 0..4 {
            let round = read_clocks(wall, &kernel)?;
            if round.0 < best.0 {
                best = round;
            }
        }
        Ok(best.1)
    }
}

/// The time now by `CLOCK_MONOTONIC`; zero if it cannot be read.
pub(crate) fn monotonic() -> MonotonicTime {
    MonotonicTime::from_nanos(nanos(ClockId::CLOCK_MONOTONIC).unwrap_or(0))
}

/// The nearest time that a [`Timestamp`] can hold.
fn timestamp(nanos: i128) -> Timestamp {
    let nearest = if nanos < 0 { 0 } else { u64::MAX };
    Timestamp(u64::try_from(nanos).unwrap_or(nearest))
}

/// One round of readings, and the time that it took.
fn read_clocks(wall: &TimeSource, kernel: &impl Fn() -> MonotonicTime) -> io::Result<(Duration, Readings)> {
    let before = kernel();
    let wall = wall.now();
    let boot = BootTime::from_nanos(nanos(ClockId::CLOCK_BOOTTIME)?);
    let took = kernel().saturating_duration_since(before);
    Ok((took, Readings { kernel: before.saturating_add(took / 2), boot, wall }))
}

fn nanos(clock: ClockId) -> io::Result<u64> {
    let time = clock_gettime(clock)?;
    Ok(timestamp(i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec())).0)
}

// The tests compare times as text, which only these features need.
#[cfg(all(test, any(feature = "documents", feature = "sensors")))]
mod tests {
    use super::*;
    use crate::model::testing::{monotonic, since_boot};

    /// 2019-08-22T20:46:35Z, by `date -u -d 2019-08-22T20:46:35Z +%s`.
    const THEN: u64 = 1_566_506_795_000_000_000;

    fn clock() -> Clock {
        // The machine has run for ten seconds and slept for twenty.
        Clock::from_readings(Readings {
            kernel: monotonic(10_000_000_000),
            boot: since_boot(30_000_000_000),
            wall: Timestamp::from_unix_nanos(THEN),
        })
    }

    #[test]
    fn times_after_and_before_the_reading() {
        assert_eq!(clock().wall(monotonic(10_001_234_567)).to_string(), "2019-08-22T20:46:35.001234567Z");
        assert_eq!(clock().wall(monotonic(0)).to_string(), "2019-08-22T20:46:25.000000000Z");
    }

    #[test]
    fn boot_time_counts_sleep() {
        assert_eq!(clock().wall_of_boot(since_boot(30_000_000_000)).to_string(), "2019-08-22T20:46:35.000000000Z");
        assert_eq!(clock().wall_of_boot(since_boot(0)).to_string(), "2019-08-22T20:46:05.000000000Z");
    }

    #[test]
    fn a_step_of_the_wall_clock_holds_from_then_on() {
        let drift = Duration::from_millis(100);
        let hour = 3_600_000_000_000;
        let mut clock = clock();
        let at = |seconds: u64, wall: u64| Readings {
            kernel: monotonic(seconds * 1_000_000_000),
            boot: since_boot((seconds + 20) * 1_000_000_000),
            wall: Timestamp::from_unix_nanos(wall),
        };
        assert_eq!(clock.follow(at(20, THEN + 10_050_000_000), drift), None, "within the maximum drift");
        assert_eq!(clock.follow(at(30, THEN + 20_000_000_000 - hour), drift), Some(-i128::from(hour)));
        assert_eq!(clock.wall(monotonic(29_000_000_000)).to_string(), "2019-08-22T20:46:54.000000000Z");
        assert_eq!(clock.wall(monotonic(31_000_000_000)).to_string(), "2019-08-22T19:46:56.000000000Z");
        assert_eq!(clock.follow(at(40, THEN + 30_000_000_000), drift), Some(i128::from(hour)));
        assert_eq!(clock.wall(monotonic(41_000_000_000)).to_string(), "2019-08-22T20:47:06.000000000Z");
        assert_eq!(clock.wall(monotonic(35_000_000_000)).to_string(), "2019-08-22T19:47:00.000000000Z");
        // A step after the start of a process does not move the start.
        assert_eq!(clock.wall_of_boot(since_boot(30_000_000_000)).to_string(), "2019-08-22T20:46:35.000000000Z");
    }

    #[test]
    fn sleep_moves_the_wall_clock_but_not_the_time_since_boot() {
        let mut clock = clock();
        let slept = Readings {
            kernel: monotonic(11_000_000_000),
            boot: since_boot(631_000_000_000),
            wall: Timestamp::from_unix_nanos(THEN + 601_000_000_000),
        };
        assert_eq!(clock.follow(slept, Duration::from_millis(100)), Some(600_000_000_000));
        assert_eq!(clock.wall(monotonic(12_000_000_000)).to_string(), "2019-08-22T20:56:37.000000000Z");
        assert_eq!(clock.wall(monotonic(10_500_000_000)).to_string(), "2019-08-22T20:46:35.500000000Z");
        assert_eq!(clock.wall_of_boot(since_boot(632_000_000_000)).to_string(), "2019-08-22T20:56:37.000000000Z");
    }

    #[test]
    fn a_corrected_reading_is_not_a_step_of_the_wall_clock() {
        const SECOND: u64 = 1_000_000_000;
        let drift = Duration::from_millis(100);
        let at = |passed: u64, kernel: u64, wall: u64| Readings {
            kernel: monotonic(kernel),
            boot: since_boot((30 + passed) * SECOND),
            wall: Timestamp::from_unix_nanos(THEN + wall * SECOND),
        };
        // No sample had shown the clock at the start, and the first one had waited for a while.
        let mut clock = Clock::from_readings(at(0, 0, 0));
        for kernel in [10_200_000_000, 11_000_000_000, 11_000_000_000 - 50_000_000] {
            assert_eq!(clock.follow_samples(at(1, kernel, 1), drift), None);
        }
        assert_eq!(clock.wall(monotonic(10 * SECOND)).unix_nanos(), THEN);
        // The wall clock is set back by an hour.
        let hour = 3600 * SECOND;
        let set = Readings { wall: Timestamp::from_unix_nanos(THEN + 2 * SECOND - hour), ..at(2, 12 * SECOND, 2) };
        assert_eq!(clock.follow_samples(set, drift), Some(-i128::from(hour)));
        assert_eq!(clock.wall(monotonic(10 * SECOND)).unix_nanos(), THEN);
        // The machine sleeps for ten minutes.
        let woken =
            Readings { wall: Timestamp::from_unix_nanos(THEN + 603 * SECOND - hour), ..at(603, 13 * SECOND, 2) };
        assert_eq!(clock.follow_samples(woken, drift), Some(i128::from(600 * SECOND)));
    }

    /// For ten hours, the kernel's clock runs slower or faster than the wall clock, and is compared every ten seconds.
    #[test]
    fn a_drift_of_the_samples_clock_is_no_step_of_the_wall_clock() {
        const SECOND: u64 = 1_000_000_000;
        let limit = Duration::from_millis(100);
        for drift_per_second in [-50_000_i64, 50_000] {
            let at = |seconds: u64| Readings {
                kernel: monotonic((seconds * SECOND).wrapping_add_signed(seconds as i64 * drift_per_second)),
                boot: since_boot((30 + seconds) * SECOND),
                wall: Timestamp::from_unix_nanos(THEN + seconds * SECOND),
            };
            let mut clock = Clock::from_readings(at(0));
            for second in 1..36_000 {
                let follow = if second % 10 == 0 { Clock::follow_comparison } else { Clock::follow_samples };
                assert_eq!(follow(&mut clock, at(second), limit), None, "{second}");
                let off = clock.wall(at(second).kernel).unix_nanos().abs_diff(THEN + second * SECOND);
                assert!(off <= 500_000, "{off} ns after {second} s");
            }
            let set = Readings { wall: Timestamp::from_unix_nanos(THEN), ..at(36_000) };
            assert!(clock.follow_comparison(set, limit).is_some(), "the wall clock is set back");
            let slept = Readings {
                boot: since_boot(40_000 * SECOND),
                wall: Timestamp::from_unix_nanos(THEN + 3970 * SECOND),
                ..set
            };
            assert!(clock.follow_comparison(slept, limit).is_some(), "the machine sleeps");
        }
    }

    #[test]
    fn only_the_last_steps_are_remembered() {
        let mut clock = clock();
        for step in 1..100_u64 {
            let wall = Timestamp::from_unix_nanos(THEN + step * 60_000_000_000);
            let readings =
                Readings { kernel: monotonic(10_000_000_000 + step), boot: since_boot(30_000_000_000 + step), wall };
            assert!(clock.follow(readings, Duration::from_secs(1)).is_some());
        }
        assert_eq!(clock.wall(monotonic(10_000_000_099)).unix_nanos(), THEN + 99 * 60_000_000_000);
        // An earlier time is converted by the oldest step that is remembered: number 92.
        assert_eq!(clock.wall(monotonic(10_000_000_001)).unix_nanos(), THEN + 92 * 60_000_000_000 - 91);
    }

    #[test]
    fn milliseconds_are_truncated() {
        let late = Timestamp::from_unix_nanos(THEN + 1_999_999);
        assert_eq!(late.millis().to_string(), "2019-08-22T20:46:35.001Z");
    }

    #[test]
    fn a_wall_clock_set_to_1970_does_not_underflow() {
        let clock = Clock::from_readings(Readings {
            kernel: monotonic(5),
            boot: since_boot(5),
            wall: Timestamp::from_unix_nanos(2),
        });
        assert_eq!(clock.wall(monotonic(0)).to_string(), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(clock.wall(monotonic(4)).to_string(), "1970-01-01T00:00:00.000000001Z");
    }

    #[test]
    fn the_end_of_the_range_is_displayed() {
        assert_eq!(clock().wall(MonotonicTime::MAX), Timestamp::from_unix_nanos(u64::MAX));
        assert_eq!(clock().wall(MonotonicTime::MAX).millis().to_string(), "2554-07-21T23:34:33.709Z");
    }

    #[test]
    fn now_agrees_with_the_system() {
        let clock = Clock::now().expect("every supported kernel has these clocks");
        let here = clock.wall(monotonic(nanos(ClockId::CLOCK_MONOTONIC).unwrap())).unix_nanos();
        let system = u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos()).unwrap();
        assert!(here.abs_diff(system) < 5_000_000_000, "{here} {system}");
    }
}
