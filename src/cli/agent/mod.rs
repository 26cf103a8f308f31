//! `socktrail agent`: from the monitor to every output that a configuration names.
//!
//! One thread takes flows and socket events from the source, makes documents and hands them to the outputs, which never
//! make it wait. The same thread hears signals and tells the service manager how things stand.

mod documents;
mod harden;
mod metrics;
mod notify;
mod playback;
mod signals;
mod source;
mod wire;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use socktrail::config::{Loaded, Loader};
use socktrail::monitor::Received;
use socktrail::output::{Outputs, Reading};
use socktrail::users::Users;

use self::documents::{BATCH_BYTES, Documents};
use self::metrics::Metrics;
use self::notify::Notify;
use self::playback::Playback;
use self::signals::{Ask, Asked};
use self::source::{Prepared, Source};
use self::wire::Meters;
use super::args::AgentArgs;
use super::config::load;
use super::exit::Status;
use super::source::FlowSource;
use super::users;

/// How long a signal may go unnoticed.
const PAUSE: Duration = Duration::from_millis(100);
/// How long outputs that are changed for others have to write what they were given: what they cannot, the others go on
/// with.
const CHANGE: Duration = Duration::from_secs(1);
/// What can be changed while it runs.
const LIVE: [&str; 6] = ["output.", "spool.", "document.", "events.where", "agent.name", "agent.shutdown_timeout"];

/// Runs the command.
pub fn run(args: &AgentArgs, quiet: bool) -> anyhow::Result<Status> {
    let loaded = configuration(args)?;
    loaded.notes.iter().for_each(|note| tracing::info!("{note}"));
    let asked = Asked::catch().context("catching signals")?;
    wire::be_nice(loaded.config.agent.nice)?;
    let meters = Meters::default();
    let helper = if args.replay.is_none() { users::start_helper() } else { None };
    let users = Users::new();
    let prepared = Prepared::new(args, &loaded.config, &users)?;
    harden::before_the_monitor(&loaded.config);
    let source = prepared.start()?;
    harden::before_the_outputs(&loaded.config);
    let outputs = wire::start(&loaded.config, &meters)?;
    users::start_with_helper(&users, helper)?;
    let documents = Documents::open(&loaded.config, source.host(), users)?;
    let metrics = loaded.config.metrics.listen.as_ref().map(Metrics::start).transpose()?;
    let (notify, deadline) = (Notify::new(), None);
    let mut agent = Agent { args, loaded, asked, source, documents, outputs, meters, notify, metrics, deadline };
    agent.tell_metrics();
    // All is up: what is not, has said so.
    agent.source.announce(quiet);
    agent.notify.ready();
    let ended = agent.work();
    agent.end().and(ended)
}

fn configuration(args: &AgentArgs) -> anyhow::Result<Loaded> {
    let loaded = load(Loader::new().file(&args.config), args.set.clone())?;
    anyhow::ensure!(
        loaded.config.output.enabled().next().is_some(),
        "{}: no output is on: set output.elasticsearch.hosts, output.file.path or output.stdout.enabled",
        args.config.display()
    );
    Ok(loaded)
}

/// A running agent.
struct Agent<'a> {
    args: &'a AgentArgs,
    loaded: Loaded,
    asked: Asked,
    source: Source,
    documents: Documents,
    outputs: Outputs,
    meters: Meters,
    notify: Notify,
    metrics: Option<Metrics>,
    /// Set once it is asked to end.
    deadline: Option<Instant>,
}

