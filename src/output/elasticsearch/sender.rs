//! The thread that sends: from the spool to the server, in order.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::bulk::{self, Indices, Verdict};
use super::client::Client;
use super::dead::{DeadLetter, DeadLetters};
use super::{NAME, Shared};
use crate::output::{Batch, Chunk, Kind, OutputError};

/// Bytes of documents in one request, save for the last of them.
const BULK_BYTES: usize = 5 << 20;
/// How long to wait for documents before looking again.
const IDLE: Duration = Duration::from_millis(500);
/// What the answer is to hold: all that is looked at, and no more.
const BULK: &str = "_bulk?filter_path=items.*._id,items.*.status,items.*.error.type,items.*.error.reason,\
                    items.*.error.caused_by.type,items.*.error.caused_by.reason";

/// Sends until it is to end.
pub(super) struct Sender {
    pub(super) shared: Arc<Shared>,
    pub(super) client: Client,
    pub(super) dead_letters: DeadLetters,
    pub(super) indices: Indices,
    pub(super) bulk_max_size: usize,
    pub(super) backoff: Backoff,
}

/// A document on its way.
struct Letter<'a> {
    kind: Kind,
    document: &'a [u8],
    id: String,
}

impl Sender {
    pub(super) fn run(mut self) {
        while let Some(chunk) = self.next() {
            if !self.deliver(&chunk.batch) || !self.done(&chunk) {
                break;
            }
        }
        // Under the lock, so that whoever waits for it cannot miss it.
        let spool = self.shared.spool();
        self.shared.ended.store(true, Ordering::Release);
        drop(spool);
        self.shared.changed.notify_all();
    }

    /// What is to be sent; `None` when it is time to end.
    fn next(&mut self) -> Option<Chunk> {
        let shared = Arc::clone(&self.shared);
        let mut guard = shared.spool();
        loop {
            let spool = guard.as_mut()?;
            if self.is_over() {
                return None;
            }
            match spool.next(self.bulk_max_size, BULK_BYTES) {
                Ok(Some(chunk)) => return Some(chunk),
                Ok(None) if shared.deadline().is_some() => return None,
                Ok(None) => guard = shared.changed.wait_timeout(guard, IDLE).unwrap_or_else(PoisonError::into_inner).0,
                Err(error) => {
                    drop(guard);
                    if !self.failed(&error.to_string()) {
                        return None;
                    }
                    guard = shared.spool();
                }
            }
        }
    }

    /// Acknowledges to the spool; whether to go on.
    fn done(&mut self, chunk: &Chunk) -> bool {
        let Some(spool) = &mut *self.shared.spool() else { return false };
        if let Err(error) = spool.done(chunk) {
            self.shared.meter.failed(NAME, &error.to_string());
        }
        true
    }

    /// Sends all of a batch, however often that has to be tried. Whether it is done with.
    fn deliver(&mut self, batch: &Batch) -> bool {
        let letter = |(kind, document)| Letter { kind, document, id: bulk::id(document) };
        let mut letters: Vec<_> = batch.documents().map(letter).collect();
        let mut at_once = letters.len();
        while !letters.is_empty() {
            let (now, later) = letters.split_at(at_once.min(letters.len()));
            match self.send(now) {
                Sent::Answered(retry) => {
                    let retry: Vec<_> = retry.into_iter().chain(now.len()..now.len() + later.len()).collect();
                    let mut keep = retry.iter().peekable();
                    let mut at = 0;
                    letters.retain(|_| {
                        let kept = keep.next_if(|&&wanted| wanted == at).is_some();
                        at += 1;
                        kept
                    });
                }
                Sent::TooLarge => at_once = now.len() / 2,
                Sent::Failed => {}
            }
            if self.is_over() && !letters.is_empty() {
                return false;
            }
        }
        true
    }

    /// One request.
    fn send(&mut self, letters: &[Letter<'_>]) -> Sent {
        let mut body = Vec::with_capacity(letters.iter().map(|letter| letter.document.len() + 128).sum());
        for letter in letters {
            bulk::create(self.indices.of(letter.kind), &letter.id, letter.document, &mut body);
        }
        let answer = match self.client.ask("POST", BULK, "application/x-ndjson", &body) {
            Ok(answer) if answer.status == 413 && letters.len() > 1 => return Sent::TooLarge,
            Ok(answer) if answer.status == 413 => return self.settle(letters, vec![too_large()]),
            Ok(answer) if answer.status == 200 => answer,
            Ok(answer) => {
                let error = self.client.refusal("the server", &answer);
                return self.failed_to_send(&error);
            }
            Err(error) => return self.failed_to_send(&error),
        };
        match bulk::judge(&answer.body, letters.iter().map(|letter| &*letter.id)) {
            Ok(verdicts) => self.settle(letters, verdicts),
            Err(problem) => self.failed_to_send(&OutputError::new(problem, "is it Elasticsearch that answers there?")),
        }
    }

    /// Does what the verdicts ask for. Documents that have to be sent again are told by their place.
    fn settle(&mut self, letters: &[Letter<'_>], verdicts: Vec<Verdict>) -> Sent {
        let (mut retry, mut dead, mut trouble) = (Vec::new(), Vec::new(), None);
        for (at, (letter, verdict)) in letters.iter().zip(verdicts).enumerate() {
            match verdict {
                Verdict::Written => self.shared.meter.written.add(1),
                Verdict::Duplicate => {
                    self.shared.meter.written.add(1);
                    self.shared.meter.duplicates.add(1);
                }
                Verdict::Retry(reason) => {
                    retry.push(at);
                    trouble = Some(reason);
                }
                Verdict::Rejected(status, reason) => {
                    let Letter { kind, document, .. } = *letter;
                    dead.push((at, DeadLetter { kind, document, status, reason }));
                }
            }
        }
        let (places, dead): (Vec<_>, Vec<_>) = dead.into_iter().unzip();
        if let Err(error) = self.dead_letters.keep(&dead) {
            retry.extend(places);
            retry.sort_unstable();
            trouble = Some(error.to_string());
        }
        match trouble {
            Some(reason) => drop(self.failed(&format!("{} documents are not taken: {reason}", retry.len()))),
            None => {
                self.backoff.reset();
                self.shared.meter.worked(NAME);
            }
        }
        Sent::Answered(retry)
    }

    fn failed_to_send(&mut self, error: &OutputError) -> Sent {
        self.failed(&error.to_string());
        Sent::Failed
    }

    /// Says why it does not work and waits; whether to try again.
    fn failed(&mut self, reason: &str) -> bool {
        self.shared.meter.failed(NAME, reason);
        let until = Instant::now() + self.backoff.wait();
        let mut spool = self.shared.spool();
        loop {
            let until = self.shared.deadline().map_or(until, |deadline| deadline.min(until));
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || spool.is_none() {
                break;
            }
            spool = self.shared.changed.wait_timeout(spool, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(spool);
        !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.shared.deadline().is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// How a request went.
enum Sent {
    /// Documents at these places have to be sent again, the others are done with.
    Answered(Vec<usize>),
    /// The server wants smaller requests.
    TooLarge,
    /// Nothing is known of any of them.
    Failed,
}

fn too_large() -> Verdict {
    Verdict::Rejected(413, "413: the document alone is larger than the server takes".to_owned())
}
