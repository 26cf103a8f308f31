//! The reports of the workloads.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::hosts::host_of;
use crate::capture::wire::{Direction, Key, Transport};

/// One end of a flow: host, protocol and addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct End {
    pub(super) host: usize,
    pub(super) transport: Transport,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

impl End {
    /// The other end of the flow.
    pub(super) fn other(self) -> Self {
        let Self { host, transport, local, remote } = self;
        Self { host: host_of(host, remote.ip()), transport, local: remote, remote: local }
    }

    /// The keys of the sent and the received direction in a capture.
    pub(super) fn keys(self) -> [Key; 2] {
        let Self { transport, local, remote, .. } = self;
        let sent = Key { direction: Direction::Outbound, transport, from: local, to: remote };
        [sent, Key { direction: Direction::Inbound, transport, from: remote, to: local }]
    }
}

/// A workload's report about one end of a flow.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) end: End,
    /// When the flow began. At an accepting end this is first the time of the accept, and then (see [`judge`](super::judge))
    /// the time at which the other end began it.
    pub(super) since: SystemTime,
    /// All fields of the report.
    pub(super) fields: Value,
}

impl Report {
    pub(super) fn is_initiator(&self) -> bool {
        self.fields["direction"] == "egress"
    }

    /// Whether it is a further subflow of an MPTCP connection.
    pub(super) fn is_subflow(&self) -> bool {
        self.fields["subflow"] == true
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.fields[key].as_str()
    }
}

/// The reports in the output of a workload: its lines of JSON.
pub(super) fn parse_reports(host: usize, output: &str) -> Result<Vec<Report>> {
    output.lines().filter(|line| line.starts_with('{')).map(|line| parse_report(host, line)).collect()
}

fn parse_report(host: usize, line: &str) -> Result<Report> {
    let mut value: Value = serde_json::from_str(line).with_context(|| format!("a workload printed {line}"))?;
    let fields = value["flow"].take();
    let address = |key: &str| -> Result<SocketAddr> {
        let text = fields[key].as_str().with_context(|| format!("no {key} in {line}"))?;
        text.parse().with_context(|| format!("{key} is not an address in {line}"))
    };
    let transport = match fields["transport"].as_str() {
        Some("tcp") => Transport::Tcp,
        Some("udp") => Transport::Udp,
        _ => bail!("no transport in {line}"),
    };
    let end = End { host, transport, local: address("local")?, remote: address("remote")? };
    let since = fields["since"].as_u64().with_context(|| format!("no time in {line}"))?;
    Ok(Report { end, since: UNIX_EPOCH + Duration::from_nanos(since), fields })
}
