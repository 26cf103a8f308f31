//! Starts the outputs of a configuration.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;
use socktrail::config::{Config, OutputKind};
use socktrail::output::elasticsearch::Elasticsearch;
use socktrail::output::{FileOutput, Meter, Output, Outputs, Plain};

/// The counters of each output. They continue when a reload restarts the output.
#[derive(Debug, Default)]
pub struct Meters(Mutex<BTreeMap<&'static str, Arc<Meter>>>);

impl Meters {
    fn of(&self, output: &'static str) -> Arc<Meter> {
        Arc::clone(self.0.lock().entry(output).or_default())
    }
}

/// Starts every output that is on.
pub fn start(config: &Config, meters: &Meters) -> anyhow::Result<Outputs> {
    let mut outputs = Outputs::new();
    let queue = usize::try_from(config.output.queue_size.0).context("output.queue_size")?;
    for kind in config.output.enabled() {
        let name = kind.name();
        let meter = meters.of(name);
        let output = open(kind, config, &meter).with_context(|| format!("output.{name}"))?;
        outputs
            .start(name, output, queue, meter)
            .context("starting a thread; raise the limit of processes (ulimit -u)")?;
    }
    Ok(outputs)
}

fn open(kind: OutputKind, config: &Config, meter: &Arc<Meter>) -> anyhow::Result<Box<dyn Output>> {
    let meter = Arc::clone(meter);
    match kind {
        OutputKind::File(options) => Ok(Box::new(FileOutput::open(options, meter)?)),
        OutputKind::Elasticsearch => {
            let memory = usize::try_from(config.output.queue_size.0)?;
            let options = config.output.elasticsearch.options(&config.spool, memory);
            Ok(Box::new(Elasticsearch::start(options, meter)?))
        }
        OutputKind::Stdout => Ok(Box::new(Plain::new(io::stdout(), "stdout", meter))),
    }
}

/// Sets the niceness of this thread. Threads that are started later inherit it.
pub fn set_niceness(nice: u8) -> anyhow::Result<()> {
    if nice > 0 {
        rustix::process::setpriority_process(None, nice.into())
            .context("agent.nice: not permitted; under systemd, set Nice= in the unit instead")?;
    }
    Ok(())
}
