//! Sends documents to several outputs, each on its own thread.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::meter::{Meter, Reading};
use super::queue::{Popped, Queue};
use super::trouble::{Cause, Scope};
use super::{Batch, OutputError};

/// How often [`Output::tick`] is called while no documents arrive.
const TICK: Duration = Duration::from_millis(200);
/// How long to wait beyond the deadline for outputs that are about to end.
const GRACE: Duration = Duration::from_secs(1);
/// How often to check whether all outputs have ended.
const POLL: Duration = Duration::from_millis(5);
/// How long to wait before a failed write is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The scope of trouble with writing documents.
const WRITING: Scope = Scope::Local("writing");
/// The scope of trouble with periodic work, which is due even without new documents.
pub(super) const UPKEEP: Scope = Scope::Local("syncing or rotating");

/// An output for documents. All calls come from one thread.
pub trait Output: Send {
    /// Takes documents. After an error, nothing of the batch was taken, and the same batch is passed again.
    ///
    /// # Errors
    /// The documents cannot be taken now.
    fn write(&mut self, batch: &Batch) -> Result<(), OutputError>;

    /// Does periodic work. Called between batches, and a few times per second while there are none.
    ///
    /// # Errors
    /// The work cannot be done now.
    fn tick(&mut self, now: Instant) -> Result<(), OutputError>;

    /// Ends the output. It may send documents until `deadline`. It adds to `left` the documents that it has taken, but neither
    /// sent nor stored.
    ///
    /// # Errors
    /// Something could not be written.
    fn close(self: Box<Self>, deadline: Instant, left: &mut Batch) -> Result<(), OutputError>;
}

/// A running output.
struct Running {
    name: &'static str,
    queue: Arc<Queue>,
    meter: Arc<Meter>,
    deadline: Arc<std::sync::OnceLock<Instant>>,
    /// Returns the batches that were not written by the deadline.
    thread: JoinHandle<Vec<Arc<Batch>>>,
}

/// Documents that a closed output has not written. [`Outputs::restore`] passes them to its successor.
#[derive(Debug)]
pub struct Unwritten {
    output: &'static str,
    batches: Vec<Arc<Batch>>,
    meter: Arc<Meter>,
}

/// The running outputs.
#[derive(Default)]
pub struct Outputs {
    running: Vec<Running>,
}

impl std::fmt::Debug for Outputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.running.iter().map(|running| running.name)).finish()
    }
}

impl Outputs {
    /// No outputs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts an output. Up to `queue_bytes` of documents wait in its queue. `meter` has its counters.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(
        &mut self,
        name: &'static str,
        output: Box<dyn Output>,
        queue_bytes: usize,
        meter: Arc<Meter>,
    ) -> io::Result<()> {
        let queue = Arc::new(Queue::new(queue_bytes));
        let deadline = Arc::default();
        let worker = Worker {
            name,
            output,
            queue: Arc::clone(&queue),
            meter: Arc::clone(&meter),
            deadline: Arc::clone(&deadline),
        };
        let thread = std::thread::Builder::new().name(format!("output-{name}")).spawn(move || worker.run())?;
        self.running.push(Running { name, queue, meter, deadline, thread });
        Ok(())
    }

    /// Passes documents to all outputs. Never blocks: if the queue of an output is full, they are lost for this output, and
    /// counted.
    pub fn send(&self, batch: &Arc<Batch>) {
        for Running { queue, meter, .. } in &self.running {
            meter.offered.add(batch.len());
            if !queue.push(batch) {
                meter.dropped.add(batch.len());
            }
        }
    }

    /// Whether all queues have room for a batch of this size. A source that can wait checks this first.
    pub fn have_room(&self, bytes: usize) -> bool {
        self.running.iter().all(|running| running.queue.has_room(bytes))
    }

    /// The counters of all outputs.
    pub fn readings(&self) -> Vec<Reading> {
        self.running.iter().map(|running| running.meter.read(running.name)).collect()
    }

    /// Ends all outputs. Documents that are not written within the given time are counted as lost.
    pub fn close(self, within: Duration) -> Vec<Reading> {
        self.close_while(within, || true)
    }

    /// Like [`close`](Self::close), but ends early when `keep_waiting`, which is called many times per second, returns false.
    pub fn close_while(self, within: Duration, keep_waiting: impl FnMut() -> bool) -> Vec<Reading> {
        let read = |unwritten: Unwritten| {
            unwritten.count_as_lost();
            unwritten.meter.read(unwritten.output)
        };
        self.end(within, keep_waiting).into_iter().map(read).collect()
    }

    /// Ends all outputs, and returns the documents that are not written within the given time, for [`restore`](Self::restore).
    /// The thread of an output that hangs in a system call beyond that time, or after `keep_waiting` has returned false, is
    /// left running.
    pub fn end(self, within: Duration, mut keep_waiting: impl FnMut() -> bool) -> Vec<Unwritten> {
        let deadline = Instant::now() + within;
        for running in &self.running {
            let _ = running.deadline.set(deadline);
            running.queue.close();
        }
        let hangs = |running: &Running| !running.thread.is_finished();
        let mut until = deadline + GRACE;
        while self.running.iter().any(hangs) && Instant::now() < until {
            if !keep_waiting() {
                until = until.min(Instant::now() + GRACE);
            }
            std::thread::sleep(POLL);
        }
        let join = |running: Running| {
            if hangs(&running) {
                tracing::warn!("{}: it does not end in time; its thread is left running", running.name);
                let batches = running.queue.take_all();
                return Unwritten { output: running.name, batches, meter: running.meter };
            }
            let batches = running.thread.join().unwrap_or_else(|_| {
                tracing::error!("{}: its thread has failed; this is a bug: please report it", running.name);
                Vec::new()
            });
            Unwritten { output: running.name, batches, meter: running.meter }
        };
        self.running.into_iter().map(join).collect()
    }

    /// Passes on the documents that previous outputs have not written. Call it before [`send`](Self::send). Documents of an output
    /// that does not exist any more are counted as lost.
    pub fn restore(&self, unwritten: Vec<Unwritten>) {
        for unwritten in unwritten {
            match self.running.iter().find(|running| running.name == unwritten.output) {
                Some(running) => running.queue.restore(unwritten.batches),
                None => unwritten.count_as_lost(),
            }
        }
    }
}

