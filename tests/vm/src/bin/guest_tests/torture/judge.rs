//! Compares documents with reports of the workloads and with captures.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use humantime::format_rfc3339_micros;
use serde_json::{Value, json};

use super::differences::differences;
use super::hosts::CapturedByHost;
use super::reports::{End, Report};
use super::subflows::{is_failed_subflow, is_subflow, mptcp_reports, subflow_of_server};
use super::verdict::{Counts, Fault, Verdict};
use crate::capture::compare::{CountDifference, LOST, MAX_TCP_OPTIONS, SEGMENTS, bytes_off, is_within_bounds, marks};
use crate::capture::wire::{Count, Transport};
use crate::helpers::document::{endpoint, time};

/// How far the times of a workload and of a document may differ.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(1);

/// The longest time between a packet's sample and its capture.
const IN_FLIGHT: Duration = Duration::from_millis(300);

/// The value of `--flow-termination-timeout`.
const TERMINATION: Duration = Duration::from_secs(3);

/// How many captured packets of a flow the details of a fault show.
const SHOWN_PACKETS: usize = 8;

/// The reports and documents of the flows of one end with the same addresses and ports.
#[derive(Default)]
pub(super) struct Group {
    pub(super) reports: Vec<Report>,
    /// The last document of each flow.
    pub(super) documents: Vec<Value>,
    /// Interim documents.
    pub(super) interim: Vec<Value>,
}

/// The reports, documents and captures of a round.
pub(super) struct RoundData<'a> {
    pub(super) reports: Vec<Report>,
    pub(super) documents: &'a [Value],
    /// The host of each namespace, by `kernel_net_address`.
    pub(super) namespaces: HashMap<String, usize>,
    pub(super) captured: &'a CapturedByHost,
    /// Hits that each probe missed.
    pub(super) missed: BTreeMap<String, u64>,
    /// When the monitor was told to stop. The captures went on until it had ended.
    pub(super) stopped: SystemTime,
}

/// Compares the documents of a round with reports and captures.
pub(super) fn judge(data: RoundData<'_>) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    verdict.counts.missed = data.missed;
    let mut groups: HashMap<End, Group> = HashMap::new();
    for report in data.reports {
        groups.entry(report.end).or_default().reports.push(report);
    }
    let begins = begins(&groups);
    for document in data.documents {
        if is_failed_subflow(document, &groups) {
            verdict.counts.subflows_failed += 1;
            continue;
        }
        let end = end_of(document, &data.namespaces, &groups)?;
        let group = groups.entry(end).or_default();
        let is_interim = document["event"]["reason"] == "interim";
        if is_interim { &mut group.interim } else { &mut group.documents }.push(document.clone());
    }
    let mptcp_reports = mptcp_reports(&groups);
    let refused: Vec<End> = groups
        .values()
        .flat_map(|group| &group.reports)
        .filter(|report| report.text("outcome") != Some("success"))
        .map(|report| report.end.other())
        .collect();
    for (end, mut group) in groups {
        if group.reports.is_empty() && refused.contains(&end) {
            continue;
        }
        verdict.counts.subflows += usize::from(group.reports.iter().any(Report::is_subflow));
        if group.reports.is_empty() && is_subflow(end) {
            verdict.counts.subflows_not_reported += 1;
            group
                .reports
                .extend(mptcp_reports.get(&end.host).and_then(|reports| group.unreported_subflow(end, reports)));
        }
        if group.reports.is_empty() {
            group.reports.extend(mptcp_reports.get(&end.host).and_then(|reports| subflow_of_server(end, reports)));
        }
        if let Some(begins) = begins.get(&end) {
            group.begin_at(begins);
        }
        group.judge(end, data.captured, data.stopped, &mut verdict)?;
    }
    verdict.faults.sort_by(|one, other| (&one.kind, &one.text).cmp(&(&other.kind, &other.text)));
    Ok(verdict)
}

/// The times at which the other end began the flows of each end.
fn begins(groups: &HashMap<End, Group>) -> HashMap<End, Vec<SystemTime>> {
    let mut begins: HashMap<End, Vec<SystemTime>> = HashMap::new();
    for report in groups.values().flat_map(|group| &group.reports).filter(|report| report.is_initiator()) {
        begins.entry(report.end.other()).or_default().push(report.since);
    }
    begins
}

