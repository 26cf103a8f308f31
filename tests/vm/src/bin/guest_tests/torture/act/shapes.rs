//! The shapes of clients: a process that talks itself, as a child, in a thread, after an exec, as another user, or with
//! a socket that another process made.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::socket::SockFlag;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Gid, Pid, Uid, getppid, setegid, seteuid, setgid, setuid};

use super::super::words::Words;
use super::identity::Identity;
use super::{talk, tcp};
use crate::actors::ACT;
use crate::helpers::patience::until;
use crate::helpers::process::USER;
use crate::helpers::sys::{
    Beside, clone_thread, clone_with_memory, exit_thread, fork, fork_with_files, inherited, receive_descriptor,
    send_descriptor,
};

/// A socket and the process that made it; it has not been used yet.
pub(super) struct Made {
    pub(super) socket: OwnedFd,
    pub(super) by: Identity,
}

/// `client shape=... ...`: talks in the given shape, `late` seconds later.
pub(super) fn client(words: &Words) -> Result<()> {
    Identity::now();
    match words.text("shape").unwrap_or("plain") {
        "plain" => late(words),
        "child" => child(|| late(words)),
        "orphan" => fork(|| succeeded(child_of_nobody(words))).map(drop).and_then(|()| await_child()),
        "thread" => in_thread(words),
        "leaderless" => leaderless(words),
        "cloned-thread" => in_cloned_thread(Beside::WaitingMaker, words),
        "cloned-thread-own-files" => in_cloned_thread(Beside::OwnFiles, words),
        "cloned-thread-leaderless" => cloned_leaderless(words),
        "cloned-thread-exec" => exec_in_cloned_thread(words),
        "exec" => become_another(words, None),
        "spawn" => spawn(words),
        "shared-memory" => clone_with_memory(|| succeeded(late(words))).and_then(|_| await_child()),
        "shared-files" => fork_with_files(|| succeeded(late(words))).and_then(|_| await_child()),
        "child-exec" => child(|| become_another(words, None)),
        "thread-exec" => exec_in_thread(words),
        "user" => become_user().and_then(|()| late(words)),
        "acting-user" => act_as_user().and_then(|()| late(words)),
        "socket-child" => {
            let made = made(words, SockFlag::SOCK_CLOEXEC)?;
            child(move || talk(words, Some(made)))
        }
        "socket-orphan" => {
            let made = made(words, SockFlag::SOCK_CLOEXEC)?;
            fork(move || succeeded(with_parent_gone(words, made))).map(drop)
        }
        "socket-passed" => passed(words),
        "socket-exec" => become_another(words, Some(made(words, SockFlag::empty())?.socket)),
        "inherited" => {
            let socket = inherited(words.get("descriptor")?)?;
            talk(words, Some(Made { socket, by: Identity::now() }))
        }
        shape => bail!("there is no shape {shape}"),
    }
}

fn late(words: &Words) -> Result<()> {
    sleep(Duration::from_secs(words.or("late", 0)?));
    talk(words, None)
}

fn child(work: impl FnOnce() -> Result<()>) -> Result<()> {
    // An actor has one thread, so its child may do anything.
    fork(|| succeeded(work()))?;
    await_child()
}

/// The parent of the child that talks has ended.
fn child_of_nobody(words: &Words) -> Result<()> {
    fork(|| succeeded(late(words))).map(drop)
}

