//! The dead-letter file: documents that the server has refused for good, with the reason.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bulk::index_of;
use crate::output::{Batch, FileOptions, FileOutput, Kind, Meter, Output as _, OutputError, SyncPolicy};

/// The dead-letter file is rotated before it grows larger than this, in bytes.
const ROTATE: u64 = 16 << 20;
/// How many rotated files to keep.
const KEEP: usize = 4;
/// How often further dead letters are logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A document that the server refuses for good.
#[derive(Debug)]
pub struct DeadLetter<'a> {
    /// The kind of the document.
    pub kind: Kind,
    /// Its `_id`.
    pub id: &'a str,
    /// The document.
    pub document: &'a [u8],
    /// The HTTP status.
    pub status: u16,
    /// The reason.
    pub reason: String,
}

/// The dead-letter file: a line of JSON for each document.
#[derive(Debug)]
pub struct DeadLetters {
    path: PathBuf,
    index: String,
    meter: Arc<Meter>,
    file: Option<FileOutput>,
    /// When dead letters were last logged, and how many have come since.
    logged: Option<Instant>,
    unlogged: usize,
}

impl DeadLetters {
    /// A dead-letter file at `path`, which is created when it is needed.
    pub fn new(path: PathBuf, index: String, meter: Arc<Meter>) -> Self {
        Self { path, index, meter, file: None, logged: None, unlogged: 0 }
    }

    /// Writes all of these documents or, after an error, none.
    ///
    /// # Errors
    /// The documents cannot be written.
    pub fn keep(&mut self, letters: &[DeadLetter<'_>]) -> Result<(), OutputError> {
        if letters.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        letters.iter().for_each(|letter| batch.push_json(letter.kind, &self.line(letter)));
        self.file()?.write(&batch)?;
        self.meter.rejected.add(letters.len());
        self.log(letters);
        // The documents are written. A failure to remove older files is only logged, so that the documents are not written again.
        match FileOutput::prune(&self.path, KEEP) {
            Ok(0) => {}
            Ok(lost) => {
                self.meter.rejected_dropped.add(lost);
                tracing::warn!("{}: the oldest {lost} dead letters were removed to make room", self.path.display());
            }
            Err(error) => tracing::warn!("{error}"),
        }
        Ok(())
    }

    /// Logs the last of these documents, unless others were logged recently.
    fn log(&mut self, letters: &[DeadLetter<'_>]) {
        self.unlogged += letters.len();
        let Some(last) = letters.last() else { return };
        if self.logged.is_some_and(|logged| logged.elapsed() < LOG_INTERVAL) {
            return;
        }
        let (index, path) = (index_of(&self.index, last.kind), self.path.display());
        let others = match self.unlogged - 1 {
            0 => String::new(),
            others => format!(", and {others} others since the last such line"),
        };
        tracing::warn!(
            "index {index}: the document {}{others} is refused for good, and is kept in {path}: {}",
            last.id,
            last.reason
        );
        (self.logged, self.unlogged) = (Some(Instant::now()), 0);
    }

    fn file(&mut self) -> Result<&mut FileOutput, OutputError> {
        let options = FileOptions {
            path: self.path.clone(),
            rotate_size: ROTATE,
            rotate_every: None,
            // `DeadLetters::keep` removes old files itself, because it counts their documents.
            keep: usize::MAX,
            gzip: false,
            sync: SyncPolicy::Always,
        };
        Ok(match &mut self.file {
            Some(file) => file,
            none => none.insert(FileOutput::open(options, Arc::default())?),
        })
    }

    fn line(&self, letter: &DeadLetter<'_>) -> Vec<u8> {
        let (index, status, reason) = (index_of(&self.index, letter.kind), letter.status, &letter.reason);
        let mut line = serde_json::json!({ "index": index, "id": letter.id, "status": status, "reason": reason })
            .to_string()
            .into_bytes();
        // The document is JSON already; it goes in as the last member.
        line.pop();
        line.extend_from_slice(b",\"document\":");
        line.extend_from_slice(letter.document);
        line.push(b'}');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_bounded_and_removed_documents_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let meter = Arc::<Meter>::default();
        let path = folder.path().join("rejected.json");
        let mut dead = DeadLetters::new(path.clone(), "i".to_owned(), Arc::clone(&meter));
        let document = format!("\"{}\"", "x".repeat(4 << 20));
        let letter = || DeadLetter {
            kind: Kind::Flow,
            id: "x",
            document: document.as_bytes(),
            status: 400,
            reason: "no".into(),
        };
        for _ in 0..5 {
            dead.keep(&[letter(), letter(), letter(), letter(), letter()]).unwrap();
        }
        assert_eq!((meter.rejected.get(), meter.rejected_dropped.get()), (25, 0));
        dead.keep(&[letter()]).unwrap();
        dead.keep(&[letter()]).unwrap();
        assert_eq!((meter.rejected.get(), meter.rejected_dropped.get()), (27, 5));
        let left =
            |name: &str| std::fs::read_to_string(folder.path().join(name)).map_or(0, |text| text.lines().count());
        assert_eq!(["rejected.json", "rejected.json.000002", "rejected.json.000005"].map(left), [2, 5, 5]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1 + KEEP);
    }

    #[test]
    fn letters_that_cannot_be_kept_are_not_counted() {
        let meter = Arc::<Meter>::default();
        let mut dead = DeadLetters::new("/no/such/rejected.json".into(), "i".to_owned(), Arc::clone(&meter));
        let letter = DeadLetter { kind: Kind::Flow, id: "x", document: b"{}", status: 400, reason: String::new() };
        assert!(dead.keep(&[letter]).unwrap_err().to_string().contains("/no/such/rejected.json"));
        assert_eq!(meter.rejected.get(), 0);
    }
}
