//! Compares documents with what was done and what was captured.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ledger::{End, Entry};
use super::plan::MPTCP;
use super::scene::{Captured, is_second};
use crate::capture::compare::{LOST, MOST_OPTIONS, SEGMENTS, bytes_off, is_within_bounds, marks};
use crate::capture::wire::{Count, Transport};
use crate::helpers::document::{end, time};

/// How far the clocks of an actor and of a document may differ.
const CLOCKS: Duration = Duration::from_millis(1);

/// How long a packet may take between the sample of it and the interface.
const IN_FLIGHT: Duration = Duration::from_millis(300);

/// `flow_termination_timeout`.
const TERMINATION: Duration = Duration::from_secs(3);

/// The result of a round.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) counts: Counts,
    pub(super) faults: Vec<Fault>,
}

/// Counts for the summary.
#[derive(Debug, Default)]
pub(super) struct Counts {
    flows: usize,
    documents: usize,
    owners_right: usize,
    owners_unknown: usize,
    names_right: usize,
    names_missing: usize,
    names_not_seen: usize,
    counters_equal: usize,
    within_bounds: usize,
    interim_right: usize,
    subflows: usize,
    subflows_not_reported: usize,
    subflows_not_made: usize,
    marked: BTreeMap<String, usize>,
    /// Hits that each probe missed, as the monitor counted them.
    missed: BTreeMap<String, u64>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flows, documents, owners_right, owners_unknown, .. } = self;
        let Self { names_right, names_missing, counters_equal, within_bounds, marked, .. } = self;
        let Self { names_not_seen, interim_right, subflows, subflows_not_reported, subflows_not_made, .. } = self;
        let Self { missed, .. } = self;
        write!(f, "{flows} flows, {documents} documents; owners: {owners_right} right, {owners_unknown} unknown; ")?;
        write!(
            f,
            "names: {names_right} right, {names_missing} missing, {names_not_seen} not visible to the monitor; "
        )?;
        write!(
            f,
            "counters: {counters_equal} equal, {within_bounds} within what is marked, {interim_right} right in "
        )?;
        write!(f, "reports of flows that go on; subflows: {subflows}, {subflows_not_reported} that no program saw, ")?;
        write!(f, "{subflows_not_made} not made; ")?;
        write!(f, "marked: {marked:?}; hits missed: {missed:?}")
    }
}

/// A difference between the documents and the truth.
#[derive(Debug)]
pub(super) struct Fault {
    /// The kind in a few words: faults with the same words are counted together.
    pub(super) kind: String,
    /// All that is known about it.
    pub(super) text: String,
}

/// All that is known of the flows at one end with the same addresses and ports.
#[derive(Default)]
struct Group {
    entries: Vec<Entry>,
    /// The last document of each flow.
    documents: Vec<Value>,
    /// Documents of flows that went on.
    interim: Vec<Value>,
}

/// What is compared.
pub(super) struct Case<'a> {
    pub(super) entries: Vec<Entry>,
    pub(super) documents: &'a [Value],
    /// The host of each namespace, by the namespace's address in documents.
    pub(super) places: HashMap<String, usize>,
    pub(super) captured: &'a Captured,
    /// Hits that each probe missed.
    pub(super) missed: BTreeMap<String, u64>,
}

/// Compares everything.
pub(super) fn judge(case: Case<'_>) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    verdict.counts.missed = case.missed;
    let mut groups: HashMap<End, Group> = HashMap::new();
    for entry in case.entries {
        groups.entry(entry.end).or_default().entries.push(entry);
    }
    let begins = begins(&groups);
    for document in case.documents {
        if is_subflow_not_made(document, &groups) {
            verdict.counts.subflows_not_made += 1;
            continue;
        }
        let end = end_of(document, &case.places, &groups)?;
        let group = groups.entry(end).or_default();
        let is_interim = document["event"]["reason"] == "interim";
        if is_interim { &mut group.interim } else { &mut group.documents }.push(document.clone());
    }
    let owners = mptcp_owners(&groups);
    let refused: Vec<End> = groups
        .values()
        .flat_map(|group| &group.entries)
        .filter(|entry| entry.text("outcome") != Some("success"))
        .map(|entry| entry.end.other())
        .collect();
    for (end, mut group) in groups {
        if group.entries.is_empty() && refused.contains(&end) {
            continue;
        }
        verdict.counts.subflows += usize::from(group.entries.iter().any(Entry::is_subflow));
        if group.entries.is_empty() && is_subflow(end) {
            verdict.counts.subflows_not_reported += 1;
            group.entries.extend(owners.get(&end.place).and_then(|owners| group.unreported_subflow(end, owners)));
        }
        if group.entries.is_empty() {
            group.entries.extend(owners.get(&end.place).and_then(|owners| subflow_of_server(end, owners)));
        }
        if let Some(begins) = begins.get(&end) {
            group.begin_at(begins);
        }
        group.judge(end, case.captured, &mut verdict)?;
    }
    verdict.faults.sort_by(|one, other| (&one.kind, &one.text).cmp(&(&other.kind, &other.text)));
    Ok(verdict)
}

