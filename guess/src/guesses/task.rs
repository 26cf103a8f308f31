//! The ids and the birth of a `task_struct`.

use crate::engine::{Clues, Guess, Probe, Scene, Shot, WINDOW, WORD, Window};
use crate::sys::{Between, PausedChild};
use std::fs;
use std::io;
use std::thread;

/// From where on a task is looked at in each attempt, the likeliest first. Tasks have up to 10 KiB, but what they need in
/// user space, and what depends on the machine, comes last. Each attempt looks once more at the end of the one before, so
/// that what lies together is seen together.
const STARTS: [u32; 6] = if WORD == 4 {
    [240, 1232, 2224, 3216, 4208, 5200]
} else if cfg!(target_arch = "aarch64") {
    [1232, 2224, 240, 3216, 4208, 5200]
} else {
    [2224, 1232, 240, 3216, 4208, 5200]
};

/// Nanoseconds of a tick in `/proc`: `USER_HZ` is 100 on these machines.
const TICK: u64 = 10_000_000;

/// Starts a thread: `wake_up_new_task(p)` gets it before it has run. The number of the thread and of this process are
/// known. Then starts two children, since the number of this process is always the same, and may be that of something else:
/// both numbers of a child are its own.
///
/// The kernel notes a task's birth twice, one right behind the other: on the clock without the time that the machine was
/// suspended, and on the one with it. Both clocks are looked at right before and after each child is made, and
/// `/proc/PID/stat` has the second as well, in ticks. What is copied from the parent, such as the scheduler's times, is no
/// such pair, and not new with each child.
#[derive(Debug)]
pub(super) struct Task;

/// A thread or a process that was started.
#[derive(Debug)]
pub(super) struct Born {
    /// Its own number.
    tid: u32,
    /// That of its process.
    pid: u32,
    /// What is known of its birth. Not of a thread: it takes too long to make one.
    birth: Option<Birth>,
}

/// When a process began.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Birth {
    between: Between,
    /// What `/proc/PID/stat` says, in ticks.
    ticks: u64,
}

impl Guess for Task {
    type Sent = [Born; 3];

    fn name(&self) -> &'static str {
        "task"
    }

    fn needs(&self) -> Vec<String> {
        Vec::new()
    }

    fn gives(&self) -> Vec<String> {
        let fields = ["pid", "tgid", "start_boottime", "real_start_time"].map(|field| format!("task_struct.{field}"));
        fields.into_iter().chain(["wake_up_new_task(p)".to_owned()]).collect()
    }

    fn attempts(&self) -> u32 {
        STARTS.len() as u32
    }

    fn probes(&self, attempt: u32) -> Vec<Probe> {
        let start = STARTS[attempt as usize];
        vec![Probe::on("wake_up_new_task").words("task", "{arg1}", start..start + WINDOW)]
    }

    fn trigger(&mut self, _scene: &mut dyn Scene) -> io::Result<[Born; 3]> {
        let thread = thread::Builder::new().stack_size(64 << 10).spawn(nix::unistd::gettid)?;
        let tid = thread.join().map_err(|_| io::Error::other("a thread broke down"))?;
        let thread = Born { tid: tid.as_raw() as u32, pid: std::process::id(), birth: None };
        Ok([thread, child()?, child()?])
    }

    fn solve(&self, sent: &[Born; 3], shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        if shots.len() == sent.len() {
            for (born, shot) in sent.iter().zip(shots) {
                find(born, shot.view("task"), &mut clues);
            }
        }
        clues
    }
}

fn child() -> io::Result<Born> {
    let child = PausedChild::new(c"", &[], &[])?;
    // Without `/proc` there is nothing to compare with, and the birth is not known.
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.pid())).ok();
    let ticks = stat.and_then(|stat| start_of(&stat));
    let birth = ticks.map(|ticks| Birth { between: child.born().clone(), ticks });
    Ok(Born { tid: child.pid(), pid: child.pid(), birth })
}

/// Field 22 of `/proc/PID/stat`. The name before it, in parentheses, may hold anything.
fn start_of(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

fn find(born: &Born, task: &Window, clues: &mut Clues) {
    let pids = task.find_u32(born.tid);
    if !pids.is_empty() {
        clues.allow("wake_up_new_task(p)", [1]);
    }
    clues.allow("task_struct.pid", pids);
    clues.allow("task_struct.tgid", task.find_u32(born.pid));
    if let Some(birth) = &born.birth {
        clues.allow("task_struct.start_boottime", birth.pairs(task, 8, Window::u64));
        clues.allow("task_struct.real_start_time", birth.pairs(task, 2 * WORD, timespec));
    }
}

/// The nanoseconds that a `struct timespec` says.
fn timespec(task: &Window, offset: u32) -> Option<u64> {
    let (seconds, nanos) = task.word(offset).zip(task.word(offset + WORD))?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos).filter(|_| nanos < 1_000_000_000)
}

impl Birth {
    /// Where the second of the two times lies, each of them `size` bytes long.
    fn pairs(&self, task: &Window, size: u32, read: impl Fn(&Window, u32) -> Option<u64>) -> Vec<u32> {
        let pair = |&offset: &u32| Some((read(task, offset.checked_sub(size)?)?, read(task, offset)?));
        let is_this = |offset: &u32| pair(offset).is_some_and(|(first, second)| self.is(first, second));
        task.words().map(|(offset, _)| offset).filter(is_this).collect()
    }

