//! The kernel's function names: names that several functions share, and functions that the compiler has replaced by variants.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};

use crate::source::kprobes::{Probe, all_features};

/// The functions that may be probed, as `/proc/kallsyms` lists them.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// The number of functions with each name.
    counts: BTreeMap<String, usize>,
    /// The variants that the compiler made of each function: `name.isra.0` has fewer arguments, `name.constprop.0` has constants in
    /// place of some of them.
    variants: BTreeMap<String, Vec<String>>,
}

impl Symbols {
    /// The functions of the running kernel; none if they cannot be read.
    pub(super) fn read() -> Self {
        let probes = all_features().flat_map(|(_, probes)| probes.iter());
        let wanted: BTreeSet<_> = probes.map(Probe::function).collect();
        File::open("/proc/kallsyms").map(|list| Self::parse(BufReader::new(list), &wanted)).unwrap_or_default()
    }

    /// Parses lines such as `ffffffff81a4ab80 T ip_local_out`. Functions of modules come last, followed by the module's name.
    fn parse(list: impl BufRead, wanted: &BTreeSet<&str>) -> Self {
        let mut symbols = Self::default();
        for line in list.lines().map_while(Result::ok) {
            let mut columns = line.split_ascii_whitespace().skip(1);
            let (Some("t" | "T"), Some(name)) = (columns.next(), columns.next()) else { continue };
            match name.split_once('.') {
                _ if wanted.contains(name) => *symbols.counts.entry(name.to_owned()).or_default() += 1,
                // Not a replacement: `.cold` is the rarely executed part of a function, `.part` the rest of an inlined one.
                Some((function, how))
                    if wanted.contains(function) && (how.starts_with("isra") || how.starts_with("constprop")) =>
                {
                    symbols.variants.entry(function.to_owned()).or_default().push(name.to_owned());
                }
                _ => {}
            }
        }
        symbols
    }

    /// The number of functions with this name.
    pub(super) fn count(&self, function: &str) -> usize {
        self.counts.get(function).copied().unwrap_or(0)
    }

    /// The variants of a function that does not exist itself.
    pub(super) fn variants_of(&self, function: &str) -> &[String] {
        if self.count(function) > 0 { &[] } else { self.variants.get(function).map_or(&[], Vec::as_slice) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "0000000000000000 A tcp_v4_rcv\n\
        ffffffff81a4ab80 T ip_local_out\n\
        ffffffff81a5ab80 t udp_queue_rcv_skb\n\
        ffffffff81a6ab80 t udp_queue_rcv_skb\n\
        ffffffff81a6bb80 t tcp_v4_connect.isra.0\n\
        ffffffff81a6cb80 t tcp_v4_connect.cold\n\
        ffffffff81a6db80 t ip_local_out.constprop.0\n\
        ffffffffc0000000 t other\t[module]\n";

    #[test]
    fn functions_are_counted_by_name() {
        let wanted = ["ip_local_out", "udp_queue_rcv_skb", "tcp_v4_connect", "tcp_v4_rcv"].into();
        let symbols = Symbols::parse(LIST.as_bytes(), &wanted);
        let counts =
            ["ip_local_out", "udp_queue_rcv_skb", "tcp_v4_connect", "tcp_v4_rcv"].map(|name| symbols.count(name));
        assert_eq!(counts, [1, 2, 0, 0]);
        assert_eq!(symbols.variants_of("tcp_v4_connect"), ["tcp_v4_connect.isra.0"]);
        assert!(symbols.variants_of("ip_local_out").is_empty(), "the function itself is there too");
    }
}
