//! The thread that sends the documents of one spool to the server, in order.
//!
//! While a part of a chunk has to be sent again, the sender remembers which documents are already settled. After each wait it reads
//! the spool again, because there may be more documents.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::NAME;
use super::backoff::{Backoff, chance};
use super::bisection::{Bisection, Step};
use super::bulk::{self, Indices, Verdict};
use super::client::{Answer, Client, Unanswered};
use super::dead::{DeadLetter, DeadLetters};
use super::sending_spools::Shared;
use crate::output::trouble::{Cause, Scope};
use crate::output::{Batch, Chunk, Kind, OutputError, Spool};

/// The maximum number of bytes of documents in a request. A document that is larger is sent alone.
const BULK_BYTES: usize = 5 << 20;
/// How long to wait for documents before checking again. New documents end the wait at once.
const IDLE: Duration = Duration::from_secs(60);
/// The path of bulk requests. The answer contains only the fields that are used.
const BULK: &str = "_bulk?filter_path=items.*._id,items.*.status,items.*.error.type,items.*.error.reason,\
                    items.*.error.caused_by.type,items.*.error.caused_by.reason";

/// The remedy if the server forbids a bulk request.
const IF_FORBIDDEN: &str = "allow the user or the API key to do this: create_doc and auto_configure on the index";

/// The HTTP status for requests that are too large.
const TOO_LARGE: u16 = 413;

/// Scopes of trouble with the spool.
const READING: Scope = Scope::Local("reading the spool");
const POSITION: Scope = Scope::Local("writing the position of the spool");
const DEAD_LETTERS: Scope = Scope::Local("writing dead letters");

/// The state of the thread.
pub(super) struct Sender {
    pub(super) shared: Arc<Shared>,
    pub(super) client: Client,
    pub(super) dead_letters: Arc<Mutex<DeadLetters>>,
    pub(super) indices: Indices,
    pub(super) bulk_max_size: usize,
    pub(super) backoff: Backoff,
    /// The ids of the chunk's documents that are settled: written, or in the dead-letter file.
    pub(super) settled: HashSet<String>,
    /// The id of a later document that was sent ahead as a witness.
    pub(super) ahead: Option<String>,
    /// How many times in a row everything was refused.
    pub(super) refused: usize,
}

/// A document to send.
struct Outgoing<'a> {
    kind: Kind,
    document: &'a [u8],
    id: String,
}

impl<'a> Outgoing<'a> {
    fn of((kind, document): (Kind, &'a [u8])) -> Self {
        Self { kind, document, id: bulk::id(document) }
    }
}

/// The result of a request.
enum Sent {
    /// All its documents are settled.
    Taken,
    /// None of its documents was accepted, perhaps because of one of them.
    Refused(Refusal),
    /// Some documents have to be sent again. The wait before that is already over.
    Later,
}

/// A 4xx answer to a whole request.
struct Refusal {
    status: u16,
    reason: String,
}

/// The result of sending a chunk.
enum Delivered {
    /// All its documents are settled.
    All,
    /// Some of its documents are not settled.
    Part,
    /// It is time to end.
    Over,
}

impl Sender {
    pub(super) fn run(mut self) {
        while let Some(chunk) = self.next() {
            let goes_on = match self.deliver(&chunk) {
                Delivered::All => self.acknowledge(&chunk),
                Delivered::Part => self.acknowledge_settled(&chunk),
                Delivered::Over => {
                    self.acknowledge_settled(&chunk);
                    false
                }
            };
            if !goes_on {
                break;
            }
        }
        // Under the lock, so that a thread that waits for this cannot miss it.
        let spool = self.shared.spool();
        self.shared.ended.store(true, Ordering::Release);
        drop(spool);
        self.shared.changed.notify_all();
    }

