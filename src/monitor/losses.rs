//! Losses on their way out.

use crossbeam_channel::Sender;

use crate::event::KernelTime;
use crate::loss::{Loss, Losses};

/// Nanoseconds between two tellings: a burst of losses is not to become a burst of reports.
const PERIOD: u64 = 1_000_000_000;

/// Tells of losses, through a queue of its own: the one for results may be why there are any.
#[derive(Debug)]
pub(super) struct Teller {
    to_user: Sender<Loss>,
    untold: Losses,
    next: KernelTime,
}

impl Teller {
    /// Of no losses yet.
    pub(super) fn new(to_user: Sender<Loss>) -> Self {
        Self { to_user, untold: Losses::default(), next: 0 }
    }

    /// Takes in a loss, to be told later.
    pub(super) fn add(&mut self, loss: Loss) {
        self.untold.add(loss);
    }

    /// Tells what there is room for, if it is time. The rest waits, and grows.
    pub(super) fn tell(&mut self, now: KernelTime) {
        if now >= self.next {
            self.next = now.saturating_add(PERIOD);
            self.untold.offer(|loss| {
                let taken = self.to_user.try_send(loss).is_ok();
                if taken {
                    tracing::warn!("{loss}");
                }
                taken
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::loss::LossCause;
    use crate::probes::Feature;

    #[test]
    fn a_full_queue_joins_losses_and_forgets_none() {
        for (lost_queue_size, expected) in
            [(1, vec![(1, 0, 0), (9, 1, 9)]), (4, vec![(1, 0, 0), (1, 1, 1), (1, 2, 2), (1, 3, 3), (6, 4, 9)])]
        {
            let (to_user, told) = bounded(lost_queue_size);
            let mut teller = Teller::new(to_user);
            for second in 0..10 {
                let at = second * PERIOD;
                teller.add(Loss {
                    cause: LossCause::Probes { feature: Feature::Accept },
                    count: 1,
                    first: at,
                    last: at,
                });
                teller.tell(at);
            }
            let first: Vec<_> = told.try_iter().collect();
            assert_eq!(first.len(), lost_queue_size);
            teller.tell(KernelTime::MAX);
            let all = first.into_iter().chain(told.try_iter());
            let all: Vec<_> = all.map(|loss| (loss.count, loss.first / PERIOD, loss.last / PERIOD)).collect();
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn losses_are_told_once_a_second() {
        let (to_user, told) = bounded(100);
        let mut teller = Teller::new(to_user);
        for at in (0..3 * PERIOD).step_by(PERIOD as usize / 1000) {
            teller.add(Loss { cause: LossCause::Ring { cpu: 0 }, count: 2, first: at, last: at });
            teller.tell(at);
        }
        teller.tell(KernelTime::MAX);
        let counts: Vec<_> = told.try_iter().map(|loss| loss.count).collect();
        assert_eq!(counts, [2, 2000, 2000, 1998]);
    }
}
