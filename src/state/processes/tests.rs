//! Forks, execs, credentials and exits, one at a time.

use std::path::PathBuf;

use super::*;
use crate::model::event::Execs;
use crate::model::process::Details;
use crate::model::testing::{monotonic, since_boot};

fn exec(name: &str, args: &[u8], count: u32) -> Exec {
    Exec { filename: name.into(), interpreter: name.into(), arguments: args.to_vec(), argument_count: Some(count) }
}

#[test]
fn a_fork_keeps_program_and_credentials_until_it_changes_them() {
    let mut table = Processes::new(10);
    table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
    table.exec(10, &exec("/bin/sh", b"sh\0", 1));
    table.credentials(10, 10, Credentials { uid: 7, ..Credentials::default() });
    table.fork(10, Fork { child: 11, start: Some(since_boot(6)) });
    let child = table.process_of_running_thread(11, 11);
    assert_eq!((child.parent_pid, child.image.name.as_str()), (Some(10), "sh"));
    assert_eq!(child.credentials.map(|c| c.uid), Some(7));
    table.exec(11, &exec("/usr/bin/curl", b"curl\0", 1));
    assert_eq!(child.image.name, "sh", "a process that was returned earlier does not change");
    assert_eq!(table.latest(&child).image.name, "curl");
    assert_eq!(table.process_of_running_thread(10, 10).image.name, "sh");
}

#[test]
fn a_program_that_executes_itself_again_is_named_by_its_file() {
    let mut table = Processes::new(10);
    table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
    table.exec(10, &exec("/bin/busybox", b"sh\0", 1));
    table.exec(10, &exec("/proc/self/exe", b"wget\0", 1));
    let process = table.process_of_running_thread(10, 10);
    assert_eq!(process.image.name, "busybox");
    assert_eq!(process.image.executable(), Some(&PathBuf::from("/bin/busybox")));
    assert_eq!(process.image.args(), ["wget"]);
}

fn ran(path: &str) -> ExecutedFile {
    ExecutedFile::Path(path.into())
}

#[test]
fn an_exec_is_joined_with_the_file_that_it_runs_in_either_order() {
    for file_first in [true, false] {
        let mut table = Processes::new(10);
        table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
        let before = table.process_of_running_thread(10, 10);
        if file_first {
            table.executed_file(10, &ran("/usr/bin/python3.11"));
        }
        table.exec(10, &exec("/usr/bin/python3", b"python3\0", 1));
        if !file_first {
            table.executed_file(10, &ran("/usr/bin/python3.11"));
        }
        let process = table.process_of_running_thread(10, 10);
        assert_eq!(process.image.executable(), Some(&PathBuf::from("/usr/bin/python3.11")));
        assert_eq!(before.image.executable(), None);
        let later = Details { executable: Some("/usr/bin/python3.11 (deleted)".into()), ..Details::default() };
        table.learn(&process, FoundProcess { details: later, ..FoundProcess::default() });
        assert_eq!(process.image.executable(), Some(&PathBuf::from("/usr/bin/python3.11")), "as at the exec");
    }
}

#[test]
fn a_file_whose_exec_was_lost_is_not_joined_with_the_next_exec() {
    let mut table = Processes::new(10);
    table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
    table.executed_file(10, &ran("/bin/lost"));
    table.credentials(10, 10, Credentials::default());
    table.exec(10, &exec("/bin/next", b"next\0", 1));
    assert_eq!(table.process_of_running_thread(10, 10).image.executable(), Some(&PathBuf::from("/bin/next")));
    table.executed_file(11, &ran("/bin/lost"));
    table.samples_lost();
    table.exec(11, &exec("/bin/next", b"next\0", 1));
    assert_eq!(table.process_of_running_thread(11, 11).image.executable(), Some(&PathBuf::from("/bin/next")));
}

#[test]
fn a_path_that_may_lead_to_another_file_is_not_reported() {
    let mut table = Processes::new(10);
    for (pid, path) in [(10, "/proc/self/fd/4"), (11, "/dev/fd/4"), (12, "./nc"), (13, "nc")] {
        table.exec(pid, &exec(path, b"nc\0", 1));
        assert_eq!(table.process_of_running_thread(pid, pid).image.executable(), None, "{path}");
    }
    table.exec(14, &exec("/a/link", b"nc\0", 1));
    table.executed_file(14, &ExecutedFile::TooDeep);
    assert_eq!(table.process_of_running_thread(14, 14).image.executable(), None, "it may be a link");
    table.exec(15, &exec("/dev/fd/4", b"nc\0", 1));
    table.executed_file(15, &ran("/memfd:x (deleted)"));
    assert_eq!(table.process_of_running_thread(15, 15).image.name(), Some("memfd:x"));
}

