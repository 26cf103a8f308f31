//! Captures packets: a packet socket with a filter and a ring.
//!
//! The ring is of version 2 (`TPACKET_V2`), not 3. Version 3 hands packets over in blocks, when a block is full or a
//! timer runs out, and that timer ticks for as long as the socket lives. DNS is a few packets a second, and names are
//! wanted at once; version 2 hands each packet over by itself. Its frames have one size, enough for `snaplen`. The
//! kernel also queues packets that are longer, such as a large answer over TCP, in the socket's receive queue, from
//! which they are read whole.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::clock::{self, WallToMonotonic};
use crate::sys::{self, Ring, RingFrame};
use crate::{Error, Options, Packet, filter};

/// The length of the longest IP packet.
const MAX_PACKET: usize = 65_535 + 40;

/// Captures packets in one network namespace, or on one interface in it.
#[derive(Debug)]
pub struct Capture {
    /// Declared before the socket, so that it is unmapped before the socket is closed.
    ring: Ring,
    socket: OwnedFd,
    wake: Arc<EventFd>,
    /// Buffer for a packet that is longer than a frame.
    long_packet: Vec<u8>,
    clock: WallToMonotonic,
    /// The time of the last packet that was handed over.
    last_time: u64,
    lost: u64,
}

/// Ends [`Capture::wait`] from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// Ends the wait that is going on, or the next one.
    pub fn wake(&self) {
        // This fails only if the eventfd's counter would overflow, and a wait ends with any counter above 0.
        let _ = self.0.write(1);
    }
}

impl Capture {
    /// Starts capturing in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// Invalid options, no such interface, no permission (it needs `CAP_NET_RAW`), or no memory for the ring.
    pub fn open(options: &Options) -> Result<Self, Error> {
        options.validate()?;
        let interface = options.interface.as_deref().map(interface_index).transpose()?.unwrap_or(0);
        let socket = sys::packet_socket().map_err(|error| Error::io("open a packet socket", error))?;
        let program = filter::program(&options.ports, options.snaplen);
        sys::attach_filter(socket.as_fd(), &program).map_err(|error| Error::io("attach a filter", error))?;
        let ring = Ring::new(socket.as_fd(), options.ring_bytes as usize, options.snaplen as usize)
            .map_err(|error| Error::io("set up a ring for packets", error))?;
        sys::bind(socket.as_fd(), interface).map_err(|error| Error::io("bind a packet socket", error))?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_flags(flags).map_err(|error| Error::io("make an eventfd", error))?;
        Ok(Self {
            ring,
            socket,
            wake: Arc::new(wake),
            long_packet: Vec::new(),
            clock: WallToMonotonic::default(),
            last_time: 0,
            lost: 0,
        })
    }

    /// Starts capturing in another network namespace, given as an open `/proc/PID/ns/net` or the like. The capture
    /// keeps the namespace alive.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open). It needs `CAP_SYS_ADMIN`, and `CAP_NET_RAW` in that namespace.
    pub fn open_in(namespace: BorrowedFd<'_>, options: &Options) -> Result<Self, Error> {
        // Each thread has its own network namespace. A new thread can enter another one, and does not have to return from it.
        let inside = || {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|error| Error::io_with_capability("enter a network namespace", "CAP_SYS_ADMIN", error))?;
            Self::open(options)
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// A handle with which another thread can end [`wait`](Self::wait).
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wake))
    }

    /// Waits for a packet, for a [`Waker`], or until the timeout is over. `None` waits forever.
    ///
    /// # Errors
    ///
    /// `poll(2)` failed.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<(), Error> {
        let timeout = timeout.map_or(PollTimeout::NONE, |time| time.try_into().unwrap_or(PollTimeout::MAX));
        let mut fds = [self.socket.as_fd(), self.wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Error::io("wait for packets", io::Error::from(error))),
        }
        if fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)) {
            // The interface is down. The error must be taken from the socket, or `poll` would return at once from now
            // on. When the interface is up again, packets come again.
            let _ = sys::take_error(self.socket.as_fd());
        }
        if fds[1].any().unwrap_or_default() {
            let _ = self.wake.read();
        }
        Ok(())
    }

    /// Hands over the packets that are there, the oldest first, and returns how many there were. It hands over no more
    /// than the ring has room for, so that it returns now and then even during a flood.
    pub fn drain(&mut self, on_packet: &mut dyn FnMut(&Packet<'_>)) -> usize {
        let Self { ring, socket, long_packet, last_time, clock, .. } = self;
        let mut is_refreshed = false;
        let max_packets = ring.frames();
        let drained = std::iter::from_fn(|| {
            ring.visit(|frame| {
                if !is_refreshed || !clock.covers(frame.time) {
                    clock.refresh();
                    is_refreshed = true;
                }
                *last_time = clock.monotonic(frame.time, *last_time);
                let RingFrame { length, ethertype, interface, is_queued, .. } = frame;
                let bytes =
                    is_queued.then(|| receive_long(socket.as_fd(), long_packet)).flatten().unwrap_or(frame.bytes);
                on_packet(&Packet { time: *last_time, interface, ethertype, length, bytes });
            })
        });
        drained.take(max_packets).count()
    }

    /// How many packets the ring holds.
    pub fn capacity(&self) -> usize {
        self.ring.frames()
    }

    /// How many packets the kernel has dropped since the start because the ring was full.
    pub fn lost(&mut self) -> u64 {
        self.lost += sys::drops(self.socket.as_fd()).unwrap_or_default();
        self.lost
    }

    /// Now, in nanoseconds of `CLOCK_MONOTONIC`, the clock of packet times.
    pub fn now(&self) -> u64 {
        clock::now()
    }
}

impl AsFd for Capture {
    /// Readable when packets are there. A [`Waker`] does not make it readable.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads a packet that was too long for its frame from the socket's receive queue.
fn receive_long<'a>(socket: BorrowedFd<'_>, buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    buffer.resize(MAX_PACKET, 0);
    let length = sys::receive(socket, buffer).ok()?;
    Some(&buffer[..length])
}

fn interface_index(name: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|error| Error::Interface { name: name.to_owned(), source: io::Error::from(error) })
}
