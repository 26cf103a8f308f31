//! Options of rings.

use std::io;

use crate::Error;
use crate::sys::mapping::page_size;

/// The clock that gives records their times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`, in nanoseconds. Since Linux 4.1; older kernels use [`Clock::Local`] in its place.
    #[default]
    Monotonic,
    /// The kernel's own `local_clock()`: nanoseconds since about boot. User space cannot read it.
    Local,
}

/// Size, clock and wake-up of rings.
///
/// ```
/// # use socktrail_kprobes::RingOptions;
/// let mut options = RingOptions::default();
/// options.page_exponent = 5;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingOptions {
    /// A ring has 2^n data pages; n is at most 20, and the ring must fit into the address space. Default 7: 512 KiB with pages
    /// of 4 KiB.
    pub page_exponent: u8,
    /// The clock of the records.
    pub clock: Clock,
    /// A ring wakes its reader once this many bytes are unread: at least 1, and less than the size of the ring. Default: a
    /// third of the ring.
    pub watermark: Option<u32>,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { page_exponent: 7, clock: Clock::Monotonic, watermark: None }
    }
}

impl RingOptions {
    /// The watermark in bytes. Checks it, and the size of the ring.
    ///
    /// # Errors
    /// The ring or the watermark is too large, or the watermark is 0.
    pub(crate) fn watermark_bytes(&self) -> Result<u32, Error> {
        self.watermark_for(page_size(), isize::MAX as u64)
    }

    /// The same for pages of this size in bytes, and mappings of at most `max_mapping` bytes.
    fn watermark_for(&self, page_size: usize, max_mapping: u64) -> Result<u32, Error> {
        let invalid = |what: String| Err(Error::io(what, io::ErrorKind::InvalidInput));
        if self.page_exponent > 20 {
            return invalid(format!("rings of 2^{} pages: the exponent may be 20 at most", self.page_exponent));
        }
        // On a 32-bit machine, this may be too large for a `usize`.
        let data_size = (page_size as u64) << self.page_exponent;
        // The mapping has one more page, before the data.
        if data_size + page_size as u64 > max_mapping {
            return invalid(format!("rings of 2^{} pages do not fit into the address space", self.page_exponent));
        }
        match self.watermark {
            None => Ok((data_size / 3).min(u64::from(u32::MAX)) as u32),
            Some(watermark) if (1..data_size).contains(&u64::from(watermark)) => Ok(watermark),
            Some(watermark) => invalid(format!(
                "a watermark of {watermark} bytes in a ring of {data_size} bytes: it must be at least 1 and less than the ring"
            )),
        }
    }
}

/// The size of a ring's data area in bytes. [`RingOptions::watermark_bytes`] checks that it fits.
pub(crate) fn data_size(page_exponent: u8) -> usize {
    page_size() << page_exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_fit_their_ring() {
        let of = |page_exponent, watermark| {
            RingOptions { page_exponent, watermark, ..RingOptions::default() }.watermark_bytes()
        };
        assert_eq!(of(7, None).unwrap() as usize, page_size() * 128 / 3);
        assert_eq!(of(0, Some(1)).unwrap(), 1);
        for (page_exponent, watermark) in [(0, 0), (0, page_size() as u32), (21, 1), (255, 1)] {
            assert!(of(page_exponent, Some(watermark)).is_err());
        }
    }

    #[test]
    fn a_ring_that_does_not_fit_into_the_address_space_is_refused() {
        let max_mapping = i32::MAX as u64; // of a 32-bit machine
        let of =
            |page_exponent| RingOptions { page_exponent, ..RingOptions::default() }.watermark_for(4096, max_mapping);
        assert_eq!(of(18).unwrap(), (1 << 30) / 3);
        for page_exponent in [19, 20] {
            assert!(of(page_exponent).unwrap_err().to_string().contains("address space"));
        }
    }
}
