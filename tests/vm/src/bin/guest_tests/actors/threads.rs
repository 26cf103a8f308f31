//! Actors whose threads end or execute other programs in an unusual order.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, exit, id};
use std::sync::mpsc::channel;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::SockFlag;

use super::sharing::{ask, await_children, connect_and_ask, stream_socket, told};
use super::{ACT, EXECUTABLE, PROGRAM, address, say};
use crate::helpers::sys::{clone_with_memory, exit_thread};

/// How many threads there are at once.
const CROWD: u64 = 32;

/// `later ADDRESS MILLISECONDS`: waits, connects, prints its address, and talks.
pub(super) fn later(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    sleep(pause(arguments)?);
    talk(there)
}

/// `leader-gone ADDRESS MILLISECONDS`: its leading thread ends at once; another does as `later`.
pub(super) fn leader_gone(arguments: &[String]) -> Result<()> {
    in_other_thread(arguments, later)
}

/// `leader-gone-connected ADDRESS MILLISECONDS`: a thread connects and prints its address, the leading one ends, and
/// the other talks a while later.
pub(super) fn leader_gone_connected(arguments: &[String]) -> Result<()> {
    let (socket, pause) = (stream_socket(SockFlag::SOCK_CLOEXEC)?, pause(arguments)?);
    connect_and_ask(&socket, address(arguments)?)?;
    in_other_thread(arguments, move |_| {
        sleep(pause);
        ask(&socket.try_clone()?.into())
    })
}

/// `leader-gone-exec ADDRESS MILLISECONDS`: its leading thread ends at once; another waits and executes `later` without
/// a pause.
pub(super) fn leader_gone_exec(arguments: &[String]) -> Result<()> {
    in_other_thread(arguments, |arguments| {
        let there = address(arguments)?;
        sleep(pause(arguments)?);
        become_later(there, 0)
    })
}

/// `exec-by-thread ADDRESS MILLISECONDS`: a thread executes `later`, while the leading one still waits.
pub(super) fn exec_by_thread(arguments: &[String]) -> Result<()> {
    let (there, pause) = (address(arguments)?, pause(arguments)?);
    thread::spawn(move || become_later(there, pause.as_millis())).join().map_err(|_| anyhow::anyhow!("it panicked"))?
}

/// `clone-with-memory ADDRESS MILLISECONDS`: another process that shares this one's memory does as `later`, and prints
/// its process id.
pub(super) fn clone_and_talk(arguments: &[String]) -> Result<()> {
    let (there, pause) = (address(arguments)?, pause(arguments)?);
    clone_with_memory(|| {
        sleep(pause);
        told(talk(there).and_then(|()| say(nix::unistd::getpid())))
    })?;
    await_children(1)
}

/// `spawn-and-wait ADDRESS MILLISECONDS`: starts `later` by `posix_spawn(3)`, which is a `vfork(2)`, and waits for its end.
pub(super) fn spawn_and_wait(arguments: &[String]) -> Result<()> {
    let status = Command::new(EXECUTABLE).arg0(PROGRAM).args([ACT, "later"]).args(arguments).spawn()?.wait()?;
    anyhow::ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// `crowd ADDRESS MILLISECONDS`: many threads end at odd moments, the leading one among them; the last does as `later`.
pub(super) fn crowd(arguments: &[String]) -> Result<()> {
    let last = u64::from(id()) % CROWD;
    let moment = |number: u64| Duration::from_millis((number * 7919 + u64::from(id())) % 1000);
    for number in (0..CROWD).filter(|number| *number != last) {
        thread::spawn(move || {
            sleep(moment(number));
            exit_thread()
        });
    }
    in_other_thread(arguments, later)
}

/// Does something in another thread. The process ends when that thread ends, after this one.
fn in_other_thread(arguments: &[String], what: impl FnOnce(&[String]) -> Result<()> + Send + 'static) -> Result<()> {
    let (arguments, (began, has_begun)) = (arguments.to_vec(), channel());
    thread::spawn(move || {
        let _ = began.send(());
        exit(i32::from(!told(what(&arguments))))
    });
    has_begun.recv().context("the thread begins")?;
    exit_thread()
}

fn become_later(there: SocketAddr, pause: u128) -> Result<()> {
    let args = [ACT, "later", &there.to_string(), &pause.to_string()];
    Err(Command::new(EXECUTABLE).arg0(PROGRAM).args(args).exec()).context("become another program")
}

fn talk(there: SocketAddr) -> Result<()> {
    connect_and_ask(&stream_socket(SockFlag::SOCK_CLOEXEC)?, there)
}

fn pause(arguments: &[String]) -> Result<Duration> {
    Ok(Duration::from_millis(arguments.get(1).context("a pause is missing")?.parse()?))
}
