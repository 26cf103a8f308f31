//! The shapes of clients: the connection is made by the process itself, by a child, in a thread, after an exec, as
//! another user, or with a socket that another process made.

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

use super::super::arguments::Arguments;
use super::identity::Identity;
use super::{talk, tcp};
use crate::helpers::process::USER_ID;
use crate::helpers::sys::{
    ThreadMode, clone_thread, clone_with_memory, exit_thread, fork, fork_with_files, receive_descriptor,
    send_descriptor, take_inherited,
};
use crate::helpers::wait::wait_until;
use crate::workloads::RUN;

/// An unused socket, and the process that made it.
pub(super) struct MadeSocket {
    pub(super) socket: OwnedFd,
    pub(super) maker: Identity,
}

/// `client shape=... ...`: runs a client in a shape, after `late` seconds.
pub(super) fn client(arguments: &Arguments) -> Result<()> {
    Identity::now();
    match arguments.text("shape").unwrap_or("plain") {
        "plain" => wait_and_talk(arguments),
        "child" => child(|| wait_and_talk(arguments)),
        "orphan" => fork(|| succeeded(orphan_child(arguments))).map(drop).and_then(|()| await_child()),
        "thread" => in_thread(arguments),
        "leaderless" => in_thread_without_leader(arguments),
        "cloned-thread" => in_cloned_thread(ThreadMode::Vfork, arguments),
        "cloned-thread-own-files" => in_cloned_thread(ThreadMode::VforkOwnFiles, arguments),
        "cloned-thread-leaderless" => in_cloned_thread_without_leader(arguments),
        "cloned-thread-exec" => exec_in_cloned_thread(arguments),
        "exec" => exec_another(arguments, None),
        "spawn" => spawn(arguments),
        "shared-memory" => clone_with_memory(|| succeeded(wait_and_talk(arguments))).and_then(|_| await_child()),
        "shared-files" => fork_with_files(|| succeeded(wait_and_talk(arguments))).and_then(|_| await_child()),
        "child-exec" => child(|| exec_another(arguments, None)),
        "thread-exec" => exec_in_thread(arguments),
        "user" => set_user().and_then(|()| wait_and_talk(arguments)),
        "effective-user" => set_effective_user().and_then(|()| wait_and_talk(arguments)),
        "socket-child" => {
            let made = make_socket(arguments, SockFlag::SOCK_CLOEXEC)?;
            child(move || talk(arguments, Some(made)))
        }
        "socket-orphan" => {
            let made = make_socket(arguments, SockFlag::SOCK_CLOEXEC)?;
            fork(move || succeeded(with_parent_gone(arguments, made))).map(drop)
        }
        "socket-passed" => pass_socket(arguments),
        "socket-exec" => exec_another(arguments, Some(make_socket(arguments, SockFlag::empty())?.socket)),
        "inherited" => {
            let socket = take_inherited(arguments.get("descriptor")?)?;
            talk(arguments, Some(MadeSocket { socket, maker: Identity::now() }))
        }
        shape => bail!("unknown shape {shape}"),
    }
}

fn wait_and_talk(arguments: &Arguments) -> Result<()> {
    sleep(Duration::from_secs(arguments.or("late", 0)?));
    talk(arguments, None)
}

fn child(work: impl FnOnce() -> Result<()>) -> Result<()> {
    // A workload has one thread, so its child may call anything.
    fork(|| succeeded(work()))?;
    await_child()
}

/// Forks the client, and ends before it.
fn orphan_child(arguments: &Arguments) -> Result<()> {
    fork(|| succeeded(wait_and_talk(arguments))).map(drop)
}

