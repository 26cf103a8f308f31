//! Recordings of raw samples, which can be replayed without root, on any machine and at any speed.
//!
//! A recording has the input of the pipeline, not its output: raw samples with the `format` of each event, the processes and
//! sockets that existed at the start, the answers of `/proc`, DNS packets, and how far time had advanced. A replay uses the same
//! decoders and the same state machine, so a recording always yields the same flows. Recordings serve for bug reports, and as tests
//! with the samples of real kernels.
//!
//! ```text
//! magic "SOCKTRL", version (1 byte)
//! block, block, …      length of the compressed bytes, of the plain bytes, CRC-32 of the compressed bytes (each 4 bytes,
//!                      little-endian), then the bytes, compressed with DEFLATE (RFC 1951)
//! ```
//!
//! The plain bytes are a sequence of entries, each a tag with its contents. The last entry of a complete recording marks its end.
//! A recording that is truncated between two blocks is replayed, but reported as incomplete. If it is truncated within a block,
//! or damaged, the replay fails at that block, after the flows that ended before.

use std::convert::Infallible;

pub(crate) mod blocks;
pub(crate) mod counted;
pub(crate) mod entries;
#[cfg(fuzzing)]
pub mod fuzzing;
pub(crate) mod recorder;
mod replay;
#[cfg(test)]
pub(crate) mod tests;

pub use self::entries::Header;
pub(crate) use self::recorder::Recorder;
pub use self::replay::{RecordedNames, Replay, Replayed};
pub use crate::state::StateConfig;

/// For sources that cannot fail.
impl From<Infallible> for RecordingError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// Why a recording cannot be made or replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The file is not a recording.
    #[error("this is not a recording: it does not begin with SOCKTRL")]
    Foreign,
    /// The recording has an unsupported version.
    #[error("this recording has version {0}, but only version {version} is supported: replay it with the version of Socktrail that made it", version = blocks::VERSION)]
    Version(u8),
    /// The recording is damaged.
    #[error("the recording is damaged at byte {position}: {problem}")]
    Damaged {
        /// The offset of the damaged block in bytes.
        position: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The first entry is not a header.
    #[error("the recording has no header")]
    NoHeader,
    /// It has samples of an unknown probe, or in a format that cannot be decoded.
    #[error("the recording's event {event} cannot be read: {problem}")]
    Event {
        /// The name of the event.
        event: String,
        /// What is wrong.
        problem: String,
    },
    /// Reading or writing failed.
    #[error("recording: {0}")]
    Io(#[from] std::io::Error),
}
