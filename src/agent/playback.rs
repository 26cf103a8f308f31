//! Replays a recording instead of monitoring this host: its flows at a chosen rate, any number of times.

use std::cell::RefCell;
use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use socktrail::clock::Clock;
use socktrail::config::Config;
use socktrail::flow::Flow;
use socktrail::host::Host;
use socktrail::monitor::Received;
use socktrail::recording::{RecordingError, Replay};

use super::ReplayOptions;

/// The maximum number of flows in the channel to the agent.
const QUEUE: usize = 4096;
/// The maximum number of flows in a recording that is replayed more than once: they are kept in memory.
const MAX_FLOWS: usize = 100_000;

/// A recording that is being replayed.
#[derive(Debug)]
pub struct Playback {
    flows: Receiver<Received>,
    stopping: Arc<AtomicBool>,
    thread: RefCell<Option<JoinHandle<anyhow::Result<()>>>>,
    host: Host,
    clock: Clock,
}

impl Playback {
    /// Starts to replay the recording that the command line names.
    pub fn start(options: &ReplayOptions, config: &Config) -> anyhow::Result<Self> {
        let path = options.file.display();
        let file = File::open(&options.file).with_context(|| format!("opening {path}"))?;
        let replay = Replay::open(BufReader::new(file), (&config.monitor()).into())
            .with_context(|| format!("replaying {path}"))?;
        let (host, clock) = (replay.host().clone(), replay.clock());
        let (to_agent, flows) = bounded(QUEUE);
        let stopping = Arc::<AtomicBool>::default();
        let player = Player {
            to_agent,
            stopping: Arc::clone(&stopping),
            rate: options.rate,
            passes: options.times,
            started: Instant::now(),
            played: 0,
        };
        let thread = std::thread::Builder::new().name("playback".to_owned()).spawn(move || player.run(replay))?;
        Ok(Self { flows, stopping, thread: RefCell::new(Some(thread)), host, clock })
    }

    /// The next flow. Waits at most `timeout`.
    pub fn recv(&self, timeout: Duration) -> Received {
        match self.flows.recv_timeout(timeout) {
            Ok(received) => received,
            Err(RecvTimeoutError::Timeout) => Received::Idle,
            Err(RecvTimeoutError::Disconnected) => Received::Ended,
        }
    }

    /// Asks the playback to end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The recorded host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The recorded clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The error that ended the playback, if there is one.
    pub fn check_end(&self) -> anyhow::Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => anyhow::bail!("the thread that replays has failed; this is a bug: please report it"),
            None => Ok(()),
        }
    }
}

/// The state of the thread that replays.
struct Player {
    to_agent: Sender<Received>,
    stopping: Arc<AtomicBool>,
    /// Flows per second; `None` for as many as the agent takes.
    rate: Option<u32>,
    passes: u64,
    started: Instant,
    played: u64,
}

/// The reason to stop replaying.
enum Halt {
    Stopped,
    Failed(RecordingError),
}

impl From<RecordingError> for Halt {
    fn from(error: RecordingError) -> Self {
        Self::Failed(error)
    }
}

impl Player {
    fn run(mut self, replay: Replay<BufReader<File>>) -> anyhow::Result<()> {
        let (mut kept, mut highest) = (Vec::new(), 0);
        let replayed = replay.run(|flow, _| {
            highest = highest.max(flow.number);
            if self.passes > 1 && kept.len() <= MAX_FLOWS {
                kept.push(flow.clone());
            }
            self.play(flow)
        });
        match replayed {
            Ok(replayed) => anyhow::ensure!(
                replayed.complete,
                "the recording is incomplete: its end is missing; everything before was replayed"
            ),
            Err(Halt::Stopped) => return Ok(()),
            Err(Halt::Failed(error)) => return Err(error.into()),
        }
        anyhow::ensure!(
            kept.len() <= MAX_FLOWS,
            "a recording of more than {MAX_FLOWS} flows can be replayed only once"
        );
        for pass in 1..self.passes {
            for flow in &kept {
                // The flows of each pass have new numbers, so that documents of different passes have different ids.
                let mut flow = flow.clone();
                flow.number += pass * highest;
                if self.play(flow).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn play(&mut self, flow: Flow) -> Result<(), Halt> {
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.played as f64 / f64::from(rate));
            while let Some(early) = due.checked_sub(self.started.elapsed()).filter(|early| !early.is_zero()) {
                if self.stopping.load(Ordering::Relaxed) {
                    return Err(Halt::Stopped);
                }
                std::thread::sleep(early.min(Duration::from_millis(50)));
            }
        }
        self.played += 1;
        let gone = self.to_agent.send(Received::Flow(Box::new(flow))).is_err();
        if gone || self.stopping.load(Ordering::Relaxed) { Err(Halt::Stopped) } else { Ok(()) }
    }
}
