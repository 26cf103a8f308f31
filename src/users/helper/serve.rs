//! The helper process: drops its privileges and answers questions.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{MsgFlags, recv, send};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::super::{Sources, getent};
use super::message::{self, QUESTION_LEN};
use crate::privileges;

pub(super) fn run(socket: BorrowedFd<'_>, sources: &Sources) -> io::Result<()> {
    // Service managers signal all processes of a service. The helper must outlive the agent, so that the last flows get the names
    // of their users. It handles these signals and does nothing, because `getent` would inherit a signal that is ignored.
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::default())?;
    }
    privileges::drop_all_privileges().map_err(io::Error::other)?;
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    answer(socket, sources)
}

/// Answers until the other end of the socket is closed.
pub(super) fn answer(socket: BorrowedFd<'_>, sources: &Sources) -> io::Result<()> {
    loop {
        // One byte longer than a question, to notice questions that are too long.
        let mut question = [0; QUESTION_LEN + 1];
        let id = match recv(socket.as_raw_fd(), &mut question, MsgFlags::empty()) {
            Ok(0) | Err(Errno::ECONNRESET) => return Ok(()),
            Ok(count) => message::read_question(&question[..count]),
            Err(Errno::EINTR) => None,
            Err(errno) => return Err(errno.into()),
        };
        let Some(id) = id else { continue };
        let answer = getent::look_up(&sources.getent, id, sources.getent_timeout);
        match send(socket.as_raw_fd(), &message::answer(id, answer.as_ref()), MsgFlags::MSG_NOSIGNAL) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}
