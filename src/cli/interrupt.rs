//! Signals that ask the command to end.

use std::io;

use procfs::process::Process;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The signals that have arrived.
#[derive(Debug)]
pub struct Interrupts {
    signals: Signals,
    count: usize,
}

impl Interrupts {
    /// Catches [`end_signals`] from now on.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { signals: Signals::new(end_signals())?, count: 0 })
    }

    /// The number of signals so far. Several of one kind at once count as one.
    pub fn count(&mut self) -> usize {
        self.count += self.signals.pending().count();
        self.count
    }
}

/// The signals that ask the command to end: SIGINT, SIGTERM and, unless it is ignored (`nohup`), SIGHUP.
pub fn end_signals() -> Vec<i32> {
    [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| *signal != SIGHUP || !is_ignored(SIGHUP)).collect()
}

fn is_ignored(signal: i32) -> bool {
    let status = Process::myself().and_then(|myself| myself.status());
    status.is_ok_and(|status| status.sigign & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use signal_hook::low_level::raise;

    use super::*;

    #[test]
    fn signals_are_counted() {
        let mut interrupts = Interrupts::catch().unwrap();
        assert_eq!(interrupts.count(), 0);
        raise(SIGTERM).unwrap();
        assert_eq!(interrupts.count(), 1);
        raise(SIGTERM).unwrap();
        assert_eq!(interrupts.count(), 2);
    }

    #[test]
    fn a_closed_terminal_ends_the_command_except_under_nohup() {
        assert_eq!(end_signals().contains(&SIGHUP), !is_ignored(SIGHUP));
        assert!(end_signals().contains(&SIGINT) && end_signals().contains(&SIGTERM));
    }
}
