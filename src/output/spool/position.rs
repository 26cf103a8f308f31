//! How far a spool has been sent: a small file that survives being cut off at any byte.
//!
//! Two slots take turns, each with a number that counts up and a checksum; the valid one with the higher number holds.
//! When none is valid, all is sent again, which does no harm: documents have the same `_id` again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SLOT: usize = 32;

/// A place in a spool: everything before it has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// The segment's number.
    pub segment: u64,
    /// Bytes from its start.
    pub offset: u64,
}

/// The file that keeps a [`Place`].
#[derive(Debug)]
pub struct Position {
    file: File,
    turn: u64,
}

impl Position {
    /// Reads the place from the file.
    pub fn read(file: File) -> io::Result<(Self, Place)> {
        let mut bytes = [0; 2 * SLOT];
        let mut length = 0;
        while length < bytes.len() {
            match file.read_at(&mut bytes[length..], length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        let valid = bytes.chunks_exact(SLOT).filter_map(decode).max().unwrap_or_default();
        Ok((Self { file, turn: valid.0 }, valid.1))
    }

    /// Keeps a place.
    pub fn write(&mut self, place: Place) -> io::Result<()> {
        let turn = self.turn + 1;
        self.file.write_all_at(&encode(turn, place), turn % 2 * SLOT as u64)?;
        self.turn = turn;
        Ok(())
    }
}

fn encode(turn: u64, place: Place) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..8].copy_from_slice(&turn.to_le_bytes());
    slot[8..16].copy_from_slice(&place.segment.to_le_bytes());
    slot[16..24].copy_from_slice(&place.offset.to_le_bytes());
    let crc = crc32fast::hash(&slot[..24]);
    slot[24..28].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode(slot: &[u8]) -> Option<(u64, Place)> {
    let number = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
    let (turn, place) = (number(0)?, Place { segment: number(8)?, offset: number(16)? });
    (turn > 0 && encode(turn, place) == *slot).then_some((turn, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(segment: u64) -> Place {
        Place { segment, offset: segment * 100 }
    }

    fn reopened(file: &File) -> Place {
        Position::read(file.try_clone().unwrap()).unwrap().1
    }

    #[test]
    fn the_last_place_holds() {
        let file = tempfile::tempfile().unwrap();
        let (mut position, start) = Position::read(file.try_clone().unwrap()).unwrap();
        assert_eq!(start, Place::default());
        for segment in 1..9 {
            position.write(place(segment)).unwrap();
            assert_eq!(reopened(&file), place(segment));
        }
        let (mut position, _) = Position::read(file.try_clone().unwrap()).unwrap();
        position.write(place(3)).unwrap();
        assert_eq!(reopened(&file), place(3), "the last one, not the furthest");
    }

    #[test]
    fn a_slot_that_is_cut_off_or_damaged_leaves_the_place_before() {
        for damaged in 0..SLOT as u64 {
            let file = tempfile::tempfile().unwrap();
            let (mut position, _) = Position::read(file.try_clone().unwrap()).unwrap();
            position.write(place(4)).unwrap();
            let slot = position.turn % 2 * SLOT as u64;
            position.write(place(5)).unwrap();
            let other = position.turn % 2 * SLOT as u64;
            assert_ne!(slot, other);
            let mut byte = [0];
            file.read_exact_at(&mut byte, other + damaged).unwrap();
            file.write_all_at(&[byte[0] ^ 0xff], other + damaged).unwrap();
            assert_eq!(reopened(&file), place(4), "byte {damaged}");
        }
    }

    #[test]
    fn nothing_valid_is_the_start() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0xff; 77], 0).unwrap();
        assert_eq!(reopened(&file), Place::default());
    }
}
