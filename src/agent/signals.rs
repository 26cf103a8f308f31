//! Signals that the agent handles.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// The request that a signal stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalRequest {
    /// To end (SIGTERM, SIGINT).
    End,
    /// To read the configuration again (SIGHUP).
    Reload,
    /// To print statistics (SIGUSR1).
    PrintStats,
}

/// The caught signals.
#[derive(Debug)]
pub struct SignalRequests(Signals);

impl SignalRequests {
    /// Catches signals from now on.
    pub fn catch() -> io::Result<Self> {
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1]).map(Self)
    }

    /// The signals since the last call. Several of one kind at once count as one.
    pub fn pending(&mut self) -> Vec<SignalRequest> {
        let meaning = |signal| match signal {
            SIGHUP => SignalRequest::Reload,
            SIGUSR1 => SignalRequest::PrintStats,
            _ => SignalRequest::End,
        };
        self.0.pending().map(meaning).collect()
    }
}
