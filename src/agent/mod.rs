//! The running agent: sends documents from the monitor to the outputs of a configuration.
//!
//! One thread receives flows and socket events from the source, makes documents and passes them to the outputs, which never
//! block it. The same thread handles signals and reports its status to the service manager.

mod documents;
mod harden;
mod metrics;
mod notify;
mod outputs;
mod playback;
mod sensors;
mod signals;
mod source;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use socktrail::config::Loaded;
use socktrail::monitor::Received;
use socktrail::output::{Outputs, Reading};
use socktrail::users::{GetentHelper, Users};

pub use self::sensors::RunningSensors;

use self::documents::{BATCH_BYTES, Documents};
use self::metrics::Metrics;
use self::notify::Notify;
use self::outputs::Meters;
use self::signals::{SignalRequest, SignalRequests};
use self::source::{Prepared, Source};
use crate::receive::{Consumer, Limits, receive};

/// How long old outputs may write their documents after a reload. The new outputs get the remaining documents.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(1);

/// The options of an agent besides its configuration.
#[derive(Debug)]
pub struct Options {
    /// Whether to print statistics to stderr at the end.
    pub stats: bool,
    /// A recording to replay instead of monitoring this host.
    pub replay: Option<ReplayOptions>,
    /// Whether to print only errors.
    pub quiet: bool,
    /// Starts the helper that asks getent, if there is one.
    pub start_helper: fn() -> Option<GetentHelper>,
}

/// A recording to replay.
#[derive(Debug)]
pub struct ReplayOptions {
    /// The file of the recording.
    pub file: PathBuf,
    /// The maximum number of flows per second.
    pub rate: Option<u32>,
    /// How many times to replay it.
    pub times: u64,
}

/// Runs an agent until a signal asks it to end. `load` loads its configuration; SIGHUP calls it again.
pub fn run(load: impl Fn() -> anyhow::Result<Loaded>, options: Options) -> anyhow::Result<()> {
    let load: Load<'_> = &load;
    let loaded = configuration(load)?;
    loaded.notes.iter().for_each(|note| tracing::info!("{note}"));
    let signals = SignalRequests::catch().context("catching signals")?;
    outputs::set_niceness(loaded.config.agent.nice)?;
    let meters = Meters::default();
    let helper = if options.replay.is_none() { (options.start_helper)() } else { None };
    let users = Users::new();
    let prepared = Prepared::new(options.replay.as_ref(), &loaded.config, &users)?;
    harden::before_the_monitor(&loaded.config, prepared.runs_bpf());
    let source = &prepared.start()?;
    harden::before_the_outputs(&loaded.config);
    let outputs = outputs::start(&loaded.config, &meters)?;
    start_user_lookups(&users, helper)?;
    let documents = Documents::open(&loaded.config, source.host(), users)?;
    let metrics = loaded.config.metrics.listen.as_ref().map(Metrics::start).transpose()?;
    let (notify, deadline, end_requests) = (Notify::new(), None, 0);
    let mut agent =
        Agent { load, loaded, signals, end_requests, source, documents, outputs, meters, notify, metrics, deadline };
    agent.update_metrics();
    // Everything has started. What failed has been reported.
    source.announce(options.quiet);
    agent.notify.ready();
    let ended = receive(source, Limits::default(), &mut agent);
    agent.stopping(Instant::now());
    agent.end(options.stats);
    ended
}

/// Starts the thread that looks up names of users.
pub fn start_user_lookups(users: &Users, helper: Option<GetentHelper>) -> anyhow::Result<()> {
    users.start(helper).context("starting the thread that looks up names of users")
}

/// Loads a configuration.
type Load<'a> = &'a dyn Fn() -> anyhow::Result<Loaded>;

fn configuration(load: Load<'_>) -> anyhow::Result<Loaded> {
    let loaded = load()?;
    anyhow::ensure!(
        loaded.config.output.enabled().next().is_some(),
        "no output is on: set output.elasticsearch.hosts, output.file.path or output.stdout.enabled"
    );
    Ok(loaded)
}

/// A running agent.
struct Agent<'a> {
    load: Load<'a>,
    loaded: Loaded,
    signals: SignalRequests,
    /// How many signals have asked it to end.
    end_requests: usize,
    source: &'a Source,
    documents: Documents,
    outputs: Outputs,
    meters: Meters,
    notify: Notify,
    metrics: Option<Metrics>,
    /// When the outputs must have ended; set once the agent is asked to end.
    deadline: Option<Instant>,
}