/// Whether a document is about a further subflow that the kernel could not even begin for a process's MPTCP connection:
/// there is no route to the remote from its other addresses. Both ends may try.
fn is_subflow_not_made(document: &Value, groups: &HashMap<End, Group>) -> bool {
    let remote = end(document, "destination");
    let is_of_mptcp = |entry: &Entry| {
        let server = if entry.is_begun_here() { entry.end.remote } else { entry.end.local };
        let is_owners = entry.told["owner"]["pid"] == document["process"]["pid"];
        server.port() == MPTCP && Some(entry.end.remote) == remote && is_owners
    };
    document["source"]["ip"].is_null()
        && document["network"]["packets"] == 0
        && document["event"]["outcome"] == "failure"
        && groups.values().flat_map(|group| &group.entries).any(is_of_mptcp)
}

/// Reports of MPTCP connections, by host.
fn mptcp_owners(groups: &HashMap<End, Group>) -> HashMap<usize, Vec<Entry>> {
    let mut owners: HashMap<usize, Vec<Entry>> = HashMap::new();
    for (end, group) in groups.iter().filter(|(end, _)| [end.local, end.remote].iter().any(|end| end.port() == MPTCP)) {
        owners.entry(end.place).or_default().extend(group.entries.iter().cloned());
    }
    owners
}

/// Whether these are the addresses of a further subflow of an MPTCP connection. A program that asks for its subflows
/// may come too early or too late for one of them.
fn is_subflow(end: End) -> bool {
    let is_from = |client: SocketAddr, server: SocketAddr| is_second(client.ip()) && server.port() == MPTCP;
    is_from(end.local, end.remote) || is_from(end.remote, end.local)
}

/// What must be true of a subflow that the accepting end of an MPTCP connection tried to make, as Linux 6.12 does:
/// nobody listens on the port that the client has. It belongs to whoever accepted the connection.
fn subflow_of_server(end: End, owners: &[Entry]) -> Option<Entry> {
    let is_it = |entry: &&Entry| !entry.is_begun_here() && entry.end.remote == end.remote && is_second(end.local.ip());
    let mut entry = Entry { end, ..owners.iter().find(is_it)?.clone() };
    entry.told["direction"] = json!("egress");
    entry.told["outcome"] = json!("ECONNREFUSED");
    Some(entry)
}

/// When the flows of each end were begun by the other end.
fn begins(groups: &HashMap<End, Group>) -> HashMap<End, Vec<SystemTime>> {
    let mut begins: HashMap<End, Vec<SystemTime>> = HashMap::new();
    for entry in groups.values().flat_map(|group| &group.entries).filter(|entry| entry.is_begun_here()) {
        begins.entry(entry.end.other()).or_default().push(entry.since);
    }
    begins
}

