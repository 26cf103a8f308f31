//! Random values, by which a guess recognises its own calls.

use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

/// A generator of random numbers. It is good enough to tell the values of one trigger from those of another, and not
/// for cryptography.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator with a seed from the system.
    pub(crate) fn new() -> Self {
        Self(RandomState::new().hash_one(0) | 1)
    }

    fn next(&mut self) -> u64 {
        // xorshift64* by Vigna.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number in `range`.
    pub(crate) fn within(&mut self, range: RangeInclusive<u32>) -> u32 {
        let width = u64::from(range.end() - range.start()) + 1;
        range.start() + ((self.next() >> 32) % width) as u32
    }

    /// An address of this host that most likely is not in use: 127.a.b.c. The three numbers differ from each other, none is
    /// 0, and a is not 127.
    pub(crate) fn loopback_address(&mut self) -> Ipv4Addr {
        loop {
            let [a, b, c] = [(); 3].map(|()| self.within(1..=254) as u8);
            if a != b && b != c && a != c && a != 127 {
                return Ipv4Addr::new(127, a, b, c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_within_their_range_and_reach_its_ends() {
        let mut random = Random::new();
        let numbers: Vec<_> = (0..1000).map(|_| random.within(3..=6)).collect();
        assert_eq!((numbers.iter().min(), numbers.iter().max()), (Some(&3), Some(&6)));
    }

    #[test]
    fn addresses_are_loopback_and_differ() {
        let mut random = Random::new();
        let (one, other) = (random.loopback_address(), random.loopback_address());
        assert!(one.is_loopback() && other.is_loopback() && one != other);
    }
}
