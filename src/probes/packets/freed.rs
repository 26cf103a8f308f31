//! Which drops are told twice.
//!
//! Queues drop lists of packets. Before Linux 6.2 the function that frees a list may call the one that frees a single
//! packet for each of them, and both have a probe. The list's sample says more, so the others are passed over. They are
//! known by where they were called from.

/// How a packet was freed that had come to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::probes) enum Freed {
    /// By the function for lists, which begins at this address.
    ByList(u64),
    /// By the function for single packets, which returns to this address.
    CalledFrom(u64),
}

/// Where the function for lists begins, once it was seen.
#[derive(Debug, Default)]
pub(in crate::probes) struct Lists {
    function: Option<u64>,
}

impl Lists {
    /// Whether a packet was told already, as one of a list. A list's sample comes before those of its packets.
    pub(in crate::probes) fn has_told(&mut self, freed: Freed) -> bool {
        /// Longer than the function. In the kernels that were looked at, no other that drops packets is near it.
        const SIZE: u64 = 512;
        match freed {
            Freed::ByList(function) => {
                self.function = Some(function);
                false
            }
            Freed::CalledFrom(caller) => {
                self.function.is_some_and(|function| (function..function.saturating_add(SIZE)).contains(&caller))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packets_of_a_list_are_told_by_it_alone() {
        let list = Freed::ByList(0xffff_ffff_8170_0000);
        let (in_list, elsewhere) = (Freed::CalledFrom(0xffff_ffff_8170_0020), Freed::CalledFrom(0xffff_ffff_8180_0020));
        let mut lists = Lists::default();
        assert!(!lists.has_told(in_list), "no list was seen");
        assert!(!lists.has_told(list));
        assert!(lists.has_told(in_list) && !lists.has_told(elsewhere));
    }
}
