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
    /// Catches SIGINT, SIGTERM and, unless it is ignored (`nohup`), SIGHUP from now on.
    pub fn catch() -> io::Result<Self> {
        let signals = Signals::new([SIGINT, SIGTERM])?;
        if !is_ignored(SIGHUP) {
            signals.add_signal(SIGHUP)?;
        }
        Ok(Self { signals, count: 0 })
    }

    /// The number of signals so far. Several of one kind at once count as one.
    pub fn count(&mut self) -> usize {
        self.count += self.signals.pending().count();
        self.count
    }
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
}
