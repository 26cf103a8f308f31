//! Stores documents on disk until the server has acknowledged them.
//!
//! All documents go through the spool, so that they keep their order, and a crash loses none that was taken. Segments are only
//! appended to. Each start begins a new segment, so that nothing is written after an incomplete document that a crash has left.
//! A small file has the position up to which the server has acknowledged documents. All reads are checked: damaged bytes are moved
//! to `damaged/` and counted, and reading continues at the next whole document. When that directory is larger than a quarter of
//! the spool's limit, its oldest files are removed, counted and logged.
//!
//! When the spool is full, its oldest segment is dropped, and its documents are counted. When the disk cannot take a document, it
//! waits in memory, up to a limit, and is sent from there.

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

use self::position::{Position, PositionFile};
use self::record::Entry;
use self::segment::{Folder, Segment, head};
use super::{Batch, Kind, Meter, OutputError};

/// The minimum number of bytes that are read at once.
const WINDOW: usize = 64 << 10;

/// How often dropped documents are logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The size limit of `damaged/`, as a fraction (1/n) of the spool's limit.
const DAMAGED_SHARE: u64 = 4;

/// The options of a [`Spool`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolOptions {
    /// The directory of the spool, which nothing else uses.
    pub path: PathBuf,
    /// The maximum number of bytes on disk.
    pub max_size: u64,
    /// The size of a segment in bytes. A document that is larger has a segment of its own. When the spool is full, one segment is
    /// dropped at a time.
    pub segment_size: u64,
    /// The maximum number of bytes of documents in memory, while the disk cannot take them.
    pub memory: usize,
}

/// Documents that wait for the server, in order.
#[derive(Debug)]
pub struct Spool {
    options: SpoolOptions,
    folder: Folder,
    _lock: Flock<File>,
    segments: VecDeque<Segment>,
    /// The last segment, while it is being written.
    active: Option<File>,
    /// The segment that was read last.
    reading: Option<(u64, File)>,
    /// How far documents have been read or acknowledged.
    position: Position,
    position_file: PositionFile,
    memory: Memory,
    dropped: Dropped,
    /// The documents from the disk that are being sent.
    in_flight: Option<InFlight>,
    meter: Arc<Meter>,
    /// This spool's present contribution to the meter: waiting documents, and bytes on disk.
    metered: (u64, u64),
    /// The bytes to write next.
    buffer: Vec<u8>,
    /// The bytes that were read last.
    window: Vec<u8>,
}

/// Documents that could not be written to the disk.
#[derive(Debug, Default)]
struct Memory {
    documents: VecDeque<(Kind, Box<[u8]>)>,
    bytes: usize,
    /// The number of the first document, counted from the start of the program.
    first: u64,
    /// Whether some of these documents are being sent.
    lent: bool,
}

/// Dropped documents that have not been logged yet.
#[derive(Debug, Default)]
struct Dropped {
    documents: u64,
    logged: Option<Instant>,
}

/// Documents that are being sent.
#[derive(Debug)]
struct InFlight {
    segment: u64,
    count: u64,
    /// Whether their segment was dropped meanwhile, so that they are lost if sending fails.
    dropped: bool,
}

/// Documents to be sent next.
#[derive(Debug)]
pub struct Chunk {
    /// The documents.
    pub batch: Batch,
    end: End,
}

/// The position after a chunk.
#[derive(Debug, Clone, Copy)]
enum End {
    Disk(Position),
    Memory(u64),
}

