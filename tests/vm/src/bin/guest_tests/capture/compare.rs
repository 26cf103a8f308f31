//! Documents against captures.

use std::net::SocketAddr;

use serde_json::Value;

use super::stage::{Expected, Side};
use super::wire::{Count, Key, Transport, Way, Wire};
use crate::helpers::document::end;

/// What the interfaces of a link carried.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) client: Wire,
    /// Where the server has an interface of its own.
    pub(crate) server: Option<Wire>,
}

impl Captured {
    /// What a host's interface carried of a flow: what left, and what arrived.
    fn of(&self, flow: &Expected) -> (Count, Count) {
        let (wire, [sent, received]) = self.wire_of(flow);
        (wire.of(sent), wire.of(received))
    }

    /// The largest datagram that was captured of a flow, in bytes.
    fn largest(&self, flow: &Expected) -> u64 {
        let (wire, keys) = self.wire_of(flow);
        keys.map(|key| wire.largest(key)).into_iter().max().unwrap_or(0)
    }

    /// Whether fragments of a flow were captured.
    fn had_fragments(&self, flow: &Expected) -> bool {
        let (wire, keys) = self.wire_of(flow);
        keys.into_iter().any(|key| wire.had_fragments(key))
    }

    /// The interface of a flow's host, and the flow's two directions there.
    fn wire_of(&self, flow: &Expected) -> (&Wire, [Key; 2]) {
        let wire = match flow.side {
            Side::Client => &self.client,
            Side::Server => self.server.as_ref().unwrap_or(&self.client),
        };
        let Expected { transport, local, remote, .. } = *flow;
        let sent = Key { way: Way::Out, transport, from: local, to: remote };
        (wire, [sent, Key { way: Way::In, transport, from: remote, to: local }])
    }
}

/// How documents differ from the captures.
#[derive(Debug)]
pub(crate) struct Difference {
    /// In words.
    pub(crate) text: String,
    /// Whether only documents differ that lack samples, and say too little: that is what they say they do.
    pub(crate) is_admitted: bool,
    /// Whether any document of the flows says that samples were lost, also where its direction is unknown for that.
    pub(crate) is_lossy: bool,
}

/// Whether there is one document for each of the flows, and it says what was captured.
pub(crate) fn compare(documents: &[Value], flows: &[Expected], captured: &Captured) -> Result<(), Difference> {
    let mut texts = Vec::new();
    let mut is_admitted = true;
    for flow in flows {
        let found: Vec<_> = documents.iter().filter(|document| is_of(document, flow)).collect();
        if found.len() != flow.copies {
            texts.push(format!("{}: {} documents instead of {}", name(flow), found.len(), flow.copies));
            is_admitted = false;
        }
        for document in &found {
            let marks = marks(document);
            for (text, too_little) in differing(document, flow, captured, &marks) {
                // A loss elsewhere marks this one, too: it is not what makes the difference, unless nothing else does.
                let others: Vec<_> = marks.iter().copied().filter(|mark| *mark != LOST).collect();
                let told = if others.is_empty() { text } else { format!("{text}, marked {}", others.join(" ")) };
                texts.push(told);
                is_admitted &= too_little && marks.contains(&LOST);
            }
        }
    }
    if texts.is_empty() {
        return Ok(());
    }
    let is_related = |document: &&Value| flows.iter().any(|flow| is_related(document, flow));
    let related: Vec<_> = documents.iter().filter(is_related).collect();
    let is_lossy = related.iter().any(|document| is_lossy(document));
    let shown: Vec<_> = related.iter().map(ToString::to_string).collect();
    Err(Difference { text: format!("{}\nin\n{}", texts.join("\n"), shown.join("\n")), is_admitted, is_lossy })
}

/// The documents of a flow.
pub(crate) fn documents_of(documents: &[Value], flow: &Expected) -> Vec<Value> {
    documents.iter().filter(|document| is_of(document, flow)).cloned().collect()
}

/// Samples were lost, or probes missed.
pub(crate) const LOST: &str = "samples_lost";
/// Packets had headers that could not be read.
const UNREAD: &str = "headers_unread";
/// Packets travelled as fragments.
const FRAGMENTS: &str = "fragments";
/// What counted as one datagram may have been several.
pub(crate) const SEGMENTS: &str = "datagram_segments";
/// Merged segments may have had other headers.
const MERGED: &str = "merged_segments";
/// Data came when the socket was closed, perhaps several segments as one.
const LATE: &str = "late_data";
/// The most bytes of options that a TCP header has.
pub(crate) const MOST_OPTIONS: u64 = 40;
/// The most bytes of IPv6's header and TCP's.
const MOST_HEADERS: i128 = 40 + 60;
/// A datagram that is larger lies in memory as segments do: `SKB_MAX_ALLOC` of the kernel, four pages, less what is not data.
const PIECES: u64 = 15_000;