/// The end that a document is about. A document of unknown direction does not say which of its ends that is: it is the
/// one whose flows are the document's owner's.
fn end_of(document: &Value, places: &HashMap<String, usize>, groups: &HashMap<End, Group>) -> Result<End> {
    let net = document.pointer("/system/audit/socket/kernel_net_address").and_then(Value::as_str);
    let net = net.with_context(|| format!("no namespace in {document}"))?;
    let place = *places.get(net).with_context(|| format!("the namespace is none of the test's: {document}"))?;
    let ends = [end(document, "source"), end(document, "destination")];
    let [Some(source), Some(destination)] = ends else { anyhow::bail!("no addresses in {document}") };
    let transport = if document["network"]["transport"] == "tcp" { Transport::Tcp } else { Transport::Udp };
    let end = End { place, transport, local: source, remote: destination };
    let is_owners = |end: &End| {
        let pid = &document["process"]["pid"];
        groups.get(end).is_some_and(|group| group.entries.iter().any(|entry| entry.told["owner"]["pid"] == *pid))
    };
    let swapped = End { local: destination, remote: source, ..end };
    Ok(match document["network"]["direction"].as_str() {
        Some("ingress") => swapped,
        Some("unknown") if !is_owners(&end) && is_owners(&swapped) => swapped,
        _ => end,
    })
}

impl Group {
    /// Sets the start of accepted flows to the time when the other end began them.
    fn begin_at(&mut self, begins: &[SystemTime]) {
        for entry in self.entries.iter_mut().filter(|entry| !entry.is_begun_here()) {
            let before = begins.iter().filter(|begin| **begin <= entry.since).max();
            entry.since = before.copied().unwrap_or(entry.since);
        }
    }

    /// What must be true of a further subflow that no program reported: it belongs to a process that had an MPTCP
    /// connection on this host and in the same direction.
    fn unreported_subflow(&self, end: End, owners: &[Entry]) -> Option<Entry> {
        let pid = &self.documents.first()?["process"]["pid"];
        let is_begun_here = end.remote.port() == MPTCP;
        let is_it = |entry: &&Entry| entry.told["owner"]["pid"] == *pid && entry.is_begun_here() == is_begun_here;
        owners.iter().find(is_it).map(|entry| Entry { end, ..entry.clone() })
    }

    /// Whether it is a further subflow that the accepting end answered and then reset, because its connection was over:
    /// it was never established and is nobody's.
    fn is_refused_join(&self, end: End) -> bool {
        let is_nobodys = |document: &Value| {
            let owner = document.pointer("/system/audit/socket/owner").and_then(Value::as_str);
            owner == Some("unknown") && document["event"]["outcome"] != "success"
        };
        is_subflow(end) && end.local.port() == MPTCP && self.documents.iter().chain(&self.interim).all(is_nobodys)
    }

    fn judge(mut self, end: End, captured: &Captured, verdict: &mut Verdict) -> Result<()> {
        self.entries.sort_by_key(|entry| entry.since);
        self.documents.sort_by_key(|document| time(document, "/event/start").ok());
        let [sent, received] = end.keys().map(|key| captured.of(end.place, key));
        verdict.counts.flows += self.entries.len();
        verdict.counts.documents += self.documents.len();
        let mut told = Vec::new();
        if self.entries.is_empty() && !self.is_refused_join(end) {
            let kind =
                if is_subflow(end) { "a subflow of no MPTCP connection" } else { "a flow that no actor reported" };
            told.push(format!("documents of {kind}"));
        }
        for document in self.documents.iter().chain(&self.interim) {
            let start = time(document, "/event/start")?;
            let number = self.entries.iter().rposition(|entry| entry.since <= start + CLOCKS).unwrap_or(0);
            if let Some(entry) = self.entries.get(number) {
                told.extend(differences(entry, document, &mut verdict.counts));
            }
        }
        told.extend(self.number_of_documents(sent.packets + received.packets));
        told.extend(self.interim_counters(end, captured, &mut verdict.counts)?);
        told.extend(self.dropped());
        let before_end = self.received_before_end(end, captured)?;
        told.extend(self.counters(end.local, [sent, received], before_end, &mut verdict.counts));
        told.dedup();
        verdict
            .faults
            .extend(told.into_iter().map(|kind| Fault { text: self.text(end, [sent, received], &kind), kind }));
        Ok(())
    }

