//! Drops that are reported twice.
//!
//! Queues drop lists of packets. Before Linux 6.2 the function that frees a list may call the one that frees a single
//! packet for each of them, and both functions have a probe. Only the list's sample is used, because it also
//! shows whether the list has more packets. The samples of single packets are recognised by their return address, which is in
//! the function for lists.

/// The function that freed a packet at a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::source) enum FreedBy {
    /// The function for lists, which begins at this address.
    List(u64),
    /// The function for single packets, which returns to this address of its caller.
    Caller(u64),
}

/// The kernel function that frees lists of packets: its address, once a sample has shown it.
#[derive(Debug, Default)]
pub(in crate::source::kprobes) struct ListFreeFunction {
    address: Option<u64>,
}

impl ListFreeFunction {
    /// Whether a list's sample has reported this packet already. A list's sample comes before those of its packets.
    pub(in crate::source::kprobes) fn has_reported(&mut self, freed: FreedBy) -> bool {
        /// More than the size of the function in bytes. In the kernels that were looked at, no other function that drops packets
        /// is within this distance.
        const SIZE: u64 = 512;
        match freed {
            FreedBy::List(address) => {
                self.address = Some(address);
                false
            }
            FreedBy::Caller(caller) => {
                self.address.is_some_and(|address| (address..address.saturating_add(SIZE)).contains(&caller))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_list_sample_reports_the_packets_of_a_list() {
        let list = FreedBy::List(0xffff_ffff_8170_0000);
        let (in_list, elsewhere) = (FreedBy::Caller(0xffff_ffff_8170_0020), FreedBy::Caller(0xffff_ffff_8180_0020));
        let mut list_free = ListFreeFunction::default();
        assert!(!list_free.has_reported(in_list), "no list was seen");
        assert!(!list_free.has_reported(list));
        assert!(list_free.has_reported(in_list) && !list_free.has_reported(elsewhere));
    }
}