impl Spool {
    /// Opens or creates a spool and counts what it holds.
    ///
    /// # Errors
    /// Its directory cannot be used, or another process uses it.
    pub fn open(options: SpoolOptions, meter: Arc<Meter>) -> Result<Self, OutputError> {
        let error = |doing: &str, error: &io::Error| OutputError::io(doing, &options.path, error);
        let folder = Folder::open(&options.path).map_err(|it| error("opening the spool", &it))?;
        let lock = folder.file("lock").map_err(|it| error("locking the spool", &it))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| {
            let problem = format!("another process uses the spool {}", options.path.display());
            OutputError::new(problem, "stop it, or set another spool.path")
        })?;
        let found = folder.file("position").and_then(PositionFile::read);
        let (position_file, position) = found.map_err(|it| error("reading the position of the spool", &it))?;
        let mut segments = VecDeque::new();
        for number in folder.numbers().map_err(|it| error("reading the spool", &it))? {
            let from = if number == position.segment { position.offset } else { 0 };
            if number < position.segment {
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
            position,
            position_file,
            memory: Memory::default(),
            dropped: Dropped::default(),
            in_flight: None,
            meter,
            metered: (0, 0),
            buffer: Vec::new(),
            window: Vec::new(),
        };
        spool.update_meter();
        Ok(spool)
    }

    /// Takes documents. If the disk cannot take them, they wait in memory, and the error has the reason.
    ///
    /// # Errors
    /// The disk cannot take them.
    pub fn push(&mut self, batch: &Batch) -> Result<(), OutputError> {
        self.push_of(batch, |_| true)
    }

    /// Takes only the documents of some kinds; otherwise like [`push`](Self::push).
    ///
    /// # Errors
    /// The disk cannot take them.
    pub fn push_of(&mut self, batch: &Batch, takes: impl Fn(Kind) -> bool) -> Result<(), OutputError> {
        let documents = || batch.documents().filter(|(kind, _)| takes(*kind));
        self.meter.spooled.add(documents().count());
        // Documents that are being sent from memory come before these.
        let (on_disk, result) = match (self.memory.lent, self.free_memory()) {
            (true, _) => (0, Ok(())),
            (false, Ok(())) => self.append(documents()),
            (false, Err(error)) => (0, Err(error)),
        };
        self.remember(documents().skip(on_disk));
        self.update_meter();
        result.map_err(|error| OutputError::io("writing to the spool", self.folder.path(), &error))
    }

    /// The documents to send next: up to `documents`, and up to `bytes` unless the first one is larger. Returns the same chunk until
    /// it is [done](Self::done).
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

    /// Up to `documents` documents after a chunk, as far as one read gets them. Unlike with [`next`](Self::next), they do not count as
    /// being sent.
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

    fn after_on_disk(&self, place: Position, documents: usize) -> Option<Batch> {
        self.segments.iter().filter(|segment| segment.number >= place.segment).find_map(|segment| {
            let from = if segment.number == place.segment { place.offset } else { 0 };
            let mut bytes = vec![0; WINDOW.min(segment.length.saturating_sub(from) as usize)];
            self.folder.read(segment.number).ok()?.read_exact_at(&mut bytes, from).ok()?;
            let (batch, _) = gather(&bytes[head(from, &bytes)..], documents, WINDOW);
            (!batch.is_empty()).then_some(batch)
        })
    }

    /// Removes documents that the server has acknowledged, or that will never be sent.
    ///
    /// # Errors
    /// The position cannot be written. After a crash, these documents are sent again.
    pub fn acknowledge(&mut self, chunk: &Chunk) -> Result<(), OutputError> {
        match chunk.end {
            End::Memory(end) => self.memory.forget(end),
            End::Disk(place) => {
                self.in_flight = None;
                if let Some(segment) = self.segments.front_mut().filter(|segment| segment.number == place.segment) {
                    segment.left = segment.left.saturating_sub(chunk.batch.len() as u64);
                }
                self.position = place.max(self.position);
            }
        }
        let written = self.position_file.write(self.position);
        self.drop_finished();
        self.update_meter();
        written.map_err(|error| OutputError::io("writing the position of the spool", self.folder.path(), &error))
    }

    /// Closes the spool: writes the documents in memory to disk, and adds those to `left` that the disk cannot take.
    ///
    /// # Errors
    /// The disk cannot take documents.
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

