//! Compares documents with captures.

use std::net::SocketAddr;

use serde_json::Value;

use super::testbed::{ExpectedFlow, Side};
use super::wire::{Count, Direction, Key, Transport, Wire};
use crate::helpers::document::endpoint;
use crate::known::is_by_cgroup;

/// The captures on the interfaces of a link.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) client: Wire,
    /// `None` on loopback, where the client's capture has the server's packets.
    pub(crate) server: Option<Wire>,
}

impl Captured {
    /// The packets of a flow that its host's interface sent and received.
    fn of(&self, flow: &ExpectedFlow) -> (Count, Count) {
        let (wire, [sent, received]) = self.wire_of(flow);
        (wire.of(sent), wire.of(received))
    }

    /// The packets of a flow, sent and received, for which its host may have had no full socket.
    fn of_small_sockets(&self, flow: &ExpectedFlow) -> [OfSmallSockets; 2] {
        let (wire, keys) = self.wire_of(flow);
        keys.map(|key| {
            let mut marked = wire.after_close(key);
            marked += wire.syn_acks(key);
            OfSmallSockets { marked, unmarked: wire.after_end(key) }
        })
    }

    /// The largest captured datagram of a flow, in bytes.
    fn largest(&self, flow: &ExpectedFlow) -> u64 {
        let (wire, keys) = self.wire_of(flow);
        keys.map(|key| wire.largest(key)).into_iter().max().unwrap_or(0)
    }

    /// Whether fragments of a flow were captured.
    fn has_fragments(&self, flow: &ExpectedFlow) -> bool {
        let (wire, keys) = self.wire_of(flow);
        keys.into_iter().any(|key| wire.has_fragments(key))
    }

    /// The capture on a flow's host, and the keys of the flow's two directions in it.
    fn wire_of(&self, flow: &ExpectedFlow) -> (&Wire, [Key; 2]) {
        let wire = match flow.side {
            Side::Client => &self.client,
            Side::Server => self.server.as_ref().unwrap_or(&self.client),
        };
        let ExpectedFlow { transport, local, remote, .. } = *flow;
        let sent = Key { direction: Direction::Outbound, transport, from: local, to: remote };
        (wire, [sent, Key { direction: Direction::Inbound, transport, from: remote, to: local }])
    }
}

/// Packets of one direction of a flow for which there may be no full socket.
#[derive(Clone, Copy)]
struct OfSmallSockets {
    /// SYN-ACKs, and packets after the host had closed the flow. The flow is marked if they are missing.
    marked: Count,
    /// Packets after both ends had closed it. They may be missing without a mark.
    unmarked: Count,
}

impl OfSmallSockets {
    /// Whether such packets explain what is missing.
    fn explain(self, difference: CountDifference, is_marked: bool) -> bool {
        let Count { packets, bytes } = if is_marked { self.marked } else { self.unmarked };
        (0..=i128::from(packets)).contains(&-difference.packets) && (0..=i128::from(bytes)).contains(&-difference.bytes)
    }
}

/// A difference between documents and captures.
#[derive(Debug)]
pub(crate) struct Difference {
    /// A message with all differences and the documents.
    pub(crate) text: String,
    /// Whether all documents that differ are marked as lossy and count too little, as lost samples explain.
    pub(crate) is_explained_by_loss: bool,
    /// Whether any document of the flows is marked as lossy, including documents whose direction is unknown.
    pub(crate) is_lossy: bool,
}

