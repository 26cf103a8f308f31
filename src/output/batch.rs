//! Documents on their way to the outputs.

use std::io;

use serde::Serialize;

use super::escape::append_json;

/// What a document tells of. Outputs may keep the kinds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Kind {
    /// A flow.
    Flow = 1,
    /// A socket call.
    Event = 2,
    /// What a sensor noticed.
    Sensor = 3,
    /// What was missed.
    Loss = 4,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Flow, Self::Event, Self::Sensor, Self::Loss];

    /// As it stands in names of indices.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Event => "event",
            Self::Sensor => "sensor",
            Self::Loss => "loss",
        }
    }

    /// The kind that has this number in a spool.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Documents in JSON, in order, one a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    lines: Vec<u8>,
    ends: Vec<(Kind, usize)>,
}

impl Batch {
    /// With room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { lines: Vec::with_capacity(bytes), ends: Vec::new() }
    }

    /// Adds a document.
    ///
    /// # Errors
    /// It cannot be written as JSON; then the batch is as it was.
    pub fn push(&mut self, kind: Kind, document: &impl Serialize) -> io::Result<()> {
        append_json(&mut self.lines, document)?;
        self.end_line(kind);
        Ok(())
    }

    /// Adds a document that is JSON on one line already.
    pub fn push_json(&mut self, kind: Kind, json: &[u8]) {
        self.lines.extend_from_slice(json);
        self.end_line(kind);
    }

    fn end_line(&mut self, kind: Kind) {
        self.lines.push(b'\n');
        self.ends.push((kind, self.lines.len()));
    }

    /// The documents, each without the newline at its end.
    pub fn documents(&self) -> impl ExactSizeIterator<Item = (Kind, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(kind, end)| {
            let document = &self.lines[start..end - 1];
            start = end;
            (kind, document)
        })
    }

    /// All of them as lines.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
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
    fn what_cannot_be_json_leaves_no_trace() {
        let mut batch = Batch::default();
        let keys = std::collections::HashMap::from([((1, 2), 3)]);
        assert!(batch.push(Kind::Flow, &keys).is_err());
        assert_eq!(batch, Batch::default());
    }

    #[test]
    fn kinds_have_numbers_of_their_own() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind as u8), Some(kind));
        }
        assert_eq!(Kind::from_number(0), None);
    }
}
