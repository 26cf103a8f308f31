//! Control groups of processes, as moves change them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::Processes;
use crate::model::control_groups::{CGROUP_V2, ControlGroups, container};
use crate::model::event::{FoundGroup, Moved};
use crate::model::process::{Image, Process};

/// The maximum number of processes that are about to start in another control group than their parent's.
const MAX_ELSEWHERE: usize = 1024;
/// The maximum number of threads that have looked up a control group.
const MAX_LOOKUPS: usize = 1024;

/// What is known of moves between control groups.
#[derive(Debug, Default)]
pub struct Moves {
    seen: Visibility,
    /// By thread: the control group that the kernel looked up for it last, until a child of it starts there.
    looked_up: HashMap<u32, FoundGroup>,
    /// Processes that are about to start in another control group than their parent's.
    start_groups: HashMap<u32, FoundGroup>,
    /// Entries of both that were forgotten, because there were too many.
    pub forgotten: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Visibility {
    /// No moves are seen: what control groups say comes from `/proc`.
    #[default]
    Nothing,
    /// All.
    All,
    /// All but those that were lost: results from `/proc` are used as well.
    NotLost,
}

impl Moves {
    /// The process, which existed before the first event, without what is uncertain.
    pub fn preexisting(&self, process: Process) -> Process {
        let control_groups = process.control_groups.filter(|_| self.seen != Visibility::Nothing);
        Process { control_groups, ..process }
    }

    /// The control group of this new process, if it starts in another one than its parent.
    pub fn start_group(&mut self, child: u32) -> Option<FoundGroup> {
        let group = self.start_groups.remove(&child)?;
        Some(if self.seen == Visibility::Nothing { FoundGroup::Unknown } else { group })
    }

    /// A thread ended, so it makes no child any more.
    pub fn thread_ended(&mut self, tid: u32) {
        self.looked_up.remove(&tid);
    }

    /// Stores the control groups from `/proc`, if events do not show them.
    pub fn learn(&self, process: &mut Process, control_groups: ControlGroups) {
        let is_used = match self.seen {
            Visibility::Nothing => false, // they are used from `Image::details`
            Visibility::All => process.control_groups.is_none(),
            Visibility::NotLost => true,
        };
        if is_used {
            process.control_groups = Some(Arc::new(control_groups));
        }
    }
}

/// The process in this control group of cgroup v2 instead of its parent's. In other hierarchies it is in its parent's groups.
pub fn in_control_group(process: Process, group: &FoundGroup) -> Process {
    let known = match group {
        // If nothing is known of the parent, nothing is known of the other hierarchies, which may name a container.
        FoundGroup::At(path) if process.control_groups.is_some() || container(path).is_some() => Some(path),
        FoundGroup::At(_) | FoundGroup::Unknown => None,
    };
    let Some(path) = known else {
        // What is known from `/proc` of the parent does not apply to this process.
        let image = Image { details: OnceLock::new(), ..Image::clone(&process.image) };
        return Process { control_groups: None, image: Arc::new(image), ..process };
    };
    let mut groups = process.control_groups.unwrap_or_default();
    Arc::make_mut(&mut groups).moved(CGROUP_V2, path);
    Process { control_groups: Some(groups), ..process }
}

impl Processes {
    /// Sets whether moves into other control groups are seen. Call it before any process is added.
    pub fn set_moves_seen(&mut self, seen: bool) {
        self.moves.seen = if seen { Visibility::All } else { Visibility::Nothing };
    }

    /// Events were lost: some may have been moves.
    pub(super) fn moves_lost(&mut self) {
        if self.moves.seen == Visibility::All {
            self.moves.seen = Visibility::NotLost;
        }
        self.moves.looked_up.clear();
        // If the fork of such a process was lost, its id may be another process's by the next fork.
        self.moves.start_groups.values_mut().for_each(|group| *group = FoundGroup::Unknown);
    }

    /// A thread was moved into another control group. If it is a main thread, its process was.
    pub fn moved(&mut self, moved: &Moved) {
        let Some(entry) = self.by_pid.get_mut(&moved.tid) else { return };
        // If nothing is known yet, "no container" in this hierarchy does not apply to the others.
        if entry.process.control_groups.is_some() || container(&moved.path).is_some() {
            let groups = Arc::make_mut(&mut entry.process).control_groups.get_or_insert_default();
            Arc::make_mut(groups).moved(moved.hierarchy, &moved.path);
        }
    }