    /// The next chunk to send; `None` when it is time to end.
    fn next(&mut self) -> Option<Chunk> {
        let shared = Arc::clone(&self.shared);
        let mut guard = shared.spool();
        loop {
            let spool = guard.as_mut()?;
            if self.is_over() {
                return None;
            }
            match spool.next(self.bulk_max_size, BULK_BYTES) {
                Ok(Some(chunk)) => {
                    shared.meter.note_success((&READING, shared.name), 0);
                    return Some(chunk);
                }
                Ok(None) if shared.deadline().is_some() => return None,
                Ok(None) => {
                    shared.changed.wait_for(&mut guard, IDLE);
                }
                Err(error) => {
                    drop(guard);
                    self.fail_and_wait(&READING, Cause::System, &error.to_string());
                    guard = shared.spool();
                }
            }
        }
    }

    /// Removes a chunk from the spool. Returns whether to go on.
    fn acknowledge(&mut self, chunk: &Chunk) -> bool {
        let Some(spool) = &mut *self.shared.spool() else { return false };
        match spool.acknowledge(chunk) {
            Ok(()) => self.shared.meter.note_success((&POSITION, self.shared.name), 0),
            Err(error) => {
                let who = (&POSITION, self.shared.name);
                self.shared.meter.note_failure(NAME, who, Cause::System, &error.to_string());
            }
        }
        self.settled.clear();
        self.settled.extend(self.ahead.take());
        true
    }

    /// Removes the settled documents at the beginning of a chunk from the spool. Returns whether to go on.
    fn acknowledge_settled(&mut self, chunk: &Chunk) -> bool {
        let ids: Vec<_> = chunk.batch.documents().map(|(_, document)| bulk::id(document)).collect();
        let count = ids.iter().take_while(|id| self.settled.contains(*id)).count();
        if count == 0 {
            return self.shared.spool().is_some();
        }
        let part = match &mut *self.shared.spool() {
            Some(spool) => spool.next(count, BULK_BYTES),
            None => return false,
        };
        // The chunk may have been dropped meanwhile, to make room.
        let Ok(Some(part)) = part else { return true };
        if !chunk.batch.lines().starts_with(part.batch.lines()) {
            return true;
        }
        let settled = std::mem::take(&mut self.settled);
        let goes_on = self.acknowledge(&part);
        self.settled.extend(ids.into_iter().skip(part.batch.len()).filter(|id| settled.contains(id)));
        goes_on
    }

    /// Sends the unsettled documents of a chunk that go to the same index as the first of them.
    fn deliver(&mut self, chunk: &Chunk) -> Delivered {
        let mut documents: Vec<_> = chunk.batch.documents().map(Outgoing::of).collect();
        documents.retain(|outgoing| !self.settled.contains(&outgoing.id));
        let Some(kind) = documents.first().map(|outgoing| outgoing.kind) else { return Delivered::All };
        let index = self.indices.of(kind).to_owned();
        let all = documents.len();
        documents.retain(|outgoing| self.indices.of(outgoing.kind) == index);
        let mut bisection = Bisection::new(documents.len());
        let mut last = None;
        loop {
            let step = if self.refused > 0 { Step::Witness } else { bisection.next() };
            if step != Step::Done && self.is_over() {
                return Delivered::Over;
            }
            match step {
                Step::Send(range) => match self.send(&documents, range.clone()) {
                    Sent::Taken => bisection.note_accepted(&range),
                    Sent::Later => return Delivered::Part,
                    Sent::Refused(refusal) => {
                        let is_size = refusal.status == TOO_LARGE;
                        let at_fault =
                            if is_size { bisection.note_too_large(range) } else { bisection.note_refused(range) };
                        if !self.set_aside(at_fault.map(|at| &documents[at]), &refusal) {
                            return Delivered::Part;
                        }
                        last = Some(refusal);
                    }
                },
                Step::Witness if self.finds_witness(chunk, &documents, &bisection, &index, last.take()) => {
                    bisection.note_witness_accepted();
                }
                Step::Witness => return Delivered::Part,
                Step::Done if documents.len() == all => return Delivered::All,
                Step::Done => return Delivered::Part,
            }
        }
    }

