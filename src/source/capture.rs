//! Captures DNS packets and turns them into answers, in step with the rings.

use socktrail_dns::{Capture, Options};

use super::Tap;
use super::names::NameListener;
use crate::model::event::Event;
use crate::model::time::MonotonicTime;

/// Captures DNS packets, and notes when packets were missed.
#[derive(Debug)]
pub(super) struct NameCapture {
    capture: Capture,
    listener: NameListener,
    /// How many packets the kernel has dropped for lack of room so far.
    lost: u64,
    /// The last time when no packet had been missed.
    checked: MonotonicTime,
}

impl NameCapture {
    /// Starts the capture, if names are wanted.
    ///
    /// # Errors
    /// Privileges are missing.
    pub(super) fn start(options: &Options) -> Result<Option<Self>, socktrail_dns::Error> {
        if !options.enabled {
            return Ok(None);
        }
        let capture = Capture::open(options)?;
        let checked = MonotonicTime::from_nanos(capture.now());
        Ok(Some(Self { capture, listener: NameListener::new(options), lost: 0, checked }))
    }

    /// Reads the waiting packets. `tap` gets each of them, and the interval in which some may have been missed.
    pub(super) fn drain(&mut self, tap: &mut impl Tap) {
        let Self { capture, listener, lost, checked } = self;
        let now = MonotonicTime::from_nanos(capture.now());
        let drained = capture.drain(&mut |packet| {
            listener.ingest(packet);
            tap.packet(packet);
        });
        let lost_before = std::mem::replace(lost, capture.lost());
        // After a whole ring has been read, there may be more packets. They are read in the next round, too late to be ordered, so
        // they count as missed.
        if *lost > lost_before || drained >= capture.capacity() {
            let until = MonotonicTime::from_nanos(capture.now());
            listener.missed(*checked, until);
            tap.packets_missed(*checked, until);
        }
        *checked = now;
    }

    /// The answers from before `until`.
    pub(super) fn answers(&mut self, until: MonotonicTime) -> impl Iterator<Item = Event> {
        self.listener.take(until)
    }

    /// How many packets the kernel has dropped for lack of room.
    pub(super) fn packets_lost(&self) -> u64 {
        self.lost
    }

    /// What has been seen of DNS.
    pub(super) fn counters(&self) -> socktrail_dns::Counters {
        self.listener.counters()
    }

    /// How many answers were dropped because too many were waiting.
    pub(super) fn dropped(&self) -> u64 {
        self.listener.dropped
    }
}
