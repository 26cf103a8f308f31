//! The getent helper: a process that runs `getent(1)` for a process that cannot start programs any more.
//!
//! It is started before the process drops its privileges, drops all of its own, and answers questions over a socket, one at a
//! time. Questions and answers are datagrams of bounded length. It exits when the socket is closed, so also when the asking
//! process dies. This takes up to two seconds, the timeout of one `getent`. (`PR_SET_PDEATHSIG` would leave a running
//! `getent` behind.)

mod message;
mod serve;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use self::message::MAX_ANSWER_LEN;
use super::{Answer, Id, Sources};

/// How long an answer may take in addition to the timeout of `getent`.
const SLACK: Duration = Duration::from_secs(3);
/// How long to wait for the process to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often to check whether the process has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The getent helper: a process that asks `getent` for names. [`Users::start`](super::Users::start) takes it.
///
/// The process ends once this is dropped.
#[derive(Debug)]
pub struct GetentHelper {
    child: Child,
    /// `None` once the process has ended.
    socket: Option<OwnedFd>,
    timeout: Duration,
    /// Whether a question was not answered in time.
    awaits_late_answer: bool,
    has_warned: bool,
}

impl GetentHelper {
    /// Starts the helper. `command` is a program that calls [`GetentHelper::serve`]. It gets an empty environment, `/` as its
    /// working directory, and this process's stderr.
    ///
    /// Call it before you drop privileges. It takes about a millisecond and does not block.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(command: Command) -> io::Result<Self> {
        Self::with_timeout(command, Sources::system().getent_timeout + SLACK)
    }

    fn with_timeout(mut command: Command, timeout: Duration) -> io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).env_clear().current_dir("/");
        let child = command.spawn()?;
        Ok(Self { child, socket: Some(ours), timeout, awaits_late_answer: false, has_warned: false })
    }

    /// Runs the helper in the process that [`GetentHelper::start`] has started: drops all privileges, then answers questions on
    /// standard input until the other end is closed.
    ///
    /// # Errors
    /// Privileges cannot be dropped, or standard input is not a socket. The process should exit.
    pub fn serve() -> io::Result<()> {
        serve::run(io::stdin().as_fd(), &Sources::system())
    }

    /// Asks `getent` for the name of an id. `None` if there is no `getent`, or the helper has ended.
    pub(super) fn ask(&mut self, id: Id) -> Option<Answer> {
        let socket = self.socket.as_ref()?.as_raw_fd();
        if self.awaits_late_answer {
            // The process still works on an earlier question: send no other and do not wait.
            match self.receive(Duration::ZERO) {
                Ok(Some(_)) => self.awaits_late_answer = false,
                Ok(None) => return Some(Answer::Failed),
                Err(_) => return self.report_exit(),
            }
        }
        if send(socket, &message::question(id), MsgFlags::MSG_NOSIGNAL).is_err() {
            return self.report_exit();
        }
        match self.receive(self.timeout) {
            Ok(Some(bytes)) => message::read_answer(&bytes, id),
            Ok(None) => self.report_timeout(),
            Err(_) => self.report_exit(),
        }
    }

    /// Receives one message; `None` if none arrives in time.
    fn receive(&self, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut wait = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match poll(&mut wait, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Err(Errno::EINTR) => {}
                ready if ready? == 0 => return Ok(None),
                _ => break,
            }
        }
        let mut message = vec![0; MAX_ANSWER_LEN];
        match recv(socket.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                message.truncate(count);
                Ok(Some(message))
            }
        }
    }

    fn report_timeout(&mut self) -> Option<Answer> {
        self.awaits_late_answer = true;
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(
                "the getent helper (pid {}) does not answer: until it does, users that only getent knows have no names",
                self.child.id()
            );
        }
        Some(Answer::Failed)
    }

    fn report_exit(&mut self) -> Option<Answer> {
        self.socket = None;
        let ended = self.wait().map_or_else(|| "without a status".to_owned(), |status| status.to_string());
        tracing::warn!(
            "the getent helper has ended ({ended}): users that only getent knows have no names until a restart"
        );
        None
    }

    /// The exit status of the process; `None` if it does not end soon.
    fn wait(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + EXIT_TIMEOUT;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => sleep(POLL_INTERVAL),
                status => return status.ok().flatten(),
            }
        }
    }
}

impl Drop for GetentHelper {
    fn drop(&mut self) {
        if self.socket.take().is_some() {
            let _ = self.wait();
        }
    }
}

#[cfg(test)]
mod tests;
