use proptest::prelude::*;

use super::*;
use crate::expression::{Arguments, Scope, parse};
use crate::{Term, WordSize};

const FETCHES: [(&str, &str, Type); 3] =
    [("count", "+8({a})", Type::S32), ("words", "+0(+{s.f}({a}))", Type::U64Array(3)), ("odd", "-8({a})", Type::U16)];

fn fetches() -> Vec<Fetch<'static>> {
    FETCHES.map(|(name, template, kind)| Fetch::new(name, template, kind)).to_vec()
}

/// The format of an event with these values, as Linux 4.18 writes it.
fn one_event(id: u32, values: &[(&str, &str, u16)]) -> Format {
    let mut text = format!(
        "name: e\nID: {id}\nformat:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
         \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\
         \tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;\n"
    );
    let mut offset = 16;
    for (kind, name, size) in values {
        let signed = u8::from(kind.starts_with("__data_loc"));
        text += &format!("\tfield:{kind} {name};\toffset:{offset};\tsize:{size};\tsigned:{signed};\n");
        offset += size;
    }
    Format::parse(text.as_bytes()).unwrap()
}

fn number(at: usize, size: usize) -> Part {
    Part { at, size, is_string: false }
}

fn string(at: usize, size: usize) -> Part {
    Part { at, size, is_string: true }
}

/// The format and the pieces of a probe of two events.
fn two_events() -> (Format, Pieces) {
    let first = one_event(7, &[("s32", "count", 4), ("u64", "words_0", 8)]);
    let second = one_event(9, &[("u64", "words_8", 8), ("u64", "words_16", 8), ("u16", "odd", 2)]);
    let parts = [[number(0, 4), number(4, 8)].to_vec(), [number(12, 8), number(20, 8), number(28, 2)].to_vec()];
    join_formats(&fetches(), &[(first, &parts[0]), (second, &parts[1])], Order::Reversed).unwrap()
}

/// A record with these values; perf pads it.
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

const LOST: Record<'static> = Record::Lost { since: 0, time: 1, cpu: 0, count: 1 };

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

fn joiner(pieces: &Pieces) -> Joiner {
    let mut joiner = Joiner::default();
    joiner.add(pieces);
    joiner
}

#[test]
fn arrays_become_single_values() {
    let of = |template: &str, kind| {
        let resolve = |name: &str| Some(if name == "a" { Term::Argument(1) } else { Term::Offset(16) });
        let scope = Scope { arguments: Arguments::X86_64, word: WordSize::Eight, resolve: &resolve };
        let values = single_values(&parse(template, kind, &scope).unwrap())?;
        Some(values.iter().map(|(at, one)| format!("{at}={one}:{}", one.type_text())).collect::<Vec<_>>())
    };
    let texts = |kind| of("+u{s.f}(+8({a}))", kind).unwrap();
    assert_eq!(texts(Type::U64Array(2)), ["0=+u16(+8(%di)):u64", "8=+u24(+8(%di)):u64"]);
    assert_eq!(texts(Type::Bytes(5)), ["0=+u16(+8(%di)):u32", "4=+u20(+8(%di)):u8"]);
    assert_eq!(of("-12({a})", Type::U64Array(2)).unwrap(), ["0=-12(%di):u64", "8=-4(%di):u64"]);
    for template in ["{a}", "$retval"] {
        assert_eq!(of(template, Type::U64Array(1)), None, "{template}");
    }
}

#[test]
fn the_format_is_that_of_a_kernel_with_arrays() {
    let (format, pieces) = two_events();
    let fields: Vec<_> = format.fields[3..].iter().map(|f| (f.name.as_str(), f.offset, f.size, f.signed)).collect();
    assert_eq!(fields, [("count", 16, 4, true), ("words", 20, 24, false), ("odd", 44, 2, false)]);
    assert_eq!((format.id, pieces.pieces.len(), pieces.size), (7, 2, 46));
    let one = Format::parse(format.to_string().as_bytes()).unwrap();
    assert_eq!(one, format, "recordings keep it as text");
    let count = one_event(7, &[("s32", "count", 4)]);
    let parts = [number(0, 4)];
    let (_, whole) = join_formats(&fetches()[..1], &[(count.clone(), &parts[..])], Order::Reversed).unwrap();
    assert!(whole.pieces.is_empty(), "a record of one event has no pieces");
    assert!(join_formats(&fetches(), &[(count.clone(), &parts[..])], Order::Added).is_err(), "values are missing");
    for part in [number(0, 8), string(0, 4)] {
        let size = [Fetch::new("count", "+8({a})", if part.size == 8 { Type::U64 } else { Type::U32 })];
        assert!(join_formats(&size, &[(count.clone(), &[part][..])], Order::Added).is_err(), "{part:?}");
    }
}

