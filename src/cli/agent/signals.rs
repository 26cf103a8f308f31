//! What signals ask of the agent.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// To end (SIGTERM, SIGINT).
    End,
    /// To read the configuration again (SIGHUP).
    Reload,
    /// To say what was counted (SIGUSR1).
    Tell,
}

/// Signals since they are caught.
#[derive(Debug)]
pub struct Asked(Signals);

impl Asked {
    /// Catches them from now on.
    pub fn catch() -> io::Result<Self> {
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1]).map(Self)
    }

    /// What came since this was last asked. Several of one kind at once count as one.
    pub fn pending(&mut self) -> Vec<Ask> {
        let meaning = |signal| match signal {
            SIGHUP => Ask::Reload,
            SIGUSR1 => Ask::Tell,
            _ => Ask::End,
        };
        self.0.pending().map(meaning).collect()
    }
}
