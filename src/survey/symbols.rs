//! The kernel's names of functions: which of them several functions have, and which the compiler has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};

use crate::probes::{Probe, every};

/// What `/proc/kallsyms` says of the functions that may be probed.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// How many functions have a name.
    count: BTreeMap<String, usize>,
    /// What the compiler made of a function: `name.isra.0` has lost arguments, `name.constprop.0` knows some of them.
    made: BTreeMap<String, Vec<String>>,
}

impl Symbols {
    /// Of the kernel that runs here; nothing where they cannot be read.
    pub(super) fn read() -> Self {
        let probes = every().flat_map(|(_, probes)| probes.iter());
        let wanted: BTreeSet<_> = probes.map(Probe::function).collect();
        File::open("/proc/kallsyms").map(|list| Self::parse(BufReader::new(list), &wanted)).unwrap_or_default()
    }

    /// Lines such as `ffffffff81a4ab80 T ip_local_out`; modules come last, with their name behind.
    fn parse(list: impl BufRead, wanted: &BTreeSet<&str>) -> Self {
        let mut symbols = Self::default();
        for line in list.lines().map_while(Result::ok) {
            let mut columns = line.split_ascii_whitespace().skip(1);
            let (Some("t" | "T"), Some(name)) = (columns.next(), columns.next()) else { continue };
            match name.split_once('.') {
                _ if wanted.contains(name) => *symbols.count.entry(name.to_owned()).or_default() += 1,
                // `.cold` is the part that is hardly ever run, and `.part` the rest of one that is still there.
                Some((of, how)) if wanted.contains(of) && (how.starts_with("isra") || how.starts_with("constprop")) => {
                    symbols.made.entry(of.to_owned()).or_default().push(name.to_owned());
                }
                _ => {}
            }
        }
        symbols
    }

    /// How many functions are called so.
    pub(super) fn of(&self, function: &str) -> usize {
        self.count.get(function).copied().unwrap_or(0)
    }

    /// What the compiler made of a function that is not there itself.
    pub(super) fn made_of(&self, function: &str) -> &[String] {
        if self.of(function) > 0 { &[] } else { self.made.get(function).map_or(&[], Vec::as_slice) }
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
        let counts = ["ip_local_out", "udp_queue_rcv_skb", "tcp_v4_connect", "tcp_v4_rcv"].map(|name| symbols.of(name));
        assert_eq!(counts, [1, 2, 0, 0]);
        assert_eq!(symbols.made_of("tcp_v4_connect"), ["tcp_v4_connect.isra.0"]);
        assert!(symbols.made_of("ip_local_out").is_empty(), "the function itself is there too");
    }
}
