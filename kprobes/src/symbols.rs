//! Where kernel functions begin, for kernels that take long to find that out.
//!
//! Before Linux 6.1 a kernel looks for a function's name among all its hundred thousand, and does so four times for each
//! probe: together some 90 million instructions. Reading the whole list once takes less than two probes do.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};

/// The kernel fills it at once.
const BUFFER: usize = 64 << 10;

/// The addresses of those of `functions` that have one, if that is of use to the kernel that runs here.
pub(crate) fn addresses(functions: &[&str]) -> BTreeMap<String, u64> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match File::open("/proc/kallsyms") {
        Ok(list) if is_slow(&release) => parse(BufReader::with_capacity(BUFFER, list), functions),
        _ => BTreeMap::new(),
    }
}

/// Whether a kernel of this release takes long to find a function.
fn is_slow(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    version.is_some_and(|version| version < (6, 1))
}

/// Lines such as `ffffffff81a4ab80 T ip_local_out`. A name that two functions have is of neither; and who may not know
/// addresses is told that all are 0.
fn parse(mut list: impl BufRead, functions: &[&str]) -> BTreeMap<String, u64> {
    let wanted: HashSet<&[u8]> = functions.iter().map(|function| function.as_bytes()).collect();
    let mut found: BTreeMap<&[u8], Vec<u64>> = BTreeMap::new();
    let mut line = Vec::new();
    while list.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        // Functions of modules come last, with the name of the module behind.
        if line.contains(&b'\t') {
            break;
        }
        if let Some((address, name)) = function(&line)
            && let Some(&name) = wanted.get(name)
        {
            found.entry(name).or_default().push(address);
        }
        line.clear();
    }
    let only = |(name, addresses): (&[u8], Vec<u64>)| match addresses[..] {
        [address] if address != 0 => Some((String::from_utf8_lossy(name).into_owned(), address)),
        _ => None,
    };
    found.into_iter().filter_map(only).collect()
}

/// Address and name of a line that is about a function.
fn function(line: &[u8]) -> Option<(u64, &[u8])> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    let (b" t " | b" T ") = line.get(space..space + 3)? else { return None };
    let address = u64::from_str_radix(std::str::from_utf8(&line[..space]).ok()?, 16).ok()?;
    Some((address, line[space + 3..].trim_ascii_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "0000000000000000 A fixed_percpu_data\n\
        ffffffff81000000 T _stext\n\
        ffffffff81a4ab80 T ip_local_out\n\
        ffffffff81a5ab80 t twice\n\
        ffffffff81a6ab80 t twice\n\
        ffffffff81b6ab80 D data\n\
        ffffffffc0000000 t ip_rcv\t[module]\n";

    #[test]
    fn functions_of_one_place_have_an_address() {
        let found = parse(LIST.as_bytes(), &["ip_local_out", "twice", "data", "ip_rcv", "absent"]);
        assert_eq!(found, BTreeMap::from([("ip_local_out".to_owned(), 0xffff_ffff_81a4_ab80)]));
    }

    #[test]
    fn hidden_addresses_are_none() {
        assert!(parse("0000000000000000 T ip_local_out\n".as_bytes(), &["ip_local_out"]).is_empty());
    }

    #[test]
    fn older_kernels_are_slow() {
        for (release, slow) in
            [("5.10.0-46-cloud-amd64", true), ("3.12.1", true), ("6.0.9", true), ("6.1.0-56", false), ("7.2", false)]
        {
            assert_eq!(is_slow(release), slow, "{release}");
        }
        assert!(!is_slow(""));
    }
}
