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

mod memory;
mod position;
mod reading;
mod record;
mod segment;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::iter::Peekable;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use self::memory::Memory;
use self::position::{Position, PositionFile};
use self::segment::{Folder, Segment};
use super::{Batch, Kind, Meter, OutputError};

/// How often dropped documents are logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

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
    /// Full segments that have not been synced since they were written.
    unsynced: Vec<File>,
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
    /// This spool's current contribution to the meter: waiting documents, and bytes on disk.
    metered: (u64, u64),
    /// The bytes to write next.
    buffer: Vec<u8>,
    /// The bytes that were read last.
    window: Vec<u8>,
}

/// The maximum number of full segments that wait to be synced. If there are more, the oldest is synced at once.
const MAX_UNSYNCED: usize = 8;

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
            unsynced: Vec::new(),
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
        let (on_disk, result) = match (self.memory.in_flight, self.flush_memory()) {
            (true, _) => (0, Ok(())),
            (false, Ok(())) => self.append(documents()),
            (false, Err(error)) => (0, Err(error)),
        };
        self.meter.spool_dropped.add(self.memory.add(documents().skip(on_disk), self.options.memory));
        self.update_meter();
        result.map_err(|error| OutputError::io("writing to the spool", self.folder.path(), &error))
    }

    /// The documents to send next: up to `documents`, and up to `bytes` unless the first one is larger. Returns the same chunk
    /// until it is [acknowledged](Self::acknowledge).
    ///
    /// # Errors
    /// The disk cannot be read, or damaged bytes cannot be set aside.
    pub fn next(&mut self, documents: usize, bytes: usize) -> Result<Option<Chunk>, OutputError> {
        let chunk = self.next_on_disk(documents, bytes);
        match chunk.map_err(|error| OutputError::io("reading the spool", self.folder.path(), &error))? {
            Some(chunk) => Ok(Some(chunk)),
            None => Ok(self.memory.next(documents, bytes).map(|(batch, end)| Chunk { batch, end: End::Memory(end) })),
        }
    }

    /// Up to `documents` documents after a chunk, as far as one read gets them. Unlike with [`next`](Self::next), they do not
    /// count as being sent.
    pub fn after(&self, chunk: &Chunk, documents: usize) -> Batch {
        let in_memory = |first| self.memory.from(first, documents);
        match chunk.end {
            End::Memory(end) => in_memory(end),
            End::Disk(position) => {
                self.after_on_disk(position, documents).unwrap_or_else(|| in_memory(self.memory.first))
            }
        }
    }

    /// Removes documents that the server has acknowledged, or that will never be sent.
    ///
    /// # Errors
    /// The position cannot be written. After a crash, these documents are sent again.
    pub fn acknowledge(&mut self, chunk: &Chunk) -> Result<(), OutputError> {
        match chunk.end {
            End::Memory(end) => self.memory.remove_before(end),
            End::Disk(position) => {
                self.in_flight = None;
                if let Some(segment) = self.segments.front_mut().filter(|segment| segment.number == position.segment) {
                    segment.left = segment.left.saturating_sub(chunk.batch.len() as u64);
                }
                self.position = position.max(self.position);
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
        self.end_in_flight();
        self.memory.in_flight = false; // there is no sender any more
        let flushed = self.flush_memory();
        for (kind, document) in &self.memory.documents {
            left.push_json(*kind, document);
        }
        self.memory.remove_before(u64::MAX);
        let synced = self.to_sync().and_then(|files| sync_all(&files));
        self.active = None;
        if self.dropped.documents > 0 {
            self.log_dropped();
        }
        self.drop_finished();
        self.update_meter();
        flushed.and(synced).map_err(|error| OutputError::io("writing to the spool", self.folder.path(), &error))
    }

    /// The files to sync, so that all documents so far survive a power failure. Full segments are returned only once. Syncing is
    /// slow: do it without holding a lock.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn to_sync(&mut self) -> io::Result<Vec<File>> {
        let active = self.active.as_ref().map(File::try_clone).transpose()?;
        Ok(self.unsynced.drain(..).chain(active).collect())
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
    fn flush_memory(&mut self) -> io::Result<()> {
        if self.memory.in_flight || self.memory.documents.is_empty() {
            return Ok(());
        }
        let documents = std::mem::take(&mut self.memory.documents);
        let (on_disk, result) = self.append(documents.iter().map(|(kind, document)| (*kind, &**document)));
        self.memory.documents = documents;
        self.memory.remove_before(self.memory.first + on_disk as u64);
        result
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

    /// Writes documents until the segment is full, but at least one. Begins a new segment if the open one has no room for the
    /// first. Returns how many documents were written; after an error, none was.
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
        self.unsynced.extend(self.active.replace(file));
        self.segments.push_back(Segment { number, length, left: 0 });
        if self.unsynced.len() > MAX_UNSYNCED {
            self.unsynced.remove(0).sync_data()?;
        }
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

    /// Ends the sending of documents from the disk. They are lost if their segment was dropped meanwhile.
    fn end_in_flight(&mut self) {
        let lost = self.in_flight.take().filter(|it| it.dropped).map_or(0, |it| it.count);
        self.meter.spool_dropped.add(usize::try_from(lost).unwrap_or(usize::MAX));
    }

    /// Bytes on disk.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
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

/// Syncs files. After an error, the others are synced all the same: [`Spool::to_sync`] returns a full segment only once.
///
/// # Errors
/// The first error.
pub(super) fn sync_all(files: &[File]) -> io::Result<()> {
    files.iter().map(File::sync_data).fold(Ok(()), Result::and)
}

#[cfg(test)]
mod tests;