impl Agent<'_> {
    /// Works until it is asked to end and everything is handed over, or asked twice.
    fn work(&mut self) -> anyhow::Result<Status> {
        loop {
            for ask in self.asked.pending() {
                match ask {
                    Ask::End if self.deadline.is_some() => {
                        self.deadline = Some(Instant::now());
                        return Ok(Status::Success);
                    }
                    Ask::End => self.begin_to_end(),
                    Ask::Reload => self.reload()?,
                    Ask::Tell => self.tell(),
                }
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Status::Success);
            }
            self.notify.tick(Instant::now(), || self.source.status(&self.outputs.readings()));
            self.tell_metrics();
            if !self.source.can_lose() && !self.outputs.have_room(BATCH_BYTES) {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let timeout = if self.documents.is_empty() { PAUSE } else { Duration::ZERO };
            let received = self.source.recv(timeout);
            self.documents.take(&received, &self.source);
            match received {
                Received::Ended => {
                    let asked = self.deadline.is_some();
                    self.hand_over();
                    self.begin_to_end();
                    return if asked { Ok(Status::Success) } else { self.source.ended() };
                }
                Received::Idle => self.hand_over(),
                _ if self.documents.is_full() => self.hand_over(),
                _ => {}
            }
        }
    }

    fn tell_metrics(&mut self) {
        if let Some(metrics) = &mut self.metrics {
            metrics.tick(Instant::now(), || (counted(&self.source, &self.documents), self.outputs.readings()));
        }
    }

    fn hand_over(&mut self) {
        if !self.documents.is_empty() {
            self.outputs.send(&Arc::new(self.documents.take_batch()));
        }
    }

    fn begin_to_end(&mut self) {
        let within = Duration::from(self.loaded.config.agent.shutdown_timeout);
        self.deadline.get_or_insert(Instant::now() + within);
        self.source.stop();
        self.notify.stopping();
    }

    /// Takes over what the file says now, as far as that can be done without missing a flow.
    fn reload(&mut self) -> anyhow::Result<()> {
        self.notify.reloading();
        match configuration(self.args) {
            Ok(loaded) => {
                self.tell_of_changes(&loaded);
                self.hand_over();
                let notify = &mut self.notify;
                let unwritten = std::mem::take(&mut self.outputs).end(CHANGE, || {
                    notify.feed_watchdog(Instant::now());
                    true
                });
                self.outputs = match wire::start(&loaded.config, &self.meters) {
                    Ok(outputs) => {
                        self.documents.configure(&loaded.config)?;
                        self.loaded = loaded;
                        tracing::info!("the configuration was read again");
                        outputs
                    }
                    Err(error) => {
                        let remedy = harden::remedy(&loaded.config, &error);
                        tracing::error!("the configuration stays as it was: {error:#}{remedy}");
                        wire::start(&self.loaded.config, &self.meters).context("going back to the outputs before")?
                    }
                };
                self.outputs.go_on(unwritten);
            }
            Err(error) => tracing::error!("the configuration stays as it was: {error:#}"),
        }
        self.notify.ready();
        Ok(())
    }

    fn tell_of_changes(&self, new: &Loaded) {
        for (before, after) in self.loaded.resolved.iter().zip(&new.resolved) {
            let live = LIVE.iter().any(|live| after.key.starts_with(live));
            if before.value != after.value && !live {
                tracing::warn!("{}: {}: is changed, which takes effect at the next start", after.origin, after.key);
            }
        }
    }

    /// A line of JSON on stderr with what was counted.
    fn tell(&self) {
        self.say(&self.outputs.readings());
    }

    fn say(&self, outputs: &[Reading]) {
        let [monitor, sensors] = counted(&self.source, &self.documents);
        let line = serde_json::json!({ "monitor": monitor, "sensors": sensors, "outputs": outputs });
        // Nobody to tell is no failure.
        let _ = writeln!(io::stderr(), "socktrail: stats {line}");
    }

    /// Ends the outputs; each has until the deadline.
    fn end(mut self) -> anyhow::Result<Status> {
        self.hand_over();
        let now = Instant::now();
        let deadline = self.deadline.unwrap_or(now);
        let outputs = std::mem::take(&mut self.outputs);
        let asked = &mut self.asked;
        let within = deadline.saturating_duration_since(now);
        let readings = outputs.close_while(within, || !asked.pending().contains(&Ask::End));
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
        if self.args.stats {
            self.say(&readings);
        }
        Ok(Status::Success)
    }
}

/// What the monitor and the sensors have counted; null where there are none.
fn counted(source: &Source, documents: &Documents) -> [serde_json::Value; 2] {
    // Numbers always serialize.
    [serde_json::to_value(source.stats()), serde_json::to_value(documents.sensor_stats())]
        .map(Result::unwrap_or_default)
}