    /// Checks the number of documents: each flow has one at its end, and one more for each time that it was idle for
    /// too long. Those that follow are not complete.
    fn number_of_documents(&self, captured: u64) -> Option<String> {
        let reasons = self.documents.iter().filter_map(|document| document["event"]["reason"].as_str());
        let silences = reasons.clone().filter(|reason| *reason == "inactive").count();
        let incomplete = self.documents.iter().filter(|document| document["flow"]["complete"] == json!(false)).count();
        let (documents, flows) = (self.documents.len(), self.entries.len());
        let reasons = || reasons.clone().take(5).collect::<Vec<_>>().join(" ");
        match () {
            // If nothing was captured, there may be no document.
            () if documents < flows && captured == 0 => None,
            () if documents < flows && flows == 1 => Some("no document".to_owned()),
            () if documents < flows => Some("fewer documents than flows".to_owned()),
            () if documents > flows + silences.max(incomplete) => {
                Some(format!("more documents than flows: {}", reasons()))
            }
            () => None,
        }
    }

    /// Compares the sum of all documents with the capture.
    fn counters(
        &self,
        local: SocketAddr,
        captured: [Count; 2],
        received_before_end: Count,
        counts: &mut Counts,
    ) -> Option<String> {
        let mut said = [(0_i128, 0_i128); 2];
        for document in &self.documents {
            for (sum, counted) in said.iter_mut().zip(counted(document, local)) {
                *sum = (sum.0 + i128::from(counted.packets), sum.1 + i128::from(counted.bytes));
            }
        }
        let mut marks: Vec<&str> = self.documents.iter().flat_map(marks).collect();
        marks.sort_unstable();
        marks.dedup();
        marks.iter().for_each(|mark| *counts.marked.entry((*mark).to_owned()).or_default() += 1);
        let mut is_equal = true;
        for (number, (way, (said, captured))) in ["sent", "received"].iter().zip(said.iter().zip(captured)).enumerate()
        {
            let difference = (said.0 - i128::from(captured.packets), said.1 - i128::from(captured.bytes));
            // A missed packet that only TCP's counter tells of counts with the headers of the next one.
            let options = if number == 0 { i128::from(MOST_OPTIONS) } else { 0 };
            let is_less = difference.0 <= 0 && difference.1 <= options;
            let early = (i128::from(received_before_end.packets), i128::from(received_before_end.bytes));
            is_equal &= difference == (0, 0);
            let is_admitted = (number == 1 && is_within_bounds(&marks, captured, difference))
                || (marks.contains(&LOST) && is_less)
                || (marks.contains(&SEGMENTS) && are_headers(local, difference))
                || (number == 1 && *said == early);
            if difference != (0, 0) && !is_admitted {
                return Some(format!("{way}: not what was captured{}", marked(&marks)));
            }
        }
        if is_equal {
            counts.counters_equal += 1;
        } else {
            counts.within_bounds += 1;
        }
        None
    }

    /// What was received until the last flow ended. What arrives for a closed socket later, such as what the other end's
    /// MPTCP sends again, belongs to no flow.
    fn received_before_end(&self, end: End, captured: &Captured) -> Result<Count> {
        let ends = self.documents.iter().map(|document| time(document, "/event/end")).collect::<Result<Vec<_>>>()?;
        let [_, received] = end.keys();
        Ok(ends
            .into_iter()
            .max()
            .map_or_else(Count::default, |last| captured.until(end.place, received, last + TERMINATION - IN_FLIGHT)))
    }

    /// Compares the reports of a flow that went on with what was captured until then.
    fn interim_counters(&self, end: End, captured: &Captured, counts: &mut Counts) -> Result<Option<String>> {
        let id = |document: &Value| document["flow"]["id"].clone();
        let Some(only) = self.documents.first().map(id) else { return Ok(None) };
        let all = self.documents.iter().chain(&self.interim);
        if self.entries.len() != 1 || all.clone().any(|document| id(document) != only) {
            return Ok(None);
        }
        for document in &self.interim {
            let until = time(document, "/event/end")?;
            for (key, said) in end.keys().into_iter().zip(counted(document, end.local)) {
                let [least, most] =
                    [until - IN_FLIGHT, until + IN_FLIGHT].map(|time| captured.until(end.place, key, time));
                let off = bytes_off(&marks(document), said);
                let is_enough = said.packets >= least.packets && said.bytes + off >= least.bytes;
                let is_too_much = said.packets > most.packets || said.bytes > most.bytes + off;
                if is_too_much || (!is_enough && !marks(document).contains(&LOST)) {
                    let what = format!("{said:?} is not between {least:?} and {most:?} until {until:?}");
                    return Ok(Some(format!("a report of a flow that goes on: {what}{}", marked(&marks(document)))));
                }
            }
            counts.interim_right += 1;
        }
        Ok(None)
    }

