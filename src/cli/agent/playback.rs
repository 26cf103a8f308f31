//! A recording in place of the kernel: the same flows at a chosen speed, as often as wanted.

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
use socktrail::monitor::{Options, Received};
use socktrail::recording::{RecordingError, Replay};
use socktrail::state;

use super::super::args::AgentArgs;

/// How many flows may wait.
const QUEUE: usize = 4096;
/// How many flows a recording may have that is played more than once.
const MOST: usize = 100_000;

/// A recording that is played.
#[derive(Debug)]
pub struct Playback {
    flows: Receiver<Received>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    host: Host,
    clock: Clock,
}

impl Playback {
    /// Begins to play the recording that the command line names.
    pub fn start(args: &AgentArgs, config: &Config) -> anyhow::Result<Self> {
        let path = args.replay.as_deref().context("no recording is named")?;
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let config = of_flows(config.monitor());
        let replay =
            Replay::open(BufReader::new(file), config).with_context(|| format!("replaying {}", path.display()))?;
        let (host, clock) = (replay.host().clone(), replay.clock());
        let (to_agent, flows) = bounded(QUEUE);
        let stopping = Arc::<AtomicBool>::default();
        let player = Player {
            to_agent,
            stopping: Arc::clone(&stopping),
            pace: args.replay_rate,
            passes: args.replay_times,
            started: Instant::now(),
            played: 0,
        };
        let thread = std::thread::Builder::new().name("playback".to_owned()).spawn(move || player.run(replay))?;
        Ok(Self { flows, stopping, thread: Some(thread), host, clock })
    }

    /// The next flow, waited for at most `timeout`.
    pub fn recv(&self, timeout: Duration) -> Received {
        match self.flows.recv_timeout(timeout) {
            Ok(received) => received,
            Err(RecvTimeoutError::Timeout) => Received::Idle,
            Err(RecvTimeoutError::Disconnected) => Received::Ended,
        }
    }

    /// Asks it to end.
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

    /// Why it has ended.
    pub fn ended(&mut self) -> anyhow::Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => anyhow::bail!("the thread that replays has failed; this is a bug: please report it"),
            None => Ok(()),
        }
    }
}

/// What the options of a monitor say of flows.
fn of_flows(options: Options) -> state::Config {
    state::Config {
        flow_inactive_timeout: options.flow_inactive_timeout,
        flow_termination_timeout: options.flow_termination_timeout,
        flow_report_interval: options.flow_report_interval,
        socket_inactive_timeout: options.socket_inactive_timeout,
        max_flows: options.max_flows,
        max_sockets: options.max_sockets,
        max_processes: options.max_processes,
        filter: options.filter,
        dns_ports: options.dns.ports,
        ..state::Config::default()
    }
}

/// The thread that plays.
struct Player {
    to_agent: Sender<Received>,
    stopping: Arc<AtomicBool>,
    /// Flows a second.
    pace: Option<u32>,
    passes: u64,
    started: Instant,
    played: u64,
}

/// It was asked to end, or cannot go on.
enum Halt {
    Asked,
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
            if self.passes > 1 && kept.len() <= MOST {
                kept.push(flow.clone());
            }
            self.play(flow)
        });
        match replayed {
            Ok(_) => {}
            Err(Halt::Asked) => return Ok(()),
            Err(Halt::Failed(error)) => return Err(error.into()),
        }
        anyhow::ensure!(kept.len() <= MOST, "a recording of more than {MOST} flows can be played only once");
        for pass in 1..self.passes {
            for flow in &kept {
                // Another flow than in the pass before.
                let number = flow.number + pass * highest;
                if self.play(Flow { number, ..flow.clone() }).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn play(&mut self, flow: Flow) -> Result<(), Halt> {
        if let Some(pace) = self.pace {
            let due = Duration::from_secs_f64(self.played as f64 / f64::from(pace));
            while let Some(early) = due.checked_sub(self.started.elapsed()).filter(|early| !early.is_zero()) {
                if self.stopping.load(Ordering::Relaxed) {
                    return Err(Halt::Asked);
                }
                std::thread::sleep(early.min(Duration::from_millis(50)));
            }
        }
        self.played += 1;
        let gone = self.to_agent.send(Received::Flow(Box::new(flow))).is_err();
        if gone || self.stopping.load(Ordering::Relaxed) { Err(Halt::Asked) } else { Ok(()) }
    }
}
