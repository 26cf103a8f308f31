//! Traffic and processes for measurements: `cargo vm bench` boots a guest whose clock counts instructions, and starts
//! this.
//!
//! The guest has one CPU, which executes one instruction per nanosecond. So an elapsed time is the number of
//! instructions that the whole machine has executed. Each load runs alone, and then while a monitor runs. The CPU time
//! of the monitor's threads is their cost; the rest of the difference is the cost of its probes.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command whose results are printed")]

mod counters;
mod load;
mod monitor;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::load::{LOADS, Load};
use crate::monitor::Monitor;

/// After this time, the kernel has done what it puts off while booting. The wait costs little time, because the guest's clock
/// jumps to the next timer when the guest is idle.
const BOOT_WORK: Duration = Duration::from_secs(20);
/// The number of measurements of each load.
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

/// Prints one JSON object per measurement. The first argument is a part of the names of the loads to measure; the
/// others are passed to the monitor.
fn run() -> Result<()> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let arguments: Vec<_> = std::env::args().skip(2).collect();
    sleep(BOOT_WORK);
    for load in LOADS.iter().filter(|load| load.name.contains(&only)) {
        // One-time costs, such as page faults for code, must not count.
        warm_up(load)?;
        for (suffix, accounting) in variants(load, &arguments) {
            let arguments = [accounting, arguments.clone()].concat();
            for _ in 0..ROUNDS {
                println!("{}", round(load, suffix, &arguments)?);
            }
        }
    }
    Ok(())
}

/// The variants in which a load is measured, by how packets are counted: a suffix for the load's name, and arguments for the
/// monitor.
fn variants(load: &Load, arguments: &[String]) -> Vec<(&'static str, Vec<String>)> {
    if !load.unit.is_traffic() || arguments.iter().any(|argument| argument == "--accounting") {
        return vec![("", Vec::new())];
    }
    let variant = |suffix, accounting: &str| (suffix, vec!["--accounting".to_owned(), accounting.to_owned()]);
    vec![variant(", counted by the kernel", "kernel"), variant(", sampled", "samples")]
}

/// One measurement of a load, alone and with a monitor.
fn round(load: &Load, suffix: &str, arguments: &[String]) -> Result<Value> {
    let (units, without_monitor) = load.unit.measure(load, || instructions(load))?;
    let monitored = monitored_cost(load, arguments)?;
    let per_unit = |instructions: u64| instructions as f64 / units as f64;
    Ok(json!({
        "load": format!("{}{suffix}", load.name),
        "unit": load.unit.name(),
        "each": units as f64 / f64::from(load.count),
        "alone": per_unit(without_monitor),
        "probes": per_unit(monitored.machine.saturating_sub(monitored.threads_meanwhile)) - per_unit(without_monitor),
        "threads": per_unit(monitored.threads),
        "user": monitored.user_share,
    }))
}

/// Runs a tenth of a load.
fn warm_up(load: &Load) -> Result<()> {
    (load.run)(load.count / 10).with_context(|| format!("warm up for {}", load.name))
}

/// Runs a load. Returns the number of instructions that the machine has executed meanwhile.
fn instructions(load: &Load) -> Result<u64> {
    let start = Instant::now();
    (load.run)(load.count).with_context(|| format!("run {}", load.name))?;
    Ok(start.elapsed().as_nanos() as u64)
}

/// The cost of a load while a monitor runs, in instructions.
struct MonitoredCost {
    /// The cost of the whole machine while the load runs.
    machine: u64,
    /// The part of it that the monitor's threads cost.
    threads_meanwhile: u64,
    /// The cost of the monitor's threads until the last flow is written, minus their cost when idle.
    threads: u64,
    /// The share of user space in the cost of the threads, from 0 to 1.
    user_share: f64,
}

/// Runs a load while a monitor runs.
fn monitored_cost(load: &Load, arguments: &[String]) -> Result<MonitoredCost> {
    let monitor = Monitor::start(arguments)?;
    warm_up(load)?;
    monitor.wait_until_idle();
    let idle = monitor.cpu_time()?;
    monitor.wait_until_idle();
    let before = monitor.cpu_time()?;
    let (user_before, system_before) = monitor.user_and_system()?;
    let machine = instructions(load)?;
    let meanwhile = monitor.cpu_time()? - before;
    monitor.wait_until_idle();
    let after = monitor.cpu_time()?;
    let (user, system) = monitor.user_and_system()?;
    let (user, system) = (user - user_before, system - system_before);
    monitor.stop()?;
    Ok(MonitoredCost {
        machine,
        threads_meanwhile: meanwhile,
        threads: (after - before).saturating_sub(before - idle),
        user_share: user as f64 / (user + system).max(1) as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_measured_in_both_variants_unless_one_is_chosen() {
        let [traffic, process] = [&LOADS[0], &LOADS[LOADS.len() - 1]];
        let count = |load, arguments: &[&str]| {
            variants(load, &arguments.iter().map(ToString::to_string).collect::<Vec<_>>()).len()
        };
        assert_eq!((count(traffic, &[]), count(process, &[])), (2, 1));
        assert_eq!(count(traffic, &["--accounting", "samples"]), 1);
    }
}
