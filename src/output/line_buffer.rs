//! Whole lines to any writer.

use std::io::{self, Write};

use serde::Serialize;

use super::escape::append_json;

/// Gathers lines for a writer. The caller decides when to flush: writes reach a reader in order, and whole lines only.
#[derive(Debug)]
pub struct LineBuffer<W> {
    writer: W,
    buffer: Vec<u8>,
    unflushed: bool,
}

impl<W: Write> LineBuffer<W> {
    /// How much is kept before it is written unasked.
    const ENOUGH: usize = 64 * 1024;

    /// Lines to `writer`, which should not buffer for itself.
    pub fn new(writer: W) -> Self {
        Self { writer, buffer: Vec::with_capacity(Self::ENOUGH), unflushed: false }
    }

    /// Adds a document in JSON, on one line and without control characters.
    ///
    /// # Errors
    /// It cannot be written as JSON, or the writer's; [`io::ErrorKind::BrokenPipe`] means that nobody reads any more.
    pub fn json(&mut self, document: &impl Serialize) -> io::Result<()> {
        append_json(&mut self.buffer, document)?;
        self.end_line()
    }

    /// Adds a line of text, given without the newline at its end.
    ///
    /// # Errors
    /// The writer's.
    pub fn text(&mut self, line: &str) -> io::Result<()> {
        self.buffer.extend_from_slice(line.as_bytes());
        self.end_line()
    }

    /// Whether anything waits to be flushed.
    pub fn is_unflushed(&self) -> bool {
        self.unflushed
    }

    /// Hands all lines to the reader.
    ///
    /// # Errors
    /// The writer's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.write_out()?;
        self.unflushed = false;
        self.writer.flush()
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.buffer.push(b'\n');
        self.unflushed = true;
        if self.buffer.len() >= Self::ENOUGH { self.write_out() } else { Ok(()) }
    }

    /// What was buffered is gone after this, also when it could not be written: no line is ever written twice.
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
    fn nothing_is_written_before_it_is_flushed_and_then_whole_lines() {
        let mut lines = LineBuffer::new(Vec::new());
        lines.text("a").unwrap();
        lines.json(&serde_json::json!({ "b": "\u{7f}" })).unwrap();
        assert!(lines.is_unflushed() && lines.writer.is_empty());
        lines.flush().unwrap();
        assert!(!lines.is_unflushed());
        assert_eq!(lines.writer, b"a\n{\"b\":\"\\u007f\"}\n");
    }

    #[test]
    fn what_cannot_be_json_leaves_no_trace() {
        let mut lines = LineBuffer::new(Vec::new());
        let keys = std::collections::HashMap::from([((1, 2), 3)]);
        assert!(lines.json(&keys).is_err());
        lines.text("a").unwrap();
        lines.flush().unwrap();
        assert_eq!(lines.writer, b"a\n");
    }

    #[test]
    fn much_is_written_unasked() {
        let mut lines = LineBuffer::new(Vec::new());
        for _ in 0..1000 {
            lines.text(&"x".repeat(99)).unwrap();
            assert!(lines.buffer.len() < LineBuffer::<Vec<u8>>::ENOUGH);
        }
        assert!(lines.writer.len() > 64 * 1024);
    }

    #[test]
    fn a_broken_pipe_is_told_and_nothing_is_kept_for_it() {
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
