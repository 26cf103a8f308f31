//! A spool and a sender for each index, so that an index that is slow or refuses documents does not delay the others.
//!
//! ```text
//! spool.path/elasticsearch/            lock, position; documents of all kinds if the index has no {kind} in its name
//! spool.path/elasticsearch/flow/       documents of flows, and so on
//! ```
//!
//! Documents that an earlier configuration has left in an unused directory are sent from there. All spools share the configured
//! size. When it is used up, the largest spool drops its oldest segment.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::ElasticsearchOptions;
use super::backoff::Backoff;
use super::bulk::{Indices, KIND};
use super::client::Client;
use super::dead::DeadLetters;
use super::sender::Sender;
use crate::output::{Batch, Kind, Meter, OutputError, Spool, SpoolOptions};

/// The name of the spool that holds documents of several kinds.
const ALL: &str = "all";
/// The maximum number of bytes that a spool needs for a document in addition to the document itself.
const OVERHEAD: u64 = 32;

/// All spools, each with its sender.
#[derive(Debug)]
pub(super) struct SendingSpools {
    spools: Vec<SendingSpool>,
    /// The directory's own spool, if it is not in use. It is kept only for its lock, which excludes other processes.
    _all: Option<Spool>,
    max_size: u64,
    meter: Arc<Meter>,
}

/// A spool with its sender.
#[derive(Debug)]
pub(super) struct SendingSpool {
    kinds: Vec<Kind>,
    shared: Arc<Shared>,
    sender: JoinHandle<()>,
}

/// What a sender shares with the thread that fills its spool.
#[derive(Debug)]
pub(super) struct Shared {
    /// The spool's name.
    pub(super) name: &'static str,
    /// `None` once the output is closed.
    spool: Mutex<Option<Spool>>,
    /// Signals new documents, or the end.
    pub(super) changed: Condvar,
    /// When the sender must be done; set when the output is closed.
    deadline: Mutex<Option<Instant>>,
    pub(super) ended: AtomicBool,
    pub(super) meter: Arc<Meter>,
}

impl Shared {
    pub(super) fn spool(&self) -> MutexGuard<'_, Option<Spool>> {
        self.spool.lock()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        *self.deadline.lock()
    }
}

impl SendingSpools {
    /// Opens all spools and starts to send.
    pub(super) fn start(options: ElasticsearchOptions, meter: &Arc<Meter>) -> Result<Self, OutputError> {
        let client = Client::new(options.client.clone())?;
        meter.begin();
        let per_kind = options.index.contains(KIND);
        let memory = options.spool.memory / if per_kind { Kind::ALL.len() } else { 1 };
        let open = |folder: Option<Kind>| {
            let mut path = options.spool.path.clone();
            path.extend(folder.map(Kind::name));
            Spool::open(SpoolOptions { path, memory, ..options.spool.clone() }, Arc::clone(meter))
        };
        let mut all = Some(open(None)?);
        let mut spools = Vec::new();
        for kind in Kind::ALL {
            let was_used = options.spool.path.join(kind.name()).exists();
            let spool = if per_kind || was_used { Some(open(Some(kind))?) } else { None };
            if let Some(spool) = spool.filter(|spool| per_kind || !spool.is_empty()) {
                spools.push((kind.name(), if per_kind { vec![kind] } else { Vec::new() }, spool));
            }
        }
        if let Some(spool) = all.take_if(|all| !per_kind || !all.is_empty()) {
            spools.push((ALL, if per_kind { Vec::new() } else { Kind::ALL.to_vec() }, spool));
        }
        let dead = DeadLetters::new(options.dead_letters.clone(), options.index.clone(), Arc::clone(meter));
        let dead = Arc::new(Mutex::new(dead));
        let start = |(name, kinds, spool)| {
            let shared = Shared::new(name, spool, meter);
            let sender = Sender {
                shared: Arc::clone(&shared),
                client: client.clone(),
                dead_letters: Arc::clone(&dead),
                indices: Indices::new(&options.index),
                bulk_max_size: options.bulk_max_size,
                backoff: Backoff::new(options.backoff_init, options.backoff_max),
                settled: HashSet::new(),
                ahead: None,
                refused: 0,
            };
            SendingSpool::start(kinds, shared, sender)
        };
        let spools = spools.into_iter().map(start).collect::<Result<_, _>>()?;
        Ok(Self { spools, _all: all, max_size: options.spool.max_size, meter: Arc::clone(meter) })
    }

    /// All spools with their senders.
    pub(super) fn each(&self) -> impl Iterator<Item = &SendingSpool> {
        self.spools.iter()
    }

    /// Writes documents to their spools. If the disk cannot take them, they wait in memory, and the error has the reason.
    pub(super) fn push(&self, batch: &Batch) -> Result<(), OutputError> {
        let mut pushed = Ok(());
        for (at, one) in self.spools.iter().enumerate() {
            let takes = |kind: Kind| one.kinds.contains(&kind);
            let bytes = |(kind, document): (Kind, &[u8])| takes(kind).then_some(document.len() as u64 + OVERHEAD);
            let bytes: u64 = batch.documents().filter_map(bytes).sum();
            if bytes == 0 {
                continue;
            }
            let max_size = self.make_room(at, bytes);
            if let Some(spool) = &mut *one.shared.spool() {
                spool.set_max_size(max_size);
                pushed = pushed.and(spool.push_of(batch, takes));
            }
            one.shared.changed.notify_all();
        }
        pushed
    }

