//! Documents that could not be written to the disk wait in memory, up to a limit.

use std::collections::VecDeque;

use crate::output::{Batch, Kind};

/// Documents that could not be written to the disk.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) documents: VecDeque<(Kind, Box<[u8]>)>,
    pub(super) bytes: usize,
    /// The number of the first document, counted from the start of the program.
    pub(super) first: u64,
    /// Whether some of these documents are being sent.
    pub(super) in_flight: bool,
}

impl Memory {
    /// Adds documents, and drops some if all together have more than `limit` bytes. Returns how many were dropped.
    pub(super) fn add<'a>(&mut self, documents: impl Iterator<Item = (Kind, &'a [u8])>, limit: usize) -> usize {
        for (kind, document) in documents {
            self.bytes += document.len();
            self.documents.push_back((kind, document.into()));
        }
        let mut dropped = 0;
        while self.bytes > limit && !self.in_flight {
            self.remove_before(self.first + 1);
            dropped += 1;
        }
        while self.bytes > limit {
            // The oldest documents are being sent, so the newest are dropped.
            let Some((_, document)) = self.documents.pop_back() else { break };
            self.bytes -= document.len();
            dropped += 1;
        }
        dropped
    }

    /// The first documents: up to `documents`, and up to `bytes` unless the first one is larger; `None` if there are none.
    /// They count as being sent. Also returns the number of the document after them.
    pub(super) fn next(&mut self, documents: usize, bytes: usize) -> Option<(Batch, u64)> {
        let mut batch = Batch::default();
        for (kind, document) in self.documents.iter().take(documents) {
            if !batch.is_empty() && batch.lines().len() + document.len() > bytes {
                break;
            }
            batch.push_json(*kind, document);
        }
        self.in_flight = !batch.is_empty();
        let end = self.first + batch.len() as u64;
        (!batch.is_empty()).then_some((batch, end))
    }

    /// Up to `documents` documents from the one with this number on.
    pub(super) fn from(&self, first: u64, documents: usize) -> Batch {
        let skip = usize::try_from(first.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let mut batch = Batch::default();
        let rest = self.documents.iter().skip(skip).take(documents);
        rest.for_each(|(kind, document)| batch.push_json(*kind, document));
        batch
    }

    /// Removes the documents before this number.
    pub(super) fn remove_before(&mut self, end: u64) {
        while self.first < end {
            let Some((_, document)) = self.documents.pop_front() else { break };
            self.bytes -= document.len();
            self.first += 1;
        }
        self.in_flight = false;
    }
}