/// Starts the client as another program by `posix_spawn(3)`, which calls `vfork(2)`.
fn spawn(arguments: &Arguments) -> Result<()> {
    let status = another_program(arguments, None)?.spawn()?.wait()?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// Waits until the parent, which made the socket, has ended. The socket's owner is still the parent.
fn with_parent_gone(arguments: &Arguments, made: MadeSocket) -> Result<()> {
    let parent = Pid::from_raw(i32::try_from(made.maker.pid())?);
    wait_until("the parent's end", || Ok(getppid() != parent))?;
    talk(arguments, Some(made))
}

fn in_thread(arguments: &Arguments) -> Result<()> {
    let arguments = arguments.clone();
    let thread = thread::Builder::new().name("a-thread".to_owned()).spawn(move || wait_and_talk(&arguments))?;
    thread.join().map_err(|_| anyhow!("the thread panicked"))?
}

/// The main thread ends; another one runs the client, and then ends the process.
fn in_thread_without_leader(arguments: &Arguments) -> Result<()> {
    let arguments = arguments.clone();
    thread::spawn(move || {
        let status = i32::from(!succeeded(wait_and_talk(&arguments)));
        std::process::exit(status);
    });
    exit_thread()
}

/// Runs the client in a thread that the C library does not know.
fn in_cloned_thread(mode: ThreadMode, arguments: &Arguments) -> Result<()> {
    let has_succeeded = Arc::new(AtomicBool::new(false));
    let (arguments, result) = (arguments.clone(), Arc::clone(&has_succeeded));
    clone_thread(mode, move || result.store(succeeded(wait_and_talk(&arguments)), Ordering::Release))?;
    ensure!(has_succeeded.load(Ordering::Acquire), "the thread failed");
    Ok(())
}

/// Like [`in_thread_without_leader`], with a thread that the C library does not know.
fn in_cloned_thread_without_leader(arguments: &Arguments) -> Result<()> {
    let arguments = arguments.clone();
    clone_thread(ThreadMode::Concurrent, move || {
        let status = i32::from(!succeeded(wait_and_talk(&arguments)));
        std::process::exit(status);
    })?;
    exit_thread()
}

/// Like [`exec_in_thread`], with a thread that the C library does not know.
fn exec_in_cloned_thread(arguments: &Arguments) -> Result<()> {
    let arguments = arguments.clone();
    clone_thread(ThreadMode::Vfork, move || {
        succeeded(exec_another(&arguments, None));
    })?;
    bail!("the thread did not execute the program")
}

/// Executes another program, which runs the client as `plain`, or with the inherited socket.
fn exec_another(arguments: &Arguments, socket: Option<OwnedFd>) -> Result<()> {
    let mut command = another_program(arguments, socket.as_ref())?;
    Err(command.exec()).with_context(|| format!("execute {:?}", command.get_program()))
}

fn another_program(arguments: &Arguments, socket: Option<&OwnedFd>) -> Result<Command> {
    let program: String = arguments.get("program")?;
    let mut command = Command::new(&program);
    command.args([RUN, "torture", "client"]);
    // If a key is given twice, the last value counts.
    command.args(std::env::args().filter(|argument| argument.contains('=')));
    match socket {
        Some(socket) => command.arg("shape=inherited").arg(format!("descriptor={}", socket.as_raw_fd())),
        None => command.arg("shape=plain"),
    };
    Ok(command)
}

fn exec_in_thread(arguments: &Arguments) -> Result<()> {
    let arguments = arguments.clone();
    let thread = thread::spawn(move || exec_another(&arguments, None));
    thread.join().map_err(|_| anyhow!("the thread panicked"))?
}

/// The socket's owner is the process that made it, although another one connects it.
fn pass_socket(arguments: &Arguments) -> Result<()> {
    let (mut here, mut there) = UnixStream::pair()?;
    let maker = Identity::now();
    fork(|| {
        succeeded(receive_descriptor(&there).and_then(|socket| {
            there.read_exact(&mut [0])?;
            talk(arguments, Some(MadeSocket { socket, maker }))
        }))
    })?;
    let made = make_socket(arguments, SockFlag::SOCK_CLOEXEC)?;
    send_descriptor(&here, &made.socket)?;
    drop(made);
    here.write_all(b".")?;
    await_child()
}

fn make_socket(arguments: &Arguments, flags: SockFlag) -> Result<MadeSocket> {
    let to: SocketAddr = arguments.get("to")?;
    Ok(MadeSocket { socket: tcp::socket(arguments, to, flags)?, maker: Identity::now() })
}

fn set_user() -> Result<()> {
    setgid(Gid::from_raw(USER_ID)).context("set the group")?;
    setuid(Uid::from_raw(USER_ID)).context("set the user")
}

fn set_effective_user() -> Result<()> {
    setegid(Gid::from_raw(USER_ID)).context("set the effective group")?;
    seteuid(Uid::from_raw(USER_ID)).context("set the effective user")
}

/// Prints an error; returns whether there was none.
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
