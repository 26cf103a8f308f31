//! Addresses of kernel functions, for kernels that take long to look them up.
//!
//! Before Linux 6.1 a kernel searches all of its hundred thousand symbols for a function's name, and does so four times
//! for each probe: some 100 million instructions in all. Reading the list of functions once takes less time than two
//! probes.
//!
//! Before Linux 5.2 a kernel also logs a line for each function that it does not have, so it is not asked for those.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};

use crate::probe::ProbeKind;

/// The size of the read buffer in bytes. One read of this file returns at most a page, and pages have up to 64 KiB.
const BUFFER_SIZE: usize = 64 << 10;
/// The start of the kernel's functions. It is one of the first symbols, so the kernel finds it quickly.
const FIRST: &str = "_stext";
/// The line at the end of the kernel's functions. More than half of the list comes after it.
const END: &[u8] = b" _etext\n";

/// Addresses of functions, and functions that the kernel does not have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    known: BTreeMap<String, u64>,
    missing: BTreeSet<String>,
}

impl Addresses {
    /// The addresses of `functions`, if the running kernel benefits from them.
    pub(crate) fn of(functions: &[&str]) -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        match File::open("/proc/kallsyms") {
            Ok(list) if is_before(&release, (6, 1)) => {
                let extent = if is_before(&release, (5, 2)) { Extent::Whole } else { Extent::Kernel };
                parse(BufReader::with_capacity(BUFFER_SIZE, list), functions, extent)
            }
            _ => Self::default(),
        }
    }

    /// Whether the kernel is known to lack this function. A function that was not looked up may exist.
    pub(crate) fn is_missing(&self, function: &str) -> bool {
        self.missing.contains(function)
    }

    /// The text to write in place of the function's name, so that the kernel finds it quickly.
    pub(crate) fn place(&self, function: &str, kind: ProbeKind) -> Option<String> {
        let address = *self.known.get(function)?;
        match kind {
            ProbeKind::Kprobe => Some(format!("{address:#x}")),
            // It needs a symbol, but that may be any symbol before the function.
            ProbeKind::Kretprobe { .. } => {
                let first = *self.known.get(FIRST)?;
                Some(format!("{FIRST}+{}", address.checked_sub(first)?))
            }
        }
    }
}

/// Whether this release is older than version `than`.
pub(crate) fn is_before(release: &str, than: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    version.is_some_and(|version| version < than)
}

/// The part of the list that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// The kernel's own functions, which come first.
    Kernel,
    /// All functions, also those of modules. A function that is not among them is missing.
    Whole,
}

/// Parses lines such as `ffffffff81a4ab80 T ip_local_out`. A name that two functions share is not used. Without the
/// privilege to see addresses, all of them are 0.
fn parse(mut list: impl BufRead, functions: &[&str], extent: Extent) -> Addresses {
    let wanted: HashSet<&[u8]> = functions.iter().chain([&FIRST]).map(|function| function.as_bytes()).collect();
    let mut found: BTreeMap<&[u8], Vec<u64>> = BTreeMap::new();
    let mut seen: HashSet<&[u8]> = HashSet::new();
    let (mut line, mut in_kernel) = (Vec::new(), true);
    let is_read = loop {
        match list.read_until(b'\n', &mut line) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(_) => break false,
        }
        // For functions of modules, the module's name follows.
        in_kernel &= !line.ends_with(END) && !line.contains(&b'\t');
        if !in_kernel && extent == Extent::Kernel {
            break false;
        }
        if let Some((address, name)) = function(&line)
            && let Some(&name) = wanted.get(name)
        {
            seen.insert(name);
            if in_kernel {
                found.entry(name).or_default().push(address);
            }
        }
        line.clear();
    };
    let only = |(name, addresses): (&[u8], Vec<u64>)| match addresses[..] {
        [address] if address != 0 => Some((String::from_utf8_lossy(name).into_owned(), address)),
        _ => None,
    };
    // A list without the first function is not trusted.
    let is_complete = extent == Extent::Whole && is_read && seen.contains(FIRST.as_bytes());
    let missing = functions.iter().filter(|function| is_complete && !seen.contains(function.as_bytes()));
    Addresses {
        missing: missing.map(ToString::to_string).collect(),
        known: found.into_iter().filter_map(only).collect(),
    }
}