/// For instance `$comm`, beside an address.
#[test]
fn a_string_beside_an_array_needs_a_single_event() {
    let fetches =
        [("words", Type::U64Array(2)), ("comm", Type::String)].map(|(name, kind)| Fetch::new(name, "+0({a})", kind));
    let [words, comm] = [[("u64", "words_0", 8), ("u64", "words_8", 8)], [("__data_loc char[]", "comm", 4); 2]];
    let parts = [number(0, 8), number(8, 8), number(16, 4)];
    let one = one_event(7, &[words[0], words[1], comm[0]]);
    let (format, pieces) = join_formats(&fetches, &[(one.clone(), &parts[..])], Order::Reversed).unwrap();
    assert!(pieces.pieces.is_empty());
    assert_eq!(format.field("comm"), one.field("comm"));
    let two = [(one_event(7, &words), &parts[..2]), (one_event(8, &comm[..1]), &parts[2..])];
    assert!(join_formats(&fetches, &two, Order::Reversed).is_err());
}

#[test]
fn a_joined_record_has_the_time_of_its_last_piece() {
    let (_, pieces) = two_events();
    let (first, second) = (piece(7, &[1; 12]), piece(9, &[2; 18]));
    let records = [sample(0, 5, 9, &second), sample(1, 6, 8, &[1, 2, 3]), sample(0, 5, 7, &first)];
    let whole = taken(&mut joiner(&pieces), &records);
    assert_eq!(whole[0], (1008, 6, vec![1, 2, 3]), "another event is not touched");
    let (time, tid, raw) = &whole[1];
    assert_eq!((*time, *tid, raw.len()), (1007, 5, 46));
    assert_eq!((&raw[..2], raw[8]), (&7_u16.to_ne_bytes()[..], 99));
    assert_eq!((&raw[16..28], &raw[28..]), (&[1; 12][..], &[2; 18][..]));
}

#[test]
fn pieces_of_different_hits_are_never_joined() {
    let (_, pieces) = two_events();
    let (first, second) = (piece(7, &[1; 12]), piece(9, &[2; 18]));
    let cases: [&[Record<'_>]; 5] = [
        &[sample(0, 5, 9, &second), sample(1, 5, 7, &first)],
        &[sample(0, 6, 9, &second), sample(0, 5, 7, &first)],
        &[sample(0, 5, 9, &second), LOST, sample(0, 5, 7, &first)],
        &[sample(0, 5, 9, &second[..20]), sample(0, 5, 7, &first)],
        &[sample(0, 5, 7, &first), sample(0, 5, 9, &second)],
    ];
    for (number, records) in cases.iter().enumerate() {
        assert_eq!(taken(&mut joiner(&pieces), records), [], "{number}");
    }
    let mut joiner = joiner(&pieces);
    taken(&mut joiner, &[LOST, Record::Lost { since: 0, time: 1, cpu: 1, count: 1 }]);
    let later = piece(9, &[3; 18]);
    let records = [sample(0, 5, 9, &second), sample(0, 5, 9, &later), sample(0, 5, 7, &first)];
    let whole = taken(&mut joiner, &records);
    assert_eq!((whole.len(), whole[0].2[28]), (1, 3), "of two first pieces, the later is used");
}

#[test]
fn pieces_no_longer_expected_are_not_joined() {
    let (_, pieces) = two_events();
    let (first, second) = (piece(7, &[1; 12]), piece(9, &[2; 18]));
    let mut joiner = joiner(&pieces);
    assert!(!joiner.is_empty());
    taken(&mut joiner, &[sample(0, 5, 9, &second)]);
    joiner.remove(&pieces);
    assert!(joiner.is_empty());
    joiner.add(&pieces);
    assert_eq!(taken(&mut joiner, &[sample(0, 5, 7, &first)]), []);
}

#[test]
fn no_length_of_a_piece_panics() {
    let (_, pieces) = two_events();
    let mut joiner = joiner(&pieces);
    for (id, whole) in [(9, piece(9, &[2; 18])), (7, piece(7, &[1; 12]))] {
        for length in 0..whole.len() {
            taken(&mut joiner, &[sample(0, 1, id, &whole[..length])]);
        }
    }
}

/// The pieces of a probe with strings: a number, a string with a window of 16 bytes, a number, two strings with 24 and 8 bytes.
/// The strings are in two events of their own.
fn strings() -> Pieces {
    const KINDS: [(&str, Type); 5] = [
        ("before", Type::U32),
        ("name_0", Type::StringWindow(2)),
        ("after", Type::U64),
        ("name_1", Type::StringWindow(3)),
        ("name_2", Type::StringWindow(1)),
    ];
    let fetches = KINDS.map(|(name, kind)| Fetch::new(name, "+0({a})", kind));
    const STRING: &str = "__data_loc char[]";
    let events = [
        (one_event(NUMBERS, &[("u32", "before", 4), ("u64", "after", 8)]), vec![number(0, 4), number(20, 8)]),
        (one_event(TWO_STRINGS, &[(STRING, "name_0", 4), (STRING, "name_1", 4)]), vec![string(4, 16), string(28, 24)]),
        (one_event(ONE_STRING, &[(STRING, "name_2", 4)]), vec![string(52, 8)]),
    ];
    let events: Vec<_> = events.iter().map(|(format, parts)| (format.clone(), &parts[..])).collect();
    join_formats(&fetches, &events, Order::Reversed).unwrap().1
}

/// The ids of its events: with the numbers, with two strings, with one string.
const NUMBERS: u32 = 7;
const TWO_STRINGS: u32 = 8;
const ONE_STRING: u32 = 9;

/// The record of an event with strings, as `store_trace_args` of Linux 4.14 writes it: the words that locate the strings,
/// then the strings. `None` is a string that could not be read.
fn with_strings(id: u32, strings: &[Option<Vec<u8>>]) -> Vec<u8> {
    let (mut words, mut data) = (Vec::new(), Vec::new());
    for string in strings {
        let offset = 16 + 4 * strings.len() + data.len();
        let bytes = string.as_ref().map_or_else(Vec::new, |string| [&string[..], b"\0"].concat());
        words.extend(((bytes.len() as u32) << 16 | offset as u32).to_ne_bytes());
        data.extend(bytes);
    }
    piece(id as u16, &[words, data].concat())
}

fn with_numbers(before: u32, after: u64) -> Vec<u8> {
    piece(NUMBERS as u16, &[&before.to_ne_bytes()[..], &after.to_ne_bytes()].concat())
}

/// A window that holds this string.
fn window(string: Option<&[u8]>, size: usize) -> Vec<u8> {
    let mut window = string.unwrap_or_default().to_vec();
    window.resize(size.max(window.len()), 0);
    window.truncate(size);
    window
}

/// The strings of one hit. `None` is a string that cannot be read.
type Strings = [Option<Vec<u8>>; 3];

fn some_string() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        4 => prop::collection::vec(1..=255_u8, 0..40).prop_map(Some),
        1 => prop::collection::vec(1..=255_u8, 0..600).prop_map(Some),
        1 => Just(None),
    ]
}