impl Unwritten {
    fn count_as_lost(&self) {
        self.meter.dropped.add(self.batches.iter().map(|batch| batch.len()).sum());
    }
}

/// The thread of an output.
struct Worker {
    name: &'static str,
    output: Box<dyn Output>,
    queue: Arc<Queue>,
    meter: Arc<Meter>,
    deadline: Arc<std::sync::OnceLock<Instant>>,
}

impl Worker {
    /// Runs the output. Returns the batches that were not written by the deadline.
    fn run(mut self) -> Vec<Arc<Batch>> {
        let mut unwritten = Vec::new();
        loop {
            match self.queue.pop(TICK) {
                Popped::Batch(batch) if self.is_late() || !self.write(&batch) => {
                    unwritten = self.queue.take_all();
                    unwritten.insert(0, batch);
                    break;
                }
                Popped::Batch(_) | Popped::Idle => {}
                Popped::Closed => break,
            }
            self.tick();
        }
        let deadline = self.deadline.get().copied().unwrap_or_else(Instant::now);
        let mut left = Batch::default();
        if let Err(error) = self.output.close(deadline, &mut left) {
            self.meter.note_failure(self.name, (&WRITING, self.name), Cause::System, &error.to_string());
        }
        self.meter.log_ends(self.name, true);
        if !left.is_empty() {
            // The output took these documents before those in the queue.
            unwritten.insert(0, Arc::new(left));
        }
        unwritten
    }

    fn tick(&mut self) {
        match self.output.tick(Instant::now()) {
            Ok(()) => self.meter.note_success((&UPKEEP, self.name), 0),
            Err(error) => self.meter.note_failure(self.name, (&UPKEEP, self.name), Cause::System, &error.to_string()),
        }
        self.meter.log_ends(self.name, false);
    }

    fn is_late(&self) -> bool {
        self.deadline.get().is_some_and(|deadline| Instant::now() >= *deadline)
    }

