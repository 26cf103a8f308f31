//! Further subflows of MPTCP connections. The workloads report only some of them.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::hosts::is_second_address;
use super::judge::Group;
use super::plan::MPTCP;
use super::reports::{End, Report};
use crate::helpers::document::endpoint;

/// Whether a document is about a further subflow of an MPTCP connection that the kernel could not begin, because the
/// other addresses have no route to the remote. Both ends may try.
pub(super) fn is_failed_subflow(document: &Value, groups: &HashMap<End, Group>) -> bool {
    let remote = endpoint(document, "destination");
    let is_of_mptcp = |report: &Report| {
        let server = if report.is_initiator() { report.end.remote } else { report.end.local };
        let has_same_owner = report.fields["owner"]["pid"] == document["process"]["pid"];
        server.port() == MPTCP && Some(report.end.remote) == remote && has_same_owner
    };
    document["source"]["ip"].is_null()
        && document["network"]["packets"] == 0
        && document["event"]["outcome"] == "failure"
        && groups.values().flat_map(|group| &group.reports).any(is_of_mptcp)
}

/// Reports of MPTCP connections, by host.
pub(super) fn mptcp_reports(groups: &HashMap<End, Group>) -> HashMap<usize, Vec<Report>> {
    let mut reports: HashMap<usize, Vec<Report>> = HashMap::new();
    for (end, group) in groups.iter().filter(|(end, _)| [end.local, end.remote].iter().any(|end| end.port() == MPTCP)) {
        reports.entry(end.host).or_default().extend(group.reports.iter().cloned());
    }
    reports
}

/// Whether these are the addresses of a further subflow of an MPTCP connection. A workload may miss some of them,
/// because the kernel lists only those that exist at the time.
pub(super) fn is_subflow(end: End) -> bool {
    let is_from = |client: SocketAddr, server: SocketAddr| is_second_address(client.ip()) && server.port() == MPTCP;
    is_from(end.local, end.remote) || is_from(end.remote, end.local)
}

/// The expected report of a subflow that the accepting end of an MPTCP connection tries to make (Linux 6.12). It is
/// refused, because the client's port has no listener. Its owner is the process that accepted the connection.
pub(super) fn subflow_of_server(end: End, mptcp_reports: &[Report]) -> Option<Report> {
    let is_it = |report: &&Report| {
        !report.is_initiator() && report.end.remote == end.remote && is_second_address(end.local.ip())
    };
    let mut report = Report { end, ..mptcp_reports.iter().find(is_it)?.clone() };
    report.fields["direction"] = json!("egress");
    report.fields["outcome"] = json!("ECONNREFUSED");
    Some(report)
}

impl Group {
    /// The expected report of a further subflow that no workload reported: its owner has an MPTCP connection on this
    /// host in the same direction.
    pub(super) fn unreported_subflow(&self, end: End, mptcp_reports: &[Report]) -> Option<Report> {
        let pid = &self.documents.first()?["process"]["pid"];
        let is_initiator = end.remote.port() == MPTCP;
        let is_it = |report: &&Report| report.fields["owner"]["pid"] == *pid && report.is_initiator() == is_initiator;
        mptcp_reports.iter().find(is_it).map(|report| Report { end, ..report.clone() })
    }

    /// Whether it is a further subflow that the accepting end reset, because its connection was closed: it was never
    /// established and has no owner.
    pub(super) fn is_refused_join(&self, end: End) -> bool {
        let is_unowned = |document: &Value| {
            let owner = document.pointer("/system/audit/socket/owner").and_then(Value::as_str);
            owner == Some("unknown") && document["event"]["outcome"] != "success"
        };
        is_subflow(end) && end.local.port() == MPTCP && self.documents.iter().chain(&self.interim).all(is_unowned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::wire::Transport;

    #[test]
    fn addresses_show_a_further_subflow() {
        let end = |local: &str, remote: &str| End {
            host: 0,
            transport: Transport::Tcp,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
        };
        assert!(is_subflow(end("10.77.1.1:40000", "10.77.0.2:7006")));
        assert!(is_subflow(end("[fd77::2]:7006", "[fd77:1::1]:40000")), "at the accepting end");
        assert!(!is_subflow(end("10.77.0.1:40000", "10.77.0.2:7006")), "it is the first");
        assert!(!is_subflow(end("10.77.1.1:7006", "10.77.0.2:40000")), "the client's address is not the second");
    }
}
