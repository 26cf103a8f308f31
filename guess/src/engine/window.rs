//! Captured kernel memory, and the search for values in it.

/// The size of a word of this machine and its kernel, in bytes.
pub(crate) const WORD: u32 = size_of::<usize>() as u32;

/// A word as it is in memory.
pub(crate) fn bytes_of(word: u64) -> [u8; WORD as usize] {
    (word as usize).to_ne_bytes()
}

/// A part of a kernel structure. Offsets are counted from the beginning of the structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    /// The offset of the first byte.
    from: u32,
    bytes: Vec<u8>,
}

impl Window {
    /// Bytes that begin at offset `from` of their structure.
    pub(crate) fn new(from: u32, bytes: Vec<u8>) -> Self {
        Self { from, bytes }
    }

    /// `N` bytes at an offset; `None` if the window does not hold them all.
    fn get<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset.checked_sub(self.from)? as usize;
        self.bytes.get(start..)?.first_chunk().copied()
    }

    /// The 8 bytes at an offset, in the machine's byte order.
    pub(crate) fn u64(&self, offset: u32) -> Option<u64> {
        self.get(offset).map(u64::from_ne_bytes)
    }

    /// The word at an offset.
    pub(crate) fn word(&self, offset: u32) -> Option<u64> {
        self.get(offset).map(|bytes| usize::from_ne_bytes(bytes) as u64)
    }

    /// Every word with its offset.
    pub(crate) fn words(&self) -> impl Iterator<Item = (u32, u64)> {
        (self.from..).step_by(WORD as usize).map_while(|offset| Some((offset, self.word(offset)?)))
    }

    /// Every offset of `pattern` that is a multiple of `align`.
    pub(crate) fn find(&self, pattern: &[u8], align: u32) -> Vec<u32> {
        let offsets = (self.from.next_multiple_of(align)..).step_by(align as usize);
        let end = self.from + self.bytes.len() as u32;
        let holds = |offset: &u32| self.bytes[(offset - self.from) as usize..].starts_with(pattern);
        offsets.take_while(|&offset| offset + pattern.len() as u32 <= end).filter(holds).collect()
    }

    /// Every offset of a number in the machine's byte order where a 2-byte field may be.
    pub(crate) fn find_u16(&self, value: u16) -> Vec<u32> {
        self.find(&value.to_ne_bytes(), 2)
    }

    /// Every offset of a number in the machine's byte order where a 4-byte field may be.
    pub(crate) fn find_u32(&self, value: u32) -> Vec<u32> {
        self.find(&value.to_ne_bytes(), 4)
    }

    /// Every offset of a number or pointer where a field of a word's size may be.
    pub(crate) fn find_word(&self, value: u64) -> Vec<u32> {
        self.find(&bytes_of(value), WORD)
    }

    /// The bytes from offset `start` to offset `end`, as far as the window holds them.
    pub(crate) fn part(&self, start: u32, end: u32) -> Self {
        let length = self.bytes.len();
        let index = |offset: u32| (offset.saturating_sub(self.from) as usize).min(length);
        let bytes = self.bytes[index(start)..index(end).max(index(start))].to_vec();
        Self { from: start.max(self.from), bytes }
    }

    /// Writes bytes at an offset.
    pub(crate) fn write(&mut self, offset: u32, bytes: &[u8]) {
        let start = (offset - self.from) as usize;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Whether a word may be a kernel address. On a 32-bit machine this assumes that the kernel has the last of the four
/// gigabytes (`CONFIG_VMSPLIT_3G`).
pub(crate) fn is_kernel_pointer(word: u64) -> bool {
    if WORD == 4 {
        return (0xc000_0000..0xffff_f000).contains(&word);
    }
    word >> 56 == 0xff && word < 0xffff_ffff_ffff_f000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_where_a_field_could_be() {
        let window = Window::new(16, vec![0, 0, 7, 0, 0, 0, 0, 7, 0, 7, 0, 0, 7, 0, 0, 0]);
        assert_eq!(window.find_u16(7), [18, 28]);
        assert_eq!(window.find_u32(7), [28]);
        assert_eq!(window.find(&[7], 1), [18, 23, 25, 28]);
        assert!(window.find_word(7).is_empty());
        assert!(window.find(&[0; 17], 1).is_empty());
    }

    #[test]
    fn parts_keep_their_offsets() {
        let window = Window::new(8, (0..16).collect());
        assert_eq!(window.part(10, 12), Window::new(10, vec![2, 3]));
        assert_eq!(window.part(0, 9), Window::new(8, vec![0]));
        assert_eq!(window.part(23, 99), Window::new(23, vec![15]));
        assert!(window.part(50, 60).bytes().is_empty());
    }

    #[test]
    fn words_know_their_offsets() {
        let mut bytes = 5u64.to_ne_bytes().to_vec();
        bytes.extend(6u64.to_ne_bytes());
        let window = Window::new(32, bytes);
        assert_eq!(window.words().collect::<Vec<_>>(), [(32, 5), (40, 6)]);
        assert_eq!((window.u64(40), window.u64(41), window.u64(31)), (Some(6), None, None));
    }

    #[test]
    fn pointers_and_numbers_are_distinguished() {
        for pointer in [0xffff_8880_1234_5678, 0xffff_ffff_8123_4567, 0xff11_0000_0000_1000] {
            assert!(is_kernel_pointer(pointer));
        }
        for number in [0, 0x7fff_1234_5678, u64::MAX, -22_i64 as u64] {
            assert!(!is_kernel_pointer(number));
        }
    }
}
