//! Recordings of real kernels yield the same documents, byte for byte, on every machine.
//!
//! `cargo vm record` renews the recordings and the documents, `cargo vm record --replay-only` only the documents.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// All recordings.
fn recordings() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/recordings");
    let entries = fs::read_dir(folder).expect("the recordings are there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "strec"));
    files.sort();
    assert!(!files.is_empty(), "no recordings");
    files
}

fn replay(file: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_socktrail"));
    command.env_remove("RUST_LOG").args(["replay", "--format", "ecs"]).arg(file);
    let output = command.output().expect("the binary was built");
    assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("documents are UTF-8")
}

#[test]
fn a_recording_gives_the_same_documents_every_time() {
    for file in recordings() {
        let expected = fs::read_to_string(file.with_extension("json")).expect("a recording has its documents");
        let (first, second) = (replay(&file), replay(&file));
        // A difference is easier to read in one document than in all of them.
        for (number, (found, wanted)) in (1..).zip(first.lines().zip(expected.lines())) {
            assert_eq!(found, wanted, "document {number} of {}", file.display());
        }
        assert_eq!(first, expected, "{}", file.display());
        assert_eq!(second, first, "{}", file.display());
    }
}

/// Checks the documents against what the demo does, not against stored documents.
#[test]
fn each_recording_shows_the_demo() {
    for file in recordings() {
        let documents: Vec<Value> =
            replay(&file).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let (out, others): (Vec<_>, Vec<_>) =
            documents.iter().partition(|document| document["network"]["direction"] == "egress");
        let mut clients: Vec<_> = out.iter().map(|document| summary(document)).collect();
        clients.sort();
        let wanted = [
            "curl 127.0.0.1:53 udp",
            "curl 127.0.0.1:8080 tcp",
            "curl ::1:8080 tcp",
            "curl ::1:8080 tcp",
            "nc.openbsd 127.0.0.1:9000 udp",
            "nc.openbsd 127.0.0.1:9001 udp",
        ];
        assert_eq!(clients, wanted, "{}", file.display());

        // One curl connected by name. The answer to its DNS query is in the recording.
        let names: Vec<_> = out.iter().filter_map(|document| document["destination"]["domain"].as_str()).collect();
        assert_eq!(names, ["www.example.test"], "{}", file.display());

        // The server on port 9001 is older than the monitor, so its socket is known from /proc alone.
        let old: Vec<_> = others.iter().filter(|document| document["destination"]["port"] == 9001).collect();
        let [old] = old[..] else { panic!("not one flow to port 9001 in {}: {old:#?}", file.display()) };
        assert_eq!((&old["process"]["name"], &old["flow"]["complete"]), (&json!("nc.openbsd"), &json!(false)));

        // Both ends of a conversation are on this host. The two documents must agree on the packets and bytes of each direction.
        let ends: HashMap<_, _> = others.iter().map(|document| (conversation_id(document), document)).collect();
        assert_eq!(ends.len(), out.len(), "{}", file.display());
        for document in &out {
            let other = ends.get(&conversation_id(document)).unwrap_or_else(|| panic!("no other end of {document:#}"));
            assert_eq!(other["network"]["direction"], "ingress", "{other:#}");
            for end in ["source", "destination"] {
                for number in ["ip", "port", "packets", "bytes"] {
                    assert_eq!(document[end][number], other[end][number], "{number} of {end} in {document:#}");
                }
            }
        }
    }
}

/// Process, destination and transport of a flow.
fn summary(document: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let there = &document["destination"];
    let process = text(&document["process"]["name"]);
    format!("{process} {}:{} {}", text(&there["ip"]), there["port"], text(&document["network"]["transport"]))
}

/// An id that is the same for both ends of a conversation, and different for others.
fn conversation_id(document: &Value) -> (String, String) {
    (document["network"]["community_id"].to_string(), document["source"]["port"].to_string())
}
