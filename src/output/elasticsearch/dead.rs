//! Documents that the server will never take, with the reason, kept for people.

use std::path::PathBuf;
use std::sync::Arc;

use super::bulk::index_of;
use crate::output::{Batch, FileOptions, FileOutput, Kind, Meter, Output as _, OutputError, SyncPolicy};

/// A file of dead letters is done with before it would be larger.
const ROTATE: u64 = 16 << 20;
/// How many of them are kept.
const KEEP: usize = 4;

/// The dead-letter file: a line of JSON for each document.
#[derive(Debug)]
pub struct DeadLetters {
    path: PathBuf,
    index: String,
    file: Option<FileOutput>,
}

impl DeadLetters {
    /// In this file, which is created when it is needed.
    pub fn new(path: PathBuf, index: String) -> Self {
        Self { path, index, file: None }
    }

    /// Keeps a document.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&mut self, kind: Kind, document: &[u8], status: u16, reason: &str) -> Result<(), OutputError> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(FileOutput::open(
                FileOptions {
                    path: self.path.clone(),
                    rotate_size: ROTATE,
                    rotate_every: None,
                    keep: KEEP,
                    gzip: false,
                    sync: SyncPolicy::Always,
                },
                Arc::<Meter>::default(),
            )?),
        };
        let head =
            serde_json::json!({ "index": index_of(&self.index, kind), "status": status, "reason": reason }).to_string();
        // The document is JSON already; it goes in as the last member.
        let mut line = head.into_bytes();
        line.pop();
        line.extend_from_slice(b",\"document\":");
        line.extend_from_slice(document);
        line.push(b'}');
        let mut batch = Batch::default();
        batch.push_json(kind, &line);
        file.write(&batch)
    }
}
