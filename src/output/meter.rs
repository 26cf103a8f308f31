//! What an output counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

use super::trouble::{Cause, Scope, Troubles};

/// A number that only its owner changes and anyone may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds to it.
    pub fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Replaces one contribution to the sum: it was `from` and is now `to`.
    pub(super) fn change(&self, from: u64, to: u64) {
        self.0.fetch_add(to.wrapping_sub(from), Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The numbers of one output, in documents unless said otherwise.
#[derive(Debug, Default)]
pub struct Meter {
    /// Handed to it.
    pub offered: Count,
    /// Refused because too much waited already, or given up at the end.
    pub dropped: Count,
    /// Written: taken by the file system, or acknowledged by the server.
    pub written: Count,
    /// Times that something could not be written at once.
    pub failures: Count,
    /// Of those written, such as the server had already.
    pub duplicates: Count,
    /// Refused by the server for what they say; they lie in the dead-letter file.
    pub rejected: Count,
    /// Of those, such as had to go from the dead-letter file to make room.
    pub rejected_dropped: Count,
    /// Taken into the spool.
    pub spooled: Count,
    /// Waiting in the spool.
    pub pending: Count,
    /// Bytes of the spool on disk.
    pub spool_bytes: Count,
    /// Dropped from the spool because it was full.
    pub spool_dropped: Count,
    /// Damaged parts of the spool that were set aside.
    pub spool_damaged: Count,
    /// Of those, such as had to go to make room.
    pub spool_damaged_dropped: Count,
    troubles: Mutex<Troubles>,
}

/// [`Meter`] at one moment.
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
    /// Each number with its name.
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
    /// Notes that something cannot be done now, and counts it.
    pub(super) fn failed(&self, output: &str, who: (&Scope, &'static str), cause: Cause, reason: &str) {
        self.failures.add(1);
        self.troubled(output, who, cause, reason);
    }

    /// Notes that something cannot be done now. It is logged when the trouble begins, and once for each other cause.
    pub(super) fn troubled(&self, output: &str, who: (&Scope, &'static str), cause: Cause, reason: &str) {
        if let Some(line) = self.troubles().failed(who, cause, reason, Instant::now()) {
            tracing::warn!("{output}: {line}");
        }
    }

    /// Notes that it works, and how many documents were waiting for it.
    pub(super) fn worked(&self, who: (&Scope, &'static str), waiting: u64) {
        self.troubles().worked(who, waiting, Instant::now());
    }

    /// Whether there is any trouble.
    pub(super) fn is_troubled(&self) -> bool {
        self.troubles().len() > 0
    }

    /// Logs the troubles that are over. `at_once`: nothing more will be tried, so those that work now are over at once.
    pub(super) fn log_ends(&self, output: &str, at_once: bool) {
        for line in self.troubles().ended(Instant::now(), at_once) {
            tracing::info!("{output}: {line}");
        }
    }

    /// Resets the troubles and what waits, for a new start of the output; counts go on.
    pub(super) fn begin(&self) {
        self.troubles().forget();
        self.pending.set(0);
        self.spool_bytes.set(0);
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock()
    }

    /// The numbers so far.
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
