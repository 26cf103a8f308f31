//! What every probe has seen is not said to be lossy.

use std::thread;

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::compare::{are_there, documents_of, is_lossy};
use super::link::Family;
use super::phases::{HASTY, Networks, Scenario};
use super::play::DOCUMENTS;
use super::stage::Stage;
use super::udp;
use crate::helpers::patience::until_within;
use crate::helpers::socktrail::Socktrail;
use crate::helpers::tracefs::Tracefs;

/// How often to try to have no probe missed: a timer's interrupt may come while another probe is being handled.
const ATTEMPTS: usize = 10;

/// A flow is not lossy when nothing was missed.
pub(crate) fn what_was_seen_is_not_lossy() -> Result<()> {
    let setting = Setting::new()?;
    for _ in 0..ATTEMPTS {
        let Played { missed, documents } = setting.play(udp::connected)?;
        if missed == 0 {
            ensure!(!documents.iter().any(is_lossy), "nothing was missed, and yet: {documents:#?}");
            return Ok(());
        }
    }
    bail!("probes were missed in each of {ATTEMPTS} attempts")
}

struct Setting {
    networks: Networks,
    tracefs: Tracefs,
    watch: Socktrail,
}

struct Played {
    /// How often a probe was missed meanwhile.
    missed: u64,
    documents: Vec<Value>,
}

impl Setting {
    fn new() -> Result<Self> {
        let (networks, tracefs) = (Networks::new()?, Tracefs::mount()?);
        let watch = Socktrail::flows(&["--flow-termination-timeout", "2s", "--ring-size-exponent", "10"])?;
        Ok(Self { networks, tracefs, watch })
    }

    /// Plays a scenario and waits for its documents.
    fn play(&self, scenario: Scenario) -> Result<Played> {
        let link = self.networks.prepare(&HASTY)?;
        let before = self.tracefs.missed()?;
        let flows = scenario(&Stage { link, family: Family::V4 })?;
        thread::sleep(HASTY.last_packets());
        until_within(DOCUMENTS, "the documents", || Ok(are_there(&self.watch.documents()?, &flows)))?;
        let all = self.watch.documents()?;
        Ok(Played {
            missed: self.tracefs.missed()? - before,
            documents: flows.iter().flat_map(|flow| documents_of(&all, flow)).collect(),
        })
    }
}
