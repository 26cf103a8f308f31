//! How rings are set up.

use std::io;

use crate::Error;
use crate::sys::mapping::page_size;

/// Which clock the times of records are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Clock {
    /// `CLOCK_MONOTONIC`, in nanoseconds. Linux 4.1; before, [`Clock::Local`] is used in its place.
    #[default]
    Monotonic,
    /// The kernel's own `local_clock()`, in nanoseconds since about boot, which user space cannot read.
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
    /// A ring has 2^n data pages, n being 20 at most. Default 7: 512 KiB with pages of 4 KiB.
    pub page_exponent: u8,
    /// The clock of the records.
    pub clock: Clock,
    /// A ring wakes its reader once this many bytes are unread, fewer than it holds. Default: a third of the ring.
    pub watermark: Option<u32>,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { page_exponent: 7, clock: Clock::Monotonic, watermark: None }
    }
}

impl RingOptions {
    /// The watermark in bytes, checked.
    pub(crate) fn watermark_bytes(&self) -> Result<u32, Error> {
        let wrong = |what: String| Err(Error::io(what, io::ErrorKind::InvalidInput));
        if self.page_exponent > 20 {
            return wrong(format!("rings of 2^{} pages: the exponent may be 20 at most", self.page_exponent));
        }
        let bytes = bytes(self.page_exponent);
        match self.watermark {
            None => Ok((bytes / 3).min(u32::MAX as usize) as u32),
            Some(watermark) if (1..bytes).contains(&(watermark as usize)) => Ok(watermark),
            Some(watermark) => wrong(format!("a watermark of {watermark} bytes in a ring of {bytes}")),
        }
    }
}

/// The data bytes of a ring.
pub(crate) fn bytes(page_exponent: u8) -> usize {
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
}
