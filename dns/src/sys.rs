//! Every system call that needs unsafe code: packet sockets and the ring that they share with the kernel.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::filter::Instruction;

/// Places that a BPF program finds what the kernel knows of a packet at (linux/filter.h).
pub(crate) const ANCILLARY_PROTOCOL: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32;
pub(crate) const ANCILLARY_PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
pub(crate) const ANCILLARY_DEVICE_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_HATYPE) as u32;
/// Packet type: the host sends it.
pub(crate) const OUTGOING: u32 = libc::PACKET_OUTGOING as u32;
/// Device type: loopback.
pub(crate) const LOOPBACK: u32 = libc::ARPHRD_LOOPBACK as u32;

/// A packet socket that gets packets without their link-layer headers, and none before [`bind`].
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    check(fd)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets only those packets through that the program accepts.
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let mut code: Vec<libc::sock_filter> = program
        .iter()
        .map(|line| libc::sock_filter { code: line.code, jt: line.then, jf: line.otherwise, k: line.value })
        .collect();
    let len = u16::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The kernel copies the program while this call lasts, during which `code` is there.
    let program = libc::sock_fprog { len, filter: code.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Starts receiving packets of every protocol from an interface, 0 being all of them.
pub(crate) fn bind(socket: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sockaddr_ll`: it holds only integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = c_int::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
    let size = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer and size are those of `address`, which the kernel only reads.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
    Ok(())
}

/// Packets that found no room since the last call.
pub(crate) fn drops(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    get_option(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut stats)?;
    Ok(stats.tp_drops.into())
}

/// The error that waits on a socket, which is thereby taken from it.
pub(crate) fn take_error(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut error: c_int = 0;
    get_option(socket, libc::SOL_SOCKET, libc::SO_ERROR, &mut error)?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Takes the next packet of the socket's own queue, cut at the buffer's size.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of `buffer`, which is borrowed for writing.
    let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// The size of a frame's header: what the kernel says of the packet, and the address that it came with. Behind it the
/// kernel leaves room for a link-layer header, [`ALIGNMENT`] bytes.
const FRAME_HEADER: usize = libc::TPACKET2_HDRLEN;
/// Frames, and the address after their header, begin at multiples of this.
const ALIGNMENT: usize = libc::TPACKET_ALIGNMENT;

/// Frames in memory that the kernel writes packets to, one after the other, and begins again (linux/if_packet.h,
/// version 2).
///
/// Each frame belongs to the kernel or to us, as its status says; whoever has it passes it on by writing the status.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: NonNull<u8>,
    size: usize,
    block_size: usize,
    frame_size: usize,
    frames: usize,
    /// The frame that the kernel fills next.
    next: Cell<usize>,
}

// SAFETY: the memory is this ring's alone (the kernel aside), and nothing in it belongs to a thread.
unsafe impl Send for Ring {}

/// A packet in the ring.
#[derive(Debug)]
pub(crate) struct RingFrame<'a> {
    pub(crate) bytes: &'a [u8],
    /// Its length on the wire.
    pub(crate) length: usize,
    /// The frame has no room for all of it; the socket's own queue has.
    pub(crate) copied: bool,
    /// Seconds and nanoseconds of `CLOCK_REALTIME`.
    pub(crate) time: (u32, u32),
    /// Its ethertype in host byte order.
    pub(crate) ethertype: u16,
    pub(crate) interface: u32,
}

impl Ring {
    /// Gives the socket a ring of about `bytes`, for packets of up to `snaplen` bytes. Longer ones are copied to the
    /// socket's own queue as well.
    pub(crate) fn new(socket: BorrowedFd<'_>, bytes: usize, snaplen: usize) -> io::Result<Self> {
        let frame_size = (FRAME_HEADER.next_multiple_of(ALIGNMENT) + ALIGNMENT + snaplen).next_multiple_of(ALIGNMENT);
        let block_size = (64 << 10_usize).max(frame_size.next_power_of_two());
        let blocks = (bytes / block_size).max(1);
        let frames = blocks * (block_size / frame_size);
        let version = libc::tpacket_versions::TPACKET_V2 as c_int;
        set_option(socket, libc::SOL_PACKET, libc::PACKET_VERSION, &version)?;
        let copy: c_int = 1;
        set_option(socket, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, &copy)?;
        let number = |value: usize| u32::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let request = libc::tpacket_req {
            tp_block_size: number(block_size)?,
            tp_block_nr: number(blocks)?,
            tp_frame_size: number(frame_size)?,
            tp_frame_nr: number(frames)?,
        };
        set_option(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let size = blocks * block_size;
        let memory = map(socket, size)?;
        Ok(Self { memory, size, block_size, frame_size, frames, next: Cell::new(0) })
    }

    /// How many packets it has room for.
    pub(crate) fn frames(&self) -> usize {
        self.frames
    }

    /// Lends the next packet, if there is one, and gives its frame back to the kernel afterwards.
    pub(crate) fn visit<R>(&mut self, visitor: impl FnOnce(RingFrame<'_>) -> R) -> Option<R> {
        let frame = self.frame();
        let status = status(frame);
        let now = status.load(Ordering::Acquire);
        if now & libc::TP_STATUS_USER == 0 {
            return None;
        }
        self.next.set((self.next.get() + 1) % self.frames);
        let _back = GiveBack(status);
        // SAFETY: `frame` lies within the mapping, with `frame_size` bytes after it. Its status, read with acquire
        // order, says that it is ours, so that the kernel does not write to it before `_back` is dropped, which is
        // after the borrow that is given to `visitor` has ended.
        Some(visitor(unsafe { read_frame(frame, self.frame_size, now) }))
    }

    /// The place of the next frame. Frames do not reach over the end of a block.
    fn frame(&self) -> FramePlace<'_> {
        let (next, per_block) = (self.next.get(), self.block_size / self.frame_size);
        let offset = (next / per_block) * self.block_size + (next % per_block) * self.frame_size;
        debug_assert!(offset + self.frame_size <= self.size);
        // SAFETY: `next` is less than `frames`, so the offset lies within the mapping, which lives as long as `self`.
        FramePlace(unsafe { self.memory.add(offset) }, std::marker::PhantomData)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and with `self` the last that could reach into it goes.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.size) };
    }
}

/// Where a frame begins.
#[derive(Clone, Copy)]
struct FramePlace<'a>(NonNull<u8>, std::marker::PhantomData<&'a ()>);

/// Gives a frame back to the kernel when dropped, even by a panic.
struct GiveBack<'a>(&'a AtomicU32);

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.0.store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

/// A frame's status, which kernel and program both write.
fn status(frame: FramePlace<'_>) -> &AtomicU32 {
    // SAFETY: the status is the first thing in the frame, which is aligned to 16 bytes and mapped.
    unsafe { AtomicU32::from_ptr(frame.0.as_ptr().cast()) }
}

/// Reads what the kernel wrote.
///
/// # Safety
///
/// `frame` must be the beginning of a frame of `size` bytes, and ours for as long as what is returned lives.
unsafe fn read_frame(frame: FramePlace<'_>, size: usize, status: u32) -> RingFrame<'_> {
    let start = frame.0;
    // SAFETY: the frame begins with this header; after it, aligned, comes the address. Both are plain integers, and
    // the caller vouches for the frame.
    let (header, address) = unsafe {
        let after = start.add(size_of::<libc::tpacket2_hdr>().next_multiple_of(ALIGNMENT));
        (start.cast::<libc::tpacket2_hdr>().read(), after.cast::<libc::sockaddr_ll>().read())
    };
    let from = usize::from(header.tp_net).min(size);
    let captured = (header.tp_snaplen as usize).min(size - from);
    // SAFETY: `from + captured` is at most `size`, and the caller vouches for the frame.
    let bytes = unsafe { std::slice::from_raw_parts(start.add(from).as_ptr(), captured) };
    RingFrame {
        bytes,
        length: header.tp_len as usize,
        copied: status & libc::TP_STATUS_COPY != 0,
        time: (header.tp_sec, header.tp_nsec),
        ethertype: u16::from_be(address.sll_protocol),
        interface: u32::try_from(address.sll_ifindex).unwrap_or_default(),
    }
}

fn map(socket: BorrowedFd<'_>, size: usize) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place that the kernel chooses touches nothing that exists.
    let memory = unsafe {
        libc::mmap(std::ptr::null_mut::<c_void>(), size, protection, libc::MAP_SHARED, socket.as_raw_fd(), 0)
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

fn set_option<T>(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and size are those of `value`, which the kernel only reads.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), size) })?;
    Ok(())
}

fn get_option<T>(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: &mut T) -> io::Result<()> {
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointers are to `value` and to its size. Callers in this module pass structs of integers, for which
    // whatever the kernel writes is a value.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut *value).cast(), &raw mut size) })?;
    Ok(())
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