/// Why a document says it may not be exact.
pub(crate) fn marks(document: &Value) -> Vec<&str> {
    document["flow"]["inexact"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether a document says that something of its flow was not seen.
pub(crate) fn is_lossy(document: &Value) -> bool {
    marks(document).contains(&LOST)
}

/// Whether all documents that are wanted are there.
pub(crate) fn are_there(documents: &[Value], flows: &[Expected]) -> bool {
    flows.iter().all(|flow| documents.iter().filter(|document| is_of(document, flow)).count() >= flow.copies)
}

/// Whether a difference is within what the marks allow: packets and bytes that a document has received more than were
/// captured.
pub(crate) fn is_within_bounds(marks: &[&str], captured: Count, (more, larger): (i128, i128)) -> bool {
    let packets = i128::from(captured.packets);
    let merged = marks.contains(&MERGED) && more == 0 && larger.abs() <= i128::from(bytes_off(marks, captured));
    // Few segments arrive merged after the close, and only the headers of those are missing.
    let few = (0..=packets / 10).contains(&-more);
    merged || marks.contains(&LATE) && few && (0..=-more * MOST_HEADERS).contains(&-larger)
}

/// How many bytes of so much that was received may be wrong. With the mark of merged segments their headers are
/// estimated; the error is at most a header's options for each packet.
pub(crate) fn bytes_off(marks: &[&str], received: Count) -> u64 {
    if marks.contains(&MERGED) { MOST_OPTIONS * received.packets } else { 0 }
}

/// The differences in words, each with whether the document says too little; and marks that it should not have.
fn differing(document: &Value, flow: &Expected, captured: &Captured, marks: &[&str]) -> Vec<(String, bool)> {
    let (sent, received) = captured.of(flow);
    let (local, remote) = match flow.side {
        Side::Client => ("source", "destination"),
        Side::Server => ("destination", "source"),
    };
    let mut differences = Vec::new();
    let mut is_exact = true;
    if sent.packets + received.packets == 0 {
        differences.push((format!("{}: the capture has seen nothing", name(flow)), false));
    }
    for (what, end, captured) in [("sent", local, sent), ("received", remote, received)] {
        let difference = |what: &str, captured: u64| {
            let said = document[end][what].as_u64().map_or(i128::MIN, i128::from);
            said.saturating_sub(captured.into())
        };
        let (more, larger) = (difference("packets", captured.packets), difference("bytes", captured.bytes));
        is_exact &= (more, larger) == (0, 0);
        let is_told = what == "received" && is_within_bounds(marks, captured, (more, larger));
        if (more, larger) != (0, 0) && !is_told {
            let (name, Count { packets, bytes }) = (name(flow), captured);
            let text = format!("{name} {what}: {more:+} packets, {larger:+} bytes (of {packets}, {bytes})");
            differences.push((text, more <= 0 && larger <= 0));
        }
    }
    for (mark, is_right) in [
        // What was missed elsewhere may have been this flow's, as far as anybody knows.
        (LOST, true),
        (UNREAD, !is_exact),
        (FRAGMENTS, captured.had_fragments(flow)),
        (SEGMENTS, flow.transport == Transport::Udp && (!is_exact || captured.largest(flow) > PIECES)),
        (MERGED, flow.transport == Transport::Tcp),
        (LATE, flow.transport == Transport::Tcp),
    ] {
        if marks.contains(&mark) && !is_right {
            differences.push((format!("{}: {mark}, and yet it is exact", name(flow)), false));
        }
    }
    if captured.had_fragments(flow) && !marks.contains(&FRAGMENTS) {
        differences.push((format!("{}: its fragments are not told", name(flow)), false));
    }
    for path in ["/flow/final", "/flow/complete"] {
        if document.pointer(path) != Some(&Value::Bool(true)) {
            differences.push((format!("{}: {path} is not true", name(flow)), false));
        }
    }
    differences
}

/// `client's` or `server's`.
fn name(flow: &Expected) -> &'static str {
    match flow.side {
        Side::Client => "client's",
        Side::Server => "server's",
    }
}

/// Whether a document is about a flow. On a host that talks to itself both ends' documents have the same addresses,
/// and differ in their direction.
fn is_of(document: &Value, flow: &Expected) -> bool {
    let (client, server, direction) = match flow.side {
        Side::Client => (flow.local, flow.remote, "egress"),
        Side::Server => (flow.remote, flow.local, "ingress"),
    };
    is_between(document, client, server, flow.transport) && document["network"]["direction"] == direction
}

/// Whether a document has anything to do with a flow.
fn is_related(document: &Value, flow: &Expected) -> bool {
    let ends = [end(document, "source"), end(document, "destination")];
    let ports = ends.map(|end| end.map(|end| end.port()));
    [flow.local, flow.remote].iter().all(|end| ports.contains(&Some(end.port())))
}

fn is_between(document: &Value, client: SocketAddr, server: SocketAddr, transport: Transport) -> bool {
    let name = match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    end(document, "source") == Some(client)
        && end(document, "destination") == Some(server)
        && document["network"]["transport"] == name
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use serde_json::json;

    use super::super::stage::both;
    use super::super::wire::Segments;
    use super::*;

    /// A packet of 128 bytes from client to server, over loopback.
    fn captured() -> Captured {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([127, 0, 0, 1], [127, 0, 0, 1], 64).udp(9, 53).write(&mut packet, &[0; 100]).unwrap();
        let mut wire = Wire::default();
        wire.add(Way::Out, &packet, Segments::One).unwrap();
        wire.add(Way::In, &packet, Segments::One).unwrap();
        Captured { client: wire, server: None }
    }

    fn document(direction: &str, packets: u64, bytes: u64) -> Value {
        json!({
            "source": {"ip": "127.0.0.1", "port": 9, "packets": packets, "bytes": bytes},
            "destination": {"ip": "127.0.0.1", "port": 53, "packets": 0, "bytes": 0},
            "network": {"transport": "udp", "direction": direction},
            "flow": {"final": true, "complete": true},
        })
    }

    fn compared(documents: &[Value]) -> Result<(), Difference> {
        let flows = both(Transport::Udp, "127.0.0.1:9".parse().unwrap(), "127.0.0.1:53".parse().unwrap());
        compare(documents, &flows, &captured())
    }

    #[test]
    fn equal_counts_are_equal() {
        compared(&[document("egress", 1, 128), document("ingress", 1, 128)]).unwrap();
    }

    #[test]
    fn each_difference_is_told() {
        let told = |documents: &[Value]| compared(documents).unwrap_err().text;
        let right = document("egress", 1, 128);
        let few = told(&[right.clone(), document("ingress", 0, 100)]);
        assert!(few.starts_with("server's received: -1 packets, -28 bytes (of 1, 128)\n"), "{few}");
        let missing = told(std::slice::from_ref(&right));
        assert!(missing.starts_with("server's: 0 documents instead of 1\n"), "{missing}");
        let twice = told(&[right.clone(), right.clone(), document("ingress", 1, 128)]);
        assert!(twice.starts_with("client's: 2 documents instead of 1\n"), "{twice}");
        let mut half = document("ingress", 1, 128);
        half["flow"]["complete"] = json!(false);
        assert!(told(&[right, half]).starts_with("server's: /flow/complete is not true\n"));
    }

    #[test]
    fn a_mark_must_have_its_reason() {
        let right = document("egress", 1, 128);
        let told = |packets, bytes, mark: &str| {
            let mut other = document("ingress", packets, bytes);
            other["flow"]["inexact"] = json!([mark]);
            compared(&[right.clone(), other]).err().map(|difference| difference.text.lines().next().unwrap().to_owned())
        };
        assert_eq!(told(1, 128, "samples_lost"), None);
        for mark in ["headers_unread", "fragments", "datagram_segments", "merged_segments"] {
            assert_eq!(told(1, 128, mark), Some(format!("server's: {mark}, and yet it is exact, marked {mark}")));
        }
        let short = "server's received: -1 packets, -128 bytes (of 1, 128), marked datagram_segments";
        assert_eq!(told(0, 0, "datagram_segments"), Some(short.to_owned()));
    }

    #[test]
    fn a_document_that_lacks_samples_may_say_too_little() {
        let right = document("egress", 1, 128);
        let is_admitted = |packets, bytes, lossy| {
            let mut other = document("ingress", packets, bytes);
            other["flow"]["inexact"] = if lossy { json!(["samples_lost"]) } else { json!(null) };
            compared(&[right.clone(), other]).unwrap_err().is_admitted
        };
        assert!(is_admitted(0, 0, true) && is_admitted(1, 127, true));
        assert!(!is_admitted(0, 0, false) && !is_admitted(2, 200, true) && !is_admitted(0, 129, true));
    }

    #[test]
    fn a_document_without_a_direction_may_be_lossy_too() {
        let mut other = document("unknown", 0, 0);
        let is_lossy = |other: &Value| compared(&[document("egress", 1, 128), other.clone()]).unwrap_err().is_lossy;
        assert!(!is_lossy(&other));
        other["flow"]["inexact"] = json!(["samples_lost"]);
        assert!(is_lossy(&other));
    }
}
