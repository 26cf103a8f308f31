//! The ids and the birth of a `task_struct`.

use crate::engine::{Clues, Guess, Probe, Scene, Shot, WINDOW, Window};
use crate::sys::PausedChild;
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::ops::RangeInclusive;
use std::thread;

/// From where on a task is looked at in each attempt, the likeliest first. Tasks have up to 10 KiB, but what they need in
/// user space, and what depends on the machine, comes last.
const STARTS: [u32; 6] = if cfg!(target_arch = "aarch64") {
    [1208, 2224, 192, 3240, 4256, 5272]
} else {
    [2224, 1208, 192, 3240, 4256, 5272]
};

/// Starts a thread: `wake_up_new_task(p)` gets it before it has run. The number of the thread and of this process are
/// known. Then starts a child, since the number of this process is always the same, and may be that of something else: both
/// numbers of a child are its own. The time of its birth lies between looking at the clock before and after. The kernel notes it twice, without
/// and with the time that the machine was suspended; on a machine that never was, both lie between, and the second is
/// the one that is read later, and found behind the first.
#[derive(Debug)]
pub(super) struct Task;

/// A thread or a process that was started.
#[derive(Debug)]
pub(super) struct Born {
    /// Its own number.
    tid: u32,
    /// That of its process.
    pid: u32,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    when: RangeInclusive<u64>,
}

impl Guess for Task {
    type Sent = [Born; 2];

    fn name(&self) -> &'static str {
        "task"
    }

    fn needs(&self) -> Vec<String> {
        Vec::new()
    }

    fn gives(&self) -> Vec<String> {
        let fields = ["pid", "tgid", "start_boottime"].map(|field| format!("task_struct.{field}"));
        fields.into_iter().chain(["wake_up_new_task(p)".to_owned()]).collect()
    }

    fn attempts(&self) -> u32 {
        STARTS.len() as u32
    }

    fn probes(&self, attempt: u32) -> Vec<Probe> {
        let start = STARTS[attempt as usize];
        vec![Probe::on("wake_up_new_task").words("task", "{arg1}", start..start + WINDOW)]
    }

    fn trigger(&mut self, _scene: &mut dyn Scene) -> io::Result<[Born; 2]> {
        let before = now()?;
        let thread = thread::Builder::new().stack_size(64 << 10).spawn(nix::unistd::gettid)?;
        let between = now()?;
        let tid = thread.join().map_err(|_| io::Error::other("a thread broke down"))?;
        let thread = Born { tid: tid.as_raw() as u32, pid: std::process::id(), when: before..=between };
        let before = now()?;
        let child = PausedChild::new(c"", &[], &[])?;
        let process = Born { tid: child.pid(), pid: child.pid(), when: before..=now()? };
        Ok([thread, process])
    }

    fn solve(&self, sent: &[Born; 2], shots: &[Shot]) -> Clues {
        let mut clues = Clues::default();
        if shots.len() == sent.len() {
            for (born, shot) in sent.iter().zip(shots) {
                find(born, shot.view("task"), &mut clues);
            }
        }
        clues
    }
}

fn find(born: &Born, task: &Window, clues: &mut Clues) {
    let pids = task.find_u32(born.tid);
    if !pids.is_empty() {
        clues.allow("wake_up_new_task(p)", [1]);
    }
    clues.allow("task_struct.pid", pids);
    clues.allow("task_struct.tgid", task.find_u32(born.pid));
    clues.allow("task_struct.start_boottime", births(task, &born.when));
}

fn now() -> io::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Where a time of birth lies; of two that follow each other, the second, unless it is the earlier.
fn births(task: &Window, when: &RangeInclusive<u64>) -> Vec<u32> {
    let is_birth = |&(_, time): &(u32, u64)| when.contains(&time);
    let times: Vec<_> = task.words().filter(is_birth).collect();
    let second =
        |&(offset, time): &(u32, u64)| !times.iter().any(|&(other, later)| other == offset + 8 && later >= time);
    times.iter().filter(|time| second(time)).map(|&(offset, _)| offset).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task with these numbers, and another that is always the same.
    fn shot(tid: u32, pid: u32, words: &[(u32, u64)]) -> Shot {
        let attempt = STARTS.iter().position(|&start| start == 2224).unwrap();
        let mut shot = Shot::blank(&Task.probes(attempt as u32)[0]);
        shot.put("task", 2416, &tid.to_ne_bytes());
        shot.put("task", 2420, &pid.to_ne_bytes());
        shot.put("task", 2500, &4200u32.to_ne_bytes());
        for (offset, word) in words {
            shot.put("task", *offset, &word.to_ne_bytes());
        }
        shot
    }

    fn solve(words: &[(u32, u64)]) -> Clues {
        let born = |tid, pid| Born { tid, pid, when: 1000..=2000 };
        Task.solve(&[born(4242, 4200), born(4243, 4243)], &[shot(4242, 4200, words), shot(4243, 4243, words)])
    }

    #[test]
    fn a_thread_is_found_by_its_numbers_and_its_birth() {
        let clues = solve(&[(2776, 1500), (2784, 1501), (3000, 2001)]);
        assert_eq!(clues.of("task_struct.pid"), [2416]);
        assert_eq!(clues.of("task_struct.tgid"), [2420]);
        assert_eq!(clues.of("task_struct.start_boottime"), [2784]);
        assert_eq!(clues.of("wake_up_new_task(p)"), [1]);
    }

    #[test]
    fn a_machine_that_was_suspended_has_one_birth_between() {
        assert_eq!(solve(&[(2776, 900), (2784, 1501)]).of("task_struct.start_boottime"), [2784]);
    }

    #[test]
    fn a_later_time_is_not_the_second_of_a_pair_when_it_is_earlier() {
        assert_eq!(solve(&[(2776, 1500), (2784, 1400)]).of("task_struct.start_boottime"), [2776, 2784]);
    }
}