    /// The file to sync, so that all documents so far survive a power failure. Syncing is slow: do it without holding a lock.
    pub fn to_sync(&self) -> Option<File> {
        self.active.as_ref().and_then(|file| file.try_clone().ok())
    }

    /// The number of waiting documents.
    pub fn waiting(&self) -> u64 {
        let left: u64 = self.segments.iter().map(|segment| segment.left).sum();
        left + self.memory.documents.len() as u64
    }

    /// Whether no documents wait.
    pub fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// Writes the documents in memory to disk, if possible. Does nothing while some of them are being sent.
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
            // The oldest documents are being sent, so the newest are dropped.
            let Some((_, document)) = self.memory.documents.pop_back() else { return };
            self.memory.bytes -= document.len();
            self.meter.spool_dropped.add(1);
        }
    }

    /// Writes documents to segments. Returns how many are on disk: all or, after an error, those before the first that failed.
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

    /// Writes as many documents as the segment has room for, or begins a new segment; at least one. Returns how many. After an
    /// error, none of them is on disk.
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

    /// Writes the buffer to the open segment: all of it or, after an error, nothing.
    fn write_buffer(&mut self) -> io::Result<()> {
        let length = self.buffer.len() as u64;
        self.make_room(length);
        let (Some(file), Some(segment)) = (&mut self.active, self.segments.back_mut()) else {
            return Err(io::Error::other("no segment is open"));
        };
        if let Err(error) = file.write_all(&self.buffer) {
            // If the truncation fails, the bytes are damage at the end of this segment. No document is written after
            // them.
            if file.set_len(segment.length).is_err() {
                self.active = None;
            }
            return Err(error);
        }
        segment.length += length;
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let number = self.segments.back().map_or(self.position.segment, |last| last.number) + 1;
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
        if let Some(in_flight) = self.in_flight.as_mut().filter(|it| it.segment == oldest.number) {
            in_flight.dropped = true;
            lost = lost.saturating_sub(in_flight.count);
        }
        let _ = self.folder.remove(oldest.number);
        self.position = self.position.max(Position { segment: oldest.number + 1, offset: 0 });
        self.meter.spool_dropped.add(usize::try_from(lost).unwrap_or(usize::MAX));
        self.dropped.documents += lost;
        if lost > 0 && self.dropped.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            self.log_dropped();
        }
    }

    fn log_dropped(&mut self) {
        tracing::warn!(
            "the spool {} is full: {} documents were dropped; set a larger spool.max_size, or make the server faster",
            self.folder.path().display(),
            self.dropped.documents
        );
        self.dropped = Dropped { documents: 0, logged: Some(Instant::now()) };
    }

    /// Counts documents as lost that were being sent, and are not on disk any more.
    fn give_up(&mut self) {
        let lost = self.in_flight.take().filter(|it| it.dropped).map_or(0, |it| it.count);
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
            let skip = head(self.position.offset, read);
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
                    self.give_up();
                    self.in_flight = Some(InFlight { segment: number, count: batch.len() as u64, dropped: false });
                    let end = Position { segment: number, offset: start + taken as u64 };
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

    /// Removes segments before the position, also the last one if it is not being written.
    fn drop_finished(&mut self) {
        while let Some(first) = self.segments.front() {
            let is_last = self.segments.len() == 1;
            let behind = first.number < self.position.segment
                || (first.number == self.position.segment && self.position.offset >= first.length);
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
        self.meter.pending.change(self.metered.0, now.0);
        self.meter.spool_bytes.change(self.metered.1, now.1);
        self.metered = now;
    }
}

impl Memory {
    /// Removes the documents before this number.
    fn forget(&mut self, end: u64) {
        while self.first < end {
            let Some((_, document)) = self.documents.pop_front() else { break };
            self.bytes -= document.len();
            self.first += 1;
        }
        self.lent = false;
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
        taken += record::HEAD + document.len();
    }
    (batch, taken)
}

#[cfg(test)]
mod tests;