    /// Makes room for `bytes` in one spool by dropping segments of larger ones; the largest spool makes room by itself.
    /// Returns how large the spool may become.
    fn make_room(&self, of: usize, bytes: u64) -> u64 {
        while self.meter.spool_bytes.get() + bytes > self.max_size {
            // First drop segments whose documents were all sent, and which are kept only because they can still be
            // written to.
            let size = |spool: &Spool| (spool.is_empty() && spool.size() > 0, spool.size());
            let sizes = self.spools.iter().map(|one| one.shared.spool().as_ref().map_or((false, 0), size));
            let sizes: Vec<(bool, u64)> = sizes.collect();
            let others = sizes.iter().map(|(_, size)| size).sum::<u64>() - sizes[of].1;
            let largest = (0..sizes.len()).max_by_key(|&at| sizes[at]).unwrap_or(of);
            let by_itself = largest == of && !sizes[of].0;
            if by_itself || !self.spools[largest].drop_oldest() {
                return self.max_size.saturating_sub(others);
            }
        }
        self.max_size
    }

    /// Ends the senders at the deadline at the latest. Documents that are not sent stay in the spools. Documents that are not in a
    /// spool are added to `left`.
    pub(super) fn close(self, deadline: Instant, left: &mut Batch) -> Result<(), OutputError> {
        for one in &self.spools {
            *one.shared.deadline.lock() = Some(deadline);
            // Done under the lock, so that a sender that is about to wait cannot miss it.
            let spool = one.shared.spool();
            one.shared.changed.notify_all();
            drop(spool);
        }
        let mut closed = Ok(());
        for one in self.spools {
            closed = closed.and(one.close(deadline, left));
        }
        closed
    }
}

impl Shared {
    fn new(name: &'static str, spool: Spool, meter: &Arc<Meter>) -> Arc<Self> {
        Arc::new(Self {
            name,
            spool: Mutex::new(Some(spool)),
            changed: Condvar::new(),
            deadline: Mutex::default(),
            ended: AtomicBool::new(false),
            meter: Arc::clone(meter),
        })
    }
}

impl SendingSpool {
    fn start(kinds: Vec<Kind>, shared: Arc<Shared>, sender: Sender) -> Result<Self, OutputError> {
        let sender = std::thread::Builder::new().name("output-sender".to_owned()).spawn(move || sender.run());
        let sender = sender
            .map_err(|error| OutputError::new(format!("starting a thread: {error}"), "raise the limit of processes"))?;
        Ok(Self { kinds, shared, sender })
    }

    /// See [`Spool::to_sync`].
    pub(super) fn to_sync(&self) -> io::Result<Vec<File>> {
        self.shared.spool().as_mut().map_or_else(|| Ok(Vec::new()), Spool::to_sync)
    }

    fn drop_oldest(&self) -> bool {
        self.shared.spool().as_mut().is_some_and(Spool::drop_oldest)
    }

    fn close(self, deadline: Instant, left: &mut Batch) -> Result<(), OutputError> {
        let mut spool = self.shared.spool();
        while !self.shared.ended.load(Ordering::Acquire) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.shared.changed.wait_for(&mut spool, left);
        }
        // A sender that still waits for an answer will find that the spool is gone, and end; the next run sends the
        // documents again.
        let spool_left = spool.take();
        drop(spool);
        if self.shared.ended.load(Ordering::Acquire) && self.sender.join().is_err() {
            tracing::error!("the sender has failed; this is a bug: please report it");
        }
        spool_left.map_or(Ok(()), |mut spool| spool.close(left))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::output::elasticsearch::{ClientOptions, Credentials, TlsOptions};

    const PER_KIND: &str = "socktrail-{kind}";
    const TOGETHER: &str = "socktrail";
    const MAX_SIZE: u64 = 40_000;

    /// A server that cannot be reached, so that everything stays in the spools.
    fn start_spools(folder: &Path, index: &str) -> SendingSpools {
        let hosts = vec!["http://127.0.0.1:1".to_owned()];
        let (timeout, long) = (Duration::from_secs(1), Duration::from_secs(3600));
        let client = ClientOptions {
            hosts,
            credentials: Credentials::None,
            tls: TlsOptions::default(),
            compression_level: 0,
            timeout,
        };
        let path = folder.join("spool");
        let options = ElasticsearchOptions {
            client,
            index: index.to_owned(),
            bulk_max_size: 10,
            backoff_init: long,
            backoff_max: long,
            spool: SpoolOptions { path, max_size: MAX_SIZE, segment_size: 2000, memory: 1 << 20 },
            sync: long,
            dead_letters: folder.join("dead"),
        };
        SendingSpools::start(options, &Arc::new(Meter::default())).unwrap()
    }

