//! Workloads whose threads end, or execute other programs, in an unusual order.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, exit, id};
use std::sync::mpsc::channel;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::SockFlag;

use super::sharing::{ask, await_children, connect_and_ask, stream_socket, succeeded};
use super::{EXECUTABLE, PROGRAM, RUN, address, print_line};
use crate::helpers::sys::{clone_with_memory, exit_thread};

/// The number of threads of `crowd` besides the main thread.
const CROWD: u64 = 32;

/// `later ADDRESS MILLISECONDS`: waits, connects, prints its address, and makes a request.
pub(super) fn later(arguments: &[String]) -> Result<()> {
    let there = address(arguments)?;
    sleep(pause(arguments)?);
    connect_to(there)
}

/// `leader-gone ADDRESS MILLISECONDS`: the main thread ends at once; another one does `later`.
pub(super) fn leader_gone(arguments: &[String]) -> Result<()> {
    in_other_thread(arguments, later)
}

/// `leader-gone-connected ADDRESS MILLISECONDS`: the main thread connects, prints its address, makes a
/// request and ends. Another thread makes a second request MILLISECONDS later.
pub(super) fn leader_gone_connected(arguments: &[String]) -> Result<()> {
    let (socket, pause) = (stream_socket(SockFlag::SOCK_CLOEXEC)?, pause(arguments)?);
    connect_and_ask(&socket, address(arguments)?)?;
    in_other_thread(arguments, move |_| {
        sleep(pause);
        ask(&socket.try_clone()?.into())
    })
}

/// `leader-gone-exec ADDRESS MILLISECONDS`: the main thread ends at once. Another one waits and executes `later`
/// without a pause.
pub(super) fn leader_gone_exec(arguments: &[String]) -> Result<()> {
    in_other_thread(arguments, |arguments| {
        let there = address(arguments)?;
        sleep(pause(arguments)?);
        exec_later(there, 0)
    })
}

/// `exec-by-thread ADDRESS MILLISECONDS`: a thread executes `later` while the main thread waits.
pub(super) fn exec_by_thread(arguments: &[String]) -> Result<()> {
    let (there, pause) = (address(arguments)?, pause(arguments)?);
    thread::spawn(move || exec_later(there, pause.as_millis()))
        .join()
        .map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

/// `clone-sharing-memory ADDRESS MILLISECONDS`: a child that shares this process's memory does `later`, and prints its
/// process id.
pub(super) fn clone_sharing_memory(arguments: &[String]) -> Result<()> {
    let (there, pause) = (address(arguments)?, pause(arguments)?);
    clone_with_memory(|| {
        sleep(pause);
        succeeded(connect_to(there).and_then(|()| print_line(nix::unistd::getpid())))
    })?;
    await_children(1)
}

/// `spawn-and-wait ADDRESS MILLISECONDS`: starts `later` with `posix_spawn(3)`, which calls `vfork(2)`, and waits.
pub(super) fn spawn_and_wait(arguments: &[String]) -> Result<()> {
    let status = Command::new(EXECUTABLE).arg0(PROGRAM).args([RUN, "later"]).args(arguments).spawn()?.wait()?;
    anyhow::ensure!(status.success(), "the child ended with {status}");
    Ok(())
}

/// `crowd ADDRESS MILLISECONDS`: the main thread ends at once, and many others at various times within a second. The last
/// thread does `later`.
pub(super) fn crowd(arguments: &[String]) -> Result<()> {
    let delay = |number: u64| Duration::from_millis((number * 7919 + u64::from(id())) % 1000);
    for number in 1..CROWD {
        thread::spawn(move || {
            sleep(delay(number));
            exit_thread()
        });
    }
    in_other_thread(arguments, later)
}

/// Runs `work` in another thread and ends this one. The process ends with the other thread.
fn in_other_thread(arguments: &[String], work: impl FnOnce(&[String]) -> Result<()> + Send + 'static) -> Result<()> {
    let (arguments, (began, has_begun)) = (arguments.to_vec(), channel());
    thread::spawn(move || {
        let _ = began.send(());
        exit(i32::from(!succeeded(work(&arguments))))
    });
    has_begun.recv().context("the other thread did not begin")?;
    exit_thread()
}

fn exec_later(there: SocketAddr, pause: u128) -> Result<()> {
    let args = [RUN, "later", &there.to_string(), &pause.to_string()];
    Err(Command::new(EXECUTABLE).arg0(PROGRAM).args(args).exec()).context("execute another program")
}

fn connect_to(there: SocketAddr) -> Result<()> {
    connect_and_ask(&stream_socket(SockFlag::SOCK_CLOEXEC)?, there)
}

fn pause(arguments: &[String]) -> Result<Duration> {
    Ok(Duration::from_millis(arguments.get(1).context("a pause is missing")?.parse()?))
}