    /// Writes a batch, and retries until the deadline. Returns whether it was written.
    fn write(&mut self, batch: &Batch) -> bool {
        let mut waited = false;
        loop {
            match self.output.write(batch) {
                Ok(()) => {
                    let waiting = if waited { batch.len() + self.queue.documents() } else { 0 };
                    self.meter.note_success((&WRITING, self.name), waiting as u64);
                    return true;
                }
                Err(error) => {
                    self.meter.note_failure(self.name, (&WRITING, self.name), Cause::System, &error.to_string());
                }
            }
            waited = true;
            if self.is_late() {
                return false;
            }
            if self.queue.is_closed() {
                std::thread::sleep(RETRY.min(Duration::from_millis(50)));
            } else {
                self.queue.pause(RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::output::Kind;

    /// Fails this many times, then collects the lines that it gets.
    struct Flaky {
        failures: usize,
        lines: Arc<Mutex<Vec<u8>>>,
    }

    impl Output for Flaky {
        fn write(&mut self, batch: &Batch) -> Result<(), OutputError> {
            if self.failures > 0 {
                self.failures -= 1;
                return Err(OutputError::new("no room", "make some"));
            }
            self.lines.lock().extend_from_slice(batch.lines());
            Ok(())
        }

        fn tick(&mut self, _now: Instant) -> Result<(), OutputError> {
            Ok(())
        }

        fn close(self: Box<Self>, _deadline: Instant, _left: &mut Batch) -> Result<(), OutputError> {
            Ok(())
        }
    }

    fn batch(text: &str) -> Arc<Batch> {
        let mut batch = Batch::default();
        batch.push_json(Kind::Flow, text.as_bytes());
        Arc::new(batch)
    }

    fn start(outputs: &mut Outputs, name: &'static str, failures: usize) -> Arc<Mutex<Vec<u8>>> {
        let lines = Arc::<Mutex<Vec<u8>>>::default();
        let output = Box::new(Flaky { failures, lines: Arc::clone(&lines) });
        outputs.start(name, output, 1000, Arc::default()).unwrap();
        lines
    }

    #[test]
    fn each_output_gets_all_in_order() {
        let mut outputs = Outputs::new();
        let (one, other) = (start(&mut outputs, "one", 0), start(&mut outputs, "other", 2));
        for text in ["a", "b", "c"] {
            outputs.send(&batch(text));
        }
        let readings = outputs.close(Duration::from_secs(60));
        assert_eq!(*one.lock(), b"a\nb\nc\n");
        assert_eq!(*other.lock(), b"a\nb\nc\n", "what failed was tried again");
        assert_eq!(
            readings.iter().map(|reading| (reading.offered, reading.failures)).collect::<Vec<_>>(),
            [(3, 0), (3, 2)]
        );
    }

    #[test]
    fn a_stalled_output_delays_no_other_and_its_losses_are_counted() {
        let mut outputs = Outputs::new();
        let (stuck, well) = (start(&mut outputs, "stuck", usize::MAX), start(&mut outputs, "well", 0));
        let long = "x".repeat(300);
        for sent in 1..=20 {
            outputs.send(&batch(&long));
            // This output must lose nothing, and its queue is as small as that of the stuck one.
            while well.lock().len() < sent * 301 {
                std::thread::yield_now();
            }
        }
        let readings = outputs.close(Duration::from_millis(100));
        assert_eq!(well.lock().len(), 20 * 301);
        assert!(stuck.lock().is_empty());
        assert_eq!((readings[0].offered, readings[0].dropped), (20, 20));
        assert_eq!(readings[0].trouble.as_deref(), Some("no room: make some"));
        assert_eq!(readings[1].dropped, 0);
    }

    /// Each write takes this long.
    struct Slow(Duration);

    impl Output for Slow {
        fn write(&mut self, _batch: &Batch) -> Result<(), OutputError> {
            std::thread::sleep(self.0);
            Ok(())
        }

        fn tick(&mut self, _now: Instant) -> Result<(), OutputError> {
            Ok(())
        }

        fn close(self: Box<Self>, _deadline: Instant, _left: &mut Batch) -> Result<(), OutputError> {
            Ok(())
        }
    }

    #[test]
    fn the_end_waits_neither_for_slow_nor_for_hanging_outputs() {
        for (pace, least) in [(Duration::from_millis(40), 80), (Duration::from_secs(3600), 98)] {
            let mut outputs = Outputs::new();
            outputs.start("slow", Box::new(Slow(pace)), 100_000, Arc::default()).unwrap();
            for _ in 0..100 {
                outputs.send(&batch("a"));
            }
            let started = Instant::now();
            let readings = outputs.close(Duration::from_millis(200));
            assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
            assert!(readings[0].dropped >= least, "{pace:?}: {} are counted as lost", readings[0].dropped);
        }
    }

    #[test]
    fn the_end_comes_early_if_keep_waiting_returns_false() {
        let mut outputs = Outputs::new();
        outputs.start("slow", Box::new(Slow(Duration::from_secs(3600))), 1000, Arc::default()).unwrap();
        outputs.send(&batch("a"));
        let started = Instant::now();
        outputs.close_while(Duration::from_secs(3600), || started.elapsed() < Duration::from_millis(50));
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    }

    #[test]
    fn the_next_output_gets_the_documents_that_the_previous_one_has_not_written() {
        let mut before = Outputs::new();
        let meter = Arc::<Meter>::default();
        let stuck = Flaky { failures: usize::MAX, lines: Arc::default() };
        before.start("one", Box::new(stuck), 1000, Arc::clone(&meter)).unwrap();
        start(&mut before, "other", usize::MAX);
        for text in ["a", "b", "c"] {
            before.send(&batch(text));
        }
        let mut calls = 0;
        let unwritten = before.end(Duration::from_millis(100), || {
            calls += 1;
            true
        });
        assert!(calls > 3, "`keep_waiting` is called while outputs end");
        assert_eq!(meter.dropped.get(), 0);
        let other = Arc::clone(&unwritten[1].meter);

        let mut after = Outputs::new();
        let lines = start(&mut after, "one", 0);
        after.restore(unwritten);
        after.send(&batch("d"));
        after.close(Duration::from_secs(60));
        assert_eq!(*lines.lock(), b"a\nb\nc\nd\n", "in order");
        assert_eq!(other.dropped.get(), 3, "there is no output named `other` any more");
    }
}
