//! Where kernel functions begin, for kernels that take long to find that out.
//!
//! Before Linux 6.1 a kernel looks for a function's name among all its hundred thousand, and does so four times for each
//! probe: together some 100 million instructions. Reading the list of functions once takes less than two probes do.
//!
//! Before Linux 5.2 a kernel also writes a line into its log for each function that it does not have, so it is not asked.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};

/// The kernel fills it at once.
const BUFFER: usize = 64 << 10;
/// Where the kernel's functions begin: a symbol among the first, so that it is quickly found.
const FIRST: &str = "_stext";
/// The line where they end; more than half of the list comes after it.
const END: &[u8] = b" _etext\n";

/// Addresses of functions, and functions that the kernel does not have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    known: BTreeMap<String, u64>,
    absent: BTreeSet<String>,
}

impl Addresses {
    /// Those of `functions` that have one, if that is of use to the kernel that runs here.
    pub(crate) fn of(functions: &[&str]) -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        match File::open("/proc/kallsyms") {
            Ok(list) if is_before(&release, (6, 1)) => {
                parse(BufReader::with_capacity(BUFFER, list), functions, is_before(&release, (5, 2)))
            }
            _ => Self::default(),
        }
    }

    /// Whether it is known that the kernel has no such function. One that has not been looked up may be there.
    pub(crate) fn lack(&self, function: &str) -> bool {
        self.absent.contains(function)
    }

    /// What a probe's line can have in the function's place, for the kernel to find it quickly.
    pub(crate) fn place(&self, function: &str, at_return: bool) -> Option<String> {
        let address = *self.known.get(function)?;
        if !at_return {
            return Some(format!("{address:#x}"));
        }
        // A return is probed by a symbol only, but any will do that has the function's first instruction behind it.
        let first = *self.known.get(FIRST)?;
        Some(format!("{FIRST}+{}", address.checked_sub(first)?))
    }
}

/// Whether a kernel of this release is older than that.
fn is_before(release: &str, than: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    version.is_some_and(|version| version < than)
}

/// Lines such as `ffffffff81a4ab80 T ip_local_out`. A name that two functions share is not used. Without the
/// privilege to see addresses, all of them are 0. The `whole` list, with the functions of modules, also tells what there is not.
fn parse(mut list: impl BufRead, functions: &[&str], whole: bool) -> Addresses {
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
        // Functions of modules have the module's name behind.
        in_kernel &= !line.ends_with(END) && !line.contains(&b'\t');
        if !in_kernel && !whole {
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
    let is_complete = whole && is_read && seen.contains(FIRST.as_bytes());
    let absent = functions.iter().filter(|function| is_complete && !seen.contains(function.as_bytes()));
    Addresses { absent: absent.map(ToString::to_string).collect(), known: found.into_iter().filter_map(only).collect() }
}

/// Address and name of a line that is about a function.
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
    const ASKED: [&str; 5] = ["ip_local_out", "twice", "data", "tcp_init", "absent"];

    #[test]
    fn functions_of_one_place_have_an_address() {
        let found = BTreeMap::from([
            ("_stext".to_owned(), 0xffff_ffff_8100_0000),
            ("ip_local_out".to_owned(), 0xffff_ffff_81a4_ab80),
        ]);
        for after in
            ["", "ffffffff82000000 T _etext\nffffffff82a6ab80 t tcp_init\n", "ffffffffc0000000 t tcp_init\t[module]\n"]
        {
            let list = format!("{LIST}{after}");
            let parsed = |whole| parse(list.as_bytes(), &ASKED, whole);
            assert_eq!(parsed(false), Addresses { known: found.clone(), absent: BTreeSet::new() }, "{after}");
            assert_eq!(parsed(true).known, found, "{after}");
        }
    }

    #[test]
    fn what_the_whole_list_does_not_have_is_absent() {
        let list = format!("{LIST}ffffffff82000000 T _etext\nffffffffc0000000 t tcp_init\t[module]\n");
        let addresses = parse(list.as_bytes(), &ASKED, true);
        assert_eq!(ASKED.map(|function| addresses.lack(function)), [false, false, true, false, true]);
        assert!(!addresses.lack("never_asked"));
        assert!(!parse("".as_bytes(), &ASKED, true).lack("absent"), "there is no list");
        let broken = BufReader::new(list.as_bytes().chain(Broken));
        assert!(!parse(broken, &ASKED, true).lack("absent"), "the list breaks off");
    }

    /// What cannot be read.
    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::Other.into())
        }
    }

    #[test]
    fn hidden_addresses_are_none() {
        assert!(parse("0000000000000000 T ip_local_out\n".as_bytes(), &ASKED, true).known.is_empty());
    }

    #[test]
    fn a_return_is_found_from_the_first_function() {
        let addresses = parse(LIST.as_bytes(), &ASKED, false);
        assert_eq!(addresses.place("ip_local_out", false).unwrap(), "0xffffffff81a4ab80");
        assert_eq!(addresses.place("ip_local_out", true).unwrap(), "_stext+10791808");
        assert_eq!(addresses.place("twice", true), None);
        assert_eq!(0xffff_ffff_8100_0000_u64 + 10_791_808, 0xffff_ffff_81a4_ab80);
    }

    #[test]
    fn older_kernels_are_slow() {
        for (release, slow) in
            [("5.10.0-46-cloud-amd64", true), ("3.12.1", true), ("6.0.9", true), ("6.1.0-56", false), ("7.2", false)]
        {
            assert_eq!(is_before(release, (6, 1)), slow, "{release}");
        }
        assert!(!is_before("", (6, 1)));
    }
}