    /// Sends other documents, each alone, until one is accepted. Returns whether one was. If not, waits before it returns.
    fn finds_witness(
        &mut self,
        chunk: &Chunk,
        documents: &[Outgoing<'_>],
        bisection: &Bisection,
        index: &str,
        mut last: Option<Refusal>,
    ) -> bool {
        let after_chunk =
            self.shared.spool().as_ref().map_or_else(Batch::default, |spool| spool.after(chunk, self.bulk_max_size));
        let after_chunk = after_chunk.documents().find(|(kind, _)| self.indices.of(*kind) == index).map(Outgoing::of);
        let candidates: Vec<_> = bisection.witness_candidates().collect();
        // The first candidate keeps the order. In case it is at fault itself, a random one is tried too, and in case all
        // are, one from after the chunk.
        let random = (candidates.len() as f64 * chance()) as usize;
        let chosen = [candidates.first(), candidates.get(random).filter(|_| random > 0)].into_iter().flatten();
        let mut witnesses: Vec<_> = chosen.map(|&at| &documents[at]).chain(&after_chunk).collect();
        if self.refused > 0 && !witnesses.is_empty() {
            // While everything is refused, one try per wait is enough.
            witnesses = vec![witnesses[(self.refused - 1) % witnesses.len()]];
        }
        for witness in witnesses {
            match self.send(std::slice::from_ref(witness), 0..1) {
                Sent::Taken => {
                    self.refused = 0;
                    if after_chunk.as_ref().is_some_and(|after_chunk| after_chunk.id == witness.id) {
                        self.ahead = Some(witness.id.clone());
                    }
                    return true;
                }
                Sent::Later => return false,
                Sent::Refused(refusal) => last = Some(refusal),
            }
        }
        self.refused += 1;
        let Some(Refusal { status, reason }) = last else { return false };
        // Authentication failures concern all indices.
        let scope = if matches!(status, 401 | 407) { Scope::Server } else { Scope::Index(index.to_owned()) };
        self.shared.meter.note_trouble(NAME, (&scope, self.shared.name), Cause::Refused(status), &reason);
        self.wait();
        false
    }

    /// Sends the unsettled documents of a range in one request.
    fn send(&mut self, documents: &[Outgoing<'_>], range: Range<usize>) -> Sent {
        let documents: Vec<_> =
            documents[range].iter().filter(|outgoing| !self.settled.contains(&outgoing.id)).collect();
        if documents.is_empty() {
            return Sent::Taken;
        }
        let mut body = Vec::with_capacity(documents.iter().map(|outgoing| outgoing.document.len() + 128).sum());
        for outgoing in &documents {
            bulk::create(self.indices.of(outgoing.kind), &outgoing.id, outgoing.document, &mut body);
        }
        let answer = match self.client.ask("POST", BULK, "application/x-ndjson", &body) {
            Ok(answer) if answer.status == 200 => answer,
            Ok(answer) if answer.refuses() => return self.refusal(&answer),
            Ok(answer) => {
                let cause = if answer.status < 400 { Cause::Refused(answer.status) } else { Cause::Unavailable };
                return self.retry_later(&Scope::Server, cause, &self.client.refusal(&answer, IF_FORBIDDEN));
            }
            Err(Unanswered(cause, error)) => return self.retry_later(&Scope::Server, cause, &error),
        };
        match bulk::verdicts(&answer.body, documents.iter().map(|outgoing| &*outgoing.id)) {
            Ok(verdicts) => self.settle(&answer.host, &documents, verdicts),
            Err(problem) => {
                let problem = format!("{}: {problem}", answer.host);
                let error = OutputError::new(problem, "check that this address belongs to Elasticsearch");
                self.retry_later(&Scope::Server, Cause::Malformed, &error)
            }
        }
    }

    fn refusal(&self, answer: &Answer) -> Sent {
        self.shared.meter.failures.add(usize::from(answer.status != TOO_LARGE));
        let reason = self.client.refusal(answer, IF_FORBIDDEN).to_string();
        Sent::Refused(Refusal { status: answer.status, reason })
    }

    /// Acts on the server's verdict about each document.
    fn settle(&mut self, host: &str, documents: &[&Outgoing<'_>], verdicts: Vec<Verdict>) -> Sent {
        let (mut dead, mut trouble) = (Vec::new(), None);
        self.note_success(&Scope::Server);
        for (outgoing, verdict) in documents.iter().zip(verdicts) {
            match verdict {
                Verdict::Written => self.shared.meter.written.add(1),
                Verdict::Duplicate => {
                    self.shared.meter.written.add(1);
                    self.shared.meter.duplicates.add(1);
                }
                Verdict::Retry(status, reason) => {
                    trouble = Some((outgoing.kind, status, reason));
                    continue;
                }
                Verdict::Rejected(status, reason) => {
                    dead.push((*outgoing, status, reason));
                    continue;
                }
            }
            self.settled.insert(outgoing.id.clone());
        }
        if !self.write_dead_letters(dead) {
            return Sent::Later;
        }
        let Some((kind, status, reason)) = trouble else {
            let outgoing = documents[0];
            self.note_success(&Scope::Index(self.indices.of(outgoing.kind).to_owned()));
            self.backoff.reset();
            return Sent::Taken;
        };
        let cause = if matches!(status, 408 | 429 | 500..) { Cause::Unavailable } else { Cause::Refused(status) };
        let scope = Scope::Index(self.indices.of(kind).to_owned());
        self.fail_and_wait(&scope, cause, &format!("{host} does not take documents: {reason}"));
        Sent::Later
    }

    /// Writes a document that is at fault to the dead-letter file. Returns whether to go on; if not, waits before it
    /// returns.
    fn set_aside(&mut self, at_fault: Option<&Outgoing<'_>>, refusal: &Refusal) -> bool {
        let documents = at_fault.map(|outgoing| (outgoing, refusal.status, refusal.reason.clone()));
        self.write_dead_letters(documents.into_iter().collect())
    }

    /// Writes documents to the dead-letter file. Returns whether that succeeded. If not, waits before it returns.
    fn write_dead_letters(&mut self, documents: Vec<(&Outgoing<'_>, u16, String)>) -> bool {
        if documents.is_empty() {
            return true;
        }
        let ids: Vec<_> = documents.iter().map(|(outgoing, ..)| outgoing.id.clone()).collect();
        let dead: Vec<_> = documents
            .into_iter()
            .map(|(outgoing, status, reason)| DeadLetter {
                kind: outgoing.kind,
                id: &outgoing.id,
                document: outgoing.document,
                status,
                reason,
            })
            .collect();
        let kept = self.dead_letters.lock().keep(&dead);
        match kept {
            Ok(()) => {
                self.settled.extend(ids);
                self.note_success(&DEAD_LETTERS);
                true
            }
            Err(error) => {
                self.fail_and_wait(&DEAD_LETTERS, Cause::System, &error.to_string());
                false
            }
        }
    }

    fn note_success(&self, scope: &Scope) {
        let waiting = || self.shared.spool().as_ref().map_or(0, Spool::waiting);
        if self.shared.meter.is_troubled() {
            self.shared.meter.note_success((scope, self.shared.name), waiting());
        }
    }

    fn retry_later(&mut self, scope: &Scope, cause: Cause, error: &OutputError) -> Sent {
        self.fail_and_wait(scope, cause, &error.to_string());
        Sent::Later
    }

    /// Reports a failure, and waits.
    fn fail_and_wait(&mut self, scope: &Scope, cause: Cause, reason: &str) {
        self.shared.meter.note_failure(NAME, (scope, self.shared.name), cause, reason);
        self.wait();
    }

    fn wait(&mut self) {
        let until = Instant::now() + self.backoff.wait();
        let mut spool = self.shared.spool();
        loop {
            let until = self.shared.deadline().map_or(until, |deadline| deadline.min(until));
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || spool.is_none() {
                break;
            }
            self.shared.changed.wait_for(&mut spool, left);
        }
    }

    fn is_over(&self) -> bool {
        self.shared.deadline().is_some_and(|deadline| Instant::now() >= deadline)
    }
}
