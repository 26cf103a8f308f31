//! What flows come from: the kernel, or a recording.

use std::time::Duration;

use socktrail::clock::Clock;
use socktrail::monitor::{Monitor, Received};

/// What flows come from.
pub trait FlowSource {
    /// The next flow, waited for at most `timeout`.
    fn recv(&self, timeout: Duration) -> Received;
    /// Asks it to end: what is alive is still handed out.
    fn stop(&self);
    /// How the times of flows relate to wall time.
    fn clock(&self) -> Clock;
}

impl FlowSource for Monitor {
    fn recv(&self, timeout: Duration) -> Received {
        self.recv(timeout)
    }

    fn stop(&self) {
        self.stop();
    }

    fn clock(&self) -> Clock {
        self.clock()
    }
}
