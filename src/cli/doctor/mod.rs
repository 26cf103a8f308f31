//! `socktrail doctor`: examines this host, and reports what would be missing and how to fix it.

mod capabilities;
mod facts;
mod finding;
mod findings;
mod gather;

use std::io::Write;

use serde::Serialize;
use socktrail::Error;
use socktrail::monitor::Options;
use socktrail::probes::SelfTest;
use socktrail::socket_event::Actions;
use socktrail::survey::{Capability, CapabilityState, Survey};
use socktrail_guess::Resolved;

use super::args::DoctorArgs;
use super::exit::Status;
use super::table::aligned;

pub use finding::{Finding, State};

/// Examines this host.
pub fn examine() -> Vec<Finding> {
    findings::findings(&gather::gather())
}

/// The findings with which no flow can be seen, the most important first.
pub fn blocking(findings: &[Finding]) -> Vec<&Finding> {
    findings::blocking(findings).collect()
}

/// Runs the command.
pub fn run(args: &DoctorArgs, mut options: Options, mut out: impl Write) -> anyhow::Result<Status> {
    args.without.apply(&mut options);
    if args.events {
        options.socket_events = Actions::ALL;
    }
    let findings = examine();
    // If nothing can be seen, a test would only confirm it.
    let survey = match blocking(&findings).is_empty() {
        true => match Survey::take(&options) {
            // There is no other way to see flows, either: see the finding about kprobes.
            Err(Error::Kprobes(socktrail_kprobes::Error::NoKprobes { .. })) => None,
            survey => Some(survey?),
        },
        false => None,
    };
    let worst = worst(&findings, survey.as_ref());
    if args.json {
        let report = Report {
            state: worst,
            findings: &findings,
            capabilities: survey.as_ref().map_or(&[], |survey| &survey.capabilities),
            sampled_because: survey.as_ref().and_then(|survey| survey.sampled_because.as_deref()),
            self_test: survey.as_ref().map(|survey| &survey.self_test),
            layout: survey.as_ref().map(|survey| &survey.layout),
        };
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        out.write_all(table(&findings).as_bytes())?;
        if let Some(survey) = &survey {
            write!(out, "\n{}", capabilities::table(survey))?;
        }
        writeln!(out, "\n{}", summary(worst))?;
    }
    out.flush()?;
    Ok(match worst {
        State::Ok => Status::Success,
        State::Degraded => Status::Failure,
        State::Lost => Status::Kernel,
    })
}

/// The worst state of all. A lost feature counts as degraded, unless no flow could be seen without it.
fn worst(findings: &[Finding], survey: Option<&Survey>) -> State {
    let of_findings = findings.iter().map(|finding| finding.state).max().unwrap_or(State::Ok);
    let of_features = survey.map_or(State::Ok, |survey| match survey.shows_flows() {
        false => State::Lost,
        true if survey.capabilities.iter().any(|one| one.state != CapabilityState::Ok) => State::Degraded,
        true => State::Ok,
    });
    of_findings.max(of_features)
}

/// The output of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    /// The worst state of all.
    state: State,
    findings: &'a [Finding],
    capabilities: &'a [Capability],
    /// Why each packet is sampled; absent if the kernel counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    sampled_because: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    self_test: Option<&'a SelfTest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layout: Option<&'a Resolved>,
}

fn summary(worst: State) -> &'static str {
    match worst {
        State::Ok => "All flows can be seen.",
        State::Degraded => "Flows can be seen, but some data would be missing: see above.",
        State::Lost => "No flow can be seen.",
    }
}

/// A line for each finding. Below each problem: what would be missing, and what to do.
fn table(findings: &[Finding]) -> String {
    let rows: Vec<_> = findings
        .iter()
        .map(|finding| [word(finding.state), finding.subject.to_owned(), finding.found.clone()])
        .collect();
    let mut text = String::new();
    for (finding, line) in findings.iter().zip(aligned(&rows).lines()) {
        text.push_str(line);
        text.push('\n');
        text.push_str(&advice(finding, "      "));
    }
    text
}

/// What would be missing because of a finding, and what to do about it.
fn advice(finding: &Finding, indent: &str) -> String {
    let line = |title: &str, text: &Option<String>| match text {
        Some(text) => format!("{indent}{title}: {text}\n"),
        None => String::new(),
    };
    line("missing", &finding.missing) + &line("what to do", &finding.remedy)
}

/// The blocking findings as text, for a command that failed because of them.
pub fn explanation(findings: &[Finding]) -> String {
    let lines = |finding: &Finding| format!("{}: {}\n{}", finding.subject, finding.found, advice(finding, "  "));
    blocking(findings).into_iter().map(lines).collect()
}

fn word(state: State) -> String {
    match state {
        State::Ok => "ok",
        State::Degraded => "DEGRADED",
        State::Lost => "LOST",
    }
    .to_owned()
}
