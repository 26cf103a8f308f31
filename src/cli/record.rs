//! `socktrail record` and `socktrail replay`.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use socktrail::Error;
use socktrail::documents::ecs::{Context, Directions};
use socktrail::monitor::Options;
use socktrail::monitor::record;
use socktrail::output::Lines;
use socktrail::recording::{RecordingError, Replay};

use super::args::{FormatArg, RecordArgs, ReplayArgs};
use super::exit::Status;
use super::interrupt::end_signals;
use super::users;

/// Runs `socktrail record`.
pub fn record_to_file(args: RecordArgs, mut options: Options, quiet: bool) -> anyhow::Result<Status> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in end_signals() {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("catching signals")?;
    }
    args.without.apply(&mut options);
    // Samples have arguments and addresses that not every user may see.
    let created = File::options().write(true).create(true).truncate(true).mode(0o600).open(&args.file);
    let file = created.with_context(|| format!("creating {}", args.file.display()))?;
    let say = |text: &str| {
        if !quiet {
            // A closed stderr is not a failure.
            let _ = writeln!(io::stderr(), "socktrail: {text}");
        }
    };
    let ready = || say(&format!("ready, recording to {}", args.file.display()));
    let recorded =
        record(&options, users::start()?, BufWriter::new(file), args.duration.map(Duration::from), &stop, ready)?;
    say(&format!(
        "{} samples, {} lost samples, {} missed probe hits, {} flows",
        recorded.samples, recorded.lost, recorded.missed, recorded.flows
    ));
    Ok(Status::Success)
}

/// Runs `socktrail replay`.
pub fn replay(args: ReplayArgs, options: &Options) -> anyhow::Result<Status> {
    let path = args.file.display();
    let file = File::open(&args.file).with_context(|| format!("opening {path}"))?;
    let stdout = io::stdout();
    let format = FormatArg::or_default(args.format, &stdout);
    let replay = Replay::open(BufReader::new(file), options.into()).with_context(|| format!("replaying {path}"))?;
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
        anyhow::bail!("{path} is incomplete: its end is missing; everything before was replayed");
    }
    Ok(Status::Success)
}
