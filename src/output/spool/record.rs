//! The format of documents in a segment.
//!
//! ```text
//! mark f5 53 54 fa   length of the document   CRC-32 of kind and document   kind     document
//! (4 bytes)          (4, little-endian)       (4, little-endian)            (1)
//! ```
//!
//! Neither `f5` nor `fa` occurs in UTF-8, so a document never contains the mark. After damage, the mark shows where the next
//! document begins.

use crate::output::Kind;

const MARK: [u8; 4] = [0xf5, b'S', b'T', 0xfa];
/// The number of bytes before each document.
pub const HEADER_LEN: usize = 13;
/// The maximum length of a document in bytes.
const MAX_LEN: usize = 16 << 20;

/// An entry of a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A document.
    Document(Kind, &'a [u8]),
    /// Damaged bytes.
    Damage,
}

/// How many bytes a document takes in a segment.
pub fn length(document: &[u8]) -> u64 {
    (HEADER_LEN + document.len()) as u64
}

/// Appends a document.
pub fn encode(kind: Kind, document: &[u8], to: &mut Vec<u8>) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind as u8]);
    crc.update(document);
    to.extend_from_slice(&MARK);
    to.extend_from_slice(&u32::try_from(document.len()).unwrap_or(u32::MAX).to_le_bytes());
    to.extend_from_slice(&crc.finalize().to_le_bytes());
    to.push(kind as u8);
    to.extend_from_slice(document);
}

/// How many bytes the document at the beginning takes according to its header; `None` if the header is incomplete or invalid.
fn claimed_size(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..HEADER_LEN)?;
    let length = number(header, 4)?;
    (header.starts_with(&MARK) && length <= MAX_LEN).then_some(HEADER_LEN + length)
}

/// The first entry, and its size in bytes. Damage extends to the next document.
pub fn next(bytes: &[u8]) -> Option<(Entry<'_>, usize)> {
    if bytes.is_empty() {
        return None;
    }
    if let Some((kind, document)) = document(bytes) {
        return Some((Entry::Document(kind, document), HEADER_LEN + document.len()));
    }
    let begins = |at: &usize| bytes[*at] == MARK[0] && document(&bytes[*at..]).is_some();
    let end = (1..bytes.len()).find(begins).unwrap_or(bytes.len());
    Some((Entry::Damage, end))
}

/// The document at the beginning, if there is one.
pub fn document(bytes: &[u8]) -> Option<(Kind, &[u8])> {
    let document = bytes.get(HEADER_LEN..claimed_size(bytes)?)?;
    let kind = Kind::from_number(*bytes.get(12)?)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind as u8]);
    crc.update(document);
    (number(bytes, 8)? == crc.finalize() as usize).then_some((kind, document))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(four) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(mut bytes: &[u8]) -> Vec<(Entry<'_>, usize)> {
        let mut all = Vec::new();
        while let Some((found, length)) = next(bytes) {
            all.push((found, length));
            bytes = &bytes[length..];
        }
        all
    }

    fn three() -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(Kind::Flow, b"{\"n\":1}", &mut bytes);
        encode(Kind::SocketEvent, b"{}", &mut bytes);
        encode(Kind::Sensor, b"", &mut bytes);
        bytes
    }

    #[test]
    fn what_was_encoded_is_found() {
        let bytes = three();
        let documents: Vec<_> = entries(&bytes).into_iter().map(|(found, _)| found).collect();
        let expected = [(Kind::Flow, &b"{\"n\":1}"[..]), (Kind::SocketEvent, b"{}"), (Kind::Sensor, b"")]
            .map(|(k, d)| Entry::Document(k, d));
        assert_eq!(documents, expected);
    }

    #[test]
    fn one_wrong_byte_costs_one_document() {
        let good = three();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            let all = entries(&bytes);
            let documents = all.iter().filter(|(found, _)| *found != Entry::Damage).count();
            assert_eq!(documents, 2, "byte {at}");
            assert_eq!(all.iter().map(|(_, length)| length).sum::<usize>(), bytes.len(), "no byte is passed over");
        }
    }

    #[test]
    fn a_truncated_segment_loses_only_its_last_document() {
        let good = three();
        let ends = [20, 20 + 15, 20 + 15 + 13];
        for length in 0..good.len() {
            let whole = ends.iter().filter(|&&end| end <= length).count();
            let all = entries(&good[..length]);
            let documents = all.iter().filter(|(found, _)| *found != Entry::Damage).count();
            assert_eq!(documents, whole, "{length} bytes");
        }
    }

    #[test]
    fn noise_is_damage() {
        let noise: Vec<u8> = MARK.iter().copied().cycle().take(999).collect();
        assert_eq!(entries(&noise), [(Entry::Damage, 999)]);
    }
}
