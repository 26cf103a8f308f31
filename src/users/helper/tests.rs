use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use tempfile::TempDir;

use super::message::QUESTION_LEN;
use super::*;
#[cfg(feature = "privileges")]
use crate::privileges;

const LONG: Duration = Duration::from_secs(60);
const USER: Id = Id::User(70_001);

/// A helper without a process that answers, and the socket on which the test can answer instead.
fn test_helper(timeout: Duration) -> (GetentHelper, OwnedFd) {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let child = Command::new("/bin/true").spawn().unwrap();
    (GetentHelper { child, socket: Some(ours), timeout, awaits_late_answer: false, has_warned: false }, theirs)
}

/// A `getent` that knows one user, and no group.
fn getent(folder: &TempDir) -> PathBuf {
    let (fresh, path) = (folder.path().join("fresh"), folder.path().join("getent"));
    let script = "#!/bin/sh\n[ \"$1 $2\" = 'passwd 70001' ] || exit 2\necho ldap-user:x:70001:70001::/:/bin/sh\n";
    fs::write(&fresh, script).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
    // `fresh` may be open for writing in a child that another thread of the tests has just forked. Then it cannot be executed
    // (ETXTBSY). Its copy was never open in this process.
    assert!(Command::new("/bin/cp").arg(&fresh).arg(&path).status().unwrap().success());
    path
}

fn sources(getent: Vec<PathBuf>) -> Sources {
    Sources { getent, getent_timeout: LONG, userdb: "/nonexistent".into(), ..Sources::system() }
}

#[test]
fn the_helper_answers_and_ends_with_its_client() {
    let folder = TempDir::new().unwrap();
    for (getent, user, group) in [
        (vec![getent(&folder)], Some(Answer::Named("ldap-user".into())), Some(Answer::Unknown)),
        (Vec::new(), None, None),
    ] {
        let (mut helper, theirs) = test_helper(LONG);
        let serving = thread::spawn(move || serve::answer(theirs.as_fd(), &sources(getent)));
        assert_eq!((helper.ask(USER), helper.ask(Id::Group(70_001))), (user, group));
        drop(helper);
        serving.join().unwrap().unwrap();
    }
}

#[cfg(feature = "privileges")]
#[test]
fn the_helper_works_for_a_thread_that_cannot_start_programs() {
    let folder = TempDir::new().unwrap();
    let sources = sources(vec![getent(&folder)]);
    let (mut helper, theirs) = test_helper(LONG);
    let serving = thread::spawn({
        let sources = sources.clone();
        move || serve::answer(theirs.as_fd(), &sources)
    });
    // Only this thread drops its privileges. If a sandbox around the tests forbids that, there is nothing to test.
    let asking = thread::spawn(move || {
        privileges::drop_capabilities(privileges::Extra::default()).ok()?;
        privileges::filter_syscalls().ok()?;
        privileges::restrict_files(&[], &[]).ok()?;
        assert!(Command::new("/bin/true").status().is_err());
        let others = sources.ask_services(USER, Some(&mut helper));
        assert!(matches!(helper.wait(), Some(status) if status.success()), "waiting for the process is still allowed");
        Some(others)
    });
    let answer = asking.join().unwrap();
    assert!(answer.is_none() || answer == Some(Answer::Named("ldap-user".into())), "{answer:?}");
    serving.join().unwrap().unwrap();
}

#[test]
fn a_dead_helper_gives_no_answer() {
    let (mut helper, theirs) = test_helper(LONG);
    drop(theirs);
    assert_eq!(helper.ask(USER), None);
    assert!(helper.socket.is_none());
    assert_eq!(helper.ask(USER), None);

    let (mut helper, theirs) = test_helper(LONG);
    let dying = thread::spawn(move || {
        recv(theirs.as_raw_fd(), &mut [0; QUESTION_LEN], MsgFlags::empty()).unwrap();
    });
    assert_eq!(helper.ask(USER), None, "it dies before it answers");
    dying.join().unwrap();
}

/// Answers one question for each trigger, and says when it has.
fn answer_when_triggered(theirs: OwnedFd, triggers: Receiver<()>, answered: Sender<()>) {
    for () in triggers {
        let mut question = [0; QUESTION_LEN];
        let count = recv(theirs.as_raw_fd(), &mut question, MsgFlags::empty()).unwrap();
        let id = message::read_question(&question[..count]).unwrap();
        let answer = message::answer(id, Some(&Answer::Named(format!("name-{}", id.number()))));
        send(theirs.as_raw_fd(), &answer, MsgFlags::empty()).unwrap();
        answered.send(()).unwrap();
    }
}

#[test]
fn a_slow_helper_does_not_block_and_late_answers_are_discarded() {
    let (mut helper, theirs) = test_helper(Duration::from_millis(50));
    let ((trigger, triggers), (answered, answers)) = (channel(), channel());
    let answering = thread::spawn(move || answer_when_triggered(theirs, triggers, answered));
    assert_eq!(helper.ask(Id::User(1)), Some(Answer::Failed), "no answer in time");
    helper.timeout = LONG;
    let start = Instant::now();
    for user in 2..10_000 {
        assert_eq!(helper.ask(Id::User(user)), Some(Answer::Failed));
    }
    assert!(start.elapsed() < LONG, "later questions do not wait: {:?}", start.elapsed());
    // The answer to the first question arrives. The questions after it were never sent.
    trigger.send(()).unwrap();
    answers.recv().unwrap();
    trigger.send(()).unwrap();
    assert_eq!(helper.ask(Id::User(7)), Some(Answer::Named("name-7".into())));
    drop(trigger);
    answering.join().unwrap();
}

#[test]
fn a_process_that_cannot_be_started_is_an_error() {
    assert!(GetentHelper::start(Command::new("/nonexistent")).is_err());
}