#[test]
fn arguments_are_counted_also_when_they_are_cut() {
    let mut table = Processes::new(10);
    table.exec(10, &exec("/bin/sh", b"sh\0-c\0ech", 13));
    let image = &table.process_of_running_thread(10, 10).image;
    assert_eq!((image.args().len(), image.args_count(), image.lacks_args()), (3, 13, true));
    let whole = Details { args: Some(vec![String::new(); 13]), ..Details::default() };
    image.details.set(whole).unwrap();
    assert_eq!((image.args().len(), image.args_count(), image.lacks_args()), (13, 13, false));
}

#[test]
fn a_reused_pid_is_another_process() {
    let mut table = Processes::new(10);
    table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
    let old = table.process_of_running_thread(10, 10);
    table.exit(10, 10, monotonic(100));
    table.fork(1, Fork { child: 10, start: Some(since_boot(200)) });
    assert_eq!(table.latest(&old).start, Some(since_boot(5)));
    table.expire(monotonic(100).saturating_add(LINGER), |_| ());
    assert_eq!(
        table.process_of_running_thread(10, 10).start,
        Some(since_boot(200)),
        "the old one's end does not take the new one away"
    );
}

#[test]
fn without_start_times_a_reused_pid_is_recognised_by_its_parent() {
    let mut table = Processes::new(10);
    let fork = |table: &mut Processes, parent| table.fork(parent, Fork { child: 10, start: None });
    fork(&mut table, 1);
    table.exec(10, &exec("/usr/bin/curl", b"curl\0", 1));
    let old = table.process_of_running_thread(10, 10);
    assert_eq!((old.start, old.image.name.as_str()), (None, "curl"));
    assert_eq!(table.latest(&old).image.name, "curl");
    fork(&mut table, 2);
    table.exec(10, &exec("/bin/cat", b"cat\0", 1));
    assert_eq!(table.latest(&old).image.name, "curl");
    table.gone(&old);
    assert_eq!(table.process_of_running_thread(10, 10).image.name, "cat");
}

#[test]
fn the_table_is_bounded_and_ended_processes_make_room() {
    let mut table = Processes::new(2);
    table.fork(1, Fork { child: 10, start: Some(since_boot(1)) });
    table.fork(1, Fork { child: 11, start: Some(since_boot(2)) });
    table.fork(1, Fork { child: 12, start: Some(since_boot(3)) });
    assert_eq!((table.len(), table.refused), (2, 1));
    table.exit(10, 10, monotonic(9));
    table.fork(1, Fork { child: 12, start: Some(since_boot(3)) });
    assert_eq!((table.len(), table.refused), (2, 1));
}

#[test]
fn lookups_that_find_no_room_are_counted_and_requested_again() {
    let mut table = Processes::new(2 * MAX_WANTED);
    let last = MAX_WANTED as u32 + 10;
    assert_eq!(table.lookups_refused(), 0);
    (10..=last).for_each(|pid| _ = table.process_of_running_thread(pid, pid));
    assert_eq!(table.lookups_refused(), 1);
    while table.next_wanted().is_some() {}
    table.process_of_running_thread(last, last);
    assert_eq!((table.next_wanted().map(|process| process.pid), table.lookups_refused()), (Some(last), 1));
}

/// Where execs are not seen, results wait until later events have shown that the program is still the same.
#[test]
fn results_that_find_no_room_while_they_wait_are_counted() {
    let mut table = Processes::new(10);
    table.set_execs_seen(Execs::AsCredentials);
    let process = table.process_of_running_thread(10, 10);
    for args in [vec![], vec!["sh".to_owned()]] {
        let details = Details { args: Some(args), ..Details::default() };
        let found = FoundProcess { read: monotonic(100), details, ..FoundProcess::default() };
        (0..=MAX_WANTED).for_each(|_| table.learn(&process, found.clone()));
    }
    assert_eq!(table.lookups_refused(), 1, "a result without arguments is of no use");
}

