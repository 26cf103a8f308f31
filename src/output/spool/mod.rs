//! Documents on disk until the server has them.
//!
//! Every document goes through the spool, so that there is one way and one order, and a crash loses nothing that was
//! taken in. Segments are appended to and never changed; each start begins a new one, so that what a crash left
//! unfinished is never written behind. A small file keeps how far the server has acknowledged. What is read is checked:
//! damaged bytes are set aside in `damaged/` and counted, and reading goes on at the next whole document. When that folder
//! holds a quarter of what the spool may, its oldest files go, and are counted and named.
//!
//! When the spool is full, its oldest segment is dropped, and counted. When the disk cannot take a document it waits in
//! memory, within a bound, and is sent from there.

mod position;
mod record;
mod segment;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::iter::Peekable;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use self::position::{Place, Position};
use self::record::Found;
use self::segment::{Folder, Segment, head};
use super::{Batch, Kind, Meter, OutputError};

/// How much is read at once at least.
const WINDOW: usize = 64 << 10;

/// How often dropped documents are logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Of the bytes that the spool may have, the share that damage which was set aside may have beside them.
const DAMAGED_SHARE: u64 = 4;

/// Where and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolOptions {
    /// A folder of its own.
    pub path: PathBuf,
    /// Bytes on disk at most.
    pub max_size: u64,
    /// Bytes of one segment, save for a larger document, which has one alone: the amount that is dropped at once when the
    /// spool is full.
    pub segment_size: u64,
    /// Bytes of documents in memory at most, while the disk cannot take them.
    pub memory: usize,
}

/// Documents that wait for the server, in the order in which they came.
#[derive(Debug)]
pub struct Spool {
    options: SpoolOptions,
    folder: Folder,
    _lock: Flock<File>,
    segments: VecDeque<Segment>,
    /// The last of the segments, while it is written to.
    active: Option<File>,
    /// The segment that was read last.
    reading: Option<(u64, File)>,
    place: Place,
    position: Position,
    memory: Memory,
    dropped: Dropped,
    /// The documents from the disk that are being sent.
    on_their_way: Option<OnTheirWay>,
    meter: Arc<Meter>,
    /// This spool's contribution to the meter: documents that wait, and bytes on disk.
    told: (u64, u64),
    /// What is written next.
    buffer: Vec<u8>,
    /// What was read last.
    window: Vec<u8>,
}

/// What the disk could not take.
#[derive(Debug, Default)]
struct Memory {
    documents: VecDeque<(Kind, Box<[u8]>)>,
    bytes: usize,
    /// The number of the first of them, counted from the start of the program.
    first: u64,
    /// Whether some of them are being sent.
    lent: bool,
}

/// Dropped documents that were not logged yet.
#[derive(Debug, Default)]
struct Dropped {
    documents: u64,
    told: Option<Instant>,
}

/// Documents that are being sent.
#[derive(Debug)]
struct OnTheirWay {
    segment: u64,
    count: u64,
    /// Whether their segment was dropped meanwhile: unless they arrive they are lost.
    dropped: bool,
}

/// Documents to be sent next.
#[derive(Debug)]
pub struct Chunk {
    /// The documents.
    pub batch: Batch,
    end: End,
}

/// What comes after a chunk.
#[derive(Debug, Clone, Copy)]
enum End {
    Disk(Place),
    Memory(u64),
}

