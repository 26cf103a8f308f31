//! The ids and the start time of a `task_struct`.

use crate::engine::{Call, Context, Evidence, Guess, MAX_WINDOW, Probe, WORD, Window};
use crate::sys::{ClockInterval, PausedChild};
use std::fs;
use std::io;
use std::thread;

/// The offset from which each attempt captures a task, the likeliest first. A `task_struct` has up to 10 KiB, but its
/// last part holds the state of user space and of the processor. Ranges overlap, so that there is a range with both of any two
/// adjacent fields.
const STARTS: [u32; 6] = if WORD == 4 {
    [240, 1232, 2224, 3216, 4208, 5200]
} else if cfg!(target_arch = "aarch64") {
    [1232, 2224, 240, 3216, 4208, 5200]
} else {
    [2224, 1232, 240, 3216, 4208, 5200]
};

/// The length of a tick in `/proc` in nanoseconds: `USER_HZ` is 100 on these machines.
const TICK: u64 = 10_000_000;

/// Starts a thread, which `wake_up_new_task(p)` gets before it runs. Its `pid` is the thread's id and its `tgid` that
/// of this process. Then starts two children, because the id of this process is the same in every run, and something
/// else may have the same value. A child's `pid` and `tgid` are both its own id.
///
/// A task has two start times next to each other: by `CLOCK_MONOTONIC`, and by `CLOCK_BOOTTIME`, which also counts the time
/// during which the machine was suspended. Both clocks are read right before and after each child is started, and
/// `/proc/PID/stat` has the second start time in ticks. Times that a child copies from its parent, such as the
/// scheduler's, are not such pairs, and do not change with each child.
#[derive(Debug)]
pub(super) struct Task;

/// A thread or a process that was started.
#[derive(Debug)]
pub(super) struct NewTask {
    /// The thread's id.
    tid: u32,
    /// The process's id.
    pid: u32,
    /// Known only for processes. Starting a thread takes too long to know its start time precisely.
    start_time: Option<StartTime>,
}

/// When a process started.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StartTime {
    /// The clocks before it was started and after.
    started: ClockInterval,
    /// The start time in `/proc/PID/stat`, in ticks.
    ticks: u64,
}

impl Guess for Task {
    type Expected = [NewTask; 3];

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
        vec![Probe::on("wake_up_new_task").words("task", "{arg1}", start..start + MAX_WINDOW)]
    }

    fn trigger(&mut self, _context: &mut dyn Context) -> io::Result<[NewTask; 3]> {
        let thread = thread::Builder::new().stack_size(64 << 10).spawn(nix::unistd::gettid)?;
        let tid = thread.join().map_err(|_| io::Error::other("a thread panicked"))?;
        let thread = NewTask { tid: tid.as_raw() as u32, pid: std::process::id(), start_time: None };
        Ok([thread, child()?, child()?])
    }

    fn solve(&self, expected: &[NewTask; 3], calls: &[Call]) -> Evidence {
        let mut evidence = Evidence::default();
        if calls.len() == expected.len() {
            for (new_task, call) in expected.iter().zip(calls) {
                add_evidence(new_task, call.view("task"), &mut evidence);
            }
        }
        evidence
    }
}

fn child() -> io::Result<NewTask> {
    let child = PausedChild::new(c"", &[], &[])?;
    // Without `/proc` there is nothing to compare with, so the start time counts as unknown.
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.pid())).ok();
    let ticks = stat.and_then(|stat| start_ticks(&stat));
    let start_time = ticks.map(|ticks| StartTime { started: child.started().clone(), ticks });
    Ok(NewTask { tid: child.pid(), pid: child.pid(), start_time })
}

/// Field 22 of `/proc/PID/stat`. The name in parentheses before it may contain anything.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

fn add_evidence(new_task: &NewTask, task: &Window, evidence: &mut Evidence) {
    let pids = task.find_u32(new_task.tid);
    if !pids.is_empty() {
        evidence.one_of("wake_up_new_task(p)", [1]);
    }
    evidence.one_of("task_struct.pid", pids);
    evidence.one_of("task_struct.tgid", task.find_u32(new_task.pid));
    if let Some(start_time) = &new_task.start_time {
        evidence.one_of("task_struct.start_boottime", start_time.pairs(task, 8, Window::u64));
        evidence.one_of("task_struct.real_start_time", start_time.pairs(task, 2 * WORD, timespec));
    }
}

/// A `struct timespec` in nanoseconds.
fn timespec(task: &Window, offset: u32) -> Option<u64> {
    let (seconds, nanos) = task.word(offset).zip(task.word(offset + WORD))?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos).filter(|_| nanos < 1_000_000_000)
}

impl StartTime {
    /// The offsets of the second of two times next to each other, each `size` bytes long.
    fn pairs(&self, task: &Window, size: u32, read: impl Fn(&Window, u32) -> Option<u64>) -> Vec<u32> {
        let pair = |&offset: &u32| Some((read(task, offset.checked_sub(size)?)?, read(task, offset)?));
        let is_start_time = |offset: &u32| pair(offset).is_some_and(|(first, second)| self.matches(first, second));
        task.words().map(|(offset, _)| offset).filter(is_start_time).collect()
    }

