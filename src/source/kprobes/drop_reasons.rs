//! The numbers of `enum skb_drop_reason`, which differ between kernels.

use std::fs;

use socktrail_kprobes::Tracefs;

/// `SKB_CONSUMED`, the reason of packets that are freed but were not dropped. `None` if this kernel has no such reason (before
/// Linux 6.4), or if it is not known.
pub(super) fn consumed(tracefs: &Tracefs) -> Option<u32> {
    let format = fs::read_to_string(tracefs.path("events/skb/kfree_skb/format")).ok()?;
    consumed_in(&format)
}

/// The tracepoint's format lists the names of reasons, beginning with `NOT_SPECIFIED`. That is 2 on kernels with `SKB_CONSUMED`, which
/// comes before it, and less on others.
fn consumed_in(format: &str) -> Option<u32> {
    format.contains("{ 2, \"NOT_SPECIFIED\" }").then_some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernels_whose_reasons_begin_later_have_it() {
        let format = |first: &str| {
            format!("print fmt: \"reason: %s\", __print_symbolic(REC->reason, {first}, {{ 3, \"NO_SOCKET\" }})")
        };
        // Linux 6.18, 6.1, and 5.10, which has no reasons.
        assert_eq!(consumed_in(&format("{ 2, \"NOT_SPECIFIED\" }")), Some(1));
        assert_eq!(consumed_in(&format("{ 1, \"NOT_SPECIFIED\" }, { 2, \"NO_SOCKET\" }")), None);
        assert_eq!(consumed_in("print fmt: \"skbaddr=%p protocol=%u location=%p\""), None);
    }
}