#[test]
fn an_ended_main_thread_that_does_something_is_another_process() {
    let mut table = Processes::new(10);
    table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
    table.exec(10, &exec("/usr/bin/curl", b"curl\0", 1));
    table.exit(10, 10, monotonic(100));
    table.note_alive(10, 11);
    assert_eq!(
        table.get(10).map(|process| process.image.name.as_str()),
        Some("curl"),
        "its thread's start was not seen"
    );
    table.exit(10, 11, monotonic(200));
    table.note_alive(10, 10);
    assert_eq!(table.get(10).map(|process| process.image.name.as_str()), Some(""), "the id was used again");
}

/// The result of a lookup is about one process only.
#[test]
fn where_execs_are_not_seen_a_fork_does_not_inherit_the_result_of_a_lookup() {
    let mut table = Processes::new(10);
    table.set_execs_seen(Execs::Unseen);
    let parent = table.process_of_running_thread(10, 10);
    let details = Details { container_id: Some("web".into()), ..Details::default() };
    table.learn(&parent, FoundProcess { details, ..FoundProcess::default() });
    table.fork(10, Fork { child: 11, start: Some(since_boot(5)) });
    let of = |pid| table.get(pid).and_then(Process::container_id);
    assert_eq!([of(10), of(11)], [Some("web"), None]);
}

#[test]
fn a_process_that_may_have_ended_is_forgotten() {
    let mut table = Processes::new(10);
    table.process_that_may_have_ended(10);
    table.process_of_running_thread(11, 11);
    let mut forgotten = Vec::new();
    table.expire(MonotonicTime::ZERO.saturating_add(LINGER), |process| forgotten.push(process.pid));
    assert_eq!(forgotten, [10]);
}

#[test]
fn the_end_of_an_earlier_process_with_the_same_id_changes_nothing() {
    let mut table = Processes::new(10);
    table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
    let old = table.process_of_running_thread(10, 10);
    table.fork(1, Fork { child: 10, start: Some(since_boot(200)) });
    table.gone(&old);
    table.expire(MonotonicTime::ZERO.saturating_add(LINGER), |_| ());
    assert_eq!(table.get(10).and_then(|process| process.start), Some(since_boot(200)));
}

#[test]
fn processes_are_checked_sooner_if_the_table_was_full() {
    let first_check = |limit| {
        let mut table = Processes::new(limit);
        table.expire(monotonic(1), |_| ());
        table.fork(1, Fork { child: 10, start: Some(since_boot(1)) });
        table.fork(1, Fork { child: 11, start: Some(since_boot(2)) });
        let is_checked = |after: &Duration| {
            table.expire(monotonic(1).saturating_add(*after), |_| ());
            table.next_unchecked().is_some()
        };
        [LINGER, CHECK_PERIOD].into_iter().find(is_checked)
    };
    assert_eq!([first_check(1), first_check(2)], [Some(LINGER), Some(CHECK_PERIOD)]);
}

#[test]
fn threads_besides_main_threads_are_counted() {
    let mut table = Processes::new(10);
    let start = |table: &mut Processes, thread| table.thread_started(ThreadStarted { process: 10, thread });
    table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
    [10, 11, 12, 13].into_iter().for_each(|thread| start(&mut table, thread));
    assert_eq!(table.threads(), 3);
    table.exit(10, 11, monotonic(100));
    assert_eq!(table.threads(), 2);
    table.exec(10, &exec("/bin/sh", b"sh\0", 1));
    assert_eq!(table.threads(), 0, "an exec leaves only one thread");
    [14, 15].into_iter().for_each(|thread| start(&mut table, thread));
    table.fork(1, Fork { child: 10, start: Some(since_boot(200)) });
    assert_eq!(table.threads(), 0, "it is another process");
}

#[test]
fn threads_are_bounded_and_those_that_find_no_room_are_counted() {
    let mut table = Processes::new(2);
    table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
    (11..=14).for_each(|thread| table.thread_started(ThreadStarted { process: 10, thread }));
    assert_eq!((table.threads(), table.threads_refused), (2, 2));
}

#[test]
fn a_process_is_looked_up_once() {
    let mut table = Processes::new(10);
    table.process_of_running_thread(10, 10);
    table.process_of_running_thread(11, 11);
    assert_eq!(table.take_wanted(10).map(|process| process.pid), Some(10));
    assert_eq!(table.next_wanted().map(|process| process.pid), Some(11));
    table.process_of_running_thread(11, 11);
    assert_eq!(table.next_wanted(), None);
}