impl Consumer for Agent<'_> {
    fn tick(&mut self, now: Instant) -> anyhow::Result<usize> {
        for request in self.signals.pending() {
            match request {
                SignalRequest::End => self.end_requests += 1,
                SignalRequest::Reload => self.reload()?,
                SignalRequest::PrintStats => self.print_stats(&self.outputs.readings()),
            }
        }
        if self.end_requests > 1 {
            self.deadline = Some(now);
        }
        self.notify.tick(now, || self.source.status(&self.outputs.readings()));
        self.update_metrics();
        Ok(self.end_requests)
    }

    fn stopping(&mut self, now: Instant) -> Option<Instant> {
        if self.deadline.is_none() {
            self.deadline = Some(now + Duration::from(self.loaded.config.agent.shutdown_timeout));
            self.notify.stopping();
        }
        self.deadline
    }

    fn has_room(&self) -> bool {
        self.source.can_lose() || self.outputs.have_room(BATCH_BYTES)
    }

    fn take(&mut self, received: &Received, now: Instant, _max_lines: u64) -> anyhow::Result<u64> {
        self.documents.take(received, now, self.source);
        if self.documents.is_full() {
            self.hand_over();
        }
        Ok(0)
    }

    fn is_unflushed(&self) -> bool {
        !self.documents.is_empty()
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.hand_over();
        Ok(())
    }
}

impl Agent<'_> {
    fn update_metrics(&mut self) {
        if let Some(metrics) = &mut self.metrics {
            metrics.tick(Instant::now(), || (statistics(self.source, &self.documents), self.outputs.readings()));
        }
    }

    fn hand_over(&mut self) {
        if !self.documents.is_empty() {
            self.outputs.send(&Arc::new(self.documents.take_batch()));
        }
    }

    /// Loads the configuration again, and applies the keys that can change without missing a flow.
    fn reload(&mut self) -> anyhow::Result<()> {
        self.notify.reloading();
        match configuration(self.load) {
            Ok(loaded) => {
                self.log_unapplied_changes(&loaded);
                self.hand_over();
                let notify = &mut self.notify;
                let unwritten = std::mem::take(&mut self.outputs).end(RELOAD_TIMEOUT, || {
                    notify.feed_watchdog(Instant::now());
                    true
                });
                self.outputs = match outputs::start(&loaded.config, &self.meters) {
                    Ok(outputs) => {
                        self.documents.configure(&loaded.config)?;
                        self.loaded = loaded;
                        tracing::info!("the configuration was read again");
                        outputs
                    }
                    Err(error) => {
                        let remedy = harden::remedy(&loaded.config, &error);
                        tracing::error!("the new configuration is not used: {error:#}{remedy}");
                        outputs::start(&self.loaded.config, &self.meters).context("restarting the previous outputs")?
                    }
                };
                self.outputs.restore(unwritten);
            }
            Err(error) => tracing::error!("the new configuration is not used: {error:#}"),
        }
        self.notify.ready();
        Ok(())
    }

    fn log_unapplied_changes(&self, new: &Loaded) {
        for (before, after) in self.loaded.resolved.iter().zip(&new.resolved) {
            if before.value != after.value && !after.reloadable {
                tracing::warn!("{}: {}: the change takes effect when the agent is restarted", after.origin, after.key);
            }
        }
    }

    /// Prints statistics to stderr, as a line of JSON.
    fn print_stats(&self, outputs: &[Reading]) {
        let [monitor, sensors] = statistics(self.source, &self.documents);
        let line = serde_json::json!({ "monitor": monitor, "sensors": sensors, "outputs": outputs });
        // A closed stderr is not a failure.
        let _ = writeln!(io::stderr(), "socktrail: stats {line}");
    }

    /// Ends the outputs at the deadline at the latest.
    fn end(mut self, stats: bool) {
        self.hand_over();
        let now = Instant::now();
        let deadline = self.deadline.unwrap_or(now);
        let outputs = std::mem::take(&mut self.outputs);
        let signals = &mut self.signals;
        let within = deadline.saturating_duration_since(now);
        let readings = outputs.close_while(within, || !signals.pending().contains(&SignalRequest::End));
        for reading in &readings {
            if reading.dropped > 0 {
                tracing::warn!("{}: {} documents were lost", reading.output, reading.dropped);
            }
            if reading.pending > 0 {
                tracing::info!(
                    "{}: {} documents wait in the spool for the next start",
                    reading.output,
                    reading.pending
                );
            }
        }
        if stats {
            self.print_stats(&readings);
        }
    }
}

/// The statistics of the monitor and of the sensors; null if there are none.
fn statistics(source: &Source, documents: &Documents) -> [serde_json::Value; 2] {
    // Numbers always serialize.
    [serde_json::to_value(source.stats()), serde_json::to_value(documents.sensor_stats())]
        .map(Result::unwrap_or_default)
}
