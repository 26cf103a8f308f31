//! Arrays on kernels that cannot fetch them, and probes that fetch more than one event can hold.
//!
//! Before Linux 4.20 a fetch argument is a single value, so an array is fetched word by word. If there are more words
//! than one event may have, the probe is divided into several events on the same function. Each hit then writes one
//! record for each event. These are pieces of the single record that a newer kernel would write; the [`Joiner`] puts
//! them together.

use std::mem;
use std::ops::Range;

use crate::expression::Expression;
use crate::{Error, Fetch, Format, FormatField, Record, Type};

/// The names of further events: the name of the probe, this text, and the number of the piece.
pub(crate) const PIECE_INFIX: &str = "_piece_";

/// The pieces of a record that the kernel does not write as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// Empty if the kernel writes one record for each hit.
    pub(crate) pieces: Vec<Piece>,
    /// The size of the whole record in bytes.
    size: usize,
}

/// One of the events that a probe is divided into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its `common_type`.
    pub(crate) id: u32,
    /// The offsets of its values in its own records.
    values: Range<usize>,
    /// The offset of these values in the whole record.
    at: usize,
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
    matches!(kind, Type::Bytes(_) | Type::Words(_))
}

/// The format of the whole record for `fetches`, and the record's pieces. `events` are the events that the probe is divided into:
/// the format of each, and the number of its single values.
pub(crate) fn join_formats(fetches: &[Fetch<'_>], events: &[(Format, usize)]) -> Result<(Format, Pieces), Error> {
    let (first, count) = events.first().ok_or_else(|| unfit("no event", ""))?;
    let head = first.fields.len().saturating_sub(*count);
    let start = first.fields.get(head).map_or(0, |field| usize::from(field.offset));
    let mut pieces = Pieces { pieces: Vec::new(), size: start };
    for (format, count) in events {
        let values = format.fields.get(format.fields.len().saturating_sub(*count)..).unwrap_or_default();
        let begin = values.first().map_or(0, |field| usize::from(field.offset));
        let size: usize = values.iter().map(|field| usize::from(field.size)).sum();
        let end = values.last().map_or(0, |field| usize::from(field.offset) + usize::from(field.size));
        if end - begin != size {
            return Err(unfit(&format.name, "its values do not lie next to each other"));
        }
        pieces.pieces.push(Piece { id: format.id, values: begin..end, at: pieces.size });
        pieces.size += size;
    }
    let mut fields = first.fields[..head].to_vec();
    let mut offset = start;
    for fetch in fetches {
        fields.push(field(fetch, offset)?);
        offset += fetch.kind.size();
    }
    if offset != pieces.size {
        return Err(unfit(&first.name, "its values are not those that were asked for"));
    }
    if pieces.pieces.len() == 1 {
        pieces.pieces.clear();
    }
    Ok((Format { fields, ..first.clone() }, pieces))
}

/// This value at `offset`, in the form in which the kernel describes fields.
fn field(fetch: &Fetch<'_>, offset: usize) -> Result<FormatField, Error> {
    let (kind, signed) = match fetch.kind {
        Type::Bytes(count) => (format!("u8[{count}]"), false),
        Type::Words(count) => (format!("u64[{count}]"), false),
        Type::String => ("__data_loc char[]".to_owned(), true),
        kind => (kind.to_string(), matches!(kind, Type::S8 | Type::S16 | Type::S32 | Type::S64)),
    };
    let number = |n: usize| u16::try_from(n).map_err(|_| unfit(&fetch.name, "it lies beyond what a record may have"));
    let (offset, size) = (number(offset)?, number(fetch.kind.size())?);
    Ok(FormatField { name: fetch.name.to_string(), kind, offset, size, signed })
}

fn unfit(event: &str, problem: &str) -> Error {
    Error::Mismatch { event: event.to_owned(), field: String::new(), problem: problem.to_owned() }
}

/// Puts the pieces of records together. One CPU writes all pieces of one hit before those of another.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    /// The records that are expected in pieces, by the index of their probe.
    whole: Vec<Pieces>,
    /// Incomplete records, at most one for each probe and CPU.
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    cpu: u32,
    /// The index of the probe.
    probe: usize,
    tid: u32,
    /// The pieces that have arrived, one bit each.
    arrived: u64,
    raw: Vec<u8>,
}