/// Fails unless each flow has as many documents as copies, with the captured packets and bytes.
pub(crate) fn compare(documents: &[Value], flows: &[ExpectedFlow], captured: &Captured) -> Result<(), Difference> {
    let mut texts = Vec::new();
    let mut is_explained_by_loss = true;
    for flow in flows {
        let found: Vec<_> = documents.iter().filter(|document| is_of(document, flow)).collect();
        if found.len() != flow.copies {
            texts.push(format!("{}: {} documents instead of {}", name(flow), found.len(), flow.copies));
            is_explained_by_loss = false;
        }
        for document in &found {
            let marks = marks(document);
            for Mismatch { text, counts_too_little } in mismatches(document, flow, captured, &marks) {
                // The text does not name `samples_lost`: a loss of another flow's samples sets it, too.
                let others: Vec<_> = marks.iter().copied().filter(|mark| *mark != LOST).collect();
                let text = if others.is_empty() { text } else { format!("{text}, marked {}", others.join(" ")) };
                texts.push(text);
                is_explained_by_loss &= counts_too_little && marks.contains(&LOST);
            }
        }
    }
    if texts.is_empty() {
        return Ok(());
    }
    let is_related = |document: &&Value| flows.iter().any(|flow| is_related(document, flow));
    let related: Vec<_> = documents.iter().filter(is_related).collect();
    let is_lossy = related.iter().any(|document| is_lossy(document));
    let lines: Vec<_> = related.iter().map(ToString::to_string).collect();
    Err(Difference { text: format!("{}\nin\n{}", texts.join("\n"), lines.join("\n")), is_explained_by_loss, is_lossy })
}

/// How much more a document counts than was captured; negative if it counts less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CountDifference {
    pub(crate) packets: i128,
    pub(crate) bytes: i128,
}

/// The documents of a flow.
pub(crate) fn documents_of(documents: &[Value], flow: &ExpectedFlow) -> Vec<Value> {
    documents.iter().filter(|document| is_of(document, flow)).cloned().collect()
}

/// Samples were lost, or probes missed hits.
pub(crate) const LOST: &str = "samples_lost";
/// Packets had headers that could not be read.
const UNREAD: &str = "headers_unread";
/// Packets travelled as fragments.
const FRAGMENTS: &str = "fragments";
/// A packet that counts as one datagram may have been several (UDP GSO or GRO).
pub(crate) const SEGMENTS: &str = "datagram_segments";
/// Segments merged by GRO may have had other TCP options than the packet from which their headers were estimated.
const MERGED: &str = "merged_segments";
/// Data arrived for a closed socket, perhaps in a GRO packet.
const LATE: &str = "late_data";
/// Packets belonged to one of TCP's small sockets: a SYN-ACK, or what the other side sends after this side's close. Only with
/// the backend
/// `cgroup`.
const UNSEEN: &str = "unseen_packets";
/// The largest size of TCP options, in bytes.
pub(crate) const MAX_TCP_OPTIONS: u64 = 40;
/// The largest size of the IPv6 and TCP headers, in bytes.
const MAX_HEADERS: i128 = 40 + 60;
/// The largest datagram whose `sk_buff` is linear: the kernel's `SKB_MAX_ALLOC`, four pages, less overhead. The
/// `sk_buff` of a larger one looks like that of a GSO packet.
const MAX_LINEAR: u64 = 15_000;

