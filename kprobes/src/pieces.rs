//! Arrays on kernels that cannot fetch them, and probes that fetch more than one event can hold.
//!
//! Before Linux 4.20 a fetch argument is a single value, so an array is fetched as numbers of at most 8 bytes, and the window
//! of a string usually as the string itself. If there are more values than one event may have, the probe is divided into
//! several events on the same function. Each hit then writes one record for each event. These are pieces of the whole record,
//! the single one that a newer kernel would write. The [`Joiner`] puts them together.
//!
//! Strings have events of their own, because the kernel drops a record that is too large for perf (`PERF_MAX_TRACE_SIZE`
//! is 2048 before Linux 5.16), and the fetch of a string has no limit below 4096 bytes. In the whole record,
//! the windows of the dropped strings are then empty. The hit's other values are in other records, and are kept.

use std::mem;
use std::ops::Range;

use crate::expression::Expression;
use crate::value::located;
use crate::{Error, Fetch, Format, FormatField, Place, Record, Type, Value};

/// The names of further events: the name of the probe, this text, and the number of the piece.
pub(crate) const PIECE_INFIX: &str = "_piece_";
/// What some kernels write for a string that they could not read (`FAULT_STRING`).
const FAULT: &[u8] = b"(fault)";
/// How the kernel's formats describe a word that locates a value elsewhere in the record.
const LOCATED: &str = "__data_loc";
/// The maximum number of pieces: one bit each in [`Waiting`].
const MAX_PIECES: usize = u64::BITS as usize;

/// A value of an event, and its place in the whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Bytes from the first value of the whole record.
    pub(crate) at: usize,
    /// Its size there, in bytes.
    pub(crate) size: usize,
    /// Whether it is the window of a string that the event has as a `string`.
    pub(crate) is_string: bool,
}

/// The order in which the events of one hit write their records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As they were added.
    Added,
    /// The last added first.
    Reversed,
}

/// The pieces of a record that the kernel does not write as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// In the order in which they arrive. Empty if the kernel writes one record for each hit.
    pub(crate) pieces: Vec<Piece>,
    /// The `common_type` of the whole record.
    id: u16,
    /// The size of what comes before the first value, in bytes. It is the same in all pieces.
    head: usize,
    /// The size of the whole record in bytes.
    size: usize,
}

/// One event of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its `common_type`.
    pub(crate) id: u32,
    values: Vec<Values>,
}

/// Values of an event, and where they go in the whole record.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Values {
    /// Numbers that lie next to each other in both.
    Numbers {
        /// Their place in the event's record.
        from: Range<usize>,
        to: usize,
    },
    /// A string.
    String {
        /// The place of the word that locates it.
        word: Place,
        window: Range<usize>,
    },
}

/// An array as single values, each with its offset in the array. `None` if the array is not read from memory.
pub(crate) fn single_values(array: &Expression) -> Option<Vec<(usize, Expression)>> {
    let size = array.kind.size();
    let (mut values, mut at) = (Vec::new(), 0);
    while at < size {
        let kind = [Type::U64, Type::U32, Type::U16].into_iter().find(|one| at + one.size() <= size);
        let kind = kind.unwrap_or(Type::U8);
        values.push((at, array.part(at, kind)?));
        at += kind.size();
    }
    Some(values)
}

/// Whether only newer kernels fetch this type as one value.
pub(crate) fn is_array(kind: Type) -> bool {
    matches!(kind, Type::Bytes(_) | Type::U64Array(_) | Type::StringWindow(_))
}

