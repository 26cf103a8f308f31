//! The queue of an output, with a limit on its memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Batch;

/// Batches between the thread that makes documents and the thread of an output.
#[derive(Debug)]
pub struct Queue {
    max_bytes: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    closed: bool,
}

impl Inner {
    fn has_room(&self, bytes: usize, max_bytes: usize) -> bool {
        self.batches.is_empty() || self.bytes + bytes <= max_bytes
    }
}

/// The result of [`Queue::pop`].
#[derive(Debug, PartialEq, Eq)]
pub enum Popped {
    /// The oldest batch.
    Batch(Arc<Batch>),
    /// No batch arrived in time.
    Idle,
    /// The queue is empty and closed.
    Closed,
}

impl Queue {
    /// A queue for up to `max_bytes` of documents. An empty queue accepts any batch.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, inner: Mutex::default(), changed: Condvar::new() }
    }

    /// Adds a batch. Returns false if there is no room for it. Never blocks.
    pub fn push(&self, batch: &Arc<Batch>) -> bool {
        let mut inner = self.lock();
        let bytes = batch.lines().len();
        if inner.closed || !inner.has_room(bytes, self.max_bytes) {
            return false;
        }
        inner.bytes += bytes;
        inner.batches.push_back(Arc::clone(batch));
        drop(inner);
        self.changed.notify_one();
        true
    }

    /// Takes the oldest batch. Waits at most `timeout` for one.
    pub fn pop(&self, timeout: Duration) -> Popped {
        let until = Instant::now() + timeout;
        let mut inner = self.lock();
        loop {
            if let Some(batch) = inner.batches.pop_front() {
                inner.bytes -= batch.lines().len();
                return Popped::Batch(batch);
            }
            let left = until.saturating_duration_since(Instant::now());
            match (inner.closed, left) {
                (true, _) => return Popped::Closed,
                (false, Duration::ZERO) => return Popped::Idle,
                (false, left) => {
                    self.changed.wait_for(&mut inner, left);
                }
            }
        }
    }

    /// Puts batches before all others, even if the queue is full.
    pub fn restore(&self, batches: Vec<Arc<Batch>>) {
        let mut inner = self.lock();
        for batch in batches.into_iter().rev() {
            inner.bytes += batch.lines().len();
            inner.batches.push_front(batch);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Takes all batches.
    pub fn take_all(&self) -> Vec<Arc<Batch>> {
        let mut inner = self.lock();
        inner.bytes = 0;
        std::mem::take(&mut inner.batches).into()
    }

    /// Waits for `time`, or until the queue is closed.
    pub fn pause(&self, time: Duration) {
        let open = |inner: &mut Inner| !inner.closed;
        self.changed.wait_while_for(&mut self.lock(), open, time);
    }

    /// Closes the queue: it accepts no more batches, but those in it can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Whether the queue was closed.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The number of documents in the queue.
    pub fn documents(&self) -> usize {
        self.lock().batches.iter().map(|batch| batch.len()).sum()
    }

    /// Whether there is room for a batch of this size.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.lock().has_room(bytes, self.max_bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Kind;

    fn batch(text: &[u8]) -> Arc<Batch> {
        let mut batch = Batch::default();
        batch.push_json(Kind::Flow, text);
        Arc::new(batch)
    }

    #[test]
    fn it_is_bounded_by_bytes_and_keeps_the_order() {
        let queue = Queue::new(10);
        assert!(queue.push(&batch(b"abcd")) && queue.push(&batch(b"efgh")));
        assert!(!queue.push(&batch(b"i")), "ten bytes are in it");
        assert_eq!(queue.pop(Duration::ZERO), Popped::Batch(batch(b"abcd")));
        assert!(queue.push(&batch(b"i")));
        assert_eq!(queue.pop(Duration::ZERO), Popped::Batch(batch(b"efgh")));
        assert_eq!(queue.pop(Duration::ZERO), Popped::Batch(batch(b"i")));
        assert_eq!(queue.pop(Duration::from_millis(1)), Popped::Idle);
        assert!(queue.push(&batch(b"much longer than the bound")), "an empty queue accepts any batch");
    }

    #[test]
    fn what_is_in_a_closed_queue_can_be_taken() {
        let queue = Queue::new(10);
        assert!(queue.push(&batch(b"a")));
        queue.close();
        assert!(!queue.push(&batch(b"b")));
        assert_eq!(queue.pop(Duration::MAX / 4), Popped::Batch(batch(b"a")));
        assert_eq!(queue.pop(Duration::from_secs(60)), Popped::Closed);
        let start = Instant::now();
        queue.pause(Duration::from_secs(60));
        assert!(start.elapsed() < Duration::from_secs(30), "a pause ends when the queue is closed");
    }

    #[test]
    fn a_waiting_thread_is_woken() {
        let queue = Arc::new(Queue::new(10));
        let (start, its_queue) = (Instant::now(), Arc::clone(&queue));
        let waiting = std::thread::spawn(move || its_queue.pop(Duration::from_secs(60)));
        // Gives the thread time to begin its wait.
        std::thread::sleep(Duration::from_millis(50));
        assert!(queue.push(&batch(b"a")));
        assert_eq!(waiting.join().unwrap(), Popped::Batch(batch(b"a")));
        assert!(start.elapsed() < Duration::from_secs(30), "the push ends the wait");
    }
}
