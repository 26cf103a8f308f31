//! The output to Elasticsearch and OpenSearch. It loses no document that it has room for, and writes none twice to an index.
//!
//! ```text
//! queue --> thread of the output --> spools (disk)        each spool --> thread of its sender --> bulk requests --> server
//! ```
//!
//! A document counts as taken once it is in a spool, and leaves the spool once the server has acknowledged it. Meanwhile it may be
//! sent several times: it has the same `_id` each time, and `create` does nothing if the `_id` exists. A document that the server
//! refuses because of its contents goes to the dead-letter file. After any other failure, the sender waits and retries.
//!
//! Each index has its own spool and sender, so that an index that refuses documents does not delay the others.

mod backoff;
mod bisection;
mod bulk;
mod client;
mod dead;
mod sender;
mod sending_spools;
mod setup;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::bulk::KIND;
pub use self::client::{ClientOptions, Credentials};
pub use self::setup::{Installed, setup};
pub use self::tls::TlsOptions;

use self::sending_spools::{SendingSpool, SendingSpools};
use super::spool::sync_all;
use super::trouble::{Cause, Scope};
use super::{Batch, Meter, Output, OutputError, SpoolOptions};

/// The name of the output.
const NAME: &str = "elasticsearch";

/// The options of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElasticsearchOptions {
    /// The servers.
    pub client: ClientOptions,
    /// The index or data stream. [`KIND`] in it is replaced by the kind of a document.
    pub index: String,
    /// The maximum number of documents in a request.
    pub bulk_max_size: usize,
    /// The wait after the first failure.
    pub backoff_init: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
    /// Where documents wait on disk.
    pub spool: SpoolOptions,
    /// How long taken documents may stay unflushed to disk.
    pub sync: Duration,
    /// The file for documents that the server refuses for good.
    pub dead_letters: PathBuf,
}

/// The scope of trouble when the disk cannot take documents.
const SPOOLING: Scope = Scope::Local("writing to the spool");

/// The output to Elasticsearch or OpenSearch.
#[derive(Debug)]
pub struct Elasticsearch {
    spools: SendingSpools,
    meter: Arc<Meter>,
    sync: Duration,
    synced: Instant,
}

impl Elasticsearch {
    /// Opens the spools and starts to send their documents.
    ///
    /// # Errors
    /// A spool or a certificate cannot be used.
    pub fn start(options: ElasticsearchOptions, meter: Arc<Meter>) -> Result<Self, OutputError> {
        let sync = options.sync;
        let spools = SendingSpools::start(options, &meter)?;
        Ok(Self { spools, meter, sync, synced: Instant::now() })
    }
}

impl Output for Elasticsearch {
    /// The batch is always taken. Documents that the disk cannot take wait in memory.
    fn write(&mut self, batch: &Batch) -> Result<(), OutputError> {
        match self.spools.push(batch) {
            Ok(()) => self.meter.note_success((&SPOOLING, NAME), 0),
            Err(error) => self.meter.note_failure(NAME, (&SPOOLING, NAME), Cause::System, &error.to_string()),
        }
        Ok(())
    }

    fn tick(&mut self, now: Instant) -> Result<(), OutputError> {
        if now.saturating_duration_since(self.synced) < self.sync {
            return Ok(());
        }
        let sync = |spool: &SendingSpool| sync_all(&spool.to_sync()?);
        self.spools
            .each()
            .map(sync)
            .fold(Ok(()), Result::and)
            .map_err(|error| OutputError::new(format!("syncing the spool: {error}"), "check its disk"))?;
        self.synced = now;
        Ok(())
    }

    /// Ends the senders at the deadline at the latest. Documents that are not sent stay in the spools. Documents that a full disk
    /// could not take are added to `left`.
    fn close(self: Box<Self>, deadline: Instant, left: &mut Batch) -> Result<(), OutputError> {
        self.spools.close(deadline, left)
    }
}
