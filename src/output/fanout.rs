//! Several outputs at once, each on a thread of its own.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::meter::{Meter, Reading};
use super::queue::{Popped, Queue};
use super::trouble::{Cause, Scope};
use super::{Batch, OutputError};

/// How often an output that has nothing to do looks at the time.
const TICK: Duration = Duration::from_millis(200);
/// How long after the deadline an output may take to notice it.
const GRACE: Duration = Duration::from_secs(1);
/// How often to look whether all have ended.
const POLL: Duration = Duration::from_millis(5);
/// How long to wait before something is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The scope of trouble with writing documents.
const WRITING: Scope = Scope::Local("writing");
/// The scope of trouble with periodic work, which is due even without new documents.
pub(super) const UPKEEP: Scope = Scope::Local("syncing or rotating");

/// Where documents go. Called on one thread.
pub trait Output: Send {
    /// Takes documents. After an error nothing of the batch was taken, and it is given again.
    ///
    /// # Errors
    /// It is not possible now.
    fn write(&mut self, batch: &Batch) -> Result<(), OutputError>;

    /// Does what is due by the time alone. Called between batches, and a few times a second when none come.
    ///
    /// # Errors
    /// It is not possible now.
    fn tick(&mut self, now: Instant) -> Result<(), OutputError>;

    /// Ends: whatever is still on its way has until `deadline`. What it has taken, and can keep nowhere, it adds to `left`.
    ///
    /// # Errors
    /// Something could not be written.
    fn close(self: Box<Self>, deadline: Instant, left: &mut Batch) -> Result<(), OutputError>;
}

/// One output that runs.
struct Running {
    name: &'static str,
    queue: Arc<Queue>,
    meter: Arc<Meter>,
    deadline: Arc<std::sync::OnceLock<Instant>>,
    /// Comes to its end with what could not be written by the deadline.
    thread: JoinHandle<Vec<Arc<Batch>>>,
}

/// What an output that was closed could not write, for the one that takes its place.
#[derive(Debug)]
pub struct Unwritten {
    output: &'static str,
    batches: Vec<Arc<Batch>>,
    meter: Arc<Meter>,
}

