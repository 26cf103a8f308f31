//! The kernel's counts of missed probe hits, and of hits at which it did not run the probe's program.

use std::collections::BTreeMap;

use socktrail_kprobes::{Error, Group, Rings};

use super::open::now_of;
use super::{Feature, Probes, release};
use crate::model::event::{Event, EventKind};
use crate::model::loss::LossCause;
use crate::model::time::MonotonicTime;

/// The missed hits of each probe, and when they were last read.
#[derive(Debug)]
pub(crate) struct Misses {
    /// The counts by the name of the probe, which is the name of its feature.
    by_name: BTreeMap<String, ProbeMisses>,
    /// A time just before the last reading; at first, just after the reading of the self-test's misses.
    read_at: MonotonicTime,
    /// For each feature, the hits at which the kernel did not run its program, and a time just before they were last read.
    skipped: (BTreeMap<Feature, u64>, MonotonicTime),
}

/// The count of one probe.
#[derive(Debug, Clone, Copy)]
struct ProbeMisses {
    feature: Feature,
    misses: u64,
    /// The misses during the self-test, before the probe was attached to the monitor's rings; `misses` includes them.
    during_self_test: u64,
}

/// Hits that a probe has missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missed {
    /// The feature that the probe serves.
    pub(crate) feature: Feature,
    /// The number of missed hits.
    pub(crate) count: u64,
    /// A time just before the same counts were read the last time; at first, just after the misses of the self-test were read.
    pub(crate) since: MonotonicTime,
    /// When the misses were noticed.
    pub(crate) time: MonotonicTime,
}

impl Misses {
    /// Counts the hits that are missed after the probes were attached.
    pub(crate) fn of(probes: &Probes) -> Self {
        let (before, time) = &probes.missed_before;
        let mut misses = Self::for_kernel(release(), probes.features());
        misses.begin(before.iter().map(|probe| (&*probe.name, probe.misses)), *time);
        misses
    }

    /// Ignores hits that were missed before this time.
    fn begin<'a>(&mut self, counts: impl Iterator<Item = (&'a str, u64)>, time: MonotonicTime) {
        self.read_at = time;
        self.skipped.1 = time;
        for (name, misses) in counts {
            if let Some(counted) = self.by_name.get_mut(name) {
                (counted.misses, counted.during_self_test) = (misses, misses);
            }
        }
    }

    /// Counts misses of these features' probes, except those whose misses are unknown on a kernel of this release.
    fn for_kernel(release: (u32, u32), features: impl Iterator<Item = Feature>) -> Self {
        let features = features.filter(|feature| feature.misses_reliable_since().is_none_or(|first| release >= first));
        let none = |feature: Feature| (feature.to_string(), ProbeMisses { feature, misses: 0, during_self_test: 0 });
        Self { by_name: features.map(none).collect(), read_at: MonotonicTime::ZERO, skipped: Default::default() }
    }

    /// The hits missed since the last call.
    ///
    /// # Errors
    /// The kernel's counters cannot be read.
    pub(crate) fn read(&mut self, group: &mut Group, probes: &Probes, rings: &Rings) -> Result<Vec<Missed>, Error> {
        let before = now_of(rings);
        let faulted = probes.faulted_hits(rings);
        // Totals since the probes were installed; none if no count has changed.
        let counts = group.new_misses()?.unwrap_or_default();
        let span = (before, now_of(rings));
        let mut counts: Vec<_> = counts.iter().map(|probe| (&*probe.name, probe.misses)).collect();
        let faulted_now = if counts.is_empty() { Vec::new() } else { probes.faulted_hits(rings) };
        for (earlier, later) in faulted.iter().zip(faulted_now) {
            let feature = earlier.feature.to_string();
            let Some((_, misses)) = counts.iter_mut().find(|(name, _)| *name == feature) else { continue };
            let missed_before = self.by_name.get(&feature).map_or(0, |counted| counted.during_self_test);
            *misses = missed_before + earlier.without_faults(misses.saturating_sub(missed_before), later.hits);
        }
        Ok(self.update(counts.into_iter(), span))
    }

    /// The new misses, from counts that were read between `before` and `time`.
    fn update<'a>(
        &mut self,
        counts: impl Iterator<Item = (&'a str, u64)>,
        (before, time): (MonotonicTime, MonotonicTime),
    ) -> Vec<Missed> {
        let since = std::mem::replace(&mut self.read_at, before);
        let mut missed = Vec::new();
        for (name, misses) in counts {
            let Some(counted) = self.by_name.get_mut(name) else { continue };
            let count = misses.saturating_sub(counted.misses);
            // One reading may be too low, because too many faults were subtracted (see `FaultedHits::without_faults`). If the
            // next one is right again, the rise from the low reading is no new miss.
            counted.misses = counted.misses.max(misses);
            if count > 0 {
                missed.push(Missed { feature: counted.feature, count, since, time });
            }
        }
        missed
    }

    /// The new hits at which the kernel ran no program. `counts` are the totals since the programs were loaded, read between
    /// `before` and `time`.
    pub(crate) fn skipped(
        &mut self,
        counts: impl Iterator<Item = (Feature, u64)>,
        (before, time): (MonotonicTime, MonotonicTime),
    ) -> Vec<Missed> {
        let (known, read_at) = &mut self.skipped;
        let since = std::mem::replace(read_at, before);
        let missed = counts.map(|(feature, skipped)| {
            let count = skipped.saturating_sub(known.insert(feature, skipped).unwrap_or(0));
            Missed { feature, count, since, time }
        });
        missed.filter(|missed| missed.count > 0).collect()
    }

    /// How many hits each probe has missed so far; probes without misses are left out.
    pub(crate) fn so_far(&self) -> BTreeMap<Feature, u64> {
        let so_far = |counted: &ProbeMisses| (counted.feature, counted.misses - counted.during_self_test);
        let mut all: BTreeMap<_, u64> = self.skipped.0.clone();
        self.by_name.values().map(so_far).for_each(|(feature, misses)| *all.entry(feature).or_default() += misses);
        all.retain(|_, misses| *misses > 0);
        all
    }
}

