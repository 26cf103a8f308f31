//! Traffic and processes for measurements: `cargo vm bench` boots a guest whose clock counts instructions, and starts this.
//!
//! On one processor that runs one instruction a nanosecond, the time that something takes is the number of
//! instructions that the whole machine ran meanwhile, the kernel's and the monitor's included. Each load runs by
//! itself and then with a monitor beside it. The CPU time of the monitor's own threads tells its part; the rest of
//! the difference is what its probes cost the kernel where they are hit.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command whose results are printed")]

mod counters;
mod load;
mod monitor;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use crate::load::{LOADS, Load};
use crate::monitor::Monitor;

/// How often everything is measured.
const ROUNDS: usize = 3;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one JSON object a measurement. The first argument is a part of the names of what is to be measured; the others are
/// the monitor's.
fn run() -> Result<()> {
    let only = std::env::args().nth(1).unwrap_or_default();
    for load in LOADS.iter().filter(|load| load.name.contains(&only)) {
        // What happens only once, such as code that is faulted in, is not to be counted.
        warm_up(load)?;
        for _ in 0..ROUNDS {
            let (units, alone) = load.unit.count(load, || instructions(load))?;
            let watched = watched(load)?;
            let per_unit = |instructions: u64| instructions as f64 / units as f64;
            let line = json!({
                "load": load.name,
                "unit": load.unit.name(),
                "each": units as f64 / f64::from(load.count),
                "alone": per_unit(alone),
                "probes": per_unit(watched.load.saturating_sub(watched.threads_meanwhile)) - per_unit(alone),
                "threads": per_unit(watched.threads),
                "user": watched.user_share,
            });
            println!("{line}");
        }
    }
    Ok(())
}

/// A tenth of a load.
fn warm_up(load: &Load) -> Result<()> {
    (load.run)(load.count / 10).with_context(|| format!("warm up for {}", load.name))
}

/// How many instructions the machine runs while a load does.
fn instructions(load: &Load) -> Result<u64> {
    let start = Instant::now();
    (load.run)(load.count).with_context(|| format!("run {}", load.name))?;
    Ok(start.elapsed().as_nanos() as u64)
}

/// What a load costs with a monitor, in instructions.
struct Watched {
    /// Of the whole machine while the load ran.
    load: u64,
    /// Of the monitor's threads while the load ran.
    threads_meanwhile: u64,
    /// Of the monitor's threads until the last flow was out, less what they use when there is nothing to do.
    threads: u64,
    /// The share of user space in that, from 0 to 1.
    user_share: f64,
}

fn watched(load: &Load) -> Result<Watched> {
    let monitor = Monitor::start()?;
    warm_up(load)?;
    monitor.let_it_finish();
    let resting = monitor.cpu_time()?;
    monitor.let_it_finish();
    let before = monitor.cpu_time()?;
    let in_user_space = monitor.user_and_system()?;
    let all = instructions(load)?;
    let meanwhile = monitor.cpu_time()? - before;
    monitor.let_it_finish();
    let after = monitor.cpu_time()?;
    let (user, system) = monitor.user_and_system()?;
    let (user, system) = (user - in_user_space.0, system - in_user_space.1);
    monitor.stop()?;
    Ok(Watched {
        load: all,
        threads_meanwhile: meanwhile,
        threads: (after - before).saturating_sub(before - resting),
        user_share: user as f64 / (user + system).max(1) as f64,
    })
}
