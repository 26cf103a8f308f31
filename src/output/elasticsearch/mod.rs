//! Documents to Elasticsearch or OpenSearch, none lost and none twice.
//!
//! ```text
//! queue --> its thread: into spools (disk)        each spool --> a thread of its own: bulk requests --> server
//! ```
//!
//! A document counts as taken once it is in a spool, and leaves the spool once the server has said that it is written.
//! Between the two it may be sent any number of times: it has the same `_id` each time, and `create` does nothing where
//! that is there already. What the server refuses for what it says goes to the dead-letter file; for any other trouble
//! the sender waits and tries again.
//!
//! Each index has a spool and a sender of its own, so that an index that refuses documents does not hold up the others.

mod backoff;
mod bulk;
mod client;
mod dead;
mod halving;
mod lanes;
mod sender;
mod setup;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::bulk::KIND;
pub use self::client::{ClientOptions, Credentials};
pub use self::setup::{Installed, setup};
pub use self::tls::TlsOptions;

use self::lanes::{Lane, Lanes};
use super::trouble::{Cause, Scope};
use super::{Batch, Meter, Output, OutputError, SpoolOptions};

/// How the output is called.
const NAME: &str = "elasticsearch";

/// How documents are shipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElasticsearchOptions {
    /// Where to.
    pub client: ClientOptions,
    /// The index or data stream; [`KIND`] in it stands for the kind of a document.
    pub index: String,
    /// Documents in one request at most.
    pub bulk_max_size: usize,
    /// The first wait after a failure.
    pub backoff_init: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
    /// Where documents wait.
    pub spool: SpoolOptions,
    /// After how long at the latest the disk has what was taken.
    pub sync: Duration,
    /// Where documents go that the server will never take.
    pub dead_letters: PathBuf,
}

/// The scope of trouble when the disk cannot take documents.
const SPOOLING: Scope = Scope::Local("writing to the spool");

/// The output.
#[derive(Debug)]
pub struct Elasticsearch {
    lanes: Lanes,
    meter: Arc<Meter>,
    sync: Duration,
    synced: Instant,
}

impl Elasticsearch {
    /// Opens the spools and begins to send what they hold.
    ///
    /// # Errors
    /// A spool or a certificate cannot be used.
    pub fn start(options: ElasticsearchOptions, meter: Arc<Meter>) -> Result<Self, OutputError> {
        let sync = options.sync;
        let lanes = Lanes::start(options, &meter)?;
        Ok(Self { lanes, meter, sync, synced: Instant::now() })
    }
}

impl Output for Elasticsearch {
    /// The batch is taken in any case: what the disk cannot take waits in memory.
    fn write(&mut self, batch: &Batch) -> Result<(), OutputError> {
        match self.lanes.push(batch) {
            Ok(()) => self.meter.worked((&SPOOLING, NAME), 0),
            Err(error) => self.meter.failed(NAME, (&SPOOLING, NAME), Cause::System, &error.to_string()),
        }
        Ok(())
    }

    fn tick(&mut self, now: Instant) -> Result<(), OutputError> {
        if now.saturating_duration_since(self.synced) < self.sync {
            return Ok(());
        }
        let synced = self.lanes.each().filter_map(Lane::to_sync).try_for_each(|file| file.sync_data());
        synced.map_err(|error| OutputError::new(format!("syncing the spool: {error}"), "check its disk"))?;
        self.synced = now;
        Ok(())
    }

    /// The senders have until the deadline. What is not sent by then stays in the spools; documents that a full disk
    /// kept out of them are put into `left`.
    fn close(self: Box<Self>, deadline: Instant, left: &mut Batch) -> Result<(), OutputError> {
        self.lanes.close(deadline, left)
    }
}
