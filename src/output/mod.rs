//! Where documents go.
//!
//! [`LineBuffer`] writes lines to one writer, [`Lines`] flows. [`Outputs`] is for several places at once: documents travel in [batches](Batch)
//! to a bounded queue for each [`Output`], which runs on a thread of its own, so that one that stands still harms no
//! other, and never the source.

mod batch;
pub mod elasticsearch;
mod error;
mod escape;
mod fanout;
mod file;
mod line_buffer;
mod meter;
mod plain;
mod queue;
mod spool;
mod stdout;
mod text;
mod trouble;

pub use batch::{Batch, Kind};
pub use error::OutputError;
pub(crate) use escape::is_harmless;
pub use escape::{JsonFormatter, printable};
pub use fanout::{Output, Outputs, Unwritten};
pub use file::{FileOptions, FileOutput, SyncPolicy};
pub use line_buffer::LineBuffer;
pub use meter::{Count, Meter, Reading};
pub use plain::Plain;
pub use spool::{Chunk, Spool, SpoolOptions};
pub use stdout::{Format, Lines};
pub use text::{HEADER, line};