/// The format of the whole record with these fetched values, and its pieces. `events` are the events that fetch its parts, in
/// the order in which they were added: the format and the values of each.
pub(crate) fn join_formats(
    fetches: &[Fetch<'_>],
    events: &[(Format, &[Part])],
    order: Order,
) -> Result<(Format, Pieces), Error> {
    let (first, parts) = events.first().ok_or_else(|| unfit("(none)", "the probe has no event"))?;
    let head = first.fields.len().saturating_sub(parts.len());
    let start = match first.fields.get(head) {
        Some(value) => usize::from(value.offset),
        None => first.fields.last().map_or(0, |last| usize::from(last.offset) + usize::from(last.size)),
    };
    let mut pieces = events.iter().map(|(format, parts)| piece(format, parts, start)).collect::<Result<Vec<_>, _>>()?;
    let mut fields = first.fields[..head].to_vec();
    let mut size = start;
    for fetch in fetches {
        fields.push(field(&first.name, fetch, size)?);
        size += fetch.kind.size();
    }
    let fetched: usize = events.iter().flat_map(|(_, parts)| parts.iter()).map(|part| part.size).sum();
    if start + fetched != size {
        return Err(unfit(&first.name, "its values are not those that were asked for"));
    }
    if events.len() > MAX_PIECES {
        return Err(unfit(&first.name, "it takes more than 64 events on this kernel"));
    }
    match &pieces[..] {
        [piece] if piece.is_whole() => pieces.clear(),
        // The whole record would have only the word that locates the string, and not the string.
        _ if fetches.iter().any(|fetch| fetch.kind == Type::String) => {
            return Err(unfit(&first.name, "it takes several events, and they cannot fetch a string without a window"));
        }
        _ => {}
    }
    if order == Order::Reversed {
        pieces.reverse();
    }
    let id = first.id as u16;
    Ok((Format { fields, ..first.clone() }, Pieces { pieces, id, head: start, size }))
}

/// The piece that an event with these values writes. The first value of the whole record is at `start`.
fn piece(format: &Format, parts: &[Part], start: usize) -> Result<Piece, Error> {
    let mut values: Vec<Values> = Vec::new();
    let fields = format.fields.get(format.fields.len().saturating_sub(parts.len())..).unwrap_or_default();
    for (field, part) in fields.iter().zip(parts) {
        let (from, to) = (usize::from(field.offset), start + part.at);
        if part.is_string {
            if !field.kind.starts_with(LOCATED) {
                return Err(unfit(&format.name, "it has a number where a string was asked for"));
            }
            let word = Place { offset: field.offset, size: field.size };
            values.push(Values::String { word, window: to..to + part.size });
            continue;
        }
        if usize::from(field.size) != part.size {
            return Err(unfit(&format.name, "a value has another size than was asked for"));
        }
        match values.last_mut() {
            Some(Values::Numbers { from: before, to: there }) if before.end == from && *there + before.len() == to => {
                before.end += part.size;
            }
            _ => values.push(Values::Numbers { from: from..from + part.size, to }),
        }
    }
    Ok(Piece { id: format.id, values })
}

/// This value at `offset`, in the form in which the kernel describes fields.
fn field(event: &str, fetch: &Fetch<'_>, offset: usize) -> Result<FormatField, Error> {
    let (kind, signed) = match fetch.kind {
        Type::Bytes(count) => (format!("u8[{count}]"), false),
        Type::U64Array(count) | Type::StringWindow(count) => (format!("u64[{count}]"), false),
        Type::String => (format!("{LOCATED} char[]"), true),
        kind => (kind.to_string(), matches!(kind, Type::S8 | Type::S16 | Type::S32 | Type::S64)),
    };
    let too_far = || Error::Mismatch {
        event: event.to_owned(),
        field: fetch.name.to_string(),
        problem: "it lies beyond the 64 KiB of a record".to_owned(),
    };
    let number = |n: usize| u16::try_from(n).map_err(|_| too_far());
    let (offset, size) = (number(offset)?, number(fetch.kind.size())?);
    Ok(FormatField { name: fetch.name.to_string(), kind, offset, size, signed })
}

fn unfit(event: &str, problem: &str) -> Error {
    Error::Mismatch { event: event.to_owned(), field: String::new(), problem: problem.to_owned() }
}

impl Pieces {
    /// Whether the kernel may drop this piece because its strings are too long.
    fn may_be_dropped(&self, number: usize) -> bool {
        self.pieces[number].has_strings()
    }
}

impl Piece {
    /// Whether the kernel writes its values as they are in the whole record.
    fn is_whole(&self) -> bool {
        match &self.values[..] {
            [] => true,
            [Values::Numbers { from, to }] => from.start == *to,
            _ => false,
        }
    }

    fn has_strings(&self) -> bool {
        self.values.iter().any(|values| matches!(values, Values::String { .. }))
    }

    /// Copies the values of its record to the whole record. `None` if the record is too short.
    fn copy(&self, record: &[u8], whole: &mut [u8]) -> Option<()> {
        for values in &self.values {
            match values {
                Values::Numbers { from, to } => {
                    let numbers = record.get(from.clone())?;
                    whole.get_mut(*to..*to + numbers.len())?.copy_from_slice(numbers);
                }
                Values::String { word, window } => {
                    let string = string_at(record, u32::read(record, *word)?);
                    let window = whole.get_mut(window.clone())?;
                    let copied = string.len().min(window.len());
                    window[..copied].copy_from_slice(&string[..copied]);
                }
            }
        }
        Some(())
    }
}

/// The string that a `__data_loc` word locates, without its NUL. Empty if the kernel could not read it, and if it has no
/// NUL or lies outside the record.
fn string_at(record: &[u8], word: u32) -> &[u8] {
    let (offset, length) = located(word);
    let bytes = record.get(offset..offset + length).unwrap_or_default();
    let string = bytes.iter().position(|byte| *byte == 0).map_or(&b""[..], |end| &bytes[..end]);
    if string == FAULT { b"" } else { string }
}

/// Puts the pieces of records together. One CPU writes all pieces of one hit before those of another, and always in the
/// same order.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    /// The probes whose records come in pieces.
    probes: Vec<Pieces>,
    /// Incomplete records, at most one for each probe and CPU.
    waiting: Vec<Waiting>,
}

