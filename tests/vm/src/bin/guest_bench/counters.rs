//! Packet counters of the kernel.

use std::fs;

use anyhow::{Context, Result};

/// The number of TCP segments, and of UDP datagrams over IPv4, that this network namespace has sent.
pub(crate) fn packets_sent() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/snmp").context("read /proc/net/snmp")?;
    Ok(counter(&text, "Tcp:", "OutSegs")? + counter(&text, "Udp:", "OutDatagrams")?)
}

/// A counter in `/proc/net/snmp`. Each protocol has a line with names, and then a line with values.
fn counter(text: &str, protocol: &str, name: &str) -> Result<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (names, numbers) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut columns = names.split_whitespace().zip(numbers.split_whitespace());
    let (_, number) = columns.find(|(column, _)| *column == name).with_context(|| format!("no {protocol} {name}"))?;
    number.parse().with_context(|| format!("{protocol} {name} is {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let text = "Tcp: InSegs OutSegs\nTcp: 7 9\nUdp: InDatagrams OutDatagrams\nUdp: 1 2\n";
        assert_eq!(counter(text, "Tcp:", "OutSegs").unwrap(), 9);
        assert_eq!(counter(text, "Udp:", "OutDatagrams").unwrap(), 2);
        assert!(counter(text, "Udp:", "OutSegs").is_err());
    }
}