/// The end that a document is about. If its direction is unknown, it is the end whose flows have the document's owner.
fn end_of(document: &Value, namespaces: &HashMap<String, usize>, groups: &HashMap<End, Group>) -> Result<End> {
    let net = document.pointer("/system/audit/socket/kernel_net_address").and_then(Value::as_str);
    let net = net.with_context(|| format!("no namespace in {document}"))?;
    let host = *namespaces.get(net).with_context(|| format!("unknown namespace: {document}"))?;
    let ends = [endpoint(document, "source"), endpoint(document, "destination")];
    let [Some(source), Some(destination)] = ends else { anyhow::bail!("no addresses in {document}") };
    let transport = if document["network"]["transport"] == "tcp" { Transport::Tcp } else { Transport::Udp };
    let end = End { host, transport, local: source, remote: destination };
    let is_owners = |end: &End| {
        let pid = &document["process"]["pid"];
        groups.get(end).is_some_and(|group| group.reports.iter().any(|report| report.fields["owner"]["pid"] == *pid))
    };
    let swapped = End { local: destination, remote: source, ..end };
    Ok(match document["network"]["direction"].as_str() {
        Some("ingress") => swapped,
        Some("unknown") if !is_owners(&end) && is_owners(&swapped) => swapped,
        _ => end,
    })
}

impl Group {
    /// Sets the start of accepted flows to the time at which the other end began them.
    fn begin_at(&mut self, begins: &[SystemTime]) {
        for report in self.reports.iter_mut().filter(|report| !report.is_initiator()) {
            let before = begins.iter().filter(|begin| **begin <= report.since).max();
            report.since = before.copied().unwrap_or(report.since);
        }
    }

    fn judge(mut self, end: End, captured: &CapturedByHost, stopped: SystemTime, verdict: &mut Verdict) -> Result<()> {
        self.reports.sort_by_key(|report| report.since);
        self.documents.sort_by_key(|document| time(document, "/event/start").ok());
        let [sent, received] = end.keys().map(|key| captured.count(end.host, key));
        verdict.counts.flows += self.reports.len();
        verdict.counts.documents += self.documents.len();
        let mut faults = Vec::new();
        if self.reports.is_empty() && !self.is_refused_join(end) {
            let kind = if is_subflow(end) {
                "a subflow without an MPTCP connection"
            } else {
                "a flow that no workload reported"
            };
            faults.push(format!("documents of {kind}"));
        }
        for document in self.documents.iter().chain(&self.interim) {
            let start = time(document, "/event/start")?;
            let number = self.reports.iter().rposition(|report| report.since <= start + CLOCK_TOLERANCE).unwrap_or(0);
            if let Some(report) = self.reports.get(number) {
                faults.extend(differences(report, document, &mut verdict.counts));
            }
        }
        faults.extend(self.number_of_documents(sent.packets + received.packets));
        faults.extend(self.interim_counters(end, captured, &mut verdict.counts)?);
        faults.extend(self.dropped());
        let certain = end.keys().map(|key| captured.until(end.host, key, stopped - IN_FLIGHT));
        let before_end = self.received_before_end(end, captured)?;
        faults.extend(self.counters(end.local, certain, [sent, received], before_end, &mut verdict.counts));
        faults.dedup();
        verdict
            .faults
            .extend(faults.into_iter().map(|kind| Fault { text: self.text(end, captured, stopped, &kind), kind }));
        Ok(())
    }

    /// Checks the number of documents: each flow has one at its end, and one for each inactivity timeout. Documents
    /// after a timeout are not complete.
    fn number_of_documents(&self, captured: u64) -> Option<String> {
        let reasons = self.documents.iter().filter_map(|document| document["event"]["reason"].as_str());
        let timeouts = reasons.clone().filter(|reason| *reason == "inactive").count();
        let incomplete = self.documents.iter().filter(|document| document["flow"]["complete"] == json!(false)).count();
        let (documents, flows) = (self.documents.len(), self.reports.len());
        let reasons = || reasons.clone().take(5).collect::<Vec<_>>().join(" ");
        match () {
            // Without captured packets, there may be no document.
            () if documents < flows && captured == 0 => None,
            () if documents < flows && flows == 1 => Some("no document".to_owned()),
            () if documents < flows => Some("fewer documents than flows".to_owned()),
            () if documents > flows + timeouts.max(incomplete) => {
                Some(format!("more documents than flows: {}", reasons()))
            }
            () => None,
        }
    }

