//! Looks up names with `getent(1)`, which asks the host's C library. It runs for a few milliseconds.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Answer, Id, files, guarded};

/// The maximum size of an answer in bytes: a group may have many members.
const MAX_ANSWER: usize = 64 * 1024;
/// The exit status for a key that was not found.
const NOT_FOUND: i32 = 2;
/// How often to check whether `getent` has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The first path of a program that only root and this process's user can replace.
pub(super) fn find(paths: &[PathBuf]) -> Option<PathBuf> {
    paths.iter().find_map(|path| guarded::resolve_program(path))
}

/// Runs `getent` to look up an id, for at most `timeout`. `None` if there is no `getent`, or it cannot be started.
pub(super) fn look_up(paths: &[PathBuf], id: Id, timeout: Duration) -> Option<Answer> {
    let deadline = Instant::now() + timeout;
    let mut child = spawn(&find(paths)?, id)?;
    let output = output(&mut child, deadline);
    let status = if output.is_some() { exit_status(&mut child, deadline) } else { None };
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    Some(match (status, output) {
        (Some(0), Some(output)) => files::parse_line(&output, id.number()),
        (Some(NOT_FOUND), _) => Answer::Unknown,
        _ => Answer::Failed,
    })
}

fn spawn(getent: &Path, id: Id) -> Option<Child> {
    let database = match id {
        Id::User(_) => "passwd",
        Id::Group(_) => "group",
    };
    let mut command = Command::new(getent);
    command.arg0("getent").arg(database).arg(id.number().to_string()).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()
}

/// The complete output; `None` if it is too long or takes too long.
fn output(child: &mut Child, deadline: Instant) -> Option<Vec<u8>> {
    let mut pipe = child.stdout.take()?;
    let (mut output, mut part) = (Vec::new(), [0; 4096]);
    while output.len() <= MAX_ANSWER {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).ok()?;
        let mut wait = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        if left.is_zero() || poll(&mut wait, timeout).ok()? == 0 {
            return None;
        }
        match pipe.read(&mut part).ok()? {
            0 => return Some(output),
            count => output.extend_from_slice(&part[..count]),
        }
    }
    None
}

/// The exit status; `None` if the program does not exit by the deadline.
fn exit_status(child: &mut Child, deadline: Instant) -> Option<i32> {
    loop {
        match child.try_wait().ok()? {
            Some(status) => return status.code(),
            None if Instant::now() >= deadline => return None,
            None => sleep(POLL_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Looks up an id with a script instead of `getent`.
    fn answer_of(script: &str, id: Id, timeout: Duration) -> Option<Answer> {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("getent");
        // A program that is open for writing cannot be executed (ETXTBSY). If this process wrote `path`, a child that another
        // test forks at that time could inherit the descriptor. `cp` has no such children.
        let fresh = folder.path().join("fresh");
        fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Command::new("/bin/cp").arg(&fresh).arg(&path).status().unwrap().success());
        look_up(&[folder.path().join("none"), path], id, timeout)
    }

    const LONG: Duration = Duration::from_secs(60);
    const USER: Id = Id::User(70_001);

    #[test]
    fn only_a_successful_answer_about_the_id_has_a_name() {
        let echo = r#"[ "$#" = 2 ] && [ -z "$HOME" ] && echo "$1-name:x:$2:1::/:/bin/sh""#;
        assert_eq!(answer_of(echo, USER, LONG), Some(Answer::Named("passwd-name".into())));
        assert_eq!(answer_of(echo, Id::Group(5), LONG), Some(Answer::Named("group-name".into())));
        assert_eq!(answer_of("echo other:x:70002:", USER, LONG), Some(Answer::Failed));
        assert_eq!(answer_of("printf 'b\\033d:x:70001:'", USER, LONG), Some(Answer::Failed));
        assert_eq!(answer_of("echo nonsense", USER, LONG), Some(Answer::Failed));
        assert_eq!(answer_of("exit 2", USER, LONG), Some(Answer::Unknown));
        assert_eq!(answer_of("echo a:x:70001:; exit 1", USER, LONG), Some(Answer::Failed));
        assert_eq!(answer_of("kill -9 $$", USER, LONG), Some(Answer::Failed));
    }

    #[test]
    fn slow_and_endless_output_fails() {
        let start = Instant::now();
        assert_eq!(answer_of("exec sleep 300", USER, Duration::from_millis(200)), Some(Answer::Failed));
        assert_eq!(answer_of("exec >&-; exec sleep 300", USER, Duration::from_millis(200)), Some(Answer::Failed));
        assert_eq!(answer_of("while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done", USER, LONG), Some(Answer::Failed));
        assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    }

    #[test]
    fn without_getent_there_is_no_answer() {
        assert_eq!(look_up(&["/nonexistent/getent".into()], USER, LONG), None);
    }

    #[test]
    fn the_getent_of_this_host_knows_root() {
        let paths = ["/usr/bin/getent".into(), "/bin/getent".into()];
        if let Some(answer) = look_up(&paths, Id::User(0), LONG) {
            assert_eq!(answer, Answer::Named("root".into()));
        }
    }
}