impl Joiner {
    /// Expects records of these pieces.
    pub(crate) fn add(&mut self, pieces: &Pieces) {
        if !pieces.pieces.is_empty() {
            self.whole.push(pieces.clone());
        }
    }

    /// Stops expecting records of these pieces, and drops those that have arrived.
    pub(crate) fn remove(&mut self, pieces: &Pieces) {
        if let Some(at) = self.whole.iter().position(|whole| whole == pieces) {
            self.whole.remove(at);
            self.waiting.clear(); // the entries refer to indices of this list
        }
    }

    /// Whether it expects no pieces, because all records arrive whole.
    pub(crate) fn is_empty(&self) -> bool {
        self.whole.is_empty()
    }

    /// Calls `f` with each whole record. A piece is kept until the last piece of its record arrives; `f` then gets the whole
    /// record, with the time of that last piece. A record that lacks a piece after a loss is discarded.
    pub(crate) fn take(&mut self, record: Record<'_>, f: &mut impl FnMut(Record<'_>)) {
        match record {
            Record::Sample { time, cpu, pid, tid, id, raw } => {
                let Some((probe, number)) = self.find(id) else { return f(record) };
                let pieces = &self.whole[probe];
                let waiting = incomplete(&mut self.waiting, cpu, probe);
                let bit = 1 << number;
                if waiting.tid != tid || waiting.arrived & bit != 0 || waiting.arrived == 0 {
                    waiting.begin(tid, &pieces.pieces[0], raw, pieces.size);
                }
                let Piece { values, at, .. } = &pieces.pieces[number];
                let Some(values) = raw.get(values.clone()) else { return };
                waiting.raw[*at..*at + values.len()].copy_from_slice(values);
                waiting.arrived |= bit;
                if waiting.arrived.count_ones() as usize == pieces.pieces.len() {
                    waiting.arrived = 0;
                    f(Record::Sample { time, cpu, pid, tid, id: pieces.pieces[0].id as u16, raw: &waiting.raw });
                }
            }
            Record::Lost { cpu, .. } => {
                self.waiting.iter_mut().filter(|waiting| waiting.cpu == cpu).for_each(|waiting| waiting.arrived = 0);
                f(record);
            }
        }
    }

    /// The index of the probe that this piece belongs to, and the number of the piece.
    fn find(&self, id: u16) -> Option<(usize, usize)> {
        let number = |whole: &Pieces| whole.pieces.iter().position(|piece| piece.id == u32::from(id));
        self.whole.iter().enumerate().find_map(|(probe, whole)| Some((probe, number(whole)?)))
    }
}

/// The incomplete record of this probe and CPU; a new one if there is none.
fn incomplete(all: &mut Vec<Waiting>, cpu: u32, probe: usize) -> &mut Waiting {
    let at = all.iter().position(|one| one.cpu == cpu && one.probe == probe).unwrap_or_else(|| {
        all.push(Waiting { cpu, probe, tid: 0, arrived: 0, raw: Vec::new() });
        all.len() - 1
    });
    &mut all[at]
}

