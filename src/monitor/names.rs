//! Captures DNS packets on the reader's thread and turns them into answers, in step with the rings.

use std::sync::atomic::Ordering;

use socktrail_dns::{Capture, Options};

use super::Counts;
use crate::event::{Event, KernelTime};
use crate::recording::Listener;

/// Starts to capture, if names are wanted.
pub(crate) fn capture(options: &Options) -> Result<Option<Capture>, socktrail_dns::Error> {
    options.enabled.then(|| Capture::open(options)).transpose()
}

/// A capture of DNS packets that also notices when it missed some.
#[derive(Debug)]
pub(crate) struct Names {
    capture: Capture,
    listener: Listener,
    /// How many packets the kernel had no room for, so far.
    lost: u64,
    /// The last time at which nothing had been missed.
    checked: KernelTime,
}

impl Names {
    /// For a capture that has just begun.
    pub(crate) fn new(capture: Capture, options: &Options) -> Self {
        let checked = capture.now();
        Self { capture, listener: Listener::new(options), lost: 0, checked }
    }

    /// Reads the packets that are there. `each` gets every packet, and the interval in which some may have been missed.
    pub(crate) fn drain(&mut self, each: &mut dyn FnMut(Heard<'_>)) {
        let Self { capture, listener, lost, checked } = self;
        let now = capture.now();
        let drained = capture.drain(&mut |packet| {
            listener.ingest(packet);
            each(Heard::Packet(packet));
        });
        let lost_before = std::mem::replace(lost, capture.lost());
        // When a whole ring's worth was read, the ring may hold more. That is read in the next round, too late to be
        // put in order, so it counts as missed.
        if *lost > lost_before || drained >= capture.room() {
            let until = capture.now();
            listener.missed(*checked, until);
            each(Heard::Missed { since: *checked, until });
        }
        *checked = now;
    }

    /// The answers that came before `until`.
    pub(crate) fn answers(&mut self, until: KernelTime) -> impl Iterator<Item = Event> {
        self.listener.take(until)
    }

    pub(super) fn count(&self, counts: &Counts) {
        counts.name_packets_lost.store(self.lost, Ordering::Relaxed);
        counts.names_dropped.store(self.listener.dropped, Ordering::Relaxed);
    }
}

/// What came from a capture.
#[derive(Debug)]
pub(crate) enum Heard<'a> {
    /// A packet.
    Packet(&'a socktrail_dns::Packet<'a>),
    /// Packets may have been missed between these times.
    Missed {
        /// Since when.
        since: KernelTime,
        /// Until when.
        until: KernelTime,
    },
}
