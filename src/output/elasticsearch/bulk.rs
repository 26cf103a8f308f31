//! The bulk API: makes requests and interprets answers. Does no I/O.
//!
//! An answer counts only if it is about the documents that were sent: the same number, in the same order, with the same `_id`. Any
//! other answer acknowledges nothing.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

use crate::model::escape::printable;
use crate::output::Kind;

/// The placeholder for the kind of a document in the name of an index.
pub const KIND: &str = "{kind}";
/// The maximum length of a reason in characters.
const MAX_REASON_LEN: usize = 300;

/// What the server did with one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The document is in the index.
    Written,
    /// The document was already in the index: it was sent before, and the answer was lost.
    Duplicate,
    /// Not written; a retry may succeed.
    Retry(u16, String),
    /// Refused for good.
    Rejected(u16, String),
}

/// The `_id` of a document: the same for the same bytes, and collision-resistant.
///
/// The first 128 bits of the BLAKE3 hash, in URL-safe base64. (SHA-256 would do, too, but takes seven times as long on a
/// processor without instructions for it.)
pub fn id(document: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(&blake3::hash(document).as_bytes()[..16])
}

/// The index that documents of a kind go to.
pub fn index_of(pattern: &str, kind: Kind) -> String {
    pattern.replace(KIND, kind.name())
}

/// The index of each kind of documents.
#[derive(Debug)]
pub struct Indices(Vec<(Kind, String)>);

impl Indices {
    /// The indices of a pattern.
    pub fn new(pattern: &str) -> Self {
        Self(Kind::ALL.into_iter().map(|kind| (kind, index_of(pattern, kind))).collect())
    }

    /// The index for documents of this kind.
    pub fn of(&self, kind: Kind) -> &str {
        self.0.iter().find(|(of, _)| *of == kind).map_or("", |(_, index)| index)
    }
}

/// Appends the two lines that create a document.
pub fn create(index: &str, id: &str, document: &[u8], to: &mut Vec<u8>) {
    // Names of indices and ids hold nothing that JSON would have to escape.
    for part in ["{\"create\":{\"_index\":\"", index, "\",\"_id\":\"", id, "\"}}\n"] {
        to.extend_from_slice(part.as_bytes());
    }
    to.extend_from_slice(document);
    to.push(b'\n');
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    items: Vec<Item<'a>>,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    create: Created<'a>,
}

#[derive(Deserialize)]
struct Created<'a> {
    #[serde(borrow)]
    _id: Cow<'a, str>,
    status: u16,
    #[serde(default)]
    error: Value,
}

/// The verdict on each document, from an answer to a request with the documents of these ids.
///
/// # Errors
/// The answer is not about these documents.
pub fn verdicts<'a>(answer: &[u8], ids: impl ExactSizeIterator<Item = &'a str>) -> Result<Vec<Verdict>, String> {
    let answer: Answer<'_> = serde_json::from_slice(answer)
        .map_err(|error| format!("the answer is not from the bulk API, or is truncated ({error})"))?;
    if answer.items.len() != ids.len() {
        return Err(format!("the answer is about {} documents, but {} were sent", answer.items.len(), ids.len()));
    }
    if let Some((item, id)) = answer.items.iter().zip(ids).find(|(item, id)| item.create._id != *id) {
        return Err(format!("the answer is about {:?}, but {id} was sent", printable(&item.create._id, 40)));
    }
    Ok(answer.items.into_iter().map(|item| verdict(item.create)).collect())
}

fn verdict(created: Created<'_>) -> Verdict {
    match created.status {
        200..=299 => Verdict::Written,
        409 => Verdict::Duplicate,
        // These concern the index or the sender, not the document, and can be fixed.
        401 | 403 | 404 | 408 | 429 | 500.. => Verdict::Retry(created.status, reason(created.status, &created.error)),
        status => Verdict::Rejected(status, reason(status, &created.error)),
    }
}

