//! `socktrail record` and `socktrail replay`.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use socktrail::Error;
use socktrail::ecs::{Context, Directions};
use socktrail::monitor::Options;
use socktrail::output::{Format, Lines};
use socktrail::recording::{RecordingError, Replay, record};
use socktrail::state::Config;

use super::args::{RecordArgs, ReplayArgs};
use super::exit::Status;
use super::users;

/// Runs `socktrail record`.
pub fn record_to_file(args: RecordArgs, quiet: bool) -> anyhow::Result<Status> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("catching signals")?;
    }
    let mut options = Options::default();
    options.tracefs_path = args.tracefs_path;
    options.ring_size_exponent = args.ring_size_exponent;
    args.dns.apply(&mut options.dns);
    options.source = args.source.source;
    options.guess_timeout = args.source.guess_timeout.into();
    args.without.apply(&mut options);
    let file = File::create(&args.file).with_context(|| format!("creating {}", args.file.display()))?;
    let say = |text: &str| {
        if !quiet {
            // Nobody to tell is no failure.
            let _ = writeln!(io::stderr(), "socktrail: {text}");
        }
    };
    let ready = || say(&format!("ready, recording to {}", args.file.display()));
    let recorded =
        record(&options, users::start()?, BufWriter::new(file), args.duration.map(Duration::from), &stop, ready)?;
    say(&format!(
        "{} samples, {} lost, {} hits of probes missed, {} flows",
        recorded.samples, recorded.lost, recorded.missed, recorded.flows
    ));
    Ok(Status::Success)
}

/// Runs `socktrail replay`.
pub fn replay(args: ReplayArgs) -> anyhow::Result<Status> {
    let path = args.file.display();
    let file = File::open(&args.file).with_context(|| format!("opening {path}"))?;
    let stdout = io::stdout();
    let format = match args.format {
        Some(format) => format.into(),
        None if stdout.is_terminal() => Format::Text,
        None => Format::Ecs,
    };
    let config = Config {
        flow_inactive_timeout: args.flow_inactive_timeout.into(),
        flow_termination_timeout: args.flow_termination_timeout.into(),
        flow_report_interval: args.flow_report_interval.map(Duration::from),
        filter: args.filter.into(),
        ..Config::default()
    };
    let replay = Replay::open(BufReader::new(file), config).with_context(|| format!("replaying {path}"))?;
    let (host, agent, clock) = (replay.host().clone(), replay.agent().clone(), replay.clock());
    let mut lines = Lines::new(stdout.lock(), format);
    if stdout.is_terminal() {
        lines.header()?;
    }
    let replayed = replay.run(|flow, names| {
        let directions = Directions::default();
        let context = Context { host: &host, agent: &agent, clock, names, directions };
        lines.write(&flow, &context).map_err(RecordingError::from)
    });
    lines.flush()?;
    let replayed = replayed.map_err(Error::from).with_context(|| format!("replaying {path}"))?;
    if args.stats {
        writeln!(io::stderr(), "socktrail: stats {}", serde_json::to_string(&replayed.stats)?)?;
    }
    if !replayed.complete {
        anyhow::bail!("{path} breaks off: what it holds was replayed, its end is missing");
    }
    Ok(Status::Success)
}