/// The address and the name in a line about a function.
fn function(line: &[u8]) -> Option<(u64, &[u8])> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    let (b" t " | b" T " | b" w " | b" W ") = line.get(space..space + 3)? else { return None };
    let address = u64::from_str_radix(std::str::from_utf8(&line[..space]).ok()?, 16).ok()?;
    let name = line[space + 3..].split(u8::is_ascii_whitespace).next()?;
    Some((address, name))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const LIST: &str = "0000000000000000 A fixed_percpu_data\n\
        ffffffff81000000 T _stext\n\
        ffffffff81a4ab80 T ip_local_out\n\
        ffffffff81a5ab80 t twice\n\
        ffffffff81a6ab80 t twice\n\
        ffffffff81b6ab80 D data\n";
    const KRETPROBE: ProbeKind = ProbeKind::Kretprobe { maxactive: None };
    const ASKED: [&str; 5] = ["ip_local_out", "twice", "data", "tcp_init", "absent"];

    #[test]
    fn names_of_a_single_function_have_an_address() {
        let found = BTreeMap::from([
            ("_stext".to_owned(), 0xffff_ffff_8100_0000),
            ("ip_local_out".to_owned(), 0xffff_ffff_81a4_ab80),
        ]);
        for after in
            ["", "ffffffff82000000 T _etext\nffffffff82a6ab80 t tcp_init\n", "ffffffffc0000000 t tcp_init\t[module]\n"]
        {
            let list = format!("{LIST}{after}");
            let parsed = |extent| parse(list.as_bytes(), &ASKED, extent);
            assert_eq!(parsed(Extent::Kernel), Addresses { known: found.clone(), missing: BTreeSet::new() }, "{after}");
            assert_eq!(parsed(Extent::Whole).known, found, "{after}");
        }
    }

    #[test]
    fn functions_not_in_the_whole_list_are_missing() {
        let list = format!("{LIST}ffffffff82000000 T _etext\nffffffffc0000000 t tcp_init\t[module]\n");
        let addresses = parse(list.as_bytes(), &ASKED, Extent::Whole);
        assert_eq!(ASKED.map(|function| addresses.is_missing(function)), [false, false, true, false, true]);
        assert!(!addresses.is_missing("never_asked"));
        assert!(!parse("".as_bytes(), &ASKED, Extent::Whole).is_missing("absent"), "there is no list");
        let broken = BufReader::new(list.as_bytes().chain(Broken));
        assert!(!parse(broken, &ASKED, Extent::Whole).is_missing("absent"), "the list breaks off");
    }

    /// A reader that fails.
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::Other.into())
        }
    }

    #[test]
    fn hidden_addresses_are_not_used() {
        assert!(parse("0000000000000000 T ip_local_out\n".as_bytes(), &ASKED, Extent::Whole).known.is_empty());
    }

    #[test]
    fn a_kretprobe_is_placed_by_its_distance_from_the_first_function() {
        let addresses = parse(LIST.as_bytes(), &ASKED, Extent::Kernel);
        assert_eq!(addresses.place("ip_local_out", ProbeKind::Kprobe).unwrap(), "0xffffffff81a4ab80");
        assert_eq!(addresses.place("ip_local_out", KRETPROBE).unwrap(), "_stext+10791808");
        assert_eq!(addresses.place("twice", KRETPROBE), None);
        assert_eq!(0xffff_ffff_8100_0000_u64 + 10_791_808, 0xffff_ffff_81a4_ab80);
    }

    #[test]
    fn releases_are_compared_with_a_version() {
        for (release, is_older) in
            [("5.10.0-46-cloud-amd64", true), ("3.12.1", true), ("6.0.9", true), ("6.1.0-56", false), ("7.2", false)]
        {
            assert_eq!(is_before(release, (6, 1)), is_older, "{release}");
        }
        assert!(!is_before("", (6, 1)));
    }
}