    /// Compares the number of datagrams that a program could not send with what documents say was dropped.
    fn dropped(&self) -> Option<String> {
        let wanted: u64 = self.entries.iter().filter_map(|entry| entry.told["dropped"].as_u64()).sum();
        let is_lossy = self.documents.iter().any(|document| marks(document).contains(&LOST));
        let said = |document: &Value| document.pointer("/flow/dropped/packets").and_then(Value::as_u64).unwrap_or(0);
        let said: u64 = self.documents.iter().map(said).sum();
        (wanted > 0 && said != wanted && !is_lossy).then(|| format!("{said} packets were dropped, not {wanted}"))
    }

    /// Everything that is known, for the report of a fault.
    fn text(&self, end: End, [sent, received]: [Count; 2], kind: &str) -> String {
        let End { place, transport, local, remote } = end;
        let mut text = format!("{kind}\n  host {place}, {transport:?}, {local} and {remote}\n");
        text += &format!("  captured: sent {}/{}", sent.packets, sent.bytes);
        text += &format!(", received {}/{} (packets/bytes)\n", received.packets, received.bytes);
        self.entries.iter().for_each(|entry| text += &format!("  done: {}\n", entry.told));
        if self.documents.is_empty() {
            text += "  no document\n";
        }
        let documents = self.documents.iter().chain(&self.interim);
        documents.for_each(|document| text += &format!("  document: {}\n", brief(document)));
        text
    }
}

/// What a document says was sent and received, seen from one end.
fn counted(document: &Value, local: SocketAddr) -> [Count; 2] {
    let is_source = end(document, "source") == Some(local);
    let ends = if is_source { ["source", "destination"] } else { ["destination", "source"] };
    ends.map(|end| {
        let number = |what: &str| document[end][what].as_u64().unwrap_or(0);
        Count { packets: number("packets"), bytes: number("bytes") }
    })
}

/// Whether the difference is only the headers of datagrams that were counted as one.
fn are_headers(local: SocketAddr, (packets, bytes): (i128, i128)) -> bool {
    let headers = if local.is_ipv4() { 20 + 8 } else { 40 + 8 };
    packets < 0 && bytes == packets * headers
}

fn marked(marks: &[&str]) -> String {
    if marks.is_empty() { String::new() } else { format!(", marked {}", marks.join(" ")) }
}

/// The parts of a document that matter here.
fn brief(document: &Value) -> Value {
    let mut brief = serde_json::Map::new();
    for part in ["event", "source", "destination", "network", "flow", "process", "user", "group", "error", "system"] {
        if let Some(value) = document.get(part) {
            brief.insert(part.to_owned(), value.clone());
        }
    }
    Value::Object(brief)
}

/// How a document differs from what was done.
fn differences(entry: &Entry, document: &Value, counts: &mut Counts) -> Vec<String> {
    let mut told = Vec::new();
    let is_lossy = marks(document).contains(&LOST);
    told.extend(owner(entry, document, is_lossy, counts));
    let direction = &document["network"]["direction"];
    if *direction != entry.told["direction"] && !(is_lossy && direction == "unknown") {
        told.push(format!("direction {direction} instead of {}", entry.told["direction"]));
    }
    told.extend(outcome(entry, document, is_lossy));
    told.extend(name(entry, document, counts));
    let goes_on = matches!(document["event"]["reason"].as_str(), Some("shutdown" | "interim"));
    if document["flow"]["final"] == json!(goes_on) {
        let (is_final, reason) = (&document["flow"]["final"], &document["event"]["reason"]);
        told.push(format!("flow.final is {is_final}, event.reason is {reason}"));
    }
    told
}

