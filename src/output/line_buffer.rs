//! Buffers lines for a writer.

use std::io::{self, Write};

use serde::Serialize;

use crate::documents::json::append_json;

/// Buffers lines for a writer. The caller decides when to flush. The writer gets whole lines, in order.
#[derive(Debug)]
pub struct LineBuffer<W> {
    writer: W,
    buffer: Vec<u8>,
    unflushed: bool,
}

impl<W: Write> LineBuffer<W> {
    /// The buffer's size in bytes at which it is written without a flush.
    const WRITE_SIZE: usize = 64 * 1024;

    /// Writes lines to `writer`, which needs no buffer of its own.
    pub fn new(writer: W) -> Self {
        Self { writer, buffer: Vec::with_capacity(Self::WRITE_SIZE), unflushed: false }
    }

    /// Adds a document as JSON, on one line and without control characters.
    ///
    /// # Errors
    /// The document cannot be serialized, or the writer fails; [`io::ErrorKind::BrokenPipe`] means that the reader has closed
    /// its end.
    pub fn json(&mut self, document: &impl Serialize) -> io::Result<()> {
        append_json(&mut self.buffer, document)?;
        self.end_line()
    }

    /// Adds a line of text. `line` has no newline.
    ///
    /// # Errors
    /// The writer fails.
    pub fn text(&mut self, line: &str) -> io::Result<()> {
        self.buffer.extend_from_slice(line.as_bytes());
        self.end_line()
    }

    /// Whether there are lines to flush.
    pub fn is_unflushed(&self) -> bool {
        self.unflushed
    }

    /// Writes all lines, and flushes the writer.
    ///
    /// # Errors
    /// The writer fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.write_out()?;
        self.unflushed = false;
        self.writer.flush()
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.buffer.push(b'\n');
        self.unflushed = true;
        if self.buffer.len() >= Self::WRITE_SIZE { self.write_out() } else { Ok(()) }
    }

    /// Writes the buffer, and clears it even if that fails, so that no line is written twice.
    fn write_out(&mut self) -> io::Result<()> {
        let result = self.writer.write_all(&self.buffer);
        self.buffer.clear();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_when_they_are_flushed() {
        let mut lines = LineBuffer::new(Vec::new());
        lines.text("a").unwrap();
        lines.json(&serde_json::json!({ "b": "\u{7f}" })).unwrap();
        assert!(lines.is_unflushed() && lines.writer.is_empty());
        lines.flush().unwrap();
        assert!(!lines.is_unflushed());
        assert_eq!(lines.writer, b"a\n{\"b\":\"\\u007f\"}\n");
    }

    #[test]
    fn a_failed_document_leaves_the_buffer_unchanged() {
        let mut lines = LineBuffer::new(Vec::new());
        let keys = std::collections::HashMap::from([((1, 2), 3)]);
        assert!(lines.json(&keys).is_err());
        lines.text("a").unwrap();
        lines.flush().unwrap();
        assert_eq!(lines.writer, b"a\n");
    }

    #[test]
    fn a_full_buffer_is_written_without_a_flush() {
        let mut lines = LineBuffer::new(Vec::new());
        for _ in 0..1000 {
            lines.text(&"x".repeat(99)).unwrap();
            assert!(lines.buffer.len() < LineBuffer::<Vec<u8>>::WRITE_SIZE);
        }
        assert!(lines.writer.len() > 64 * 1024);
    }

    #[test]
    fn a_broken_pipe_is_reported_and_clears_the_buffer() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut lines = LineBuffer::new(Broken);
        lines.text("a").unwrap();
        assert_eq!(lines.flush().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(lines.buffer.is_empty());
    }
}
