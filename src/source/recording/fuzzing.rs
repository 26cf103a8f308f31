//! What the fuzz targets of `fuzz/` need that is private: blocks with a right checksum around any entries.

use std::io::Write;

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::blocks::{BlockReader, BlockWriter};
use super::entries::{Entries, Entry};

/// A recording of these plain bytes, in one block, which is not compressed: a fuzzer has no time.
pub fn seal(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(plain)?;
    let packed = encoder.finish()?;
    let mut sealed = Vec::new();
    BlockWriter::new(&mut sealed)?;
    for number in [packed.len() as u32, plain.len() as u32, crc32fast::hash(&packed)] {
        sealed.extend_from_slice(&number.to_le_bytes());
    }
    sealed.extend_from_slice(&packed);
    Ok(sealed)
}

/// The entries of a recording before its first process, sample or mark: the header, without the layout, which only
/// people need, and the probes.
pub fn head(recording: &[u8]) -> Vec<u8> {
    let mut head = Vec::new();
    let Ok(Some(plain)) = BlockReader::new(recording).and_then(|mut blocks| blocks.next()) else { return head };
    let mut entries = Entries::new(&plain);
    while let Some(Ok(mut entry @ (Entry::Header(_) | Entry::Event(_)))) = entries.next() {
        if let Entry::Header(header) = &mut entry {
            header.layout = serde_json::Value::Null;
        }
        entry.write(&mut head);
    }
    head
}
