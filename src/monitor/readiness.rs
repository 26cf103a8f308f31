//! A file descriptor that is readable while there may be a result to receive.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd. It needs a system call only when its readability changes, not for each result that is sent.
#[derive(Debug)]
pub(super) struct Readiness {
    event: EventFd,
    is_set: AtomicBool,
}

impl Readiness {
    /// A file descriptor that is not readable.
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { event, is_set: AtomicBool::new(false) })
    }

    /// Makes it readable. Call it after something was sent.
    pub(super) fn set(&self) {
        if !self.is_set.swap(true, Ordering::AcqRel) {
            // This fails only if the counter would overflow, and then it is readable.
            let _ = self.event.write(1);
        }
    }

    /// Makes it unreadable. Check the queues once more afterwards: a sender that sent something before this call saw it
    /// set, and did not set it again.
    pub(super) fn clear(&self) {
        // If there is nothing to read, it was not readable.
        let _ = self.event.read();
        self.is_set.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Makes the descriptor readable when this is dropped: the senders are gone, so the end can be received.
#[derive(Debug)]
pub(super) struct SetOnDrop(pub(super) Arc<Readiness>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}
