//! The kernel's console: its last lines, and messages of a broken kernel.

use std::collections::VecDeque;

/// The number of lines that are kept to be printed after a failure: enough for an oops with registers and stack.
const LINES: usize = 60;

/// Messages of a broken kernel.
const FAULTS: &[&str] = &[
    "Kernel panic",
    "kernel BUG at",
    " BUG: ",
    "Oops: ",
    "Oops - ",
    "Internal error: ",
    "Unable to handle kernel",
    "general protection fault",
    "detected stall",
    "blocked for more than",
];

/// Messages about a crashed program, which may contain those of [`FAULTS`].
const HARMLESS: &[&str] = &["traps: "];

/// The text of the console so far.
#[derive(Debug, Default)]
pub struct Console {
    line: Vec<u8>,
    last: VecDeque<String>,
    fault: Option<String>,
}

impl Console {
    /// Appends output.
    pub fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                b'\r' => {}
                _ => self.line.push(byte),
            }
        }
    }

    /// The first line with a message of a broken kernel.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// The last lines, including an unfinished one.
    pub fn last_lines(&self) -> Vec<String> {
        let unfinished = String::from_utf8_lossy(&self.line).into_owned();
        self.last.iter().cloned().chain((!unfinished.is_empty()).then_some(unfinished)).collect()
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        if self.fault.is_none() && is_fault(&line) {
            self.fault = Some(line.trim().to_owned());
        }
        if self.last.len() == LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

/// Whether a line has a message of a broken kernel.
fn is_fault(line: &str) -> bool {
    FAULTS.iter().any(|sign| line.contains(sign)) && !HARMLESS.iter().any(|sign| line.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Option<String> {
        let mut console = Console::default();
        console.push(text.as_bytes());
        console.fault().map(str::to_owned)
    }

    #[test]
    fn broken_kernels_are_recognised() {
        for line in [
            "[    1.2] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[    1.2] Oops: 0002 [#1] PREEMPT SMP PTI",
            "[    1.2] kernel BUG at net/core/skbuff.c:112!",
            "[    1.2] Kernel panic - not syncing: Fatal exception in interrupt",
            "[    1.2] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[    1.2] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
            "[    1.2] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [socktrail:99]",
            "[    1.2] general protection fault, probably for non-canonical address 0xdead: 0000 [#1]",
            "[    1.2] Unable to handle kernel paging request at virtual address dead000000000100",
            "[    1.2] Internal error: Oops - BUG: 00000000f2000800 [#1] SMP",
            "[  243.5] INFO: task socktrail:99 blocked for more than 120 seconds.",
        ] {
            assert_eq!(fault(&format!("before\r\n{line}\r\nafter\r\n")).as_deref(), Some(line));
        }
    }

    #[test]
    fn other_messages_are_not_faults() {
        for line in [
            "[    0.0] Linux version 6.1.0-56-cloud-amd64",
            "[    1.2] traps: crashy[77] general protection fault ip:401000 sp:7ffe error:0 in crashy",
            "[    1.2] DEBUG: all is well",
            "[    0.0] RCU: Adjusting geometry for rcu_fanout_leaf=16, nr_cpu_ids=2",
            "[    1.2] crashy[77]: segfault at 0 ip 0000000000401000 sp 00007ffe error 4 in crashy",
        ] {
            assert_eq!(fault(&format!("{line}\n")), None, "{line}");
        }
    }

    #[test]
    fn the_last_lines_are_kept() {
        let mut console = Console::default();
        for n in 0..100 {
            console.push(format!("line {n}\r\n").as_bytes());
        }
        console.push(b"unfinis");
        console.push(b"hed");
        let lines = console.last_lines();
        assert_eq!(lines.len(), LINES + 1);
        assert_eq!(lines[LINES - 1], "line 99");
        assert_eq!(lines[LINES], "unfinished");
    }
}
