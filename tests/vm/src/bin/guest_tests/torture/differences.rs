//! Differences between a document and a workload's report.

use serde_json::{Value, json};

use super::ledger::Entry;
use super::verdict::Counts;
use crate::capture::compare::{LOST, marks};
use crate::capture::wire::Transport;

/// The differences between a document and a report.
pub(super) fn differences(entry: &Entry, document: &Value, counts: &mut Counts) -> Vec<String> {
    let mut faults = Vec::new();
    let is_lossy = marks(document).contains(&LOST);
    faults.extend(owner(entry, document, is_lossy, counts));
    let direction = &document["network"]["direction"];
    if *direction != entry.report["direction"] && !(is_lossy && direction == "unknown") {
        faults.push(format!("direction {direction} instead of {}", entry.report["direction"]));
    }
    faults.extend(outcome(entry, document, is_lossy));
    faults.extend(name(entry, document, counts));
    let continues = matches!(document["event"]["reason"].as_str(), Some("shutdown" | "interim"));
    if document["flow"]["final"] == json!(continues) {
        let (is_final, reason) = (&document["flow"]["final"], &document["event"]["reason"]);
        faults.push(format!("flow.final is {is_final}, event.reason is {reason}"));
    }
    faults
}

/// How the owner differs, if it does.
fn owner(entry: &Entry, document: &Value, is_lossy: bool, counts: &mut Counts) -> Option<String> {
    let owner = document.pointer("/system/audit/socket/owner").and_then(Value::as_str).unwrap_or_default();
    if owner != "process" {
        counts.owners_unknown += 1;
        let never_accepted = entry.report["owner"].is_null();
        return (!is_lossy && !never_accepted).then(|| format!("owner {owner}"));
    }
    let expected_owner = &entry.report["owner"];
    let program = expected_owner["executable"].as_str().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    for (what, actual, expected) in [
        ("process.pid", &document["process"]["pid"], &expected_owner["pid"]),
        ("process.executable", &document["process"]["executable"], &expected_owner["executable"]),
        ("process.name", &document["process"]["name"], &json!(name)),
        ("process.args", &document["process"]["args"], &expected_owner["args"]),
        ("uid", &document["system"]["audit"]["socket"]["uid"], &entry.report["uid"]),
        ("gid", &document["system"]["audit"]["socket"]["gid"], &entry.report["gid"]),
        ("euid", &document["system"]["audit"]["socket"]["euid"], &entry.report["euid"]),
        ("egid", &document["system"]["audit"]["socket"]["egid"], &entry.report["egid"]),
    ] {
        if actual != expected {
            return Some(if actual.is_null() { format!("{what} is missing") } else { format!("{what} is wrong") });
        }
    }
    counts.owners_right += 1;
    None
}

/// How the outcome differs, if it does.
fn outcome(entry: &Entry, document: &Value, is_lossy: bool) -> Option<String> {
    if entry.end.transport == Transport::Udp {
        return None;
    }
    let outcome = document["event"]["outcome"].as_str().unwrap_or_default();
    let code = document["error"]["code"].as_str();
    let is_right = match entry.text("outcome") {
        Some("success") => outcome == "success",
        // An ICMP error from a local rule or over veth arrives while the call holds the socket. The kernel then stores it
        // only in `sk_err_soft`, but the document must have it.
        expected => outcome == "failure" && code == expected,
    };
    (!is_right && !is_lossy)
        .then(|| format!("outcome {outcome} {} instead of {}", code.unwrap_or(""), entry.report["outcome"]))
}

/// How the name differs, if it does.
fn name(entry: &Entry, document: &Value, counts: &mut Counts) -> Option<String> {
    let remote = if entry.is_initiator() { "destination" } else { "source" };
    match (document[remote]["domain"].as_str(), entry.text("name")) {
        (None, None) => None,
        (None, Some(_)) => {
            // The monitor sees DNS packets of the first host only.
            match entry.end.host {
                0 => counts.names_missing += 1,
                _ => counts.names_not_seen += 1,
            }
            None
        }
        (Some(actual), Some(expected)) if actual == expected => {
            counts.names_right += 1;
            None
        }
        (Some(_), Some(_)) => Some("a name other than the one looked up".to_owned()),
        (Some(_), None) => Some("a name that was not looked up".to_owned()),
    }
}
