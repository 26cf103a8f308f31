//! Probes that earlier processes left behind, and when they can be removed.

use std::io;

use crate::owner::Owner;

/// The maximum number of attempts at removal. A killed process closes its perf events one by one, which takes half a
/// minute on a machine with many CPUs, and longer under load.
const MAX_ATTEMPTS: u16 = 300;

/// The probes that other processes had when this process created its group. Their owner may be dead. It may be dying: the
/// kernel does not remove its probes as long as a perf event uses them. Or it may look alive, because it has only just been
/// killed.
///
/// Probes that another process installs later are left alone. They may not be in use yet, and their owner looks dead
/// from here if it runs in another pid namespace.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// The `GROUP/NAME` of each probe, by owner.
    by_owner: Vec<(Owner, Vec<String>)>,
    attempts: u16,
}

impl Leftovers {
    /// Takes from `events`, each a `GROUP/NAME`, those whose group has this prefix and belongs to another process.
    pub(crate) fn among<'a>(events: impl Iterator<Item = &'a str>, prefix: &str, this: Owner) -> Self {
        let mut by_owner: Vec<(Owner, Vec<String>)> = Vec::new();
        for event in events {
            let owner = event.split_once('/').and_then(|(group, _)| Owner::of_group(prefix, group));
            let Some(owner) = owner.filter(|owner| *owner != this) else { continue };
            match by_owner.iter_mut().find(|(one, _)| *one == owner) {
                Some((_, events)) => events.push(event.to_owned()),
                None => by_owner.push((owner, vec![event.to_owned()])),
            }
        }
        Self { by_owner, attempts: 0 }
    }

    /// Calls `remove` for the probes of dead processes and forgets those that are gone. After one refusal it skips the
    /// other probes of that owner until the next call.
    pub(crate) fn sweep(&mut self, is_dead: impl Fn(Owner) -> bool, remove: impl Fn(&str) -> io::Result<()>) {
        if self.by_owner.is_empty() {
            return;
        }
        self.attempts += 1;
        for (_, events) in self.by_owner.iter_mut().filter(|(owner, _)| is_dead(*owner)) {
            while let Some(event) = events.last() {
                match remove(event) {
                    Err(error) if error.raw_os_error() != Some(libc::ENOENT) => break,
                    // Another process may have removed it already.
                    _ => drop(events.pop()),
                }
            }
        }
        self.by_owner.retain(|(_, events)| !events.is_empty());
        if self.attempts == MAX_ATTEMPTS {
            self.by_owner = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const EVENTS: [&str; 6] = ["p_7_1_0/a", "p_7_1_0/b", "p_8_1_0/a", "q_7_1_0/a", "p_1_1_0/a", "p_7_1_1/c"];

    fn owner(pid: u32) -> Owner {
        Owner::of_group("p", &format!("p_{pid}_1_0")).unwrap()
    }

    /// A kernel with these probes. Some of them are in use.
    struct Kernel {
        events: RefCell<Vec<&'static str>>,
        in_use: RefCell<Vec<&'static str>>,
        asked: RefCell<usize>,
    }

    impl Kernel {
        fn with(in_use: &[&'static str]) -> Self {
            let [events, in_use] = [EVENTS.to_vec(), in_use.to_vec()].map(RefCell::new);
            Self { events, in_use, asked: RefCell::default() }
        }

        fn remove(&self, event: &str) -> io::Result<()> {
            *self.asked.borrow_mut() += 1;
            if self.in_use.borrow().contains(&event) {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            let mut events = self.events.borrow_mut();
            let at = events.iter().position(|one| *one == event);
            events.remove(at.ok_or(io::Error::from_raw_os_error(libc::ENOENT))?);
            Ok(())
        }

        fn sweep(&self, leftovers: &mut Leftovers, dead: &[u32]) {
            leftovers.sweep(|one| dead.iter().any(|pid| one == owner(*pid)), |event| self.remove(event));
        }
    }

    fn leftovers() -> Leftovers {
        Leftovers::among(EVENTS.into_iter(), "p", owner(1))
    }

    #[test]
    fn probes_in_use_are_tried_again_until_none_is_left() {
        let (mut leftovers, kernel) = (leftovers(), Kernel::with(&["p_7_1_0/b"]));
        kernel.sweep(&mut leftovers, &[7]);
        assert_eq!(*kernel.events.borrow(), ["p_7_1_0/a", "p_7_1_0/b", "p_8_1_0/a", "q_7_1_0/a", "p_1_1_0/a"]);
        kernel.in_use.borrow_mut().clear();
        kernel.sweep(&mut leftovers, &[7]);
        assert_eq!(*kernel.events.borrow(), ["p_8_1_0/a", "q_7_1_0/a", "p_1_1_0/a"]);
        // The other owner was alive at the start and is dying now.
        kernel.sweep(&mut leftovers, &[7, 8, 1]);
        assert_eq!(*kernel.events.borrow(), ["q_7_1_0/a", "p_1_1_0/a"]);
        let asked = *kernel.asked.borrow();
        kernel.sweep(&mut leftovers, &[7, 8, 1]);
        assert_eq!(*kernel.asked.borrow(), asked, "nothing is left to be tried");
    }

    #[test]
    fn probes_removed_by_another_process_are_not_tried_again() {
        let (mut leftovers, kernel) = (leftovers(), Kernel::with(&[]));
        kernel.events.borrow_mut().clear();
        kernel.sweep(&mut leftovers, &[7, 8]);
        assert!(leftovers.by_owner.is_empty());
    }

    #[test]
    fn attempts_are_bounded() {
        let (mut leftovers, kernel) = (leftovers(), Kernel::with(&EVENTS));
        for _ in 0..MAX_ATTEMPTS + 10 {
            kernel.sweep(&mut leftovers, &[7]);
        }
        assert_eq!(*kernel.asked.borrow(), usize::from(MAX_ATTEMPTS), "one in each sweep");
    }
}
