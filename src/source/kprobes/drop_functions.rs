//! Kernel functions that drop packets without a drop reason.
//!
//! Drivers free sent packets without a reason, too. The return address of `kfree_skb` tells them apart: if it is in one of these
//! functions, the packet was dropped.

use std::fs::File;
use std::io::{BufRead, BufReader};

/// The placeholder in a filter for the condition that `caller` is in one of these functions.
pub(super) const FROM_DROP_FUNCTION: &str = "{from_drop_function}";

/// A qdisc that is removed or reset passes its packets to `rtnl_kfree_skbs`, and `__rtnl_unlock` frees them. Before Linux 4.7,
/// each qdisc frees them in its own function. So on a kernel without `rtnl_kfree_skbs`, or if `socket.mask` has it, the functions
/// below would not be enough, and none are used.
pub(super) const DEFERRED_FREE: &str = "rtnl_kfree_skbs";
/// If one of these is missing, no functions are used. `pfifo_fast_reset` frees the packets of `pfifo_fast`, and `qdisc_reset`
/// frees those that a qdisc had already dequeued (`gso_skb`, `skb_bad_txq`). The egress filters of `tc`, which give no reason
/// before Linux 5.18, may be inlined into `__dev_queue_xmit`.
const REQUIRED: [&str; 4] = ["__rtnl_unlock", "pfifo_fast_reset", "qdisc_reset", "__dev_queue_xmit"];
/// The egress filters of `tc` if they are not inlined, BPF redirects, and netfilter's hooks.
const IF_PRESENT: [&str; 3] = ["sch_handle_egress", "skb_do_redirect", "nf_hook_slow"];

/// The size of a read in bytes.
const BUFFER: usize = 64 << 10;
/// The end of the line after the kernel's own functions. Reading stops there, because more than half of the list follows.
const END: &[u8] = b" _etext\n";

/// The address ranges of these functions.
#[derive(Debug, Default)]
pub(super) struct DropFunctions {
    ranges: Vec<(u64, u64)>,
}

impl DropFunctions {
    /// Reads the functions of the running kernel. Empty if `/proc/kallsyms` hides addresses, or if the kernel lacks one of
    /// [`REQUIRED`] or [`DEFERRED_FREE`] (before 4.7).
    pub(super) fn read() -> Self {
        let list = File::open("/proc/kallsyms").map(|list| BufReader::with_capacity(BUFFER, list));
        list.map(Self::parse).unwrap_or_default()
    }

    /// Parses lines such as `ffffffff81a4ab80 T qdisc_reset`, sorted by address. The compiler may have moved a part of a function
    /// elsewhere, as `qdisc_reset.cold`.
    fn parse(mut list: impl BufRead) -> Self {
        let (mut ranges, mut found) = (Vec::new(), Vec::new());
        // The addresses of functions that end at the next symbol with a higher address.
        let mut begun: Vec<u64> = Vec::new();
        let mut line = Vec::new();
        while !line.ends_with(END) {
            line.clear();
            if !matches!(list.read_until(b'\n', &mut line), Ok(1..)) {
                break;
            }
            let Some((address, name)) = symbol(&line) else { continue };
            ranges.extend(begun.iter().filter(|begin| **begin < address).map(|begin| (*begin, address)));
            begun.retain(|begin| *begin >= address);
            let all = REQUIRED.iter().chain(&IF_PRESENT).chain([&DEFERRED_FREE]);
            let Some(function) = all.copied().find(|function| function.as_bytes() == name) else { continue };
            found.push(function);
            if function != DEFERRED_FREE && address != 0 {
                begun.push(address);
            }
        }
        let is_known = REQUIRED.iter().chain([&DEFERRED_FREE]).all(|function| found.contains(function));
        Self { ranges: if is_known { ranges } else { Vec::new() } }
    }

    /// Replaces [`FROM_DROP_FUNCTION`] in a filter. `None` if the filter has it, but no functions are known.
    pub(super) fn fill_in(&self, filter: &str) -> Option<String> {
        if !filter.contains(FROM_DROP_FUNCTION) {
            return Some(filter.to_owned());
        }
        // A return address follows its call: it is never the function's first byte, and it is the end if the call comes last.
        let parts = self.ranges.iter().map(|(begin, end)| format!("(caller>{begin:#x}&&caller<={end:#x})"));
        let parts = parts.collect::<Vec<_>>().join("||");
        (!parts.is_empty()).then(|| filter.replace(FROM_DROP_FUNCTION, &format!("({parts})")))
    }
}

/// Address and name in a line, without the suffix that the compiler has added to the name.
fn symbol(line: &[u8]) -> Option<(u64, &[u8])> {
    let mut columns = line.split(u8::is_ascii_whitespace);
    let address = u64::from_str_radix(std::str::from_utf8(columns.next()?).ok()?, 16).ok()?;
    let name = columns.nth(1)?;
    Some((address, name.split(|byte| *byte == b'.').next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "ffffffff81000000 T _stext\n\
        ffffffff81000100 T __rtnl_unlock\n\
        ffffffff81000200 T rtnl_kfree_skbs\n\
        ffffffff81000300 t pfifo_fast_reset\n\
        ffffffff81000300 t another_name\n\
        ffffffff81000400 T qdisc_reset\n\
        ffffffff81000500 T __dev_queue_xmit\n\
        ffffffff81000700 t qdisc_reset.cold\n\
        ffffffff81000720 t other\n\
        ffffffff82000000 T _etext\n\
        ffffffffc0000000 t nf_hook_slow\t[module]\n\
        ffffffffc0000100 t other\t[module]\n";

    #[test]
    fn the_filter_has_the_address_ranges_of_the_functions() {
        let filter = DropFunctions::parse(LIST.as_bytes()).fill_in("skb!=0&&{from_drop_function}").unwrap();
        let parts = [(0x100, 0x200), (0x300, 0x400), (0x400, 0x500), (0x500, 0x700), (0x700, 0x720)];
        let base = 0xffff_ffff_8100_0000_u64;
        let parts = parts.map(|(from, to)| format!("(caller>{:#x}&&caller<={:#x})", base + from, base + to));
        assert_eq!(filter, format!("skb!=0&&({})", parts.join("||")));
    }

    #[test]
    fn without_known_functions_there_is_no_filter() {
        let hidden: String = LIST.lines().map(|line| format!("0000000000000000{}\n", &line[16..])).collect();
        let older = LIST.replace("rtnl_kfree_skbs", "rtnl_notify");
        for list in ["", &hidden, &older, &LIST[..200]] {
            let drop_functions = DropFunctions::parse(list.as_bytes());
            assert_eq!(drop_functions.fill_in("skb!=0&&{from_drop_function}"), None, "{list}");
            assert_eq!(drop_functions.fill_in("skb!=0").as_deref(), Some("skb!=0"));
        }
    }

    #[test]
    fn the_table_of_probes_has_no_other_placeholder() {
        use crate::source::kprobes::{Probe, all_features};
        let probes = all_features().flat_map(|(_, probes): &(_, &[Probe])| probes.iter());
        let filters: Vec<_> = probes.filter_map(|probe| probe.filter).filter(|filter| filter.contains('{')).collect();
        assert!(!filters.is_empty());
        for filter in filters {
            assert!(!filter.replace(FROM_DROP_FUNCTION, "").contains('{'), "{filter}");
        }
    }
}
