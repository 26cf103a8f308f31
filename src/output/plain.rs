//! An output that writes documents as lines to any writer, such as standard output.

use std::io::Write;
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
}

impl<W: Write> Plain<W> {
    /// Writes to `writer`, which error messages call `name`.
    pub fn new(writer: W, name: &'static str, meter: Arc<Meter>) -> Self {
        Self { writer, name, meter }
    }
}

impl<W: Write + Send> Output for Plain<W> {
    fn write(&mut self, batch: &Batch) -> Result<(), OutputError> {
        let written = self.writer.write_all(batch.lines()).and_then(|()| self.writer.flush());
        written.map_err(|error| OutputError::io("writing to", Path::new(self.name), &error))?;
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
