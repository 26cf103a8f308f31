//! Memory that BPF programs write and this process only reads.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a word.
const WORD: usize = 8;

/// The values of an array map, mapped for reading. BPF programs may change them at any time.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    base: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for SharedMemory {}
// SAFETY: this process only loads from it, atomically.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps the first `len` bytes of a map that was created with `BPF_F_MMAPABLE`.
    pub(crate) fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other.
        let base = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { base, len })
    }

    /// Fills `words` from the memory, beginning at the offset `from` in bytes, a multiple of 8. Returns `false`, and copies
    /// nothing, if the memory does not have all of them. Each word is read as a whole, but a program may change a word while
    /// others are read.
    pub(crate) fn read(&self, from: usize, words: &mut [u64]) -> bool {
        let end = words.len().checked_mul(WORD).and_then(|size| from.checked_add(size));
        if !from.is_multiple_of(WORD) || end.is_none_or(|end| end > self.len.get()) {
            return false;
        }
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: the word lies within the mapping, aligned, and is mapped as long as self lives. Programs write whole
            // words or parts of them; nothing but atomic loads is done here.
            let shared = unsafe { self.base.byte_add(from + index * WORD).cast::<AtomicU64>().as_ref() };
            *word = shared.load(Ordering::Relaxed);
        }
        // Later readings must not be older than this one.
        fence(Ordering::Acquire);
        true
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: it is our mapping, and no reference into it outlives self.
        let _ = unsafe { munmap(self.base, self.len.get()) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_words_within_the_memory_are_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1_u64, 2, 3].map(u64::to_ne_bytes).concat()).unwrap();
        let memory = SharedMemory::new(file.as_fd(), 24).unwrap();
        let mut words = [0; 2];
        assert!(memory.read(8, &mut words));
        assert_eq!(words, [2, 3]);
        for from in [16, 24, 4, usize::MAX - 7] {
            assert!(!memory.read(from, &mut words), "{from}");
        }
        assert_eq!(words, [2, 3]);
        assert!(SharedMemory::new(file.as_fd(), 0).is_err());
    }
}