/// The records of a hit, in their order. `keep` says whether the kernel keeps the record with one string, and the one with two.
fn hit(tag: u32, strings: &Strings, keep: [bool; 2]) -> Vec<(u32, Vec<u8>)> {
    let mut records = Vec::new();
    if keep[0] {
        records.push((ONE_STRING, with_strings(ONE_STRING, &strings[2..])));
    }
    if keep[1] {
        records.push((TWO_STRINGS, with_strings(TWO_STRINGS, &strings[..2])));
    }
    records.push((NUMBERS, with_numbers(tag, u64::from(tag) << 32)));
    records
}

/// The values of a hit in the whole record.
fn whole(tag: u32, strings: &Strings, keep: [bool; 2]) -> Vec<u8> {
    let string = |number: usize, size| {
        let keep = keep[usize::from(number < 2)];
        window(strings[number].as_deref().filter(|_| keep), size)
    };
    let (before, after) = (tag.to_ne_bytes(), (u64::from(tag) << 32).to_ne_bytes());
    [&before[..], &string(0, 16), &after, &string(1, 24), &string(2, 8)].concat()
}

proptest! {
    /// Strings of any length are windows: cut to their size, and empty if they could not be read or were dropped.
    #[test]
    fn strings_become_windows(strings in [some_string(), some_string(), some_string()], keep: [bool; 2]) {
        let records = hit(3, &strings, keep);
        let records: Vec<_> = records.iter().map(|(id, raw)| sample(0, 5, *id as u16, raw)).collect();
        let joined = taken(&mut joiner(&self::strings()), &records);
        prop_assert_eq!(joined.len(), 1);
        prop_assert_eq!(&joined[0].2[..2], &(NUMBERS as u16).to_ne_bytes());
        prop_assert_eq!(&joined[0].2[16..], whole(3, &strings, keep));
    }

    /// Whatever is lost or dropped: each record is that of one hit, with nothing of another. A hit without losses is whole.
    #[test]
    fn no_record_has_values_of_two_hits(
        hits in prop::collection::vec((any::<[bool; 2]>(), prop::option::of(0..3_usize), 0..2_u32, 0..2_u32), 1..12),
    ) {
        let mut records = Vec::new();
        let mut possible: Vec<Vec<u8>> = Vec::new();
        let mut certain: Vec<Vec<u8>> = Vec::new();
        let mut is_after_loss = [false; 2];
        for (tag, (keep, lost, cpu, tid)) in hits.iter().enumerate() {
            let tag = tag as u32;
            let strings: Strings = [1, 2, 3].map(|byte: u8| Some(vec![byte + 4 * tag as u8; 5]));
            let is_after_loss = &mut is_after_loss[*cpu as usize];
            for (number, (id, raw)) in hit(tag, &strings, *keep).into_iter().enumerate() {
                if *lost == Some(number) {
                    records.push((*cpu, *tid, 0, Vec::new()));
                    *is_after_loss = true;
                } else {
                    records.push((*cpu, *tid, id, raw));
                }
            }
            // The ring may also lose a record with strings that the kernel kept. The strings are then empty, too.
            for arrived in [[true, true], [false, true], [true, false], [false, false]] {
                possible.push(whole(tag, &strings, [keep[0] && arrived[0], keep[1] && arrived[1]]));
            }
            if lost.is_none() && (!*is_after_loss || keep[0]) {
                certain.push(whole(tag, &strings, *keep));
            }
            if lost.is_none() {
                *is_after_loss = false;
            }
        }
        let records: Vec<_> = records.iter().map(|(cpu, tid, id, raw)| match id {
            0 => Record::Lost { since: 0, time: 1, cpu: *cpu, count: 1 },
            id => sample(*cpu, *tid, *id as u16, raw),
        }).collect();
        let joined: Vec<_> =
            taken(&mut joiner(&strings()), &records).into_iter().map(|(_, _, raw)| raw[16..].to_vec()).collect();
        for raw in &joined {
            prop_assert!(possible.contains(raw), "{raw:?}");
        }
        for raw in &certain {
            prop_assert!(joined.contains(raw), "{raw:?}");
        }
    }

    #[test]
    fn no_record_panics(records in prop::collection::vec((7..10_u16, prop::collection::vec(any::<u8>(), 0..80)), 0..12)) {
        let records: Vec<_> = records.iter().map(|(id, raw)| sample(0, 5, *id, raw)).collect();
        for (_, _, raw) in taken(&mut joiner(&strings()), &records) {
            prop_assert_eq!(raw.len(), 76);
        }
    }
}