/// Starts another program by `posix_spawn(3)`, which is a `vfork(2)`; it talks.
fn spawn(words: &Words) -> Result<()> {
    let status = another(words, None)?.spawn()?.wait()?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// The socket keeps its maker as owner, even after the maker has ended.
fn with_parent_gone(words: &Words, made: Made) -> Result<()> {
    let parent = Pid::from_raw(i32::try_from(made.by.pid())?);
    until("the parent's end", || Ok(getppid() != parent))?;
    talk(words, Some(made))
}

fn in_thread(words: &Words) -> Result<()> {
    let words = words.clone();
    let thread = thread::Builder::new().name("a-thread".to_owned()).spawn(move || late(&words))?;
    thread.join().map_err(|_| anyhow!("the thread panicked"))?
}

/// The leading thread ends; another one talks later, and then ends the process.
fn leaderless(words: &Words) -> Result<()> {
    let words = words.clone();
    thread::spawn(move || {
        let status = i32::from(!succeeded(late(&words)));
        std::process::exit(status);
    });
    exit_thread()
}

/// The same for a thread that is not the C library's.
fn in_cloned_thread(beside: Beside, words: &Words) -> Result<()> {
    let has_succeeded = Arc::new(AtomicBool::new(false));
    let (words, told) = (words.clone(), Arc::clone(&has_succeeded));
    clone_thread(beside, move || told.store(succeeded(late(&words)), Ordering::Release))?;
    ensure!(has_succeeded.load(Ordering::Acquire), "the thread failed");
    Ok(())
}

/// See [`in_cloned_thread`].
fn cloned_leaderless(words: &Words) -> Result<()> {
    let words = words.clone();
    clone_thread(Beside::EndingMaker, move || {
        let status = i32::from(!succeeded(late(&words)));
        std::process::exit(status);
    })?;
    exit_thread()
}

/// See [`in_cloned_thread`].
fn exec_in_cloned_thread(words: &Words) -> Result<()> {
    let words = words.clone();
    clone_thread(Beside::WaitingMaker, move || {
        succeeded(become_another(&words, None));
    })?;
    bail!("the thread did not execute the program")
}

/// The process executes another program, which talks as `plain`, or with the socket passed to it.
fn become_another(words: &Words, socket: Option<OwnedFd>) -> Result<()> {
    let mut command = another(words, socket.as_ref())?;
    Err(command.exec()).with_context(|| format!("become {:?}", command.get_program()))
}

fn another(words: &Words, socket: Option<&OwnedFd>) -> Result<Command> {
    let program: String = words.get("program")?;
    let mut command = Command::new(&program);
    command.args([ACT, "torture", "client"]);
    // If a key is given twice, the last value counts.
    command.args(std::env::args().filter(|word| word.contains('=')));
    match socket {
        Some(socket) => command.arg("shape=inherited").arg(format!("descriptor={}", socket.as_raw_fd())),
        None => command.arg("shape=plain"),
    };
    Ok(command)
}

fn exec_in_thread(words: &Words) -> Result<()> {
    let words = words.clone();
    let thread = thread::spawn(move || become_another(&words, None));
    thread.join().map_err(|_| anyhow!("the thread panicked"))?
}

/// The socket keeps its maker as owner, whoever connects it.
fn passed(words: &Words) -> Result<()> {
    let (mut here, mut there) = UnixStream::pair()?;
    let by = Identity::now();
    fork(|| {
        succeeded(receive_descriptor(&there).and_then(|socket| {
            there.read_exact(&mut [0])?;
            talk(words, Some(Made { socket, by }))
        }))
    })?;
    let made = made(words, SockFlag::SOCK_CLOEXEC)?;
    send_descriptor(&here, &made.socket)?;
    drop(made);
    here.write_all(b".")?;
    await_child()
}

fn made(words: &Words, flags: SockFlag) -> Result<Made> {
    let to: SocketAddr = words.get("to")?;
    Ok(Made { socket: tcp::socket(words, to, flags)?, by: Identity::now() })
}

fn become_user() -> Result<()> {
    setgid(Gid::from_raw(USER)).context("become another group")?;
    setuid(Uid::from_raw(USER)).context("become another user")
}

fn act_as_user() -> Result<()> {
    setegid(Gid::from_raw(USER)).context("act as another group")?;
    seteuid(Uid::from_raw(USER)).context("act as another user")
}

/// Prints a child's error, if there is one; returns whether there was none.
pub(super) fn succeeded(result: Result<()>) -> bool {
    if let Err(error) = &result {
        let _ = writeln!(std::io::stderr(), "{:?}: {error:?}", std::env::args().collect::<Vec<_>>());
    }
    result.is_ok()
}

fn await_child() -> Result<()> {
    let status = wait().context("wait for a child")?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "a child ended with {status:?}");
    Ok(())
}