/// The reasons why a document may not be exact: `flow.inexact`.
pub(crate) fn marks(document: &Value) -> Vec<&str> {
    document["flow"]["inexact"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether a document is marked as lossy.
pub(crate) fn is_lossy(document: &Value) -> bool {
    marks(document).contains(&LOST)
}

/// Whether all expected documents exist.
pub(crate) fn all_exist(documents: &[Value], flows: &[ExpectedFlow]) -> bool {
    flows.iter().all(|flow| documents.iter().filter(|document| is_of(document, flow)).count() >= flow.copies)
}

/// Whether a document's marks explain how its received packets and bytes differ from the captured ones.
pub(crate) fn is_within_bounds(marks: &[&str], captured: Count, difference: CountDifference) -> bool {
    let CountDifference { packets: more, bytes: larger } = difference;
    let packets = i128::from(captured.packets);
    let merged = marks.contains(&MERGED) && more == 0 && larger.abs() <= i128::from(bytes_off(marks, captured));
    // A GRO packet that arrives after the close counts as one packet, without the headers of its other segments. There are
    // few such packets.
    let few = (0..=packets / 10).contains(&-more);
    merged || marks.contains(&LATE) && few && (0..=-more * MAX_HEADERS).contains(&-larger)
}

/// The largest error of the received bytes that marks explain. The headers of merged segments are estimated: the error
/// of each is at most the size of TCP options.
pub(crate) fn bytes_off(marks: &[&str], received: Count) -> u64 {
    if marks.contains(&MERGED) { MAX_TCP_OPTIONS * received.packets } else { 0 }
}

/// A mismatch between one document and the capture.
struct Mismatch {
    text: String,
    /// Whether the document counts too little, as lost samples explain.
    counts_too_little: bool,
}

impl Mismatch {
    fn other(text: String) -> Self {
        Self { text, counts_too_little: false }
    }
}

/// The mismatches of one document. A mark without a reason is one, too.
fn mismatches(document: &Value, flow: &ExpectedFlow, captured: &Captured, marks: &[&str]) -> Vec<Mismatch> {
    let (sent, received) = captured.of(flow);
    let (local, remote) = match flow.side {
        Side::Client => ("source", "destination"),
        Side::Server => ("destination", "source"),
    };
    let mut mismatches = Vec::new();
    let mut is_exact = true;
    if sent.packets + received.packets == 0 {
        mismatches.push(Mismatch::other(format!("{}: nothing was captured", name(flow))));
    }
    let [small_sent, small_received] = captured.of_small_sockets(flow);
    for (what, end, captured, small) in
        [("sent", local, sent, small_sent), ("received", remote, received, small_received)]
    {
        let difference = |what: &str, captured: u64| {
            let reported = document[end][what].as_u64().map_or(i128::MIN, i128::from);
            reported.saturating_sub(captured.into())
        };
        let (more, larger) = (difference("packets", captured.packets), difference("bytes", captured.bytes));
        is_exact &= (more, larger) == (0, 0);
        let difference = CountDifference { packets: more, bytes: larger };
        let is_unseen = is_by_cgroup() && small.explain(difference, marks.contains(&UNSEEN));
        let is_explained = is_unseen || (what == "received" && is_within_bounds(marks, captured, difference));
        if (more, larger) != (0, 0) && !is_explained {
            let (name, Count { packets, bytes }) = (name(flow), captured);
            let text = format!("{name} {what}: {more:+} packets, {larger:+} bytes (of {packets}, {bytes})");
            mismatches.push(Mismatch { text, counts_too_little: more <= 0 && larger <= 0 });
        }
    }
    for (mark, is_right) in [
        // A loss marks all open flows, because the lost samples could be of any of them.
        (LOST, true),
        (UNREAD, !is_exact),
        (UNSEEN, !is_exact),
        (FRAGMENTS, captured.has_fragments(flow)),
        (SEGMENTS, flow.transport == Transport::Udp && (!is_exact || captured.largest(flow) > MAX_LINEAR)),
        (MERGED, flow.transport == Transport::Tcp),
        (LATE, flow.transport == Transport::Tcp),
    ] {
        if marks.contains(&mark) && !is_right {
            mismatches.push(Mismatch::other(format!("{}: {mark} without a reason", name(flow))));
        }
    }
    if captured.has_fragments(flow) && !marks.contains(&FRAGMENTS) {
        mismatches.push(Mismatch::other(format!("{}: fragments were captured, but there is no mark", name(flow))));
    }
    for path in ["/flow/final", "/flow/complete"] {
        if document.pointer(path) != Some(&Value::Bool(true)) {
            mismatches.push(Mismatch::other(format!("{}: {path} is not true", name(flow))));
        }
    }
    mismatches
}

/// `client's` or `server's`.
fn name(flow: &ExpectedFlow) -> &'static str {
    match flow.side {
        Side::Client => "client's",
        Side::Server => "server's",
    }
}

/// Whether a document is about a flow. On loopback, the documents of both ends have the same addresses and differ in
/// their direction.
fn is_of(document: &Value, flow: &ExpectedFlow) -> bool {
    let (client, server, direction) = match flow.side {
        Side::Client => (flow.local, flow.remote, "egress"),
        Side::Server => (flow.remote, flow.local, "ingress"),
    };
    is_between(document, client, server, flow.transport) && document["network"]["direction"] == direction
}

/// Whether a document has the ports of a flow, in any order.
fn is_related(document: &Value, flow: &ExpectedFlow) -> bool {
    let ends = [endpoint(document, "source"), endpoint(document, "destination")];
    let ports = ends.map(|end| end.map(|end| end.port()));
    [flow.local, flow.remote].iter().all(|end| ports.contains(&Some(end.port())))
}

fn is_between(document: &Value, client: SocketAddr, server: SocketAddr, transport: Transport) -> bool {
    let name = match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    endpoint(document, "source") == Some(client)
        && endpoint(document, "destination") == Some(server)
        && document["network"]["transport"] == name
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use serde_json::json;

    use super::super::testbed::both;
    use super::super::wire::Segments;
    use super::*;

    /// A packet of 128 bytes from client to server, over loopback.
    fn capture() -> Captured {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([127, 0, 0, 1], [127, 0, 0, 1], 64).udp(9, 53).write(&mut packet, &[0; 100]).unwrap();
        let mut wire = Wire::default();
        wire.add(Direction::Outbound, &packet, Segments::One).unwrap();
        wire.add(Direction::Inbound, &packet, Segments::One).unwrap();
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

    fn compare_all(documents: &[Value]) -> Result<(), Difference> {
        let flows = both(Transport::Udp, "127.0.0.1:9".parse().unwrap(), "127.0.0.1:53".parse().unwrap());
        compare(documents, &flows, &capture())
    }

    #[test]
    fn equal_counts_are_no_difference() {
        compare_all(&[document("egress", 1, 128), document("ingress", 1, 128)]).unwrap();
    }

    #[test]
    fn each_difference_is_reported() {
        let message = |documents: &[Value]| compare_all(documents).unwrap_err().text;
        let right = document("egress", 1, 128);
        let few = message(&[right.clone(), document("ingress", 0, 100)]);
        assert!(few.starts_with("server's received: -1 packets, -28 bytes (of 1, 128)\n"), "{few}");
        let missing = message(std::slice::from_ref(&right));
        assert!(missing.starts_with("server's: 0 documents instead of 1\n"), "{missing}");
        let twice = message(&[right.clone(), right.clone(), document("ingress", 1, 128)]);
        assert!(twice.starts_with("client's: 2 documents instead of 1\n"), "{twice}");
        let mut half = document("ingress", 1, 128);
        half["flow"]["complete"] = json!(false);
        assert!(message(&[right, half]).starts_with("server's: /flow/complete is not true\n"));
    }

    #[test]
    fn a_mark_must_have_its_reason() {
        let right = document("egress", 1, 128);
        let message = |packets, bytes, mark: &str| {
            let mut other = document("ingress", packets, bytes);
            other["flow"]["inexact"] = json!([mark]);
            compare_all(&[right.clone(), other])
                .err()
                .map(|difference| difference.text.lines().next().unwrap().to_owned())
        };
        assert_eq!(message(1, 128, "samples_lost"), None);
        for mark in ["headers_unread", "unseen_packets", "fragments", "datagram_segments", "merged_segments"] {
            assert_eq!(message(1, 128, mark), Some(format!("server's: {mark} without a reason, marked {mark}")));
        }
        let short = "server's received: -1 packets, -128 bytes (of 1, 128), marked datagram_segments";
        assert_eq!(message(0, 0, "datagram_segments"), Some(short.to_owned()));
    }

    #[test]
    fn a_lossy_document_may_count_too_little() {
        let right = document("egress", 1, 128);
        let is_explained_by_loss = |packets, bytes, lossy| {
            let mut other = document("ingress", packets, bytes);
            other["flow"]["inexact"] = if lossy { json!(["samples_lost"]) } else { json!(null) };
            compare_all(&[right.clone(), other]).unwrap_err().is_explained_by_loss
        };
        assert!(is_explained_by_loss(0, 0, true) && is_explained_by_loss(1, 127, true));
        assert!(
            !is_explained_by_loss(0, 0, false)
                && !is_explained_by_loss(2, 200, true)
                && !is_explained_by_loss(0, 129, true)
        );
    }

    #[test]
    fn a_document_without_a_direction_may_be_lossy_too() {
        let mut other = document("unknown", 0, 0);
        let is_lossy = |other: &Value| compare_all(&[document("egress", 1, 128), other.clone()]).unwrap_err().is_lossy;
        assert!(!is_lossy(&other));
        other["flow"]["inexact"] = json!(["samples_lost"]);
        assert!(is_lossy(&other));
    }
}
