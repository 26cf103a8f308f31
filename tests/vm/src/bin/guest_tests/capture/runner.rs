//! Runs all cases, and keeps the result of each.
//!
//! The kernel sometimes skips a probe: if an interrupt comes while another probe is handled on the same CPU, probes in
//! the interrupt's code miss their hits (`kprobe_profile` counts these misses). The monitor cannot count such packets,
//! and marks the flow as lossy. So a case that differs is repeated, a few times, until no hit was missed. If hits were
//! missed in all rounds, the documents must be marked.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::compare::{Captured, Difference, all_exist, compare};
use super::phases::{Case, Networks, PHASES, cases};
use super::sniffer::Sniffer;
use super::testbed::{ExpectedFlow, Testbed};
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::helpers::wait::wait_until_within;
use crate::known;

/// The maximum number of times that a case runs.
const ROUNDS: usize = 5;
/// How long to wait for documents after the last packet.
pub(crate) const DOCUMENTS: Duration = Duration::from_secs(8);

type Verdicts = HashMap<String, Result<(), String>>;

/// The result of one case. The first call runs all cases.
pub(crate) fn verdict(name: &str) -> Result<()> {
    static ALL: OnceLock<Result<Verdicts, String>> = OnceLock::new();
    let all = ALL.get_or_init(|| run_all().map_err(|error| format!("{error:?}")));
    match all.as_ref().map(|verdicts| verdicts.get(name)) {
        Ok(Some(Ok(()))) => Ok(()),
        Ok(Some(Err(error))) | Err(error) => bail!("{error}"),
        Ok(None) => bail!("{name} did not run"),
    }
}

/// Runs all cases, and those with missed hits again.
fn run_all() -> Result<Verdicts> {
    let runner = Runner {
        networks: Networks::new()?,
        tracefs: Tracefs::mount()?,
        monitor: Socktrail::flows(&["--flow-termination-timeout", "2s", "--ring-size-exponent", "10"])?,
    };
    let mut verdicts = Verdicts::new();
    let mut remaining = cases();
    for round in 1..=ROUNDS {
        let mut again = Vec::new();
        for CaseResult { case, verdict, missed } in runner.round(&remaining)? {
            let verdict = verdict.or_else(|Difference { text, is_explained_by_loss, is_lossy }| {
                let is_known = known::find(&case.name()).is_some_and(|known| known.has_error(&text));
                // A document may be lossy because of a hit that was missed shortly before.
                if (missed > 0 || is_lossy) && !is_known {
                    again.push(case);
                }
                if round == ROUNDS && is_explained_by_loss {
                    Ok(())
                } else {
                    Err(format!("{text}\n({missed} hits missed)"))
                }
            });
            verdicts.insert(case.name(), verdict);
        }
        remaining = again;
        if remaining.is_empty() {
            break;
        }
    }
    let output = runner.monitor.stop()?;
    ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
    Ok(verdicts)
}

/// Runs cases while one monitor observes them.
struct Runner {
    networks: Networks,
    tracefs: Tracefs,
    monitor: Socktrail,
}

/// The result of one run of a case.
struct CaseResult {
    case: Case,
    verdict: Result<(), Difference>,
    /// Hits that probes missed during its phase.
    missed: u64,
}

/// The expected flows of a phase, and the captures.
struct PhaseRun {
    flows: Vec<(Case, Result<Vec<ExpectedFlow>>)>,
    captured: Captured,
    missed: u64,
}

impl Runner {
    /// Runs cases phase by phase, waits for all documents, and compares them.
    fn round(&self, cases: &[Case]) -> Result<Vec<CaseResult>> {
        let mut runs = Vec::new();
        for (number, phase) in PHASES.iter().enumerate() {
            let of_phase: Vec<_> = cases.iter().copied().filter(|case| case.phase == number).collect();
            if !of_phase.is_empty() {
                runs.push(self.run_phase(number, of_phase).with_context(|| format!("run {}", phase.name()))?);
            }
        }
        let all = runs.iter().flat_map(|run| &run.flows);
        let expected: Vec<ExpectedFlow> = all.flat_map(|(_, flows)| flows.iter().flatten().copied()).collect();
        // The tests report documents that are still missing.
        wait_until_within(DOCUMENTS, "all documents", || Ok(all_exist(&self.monitor.documents()?, &expected))).ok();
        let documents = self.monitor.documents()?;
        Ok(runs.into_iter().flat_map(|run| run.compare(&documents)).collect())
    }

    /// Runs cases of one phase, several at once.
    fn run_phase(&self, number: usize, cases: Vec<Case>) -> Result<PhaseRun> {
        let phase = &PHASES[number];
        let link = self.networks.prepare(phase)?;
        let missed_before = self.tracefs.missed()?;
        let client = Sniffer::start(&link.client, phase.segment_info)?;
        let server = phase.routed.then(|| Sniffer::start(&link.server, phase.segment_info)).transpose()?;
        let queue = Mutex::new(VecDeque::from(cases));
        let work = || {
            let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let testbed = |case: &Case| Testbed { link, family: case.family };
            std::iter::from_fn(|| next().map(|case| (case, (case.scenario)(&testbed(&case))))).collect::<Vec<_>>()
        };
        let flows = thread::scope(|scope| {
            let workers: Vec<_> = (0..phase.concurrency).map(|_| scope.spawn(work)).collect();
            workers.into_iter().map(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))).collect()
        });
        thread::sleep(phase.last_packets());
        let captured = Captured { client: client.stop()?, server: server.map(Sniffer::stop).transpose()? };
        let flows: Result<Vec<_>> = flows;
        Ok(PhaseRun {
            flows: flows?.into_iter().flatten().collect(),
            captured,
            missed: self.tracefs.missed()? - missed_before,
        })
    }
}

impl PhaseRun {
    fn compare(self, documents: &[Value]) -> impl Iterator<Item = CaseResult> {
        let Self { flows, captured, missed } = self;
        flows.into_iter().map(move |(case, flows)| {
            let verdict = match flows {
                Ok(flows) => compare(documents, &flows, &captured),
                Err(error) => Err(Difference {
                    text: format!("the scenario failed: {error:?}"),
                    is_explained_by_loss: false,
                    is_lossy: false,
                }),
            };
            CaseResult { case, verdict, missed }
        })
    }
}