/// Hits at which a pointer was null, so that reads through it have faulted. Older kernels count each fault as a missed hit.
#[derive(Debug, Clone, Copy)]
pub(super) struct FaultedHits {
    pub(super) feature: Feature,
    /// How many values of a sample are read through the pointer.
    pub(super) reads: u64,
    /// The hits so far.
    pub(super) hits: u64,
}

impl FaultedHits {
    /// The maximum number of faults of one read. After a fault, the kernel may try to read the remaining bytes, which faults
    /// again: 2 faults of each read were seen on 5.10 (x86_64). 4 leaves room for a probe of another tool at the same function:
    /// the kernel counts a fault of one probe for both.
    const FAULTS_PER_READ: u64 = 4;

    /// How many of `misses` are missed hits, not faults. `misses` was read after `self.hits` and before `hits`; the three
    /// counts began at the same time.
    fn without_faults(&self, misses: u64, hits: u64) -> u64 {
        let most = self.reads * Self::FAULTS_PER_READ;
        // `hits` is the number of hits with a null pointer. Each causes the same number of faults f, so `misses` is
        // f * `hits`, plus the missed hits. If the number of missed hits is below `hits`, then `misses / hits`, rounded down, is f.
        // Otherwise the quotient is too large, and some missed hits are subtracted as faults, but no more than
        // `most` for each of `hits`.
        //
        // The faults of hits since `self.hits` may not be in `misses` yet. The largest possible number of them is added, so that
        // the quotient is not too small. If it is too large, this reading gives too few missed hits, and the next one corrects
        // that.
        let unsettled = most * hits.saturating_sub(self.hits);
        let quotient = (misses + unsettled).checked_div(hits);
        let Some(faults) = quotient.map(|faults| faults.clamp(self.reads, most)) else { return misses };
        misses.saturating_sub(faults * hits)
    }
}

