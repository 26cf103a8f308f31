//! Documents to Elasticsearch or OpenSearch, none lost and none twice.
//!
//! ```text
//! queue --> its thread: into the spool (disk)        the spool --> sender thread: bulk requests --> server
//! ```
//!
//! A document counts as taken once it is in the spool, and leaves the spool once the server has said of it that it is
//! written. Between the two it may be sent any number of times: it has the same `_id` each time, and `create` does nothing
//! where that is there already. What the server refuses for what it says goes to the dead-letter file; for any other
//! trouble the sender waits and tries again.

mod backoff;
mod bulk;
mod client;
mod dead;
mod sender;
mod setup;
mod tls;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::bulk::KIND;
pub use self::client::{ClientOptions, Credentials};
pub use self::setup::{Installed, setup};
pub use self::tls::TlsOptions;

use self::backoff::Backoff;
use self::bulk::Indices;
use self::client::Client;
use self::dead::DeadLetters;
use self::sender::Sender;
use super::{Batch, Meter, Output, OutputError, Spool, SpoolOptions};

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

/// What the two threads share.
#[derive(Debug)]
struct Shared {
    /// None once the output is closed.
    spool: Mutex<Option<Spool>>,
    /// Something came, or the end.
    changed: Condvar,
    /// When to be done, once it is to end.
    deadline: Mutex<Option<Instant>>,
    ended: AtomicBool,
    meter: Arc<Meter>,
}

impl Shared {
    fn spool(&self) -> MutexGuard<'_, Option<Spool>> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The output.
#[derive(Debug)]
pub struct Elasticsearch {
    shared: Arc<Shared>,
    sender: JoinHandle<()>,
    sync: Duration,
    synced: Instant,
}

impl Elasticsearch {
    /// Opens the spool and begins to send what it holds.
    ///
    /// # Errors
    /// The spool or a certificate cannot be used.
    pub fn start(options: ElasticsearchOptions, meter: Arc<Meter>) -> Result<Self, OutputError> {
        let client = Client::new(options.client)?;
        let spool = Spool::open(options.spool, Arc::clone(&meter))?;
        let shared = Arc::new(Shared {
            spool: Mutex::new(Some(spool)),
            changed: Condvar::new(),
            deadline: Mutex::default(),
            ended: AtomicBool::new(false),
            meter,
        });
        let sender = Sender {
            shared: Arc::clone(&shared),
            client,
            dead_letters: DeadLetters::new(options.dead_letters, options.index.clone(), Arc::clone(&shared.meter)),
            indices: Indices::new(&options.index),
            bulk_max_size: options.bulk_max_size,
            backoff: Backoff::new(options.backoff_init, options.backoff_max),
        };
        let sender = std::thread::Builder::new().name("output-sender".to_owned()).spawn(move || sender.run());
        let sender = sender
            .map_err(|error| OutputError::new(format!("starting a thread: {error}"), "raise the limit of processes"))?;
        Ok(Self { shared, sender, sync: options.sync, synced: Instant::now() })
    }
}

impl Output for Elasticsearch {
    /// The batch is taken in any case: what the disk cannot take waits in memory.
    fn write(&mut self, batch: &Batch) -> Result<(), OutputError> {
        if let Some(spool) = &mut *self.shared.spool()
            && let Err(error) = spool.push(batch)
        {
            self.shared.meter.failed(NAME, &error.to_string());
        }
        self.shared.changed.notify_all();
        Ok(())
    }

    fn tick(&mut self, now: Instant) -> Result<(), OutputError> {
        if now.saturating_duration_since(self.synced) < self.sync {
            return Ok(());
        }
        self.synced = now;
        let file = self.shared.spool().as_ref().and_then(Spool::to_sync);
        let synced = file.map_or(Ok(()), |file| file.sync_data());
        synced.map_err(|error| OutputError::new(format!("syncing the spool: {error}"), "check its disk"))
    }

    /// The sender has until the deadline; what is not sent by then stays in the spool, and is left where its disk is full.
    fn close(self: Box<Self>, deadline: Instant, left: &mut Batch) -> Result<(), OutputError> {
        *self.shared.deadline.lock().unwrap_or_else(PoisonError::into_inner) = Some(deadline);
        let mut spool = self.shared.spool();
        self.shared.changed.notify_all();
        while !self.shared.ended.load(Ordering::Acquire) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            spool = self.shared.changed.wait_timeout(spool, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        // A sender that still waits for an answer finds no spool any more, and ends; the next one sends it again.
        let spool_left = spool.take();
        drop(spool);
        if self.shared.ended.load(Ordering::Acquire) && self.sender.join().is_err() {
            tracing::error!("the sender has failed; this is a bug: please report it");
        }
        let Some(mut spool) = spool_left else { return Ok(()) };
        let closed = spool.close(left);
        let waiting = self.shared.meter.pending.get();
        if waiting > 0 {
            tracing::info!("{NAME}: {waiting} documents wait in the spool for the next start");
        }
        closed
    }
}
