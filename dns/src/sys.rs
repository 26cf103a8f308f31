//! System calls that need unsafe code: packet sockets, and the ring that they share with the kernel.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::clock::WallTime;
use crate::filter::Instruction;

/// Offsets at which a BPF program loads the kernel's metadata of a packet (linux/filter.h).
pub(crate) const ANCILLARY_PROTOCOL: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32;
pub(crate) const ANCILLARY_PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
pub(crate) const ANCILLARY_DEVICE_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_HATYPE) as u32;
/// Packet type: sent by this host.
pub(crate) const OUTGOING: u32 = libc::PACKET_OUTGOING as u32;
/// Device type: loopback.
pub(crate) const LOOPBACK: u32 = libc::ARPHRD_LOOPBACK as u32;

/// A packet socket that receives packets without their link-layer headers, and no packets before [`bind`].
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    check(fd)?;
    // SAFETY: the kernel has just created this descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the socket receive only packets that the program accepts.
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let mut code: Vec<libc::sock_filter> =
        program.iter().map(|line| libc::sock_filter { code: line.code, jt: line.jt, jf: line.jf, k: line.k }).collect();
    let len = u16::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The kernel copies the program during the call, and `code` lives until after it.
    let program = libc::sock_fprog { len, filter: code.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Starts receiving packets of every protocol on an interface; 0 is all interfaces.
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

/// Packets that the kernel dropped since the last call because the ring was full.
pub(crate) fn drops(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    get_option(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut stats)?;
    Ok(stats.tp_drops.into())
}

/// Takes the pending error from a socket and returns it.
pub(crate) fn take_error(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut error: c_int = 0;
    get_option(socket, libc::SOL_SOCKET, libc::SO_ERROR, &mut error)?;
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Receives the next packet in the socket's receive queue, truncated to the buffer's size.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of `buffer`, which is borrowed for writing.
    let received =
        unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// The size of a frame's header: a `tpacket2_hdr` and a `sockaddr_ll`. After it the kernel leaves [`ALIGNMENT`] bytes
/// for a link-layer header.
const FRAME_HEADER: usize = libc::TPACKET2_HDRLEN;
/// Frames, and the `sockaddr_ll` in them, begin at multiples of this.
const ALIGNMENT: usize = libc::TPACKET_ALIGNMENT;

/// A ring of frames in shared memory, into which the kernel writes packets (linux/if_packet.h, version 2).
///
/// A frame's status says whether it belongs to the kernel or to this process. Its owner hands it over by writing the
/// status.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: NonNull<u8>,
    size: usize,
    block_size: usize,
    frame_size: usize,
    frames: usize,
    /// The index of the frame that is read next.
    next_frame: Cell<usize>,
}

// SAFETY: only this ring and the kernel use the memory, and nothing in it is bound to a thread.
unsafe impl Send for Ring {}

/// A packet in the ring.
#[derive(Debug)]
pub(crate) struct RingFrame<'a> {
    pub(crate) bytes: &'a [u8],
    /// The packet's length on the wire.
    pub(crate) length: usize,
    /// Whether the packet is longer than the frame. Then the socket's receive queue has all of it.
    pub(crate) is_queued: bool,
    /// When the kernel received the packet.
    pub(crate) time: WallTime,
    /// The ethertype in host byte order.
    pub(crate) ethertype: u16,
    pub(crate) interface: u32,
}

