//! The blocks of a recording, which are compressed and have a checksum.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::RecordingError;

const MAGIC: &[u8; 7] = b"SOCKTRL";
/// The version of the format that is written and read.
pub const VERSION: u8 = 3;
/// A block is written once it has this many plain bytes.
const BLOCK_SIZE: usize = 256 * 1024;
/// The maximum size of a block that is read, plain or compressed, in bytes. It is larger than [`BLOCK_SIZE`], because the last
/// entry of a block may be long.
const MAX_BLOCK_SIZE: u32 = 16 * 1024 * 1024;

/// Writes blocks.
pub struct BlockWriter<W: Write> {
    to: W,
    plain: Vec<u8>,
}

impl<W: Write> BlockWriter<W> {
    /// Begins a recording.
    pub fn new(mut to: W) -> io::Result<Self> {
        to.write_all(MAGIC)?;
        to.write_all(&[VERSION])?;
        Ok(Self { to, plain: Vec::with_capacity(BLOCK_SIZE) })
    }

    /// The buffer to append the next entry to. Call [`BlockWriter::entry_done`] after it.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.plain
    }

    /// Writes the block if it is large enough.
    pub fn entry_done(&mut self) -> io::Result<()> {
        if self.plain.len() < BLOCK_SIZE {
            return Ok(());
        }
        self.flush()
    }

    /// Writes the current block.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&self.plain)?;
        let packed = encoder.finish()?;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
        self.to.write_all(&length(&packed)?.to_le_bytes())?;
        self.to.write_all(&length(&self.plain)?.to_le_bytes())?;
        self.to.write_all(&crc32fast::hash(&packed).to_le_bytes())?;
        self.to.write_all(&packed)?;
        self.to.flush()?;
        self.plain.clear();
        Ok(())
    }
}

/// Reads blocks.
pub struct BlockReader<R: Read> {
    from: R,
    position: u64,
}

impl<R: Read> BlockReader<R> {
    /// Begins to read a recording.
    pub fn new(mut from: R) -> Result<Self, RecordingError> {
        let mut start = [0; MAGIC.len() + 1];
        from.read_exact(&mut start).map_err(|_| RecordingError::Foreign)?;
        let [magic @ .., version] = start;
        if magic != *MAGIC {
            return Err(RecordingError::Foreign);
        }
        if version != VERSION {
            return Err(RecordingError::Version(version));
        }
        Ok(Self { from, position: start.len() as u64 })
    }

    /// The offset of the next block in bytes.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The plain bytes of the next block; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, RecordingError> {
        let mut head = [0; 12];
        match fill(&mut self.from, &mut head)? {
            0 => return Ok(None),
            12 => {}
            _ => return Err(self.damaged("it is truncated")),
        }
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (packed_length, plain_length, crc) = (number(0), number(4), number(8));
        if plain_length > MAX_BLOCK_SIZE || packed_length > MAX_BLOCK_SIZE {
            return Err(self.damaged("a block of impossible size"));
        }
        let mut packed = Vec::new();
        (&mut self.from).take(u64::from(packed_length)).read_to_end(&mut packed)?;
        if packed.len() < packed_length as usize {
            return Err(self.damaged("it is truncated"));
        }
        if crc32fast::hash(&packed) != crc {
            return Err(self.damaged("the checksum is wrong"));
        }
        let mut plain = Vec::new();
        let read = DeflateDecoder::new(&packed[..]).take(u64::from(MAX_BLOCK_SIZE)).read_to_end(&mut plain);
        if read.is_err() || plain.len() != plain_length as usize {
            return Err(self.damaged("a block does not decompress to the size that it states"));
        }
        self.position += (head.len() + packed.len()) as u64;
        Ok(Some(plain))
    }

    fn damaged(&self, problem: &str) -> RecordingError {
        RecordingError::Damaged { position: self.position, problem: problem.to_owned() }
    }
}

/// Reads until the buffer is full or the input ends. Returns the number of bytes.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
