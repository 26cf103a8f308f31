//! An output that writes documents as lines to any writer, such as standard output.

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::{Batch, Meter, Output, OutputError};

/// An output that writes documents to a writer, one per line.
#[derive(Debug)]
pub struct Plain<W> {
    writer: W,
    name: &'static str,
    meter: Arc<Meter>,
    /// How many bytes of the batch are written. After an error, the same batch is passed again, and its rest is written.
    written: usize,
}

impl<W: Write> Plain<W> {
    /// Writes to `writer`, which error messages call `name`.
    pub fn new(writer: W, name: &'static str, meter: Arc<Meter>) -> Self {
        Self { writer, name, meter, written: 0 }
    }

    /// Writes the bytes that are not written yet, and flushes the writer.
    fn write_rest(&mut self, lines: &[u8]) -> io::Result<()> {
        while let Some(rest) = lines.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.writer.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.writer.flush()
    }
}

impl<W: Write + Send> Output for Plain<W> {
    fn write(&mut self, batch: &Batch) -> Result<(), OutputError> {
        let result = self.write_rest(batch.lines());
        result.map_err(|error| OutputError::io("writing to", Path::new(self.name), &error))?;
        self.written = 0;
        self.meter.written.add(batch.len());
        Ok(())
    }

    fn tick(&mut self, _now: Instant) -> Result<(), OutputError> {
        Ok(())
    }

    fn close(self: Box<Self>, _deadline: Instant, _left: &mut Batch) -> Result<(), OutputError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Kind;

    /// Takes at most three bytes at once, and fails every second time.
    #[derive(Default)]
    struct Narrow {
        bytes: Vec<u8>,
        calls: usize,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls.is_multiple_of(2) {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(3);
            self.bytes.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_retry_continues_where_the_writer_failed() {
        let meter = Arc::<Meter>::default();
        let mut output = Plain::new(Narrow::default(), "narrow", Arc::clone(&meter));
        for document in [b"12345", b"67890"] {
            let mut batch = Batch::default();
            batch.push_json(Kind::Flow, document);
            let failed = (0..10).take_while(|_| output.write(&batch).is_err()).count();
            assert!((1..10).contains(&failed), "{failed}");
        }
        assert_eq!(output.writer.bytes, b"12345\n67890\n");
        assert_eq!(meter.written.get(), 2);
    }
}
