//! Recordings: what the kernel said, kept to be replayed without root, on another machine, at any speed.
//!
//! A recording holds what goes into the pipeline and nothing that comes out of it: raw samples with the `format` of
//! each event, the processes and sockets that were there at the start, what `/proc` answered when it was asked, packets of
//! name servers, and the marks up to which time had come. Replaying feeds the same decoders and the same state machine; the same recording gives the
//! same flows every time. It is how a bug is reported, and how tests hold the samples of real kernels.
//!
//! ```text
//! magic "SOCKTRL", version (1 byte)
//! block, block, …      length of the compressed bytes, of the plain bytes, CRC-32 of the compressed bytes (each 4 bytes,
//!                      little-endian), then the bytes, compressed with DEFLATE (RFC 1951)
//! ```
//!
//! The plain bytes are entries, one after the other: a tag, then what the tag says. A recording that breaks off can be
//! replayed up to its last whole block; one without its end says so.

mod blocks;
mod entries;
#[cfg(fuzzing)]
pub mod fuzzing;
mod names;
mod record;
mod replay;
#[cfg(test)]
mod tests;

pub use self::entries::Header;
pub(crate) use self::names::Listener;
pub use self::record::{Recorded, record};
pub use self::replay::{RecordedNames, Replay, Replayed};

/// Why a recording cannot be replayed, and from where on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// It is something else.
    #[error("this is no recording: it does not begin with SOCKTRL")]
    Foreign,
    /// It was made by a newer program.
    #[error("this recording has version {0}, and only version {version} is known: replay it with the program that made it or a newer one", version = blocks::VERSION)]
    Version(u8),
    /// It is damaged.
    #[error("the recording is damaged at byte {position}: {problem}")]
    Damaged {
        /// Where the damaged block begins.
        position: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// It does not begin with what every recording begins with.
    #[error("the recording has no header")]
    NoHeader,
    /// It was made with probes that are not known here.
    #[error("the recording's event {event} cannot be read: {problem}")]
    Event {
        /// Which.
        event: String,
        /// What is wrong.
        problem: String,
    },
    /// Reading or writing failed.
    #[error("recording: {0}")]
    Io(#[from] std::io::Error),
}
