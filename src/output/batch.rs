//! Batches of documents for the outputs.

use std::io;

use serde::Serialize;

use crate::documents::json::append_json;

/// The kind of a document. Outputs may treat kinds differently, for example write them to different indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Kind {
    /// A flow.
    Flow = 1,
    /// A socket event.
    SocketEvent = 2,
    /// A sensor event.
    Sensor = 3,
    /// A loss.
    Loss = 4,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Flow, Self::SocketEvent, Self::Sensor, Self::Loss];

    /// The kind, as names of indices contain it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::SocketEvent => "event",
            Self::Sensor => "sensor",
            Self::Loss => "loss",
        }
    }

    /// The kind with this number in a spool.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Documents as JSON, in order, one per line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    lines: Vec<u8>,
    /// The kind of each document, and where the next line begins.
    ends: Vec<(Kind, usize)>,
}

impl Batch {
    /// An empty batch with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { lines: Vec::with_capacity(bytes), ends: Vec::new() }
    }

    /// Adds a document.
    ///
    /// # Errors
    /// The document cannot be serialized. The batch is then unchanged.
    pub fn push(&mut self, kind: Kind, document: &impl Serialize) -> io::Result<()> {
        append_json(&mut self.lines, document)?;
        self.end_line(kind);
        Ok(())
    }

    /// Adds a document that is already JSON on one line.
    pub fn push_json(&mut self, kind: Kind, json: &[u8]) {
        self.lines.extend_from_slice(json);
        self.end_line(kind);
    }

    fn end_line(&mut self, kind: Kind) {
        self.lines.push(b'\n');
        self.ends.push((kind, self.lines.len()));
    }

    /// The documents, without newlines.
    pub fn documents(&self) -> impl ExactSizeIterator<Item = (Kind, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(kind, end)| {
            let document = &self.lines[start..end - 1];
            start = end;
            (kind, document)
        })
    }

    /// All documents, each followed by a newline.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// The number of documents.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no documents.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_come_out_as_they_went_in() {
        let mut batch = Batch::default();
        batch.push(Kind::Flow, &serde_json::json!({"a": 1})).unwrap();
        batch.push_json(Kind::Sensor, b"{}");
        let documents: Vec<_> = batch.documents().collect();
        assert_eq!(documents, [(Kind::Flow, &b"{\"a\":1}"[..]), (Kind::Sensor, b"{}")]);
        assert_eq!(batch.lines(), b"{\"a\":1}\n{}\n");
        assert_eq!(batch.len(), 2);
    }

    #[test]
    fn a_document_that_cannot_be_serialized_leaves_the_batch_unchanged() {
        let mut batch = Batch::default();
        let keys = std::collections::HashMap::from([((1, 2), 3)]);
        assert!(batch.push(Kind::Flow, &keys).is_err());
        assert_eq!(batch, Batch::default());
    }

    #[test]
    fn a_kind_is_found_by_its_number() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind as u8), Some(kind));
        }
        assert_eq!(Kind::from_number(0), None);
    }
}
