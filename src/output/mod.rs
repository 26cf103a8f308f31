//! Outputs for documents.
//!
//! [`LineBuffer`] writes lines to one writer, and [`Lines`] writes flows. [`Outputs`] sends [batches](Batch) of documents to
//! several outputs. Each [`Output`] has its own thread and a bounded queue, so a stalled output delays neither the others nor
//! the source.

mod batch;
#[cfg(feature = "elasticsearch")]
pub mod elasticsearch;
mod error;
mod fanout;
mod file;
mod flow_lines;
mod line_buffer;
mod meter;
mod plain;
mod queue;
mod spool;
mod trouble;

pub use batch::{Batch, Kind};
pub use error::OutputError;
pub use fanout::{Output, Outputs, Unwritten};
pub use file::{FileOptions, FileOutput, SyncPolicy};
pub use flow_lines::{Format, Lines};
pub use line_buffer::LineBuffer;
pub use meter::{Count, Meter, Reading};
pub use plain::Plain;
pub use spool::{Chunk, Spool, SpoolOptions};
