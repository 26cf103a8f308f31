//! Which CPUs there are.

use std::collections::BTreeSet;
use std::{fs, io};

use crate::Error;

/// An upper bound of CPU numbers (`NR_CPUS` is at most 8192).
const MAX_CPU: u32 = 1 << 16;

/// The CPUs that are online now.
pub(crate) fn online() -> Result<BTreeSet<u32>, Error> {
    listed("/sys/devices/system/cpu/online")
}

/// The CPUs that may ever be online.
pub(crate) fn possible() -> Result<BTreeSet<u32>, Error> {
    listed("/sys/devices/system/cpu/possible")
}

fn listed(path: &str) -> Result<BTreeSet<u32>, Error> {
    let failed = |source| Error::io(format!("reading {path}"), source);
    let text = fs::read_to_string(path).map_err(failed)?;
    parse(&text).ok_or_else(|| failed(io::Error::other(format!("{:?} is not a list of CPUs", text.trim_ascii()))))
}

/// Parses `0-3,8,10-11`.
fn parse(text: &str) -> Option<BTreeSet<u32>> {
    let mut cpus = BTreeSet::new();
    for range in text.trim_ascii().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number < MAX_CPU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_parsed() {
        let parsed = |text: &str| parse(text).map(|cpus| cpus.into_iter().collect::<Vec<_>>());
        assert_eq!(parsed("0\n"), Some(vec![0]));
        assert_eq!(parsed("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parsed("2-2"), Some(vec![2]));
        for text in ["", "\n", "a", "3-1", "1-", "-1", "0-3,", "+1", "1-2-3", "0-4294967295", "99999999999"] {
            assert_eq!(parsed(text), None, "{text:?}");
        }
    }

    #[test]
    fn this_machine_has_an_online_cpu() {
        let online = online().unwrap();
        assert!(!online.is_empty() && online.is_subset(&possible().unwrap()));
    }

    proptest::proptest! {
        #[test]
        fn no_list_panics(text in "[0-9,\\- a]{0,20}") {
            let _ = parse(&text);
        }
    }
}