    fn batch(kind: Kind, count: usize) -> Batch {
        let mut batch = Batch::default();
        (0..count).for_each(|_| batch.push_json(kind, &[b'x'; 400]));
        batch
    }

    /// How many documents wait, for each spool by its name.
    fn waiting(spools: &SendingSpools) -> Vec<(&'static str, u64)> {
        let waiting = |one: &SendingSpool| one.shared.spool().as_ref().map_or(0, Spool::waiting);
        spools.each().map(|one| (one.shared.name, waiting(one))).collect()
    }

    fn close(spools: SendingSpools) {
        spools.close(Instant::now(), &mut Batch::default()).unwrap();
    }

    #[test]
    fn each_kind_waits_in_its_own_spool() {
        let folder = TempDir::new().unwrap();
        let spools = start_spools(folder.path(), PER_KIND);
        let mut both = batch(Kind::Flow, 3);
        both.push_json(Kind::SocketEvent, b"{}");
        spools.push(&both).unwrap();
        assert_eq!(waiting(&spools), [("flow", 3), ("event", 1), ("sensor", 0), ("loss", 0)]);
        close(spools);
    }

    #[test]
    fn documents_of_an_earlier_configuration_are_sent_from_its_spools() {
        let folder = TempDir::new().unwrap();
        let none = [("event", 0), ("sensor", 0), ("loss", 0)];
        let per_kind = start_spools(folder.path(), PER_KIND);
        per_kind.push(&batch(Kind::Flow, 2)).unwrap();
        close(per_kind);
        let together = start_spools(folder.path(), TOGETHER);
        together.push(&batch(Kind::SocketEvent, 1)).unwrap();
        assert_eq!(waiting(&together), [("flow", 2), (ALL, 1)]);
        close(together);
        let per_kind = start_spools(folder.path(), PER_KIND);
        assert_eq!(waiting(&per_kind), [&[("flow", 2)], &none[..], &[(ALL, 1)]].concat());
        close(per_kind);
    }

    #[test]
    fn the_largest_spool_makes_room_for_the_others() {
        let folder = TempDir::new().unwrap();
        let spools = start_spools(folder.path(), PER_KIND);
        spools.push(&batch(Kind::Flow, 85)).unwrap();
        assert_eq!(waiting(&spools)[0], ("flow", 85), "there is room");
        (0..30).for_each(|_| spools.push(&batch(Kind::SocketEvent, 1)).unwrap());
        let [(_, flows), (_, events), ..] = waiting(&spools)[..] else { panic!("a spool for each kind") };
        assert!(events == 30 && (40..75).contains(&flows), "{flows} flows, {events} events");
        assert!(spools.meter.spool_bytes.get() <= MAX_SIZE);
        close(spools);
    }

    /// A spool keeps the segment that it writes to, even when all its documents were sent. Such a segment is dropped before
    /// unsent documents, however small it is.
    #[test]
    fn segments_that_were_sent_are_dropped_first() {
        let folder = TempDir::new().unwrap();
        let spools = start_spools(folder.path(), PER_KIND);
        spools.push(&batch(Kind::SocketEvent, 3)).unwrap();
        let events = spools.each().find(|one| one.kinds == [Kind::SocketEvent]).expect("a spool for each kind");
        let mut spool = events.shared.spool();
        let events = spool.as_mut().unwrap();
        let sent = events.next(3, 1 << 20).unwrap().unwrap();
        events.acknowledge(&sent).unwrap();
        assert!(events.is_empty() && events.size() > 0);
        drop(spool);
        let one = batch(Kind::Flow, 1).documents().map(|(_, document)| document.len() as u64 + OVERHEAD).sum::<u64>();
        let mut flows = 0;
        while spools.meter.spool_bytes.get() + one <= MAX_SIZE {
            spools.push(&batch(Kind::Flow, 1)).unwrap();
            flows += 1;
        }
        spools.push(&batch(Kind::Sensor, 1)).unwrap();
        assert_eq!(waiting(&spools), [("flow", flows), ("event", 0), ("sensor", 1), ("loss", 0)]);
        assert_eq!(spools.meter.spool_dropped.get(), 0);
        close(spools);
    }

    #[test]
    fn documents_in_memory_are_returned_at_the_end() {
        let folder = TempDir::new().unwrap();
        let spools = start_spools(folder.path(), PER_KIND);
        // A directory with the name of the first segment makes writing to these spools fail.
        for kind in ["flow", "event"] {
            std::fs::create_dir(folder.path().join(format!("spool/{kind}/{:016}.spool", 1))).unwrap();
        }
        let mut mixed = batch(Kind::Flow, 2);
        mixed.push_json(Kind::SocketEvent, b"{}");
        mixed.push_json(Kind::Sensor, b"{}");
        assert!(spools.push(&mixed).is_err());
        let mut left = Batch::default();
        assert!(spools.close(Instant::now(), &mut left).is_err());
        let kinds: Vec<_> = left.documents().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [Kind::Flow, Kind::Flow, Kind::SocketEvent], "the sensor event is on the disk");
    }
}
