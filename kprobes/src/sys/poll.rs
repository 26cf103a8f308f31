//! Waits for rings, and can be woken.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

/// An epoll set, with an eventfd in it that wakes it.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: Epoll,
    event_fd: Arc<EventFd>,
}

/// The epoll data of the eventfd. No descriptor has this number, because descriptors are never negative.
const WAKE_KEY: u64 = u64::MAX;

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event_fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&event_fd, EpollEvent::new(EpollFlags::EPOLLIN, WAKE_KEY))?;
        Ok(Self { epoll, event_fd: Arc::new(event_fd) })
    }

    pub(crate) fn add(&self, ring: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.epoll.add(ring, EpollEvent::new(EpollFlags::EPOLLIN, ring.as_raw_fd() as u64))?)
    }

    pub(crate) fn remove(&self, ring: BorrowedFd<'_>) {
        // It fails only if the ring is not in the set.
        let _ = self.epoll.delete(ring);
    }

    pub(crate) fn event_fd(&self) -> Arc<EventFd> {
        Arc::clone(&self.event_fd)
    }

    /// Waits. Calls `ended` with the descriptor of each ring whose thread has ended, so that no more records will come.
    /// Returns `false` after a timeout or a signal.
    pub(crate) fn wait(&self, timeout: Option<Duration>, mut ended: impl FnMut(i32)) -> io::Result<bool> {
        let mut events = [EpollEvent::empty(); 16];
        let ready = match self.epoll.wait(&mut events, in_milliseconds(timeout)) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        for event in &events[..ready] {
            if event.data() == WAKE_KEY {
                // Reading resets it. The read does not block; another reader may have been first.
                let _ = self.event_fd.read();
            } else if event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                ended(event.data() as i32);
            }
        }
        Ok(ready > 0)
    }
}

/// Rounded up, so that the last fraction of a millisecond is not a busy loop.
fn in_milliseconds(timeout: Option<Duration>) -> EpollTimeout {
    let Some(timeout) = timeout else { return EpollTimeout::NONE };
    let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
    EpollTimeout::try_from(milliseconds.min(i32::MAX as u128) as i32).unwrap_or(EpollTimeout::ZERO)
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub(crate) fn monotonic() -> u64 {
    // It fails only for clocks that do not exist.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.num_nanoseconds() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_fd_ends_one_wait() {
        let poller = Poller::new().unwrap();
        assert!(!poller.wait(Some(Duration::ZERO), |_| ()).unwrap());
        poller.event_fd().write(1).unwrap();
        poller.event_fd().write(1).unwrap();
        assert!(poller.wait(None, |_| ()).unwrap());
        assert!(!poller.wait(Some(Duration::from_micros(1)), |_| ()).unwrap());
    }

    #[test]
    fn timeouts_are_rounded_up() {
        let milliseconds = |timeout| in_milliseconds(Some(timeout));
        assert_eq!(milliseconds(Duration::from_nanos(1)), EpollTimeout::from(1_u8));
        assert_eq!(milliseconds(Duration::from_millis(2)), EpollTimeout::from(2_u8));
        assert!(milliseconds(Duration::MAX).is_some());
        assert!(in_milliseconds(None).is_none());
    }
}
