//! The BTF format: a header, a section of types of varying length, a section of strings.
//!
//! Types are numbered from 1 in their order. Nothing in the bytes is trusted: counts and offsets are checked where they
//! are used, and chains of types are followed a bounded number of times.

use std::fmt;

/// Type information is malformed: what was expected, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedBtf {
    /// What was expected.
    pub what: &'static str,
    /// Where it was expected.
    pub at: BtfPosition,
}

/// A position in type information.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BtfPosition {
    /// In bytes from the beginning of its section, or of the header.
    Byte(usize),
    /// The type with this number.
    Type(u32),
}

impl fmt::Display for MalformedBtf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            BtfPosition::Byte(offset) => write!(f, "expected {} at byte {offset}", self.what),
            BtfPosition::Type(id) => write!(f, "expected {} at type {id}", self.what),
        }
    }
}

impl std::error::Error for MalformedBtf {}

type Result<T> = std::result::Result<T, MalformedBtf>;

/// The kinds of types (`BTF_KIND_*`).
pub(super) mod kind {
    pub(in crate::btf) const VOID: u8 = 0;
    pub(in crate::btf) const INT: u8 = 1;
    pub(in crate::btf) const PTR: u8 = 2;
    pub(in crate::btf) const ARRAY: u8 = 3;
    pub(in crate::btf) const STRUCT: u8 = 4;
    pub(in crate::btf) const UNION: u8 = 5;
    pub(in crate::btf) const ENUM: u8 = 6;
    pub(in crate::btf) const FWD: u8 = 7;
    pub(in crate::btf) const TYPEDEF: u8 = 8;
    pub(in crate::btf) const VOLATILE: u8 = 9;
    pub(in crate::btf) const CONST: u8 = 10;
    pub(in crate::btf) const RESTRICT: u8 = 11;
    pub(in crate::btf) const FUNC: u8 = 12;
    pub(in crate::btf) const FUNC_PROTO: u8 = 13;
    pub(in crate::btf) const VAR: u8 = 14;
    pub(in crate::btf) const DATASEC: u8 = 15;
    pub(in crate::btf) const FLOAT: u8 = 16;
    pub(in crate::btf) const DECL_TAG: u8 = 17;
    pub(in crate::btf) const TYPE_TAG: u8 = 18;
    pub(in crate::btf) const ENUM64: u8 = 19;
}

const MAGIC: u16 = 0xeb9f;
/// The size of `struct btf_type`: name, info, and size or type.
const TYPE_HEAD: usize = 12;
/// How long a chain of typedefs and qualifiers, or of arrays of arrays, may be.
const DEPTH: usize = 32;

/// The head of a type (`struct btf_type`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Type {
    pub(super) name: u32,
    pub(super) kind: u8,
    /// How many members, parameters or values follow.
    pub(super) count: usize,
    /// `kind_flag`: whether the offsets of members also hold the widths of bit-fields.
    pub(super) flag: bool,
    /// The size in bytes, or the number of the type that this one refers to.
    pub(super) size_or_type: u32,
    /// Where the data after the head begins in the section of types.
    body: usize,
}

/// A member of a structure or union.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) name: u32,
    pub(super) type_id: u32,
    pub(super) bit_offset: u32,
    /// The width of a bit-field; 0 for other members.
    pub(super) bits: u32,
}

/// A parameter of a function.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameter {
    pub(super) name: u32,
    pub(super) type_id: u32,
}