    /// The kernel looked up this control group for a thread.
    pub fn group_looked_up(&mut self, tid: u32, group: FoundGroup) {
        if self.moves.looked_up.len() >= MAX_LOOKUPS {
            self.moves.forgotten += self.moves.looked_up.drain().len() as u64;
        }
        self.moves.looked_up.insert(tid, group);
    }

    /// The process that will have the id `child` starts in the control group that its parent's thread looked up last.
    pub fn fork_elsewhere(&mut self, parent: u32, child: u32) {
        if self.moves.start_groups.len() >= MAX_ELSEWHERE {
            self.moves.forgotten += self.moves.start_groups.drain().len() as u64;
        }
        let group = self.moves.looked_up.remove(&parent).unwrap_or(FoundGroup::Unknown);
        self.moves.start_groups.insert(child, group);
    }

    /// Requests a lookup of a process if its container should be known but is not.
    pub(super) fn find_container(&mut self, pid: u32) {
        let is_unknown = self.by_pid.get(&pid).is_some_and(|entry| entry.process.control_groups.is_none());
        if is_unknown && self.moves.seen != Visibility::Nothing {
            self.want_details(pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FoundProcess, PreexistingProcess};
    use super::*;
    use crate::model::event::{Exec, Fork};
    use crate::model::process::Details;
    use crate::model::testing::{monotonic, since_boot};

    /// The path of a group of this container, or of none.
    fn path(container: Option<&str>) -> Vec<u8> {
        container.map_or(b"/".into(), |name| format!("/lxc/{name}").into_bytes())
    }

    fn moved(tid: u32, container: Option<&str>) -> Moved {
        Moved { tid, hierarchy: 0, path: path(container) }
    }

    fn exec() -> Exec {
        Exec {
            filename: b"sh".into(),
            interpreter: b"/bin/sh".into(),
            arguments: b"sh\0".into(),
            argument_count: Some(1),
        }
    }

    fn old(pid: u32) -> PreexistingProcess {
        let process = Process { start: Some(since_boot(1)), control_groups: Some(Arc::default()), ..Process::new(pid) };
        PreexistingProcess { process, threads: vec![pid] }
    }

    fn follows_moves() -> Processes {
        let mut table = Processes::new(10);
        table.set_moves_seen(true);
        table.add_preexisting(old(1));
        table
    }

    fn found(container: &str) -> FoundProcess {
        let mut control_groups = ControlGroups::default();
        control_groups.moved(CGROUP_V2, &path(Some(container)));
        let details = Details { container_id: Some(container.into()), ..Details::default() };
        FoundProcess { control_groups, details, ..FoundProcess::default() }
    }

    #[test]
    fn a_fork_is_in_its_parents_container_until_either_is_moved() {
        let mut table = follows_moves();
        table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
        table.moved(&moved(10, Some("web")));
        table.fork(10, Fork { child: 11, start: Some(since_boot(6)) });
        table.exec(11, &exec());
        table.moved(&moved(10, None));
        table.moved(&moved(12, Some("a thread's")));
        let of = |pid| table.get(pid).and_then(Process::container_id);
        assert_eq!([of(1), of(10), of(11), of(12)], [None, None, Some("web"), None]);
        table.fork(10, Fork { child: 11, start: Some(since_boot(9)) });
        assert_eq!(table.get(11).and_then(Process::container_id), None, "the id was used again");
    }

    #[test]
    fn the_container_from_proc_is_used_if_events_do_not_show_it() {
        let mut table = follows_moves();
        table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
        let process = table.process_of_running_thread(10, 10);
        table.learn(&process, found("web"));
        assert_eq!(table.process_of_running_thread(10, 10).container_id(), None, "it has not been moved");
        table.fork(99, Fork { child: 11, start: Some(since_boot(6)) });
        let process = table.process_of_running_thread(11, 11);
        table.learn(&process, found("web"));
        assert_eq!(process.container_id(), Some("web"), "nothing is known of its parent");
        table.fork(11, Fork { child: 12, start: Some(since_boot(7)) });
        assert_eq!(table.process_of_running_thread(12, 12).container_id(), Some("web"));
        table.moved(&moved(12, None));
        assert_eq!(table.process_of_running_thread(12, 12).container_id(), None);
    }

    #[test]
    fn one_group_without_a_container_says_nothing_of_other_hierarchies() {
        let mut table = follows_moves();
        table.fork(99, Fork { child: 11, start: Some(since_boot(6)) });
        table.moved(&moved(11, None));
        let process = table.process_of_running_thread(11, 11);
        table.learn(&process, found("web"));
        assert_eq!(table.process_of_running_thread(11, 11).container_id(), Some("web"));
    }

    #[test]
    fn a_process_that_begins_in_another_group_is_not_in_its_parents_container() {
        let mut table = follows_moves();
        table.moved(&moved(1, Some("outer")));
        let parent = table.process_of_running_thread(1, 1);
        assert!(table.next_wanted().is_some());
        table.learn(&parent, found("outer"));
        table.fork_elsewhere(1, 10);
        table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
        assert_eq!(table.get(10).and_then(Process::container_id), None);
        let asked = table.next_wanted().expect("it is looked up at once");
        table.learn(&asked, found("inner"));
        table.fork(10, Fork { child: 11, start: Some(since_boot(6)) });
        table.fork(1, Fork { child: 12, start: Some(since_boot(7)) });
        let of = |pid| table.get(pid).and_then(Process::container_id);
        assert_eq!([of(10), of(11), of(12)], [Some("inner"), Some("inner"), Some("outer")]);
        table.fork_elsewhere(1, 13);
        table.fork(1, Fork { child: 13, start: Some(since_boot(8)) });
        let _too_late = table.next_wanted();
        table.exec(13, &exec());
        assert_eq!(
            table.next_wanted().map(|process| process.pid),
            Some(13),
            "it is looked up again for its new program"
        );
    }

    fn outside() -> FoundGroup {
        FoundGroup::At(path(None))
    }

    fn in_container(id: &str) -> FoundGroup {
        FoundGroup::At(path(Some(id)))
    }

    #[test]
    fn a_process_that_begins_in_a_looked_up_group_is_in_its_container() {
        let mut table = follows_moves();
        table.moved(&moved(1, Some("outer")));
        table.group_looked_up(1, outside()); // for something else
        table.group_looked_up(2, in_container("another thread's"));
        table.group_looked_up(1, in_container("inner"));
        table.fork_elsewhere(1, 10);
        table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
        assert_eq!(table.next_wanted(), None, "nothing is left to be found");
        table.fork(1, Fork { child: 11, start: Some(since_boot(6)) });
        table.group_looked_up(1, outside());
        table.fork_elsewhere(1, 12);
        table.fork(1, Fork { child: 12, start: Some(since_boot(7)) });
        table.fork(12, Fork { child: 13, start: Some(since_boot(8)) });
        let of = |pid| table.get(pid).and_then(Process::container_id);
        assert_eq!([of(10), of(11), of(12), of(13)], [Some("inner"), Some("outer"), None, None]);
        table.fork_elsewhere(1, 14);
        table.fork(1, Fork { child: 14, start: Some(since_boot(9)) });
        assert_eq!(table.next_wanted().map(|process| process.pid), Some(14), "a lookup counts for one child");
    }

    #[test]
    fn several_processes_may_be_about_to_begin_in_other_groups() {
        let mut table = follows_moves();
        for (child, id) in [(10, "web"), (11, "database")] {
            table.group_looked_up(1, in_container(id));
            table.fork_elsewhere(1, child);
        }
        for child in [10, 11] {
            table.fork(1, Fork { child, start: Some(since_boot(5)) });
        }
        let of = |pid| table.get(pid).and_then(Process::container_id);
        assert_eq!([of(10), of(11)], [Some("web"), Some("database")]);
    }

    #[test]
    fn several_threads_may_have_looked_up_a_group() {
        let mut table = follows_moves();
        table.group_looked_up(1, in_container("web"));
        table.group_looked_up(2, in_container("database"));
        for (parent, child) in [(1, 10), (2, 11)] {
            table.fork_elsewhere(parent, child);
            table.fork(parent, Fork { child, start: Some(since_boot(5)) });
        }
        let of = |pid| table.get(pid).and_then(Process::container_id);
        assert_eq!([of(10), of(11)], [Some("web"), Some("database")]);
    }

    #[test]
    fn an_exec_requests_a_lookup_only_if_moves_are_seen_and_the_container_is_not_known() {
        let is_wanted_after_exec = |parent, seen| {
            let mut table = follows_moves();
            table.set_moves_seen(seen);
            table.fork(parent, Fork { child: 10, start: Some(since_boot(5)) });
            table.exec(10, &exec());
            table.next_wanted().is_some()
        };
        let (known, unknown) = (1, 99);
        assert!(is_wanted_after_exec(unknown, true));
        assert!(!is_wanted_after_exec(known, true) && !is_wanted_after_exec(unknown, false));
    }

    #[test]
    fn a_looked_up_group_is_one_of_cgroup_v2() {
        let mut table = follows_moves();
        table.moved(&Moved { hierarchy: 4, ..moved(1, Some("of v1")) });
        table.group_looked_up(1, outside());
        table.fork_elsewhere(1, 10);
        table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
        assert_eq!(table.get(10).and_then(Process::container_id), Some("of v1"));
        table.group_looked_up(99, outside());
        table.fork_elsewhere(99, 11);
        table.fork(99, Fork { child: 11, start: Some(since_boot(6)) });
        assert_eq!(table.next_wanted().map(|process| process.pid), Some(11), "it may be in one of v1");
    }

    #[test]
    fn a_looked_up_group_counts_only_while_nothing_is_lost_and_moves_are_seen() {
        let mut table = follows_moves();
        table.group_looked_up(1, in_container("web"));
        table.samples_lost();
        table.fork_elsewhere(1, 10);
        table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
        table.set_moves_seen(false);
        table.group_looked_up(1, in_container("web"));
        table.fork_elsewhere(1, 11);
        table.fork(1, Fork { child: 11, start: Some(since_boot(6)) });
        let of = |pid| table.get(pid).and_then(Process::container_id);
        assert_eq!([of(10), of(11)], [None, None]);
    }

    /// The fork itself may be lost. Then the id is that of another process when it is seen next.
    #[test]
    fn after_a_loss_the_group_that_a_process_was_to_begin_in_is_not_known() {
        let mut table = follows_moves();
        table.group_looked_up(1, in_container("web"));
        table.fork_elsewhere(1, 10);
        table.samples_lost();
        table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
        assert_eq!(table.get(10).and_then(Process::container_id), None);
        assert_eq!(table.next_wanted().map(|process| process.pid), Some(10));
    }

    #[test]
    fn looked_up_groups_are_bounded_and_forgotten_ones_are_counted() {
        let mut table = follows_moves();
        (0..=MAX_LOOKUPS as u32).for_each(|tid| table.group_looked_up(tid, outside()));
        assert_eq!((table.moves.looked_up.len(), table.control_groups_forgotten()), (1, MAX_LOOKUPS as u64));
        (0..=MAX_ELSEWHERE as u32).for_each(|child| table.fork_elsewhere(1, child));
        let forgotten = (MAX_LOOKUPS + MAX_ELSEWHERE) as u64;
        assert_eq!((table.moves.start_groups.len(), table.control_groups_forgotten()), (1, forgotten));
    }

    /// Its id may be another thread's from then on.
    #[test]
    fn the_group_that_a_thread_looked_up_is_forgotten_when_it_ends() {
        let mut table = follows_moves();
        table.group_looked_up(7, in_container("web"));
        table.exit(1, 7, monotonic(100));
        table.fork_elsewhere(7, 10);
        table.fork(7, Fork { child: 10, start: Some(since_boot(5)) });
        assert_eq!(table.get(10).and_then(Process::container_id), None);
    }

    #[test]
    fn after_a_loss_the_container_from_proc_is_used() {
        let mut table = follows_moves();
        table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
        table.samples_lost();
        let process = table.process_of_running_thread(10, 10);
        table.learn(&process, found("web"));
        assert_eq!(table.process_of_running_thread(10, 10).container_id(), Some("web"));
    }

    #[test]
    fn without_events_of_moves_containers_come_from_proc() {
        let mut table = follows_moves();
        table.set_moves_seen(false);
        table.add_preexisting(old(9));
        let process = table.process_of_running_thread(9, 9);
        table.learn(&process, found("web"));
        assert_eq!(process.container_id(), Some("web"));
    }
}
