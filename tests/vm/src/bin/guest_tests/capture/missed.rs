//! A flow is not marked as lossy if no probe missed a hit.

use std::thread;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::compare::{all_exist, documents_of, is_lossy};
use super::link::Family;
use super::phases::{Networks, Scenario, TIMER_DRIVEN};
use super::runner::DOCUMENTS;
use super::testbed::Testbed;
use super::udp;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;
use crate::helpers::wait::wait_until_within;

/// The maximum number of attempts to run without a missed hit: a timer interrupt may come while another probe is handled.
const ATTEMPTS: usize = 10;

pub(crate) fn flows_are_not_lossy_without_missed_hits() -> Result<()> {
    let fixture = Fixture::new()?;
    for _ in 0..ATTEMPTS {
        let ScenarioResult { missed, documents } = fixture.run(udp::connected)?;
        if missed == 0 {
            ensure!(!documents.iter().any(is_lossy), "no hit was missed, but a document is marked: {documents:#?}");
            let output = fixture.monitor.stop()?;
            ensure!(output.status.success(), "socktrail ended with {}:\n{}", output.status, output.log);
            return Ok(());
        }
    }
    bail!("probes missed hits in each of {ATTEMPTS} attempts")
}

struct Fixture {
    networks: Networks,
    tracefs: Tracefs,
    monitor: Socktrail,
}

struct ScenarioResult {
    /// Hits that probes missed while the scenario ran.
    missed: u64,
    documents: Vec<Value>,
}

impl Fixture {
    fn new() -> Result<Self> {
        let (networks, tracefs) = (Networks::new()?, Tracefs::mount()?);
        let monitor = Socktrail::flows(&["--flow-termination-timeout", "2s", "--ring-size-exponent", "10"])?;
        Ok(Self { networks, tracefs, monitor })
    }

    /// Runs a scenario and waits for its documents.
    fn run(&self, scenario: Scenario) -> Result<ScenarioResult> {
        let link = self.networks.prepare(&TIMER_DRIVEN)?;
        let before = self.tracefs.missed()?;
        let flows = scenario(&Testbed { link, family: Family::V4 })?;
        thread::sleep(TIMER_DRIVEN.last_packets());
        wait_until_within(DOCUMENTS, "the documents", || Ok(all_exist(&self.monitor.documents()?, &flows)))?;
        let all = self.monitor.documents()?;
        Ok(ScenarioResult {
            missed: self.tracefs.missed()? - before,
            documents: flows.iter().flat_map(|flow| documents_of(&all, flow)).collect(),
        })
    }
}
