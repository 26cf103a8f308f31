//! Access to private parts for the fuzz targets: [`block_around`] puts any bytes into a valid block, [`head`] takes the
//! beginning of a real recording.

use std::io::Write;

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::blocks::{BlockReader, BlockWriter};
use super::entries::{Entries, Entry};

/// A recording with these bytes as its only block. The block is stored, not compressed, to keep the fuzzer fast.
pub fn block_around(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(plain)?;
    let packed = encoder.finish()?;
    let mut recording = Vec::new();
    BlockWriter::new(&mut recording)?;
    for number in [packed.len() as u32, plain.len() as u32, crc32fast::hash(&packed)] {
        recording.extend_from_slice(&number.to_le_bytes());
    }
    recording.extend_from_slice(&packed);
    Ok(recording)
}

/// The header and the event formats at the start of a recording, up to the first other entry of its first block. The layout is
/// left out of the header: without it, a replay decodes all fields of the samples.
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
