//! Several outputs at once, each on a thread of its own.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::meter::{Meter, Reading};
use super::queue::{Popped, Queue};
use super::{Batch, OutputError};

/// How often an output that has nothing to do looks at the time.
const TICK: Duration = Duration::from_millis(200);
/// How long to wait before something is tried again.
const RETRY: Duration = Duration::from_millis(500);

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

    /// Ends: whatever is still on its way has until `deadline`.
    ///
    /// # Errors
    /// Something could not be written.
    fn close(self: Box<Self>, deadline: Instant) -> Result<(), OutputError>;
}

/// One output that runs.
struct Running {
    name: &'static str,
    queue: Arc<Queue>,
    meter: Arc<Meter>,
    deadline: Arc<std::sync::OnceLock<Instant>>,
    thread: JoinHandle<()>,
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

    /// Ends all of them: what was handed over is written, within the time given.
    pub fn close(self, within: Duration) -> Vec<Reading> {
        let deadline = Instant::now() + within;
        for running in &self.running {
            let _ = running.deadline.set(deadline);
            running.queue.close();
        }
        let join = |running: Running| {
            if running.thread.join().is_err() {
                tracing::error!("{}: its thread has failed; this is a bug: please report it", running.name);
            }
            running.meter.read(running.name)
        };
        self.running.into_iter().map(join).collect()
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
    fn run(mut self) {
        loop {
            match self.queue.pop(TICK) {
                Popped::Batch(batch) => self.write(&batch),
                Popped::Idle => {}
                Popped::Closed => break,
            }
            if let Err(error) = self.output.tick(Instant::now()) {
                self.meter.failed(self.name, &error.to_string());
            }
        }
        let deadline = self.deadline.get().copied().unwrap_or_else(Instant::now);
        if let Err(error) = self.output.close(deadline) {
            self.meter.failed(self.name, &error.to_string());
        }
    }

    /// Writes a batch, however often that has to be tried, unless the time has come to end.
    fn write(&mut self, batch: &Batch) {
        loop {
            match self.output.write(batch) {
                Ok(()) => {
                    self.meter.worked(self.name);
                    return;
                }
                Err(error) => self.meter.failed(self.name, &error.to_string()),
            }
            if self.deadline.get().is_some_and(|deadline| Instant::now() >= *deadline) {
                self.meter.dropped.add(batch.len());
                return;
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
    use std::sync::Mutex;

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
            self.lines.lock().unwrap().extend_from_slice(batch.lines());
            Ok(())
        }

        fn tick(&mut self, _now: Instant) -> Result<(), OutputError> {
            Ok(())
        }

        fn close(mut self: Box<Self>, _deadline: Instant) -> Result<(), OutputError> {
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
        assert_eq!(*one.lock().unwrap(), b"a\nb\nc\n");
        assert_eq!(*other.lock().unwrap(), b"a\nb\nc\n", "what failed was tried again");
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
            while well.lock().unwrap().len() < sent * 301 {
                std::thread::yield_now();
            }
        }
        let readings = outputs.close(Duration::from_millis(100));
        assert_eq!(well.lock().unwrap().len(), 20 * 301);
        assert!(stuck.lock().unwrap().is_empty());
        assert_eq!((readings[0].offered, readings[0].dropped), (20, 20));
        assert_eq!(readings[0].trouble.as_deref(), Some("no room: make some"));
        assert_eq!(readings[1].dropped, 0);
    }
}