    /// Whether these are the two times.
    fn is(&self, monotonic: u64, boottime: u64) -> bool {
        let (from, to) = (self.between.start(), self.between.end());
        (from.monotonic..=to.monotonic).contains(&monotonic)
            && (from.boottime..=to.boottime).contains(&boottime)
            && boottime / TICK == self.ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Clocks;

    /// Nanoseconds that this machine was suspended.
    const SUSPENDED: u64 = 7_000_000_000;
    const NEW: &str = "task_struct.start_boottime";
    const OLD: &str = "task_struct.real_start_time";

    /// A child that began this many nanoseconds after a boot without sleep.
    fn born(pid: u32, at: u64) -> Born {
        let clocks = |monotonic| Clocks { monotonic, boottime: monotonic + SUSPENDED };
        let birth = Birth { between: clocks(at - 4000)..=clocks(at + 4000), ticks: (at + SUSPENDED) / TICK };
        Born { tid: pid, pid, birth: Some(birth) }
    }

    /// A task with these numbers, and another that is always the same.
    fn shot(born: &Born, words: &[(u32, u64)]) -> Shot {
        let attempt = STARTS.iter().position(|&start| start == 2224).unwrap();
        let mut shot = Shot::blank(&Task.probes(attempt as u32)[0]);
        shot.put("task", 2416, &born.tid.to_ne_bytes());
        shot.put("task", 2420, &born.pid.to_ne_bytes());
        shot.put("task", 2500, &4200u32.to_ne_bytes());
        for (offset, word) in words {
            shot.put("task", *offset, &word.to_ne_bytes());
        }
        shot
    }

    /// What is found of a thread and two children, of whose tasks these words are known.
    fn solve(words: impl Fn(u64) -> Vec<(u32, u64)>) -> Clues {
        let births = [61_234_567_890, 61_239_567_890];
        let sent = [Born { tid: 4242, pid: 4200, birth: None }, born(4243, births[0]), born(4244, births[1])];
        let shots = [shot(&sent[0], &[]), shot(&sent[1], &words(births[0])), shot(&sent[2], &words(births[1]))];
        Task.solve(&sent, &shots)
    }

    fn pair(offset: u32, at: u64) -> Vec<(u32, u64)> {
        vec![(offset, at), (offset + 8, at + SUSPENDED + 150)]
    }

    fn timespecs(offset: u32, at: u64) -> Vec<(u32, u64)> {
        let words = [at, at + SUSPENDED].map(|time| [time / 1_000_000_000, time % 1_000_000_000]);
        (offset..).step_by(8).zip(words.concat()).collect()
    }

    #[test]
    fn a_task_is_found_by_its_numbers_and_its_birth() {
        let clues = solve(|at| pair(2776, at));
        assert_eq!(clues.of("task_struct.pid"), [2416]);
        assert_eq!(clues.of("task_struct.tgid"), [2420]);
        assert_eq!(clues.of("wake_up_new_task(p)"), [1]);
        assert_eq!((clues.of(NEW), clues.of(OLD)), (vec![2784], vec![]));
    }

    #[test]
    fn before_3_17_times_have_two_words() {
        let clues = solve(|at| timespecs(2776, at));
        assert_eq!((clues.of(NEW), clues.of(OLD)), (vec![], vec![2792]));
    }

    #[test]
    fn a_time_that_is_copied_from_the_parent_is_none() {
        let of_parent = 61_234_567_900;
        assert!(solve(|_| pair(2776, of_parent)).of(NEW).is_empty());
        assert!(solve(|_| timespecs(2776, of_parent)).of(OLD).is_empty());
    }

    #[test]
    fn one_time_alone_is_no_birth() {
        for word in [|at| at, |at| at + SUSPENDED] {
            assert!(solve(|at| vec![(2784, word(at))]).of(NEW).is_empty());
        }
        let order = |at| vec![(2776, at + SUSPENDED), (2784, at)];
        assert!(solve(order).of(NEW).is_empty());
    }

    #[test]
    fn proc_must_say_the_same() {
        let mut other = born(4243, 61_234_567_890);
        let birth = other.birth.as_mut().unwrap();
        birth.ticks += 1;
        let mut clues = Clues::default();
        let shot = shot(&other, &pair(2776, 61_234_567_890));
        find(&other, shot.view("task"), &mut clues);
        assert!(clues.of(NEW).is_empty());
    }

    #[test]
    fn without_proc_the_birth_is_not_known() {
        let mut clues = Clues::default();
        let unread = Born { birth: None, ..born(4243, 61_234_567_890) };
        find(&unread, shot(&unread, &pair(2776, 61_234_567_890)).view("task"), &mut clues);
        assert_eq!((clues.of("wake_up_new_task(p)"), clues.of(NEW), clues.of(OLD)), (vec![1], vec![], vec![]));
    }

    #[test]
    fn what_lies_together_is_seen_together() {
        let mut starts = STARTS;
        starts.sort_unstable();
        // Two times of 16 bytes end in an attempt that sees all of them, wherever they are.
        for first in (starts[0]..starts[5] + WINDOW - 32).step_by(8) {
            assert!(starts.iter().any(|&start| start <= first && first + 32 <= start + WINDOW), "{first}");
        }
    }

    #[test]
    fn the_start_of_this_process_is_read_whatever_its_name() {
        let stat = |name: &str| format!("4242 ({name}) S 1 4242 4242 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 6423 9 1 2");
        for name in ["sh", "a b) S 1 2", "(", ") ) )"] {
            assert_eq!(start_of(&stat(name)), Some(6423), "{name}");
        }
        assert_eq!(start_of("4242 (sh) S 1"), None);
        let child = child().unwrap();
        let Birth { between, ticks } = child.birth.unwrap();
        assert!((between.start().boottime / TICK..=between.end().boottime / TICK).contains(&ticks));
    }
}
