//! Parses `/proc/PID/stat`: see `proc_pid_stat(5)`.

use std::io::Read;

use procfs::process::Process as ProcEntry;

/// The maximum number of bytes that are read: more than the kernel writes.
const MAX_STAT: u64 = 4096;

/// The used fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The name, truncated to 15 bytes.
    pub comm: String,
    /// The state of the thread (of a process, its main thread): `R`, `S`, …; see [`Stat::has_ended`].
    pub state: u8,
    /// The parent's id; 0 for none.
    pub ppid: u32,
    /// `PF_*` of `include/linux/sched.h`.
    pub flags: u32,
    /// The number of threads, including zombies.
    pub threads: u32,
    /// When it began: ticks since boot.
    pub starttime: u64,
}

impl Stat {
    /// Reads the `stat` of a process.
    pub fn of(entry: &ProcEntry) -> Option<Self> {
        Self::at(entry, "stat")
    }

    /// Reads the `stat` of a thread.
    pub fn of_thread(entry: &ProcEntry, tid: u32) -> Option<Self> {
        Self::at(entry, &format!("task/{tid}/stat"))
    }

    /// Whether the thread has ended: it is a zombie, or dead.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    fn at(entry: &ProcEntry, path: &str) -> Option<Self> {
        let mut bytes = Vec::new();
        entry.open_relative(path).ok()?.take(MAX_STAT).read_to_end(&mut bytes).ok()?;
        Self::parse(&bytes)
    }

    /// The name may contain any characters, also parentheses and spaces; the last parenthesis ends it.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let start = bytes.iter().position(|byte| *byte == b'(')? + 1;
        let end = bytes.iter().rposition(|byte| *byte == b')')?;
        let comm = String::from_utf8_lossy(bytes.get(start..end)?).into_owned();
        let rest = std::str::from_utf8(&bytes[end + 1..]).ok()?;
        // The state is the third field of the file and the first of these.
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let ppid = fields.next()?.parse().ok()?;
        let flags = fields.nth(4)?.parse().ok()?;
        let threads = fields.nth(10)?.parse().ok()?;
        let starttime = fields.nth(1)?.parse().ok()?;
        Some(Self { comm, state, ppid, flags, threads, starttime })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From a 6.1 kernel. The name of process 812 imitates the fields after it.
    const LINE: &str = "812 (a) R 1 2 (b) S 790 812 790 34816 812 4194304 113 0 0 0 0 0 0 0 20 0 1 0 6423 2940928 \
        234 18446744073709551615 1 1 0 0 0 0 0 0 65536 1 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n";

    #[test]
    fn the_name_ends_at_the_last_parenthesis() {
        let stat = Stat::parse(LINE.as_bytes()).unwrap();
        let comm = "a) R 1 2 (b".into();
        assert_eq!(stat, Stat { comm, state: b'S', ppid: 790, flags: 0x0040_0000, threads: 1, starttime: 6423 });
    }

    #[test]
    fn a_truncated_line_is_not_parsed() {
        let enough = LINE.find("6423").unwrap() + 1;
        for length in 0..enough {
            assert_eq!(Stat::parse(&LINE.as_bytes()[..length]), None, "{length}");
        }
        assert_eq!(Stat::parse(b")("), None);
    }
}
