//! Differences between a document and a workload's report.

use serde_json::{Value, json};

use super::reports::Report;
use super::verdict::Counts;
use crate::capture::compare::{LOST, marks};
use crate::capture::wire::Transport;

/// The differences between a document and a report.
pub(super) fn differences(report: &Report, document: &Value, counts: &mut Counts) -> Vec<String> {
    let mut faults = Vec::new();
    let is_lossy = marks(document).contains(&LOST);
    faults.extend(owner(report, document, is_lossy, counts));
    let direction = &document["network"]["direction"];
    if *direction != report.fields["direction"] && !(is_lossy && direction == "unknown") {
        faults.push(format!("direction {direction} instead of {}", report.fields["direction"]));
    }
    faults.extend(outcome(report, document, is_lossy));
    faults.extend(name(report, document, counts));
    let continues = matches!(document["event"]["reason"].as_str(), Some("shutdown" | "interim"));
    if document["flow"]["final"] == json!(continues) {
        let (is_final, reason) = (&document["flow"]["final"], &document["event"]["reason"]);
        faults.push(format!("flow.final is {is_final}, event.reason is {reason}"));
    }
    faults
}

/// The first difference of the owner.
fn owner(report: &Report, document: &Value, is_lossy: bool, counts: &mut Counts) -> Option<String> {
    let owner = document.pointer("/system/audit/socket/owner").and_then(Value::as_str).unwrap_or_default();
    if owner != "process" {
        counts.owners_unknown += 1;
        return (!is_lossy).then(|| format!("owner {owner}"));
    }
    let expected_owner = &report.fields["owner"];
    let program = expected_owner["executable"].as_str().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    for (what, actual, expected) in [
        ("process.pid", &document["process"]["pid"], &expected_owner["pid"]),
        ("process.executable", &document["process"]["executable"], &expected_owner["executable"]),
        ("process.name", &document["process"]["name"], &json!(name)),
        ("process.args", &document["process"]["args"], &expected_owner["args"]),
        ("uid", &document["system"]["audit"]["socket"]["uid"], &report.fields["uid"]),
        ("gid", &document["system"]["audit"]["socket"]["gid"], &report.fields["gid"]),
        ("euid", &document["system"]["audit"]["socket"]["euid"], &report.fields["euid"]),
        ("egid", &document["system"]["audit"]["socket"]["egid"], &report.fields["egid"]),
    ] {
        if actual != expected {
            return Some(if actual.is_null() { format!("{what} is missing") } else { format!("{what} is wrong") });
        }
    }
    counts.owners_right += 1;
    None
}

/// The difference of the outcome.
fn outcome(report: &Report, document: &Value, is_lossy: bool) -> Option<String> {
    if report.end.transport == Transport::Udp {
        return None;
    }
    let outcome = document["event"]["outcome"].as_str().unwrap_or_default();
    let code = document["error"]["code"].as_str();
    let is_right = match report.text("outcome") {
        Some("success") => outcome == "success",
        // An ICMP error from a local rule or over veth arrives while the call holds the socket. The kernel then stores it
        // only in `sk_err_soft`, but the document must have it.
        expected => outcome == "failure" && code == expected,
    };
    (!is_right && !is_lossy)
        .then(|| format!("outcome {outcome} {} instead of {}", code.unwrap_or(""), report.fields["outcome"]))
}

/// The difference of the name.
fn name(report: &Report, document: &Value, counts: &mut Counts) -> Option<String> {
    let remote = if report.is_initiator() { "destination" } else { "source" };
    match (document[remote]["domain"].as_str(), report.text("name")) {
        (None, None) => None,
        (None, Some(_)) => {
            // The monitor sees DNS packets of the first host only.
            match report.end.host {
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
