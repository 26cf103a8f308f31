//! Counters of an output.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

use super::trouble::{Cause, Scope, Troubles};

/// A counter that other threads can read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to the counter.
    pub fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    /// Sets the counter.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Replaces one contribution to the counter: `from` becomes `to`.
    pub(super) fn change(&self, from: u64, to: u64) {
        self.0.fetch_add(to.wrapping_sub(from), Ordering::Relaxed);
    }

    /// Reads the counter.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one output. They count documents unless noted otherwise.
#[derive(Debug, Default)]
pub struct Meter {
    /// Passed to the output.
    pub offered: Count,
    /// Dropped because the queue was full, or because they were not written at the end.
    pub dropped: Count,
    /// Written to a file, or acknowledged by the server.
    pub written: Count,
    /// Failed attempts to write.
    pub failures: Count,
    /// Written documents that the server already had.
    pub duplicates: Count,
    /// Refused by the server because of their contents. They are in the dead-letter file.
    pub rejected: Count,
    /// Documents removed from the dead-letter file to make room.
    pub rejected_dropped: Count,
    /// Taken into the spool.
    pub spooled: Count,
    /// Waiting in the spool.
    pub pending: Count,
    /// The size of the spool on disk, in bytes.
    pub spool_bytes: Count,
    /// Dropped from the spool because it was full, on disk or in memory.
    pub spool_dropped: Count,
    /// Damaged parts of the spool that were set aside.
    pub spool_damaged: Count,
    /// Damaged parts that were removed to make room.
    pub spool_damaged_dropped: Count,
    troubles: Mutex<Troubles>,
}

/// The values of a [`Meter`] at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the fields are those of Meter")]
pub struct Reading {
    pub output: &'static str,
    pub offered: u64,
    pub dropped: u64,
    pub written: u64,
    pub failures: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub rejected: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub rejected_dropped: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub spooled: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub pending: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub spool_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub spool_dropped: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub spool_damaged: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub spool_damaged_dropped: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub troubles: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl Reading {
    /// Each value with its name.
    pub fn numbers(&self) -> [(&'static str, u64); 14] {
        [
            ("offered", self.offered),
            ("dropped", self.dropped),
            ("written", self.written),
            ("failures", self.failures),
            ("duplicates", self.duplicates),
            ("rejected", self.rejected),
            ("rejected_dropped", self.rejected_dropped),
            ("spooled", self.spooled),
            ("pending", self.pending),
            ("spool_bytes", self.spool_bytes),
            ("spool_dropped", self.spool_dropped),
            ("spool_damaged", self.spool_damaged),
            ("spool_damaged_dropped", self.spool_damaged_dropped),
            ("troubles", self.troubles),
        ]
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Meter {
    /// Notes and counts a failure.
    pub(super) fn note_failure(&self, output: &str, who: (&Scope, &'static str), cause: Cause, reason: &str) {
        self.failures.add(1);
        self.note_trouble(output, who, cause, reason);
    }

    /// Notes a failure. Logs it if a trouble begins, or if this trouble has a new cause.
    pub(super) fn note_trouble(&self, output: &str, who: (&Scope, &'static str), cause: Cause, reason: &str) {
        if let Some(line) = self.troubles().note_failure(who, cause, reason, Instant::now()) {
            tracing::warn!("{output}: {line}");
        }
    }

    /// Notes a success, and the number of documents that have waited for it.
    pub(super) fn note_success(&self, who: (&Scope, &'static str), waiting: u64) {
        self.troubles().note_success(who, waiting, Instant::now());
    }

    /// Whether the output has any trouble.
    pub(super) fn is_troubled(&self) -> bool {
        self.troubles().len() > 0
    }

    /// Logs the troubles that are over. `at_once` is for the end, when there will be no further attempts: a trouble whose last
    /// attempts succeeded is then over, without a wait to see whether it comes back.
    pub(super) fn log_ends(&self, output: &str, at_once: bool) {
        for line in self.troubles().take_ended(Instant::now(), at_once) {
            tracing::info!("{output}: {line}");
        }
    }

    /// Resets troubles and gauges when the output is started again. Counters continue.
    pub(super) fn begin(&self) {
        self.troubles().forget();
        self.pending.set(0);
        self.spool_bytes.set(0);
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock()
    }

    /// The current values.
    pub fn read(&self, output: &'static str) -> Reading {
        let troubles = self.troubles();
        Reading {
            output,
            offered: self.offered.get(),
            dropped: self.dropped.get(),
            written: self.written.get(),
            failures: self.failures.get(),
            duplicates: self.duplicates.get(),
            rejected: self.rejected.get(),
            rejected_dropped: self.rejected_dropped.get(),
            spooled: self.spooled.get(),
            pending: self.pending.get(),
            spool_bytes: self.spool_bytes.get(),
            spool_dropped: self.spool_dropped.get(),
            spool_damaged: self.spool_damaged.get(),
            spool_damaged_dropped: self.spool_damaged_dropped.get(),
            troubles: troubles.len() as u64,
            trouble: troubles.status(),
        }
    }
}