/// All outputs that run.
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
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts one. At most `queue_bytes` of documents wait for it; `meter` is what it counts with.
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

    /// Hands documents to every output. Never waits: an output whose queue is full loses them, and counts them.
    pub fn send(&self, batch: &Arc<Batch>) {
        for Running { queue, meter, .. } in &self.running {
            meter.offered.add(batch.len());
            if !queue.push(batch) {
                meter.dropped.add(batch.len());
            }
        }
    }

    /// Whether every output has room for a batch of this size. A source that can wait asks this first.
    pub fn have_room(&self, bytes: usize) -> bool {
        self.running.iter().all(|running| running.queue.has_room(bytes))
    }

    /// What each has counted.
    pub fn readings(&self) -> Vec<Reading> {
        self.running.iter().map(|running| running.meter.read(running.name)).collect()
    }

    /// Ends all of them: what was handed over is written, within the time given, or else counted as lost.
    pub fn close(self, within: Duration) -> Vec<Reading> {
        self.close_while(within, || true)
    }

    /// The same, as long as `patience` says so; it is asked many times a second.
    pub fn close_while(self, within: Duration, patience: impl FnMut() -> bool) -> Vec<Reading> {
        let lose = |unwritten: Unwritten| {
            unwritten.lose();
            unwritten.meter.read(unwritten.output)
        };
        self.end(within, patience).into_iter().map(lose).collect()
    }

    /// Ends all of them, for others to take their place: what cannot be written within the time given is returned, for
    /// them to [go on](Self::go_on) with. An output that hangs in the system beyond that, or when `patience` says that it is
    /// enough, is left to itself.
    pub fn end(self, within: Duration, mut patience: impl FnMut() -> bool) -> Vec<Unwritten> {
        let deadline = Instant::now() + within;
        for running in &self.running {
            let _ = running.deadline.set(deadline);
            running.queue.close();
        }
        let hangs = |running: &Running| !running.thread.is_finished();
        let mut until = deadline + GRACE;
        while self.running.iter().any(hangs) && Instant::now() < until {
            if !patience() {
                until = until.min(Instant::now() + GRACE);
            }
            std::thread::sleep(POLL);
        }
        let join = |running: Running| {
            if hangs(&running) {
                tracing::warn!("{}: it is not done yet, and is left to itself", running.name);
                let batches = running.queue.rest();
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

    /// Goes on with what others before could not write. To be called before anything is [sent](Self::send). What was for an
    /// output that there is no more is counted as lost.
    pub fn go_on(&self, unwritten: Vec<Unwritten>) {
        for unwritten in unwritten {
            match self.running.iter().find(|running| running.name == unwritten.output) {
                Some(running) => running.queue.restore(unwritten.batches),
                None => unwritten.lose(),
            }
        }
    }
}

impl Unwritten {
    fn lose(&self) {
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
    /// Returns what could not be written by the deadline.
    fn run(mut self) -> Vec<Arc<Batch>> {
        let mut unwritten = Vec::new();
        loop {
            match self.queue.pop(TICK) {
                Popped::Batch(batch) if self.is_late() || !self.write(&batch) => {
                    unwritten = self.queue.rest();
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
            self.meter.failed(self.name, (&WRITING, self.name), Cause::System, &error.to_string());
        }
        self.meter.log_ends(self.name, true);
        if !left.is_empty() {
            // It had taken them before the others.
            unwritten.insert(0, Arc::new(left));
        }
        unwritten
    }

    fn tick(&mut self) {
        match self.output.tick(Instant::now()) {
            Ok(()) => self.meter.worked((&UPKEEP, self.name), 0),
            Err(error) => self.meter.failed(self.name, (&UPKEEP, self.name), Cause::System, &error.to_string()),
        }
        self.meter.log_ends(self.name, false);
    }

    fn is_late(&self) -> bool {
        self.deadline.get().is_some_and(|deadline| Instant::now() >= *deadline)
    }

    /// Writes a batch, however often that has to be tried, unless the time has come to end. Whether it is written.
    fn write(&mut self, batch: &Batch) -> bool {
        let mut waited = false;
        loop {
            match self.output.write(batch) {
                Ok(()) => {
                    let waiting = if waited { batch.len() + self.queue.documents() } else { 0 };
                    self.meter.worked((&WRITING, self.name), waiting as u64);
                    return true;
                }
                Err(error) => self.meter.failed(self.name, (&WRITING, self.name), Cause::System, &error.to_string()),
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

    /// Fails so often, then keeps what it gets.
    struct Kept {
        failures: usize,
        lines: Arc<Mutex<Vec<u8>>>,
        closed: bool,
    }

    impl Output for Kept {
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

        fn close(mut self: Box<Self>, _deadline: Instant, _left: &mut Batch) -> Result<(), OutputError> {
            self.closed = true;
            Ok(())
        }
    }

    fn batch(text: &str) -> Arc<Batch> {
        let mut batch = Batch::default();
        batch.push_json(Kind::Flow, text.as_bytes());
        Arc::new(batch)
    }

    fn started(outputs: &mut Outputs, name: &'static str, failures: usize) -> Arc<Mutex<Vec<u8>>> {
        let lines = Arc::<Mutex<Vec<u8>>>::default();
        let output = Box::new(Kept { failures, lines: Arc::clone(&lines), closed: false });
        outputs.start(name, output, 1000, Arc::default()).unwrap();
        lines
    }

    #[test]
    fn each_output_gets_all_in_order() {
        let mut outputs = Outputs::new();
        let (one, other) = (started(&mut outputs, "one", 0), started(&mut outputs, "other", 2));
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
    fn one_that_stands_still_harms_no_other_and_what_it_loses_is_counted() {
        let mut outputs = Outputs::new();
        let (stuck, well) = (started(&mut outputs, "stuck", usize::MAX), started(&mut outputs, "well", 0));
        let long = "x".repeat(300);
        for sent in 1..=20 {
            outputs.send(&batch(&long));
            // Its queue is as small as the other's.
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

    /// Takes its time.
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
    fn the_end_waits_neither_for_what_is_slow_nor_for_what_hangs() {
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
    fn the_end_waits_no_longer_than_there_is_patience() {
        let mut outputs = Outputs::new();
        outputs.start("slow", Box::new(Slow(Duration::from_secs(3600))), 1000, Arc::default()).unwrap();
        outputs.send(&batch("a"));
        let started = Instant::now();
        outputs.close_while(Duration::from_secs(3600), || started.elapsed() < Duration::from_millis(50));
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    }

    #[test]
    fn what_one_could_not_write_another_goes_on_with() {
        let mut before = Outputs::new();
        let meter = Arc::<Meter>::default();
        let stuck = Kept { failures: usize::MAX, lines: Arc::default(), closed: false };
        before.start("one", Box::new(stuck), 1000, Arc::clone(&meter)).unwrap();
        started(&mut before, "other", usize::MAX);
        for text in ["a", "b", "c"] {
            before.send(&batch(text));
        }
        let mut meanwhile = 0;
        let unwritten = before.end(Duration::from_millis(100), || {
            meanwhile += 1;
            true
        });
        assert!(meanwhile > 3);
        assert_eq!(meter.dropped.get(), 0);
        let gone = Arc::clone(&unwritten[1].meter);

        let mut after = Outputs::new();
        let lines = started(&mut after, "one", 0);
        after.go_on(unwritten);
        after.send(&batch("d"));
        after.close(Duration::from_secs(60));
        assert_eq!(*lines.lock(), b"a\nb\nc\nd\n", "in order");
        assert_eq!(gone.dropped.get(), 3, "nobody goes on with the other's");
    }
}