    /// Whether these may be the two start times.
    fn matches(&self, monotonic: u64, boottime: u64) -> bool {
        let (from, to) = (self.started.start(), self.started.end());
        (from.monotonic..=to.monotonic).contains(&monotonic)
            && (from.boottime..=to.boottime).contains(&boottime)
            && boottime / TICK == self.ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Clocks;

    /// For how many nanoseconds this machine was suspended.
    const SUSPENDED: u64 = 7_000_000_000;
    const NEW: &str = "task_struct.start_boottime";
    const OLD: &str = "task_struct.real_start_time";

    /// A child that started `at` this many nanoseconds of `CLOCK_MONOTONIC`.
    fn new_task(pid: u32, at: u64) -> NewTask {
        let clocks = |monotonic| Clocks { monotonic, boottime: monotonic + SUSPENDED };
        let start_time = StartTime { started: clocks(at - 4000)..=clocks(at + 4000), ticks: (at + SUSPENDED) / TICK };
        NewTask { tid: pid, pid, start_time: Some(start_time) }
    }

    /// A task with these ids and words, and with a number that is the same in every run.
    fn call(new_task: &NewTask, words: &[(u32, u64)]) -> Call {
        let attempt = STARTS.iter().position(|&start| start == 2224).unwrap();
        let mut call = Call::blank(&Task.probes(attempt as u32)[0]);
        call.put("task", 2416, &new_task.tid.to_ne_bytes());
        call.put("task", 2420, &new_task.pid.to_ne_bytes());
        call.put("task", 2500, &4200u32.to_ne_bytes());
        for (offset, word) in words {
            call.put("task", *offset, &word.to_ne_bytes());
        }
        call
    }

    /// The evidence from a thread and two children. `words` gives the words of a child's task for its start time.
    fn solve(words: impl Fn(u64) -> Vec<(u32, u64)>) -> Evidence {
        let start_times = [61_234_567_890, 61_239_567_890];
        let expected = [
            NewTask { tid: 4242, pid: 4200, start_time: None },
            new_task(4243, start_times[0]),
            new_task(4244, start_times[1]),
        ];
        let calls = [
            call(&expected[0], &[]),
            call(&expected[1], &words(start_times[0])),
            call(&expected[2], &words(start_times[1])),
        ];
        Task.solve(&expected, &calls)
    }

    fn pair(offset: u32, at: u64) -> Vec<(u32, u64)> {
        vec![(offset, at), (offset + 8, at + SUSPENDED + 150)]
    }

    fn timespecs(offset: u32, at: u64) -> Vec<(u32, u64)> {
        let words = [at, at + SUSPENDED].map(|time| [time / 1_000_000_000, time % 1_000_000_000]);
        (offset..).step_by(8).zip(words.concat()).collect()
    }

    #[test]
    fn ids_and_start_times_are_found() {
        let evidence = solve(|at| pair(2776, at));
        assert_eq!(evidence.values("task_struct.pid"), [2416]);
        assert_eq!(evidence.values("task_struct.tgid"), [2420]);
        assert_eq!(evidence.values("wake_up_new_task(p)"), [1]);
        assert_eq!((evidence.values(NEW), evidence.values(OLD)), (vec![2784], vec![]));
    }

    #[test]
    fn before_3_17_a_time_is_a_timespec() {
        let evidence = solve(|at| timespecs(2776, at));
        assert_eq!((evidence.values(NEW), evidence.values(OLD)), (vec![], vec![2792]));
    }

    #[test]
    fn a_time_that_is_copied_from_the_parent_is_not_a_start_time() {
        let of_parent = 61_234_567_900;
        assert!(solve(|_| pair(2776, of_parent)).values(NEW).is_empty());
        assert!(solve(|_| timespecs(2776, of_parent)).values(OLD).is_empty());
    }

    #[test]
    fn one_time_alone_is_not_a_start_time() {
        for word in [|at| at, |at| at + SUSPENDED] {
            assert!(solve(|at| vec![(2784, word(at))]).values(NEW).is_empty());
        }
        let order = |at| vec![(2776, at + SUSPENDED), (2784, at)];
        assert!(solve(order).values(NEW).is_empty());
    }

    #[test]
    fn the_start_time_in_proc_must_agree() {
        let mut other = new_task(4243, 61_234_567_890);
        let start_time = other.start_time.as_mut().unwrap();
        start_time.ticks += 1;
        let mut evidence = Evidence::default();
        let call = call(&other, &pair(2776, 61_234_567_890));
        add_evidence(&other, call.view("task"), &mut evidence);
        assert!(evidence.values(NEW).is_empty());
    }

    #[test]
    fn without_proc_the_start_time_is_not_known() {
        let mut evidence = Evidence::default();
        let unread = NewTask { start_time: None, ..new_task(4243, 61_234_567_890) };
        add_evidence(&unread, call(&unread, &pair(2776, 61_234_567_890)).view("task"), &mut evidence);
        assert_eq!(
            (evidence.values("wake_up_new_task(p)"), evidence.values(NEW), evidence.values(OLD)),
            (vec![1], vec![], vec![])
        );
    }

    #[test]
    fn neighbouring_fields_are_in_one_range() {
        let mut starts = STARTS;
        starts.sort_unstable();
        // Wherever two times of 16 bytes are, one range holds both.
        for first in (starts[0]..starts[5] + MAX_WINDOW - 32).step_by(8) {
            assert!(starts.iter().any(|&start| start <= first && first + 32 <= start + MAX_WINDOW), "{first}");
        }
    }

    #[test]
    fn the_start_time_is_read_behind_any_name() {
        let stat = |name: &str| format!("4242 ({name}) S 1 4242 4242 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 6423 9 1 2");
        for name in ["sh", "a b) S 1 2", "(", ") ) )"] {
            assert_eq!(start_ticks(&stat(name)), Some(6423), "{name}");
        }
        assert_eq!(start_ticks("4242 (sh) S 1"), None);
        let child = child().unwrap();
        let StartTime { started, ticks } = child.start_time.unwrap();
        assert!((started.start().boottime / TICK..=started.end().boottime / TICK).contains(&ticks));
    }
}