#[test]
fn a_malformed_or_unreadable_string_is_empty() {
    let name = |word: u32, data: &[u8]| {
        let raw = piece(ONE_STRING as u16, &[&word.to_ne_bytes()[..], data].concat());
        let numbers = with_numbers(0, 0);
        let two = with_strings(TWO_STRINGS, &[None, None]);
        let records = [sample(0, 5, 9, &raw), sample(0, 5, 8, &two), sample(0, 5, 7, &numbers)];
        taken(&mut joiner(&strings()), &records)[0].2[68..].to_vec()
    };
    assert_eq!(name(3 << 16 | 20, b"ab\0"), b"ab\0\0\0\0\0\0");
    assert_eq!(name(9 << 16 | 20, b"too long\0"), b"too long", "the window has no room for the NUL");
    for (word, data, why) in [
        (8 << 16 | 20, &b"(fault)\0"[..], "this is how newer kernels mark it"),
        (2 << 16 | 20, b"ab", "no NUL"),
        (20, b"ab\0", "no length"),
        (3 << 16 | 900, b"ab\0", "outside"),
        (u32::MAX, b"ab\0", "outside"),
    ] {
        assert_eq!(name(word, data), [0; 8], "{why}");
    }
}

#[test]
fn a_probe_of_strings_alone_also_has_an_event_without_values() {
    let events =
        [(one_event(7, &[]), Vec::new()), (one_event(8, &[("__data_loc char[]", "name", 4)]), vec![string(0, 8)])];
    let events: Vec<_> = events.iter().map(|(format, parts)| (format.clone(), &parts[..])).collect();
    let fetches = [Fetch::new("name", "+0({a})", Type::StringWindow(1))];
    let (format, pieces) = join_formats(&fetches, &events, Order::Reversed).unwrap();
    assert_eq!(format.field("name").map(|field| (field.offset, field.size)), Some((16, 8)));
    let (name, head) = (with_strings(8, &[Some(b"nc".to_vec())]), piece(7, &[]));
    let whole = taken(&mut joiner(&pieces), &[sample(0, 5, 8, &name), sample(0, 5, 7, &head)]);
    assert_eq!(whole[0].2[16..], *b"nc\0\0\0\0\0\0");
}
