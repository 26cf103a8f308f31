//! Kernel time to wall time.
//!
//! Everything inside measures with the kernel's clocks; only documents and people want the time of day. A [`Clock`] is
//! the bridge: a pair of differences, taken at one moment, so that the same clock always gives the same answer.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize, Serializer};

use crate::event::KernelTime;

/// A moment of wall time: nanoseconds since 1970-01-01T00:00:00Z, from there to the year 2554.
///
/// It displays, and serializes, as RFC 3339 in UTC with nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment so many nanoseconds after 1970 began.
    pub const fn from_unix_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since 1970 began.
    pub const fn unix_nanos(self) -> u64 {
        self.0
    }

    /// The same moment, to be written with milliseconds (cut, not rounded).
    pub const fn millis(self) -> Millis {
        Millis(self)
    }

    fn system_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_nanos(self.system_time()).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A [`Timestamp`] that displays, and serializes, with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(Timestamp);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(self.0.system_time()).fmt(f)
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What three clocks showed at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readings {
    /// The clock that [`KernelTime`] is of, in nanoseconds: `CLOCK_MONOTONIC`, or what the kernel has in its place.
    pub kernel: KernelTime,
    /// `CLOCK_BOOTTIME`, in nanoseconds.
    pub boot: u64,
    /// The wall clock.
    pub wall: Timestamp,
}

/// Maps the kernel's clocks to wall time.
///
/// The wall clock may be set, and the machine may sleep; both move it against the kernel's clock. A clock remembers the
/// last few such steps, so that a time from before a step is what the wall clock showed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// The first one holds for all time before it, too.
    epochs: [Epoch; MEMORY],
    /// How many of them count, at least one.
    known: usize,
}

/// How many steps are remembered.
const MEMORY: usize = 8;

/// How the clocks related from one moment on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Epoch {
    /// What the kernel's clock showed when this was found.
    since: KernelTime,
    /// What `CLOCK_BOOTTIME` showed.
    since_boot: u64,
    /// Wall time when the kernel's clock showed zero; negative where the wall clock was set to before that.
    kernel: i128,
    /// The same for `CLOCK_BOOTTIME`.
    boot: i128,
}