/// `status: type: reason`, with the innermost cause.
fn reason(status: u16, error: &Value) -> String {
    let said = |error: &Value| match error {
        Value::String(text) => text.clone(),
        error => [&error["type"], &error["reason"]].iter().filter_map(|it| it.as_str()).collect::<Vec<_>>().join(": "),
    };
    let mut text = format!("{status}: {}", said(error));
    if error["caused_by"].is_object() {
        text += &format!(" ({})", said(&error["caused_by"]));
    }
    printable(&text, MAX_REASON_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("id{number}")).collect()
    }

    #[test]
    fn an_id_is_the_same_for_the_same_bytes() {
        // From `printf abc | b3sum --raw | head -c 16 | basenc --base64url`.
        assert_eq!(id(b"abc"), "ZDezrDhGUTP_tjt1JzqNtQ");
        assert_ne!(id(b"abd"), id(b"abc"));
    }

    #[test]
    fn a_document_is_two_lines() {
        let mut body = Vec::new();
        create("logs-socktrail.flow-default", "x", b"{\"a\":1}", &mut body);
        let expected = "{\"create\":{\"_index\":\"logs-socktrail.flow-default\",\"_id\":\"x\"}}\n{\"a\":1}\n";
        assert_eq!(String::from_utf8(body).unwrap(), expected);
        assert_eq!(index_of("logs-socktrail.{kind}-default", Kind::SocketEvent), "logs-socktrail.event-default");
        assert_eq!(index_of("mine", Kind::SocketEvent), "mine");
    }

    /// As in the reference of Elasticsearch's bulk API.
    #[test]
    fn each_document_has_its_own_verdict() {
        let answer = br#"{"took":30,"errors":true,"items":[
            {"create":{"_index":"i","_id":"id0","_version":1,"result":"created","status":201}},
            {"create":{"_index":"i","_id":"id1","status":409,"error":{"type":"version_conflict_engine_exception","reason":"[id1]: version conflict"}}},
            {"create":{"_index":"i","_id":"id2","status":429,"error":{"type":"es_rejected_execution_exception","reason":"queue is full"}}},
            {"create":{"_index":"i","_id":"id3","status":400,"error":{"type":"document_parsing_exception","reason":"failed to parse field [source.ip]","caused_by":{"type":"illegal_argument_exception","reason":"'x' is not an IP string literal."}}}},
            {"create":{"_index":"i","_id":"id4","status":403,"error":{"type":"cluster_block_exception","reason":"index [i] blocked"}}},
            {"create":{"_index":"i","_id":"id5","status":503,"error":"unavailable"}}
        ]}"#;
        let expected = [
            Verdict::Written,
            Verdict::Duplicate,
            Verdict::Retry(429, "429: es_rejected_execution_exception: queue is full".into()),
            Verdict::Rejected(400, "400: document_parsing_exception: failed to parse field [source.ip] (illegal_argument_exception: 'x' is not an IP string literal.)".into()),
            Verdict::Retry(403, "403: cluster_block_exception: index [i] blocked".into()),
            Verdict::Retry(503, "503: unavailable".into()),
        ];
        assert_eq!(verdicts(answer, ids(6).iter().map(String::as_str)).unwrap(), expected);
    }

    #[test]
    fn an_answer_about_something_else_acknowledges_nothing() {
        for (answer, expected) in [
            (&br#"{"items":[]}"#[..], "about 0 documents, but 1 were sent"),
            (br#"{"items":[{"create":{"_id":"other","status":201}}]}"#, "\"other\", but id0"),
            (br#"{"items":[{"index":{"_id":"id0","status":201}}]}"#, "not from the bulk API"),
            (br#"{"errors":false}"#, "not from the bulk API"),
            (b"<html>Welcome to our hotel</html>", "not from the bulk API"),
            (br#"{"items":[{"create":{"_id":"id0","sta"#, "truncated"),
            (b"", "truncated"),
        ] {
            let problem = verdicts(answer, ids(1).iter().map(String::as_str)).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn a_reason_cannot_steer_a_terminal() {
        let long = "\u{1b}[2J".repeat(1000);
        let answer =
            serde_json::json!({"items": [{"create": {"_id": "id0", "status": 400, "error": long}}]}).to_string();
        let Verdict::Rejected(400, reason) =
            &verdicts(answer.as_bytes(), ids(1).iter().map(String::as_str)).unwrap()[0]
        else {
            panic!()
        };
        assert!(reason.chars().count() <= MAX_REASON_LEN && !reason.chars().any(char::is_control));
    }
}
