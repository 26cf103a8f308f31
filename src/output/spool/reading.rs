//! Reads documents from segments, and moves damaged bytes out of their way.

use std::io;
use std::os::unix::fs::FileExt;

use super::position::Position;
use super::record::{self, Entry};
use super::segment::header_len;
use super::{Chunk, End, InFlight, Spool};
use crate::output::Batch;

/// The minimum number of bytes that are read at once.
const WINDOW: usize = 64 << 10;

/// The size limit of `damaged/`, as a fraction (1/n) of the spool's limit.
const DAMAGED_SHARE: u64 = 4;

impl Spool {
    /// Up to `documents` documents from a position on; `None` if there are none on disk.
    pub(super) fn after_on_disk(&self, position: Position, documents: usize) -> Option<Batch> {
        self.segments.iter().filter(|segment| segment.number >= position.segment).find_map(|segment| {
            let from = if segment.number == position.segment { position.offset } else { 0 };
            let mut bytes = vec![0; WINDOW.min(segment.length.saturating_sub(from) as usize)];
            self.folder.read(segment.number).ok()?.read_exact_at(&mut bytes, from).ok()?;
            let (batch, _) = gather(&bytes[header_len(from, &bytes)..], documents, WINDOW);
            (!batch.is_empty()).then_some(batch)
        })
    }

    /// The next documents on disk; `None` if there are none.
    pub(super) fn next_on_disk(&mut self, documents: usize, bytes: usize) -> io::Result<Option<Chunk>> {
        let mut read = std::mem::take(&mut self.window);
        let chunk = self.next_on_disk_into(&mut read, documents, bytes);
        self.window = read;
        chunk
    }

    /// Like [`next_on_disk`](Self::next_on_disk), with a buffer to read into.
    fn next_on_disk_into(&mut self, read: &mut Vec<u8>, documents: usize, bytes: usize) -> io::Result<Option<Chunk>> {
        let mut window = WINDOW.max(bytes);
        loop {
            let Some(segment) = self.segments.front() else { return Ok(None) };
            let (number, length) = (segment.number, segment.length);
            if self.position.segment < number {
                self.position = Position { segment: number, offset: 0 };
            }
            if self.position.offset >= length {
                if self.segments.len() == 1 {
                    return Ok(None);
                }
                self.position = Position { segment: number + 1, offset: 0 };
                self.drop_finished();
                continue;
            }
            read.resize(window.min((length - self.position.offset) as usize), 0);
            self.read(number, self.position.offset, read)?;
            let skip = header_len(self.position.offset, read);
            let is_all = self.position.offset + read.len() as u64 == length;
            let rest = &read[skip..];
            if !is_all && record::document(rest).is_none() {
                window *= 2;
                continue;
            }
            let start = self.position.offset + skip as u64;
            match record::next(rest) {
                None => self.position.offset = length,
                Some((Entry::Damage, damaged)) => self.set_aside(number, start, &rest[..damaged])?,
                Some((Entry::Document(..), _)) => {
                    let (batch, taken) = gather(rest, documents, bytes);
                    self.end_in_flight();
                    self.in_flight = Some(InFlight { segment: number, count: batch.len() as u64, dropped: false });
                    let end = Position { segment: number, offset: start + taken as u64 };
                    return Ok(Some(Chunk { batch, end: End::Disk(end) }));
                }
            }
        }
    }

    /// Reads bytes of a segment, whose file stays open for the next read.
    fn read(&mut self, number: u64, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let file = match self.reading.take() {
            Some((of, file)) if of == number => file,
            _ => self.folder.read(number)?,
        };
        let read = file.read_exact_at(to, offset);
        self.reading = Some((number, file));
        read
    }

    /// Moves damaged bytes out of the way, and continues after them.
    fn set_aside(&mut self, number: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let kept = self.folder.set_aside(number, offset, bytes)?;
        self.meter.spool_damaged.add(1);
        let segment = self.folder.segment(number);
        tracing::warn!(
            "{} is damaged at byte {offset}: {} bytes were moved to {}; the documents after them are sent",
            segment.display(),
            bytes.len(),
            kept.display()
        );
        self.position = Position { segment: number, offset: offset + bytes.len() as u64 };
        // If this fails, the next start moves the same bytes to the same file.
        let _ = self.position_file.write(self.position);
        for removed in self.folder.prune_damaged(self.options.max_size / DAMAGED_SHARE)? {
            self.meter.spool_damaged_dropped.add(1);
            tracing::warn!("{} was removed, because there is too much damaged data; check the disk", removed.display());
        }
        Ok(())
    }
}

/// Takes whole documents from the beginning of `bytes`. Returns them, and how many bytes they take.
fn gather(bytes: &[u8], documents: usize, max_bytes: usize) -> (Batch, usize) {
    let (mut batch, mut taken) = (Batch::default(), 0);
    while batch.len() < documents {
        let Some((kind, document)) = record::document(&bytes[taken..]) else { break };
        if !batch.is_empty() && batch.lines().len() + document.len() > max_bytes {
            break;
        }
        batch.push_json(kind, document);
        taken += record::HEADER_LEN + document.len();
    }
    (batch, taken)
}