impl Ring {
    /// Gives the socket a ring of about `bytes` bytes, for packets of up to `snaplen` bytes. The kernel copies longer
    /// packets into the socket's receive queue as well.
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
        Ok(Self { memory, size, block_size, frame_size, frames, next_frame: Cell::new(0) })
    }

    /// How many packets the ring holds.
    pub(crate) fn frames(&self) -> usize {
        self.frames
    }

    /// Hands the next packet to `visitor`, if there is one, and then returns its frame to the kernel.
    pub(crate) fn visit<R>(&mut self, visitor: impl FnOnce(RingFrame<'_>) -> R) -> Option<R> {
        let frame = self.next_frame();
        let status = status(frame);
        let now = status.load(Ordering::Acquire);
        if now & libc::TP_STATUS_USER == 0 {
            return None;
        }
        self.next_frame.set((self.next_frame.get() + 1) % self.frames);
        let _return = ReturnToKernel(status);
        // SAFETY: `frame` lies within the mapping, and `frame_size` bytes from it on do so too. Its status, read with acquire
        // order, says that it belongs to this process. The kernel does not write to it before `_return` is dropped, which is
        // after the borrow that is given to `visitor` has ended.
        Some(visitor(unsafe { read_frame(frame, self.frame_size, now) }))
    }

    /// The next frame. Frames do not reach across the end of a block.
    fn next_frame(&self) -> FramePointer<'_> {
        let (next, per_block) = (self.next_frame.get(), self.block_size / self.frame_size);
        let offset = (next / per_block) * self.block_size + (next % per_block) * self.frame_size;
        debug_assert!(offset + self.frame_size <= self.size);
        // SAFETY: `next_frame` is less than `frames`, so the offset lies within the mapping, which lives as long as
        // `self`.
        FramePointer(unsafe { self.memory.add(offset) }, std::marker::PhantomData)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and everything that could point into it borrowed from `self`.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.size) };
    }
}

/// Points to the beginning of a frame.
#[derive(Clone, Copy)]
struct FramePointer<'a>(NonNull<u8>, std::marker::PhantomData<&'a ()>);

/// Returns a frame to the kernel when it is dropped, also if a panic drops it.
struct ReturnToKernel<'a>(&'a AtomicU32);

impl Drop for ReturnToKernel<'_> {
    fn drop(&mut self) {
        self.0.store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

/// A frame's status, which the kernel and this process both write.
fn status(frame: FramePointer<'_>) -> &AtomicU32 {
    // SAFETY: the status is the first thing in the frame, which is aligned to 16 bytes and mapped.
    unsafe { AtomicU32::from_ptr(frame.0.as_ptr().cast()) }
}

/// Reads a frame that the kernel has filled.
///
/// # Safety
///
/// `frame` must point to a frame of `size` bytes that belongs to this process for as long as the returned value lives.
unsafe fn read_frame(frame: FramePointer<'_>, size: usize, status: u32) -> RingFrame<'_> {
    let start = frame.0;
    // SAFETY: a frame begins with a `tpacket2_hdr`, and the `sockaddr_ll` follows at the next multiple of
    // [`ALIGNMENT`]. Both consist of integers, and the caller guarantees that the frame can be read.
    let (header, address) = unsafe {
        let after = start.add(size_of::<libc::tpacket2_hdr>().next_multiple_of(ALIGNMENT));
        (start.cast::<libc::tpacket2_hdr>().read(), after.cast::<libc::sockaddr_ll>().read())
    };
    let start_of_packet = usize::from(header.tp_net).min(size);
    let captured = (header.tp_snaplen as usize).min(size - start_of_packet);
    // SAFETY: `start_of_packet + captured` is at most `size`, and the caller guarantees that the frame can be read.
    let bytes = unsafe { std::slice::from_raw_parts(start.add(start_of_packet).as_ptr(), captured) };
    RingFrame {
        bytes,
        length: header.tp_len as usize,
        is_queued: status & libc::TP_STATUS_COPY != 0,
        time: WallTime { seconds: header.tp_sec, nanoseconds: header.tp_nsec },
        ethertype: u16::from_be(address.sll_protocol),
        interface: u32::try_from(address.sll_ifindex).unwrap_or_default(),
    }
}

fn map(socket: BorrowedFd<'_>, size: usize) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses does not change existing memory.
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
    // all bytes that the kernel may write are valid.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut *value).cast(), &raw mut size) })?;
    Ok(())
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