    /// Compares the sum of all documents with the capture. The monitor may have missed packets that are not `certain`, because
    /// it was stopping.
    fn counters(
        &self,
        local: SocketAddr,
        certain: [Count; 2],
        captured: [Count; 2],
        received_before_end: Count,
        counts: &mut Counts,
    ) -> Option<String> {
        let mut documented = [(0_i128, 0_i128); 2];
        for document in &self.documents {
            for (sum, counted) in documented.iter_mut().zip(counts_of(document, local)) {
                *sum = (sum.0 + i128::from(counted.packets), sum.1 + i128::from(counted.bytes));
            }
        }
        let mut marks: Vec<&str> = self.documents.iter().flat_map(marks).collect();
        marks.sort_unstable();
        marks.dedup();
        marks.iter().for_each(|mark| *counts.marked.entry((*mark).to_owned()).or_default() += 1);
        let mut is_equal = true;
        for (number, direction) in ["sent", "received"].into_iter().enumerate() {
            let (documented, certain, captured) = (documented[number], certain[number], captured[number]);
            let difference = CountDifference {
                packets: documented.0 - i128::from(captured.packets),
                bytes: documented.1 - i128::from(captured.bytes),
            };
            let is_zero = difference.packets == 0 && difference.bytes == 0;
            // A packet without a sample, known from TCP's counters only, counts with the headers of the next packet.
            let is_less = difference.packets <= 0 && difference.bytes <= i128::from(MAX_TCP_OPTIONS);
            let early = (i128::from(received_before_end.packets), i128::from(received_before_end.bytes));
            is_equal &= is_zero;
            let is_explained = (number == 1 && is_within_bounds(&marks, captured, difference))
                || (marks.contains(&LOST) && is_less)
                || (marks.contains(&SEGMENTS) && are_headers(local, difference))
                || (number == 1 && documented == early)
                || is_between(documented, certain, captured);
            if !is_zero && !is_explained {
                return Some(format!("{direction}: differs from the capture{}", describe_marks(&marks)));
            }
        }
        if is_equal {
            counts.counters_equal += 1;
        } else {
            counts.within_bounds += 1;
        }
        None
    }

    /// The packets received while a flow existed: until [`TERMINATION`] after the last `event.end`. Packets that arrive later
    /// for a closed socket, such as MPTCP's retransmissions, belong to no flow.
    fn received_before_end(&self, end: End, captured: &CapturedByHost) -> Result<Count> {
        let ends = self.documents.iter().map(|document| time(document, "/event/end")).collect::<Result<Vec<_>>>()?;
        let [_, received] = end.keys();
        Ok(ends
            .into_iter()
            .max()
            .map_or_else(Count::default, |last| captured.until(end.host, received, last + TERMINATION - IN_FLIGHT)))
    }

    /// Compares interim documents with the packets captured until then.
    fn interim_counters(&self, end: End, captured: &CapturedByHost, counts: &mut Counts) -> Result<Option<String>> {
        let id = |document: &Value| document["flow"]["id"].clone();
        let Some(only) = self.documents.first().map(id) else { return Ok(None) };
        let all = self.documents.iter().chain(&self.interim);
        if self.reports.len() != 1 || all.clone().any(|document| id(document) != only) {
            return Ok(None);
        }
        for document in &self.interim {
            let until = time(document, "/event/end")?;
            for (key, documented) in end.keys().into_iter().zip(counts_of(document, end.local)) {
                let [least, most] =
                    [until - IN_FLIGHT, until + IN_FLIGHT].map(|time| captured.until(end.host, key, time));
                let off = bytes_off(&marks(document), documented);
                let is_enough = documented.packets >= least.packets && documented.bytes + off >= least.bytes;
                let is_too_much = documented.packets > most.packets || documented.bytes > most.bytes + off;
                if is_too_much || (!is_enough && !marks(document).contains(&LOST)) {
                    let what = format!("{documented:?} is not between {least:?} and {most:?} until {until:?}");
                    return Ok(Some(format!("an interim document: {what}{}", describe_marks(&marks(document)))));
                }
            }
            counts.interim_right += 1;
        }
        Ok(None)
    }

    /// Compares the number of datagrams that a workload could not send with `flow.dropped`.
    fn dropped(&self) -> Option<String> {
        let expected: u64 = self.reports.iter().filter_map(|report| report.fields["dropped"].as_u64()).sum();
        let is_lossy = self.documents.iter().any(|document| marks(document).contains(&LOST));
        let documented =
            |document: &Value| document.pointer("/flow/dropped/packets").and_then(Value::as_u64).unwrap_or(0);
        let documented: u64 = self.documents.iter().map(documented).sum();
        (expected > 0 && documented != expected && !is_lossy)
            .then(|| format!("{documented} packets are documented as dropped, not {expected}"))
    }