/// Type information, with an index of its types.
#[derive(Debug)]
pub(super) struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`. The first is type 1.
    starts: Vec<u32>,
}

impl<'a> Btf<'a> {
    /// Walks all types once. Calls `visit` with kind, number and name of every named structure and function; the name
    /// ends at its first NUL.
    pub(super) fn scan(bytes: &'a [u8], mut visit: impl FnMut(u8, u32, &'a [u8])) -> Result<Self> {
        let (types, strings) = sections(bytes)?;
        let mut btf = Self { types, strings, starts: Vec::with_capacity(types.len() / 36) };
        let mut at = 0;
        while at < types.len() {
            let head = btf.head(at)?;
            let id = btf.starts.len() as u32 + 1;
            btf.starts.push(at as u32);
            if matches!(head.kind, kind::STRUCT | kind::FUNC) && head.name != 0 {
                visit(head.kind, id, btf.rest_of_strings(head.name)?);
            }
            at = head.body + body_size(&head, at)?;
        }
        if at > types.len() {
            return Err(malformed("the end of the last type", at));
        }
        Ok(btf)
    }

    /// The type with this number. Type 0 is void.
    pub(super) fn get(&self, id: u32) -> Result<Type> {
        if id == 0 {
            return Ok(Type { name: 0, kind: kind::VOID, count: 0, flag: false, size_or_type: 0, body: 0 });
        }
        let start = self.starts.get(id as usize - 1);
        let start = start.ok_or(malformed_type("a type with this number", id))?;
        self.head(*start as usize)
    }

    /// Whether the string at `offset` is `name`.
    pub(super) fn is_called(&self, offset: u32, name: &str) -> Result<bool> {
        Ok(starts_with_string(self.rest_of_strings(offset)?, name.as_bytes()))
    }

    /// The members of a structure or union.
    pub(super) fn members(&self, of: &Type) -> impl Iterator<Item = Result<Member>> + '_ {
        let Type { count, body, flag, .. } = *of;
        (0..count).map(move |index| {
            let [name, type_id, offset] = self.words(body + index * 12)?;
            let (bits, bit_offset) = if flag { (offset >> 24, offset & 0xff_ffff) } else { (0, offset) };
            Ok(Member { name, type_id, bit_offset, bits })
        })
    }

    /// The parameters of a function prototype.
    pub(super) fn parameters(&self, of: &Type) -> impl Iterator<Item = Result<Parameter>> + '_ {
        let Type { count, body, .. } = *of;
        (0..count).map(move |index| {
            let [name, type_id] = self.words(body + index * 8)?;
            Ok(Parameter { name, type_id })
        })
    }

    /// A type without its typedefs and qualifiers.
    pub(super) fn strip(&self, id: u32) -> Result<Type> {
        let mut at = self.get(id)?;
        for _ in 0..DEPTH {
            match at.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    at = self.get(at.size_or_type)?;
                }
                _ => return Ok(at),
            }
        }
        Err(malformed_type("the end of a chain of typedefs and qualifiers", id))
    }

    /// The size of a type in bytes.
    pub(super) fn size(&self, id: u32) -> Result<u64> {
        let (mut id, mut times) = (id, 1u64);
        for _ in 0..DEPTH {
            let at = self.strip(id)?;
            let one = match at.kind {
                kind::ARRAY => {
                    let [element, _, count] = self.words(at.body)?;
                    times = times.saturating_mul(u64::from(count));
                    id = element;
                    continue;
                }
                kind::PTR => size_of::<usize>() as u64,
                kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                    u64::from(at.size_or_type)
                }
                _ => 0,
            };
            return Ok(times.saturating_mul(one));
        }
        Err(malformed_type("the end of a chain of nested arrays", id))
    }

    /// The bit offset and the width of an integer type that does not fill its bytes. Older BTF describes bit-fields
    /// with such types.
    pub(super) fn int_bits(&self, id: u32) -> Result<Option<(u32, u32)>> {
        let at = self.strip(id)?;
        if at.kind != kind::INT {
            return Ok(None);
        }
        let [encoding] = self.words(at.body)?;
        let (start, bits) = ((encoding >> 16) & 0xff, encoding & 0xff);
        Ok((start != 0 || u64::from(bits) != u64::from(at.size_or_type) * 8).then_some((start, bits)))
    }

    fn head(&self, at: usize) -> Result<Type> {
        let [name, info, size_or_type] = self.words(at)?;
        Ok(Type {
            name,
            kind: ((info >> 24) & 0x1f) as u8,
            count: (info & 0xffff) as usize,
            flag: info >> 31 != 0,
            size_or_type,
            body: at + TYPE_HEAD,
        })
    }

    fn words<const N: usize>(&self, at: usize) -> Result<[u32; N]> {
        let end = at.checked_add(4 * N);
        let bytes = end.and_then(|end| self.types.get(at..end));
        let bytes = bytes.ok_or(malformed("a type", at))?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        }
        Ok(words)
    }

    fn rest_of_strings(&self, offset: u32) -> Result<&'a [u8]> {
        let rest = self.strings.get(offset as usize..);
        rest.ok_or(malformed("a name", offset as usize))
    }
}

/// Whether `bytes` begins with `name` and a NUL.
pub(super) fn starts_with_string(bytes: &[u8], name: &[u8]) -> bool {
    bytes.get(name.len()) == Some(&0) && bytes.starts_with(name)
}

const fn malformed(what: &'static str, offset: usize) -> MalformedBtf {
    MalformedBtf { what, at: BtfPosition::Byte(offset) }
}

pub(super) const fn malformed_type(what: &'static str, id: u32) -> MalformedBtf {
    MalformedBtf { what, at: BtfPosition::Type(id) }
}

/// The section of types and that of strings.
fn sections(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4).ok_or(malformed("the header", at))?;
        Ok(u32::from_ne_bytes(bytes.try_into().expect("four bytes")) as usize)
    };
    let first = (word(0)? as u32).to_ne_bytes();
    if u16::from_ne_bytes([first[0], first[1]]) != MAGIC {
        return Err(malformed("the magic number, in this machine's byte order,", 0));
    }
    if first[2] != 1 {
        return Err(malformed("version 1", 2));
    }
    let after_header = bytes.get(word(4)?..).ok_or(malformed("the end of the header", 4))?;
    let section = |at: usize, what| {
        let (start, length) = (word(at)?, word(at + 4)?);
        let end = start.checked_add(length);
        let section = end.and_then(|end| after_header.get(start..end));
        section.ok_or(malformed(what, start))
    };
    Ok((section(8, "the section of types")?, section(16, "the section of strings")?))
}

/// How many bytes of data follow the head of a type.
fn body_size(head: &Type, at: usize) -> Result<usize> {
    let size = match head.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * head.count,
        kind::ENUM | kind::FUNC_PROTO => 8 * head.count,
        kind::VOID | 20.. => return Err(malformed("a type of a known kind", at)),
        _ => 0,
    };
    Ok(size)
}
