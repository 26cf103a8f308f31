//! What was done, as reported by the actors.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::scene::host_of;
use crate::capture::wire::{Key, Transport, Way};

/// One end of a flow: its host and addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct End {
    pub(super) place: usize,
    pub(super) transport: Transport,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

impl End {
    /// The same flow's other end.
    pub(super) fn other(self) -> Self {
        let Self { place, transport, local, remote } = self;
        Self { place: host_of(place, remote.ip()), transport, local: remote, remote: local }
    }

    /// The keys of its two directions in a capture.
    pub(super) fn keys(self) -> [Key; 2] {
        let Self { transport, local, remote, .. } = self;
        let sent = Key { way: Way::Out, transport, from: local, to: remote };
        [sent, Key { way: Way::In, transport, from: remote, to: local }]
    }
}

/// One end of a flow, and what its actor reported.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) end: End,
    /// When the actor began it; of an accepting end, when the other end was begun.
    pub(super) since: SystemTime,
    /// All that the actor reported.
    pub(super) told: Value,
}

impl Entry {
    pub(super) fn is_begun_here(&self) -> bool {
        self.told["direction"] == "egress"
    }

    /// Whether it is a further subflow of an MPTCP connection.
    pub(super) fn is_subflow(&self) -> bool {
        self.told["subflow"] == true
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.told[key].as_str()
    }
}

/// The entries in the output of a host's actor: its lines of JSON.
pub(super) fn entries(place: usize, said: &str) -> Result<Vec<Entry>> {
    said.lines().filter(|line| line.starts_with('{')).map(|line| entry(place, line)).collect()
}

fn entry(place: usize, line: &str) -> Result<Entry> {
    let mut value: Value = serde_json::from_str(line).with_context(|| format!("an actor said {line}"))?;
    let told = value["flow"].take();
    let address = |key: &str| -> Result<SocketAddr> {
        let text = told[key].as_str().with_context(|| format!("no {key} in {line}"))?;
        text.parse().with_context(|| format!("{key} is no address in {line}"))
    };
    let transport = match told["transport"].as_str() {
        Some("tcp") => Transport::Tcp,
        Some("udp") => Transport::Udp,
        _ => bail!("no transport in {line}"),
    };
    let end = End { place, transport, local: address("local")?, remote: address("remote")? };
    let since = told["since"].as_u64().with_context(|| format!("no time in {line}"))?;
    Ok(Entry { end, since: UNIX_EPOCH + Duration::from_nanos(since), told })
}
