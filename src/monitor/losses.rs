//! Reports losses to the caller.

use std::time::Duration;

use crossbeam_channel::Sender;

use crate::model::loss::{Loss, Losses};
use crate::model::time::MonotonicTime;

/// The time between two reports, so that a burst of losses does not become a burst of reports.
const PERIOD: Duration = Duration::from_secs(1);

/// Reports losses through a queue of its own, because a full queue of results may be the reason for the loss.
#[derive(Debug)]
pub(super) struct LossReporter {
    to_caller: Sender<Loss>,
    pending: Losses,
    next: MonotonicTime,
}

impl LossReporter {
    /// A reporter without losses.
    pub(super) fn new(to_caller: Sender<Loss>) -> Self {
        Self { to_caller, pending: Losses::default(), next: MonotonicTime::ZERO }
    }

    /// Adds a loss, to be reported later.
    pub(super) fn add(&mut self, loss: Loss) {
        self.pending.add(loss);
    }

    /// Reports the losses that fit the queue, if [`PERIOD`] has passed since the last report. The others wait and are added to
    /// later ones. Returns whether any loss was reported.
    pub(super) fn report(&mut self, now: MonotonicTime) -> bool {
        let mut has_reported = false;
        if now >= self.next {
            self.next = now.saturating_add(PERIOD);
            self.pending.offer(|loss| {
                let taken = self.to_caller.try_send(loss).is_ok();
                if taken {
                    tracing::warn!("{loss}");
                    has_reported = true;
                }
                taken
            });
        }
        has_reported
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::model::loss::LossCause;
    use crate::source::kprobes::Feature;

    fn seconds(time: MonotonicTime) -> u64 {
        time.as_nanos() / 1_000_000_000
    }

    #[test]
    fn a_full_queue_joins_losses_and_forgets_none() {
        for (lost_queue_size, expected) in
            [(1, vec![(1, 0, 0), (9, 1, 9)]), (4, vec![(1, 0, 0), (1, 1, 1), (1, 2, 2), (1, 3, 3), (6, 4, 9)])]
        {
            let (to_caller, reported) = bounded(lost_queue_size);
            let mut reporter = LossReporter::new(to_caller);
            for second in 0..10 {
                let at = MonotonicTime::ZERO.saturating_add(second * PERIOD);
                reporter.add(Loss {
                    cause: LossCause::Probes { feature: Feature::Accept },
                    count: 1,
                    first: at,
                    last: at,
                });
                reporter.report(at);
            }
            let first: Vec<_> = reported.try_iter().collect();
            assert_eq!(first.len(), lost_queue_size);
            reporter.report(MonotonicTime::MAX);
            let all = first.into_iter().chain(reported.try_iter());
            let all: Vec<_> = all.map(|loss| (loss.count, seconds(loss.first), seconds(loss.last))).collect();
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn losses_are_reported_once_a_second() {
        let (to_caller, reported) = bounded(100);
        let mut reporter = LossReporter::new(to_caller);
        for at in (0..3000).map(|millis| MonotonicTime::ZERO.saturating_add(Duration::from_millis(millis))) {
            reporter.add(Loss { cause: LossCause::Ring { cpu: 0 }, count: 2, first: at, last: at });
            reporter.report(at);
        }
        reporter.report(MonotonicTime::MAX);
        let counts: Vec<_> = reported.try_iter().map(|loss| loss.count).collect();
        assert_eq!(counts, [2, 2000, 2000, 1998]);
    }
}
