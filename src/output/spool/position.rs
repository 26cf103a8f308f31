//! The position up to which a spool has been sent, in a small file that survives an interrupted write.
//!
//! The file has two slots, which are written in turn. Each has an increasing number and a checksum. The valid slot with the higher
//! number counts. If no slot is valid, all documents are sent again, which does no harm, because they have the same `_id`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The length of a slot in bytes.
const SLOT_LEN: usize = 32;

/// A position in a spool: all documents before it have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The segment's number.
    pub segment: u64,
    /// The offset in the segment in bytes.
    pub offset: u64,
}

/// The file that keeps a [`Position`].
#[derive(Debug)]
pub struct PositionFile {
    file: File,
    turn: u64,
}

impl PositionFile {
    /// Reads the position.
    pub fn read(file: File) -> io::Result<(Self, Position)> {
        let mut bytes = [0; 2 * SLOT_LEN];
        let mut length = 0;
        while length < bytes.len() {
            match file.read_at(&mut bytes[length..], length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        let valid = bytes.chunks_exact(SLOT_LEN).filter_map(decode).max().unwrap_or_default();
        Ok((Self { file, turn: valid.0 }, valid.1))
    }

    /// Writes a position.
    pub fn write(&mut self, position: Position) -> io::Result<()> {
        let turn = self.turn + 1;
        self.file.write_all_at(&encode(turn, position), turn % 2 * SLOT_LEN as u64)?;
        self.turn = turn;
        Ok(())
    }
}

fn encode(turn: u64, position: Position) -> [u8; SLOT_LEN] {
    let mut slot = [0; SLOT_LEN];
    slot[..8].copy_from_slice(&turn.to_le_bytes());
    slot[8..16].copy_from_slice(&position.segment.to_le_bytes());
    slot[16..24].copy_from_slice(&position.offset.to_le_bytes());
    let crc = crc32fast::hash(&slot[..24]);
    slot[24..28].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode(slot: &[u8]) -> Option<(u64, Position)> {
    let number = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
    let (turn, position) = (number(0)?, Position { segment: number(8)?, offset: number(16)? });
    (turn > 0 && encode(turn, position) == *slot).then_some((turn, position))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(segment: u64) -> Position {
        Position { segment, offset: segment * 100 }
    }

    fn reopen(file: &File) -> Position {
        PositionFile::read(file.try_clone().unwrap()).unwrap().1
    }

    #[test]
    fn the_last_position_holds() {
        let file = tempfile::tempfile().unwrap();
        let (mut kept, start) = PositionFile::read(file.try_clone().unwrap()).unwrap();
        assert_eq!(start, Position::default());
        for segment in 1..9 {
            kept.write(position(segment)).unwrap();
            assert_eq!(reopen(&file), position(segment));
        }
        let (mut kept, _) = PositionFile::read(file.try_clone().unwrap()).unwrap();
        kept.write(position(3)).unwrap();
        assert_eq!(reopen(&file), position(3), "the last one, not the furthest");
    }

    #[test]
    fn a_damaged_slot_leaves_the_previous_position() {
        for damaged in 0..SLOT_LEN as u64 {
            let file = tempfile::tempfile().unwrap();
            let (mut kept, _) = PositionFile::read(file.try_clone().unwrap()).unwrap();
            kept.write(position(4)).unwrap();
            let slot = kept.turn % 2 * SLOT_LEN as u64;
            kept.write(position(5)).unwrap();
            let other = kept.turn % 2 * SLOT_LEN as u64;
            assert_ne!(slot, other);
            let mut byte = [0];
            file.read_exact_at(&mut byte, other + damaged).unwrap();
            file.write_all_at(&[byte[0] ^ 0xff], other + damaged).unwrap();
            assert_eq!(reopen(&file), position(4), "byte {damaged}");
        }
    }

    #[test]
    fn without_a_valid_slot_the_position_is_the_start() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0xff; 77], 0).unwrap();
        assert_eq!(reopen(&file), Position::default());
    }
}