fn owner(entry: &Entry, document: &Value, is_lossy: bool, counts: &mut Counts) -> Option<String> {
    let owner = document.pointer("/system/audit/socket/owner").and_then(Value::as_str).unwrap_or_default();
    if owner != "process" {
        counts.owners_unknown += 1;
        let never_accepted = entry.told["owner"].is_null();
        return (!is_lossy && !never_accepted).then(|| format!("owner {owner}"));
    }
    let wanted = &entry.told["owner"];
    let program = wanted["executable"].as_str().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    for (what, said, is) in [
        ("process.pid", &document["process"]["pid"], &wanted["pid"]),
        ("process.executable", &document["process"]["executable"], &wanted["executable"]),
        ("process.name", &document["process"]["name"], &json!(name)),
        ("process.args", &document["process"]["args"], &wanted["args"]),
        ("uid", &document["system"]["audit"]["socket"]["uid"], &entry.told["uid"]),
        ("gid", &document["system"]["audit"]["socket"]["gid"], &entry.told["gid"]),
        ("euid", &document["system"]["audit"]["socket"]["euid"], &entry.told["euid"]),
        ("egid", &document["system"]["audit"]["socket"]["egid"], &entry.told["egid"]),
    ] {
        if said != is {
            return Some(if said.is_null() { format!("{what} is missing") } else { format!("{what} is wrong") });
        }
    }
    counts.owners_right += 1;
    None
}

fn outcome(entry: &Entry, document: &Value, is_lossy: bool) -> Option<String> {
    if entry.end.transport == Transport::Udp {
        return None;
    }
    let said = document["event"]["outcome"].as_str().unwrap_or_default();
    let code = document["error"]["code"].as_str();
    let is_right = match entry.text("outcome") {
        Some("success") => said == "success",
        // If the ICMP message comes while the call still has the socket, as from a rule of this host or over veth, the
        // kernel only notes the error.
        wanted => said == "failure" && code == wanted,
    };
    (!is_right && !is_lossy)
        .then(|| format!("outcome {said} {} instead of {}", code.unwrap_or(""), entry.told["outcome"]))
}

fn name(entry: &Entry, document: &Value, counts: &mut Counts) -> Option<String> {
    let remote = if entry.is_begun_here() { "destination" } else { "source" };
    match (document[remote]["domain"].as_str(), entry.text("name")) {
        (None, None) => None,
        (None, Some(_)) => {
            // The monitor sees DNS packets of the first host only.
            match entry.end.place {
                0 => counts.names_missing += 1,
                _ => counts.names_not_seen += 1,
            }
            None
        }
        (Some(said), Some(wanted)) if said == wanted => {
            counts.names_right += 1;
            None
        }
        (Some(_), Some(_)) => Some("a name other than the one looked up".to_owned()),
        (Some(_), None) => Some("a name that was not looked up".to_owned()),
    }
}

/// The host of each namespace, from documents of the beacons: datagrams to a different port on each host.
pub(super) fn places(documents: &[Value], beacons: &[SocketAddr]) -> Result<HashMap<String, usize>> {
    let mut places = HashMap::new();
    for document in documents {
        let place = beacons.iter().position(|beacon| end(document, "destination") == Some(*beacon));
        let net = document.pointer("/system/audit/socket/kernel_net_address").and_then(Value::as_str);
        if let (Some(place), Some(net)) = (place, net) {
            places.insert(net.to_owned(), place);
        }
    }
    ensure!(places.len() == beacons.len(), "each host has a document of its own: {places:?}");
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_further_subflow_is_known_by_its_addresses() {
        let end = |local: &str, remote: &str| End {
            place: 0,
            transport: Transport::Tcp,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
        };
        assert!(is_subflow(end("10.77.1.1:40000", "10.77.0.2:7006")));
        assert!(is_subflow(end("[fd77::2]:7006", "[fd77:1::1]:40000")), "at the accepting end");
        assert!(!is_subflow(end("10.77.0.1:40000", "10.77.0.2:7006")), "it is the first");
        assert!(!is_subflow(end("10.77.1.1:7006", "10.77.0.2:40000")), "the client's address is not the second");
    }

    #[test]
    fn datagrams_that_travel_together_lack_headers_only() {
        let [v4, v6]: [SocketAddr; 2] = ["10.0.0.1:9", "[fd77::1]:9"].map(|end| end.parse().unwrap());
        assert!(are_headers(v4, (-10, -280)) && are_headers(v6, (-10, -480)));
        assert!(!are_headers(v4, (-10, -480)) && !are_headers(v4, (10, 280)) && !are_headers(v4, (0, 0)));
    }
}
