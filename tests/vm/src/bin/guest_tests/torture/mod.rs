//! Random traffic that reports what it did, compared with all documents about it.
//!
//! A seed determines a [plan]: processes of all shapes that exchange data between four hosts. They report what they did
//! (the [reports]), captures on every interface count packets, and every document is [compared](judge) with both. The
//! same seed repeats the plan, but not how the steps interleave.

mod arguments;
mod differences;
mod hosts;
mod judge;
mod plan;
mod random;
mod reports;
mod run;
mod subflows;
mod verdict;
mod workloads;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use socktrail_vm::{TORTURE_SECONDS_VARIABLE, TORTURE_SEED_VARIABLE, TORTURE_WITHOUT_VARIABLE};

use verdict::{Fault, Verdict};
pub(crate) use workloads::run_role;

tests![random_traffic];

/// The longest time for which a round makes traffic. Each round has a new monitor.
const ROUND: Duration = Duration::from_secs(50);
/// How many faults of each kind are printed in full.
const SHOWN: usize = 2;

/// Runs rounds of traffic, each with its own seed, until the time is over.
fn random_traffic() -> Result<()> {
    let number = |variable: &str| -> Result<Option<u64>> {
        let Ok(text) = std::env::var(variable) else { return Ok(None) };
        text.parse().map(Some).with_context(|| format!("{variable}={text} is not a number"))
    };
    let without: Vec<String> =
        std::env::var(TORTURE_WITHOUT_VARIABLE).unwrap_or_default().split(',').map(str::to_owned).collect();
    let mut seed = number(TORTURE_SEED_VARIABLE)?.unwrap_or_else(new_seed);
    let time = Duration::from_secs(number(TORTURE_SECONDS_VARIABLE)?.unwrap_or(ROUND.as_secs()));
    let start = Instant::now();
    loop {
        let round = ROUND.min(time.saturating_sub(start.elapsed()));
        let offloads = plan::offloads(seed, &without);
        print_line(format_args!(
            "torture: seed {seed}, {} s, offloads of the pairs of hosts {offloads:?}",
            round.as_secs()
        ));
        let Verdict { counts, faults } = run::round(seed, round, &without).with_context(|| format!("seed {seed}"))?;
        print_line(format_args!("torture: seed {seed}: {counts}"));
        if !faults.is_empty() {
            bail!("seed {seed}: {} faults\n{}", faults.len(), shown(&faults));
        }
        if start.elapsed() + ROUND / 2 >= time {
            return Ok(());
        }
        seed = seed.wrapping_add(1);
    }
}

fn new_seed() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |time| u64::from(time.subsec_micros()) + time.as_secs() % 1000 * 1_000_000)
}

fn print_line(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{what}");
}

/// The number of faults of each kind, and some of each in full.
fn shown(faults: &[Fault]) -> String {
    let mut kinds: BTreeMap<&str, Vec<&Fault>> = BTreeMap::new();
    faults.iter().for_each(|fault| kinds.entry(&fault.kind).or_default().push(fault));
    let mut text = String::new();
    kinds.iter().for_each(|(kind, faults)| text += &format!("{} times: {kind}\n", faults.len()));
    for fault in kinds.values().flat_map(|faults| faults.iter().take(SHOWN)) {
        text += &format!("\n{}", fault.text);
    }
    text
}
