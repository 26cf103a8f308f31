//! What earlier processes left behind, and when it can be removed.

use std::io;

use crate::owner::Owner;

/// How often removal is tried at most. A process that is killed closes its perf events one by one, which takes half a
/// minute where there are many CPUs, and longer under load.
const TRIES: u16 = 300;

/// Probes of other processes that were there when this one began: of the dead, of those that are dying, whose probes the
/// kernel does not remove as long as a perf event uses them, and of the living, which may be dying without showing it yet.
///
/// Only those: one that another process installs later may not be in use yet, and where that process has a namespace
/// of its own for processes, it looks dead from here.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// `GROUP/NAME` of each, by owner.
    by_owner: Vec<(Owner, Vec<String>)>,
    tries: u16,
}

impl Leftovers {
    /// Those of `events`, given as `GROUP/NAME`, whose groups have this prefix, and are not this process' own.
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
        Self { by_owner, tries: 0 }
    }

    /// Removes what the dead have left, by `remove`, and forgets what is gone. After one refusal no more of the same
    /// owner's is tried this time.
    pub(crate) fn sweep(&mut self, is_dead: impl Fn(Owner) -> bool, remove: impl Fn(&str) -> io::Result<()>) {
        if self.by_owner.is_empty() {
            return;
        }
        self.tries += 1;
        for (_, events) in self.by_owner.iter_mut().filter(|(owner, _)| is_dead(*owner)) {
            while let Some(event) = events.last() {
                match remove(event) {
                    Err(error) if error.raw_os_error() != Some(libc::ENOENT) => break,
                    // Somebody else may have been quicker.
                    _ => drop(events.pop()),
                }
            }
        }
        self.by_owner.retain(|(_, events)| !events.is_empty());
        if self.tries == TRIES {
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
    fn what_is_in_use_is_tried_again_until_none_is_left() {
        let (mut leftovers, kernel) = (leftovers(), Kernel::with(&["p_7_1_0/b"]));
        kernel.sweep(&mut leftovers, &[7]);
        assert_eq!(*kernel.events.borrow(), ["p_7_1_0/a", "p_7_1_0/b", "p_8_1_0/a", "q_7_1_0/a", "p_1_1_0/a"]);
        kernel.in_use.borrow_mut().clear();
        kernel.sweep(&mut leftovers, &[7]);
        assert_eq!(*kernel.events.borrow(), ["p_8_1_0/a", "q_7_1_0/a", "p_1_1_0/a"]);
        // The other owner lived when it all began, and is dying now.
        kernel.sweep(&mut leftovers, &[7, 8, 1]);
        assert_eq!(*kernel.events.borrow(), ["q_7_1_0/a", "p_1_1_0/a"]);
        let asked = *kernel.asked.borrow();
        kernel.sweep(&mut leftovers, &[7, 8, 1]);
        assert_eq!(*kernel.asked.borrow(), asked, "nothing is left to be tried");
    }

    #[test]
    fn what_another_removed_is_not_tried_again() {
        let (mut leftovers, kernel) = (leftovers(), Kernel::with(&[]));
        kernel.events.borrow_mut().clear();
        kernel.sweep(&mut leftovers, &[7, 8]);
        assert!(leftovers.by_owner.is_empty());
    }

    #[test]
    fn tries_are_few_and_have_an_end() {
        let (mut leftovers, kernel) = (leftovers(), Kernel::with(&EVENTS));
        for _ in 0..TRIES + 10 {
            kernel.sweep(&mut leftovers, &[7]);
        }
        assert_eq!(*kernel.asked.borrow(), usize::from(TRIES), "one a time");
    }
}
