//! Packets from the network: a packet socket with a filter and a ring.
//!
//! The ring is version 2, not 3. Version 3 hands packets over in blocks: when a block is full, or when a timer runs
//! out, which then ticks for as long as the socket lives. DNS is some packets a second, and its names are wanted at
//! once: version 2 hands over each packet by itself. Its frames have one size, made for `snaplen`; what is longer, a
//! large answer over TCP, the kernel puts into the socket's queue as well, from where it is read whole.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::clock::{self, Conversion};
use crate::sys::{self, Ring, RingFrame};
use crate::{Error, Options, Packet, filter};

/// The longest IP packet.
const LONGEST: usize = 65_535 + 40;

/// Receives the packets of one network namespace, or of one interface in it.
#[derive(Debug)]
pub struct Capture {
    /// Before the socket, since the mapping goes first.
    ring: Ring,
    socket: OwnedFd,
    wake: Arc<EventFd>,
    /// A packet too long for the ring.
    long: Vec<u8>,
    /// The time of the last packet.
    last: u64,
    lost: u64,
}

/// Ends [`Capture::wait`] from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// Ends the wait, or else the next one.
    pub fn wake(&self) {
        // It only fails when it has been called 2⁶⁴ times without a wait; then the wait ends anyway.
        let _ = self.0.write(1);
    }
}

impl Capture {
    /// Starts receiving in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// Bad options, no such interface, no permission (`CAP_NET_RAW` is needed), or no memory for the ring.
    pub fn open(options: &Options) -> Result<Self, Error> {
        options.validate()?;
        let interface = options.interface.as_deref().map(index).transpose()?.unwrap_or(0);
        let socket = sys::packet_socket().map_err(|error| Error::io("open a packet socket", error))?;
        let program = filter::program(&options.ports, options.snaplen);
        sys::attach_filter(socket.as_fd(), &program).map_err(|error| Error::io("attach a filter", error))?;
        let ring = Ring::new(socket.as_fd(), options.ring_bytes as usize, options.snaplen as usize)
            .map_err(|error| Error::io("set up a ring for packets", error))?;
        sys::bind(socket.as_fd(), interface).map_err(|error| Error::io("bind a packet socket", error))?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_flags(flags).map_err(|error| Error::io("make an eventfd", error))?;
        Ok(Self { ring, socket, wake: Arc::new(wake), long: Vec::new(), last: 0, lost: 0 })
    }

    /// Starts receiving in another network namespace, given as an open `/proc/PID/ns/net` or the like. The capture
    /// keeps the namespace alive.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open); besides `CAP_NET_RAW` there, `CAP_SYS_ADMIN` is needed.
    pub fn open_in(namespace: BorrowedFd<'_>, options: &Options) -> Result<Self, Error> {
        // A namespace is a thread's; one that ends needs not find its way back.
        let inside = || {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|error| Error::io("enter a network namespace", io::Error::from(error)))?;
            Self::open(options)
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// What ends [`wait`](Self::wait).
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wake))
    }

    /// Waits for a packet, a [`Waker`], or the end of the timeout; without one, for as long as it takes.
    ///
    /// # Errors
    ///
    /// What `poll(2)` says.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<(), Error> {
        let timeout = timeout.map_or(PollTimeout::NONE, |time| time.try_into().unwrap_or(PollTimeout::MAX));
        let mut fds = [self.socket.as_fd(), self.wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Error::io("wait for packets", io::Error::from(error))),
        }
        if fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)) {
            // The interface is down. When it comes up again, so do its packets.
            let _ = sys::take_error(self.socket.as_fd());
        }
        if fds[1].any().unwrap_or_default() {
            let _ = self.wake.read();
        }
        Ok(())
    }

    /// Lends all packets that are there, oldest first, but no more than the ring has room for, so that a flood lets go
    /// of the caller now and then. Gives how many there were.
    pub fn drain(&mut self, each: &mut dyn FnMut(&Packet<'_>)) -> usize {
        let Self { ring, socket, long, last, .. } = self;
        let mut conversion = Conversion::default();
        let most = ring.frames();
        let drained = std::iter::from_fn(|| {
            ring.visit(|frame| {
                if !conversion.covers(frame.time) {
                    conversion = Conversion::read();
                }
                *last = conversion.monotonic(frame.time, *last);
                let RingFrame { length, ethertype, interface, copied, .. } = frame;
                let bytes = copied.then(|| receive_long(socket.as_fd(), long)).flatten().unwrap_or(frame.bytes);
                each(&Packet { time: *last, interface, ethertype, length, bytes });
            })
        });
        drained.take(most).count()
    }

    /// How many packets the ring has room for.
    pub fn room(&self) -> usize {
        self.ring.frames()
    }

    /// Packets that the kernel had no room for since the beginning.
    pub fn lost(&mut self) -> u64 {
        self.lost += sys::drops(self.socket.as_fd()).unwrap_or_default();
        self.lost
    }

    /// Now, in nanoseconds of `CLOCK_MONOTONIC`, as packets are timed.
    pub fn now(&self) -> u64 {
        clock::now()
    }
}

impl AsFd for Capture {
    /// Readable when packets are there. It says nothing of the [`Waker`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A packet that was too long for its frame.
fn receive_long<'a>(socket: BorrowedFd<'_>, buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    buffer.resize(LONGEST, 0);
    let length = sys::receive(socket, buffer).ok()?;
    Some(&buffer[..length])
}

fn index(name: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|error| Error::Interface { name: name.to_owned(), source: io::Error::from(error) })
}
