//! The memory that a ring shares with the kernel.

use std::ffi::c_void;
use std::io;
use std::mem::offset_of;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::{SysconfVar, sysconf};
use perf_event_open_sys::bindings::perf_event_mmap_page;

use crate::ring::{Memory, halves};

/// A ring mapped into our memory: a control page, and data pages that the kernel writes to.
///
/// The kernel never writes between the tail, which only we move, and the head, which only the kernel moves: it does not
/// overwrite unread data in a writable mapping (`perf_event_open(2)`). Slices are lent from that part alone. The tail
/// moves only through `&mut self`, so never while a slice is lent.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<c_void>,
    len: NonZeroUsize,
    page: usize,
    /// As last written.
    tail: u64,
    /// As last read.
    head: u64,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: `&self` only gives read access, to the part that the kernel does not write to.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the ring of `event` with `2^page_exponent` data pages.
    pub(crate) fn new(event: BorrowedFd<'_>, page_exponent: u8) -> io::Result<Self> {
        let page = page_size();
        let len = 1_usize
            .checked_shl(u32::from(page_exponent))
            .and_then(|pages| pages.checked_add(1)?.checked_mul(page))
            .and_then(NonZeroUsize::new)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other.
        let base = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, event, 0) }?;
        Ok(Self { base, len, page, tail: 0, head: 0 })
    }

    fn counter(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset + 8 <= self.page && offset.is_multiple_of(8));
        // SAFETY: the counter lies in the control page, aligned, and is mapped as long as self lives. Both sides access
        // it atomically.
        unsafe { self.base.byte_add(offset).cast::<AtomicU64>().as_ref() }
    }
}

impl Memory for Mapping {
    fn capacity(&self) -> usize {
        self.len.get() - self.page
    }

    fn refresh(&mut self) -> u64 {
        // Pairs with the kernel's barrier between writing data and moving the head.
        let head = self.counter(offset_of!(perf_event_mmap_page, data_head)).load(Ordering::Acquire);
        // No more than the whole ring can be unread.
        self.head = self.tail + head.wrapping_sub(self.tail).min(self.capacity() as u64);
        self.head
    }

    fn tail(&self) -> u64 {
        self.tail
    }

    fn release(&mut self, tail: u64) {
        self.tail = tail.clamp(self.tail, self.head);
        // Once the kernel sees this, it may overwrite everything before the tail.
        self.counter(offset_of!(perf_event_mmap_page, data_tail)).store(self.tail, Ordering::Release);
    }

    fn unread(&self, from: u64, len: usize) -> (&[u8], &[u8]) {
        if from < self.tail || from > self.head || len as u64 > self.head - from {
            return (&[], &[]);
        }
        let ((start, first), rest) = halves(self.capacity(), from, len);
        // SAFETY: start + first and rest are within the data pages, which begin after the control page, and between
        // tail and head, where the kernel does not write; the tail cannot move while self is borrowed.
        unsafe {
            let data = self.base.byte_add(self.page).cast::<u8>();
            (slice::from_raw_parts(data.add(start).as_ptr(), first), slice::from_raw_parts(data.as_ptr(), rest))
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is our mapping, and no slice of it outlives self.
        let _ = unsafe { munmap(self.base, self.len.get()) };
    }
}

/// Bytes of a page.
pub(crate) fn page_size() -> usize {
    sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
}
