//! `vm bench`: the cost of traffic and processes, in instructions.

use std::io;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::binaries::{Profile, Program};
use crate::buffer::Buffer;
use crate::guest::{Guest, Outcome};
use crate::options::{BenchOptions, MachineOptions};

/// Measures, and prints a Markdown table for each unit.
pub fn run(options: &BenchOptions) -> Result<u8> {
    let mut machine = MachineOptions::standard(options.kernel, options.arch);
    machine.icount = true;
    let lines = Buffer::default();
    let guest = Guest {
        machine: &machine,
        packages: &[],
        programs: &[Program::Socktrail, Program::GuestBench],
        profile: Profile::Release,
        additions: &[],
        out: None,
        timeout: options.timeout,
        command: &format!("guest-bench '{}' {}", options.only, options.arguments.join(" ")),
    };
    let outcome = guest.boot(Box::new(lines.clone()), Box::new(io::stderr()))?;
    if outcome == Outcome::Ended(0) {
        let with = options.arguments.join(" ");
        for (unit, loads) in &measurements(&lines.text())? {
            println!(
                "Linux {} ({}), `socktrail flows {with}`, instructions per {unit}:\n",
                options.kernel, options.arch
            );
            println!("{}", table(unit, loads));
        }
    } else {
        eprintln!("vm: nothing was measured: {outcome}");
    }
    Ok(outcome.exit_status())
}

/// All rounds of one load.
#[derive(Debug, Default)]
struct Load {
    name: String,
    /// Packets or processes per iteration.
    each: f64,
    alone: Rounds,
    probes: Rounds,
    threads: Rounds,
    user: Rounds,
}

/// A value that was measured several times.
#[derive(Debug, Default)]
struct Rounds(Vec<f64>);

impl Rounds {
    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// The largest deviation from the mean, as a share of the mean.
    fn spread(&self) -> f64 {
        let mean = self.mean();
        let farthest = self.0.iter().map(|one| (one - mean).abs()).fold(0.0, f64::max);
        if farthest == 0.0 { 0.0 } else { farthest / mean.abs() }
    }

    /// `12345 ± 0.6 %`
    fn text(&self) -> String {
        format!("{:.0} ± {:.1} %", self.mean(), 100.0 * self.spread())
    }
}

/// The loads of each unit: packet or process.
type Measurements = Vec<(String, Vec<Load>)>;

/// Parses the output of `guest-bench`: one JSON object per round.
fn measurements(text: &str) -> Result<Measurements> {
    let mut measurements = Measurements::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let number = |name: &str| value[name].as_f64().with_context(|| format!("no {name}: {line}"));
        let name = value["load"].as_str().with_context(|| format!("no load: {line}"))?;
        let unit = value["unit"].as_str().with_context(|| format!("no unit: {line}"))?;
        if measurements.last().is_none_or(|(last, _)| last != unit) {
            measurements.push((unit.to_owned(), Vec::new()));
        }
        let (_, loads) = measurements.last_mut().context("no unit")?;
        if loads.last().is_none_or(|last| last.name != name) {
            loads.push(Load { name: name.to_owned(), ..Load::default() });
        }
        let load = loads.last_mut().context("no load")?;
        load.each = number("each")?;
        load.alone.0.push(number("alone")?);
        load.probes.0.push(number("probes")?);
        load.threads.0.push(number("threads")?);
        load.user.0.push(number("user")?);
    }
    Ok(measurements)
}

/// A table with a line for each load: the means of all rounds per unit, with their spread.
fn table(unit: &str, loads: &[Load]) -> String {
    let (what, each) = match unit {
        "process" => ("processes", "processes"),
        "MB" => ("traffic over loopback", "MB"),
        _ => ("traffic over loopback", "packets"),
    };
    let mut text = format!(
        "| {what} | {each} each | without monitor | added by the probes, in the kernel | \
         added by Socktrail's threads | share in user space | total |\n|---|---|---|---|---|---|---|\n",
    );
    for load in loads {
        let all = load.alone.mean() + load.probes.mean() + load.threads.mean();
        text.push_str(&format!(
            "| {} | {:.1} | {} | {} | {} | {:.0} % | {all:.0} |\n",
            load.name,
            load.each,
            load.alone.text(),
            load.probes.text(),
            load.threads.text(),
            100.0 * load.user.mean(),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_become_a_line() {
        let text = r#"{"load":"UDP","unit":"packet","each":1.0,"alone":1000,"probes":300,"threads":100,"user":0.5}
            {"load":"UDP","unit":"packet","each":1.0,"alone":1100,"probes":300,"threads":100,"user":0.7}
            {"load":"TCP","unit":"packet","each":7.0,"alone":2000,"probes":600,"threads":100,"user":0.5}
            {"load":"fork","unit":"process","each":1.0,"alone":2000,"probes":600,"threads":100,"user":0.5}"#;
        let measured = measurements(text).unwrap();
        let [(packet, traffic), (process, processes)] = &measured[..] else { panic!("{measured:?}") };
        let traffic = table(packet, traffic);
        let lines: Vec<_> = traffic.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[2], "| UDP | 1.0 | 1050 ± 4.8 % | 300 ± 0.0 % | 100 ± 0.0 % | 60 % | 1450 |");
        assert!(table(process, processes).starts_with("| processes | processes each |"));
        assert_eq!(Rounds(vec![0.0, 0.0]).text(), "0 ± 0.0 %");
        assert!(measurements("{}").is_err());
    }
}