#[test]
fn after_a_loss_a_process_is_looked_up_once_more() {
    let mut table = Processes::new(10);
    table.process_of_running_thread(10, 10);
    while table.next_wanted().is_some() {}
    table.doubt(monotonic(1_000_000_000));
    table.process_of_running_thread(10, 10);
    table.process_of_running_thread(10, 10);
    let wanted: Vec<_> = std::iter::from_fn(|| table.next_wanted()).map(|process| process.pid).collect();
    assert_eq!(wanted, [10]);
}

#[test]
fn credentials_whose_change_was_lost_are_learned_and_stay_in_doubt() {
    let mut table = Processes::new(10);
    let credentials = |uid| Credentials { uid, ..Credentials::default() };
    table.credentials(10, 10, credentials(7));
    table.doubt(monotonic(1_000_000_000));
    let process = table.process_of_running_thread(10, 10);
    let found = |uid| FoundProcess { credentials: Some(credentials(uid)), ..FoundProcess::default() };
    table.learn(&process, found(8));
    assert_eq!(table.get(10).and_then(|process| process.credentials), Some(credentials(8)));
    assert!(table.is_doubtful(&process));
    table.learn(&process, found(8));
    assert!(!table.is_doubtful(&process), "it has the same ones still");
}

/// The lost event may have been the only sign of an exec.
#[test]
fn after_a_loss_a_program_known_by_credentials_is_looked_up_once_more() {
    let wanted_after_loss = |seen| {
        let mut table = Processes::new(10);
        table.set_execs_seen(seen);
        let before = table.process_of_running_thread(10, 10);
        table.process_of_running_thread(10, 10);
        let wanted = |table: &mut Processes| std::iter::from_fn(|| table.next_wanted()).count();
        assert_eq!(wanted(&mut table), 1);
        table.samples_lost();
        let after = table.process_of_running_thread(10, 10);
        table.process_of_running_thread(10, 10);
        (wanted(&mut table), Arc::ptr_eq(&before.image, &after.image))
    };
    assert_eq!(wanted_after_loss(Execs::AsCredentials), (1, false));
    assert_eq!(wanted_after_loss(Execs::Seen), (0, true));
}

#[test]
fn the_result_of_a_lookup_waits_until_no_earlier_event_can_come() {
    let args_at = |reached, lost| {
        let mut table = Processes::new(10);
        table.set_execs_seen(Execs::AsCredentials);
        let process = table.process_of_running_thread(10, 10);
        let details = Details { args: Some(vec!["sh".to_owned()]), ..Details::default() };
        table.learn(&process, FoundProcess { read: monotonic(100), details, ..FoundProcess::default() });
        if lost {
            table.samples_lost();
        }
        table.expire(monotonic(reached), |_| ());
        table.get(10).map(|process| process.image.args().to_vec())
    };
    assert_eq!(args_at(99, false), Some(vec![]));
    assert_eq!(args_at(100, false), Some(vec![]));
    assert_eq!(args_at(101, false), Some(vec!["sh".to_owned()]));
    assert_eq!(args_at(101, true), Some(vec![]), "another program may run by now");
}

#[test]
fn after_a_loss_a_process_is_certain_only_as_long_as_it_is_the_same() {
    let after_loss = |seen| {
        let mut table = Processes::new(10);
        table.set_execs_seen(seen);
        table.doubt(monotonic(1_000_000_000));
        table.fork(1, Fork { child: 10, start: Some(since_boot(5)) });
        (table.process_of_running_thread(10, 10), table)
    };
    let (old, mut table) = after_loss(Execs::Seen);
    assert!(!table.is_doubtful(&old));
    table.exec(10, &exec("/bin/sh", b"sh\0", 1));
    assert!(!table.is_doubtful(&old), "it is the same process");
    table.fork(1, Fork { child: 10, start: Some(since_boot(200)) });
    assert!(table.is_doubtful(&old), "its id was used again");

    let (old, mut table) = after_loss(Execs::AsCredentials);
    assert!(!table.is_doubtful(&old));
    table.credentials(10, 10, Credentials::default());
    assert!(table.is_doubtful(&old), "it may run another program");
}