/// An incomplete record.
#[derive(Debug, Default)]
struct Waiting {
    cpu: u32,
    /// The index of the probe.
    probe: usize,
    tid: u32,
    /// The pieces that have arrived, one bit each.
    arrived: u64,
    /// The lowest number of the next piece of the same hit; 0 if the next piece begins a hit.
    next: usize,
    /// Whether records were lost, so that pieces may belong to a hit whose first pieces are missing.
    after_loss: bool,
    raw: Vec<u8>,
}

impl Joiner {
    /// Expects records of these pieces.
    pub(crate) fn add(&mut self, pieces: &Pieces) {
        if !pieces.pieces.is_empty() {
            self.probes.push(pieces.clone());
        }
    }

    /// Stops expecting records of these pieces, and drops those that have arrived.
    pub(crate) fn remove(&mut self, pieces: &Pieces) {
        if let Some(at) = self.probes.iter().position(|probe| probe == pieces) {
            self.probes.remove(at);
            self.waiting.clear(); // the entries refer to indices of this list
        }
    }

    /// Whether all records arrive whole.
    pub(crate) fn is_empty(&self) -> bool {
        self.probes.is_empty()
    }

    /// Lends a whole record to `f`, and keeps a piece. When the last piece of a hit arrives, it lends the whole record,
    /// with the time of that piece. A record that lacks a piece after a loss is dropped. Strings that the kernel has
    /// dropped are empty.
    pub(crate) fn take(&mut self, record: Record<'_>, f: &mut impl FnMut(Record<'_>)) {
        match record {
            Record::Sample { time, cpu, pid, tid, id, raw } => {
                let Some((probe, number)) = self.find(id) else { return f(record) };
                let pieces = &self.probes[probe];
                let waiting = waiting(&mut self.waiting, cpu, probe);
                if let Some(raw) = waiting.add(pieces, number, tid, raw) {
                    f(Record::Sample { time, cpu, pid, tid, id: pieces.id, raw });
                }
            }
            Record::Lost { cpu, .. } => {
                self.waiting.iter_mut().filter(|waiting| waiting.cpu == cpu).for_each(|waiting| {
                    waiting.after_loss = true;
                });
                f(record);
            }
        }
    }

    /// The index of the probe that a record with this id is a piece of, and the number of the piece. `None` for whole records.
    fn find(&self, id: u16) -> Option<(usize, usize)> {
        let number = |probe: &Pieces| probe.pieces.iter().position(|piece| piece.id == u32::from(id));
        self.probes.iter().enumerate().find_map(|(index, probe)| Some((index, number(probe)?)))
    }
}

fn waiting(all: &mut Vec<Waiting>, cpu: u32, probe: usize) -> &mut Waiting {
    let at = all.iter().position(|one| one.cpu == cpu && one.probe == probe).unwrap_or_else(|| {
        all.push(Waiting { cpu, probe, ..Waiting::default() });
        all.len() - 1
    });
    &mut all[at]
}

impl Waiting {
    /// Adds a piece. Returns the whole record if this is the last piece of its hit, and all pieces without strings have
    /// arrived.
    fn add(&mut self, pieces: &Pieces, number: usize, tid: u32, record: &[u8]) -> Option<&[u8]> {
        let count = pieces.pieces.len();
        let is_last = number + 1 == count;
        if self.after_loss && number > 0 {
            self.after_loss = !is_last;
            self.next = 0;
            return None;
        }
        if self.next == 0 || self.tid != tid || number < self.next {
            self.begin(tid, pieces, record);
        }
        self.after_loss = false;
        self.next = if is_last { 0 } else { number + 1 };
        if pieces.pieces[number].copy(record, &mut self.raw).is_some() {
            self.arrived |= 1 << number;
        }
        let is_there = |number: usize| self.arrived & 1 << number != 0 || pieces.may_be_dropped(number);
        (is_last && (0..count).all(is_there)).then_some(&self.raw)
    }

    /// Discards the pieces so far and begins a record with the head of a piece.
    fn begin(&mut self, tid: u32, pieces: &Pieces, record: &[u8]) {
        let mut buffer = mem::take(&mut self.raw);
        buffer.clear();
        buffer.extend_from_slice(record.get(..pieces.head).unwrap_or_default());
        buffer.resize(pieces.size, 0);
        if let Some(id) = buffer.first_chunk_mut() {
            *id = pieces.id.to_ne_bytes();
        }
        (self.tid, self.arrived, self.raw) = (tid, 0, buffer);
    }
}

#[cfg(test)]
mod tests;