impl Spool {
    /// Opens or creates a spool and counts what it holds.
    ///
    /// # Errors
    /// Its folder cannot be used, or another program uses it.
    pub fn open(options: SpoolOptions, meter: Arc<Meter>) -> Result<Self, OutputError> {
        let error = |doing: &str, error: &io::Error| OutputError::io(doing, &options.path, error);
        let folder = Folder::open(&options.path).map_err(|it| error("opening the spool", &it))?;
        let lock = folder.file("lock").map_err(|it| error("locking the spool", &it))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| {
            let problem = format!("another program uses the spool {}", options.path.display());
            OutputError::new(problem, "end it, or give this one another spool.path")
        })?;
        let position = folder.file("position").and_then(Position::read);
        let (position, place) = position.map_err(|it| error("reading the position of the spool", &it))?;
        let mut segments = VecDeque::new();
        for number in folder.numbers().map_err(|it| error("reading the spool", &it))? {
            let from = if number == place.segment { place.offset } else { 0 };
            if number < place.segment {
                let _ = folder.remove(number);
            } else {
                segments.push_back(folder.count(number, from).map_err(|it| error("reading the spool", &it))?);
            }
        }
        let mut spool = Self {
            options,
            folder,
            _lock: lock,
            segments,
            active: None,
            reading: None,
            place,
            position,
            memory: Memory::default(),
            dropped: Dropped::default(),
            on_their_way: None,
            meter,
            told: (0, 0),
            buffer: Vec::new(),
            window: Vec::new(),
        };
        spool.update_meter();
        Ok(spool)
    }

    /// Takes documents in. They are taken in also when this fails: then they wait in memory, and the error says why.
    ///
    /// # Errors
    /// The disk cannot take them.
    pub fn push(&mut self, batch: &Batch) -> Result<(), OutputError> {
        self.push_of(batch, |_| true)
    }

    /// The same, but only for documents of some kinds.
    ///
    /// # Errors
    /// The disk cannot take them.
    pub fn push_of(&mut self, batch: &Batch, takes: impl Fn(Kind) -> bool) -> Result<(), OutputError> {
        let documents = || batch.documents().filter(|(kind, _)| takes(*kind));
        self.meter.spooled.add(documents().count());
        // What is being sent from memory comes before these.
        let (on_disk, result) = match (self.memory.lent, self.free_memory()) {
            (true, _) => (0, Ok(())),
            (false, Ok(())) => self.append(documents()),
            (false, Err(error)) => (0, Err(error)),
        };
        self.remember(documents().skip(on_disk));
        self.update_meter();
        result.map_err(|error| OutputError::io("writing to the spool", self.folder.path(), &error))
    }

    /// What is to be sent next: up to so many documents and, after the first, so many bytes. The same again until it is
    /// [done](Self::done).
    ///
    /// # Errors
    /// The disk cannot be read, or damaged bytes cannot be set aside.
    pub fn next(&mut self, documents: usize, bytes: usize) -> Result<Option<Chunk>, OutputError> {
        let chunk = self.next_on_disk(documents, bytes);
        match chunk.map_err(|error| OutputError::io("reading the spool", self.folder.path(), &error))? {
            Some(chunk) => Ok(Some(chunk)),
            None => Ok(self.next_in_memory(documents, bytes)),
        }
    }

    /// The documents after a chunk, as far as they can be read at once, but at most `documents`. Unlike those of
    /// [`next`](Self::next) they are not taken as being sent.
    pub fn after(&self, chunk: &Chunk, documents: usize) -> Batch {
        let in_memory = |first: u64| {
            let skip = usize::try_from(first.saturating_sub(self.memory.first)).unwrap_or(usize::MAX);
            let mut batch = Batch::default();
            let rest = self.memory.documents.iter().skip(skip).take(documents);
            rest.for_each(|(kind, document)| batch.push_json(*kind, document));
            batch
        };
        match chunk.end {
            End::Memory(end) => in_memory(end),
            End::Disk(place) => self.after_on_disk(place, documents).unwrap_or_else(|| in_memory(self.memory.first)),
        }
    }

    fn after_on_disk(&self, place: Place, documents: usize) -> Option<Batch> {
        self.segments.iter().filter(|segment| segment.number >= place.segment).find_map(|segment| {
            let from = if segment.number == place.segment { place.offset } else { 0 };
            let mut bytes = vec![0; WINDOW.min(segment.length.saturating_sub(from) as usize)];
            self.folder.read(segment.number).ok()?.read_exact_at(&mut bytes, from).ok()?;
            let (batch, _) = gather(&bytes[head(from, &bytes)..], documents, WINDOW);
            (!batch.is_empty()).then_some(batch)
        })
    }

    /// The server has these documents, or will never have them.
    ///
    /// # Errors
    /// How far it is cannot be written down: after a crash these are sent again.
    pub fn done(&mut self, chunk: &Chunk) -> Result<(), OutputError> {
        match chunk.end {
            End::Memory(end) => self.memory.forget(end),
            End::Disk(place) => {
                self.on_their_way = None;
                if let Some(segment) = self.segments.front_mut().filter(|segment| segment.number == place.segment) {
                    segment.left = segment.left.saturating_sub(chunk.batch.len() as u64);
                }
                self.place = place.max(self.place);
            }
        }
        let written = self.position.write(self.place);
        self.drop_finished();
        self.update_meter();
        written.map_err(|error| OutputError::io("writing the position of the spool", self.folder.path(), &error))
    }

    /// Writes what waits in memory to the disk, and adds to `left` what that cannot take. The last thing to do.
    ///
    /// # Errors
    /// The disk cannot take it.
    pub fn close(&mut self, left: &mut Batch) -> Result<(), OutputError> {
        self.give_up();
        self.memory.lent = false; // there is no sender any more
        let freed = self.free_memory();
        for (kind, document) in &self.memory.documents {
            left.push_json(*kind, document);
        }
        self.memory.forget(u64::MAX);
        self.active = None;
        if self.dropped.documents > 0 {
            self.log_dropped();
        }
        self.drop_finished();
        self.update_meter();
        freed.map_err(|error| OutputError::io("writing to the spool", self.folder.path(), &error))
    }

    /// What has to be synced for everything so far to survive a loss of power. Syncing takes long: do it without a lock.
    pub fn to_sync(&self) -> Option<File> {
        self.active.as_ref().and_then(|file| file.try_clone().ok())
    }

    /// How many documents wait.
    pub fn waiting(&self) -> u64 {
        let left: u64 = self.segments.iter().map(|segment| segment.left).sum();
        left + self.memory.documents.len() as u64
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// Writes what waits in memory to the disk, if that works again. Not while some of it is being sent.
    fn free_memory(&mut self) -> io::Result<()> {
        if self.memory.lent || self.memory.documents.is_empty() {
            return Ok(());
        }
        let documents = std::mem::take(&mut self.memory.documents);
        let (on_disk, result) = self.append(documents.iter().map(|(kind, document)| (*kind, &**document)));
        self.memory.documents = documents;
        self.memory.forget(self.memory.first + on_disk as u64);
        result
    }

    fn remember<'a>(&mut self, documents: impl Iterator<Item = (Kind, &'a [u8])>) {
        for (kind, document) in documents {
            self.memory.bytes += document.len();
            self.memory.documents.push_back((kind, document.into()));
        }
        while self.memory.bytes > self.options.memory && !self.memory.lent {
            self.memory.forget(self.memory.first + 1);
            self.meter.spool_dropped.add(1);
        }
        while self.memory.bytes > self.options.memory {
            // The oldest are on their way: the newest have to give way.
            let Some((_, document)) = self.memory.documents.pop_back() else { return };
            self.memory.bytes -= document.len();
            self.meter.spool_dropped.add(1);
        }
    }

    /// Writes documents, as many in a segment as it holds. Returns how many are on disk: all of them, or, when it fails,
    /// those before the first that is not.
    fn append<'a>(&mut self, documents: impl Iterator<Item = (Kind, &'a [u8])>) -> (usize, io::Result<()>) {
        let mut documents = documents.peekable();
        let mut on_disk = 0;
        while documents.peek().is_some() {
            match self.append_to_segment(&mut documents) {
                Ok(count) => on_disk += count,
                Err(error) => return (on_disk, Err(error)),
            }
        }
        (on_disk, Ok(()))
    }

    /// Writes the first documents, as many as the segment has room for, or begins the next; at least one. Returns how
    /// many; when it fails, none of them is on disk.
    fn append_to_segment<'a>(
        &mut self,
        documents: &mut Peekable<impl Iterator<Item = (Kind, &'a [u8])>>,
    ) -> io::Result<usize> {
        let size = self.options.segment_size;
        let room = |segment: &Segment| size.saturating_sub(segment.length);
        let open = self.active.as_ref().and(self.segments.back());
        let next = documents.peek().map_or(0, |(_, document)| record::length(document));
        let is_full = open.is_none_or(|segment| next > room(segment));
        if is_full {
            self.begin_segment()?;
        }
        let room = self.segments.back().map_or(0, room);
        let fits = |buffer: &Vec<u8>, document: &[u8]| (buffer.len() as u64 + record::length(document)) <= room;
        self.buffer.clear();
        let mut count = 0;
        while let Some((kind, document)) = documents.next_if(|(_, document)| count == 0 || fits(&self.buffer, document))
        {
            record::encode(kind, document, &mut self.buffer);
            count += 1;
        }
        self.write_buffer()?;
        if let Some(segment) = self.segments.back_mut() {
            segment.left += count as u64;
        }
        Ok(count)
    }

    /// Writes the buffer to the segment that is open: all of it, or nothing.
    fn write_buffer(&mut self) -> io::Result<()> {
        let length = self.buffer.len() as u64;
        self.make_room(length);
        let (Some(file), Some(segment)) = (&mut self.active, self.segments.back_mut()) else {
            return Err(io::Error::other("no segment is open"));
        };
        if let Err(error) = file.write_all(&self.buffer) {
            // What cannot be taken back is damage at the end of this segment; no document is written behind it.
            if file.set_len(segment.length).is_err() {
                self.active = None;
            }
            return Err(error);
        }
        segment.length += length;
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let number = self.segments.back().map_or(self.place.segment, |last| last.number) + 1;
        let file = self.folder.create(number)?;
        let length = file.metadata()?.len();
        self.active = Some(file);
        self.segments.push_back(Segment { number, length, left: 0 });
        Ok(())
    }

    /// Sets the maximum number of bytes on disk.
    pub fn set_max_size(&mut self, max_size: u64) {
        self.options.max_size = max_size;
    }

    /// Drops the oldest segment, even if it is the one being written to. Returns whether there was one.
    pub fn drop_oldest(&mut self) -> bool {
        if self.segments.len() == 1 {
            self.active = None;
        }
        let had_one = !self.segments.is_empty();
        self.drop_front();
        self.update_meter();
        had_one
    }

    /// Drops the oldest segments until there is room.
    fn make_room(&mut self, length: u64) {
        while self.size() + length > self.options.max_size && self.segments.len() > 1 {
            self.drop_front();
        }
    }

    fn drop_front(&mut self) {
        let Some(oldest) = self.segments.pop_front() else { return };
        let mut lost = oldest.left;
        if let Some(on_their_way) = self.on_their_way.as_mut().filter(|it| it.segment == oldest.number) {
            on_their_way.dropped = true;
            lost = lost.saturating_sub(on_their_way.count);
        }
        let _ = self.folder.remove(oldest.number);
        self.place = self.place.max(Place { segment: oldest.number + 1, offset: 0 });
        self.meter.spool_dropped.add(usize::try_from(lost).unwrap_or(usize::MAX));
        self.dropped.documents += lost;
        if lost > 0 && self.dropped.told.is_none_or(|told| told.elapsed() >= LOG_INTERVAL) {
            self.log_dropped();
        }
    }

    fn log_dropped(&mut self) {
        tracing::warn!(
            "the spool {} is full: {} documents were dropped; make spool.max_size larger, or the server faster",
            self.folder.path().display(),
            self.dropped.documents
        );
        self.dropped = Dropped { documents: 0, told: Some(Instant::now()) };
    }

    /// Counts as lost what has not arrived and is not on disk any more.
    fn give_up(&mut self) {
        let lost = self.on_their_way.take().filter(|it| it.dropped).map_or(0, |it| it.count);
        self.meter.spool_dropped.add(usize::try_from(lost).unwrap_or(usize::MAX));
    }

    /// Bytes on disk.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    fn next_on_disk(&mut self, documents: usize, bytes: usize) -> io::Result<Option<Chunk>> {
        let mut read = std::mem::take(&mut self.window);
        let chunk = self.look_on_disk(&mut read, documents, bytes);
        self.window = read;
        chunk
    }

    fn look_on_disk(&mut self, read: &mut Vec<u8>, documents: usize, bytes: usize) -> io::Result<Option<Chunk>> {
        let mut window = WINDOW.max(bytes);
        loop {
            let Some(segment) = self.segments.front() else { return Ok(None) };
            let (number, length) = (segment.number, segment.length);
            if self.place.segment < number {
                self.place = Place { segment: number, offset: 0 };
            }
            if self.place.offset >= length {
                if self.segments.len() == 1 {
                    return Ok(None);
                }
                self.place = Place { segment: number + 1, offset: 0 };
                self.drop_finished();
                continue;
            }
            read.resize(window.min((length - self.place.offset) as usize), 0);
            self.read(number, self.place.offset, read)?;
            let skip = head(self.place.offset, read);
            let is_all = self.place.offset + read.len() as u64 == length;
            let rest = &read[skip..];
            if !is_all && record::document(rest).is_none() {
                window *= 2;
                continue;
            }
            let start = self.place.offset + skip as u64;
            match record::next(rest) {
                None => self.place.offset = length,
                Some((Found::Damage, damaged)) => self.set_aside(number, start, &rest[..damaged])?,
                Some((Found::Document(..), _)) => {
                    let (batch, taken) = gather(rest, documents, bytes);
                    self.give_up();
                    self.on_their_way = Some(OnTheirWay { segment: number, count: batch.len() as u64, dropped: false });
                    let end = Place { segment: number, offset: start + taken as u64 };
                    return Ok(Some(Chunk { batch, end: End::Disk(end) }));
                }
            }
        }
    }

    fn read(&mut self, number: u64, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let file = match self.reading.take() {
            Some((of, file)) if of == number => file,
            _ => self.folder.read(number)?,
        };
        let read = file.read_exact_at(to, offset);
        self.reading = Some((number, file));
        read
    }

    fn set_aside(&mut self, number: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let kept = self.folder.set_aside(number, offset, bytes)?;
        self.meter.spool_damaged.add(1);
        let segment = self.folder.segment(number);
        tracing::warn!(
            "{} is damaged at byte {offset}: {} bytes were set aside in {}; what follows is sent",
            segment.display(),
            bytes.len(),
            kept.display()
        );
        self.place = Place { segment: number, offset: offset + bytes.len() as u64 };
        // Should this fail, the same bytes are set aside under the same name after the next start.
        let _ = self.position.write(self.place);
        for removed in self.folder.prune_damaged(self.options.max_size / DAMAGED_SHARE)? {
            self.meter.spool_damaged_dropped.add(1);
            tracing::warn!("{} was removed: too much damage was set aside; look at its disk", removed.display());
        }
        Ok(())
    }

    fn next_in_memory(&mut self, documents: usize, bytes: usize) -> Option<Chunk> {
        let mut batch = Batch::default();
        for (kind, document) in self.memory.documents.iter().take(documents) {
            if !batch.is_empty() && batch.lines().len() + document.len() > bytes {
                break;
            }
            batch.push_json(*kind, document);
        }
        self.memory.lent = !batch.is_empty();
        let end = End::Memory(self.memory.first + batch.len() as u64);
        (!batch.is_empty()).then_some(Chunk { batch, end })
    }

    /// Removes segments that lie behind the place, and the last one when it is not written to any more.
    fn drop_finished(&mut self) {
        while let Some(first) = self.segments.front() {
            let is_last = self.segments.len() == 1;
            let behind = first.number < self.place.segment
                || (first.number == self.place.segment && self.place.offset >= first.length);
            if !behind || (is_last && self.active.is_some()) {
                return;
            }
            let _ = self.folder.remove(first.number);
            self.segments.pop_front();
        }
    }

    /// Updates this spool's contribution to the meter, which all spools of the output share.
    fn update_meter(&mut self) {
        let now = (self.waiting(), self.size());
        self.meter.pending.change(self.told.0, now.0);
        self.meter.spool_bytes.change(self.told.1, now.1);
        self.told = now;
    }
}

impl Memory {
    /// Forgets the documents before this number.
    fn forget(&mut self, end: u64) {
        while self.first < end {
            let Some((_, document)) = self.documents.pop_front() else { break };
            self.bytes -= document.len();
            self.first += 1;
        }
        self.lent = false;
    }
}

/// Whole documents from the beginning of `bytes`, and how many bytes they take.
fn gather(bytes: &[u8], documents: usize, most: usize) -> (Batch, usize) {
    let (mut batch, mut taken) = (Batch::default(), 0);
    while batch.len() < documents {
        let Some((kind, document)) = record::document(&bytes[taken..]) else { break };
        if !batch.is_empty() && batch.lines().len() + document.len() > most {
            break;
        }
        batch.push_json(kind, document);
        taken += record::HEAD + document.len();
    }
    (batch, taken)
}

#[cfg(test)]
mod tests;