impl Epoch {
    fn of(readings: Readings) -> Self {
        let wall = i128::from(readings.wall.unix_nanos());
        Self {
            since: readings.kernel,
            since_boot: readings.boot,
            kernel: wall - i128::from(readings.kernel),
            boot: wall - i128::from(readings.boot),
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
    pub fn now() -> nix::Result<Self> {
        Readings::now(monotonic).map(Self::from_readings)
    }

    /// Notices whether the clocks have moved against each other by more than `max_drift` since they were last looked
    /// at; from these readings on, the new relation holds. Says by how many nanoseconds the wall clock has moved.
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

    /// The same for a kernel's clock that only samples show: it is at least as far as they say. If it seems to leap and the
    /// other two do not, it had been so far all along, and is better known now.
    pub(crate) fn follow_shown(&mut self, readings: Readings, max_drift: Duration) -> Option<i128> {
        let most = i128::try_from(max_drift.as_nanos()).unwrap_or(i128::MAX);
        let (now, last) = (Epoch::of(readings), &mut self.epochs[self.known - 1]);
        if now.kernel < last.kernel && (now.boot - last.boot).abs() <= most {
            last.kernel = now.kernel;
            return None;
        }
        self.follow(readings, max_drift)
    }

    /// What the wall clock showed when the kernel's clock showed `time`.
    pub fn wall(&self, time: KernelTime) -> Timestamp {
        timestamp(self.epoch(|epoch| epoch.since <= time).kernel + i128::from(time))
    }

    /// What the wall clock showed when `CLOCK_BOOTTIME` showed `nanos`.
    pub fn wall_of_boot(&self, nanos: u64) -> Timestamp {
        timestamp(self.epoch(|epoch| epoch.since_boot <= nanos).boot + i128::from(nanos))
    }

    /// The last epoch that had begun.
    fn epoch(&self, had_begun: impl Fn(&Epoch) -> bool) -> Epoch {
        let known = &self.epochs[..self.known];
        known.iter().rev().find(|epoch| had_begun(epoch)).copied().unwrap_or(self.epochs[0])
    }
}

/// Where the time of day comes from: the system's wall clock, or one of your own, for tests.
///
/// ```
/// use socktrail::clock::{TimeSource, Timestamp};
///
/// let noon = TimeSource::new(|| Timestamp::from_unix_nanos(1_000_000_000_000_000_000));
/// assert_eq!(noon.now().to_string(), "2001-09-09T01:46:40.000000000Z");
/// ```
#[derive(Clone)]
pub struct TimeSource(Option<Arc<dyn Fn() -> Timestamp + Send + Sync>>);

impl TimeSource {
    /// A time source that asks `now`, from any thread.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(now)))
    }

    /// What it shows.
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
    /// Reads the system's clocks; `kernel` is the one that the samples' times are of.
    ///
    /// They are read one after the other, so another task may run in between. The quickest of a few rounds counts.
    ///
    /// # Errors
    /// The kernel lacks one of the clocks.
    pub fn now(kernel: impl Fn() -> KernelTime) -> nix::Result<Self> {
        Self::by(&TimeSource::default(), kernel)
    }

    /// As [`Readings::now`], with the time of day from elsewhere.
    ///
    /// # Errors
    /// The kernel lacks one of the clocks.
    pub fn by(wall: &TimeSource, kernel: impl Fn() -> KernelTime) -> nix::Result<Self> {
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

/// `CLOCK_MONOTONIC`, in nanoseconds; 0 where it cannot be read.
pub(crate) fn monotonic() -> KernelTime {
    nanos(ClockId::CLOCK_MONOTONIC).unwrap_or(0)
}

/// The nearest moment that a [`Timestamp`] can hold.
fn timestamp(nanos: i128) -> Timestamp {
    let nearest = if nanos < 0 { 0 } else { u64::MAX };
    Timestamp(u64::try_from(nanos).unwrap_or(nearest))
}

/// One round of readings, and how many nanoseconds it took.
fn read_clocks(wall: &TimeSource, kernel: &impl Fn() -> KernelTime) -> nix::Result<(u64, Readings)> {
    let before = kernel();
    let wall = wall.now();
    let boot = nanos(ClockId::CLOCK_BOOTTIME)?;
    let took = kernel().saturating_sub(before);
    let halfway = took / 2;
    Ok((took, Readings { kernel: before + halfway, boot, wall }))
}

fn nanos(clock: ClockId) -> nix::Result<u64> {
    let time = clock_gettime(clock)?;
    Ok(timestamp(i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec())).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2019-08-22T20:46:35Z, by `date -u -d 2019-08-22T20:46:35Z +%s`.
    const THEN: u64 = 1_566_506_795_000_000_000;

    fn clock() -> Clock {
        // Ten seconds after boot by the one clock, thirty by the other: it slept for twenty.
        Clock::from_readings(Readings {
            kernel: 10_000_000_000,
            boot: 30_000_000_000,
            wall: Timestamp::from_unix_nanos(THEN),
        })
    }

    #[test]
    fn times_after_and_before_the_reading() {
        assert_eq!(clock().wall(10_001_234_567).to_string(), "2019-08-22T20:46:35.001234567Z");
        assert_eq!(clock().wall(0).to_string(), "2019-08-22T20:46:25.000000000Z");
    }

    #[test]
    fn boot_time_counts_sleep() {
        assert_eq!(clock().wall_of_boot(30_000_000_000).to_string(), "2019-08-22T20:46:35.000000000Z");
        assert_eq!(clock().wall_of_boot(0).to_string(), "2019-08-22T20:46:05.000000000Z");
    }

    #[test]
    fn a_step_of_the_wall_clock_holds_from_then_on() {
        let drift = Duration::from_millis(100);
        let hour = 3_600_000_000_000;
        let mut clock = clock();
        let at = |seconds: u64, wall: u64| Readings {
            kernel: seconds * 1_000_000_000,
            boot: (seconds + 20) * 1_000_000_000,
            wall: Timestamp::from_unix_nanos(wall),
        };
        assert_eq!(clock.follow(at(20, THEN + 10_050_000_000), drift), None, "within what may be");
        assert_eq!(clock.follow(at(30, THEN + 20_000_000_000 - hour), drift), Some(-i128::from(hour)));
        assert_eq!(clock.wall(29_000_000_000).to_string(), "2019-08-22T20:46:54.000000000Z");
        assert_eq!(clock.wall(31_000_000_000).to_string(), "2019-08-22T19:46:56.000000000Z");
        assert_eq!(clock.follow(at(40, THEN + 30_000_000_000), drift), Some(i128::from(hour)));
        assert_eq!(clock.wall(41_000_000_000).to_string(), "2019-08-22T20:47:06.000000000Z");
        assert_eq!(clock.wall(35_000_000_000).to_string(), "2019-08-22T19:47:00.000000000Z");
        // The beginning of a process is not moved by a step after it.
        assert_eq!(clock.wall_of_boot(30_000_000_000).to_string(), "2019-08-22T20:46:35.000000000Z");
    }

    #[test]
    fn sleep_moves_the_wall_clock_but_not_the_time_since_boot() {
        let mut clock = clock();
        let slept = Readings {
            kernel: 11_000_000_000,
            boot: 631_000_000_000,
            wall: Timestamp::from_unix_nanos(THEN + 601_000_000_000),
        };
        assert_eq!(clock.follow(slept, Duration::from_millis(100)), Some(600_000_000_000));
        assert_eq!(clock.wall(12_000_000_000).to_string(), "2019-08-22T20:56:37.000000000Z");
        assert_eq!(clock.wall(10_500_000_000).to_string(), "2019-08-22T20:46:35.500000000Z");
        assert_eq!(clock.wall_of_boot(632_000_000_000).to_string(), "2019-08-22T20:56:37.000000000Z");
    }

    #[test]
    fn a_clock_that_is_better_known_was_not_set() {
        const SECOND: u64 = 1_000_000_000;
        let drift = Duration::from_millis(100);
        let at = |passed: u64, kernel: u64, wall: u64| Readings {
            kernel,
            boot: (30 + passed) * SECOND,
            wall: Timestamp::from_unix_nanos(THEN + wall * SECOND),
        };
        // Nothing had shown it at the start, and the first sample that did had waited for a while.
        let mut clock = Clock::from_readings(at(0, 0, 0));
        for kernel in [10_200_000_000, 11_000_000_000, 11_000_000_000 - 50_000_000] {
            assert_eq!(clock.follow_shown(at(1, kernel, 1), drift), None);
        }
        assert_eq!(clock.wall(10 * SECOND).unix_nanos(), THEN);
        // The wall clock is set back by an hour.
        let hour = 3600 * SECOND;
        let set = Readings { wall: Timestamp::from_unix_nanos(THEN + 2 * SECOND - hour), ..at(2, 12 * SECOND, 2) };
        assert_eq!(clock.follow_shown(set, drift), Some(-i128::from(hour)));
        assert_eq!(clock.wall(10 * SECOND).unix_nanos(), THEN);
        // It sleeps for ten minutes.
        let woken =
            Readings { wall: Timestamp::from_unix_nanos(THEN + 603 * SECOND - hour), ..at(603, 13 * SECOND, 2) };
        assert_eq!(clock.follow_shown(woken, drift), Some(i128::from(600 * SECOND)));
    }

    #[test]
    fn only_the_last_steps_are_remembered() {
        let mut clock = clock();
        for step in 1..100_u64 {
            let wall = Timestamp::from_unix_nanos(THEN + step * 60_000_000_000);
            let readings = Readings { kernel: 10_000_000_000 + step, boot: 30_000_000_000 + step, wall };
            assert!(clock.follow(readings, Duration::from_secs(1)).is_some());
        }
        assert_eq!(clock.wall(10_000_000_099).unix_nanos(), THEN + 99 * 60_000_000_000);
    }

    #[test]
    fn milliseconds_are_cut() {
        let late = Timestamp::from_unix_nanos(THEN + 1_999_999);
        assert_eq!(late.millis().to_string(), "2019-08-22T20:46:35.001Z");
    }

    #[test]
    fn a_wall_clock_set_to_1970_does_not_underflow() {
        let clock = Clock::from_readings(Readings { kernel: 5, boot: 5, wall: Timestamp::from_unix_nanos(2) });
        assert_eq!(clock.wall(0).to_string(), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(clock.wall(4).to_string(), "1970-01-01T00:00:00.000000001Z");
    }

    #[test]
    fn the_end_of_the_range_is_held_and_written() {
        assert_eq!(clock().wall(u64::MAX), Timestamp::from_unix_nanos(u64::MAX));
        assert_eq!(clock().wall(u64::MAX).millis().to_string(), "2554-07-21T23:34:33.709Z");
    }

    #[test]
    fn now_agrees_with_the_system() {
        let clock = Clock::now().expect("every supported kernel has these clocks");
        let here = clock.wall(nanos(ClockId::CLOCK_MONOTONIC).unwrap()).unix_nanos();
        let system = u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos()).unwrap();
        assert!(here.abs_diff(system) < 5_000_000_000, "{here} {system}");
    }
}
