//! The thread that listens to what is looked up: packets to answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::Sender;
use socktrail_dns::{Capture, Learned, Options, Tracker};

use super::Counts;

/// How often to forget what is too old when no packet comes.
const IDLE: Duration = Duration::from_secs(1);

/// Starts to capture, if names are wanted.
pub(crate) fn capture(options: &Options) -> Result<Option<Capture>, socktrail_dns::Error> {
    options.enabled.then(|| Capture::open(options)).transpose()
}

/// Owns the capture.
pub(super) struct Listener {
    pub(super) capture: Capture,
    pub(super) tracker: Tracker,
    pub(super) to_state: Sender<Arc<Learned>>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) counts: Arc<Counts>,
}

impl Listener {
    pub(super) fn run(mut self) {
        let Self { capture, tracker, to_state, stopping, counts } = &mut self;
        // Answers never wait for the state machine: what it has no time for is dropped and counted.
        let mut sink = |learned: Learned| {
            if to_state.try_send(Arc::new(learned)).is_err() {
                counts.names_dropped.fetch_add(1, Ordering::Relaxed);
            }
        };
        while !stopping.load(Ordering::Acquire) {
            if let Err(error) = capture.wait(Some(IDLE)) {
                tracing::warn!(%error, "waiting for names");
                std::thread::sleep(IDLE);
            }
            capture.drain(&mut |packet| tracker.ingest(packet, &mut sink));
            tracker.expire(capture.now());
            counts.name_packets_lost.store(capture.lost(), Ordering::Relaxed);
        }
    }
}