impl From<Missed> for Event {
    fn from(missed: Missed) -> Self {
        let Missed { feature, count, since, time } = missed;
        let kind = EventKind::Lost {
            cause: LossCause::Probes { feature },
            count,
            since,
            facts: feature.facts_lost_by_misses(),
        };
        Self { time, pid: 0, tid: 0, kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::loss::LostFacts;
    use crate::model::testing::monotonic;

    #[test]
    fn probes_whose_faults_cannot_be_told_from_misses_are_not_watched() {
        let watched = |release| {
            let all = [Feature::SocketClose, Feature::LocalDrops, Feature::TcpState, Feature::ProcessExec];
            Misses::for_kernel(release, all.into_iter()).by_name.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(watched((5, 7)), ["tcp_state"]);
        assert_eq!(watched((5, 8)), ["process_exec", "tcp_state"]);
        assert_eq!(watched((5, 13)), ["process_exec", "tcp_state"]);
        assert_eq!(watched((5, 14)), ["local_drops", "process_exec", "socket_close", "tcp_state"]);
    }

    #[test]
    fn a_miss_is_a_loss_of_what_depends_on_the_probe() {
        let event =
            Event::from(Missed { feature: Feature::UdpIpv6In, count: 3, since: monotonic(5), time: monotonic(9) });
        let EventKind::Lost { cause, count, since, facts } = event.kind else { panic!("{event:?}") };
        assert_eq!((cause, count), (LossCause::Probes { feature: Feature::UdpIpv6In }, 3));
        assert_eq!((since, event.time, facts), (monotonic(5), monotonic(9), LostFacts::UDP_IPV6));
    }

    #[test]
    fn each_probe_is_counted_for_itself_since_the_last_reading() {
        let both = [Feature::SocketFree, Feature::TcpState];
        let mut misses = Misses::for_kernel((6, 1), both.into_iter());
        let missed =
            |feature, count, since, time| Missed { feature, count, since: monotonic(since), time: monotonic(time) };
        let counts = misses.update(
            [("socket_free", 1), ("tcp_state", 0), ("socket_close", 7)].into_iter(),
            (monotonic(10), monotonic(12)),
        );
        assert_eq!(counts, [missed(Feature::SocketFree, 1, 0, 12)]);
        assert_eq!(
            misses.update([("socket_free", 1), ("tcp_state", 0)].into_iter(), (monotonic(20), monotonic(22))),
            []
        );
        let counts = misses.update([("socket_free", 3), ("tcp_state", 4)].into_iter(), (monotonic(30), monotonic(32)));
        assert_eq!(counts, [missed(Feature::SocketFree, 2, 20, 32), missed(Feature::TcpState, 4, 20, 32)]);
        assert_eq!(misses.so_far(), [(Feature::SocketFree, 3), (Feature::TcpState, 4)].into());
    }

    #[test]
    fn the_number_of_faults_of_a_hit_is_found_by_division() {
        let missed =
            |misses, hits| FaultedHits { feature: Feature::Ipv4Out, reads: 2, hits }.without_faults(misses, hits);
        assert_eq!([missed(0, 0), missed(3, 0)], [0, 3], "no hit has faulted");
        for faults in [2, 3, 4, 8] {
            assert_eq!([missed(faults, 1), missed(faults * 7, 7), missed(faults * 7 + 5, 7)], [0, 0, 5], "{faults}");
        }
        assert_eq!(missed(20, 1), 12, "more than reads can cause");
        assert_eq!(
            missed(3, 3),
            0,
            "fewer than the faults of three hits: none is left, and the result is not negative"
        );
    }

    #[test]
    fn faults_of_hits_during_the_reading_are_no_misses() {
        for (faults, hits) in
            [2, 4, 8].into_iter().flat_map(|faults| [0, 9, 99, 999, 1_000_000].map(|hits| (faults, hits)))
        {
            let before = FaultedHits { feature: Feature::Ipv4Out, reads: 2, hits };
            for hits_after in [hits + 1, hits + 5] {
                for hits_with_counted_faults in hits..=hits_after {
                    let missed = before.without_faults(hits_with_counted_faults * faults, hits_after);
                    assert_eq!(missed, 0, "{faults} {hits_with_counted_faults} of {hits_after}");
                }
            }
        }
        let before = FaultedHits { feature: Feature::Ipv4Out, reads: 2, hits: 999 };
        assert_eq!(before.without_faults(1000 * 4 + 7, 1000), 7, "missed hits are nevertheless recognised");
    }

    #[test]
    fn a_count_that_was_too_low_for_a_moment_is_no_new_miss() {
        let mut misses = Misses::for_kernel((5, 10), [Feature::Ipv4Out].into_iter());
        let mut counts = |count, at| {
            let missed = misses.update([("ipv4_out", count)].into_iter(), (monotonic(at), monotonic(at)));
            missed.iter().map(|missed| missed.count).sum::<u64>()
        };
        assert_eq!([counts(3, 10), counts(1, 20), counts(3, 30), counts(4, 40)], [3, 0, 0, 1]);
    }

    #[test]
    fn hits_at_which_a_program_did_not_run_are_missed_as_well() {
        let mut misses = Misses::for_kernel((6, 12), [Feature::TcpState, Feature::UdpIpv4In].into_iter());
        misses.begin([("tcp_state", 5)].into_iter(), monotonic(10));
        let mut skipped = |counts: [u64; 2], before, time| {
            let counts = [Feature::TcpState, Feature::UdpIpv4In].into_iter().zip(counts);
            misses.skipped(counts, (monotonic(before), monotonic(time)))
        };
        let missed =
            |feature, count, since, time| Missed { feature, count, since: monotonic(since), time: monotonic(time) };
        assert_eq!(skipped([0, 2], 20, 21), [missed(Feature::UdpIpv4In, 2, 10, 21)]);
        assert_eq!(skipped([0, 2], 30, 31), []);
        let both = [missed(Feature::TcpState, 1, 30, 41), missed(Feature::UdpIpv4In, 3, 30, 41)];
        assert_eq!(skipped([1, 5], 40, 41), both);
        assert_eq!(misses.update([("tcp_state", 7)].into_iter(), (monotonic(50), monotonic(51))).len(), 1);
        assert_eq!(misses.so_far(), [(Feature::TcpState, 3), (Feature::UdpIpv4In, 5)].into());
    }

    #[test]
    fn what_was_missed_before_a_probe_was_attached_is_no_loss() {
        let mut misses = Misses::for_kernel((6, 1), [Feature::TcpState].into_iter());
        misses.begin([("tcp_state", 5)].into_iter(), monotonic(10));
        assert_eq!(misses.update([("tcp_state", 5)].into_iter(), (monotonic(20), monotonic(22))), []);
        let missed = Missed { feature: Feature::TcpState, count: 2, since: monotonic(20), time: monotonic(32) };
        assert_eq!(misses.update([("tcp_state", 7)].into_iter(), (monotonic(30), monotonic(32))), [missed]);
        assert_eq!(misses.so_far(), [(Feature::TcpState, 2)].into());
    }
}