    /// The details of a fault: reports, captured counts and documents.
    fn text(&self, end: End, captured: &CapturedByHost, stopped: SystemTime, kind: &str) -> String {
        let End { host, transport, local, remote } = end;
        let mut text = format!("{kind}\n  host {host}, {transport:?}, {local} and {remote}\n");
        text += &format!("  the monitor was told to stop at {}\n", format_rfc3339_micros(stopped));
        for (direction, key) in ["sent", "received"].into_iter().zip(end.keys()) {
            let Count { packets, bytes } = captured.count(host, key);
            text += &format!("  captured: {direction} {packets}/{bytes} (packets/bytes), the last ones at");
            for (time, Count { bytes, .. }) in captured.last(host, key, SHOWN_PACKETS) {
                text += &format!(" {} ({bytes})", format_rfc3339_micros(time));
            }
            text.push('\n');
        }
        self.reports.iter().for_each(|report| text += &format!("  report: {}\n", report.fields));
        if self.documents.is_empty() {
            text += "  no document\n";
        }
        let documents = self.documents.iter().chain(&self.interim);
        documents.for_each(|document| text += &format!("  document: {}\n", brief(document)));
        text
    }
}

/// The counts that a document has for sent and received packets, seen from one end.
fn counts_of(document: &Value, local: SocketAddr) -> [Count; 2] {
    let is_source = endpoint(document, "source") == Some(local);
    let ends = if is_source { ["source", "destination"] } else { ["destination", "source"] };
    ends.map(|end| {
        let number = |what: &str| document[end][what].as_u64().unwrap_or(0);
        Count { packets: number("packets"), bytes: number("bytes") }
    })
}

/// Whether a count of packets and bytes is between two counts, both included.
fn is_between((packets, bytes): (i128, i128), lower: Count, upper: Count) -> bool {
    (i128::from(lower.packets)..=i128::from(upper.packets)).contains(&packets)
        && (i128::from(lower.bytes)..=i128::from(upper.bytes)).contains(&bytes)
}

/// Whether only the headers of datagrams that were counted as one are missing.
fn are_headers(local: SocketAddr, CountDifference { packets, bytes }: CountDifference) -> bool {
    let headers = if local.is_ipv4() { 20 + 8 } else { 40 + 8 };
    packets < 0 && bytes == packets * headers
}

fn describe_marks(marks: &[&str]) -> String {
    if marks.is_empty() { String::new() } else { format!(", marked {}", marks.join(" ")) }
}

/// The parts of a document that help to explain a fault.
fn brief(document: &Value) -> Value {
    let mut brief = serde_json::Map::new();
    for part in ["event", "source", "destination", "network", "flow", "process", "user", "group", "error", "system"] {
        if let Some(value) = document.get(part) {
            brief.insert(part.to_owned(), value.clone());
        }
    }
    Value::Object(brief)
}

/// The host of each namespace, by `kernel_net_address`. The beacons show it: datagrams to a different port on each
/// host.
pub(super) fn namespaces(documents: &[Value], beacons: &[SocketAddr]) -> Result<HashMap<String, usize>> {
    let mut namespaces = HashMap::new();
    for document in documents {
        let host = beacons.iter().position(|beacon| endpoint(document, "destination") == Some(*beacon));
        let net = document.pointer("/system/audit/socket/kernel_net_address").and_then(Value::as_str);
        if let (Some(host), Some(net)) = (host, net) {
            namespaces.insert(net.to_owned(), host);
        }
    }
    ensure!(namespaces.len() == beacons.len(), "not every host has a beacon's document: {namespaces:?}");
    Ok(namespaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_while_the_monitor_stops_may_be_missing() {
        let count = |packets, bytes| Count { packets, bytes };
        let (certain, captured) = (count(14, 1220), count(15, 1304));
        assert!(is_between((14, 1220), certain, captured) && is_between((15, 1304), certain, captured));
        assert!(!is_between((13, 1136), certain, captured), "an earlier packet is missing");
        assert!(!is_between((16, 1388), certain, captured), "a packet too many");
        assert!(!is_between((14, 1136), certain, captured), "bytes are missing");
    }

    #[test]
    fn gso_datagrams_counted_as_one_lack_headers_only() {
        let [v4, v6]: [SocketAddr; 2] = ["10.0.0.1:9", "[fd77::1]:9"].map(|end| end.parse().unwrap());
        let difference = |packets, bytes| CountDifference { packets, bytes };
        assert!(are_headers(v4, difference(-10, -280)) && are_headers(v6, difference(-10, -480)));
        for other in [difference(-10, -480), difference(10, 280), difference(0, 0)] {
            assert!(!are_headers(v4, other), "{other:?}");
        }
    }
}