impl Waiting {
    /// Discards the pieces so far and begins a record of this size, with the header of a piece and the type of the
    /// first piece.
    fn begin(&mut self, tid: u32, first: &Piece, raw: &[u8], size: usize) {
        let mut buffer = mem::take(&mut self.raw);
        buffer.clear();
        buffer.extend_from_slice(raw.get(..first.at).unwrap_or_default());
        buffer.resize(size, 0);
        buffer[..2].copy_from_slice(&(first.id as u16).to_ne_bytes());
        (self.tid, self.arrived, self.raw) = (tid, 0, buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::{Arguments, Scope, parse};
    use crate::{Term, WordSize};

    const FETCHES: [(&str, &str, Type); 3] =
        [("count", "+8({a})", Type::S32), ("words", "+0(+{s.f}({a}))", Type::Words(3)), ("odd", "-8({a})", Type::U16)];

    fn fetches() -> Vec<Fetch<'static>> {
        FETCHES.map(|(name, template, kind)| Fetch::new(name, template, kind)).to_vec()
    }

    /// The format of an event with these values, as Linux 4.18 writes it.
    fn one_event(id: u32, values: &[(&str, &str, u16)]) -> (Format, usize) {
        let mut text = format!(
            "name: e\nID: {id}\nformat:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
             \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\
             \tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;\n"
        );
        let mut offset = 16;
        for (kind, name, size) in values {
            text += &format!("\tfield:{kind} {name};\toffset:{offset};\tsize:{size};\tsigned:0;\n");
            offset += size;
        }
        (Format::parse(text.as_bytes()).unwrap(), values.len())
    }

    fn two() -> (Format, Pieces) {
        let first = one_event(7, &[("s32", "count", 4), ("u64", "words_0", 8)]);
        let second = one_event(9, &[("u64", "words_8", 8), ("u64", "words_16", 8), ("u16", "odd", 2)]);
        join_formats(&fetches(), &[first, second]).unwrap()
    }

    /// A record of the first or the second event; perf pads it.
    fn piece(id: u16, values: &[u8]) -> Vec<u8> {
        let mut raw = vec![0; 16];
        raw[..2].copy_from_slice(&id.to_ne_bytes());
        raw[8] = 99;
        raw.extend_from_slice(values);
        raw.extend_from_slice(&[0xff; 6]);
        raw
    }

    fn sample(cpu: u32, tid: u32, id: u16, raw: &[u8]) -> Record<'_> {
        Record::Sample { time: 1000 + u64::from(id), cpu, pid: 1, tid, id, raw }
    }

