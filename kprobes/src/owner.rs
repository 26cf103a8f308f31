//! Groups that carry their owner's identity in their name: `PREFIX_PID_STARTTIME_N`.

use std::fs;
use std::io;

/// A process. Its start time distinguishes it from a later process with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pid: u32,
    /// Clock ticks after boot: field 22 of `/proc/PID/stat`.
    start: u64,
}

impl Owner {
    /// This process.
    pub(crate) fn this() -> io::Result<Self> {
        let stat = fs::read("/proc/self/stat")?;
        let start = Stat::parse(&stat).ok_or_else(|| io::Error::other("/proc/self/stat is not as expected"))?.start;
        Ok(Self { pid: std::process::id(), start })
    }

    /// The name of this owner's group number `n`.
    pub(crate) fn group(self, prefix: &str, n: u64) -> String {
        format!("{prefix}_{}_{}_{n}", self.pid, self.start)
    }

    /// The owner of a group with this prefix. `None` for other groups.
    pub(crate) fn of_group(prefix: &str, group: &str) -> Option<Self> {
        let mut numbers = group.strip_prefix(prefix)?.strip_prefix('_')?.split('_').map(number);
        let owner = Self { pid: u32::try_from(numbers.next()??).ok()?, start: numbers.next()?? };
        numbers.next()??;
        numbers.next().is_none().then_some(owner)
    }

    /// Whether the process is gone. If in doubt, `false`.
    pub(crate) fn is_dead(self) -> bool {
        match fs::read(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => Stat::parse(&stat).is_some_and(|stat| stat.start != self.start || stat.is_zombie),
            // ESRCH: the process ended while we were reading.
            Err(error) => error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH),
        }
    }
}

/// Parses a decimal number without a sign.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The fields of `/proc/PID/stat` that we need.
struct Stat {
    is_zombie: bool,
    start: u64,
}

impl Stat {
    /// The second field is the name in parentheses, which may contain spaces and parentheses itself.
    fn parse(text: &[u8]) -> Option<Self> {
        let end_of_name = text.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(&text[end_of_name + 1..]).ok()?.split_ascii_whitespace();
        let state = fields.next()?;
        Some(Self { is_zombie: matches!(state, "Z" | "X" | "x"), start: fields.nth(18)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let owner = Owner { pid: 42, start: 31100 };
        assert_eq!(owner.group("socktrail", 3), "socktrail_42_31100_3");
        assert_eq!(Owner::of_group("socktrail", "socktrail_42_31100_3"), Some(owner));
    }

    #[test]
    fn other_groups_have_no_owner() {
        for group in [
            "kprobes",
            "socktrail",
            "socktrail_",
            "socktrail_42",
            "socktrail_42_311",
            "socktrail_42_311_",
            "socktrail_42_311_0_1",
            "socktrail_42_311_x",
            "socktrail_+42_311_0",
            "socktrail_-1_311_0",
            "socktrail_4294967296_311_0",
            "socktrail_42_99999999999999999999_0",
            "socktrailer_42_311_0",
            "other_socktrail_42_311_0",
        ] {
            assert_eq!(Owner::of_group("socktrail", group), None, "{group}");
        }
        // A longer prefix is another one.
        assert_eq!(Owner::of_group("socktrail", "socktrail_test_42_311_0"), None);
    }

    #[test]
    fn start_times_are_read_behind_any_name() {
        let stat = b"102 (a) R (b) S 1 0 0 0 -1 4194304 56 0 0 0 0 0 0 0 20 0 1 0 311 2379776 1 18446744073709551615";
        let stat = Stat::parse(stat).unwrap();
        assert_eq!((stat.start, stat.is_zombie), (311, false));
        for malformed in [&b""[..], b"102 a R", b"102 (a) R 1 2 3", b"102 (a) \xff"] {
            assert!(Stat::parse(malformed).is_none());
        }
    }

    #[test]
    fn living_and_dead_processes() {
        let this = Owner::this().unwrap();
        assert!(!this.is_dead());
        assert!(Owner { start: this.start + 1, ..this }.is_dead());
        assert!(Owner { pid: u32::MAX >> 1, start: 1 }.is_dead());
    }

    proptest::proptest! {
        #[test]
        fn no_name_and_no_stat_panics(name: String, stat: Vec<u8>) {
            let _ = Owner::of_group("socktrail", &name);
            let _ = Owner::of_group("socktrail", &format!("socktrail_{name}"));
            let _ = Stat::parse(&stat);
        }
    }
}