    fn taken(joiner: &mut Joiner, records: &[Record<'_>]) -> Vec<(u64, u32, Vec<u8>)> {
        let mut whole = Vec::new();
        for record in records {
            joiner.take(*record, &mut |record| {
                if let Record::Sample { time, tid, raw, .. } = record {
                    whole.push((time, tid, raw.to_vec()));
                }
            });
        }
        whole
    }

    #[test]
    fn arrays_become_words() {
        let of = |template: &str, kind| {
            let resolve = |name: &str| Some(if name == "a" { Term::Argument(1) } else { Term::Offset(16) });
            let scope = Scope { arguments: Arguments::X86_64, word: WordSize::Eight, resolve: &resolve };
            let values = single_values(&parse(template, kind, &scope).unwrap())?;
            Some(values.iter().map(|(at, one)| format!("{at}={one}:{}", one.type_text())).collect::<Vec<_>>())
        };
        let texts = |kind| of("+u{s.f}(+8({a}))", kind).unwrap();
        assert_eq!(texts(Type::Words(2)), ["0=+u16(+8(%di)):u64", "8=+u24(+8(%di)):u64"]);
        assert_eq!(texts(Type::Bytes(5)), ["0=+u16(+8(%di)):u32", "4=+u20(+8(%di)):u8"]);
        assert_eq!(of("-12({a})", Type::Words(2)).unwrap(), ["0=-12(%di):u64", "8=-4(%di):u64"]);
        for template in ["{a}", "$retval"] {
            assert_eq!(of(template, Type::Words(1)), None, "{template}");
        }
    }

    #[test]
    fn the_format_is_that_of_a_kernel_with_arrays() {
        let (format, pieces) = two();
        let fields: Vec<_> = format.fields[3..].iter().map(|f| (f.name.as_str(), f.offset, f.size, f.signed)).collect();
        assert_eq!(fields, [("count", 16, 4, true), ("words", 20, 24, false), ("odd", 44, 2, false)]);
        assert_eq!((format.id, pieces.pieces.len(), pieces.size), (7, 2, 46));
        let one = Format::parse(format.to_string().as_bytes()).unwrap();
        assert_eq!(one, format, "recordings keep it as text");
        let (_, whole) = join_formats(&fetches()[..1], &[one_event(7, &[("s32", "count", 4)])]).unwrap();
        assert!(whole.pieces.is_empty(), "a record of one event has no pieces");
        assert!(join_formats(&fetches(), &[one_event(7, &[("s32", "count", 4)])]).is_err(), "values are missing");
    }

    #[test]
    fn pieces_in_any_order_are_one_record_at_the_last_ones_time() {
        let (_, pieces) = two();
        let (first, second) = (piece(7, &[1; 12]), piece(9, &[2; 18]));
        for ids in [[7, 9], [9, 7]] {
            let mut joiner = Joiner::default();
            joiner.add(&pieces);
            let raws = ids.map(|id| if id == 7 { &first[..] } else { &second[..] });
            let records = [sample(0, 5, ids[0], raws[0]), sample(1, 6, 8, &[1, 2, 3]), sample(0, 5, ids[1], raws[1])];
            let whole = taken(&mut joiner, &records);
            assert_eq!(whole[0], (1008, 6, vec![1, 2, 3]), "another event is not touched");
            let (time, tid, raw) = &whole[1];
            assert_eq!((*time, *tid, raw.len()), (1000 + u64::from(ids[1]), 5, 46));
            assert_eq!((&raw[..2], raw[8]), (&7_u16.to_ne_bytes()[..], 99));
            assert_eq!((&raw[16..28], &raw[28..]), (&[1; 12][..], &[2; 18][..]));
        }
    }

    #[test]
    fn pieces_of_different_hits_are_never_joined() {
        let (_, pieces) = two();
        let (first, second) = (piece(7, &[1; 12]), piece(9, &[2; 18]));
        let mut joiner = Joiner::default();
        joiner.add(&pieces);
        let lost = Record::Lost { since: 0, time: 1, cpu: 0, count: 1 };
        let cases: [&[Record<'_>]; 4] = [
            &[sample(0, 5, 7, &first), sample(1, 5, 9, &second)],
            &[lost, sample(0, 5, 9, &second), sample(0, 6, 7, &first)],
            &[lost, sample(0, 5, 7, &first), lost, sample(0, 5, 9, &second)],
            &[lost, sample(0, 5, 7, &first), sample(0, 5, 9, &second[..20])],
        ];
        for (number, records) in cases.iter().enumerate() {
            assert_eq!(taken(&mut joiner, records), [], "{number}");
        }
        taken(&mut joiner, &[lost, Record::Lost { since: 0, time: 1, cpu: 1, count: 1 }]);
        let later = piece(7, &[3; 12]);
        let records = [sample(0, 5, 7, &first), sample(0, 5, 7, &later), sample(0, 5, 9, &second)];
        let whole = taken(&mut joiner, &records);
        assert_eq!((whole.len(), whole[0].2[16]), (1, 3), "the later of two firsts counts");
    }

    #[test]
    fn pieces_no_longer_expected_are_not_joined() {
        let (_, pieces) = two();
        let (first, second) = (piece(7, &[1; 12]), piece(9, &[2; 18]));
        let mut joiner = Joiner::default();
        joiner.add(&pieces);
        assert!(!joiner.is_empty());
        taken(&mut joiner, &[sample(0, 5, 7, &first)]);
        joiner.remove(&pieces);
        assert!(joiner.is_empty());
        joiner.add(&pieces);
        assert_eq!(taken(&mut joiner, &[sample(0, 5, 9, &second)]), []);
    }

    #[test]
    fn no_length_of_a_piece_panics() {
        let (_, pieces) = two();
        let mut joiner = Joiner::default();
        joiner.add(&pieces);
        for (id, whole) in [(7, piece(7, &[1; 12])), (9, piece(9, &[2; 18]))] {
            for length in 0..whole.len() {
                taken(&mut joiner, &[sample(0, 1, id, &whole[..length])]);
            }
        }
    }
}
