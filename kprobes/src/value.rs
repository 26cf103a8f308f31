//! What one fetched value is: its type in the probe's text, and how it is read out of a record.

use std::fmt;
use std::marker::PhantomData;

use crate::sample::NOWHERE;

/// The type of a fetch argument, in the words of kprobetrace.rst. Numbers are in the machine's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Type {
    /// `u8`
    U8,
    /// `u16`
    U16,
    /// `u32`
    U32,
    /// `u64`
    U64,
    /// `s8`
    S8,
    /// `s16`
    S16,
    /// `s32`
    S32,
    /// `s64`
    S64,
    /// `x8[N]`: N bytes as they lie in memory, 64 at most; a static tracepoint's field may be longer. Before Linux 4.20 they
    /// are fetched as single values.
    Bytes(u16),
    /// `x64[N]`: N words of 8 bytes, 64 at most. Before Linux 4.20 they are fetched one by one.
    Words(u16),
    /// `string`: ended by NUL, of the kernel's memory, or of the user's behind `+u…(…)`.
    String,
}

impl Type {
    /// How many bytes the value takes in the fixed part of a record (a string: the 4 bytes that locate it).
    pub const fn size(self) -> usize {
        match self {
            Self::U8 | Self::S8 => 1,
            Self::U16 | Self::S16 => 2,
            Self::U32 | Self::S32 | Self::String => 4,
            Self::U64 | Self::S64 => 8,
            Self::Bytes(n) => n as usize,
            Self::Words(n) => n as usize * 8,
        }
    }
}

impl Type {
    /// The type that fetches the lowest `bits` of this one; `None` where it is no unsigned number or has not as many.
    pub(crate) fn of_bits(self, bits: u8) -> Option<String> {
        let is_unsigned = matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::U64);
        let size = self.size() * 8;
        (is_unsigned && (1..=size).contains(&usize::from(bits))).then(|| format!("b{bits}@0/{size}"))
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8 => f.write_str("u8"),
            Self::U16 => f.write_str("u16"),
            Self::U32 => f.write_str("u32"),
            Self::U64 => f.write_str("u64"),
            Self::S8 => f.write_str("s8"),
            Self::S16 => f.write_str("s16"),
            Self::S32 => f.write_str("s32"),
            Self::S64 => f.write_str("s64"),
            Self::Bytes(n) => write!(f, "x8[{n}]"),
            Self::Words(n) => write!(f, "x64[{n}]"),
            Self::String => f.write_str("string"),
        }
    }
}

/// A Rust type that a field of a [`sample!`](crate::sample!) or [`tracepoint!`](crate::tracepoint!) may have: the
/// integers from 8 to 64 bits, `[u8; N]`, [`Array<u64, N>`](Array), [`Text`], and an `Option` of one of them for what
/// not every kernel has.
pub trait Value: Copy {
    /// The fetch type that fills it.
    const TYPE: Type;
    /// Whether the field may be missing in the record.
    const OPTIONAL: bool = false;
    /// Reads it at `offset` of a record; `None` when the record ends before.
    fn read(raw: &[u8], offset: usize) -> Option<Self>;
}

macro_rules! integers {
    ($($rust:ty = $kind:ident),*) => {$(
        impl Value for $rust {
            const TYPE: Type = Type::$kind;
            #[inline]
            fn read(raw: &[u8], offset: usize) -> Option<Self> {
                let bytes = raw.get(offset..)?.first_chunk()?;
                Some(Self::from_ne_bytes(*bytes))
            }
        }
    )*};
}
integers!(u8 = U8, u16 = U16, u32 = U32, u64 = U64, i8 = S8, i16 = S16, i32 = S32, i64 = S64);

impl<const N: usize> Value for [u8; N] {
    const TYPE: Type = Type::Bytes(count(N));
    #[inline]
    fn read(raw: &[u8], offset: usize) -> Option<Self> {
        raw.get(offset..)?.first_chunk().copied()
    }
}

/// Where an array of `N` values lies within a record. It is not copied out: ask for its bytes or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array<T, const N: usize> {
    offset: u16,
    item: PhantomData<T>,
}

impl<T: Value, const N: usize> Array<T, N> {
    /// The bytes of the array within the record that it was decoded from, in the machine's byte order; empty
    /// when `raw` is another, shorter record.
    pub fn bytes<'a>(&self, raw: &'a [u8]) -> &'a [u8] {
        let start = usize::from(self.offset);
        raw.get(start..start + N * size_of::<T>()).unwrap_or_default()
    }

    /// The values of the array within the record that it was decoded from, in order.
    pub fn values<'a>(&self, raw: &'a [u8]) -> impl Iterator<Item = T> + 'a {
        self.bytes(raw).chunks_exact(size_of::<T>()).filter_map(|chunk| T::read(chunk, 0))
    }
}

impl<const N: usize> Value for Array<u64, N> {
    const TYPE: Type = Type::Words(count(N));
    #[inline]
    fn read(raw: &[u8], offset: usize) -> Option<Self> {
        raw.get(offset..offset.checked_add(N * 8)?)?;
        Some(Self { offset: u16::try_from(offset).ok()?, item: PhantomData })
    }
}

/// Where a string lies within a record. It is not copied out: ask for its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text {
    offset: u16,
    len: u16,
}

impl Text {
    /// The bytes of the string within the record that it was decoded from, without the closing NUL. What the
    /// kernel could not read is empty, or `(fault)` on some kernels. Empty as well when `raw` is another, shorter
    /// record.
    pub fn bytes<'a>(&self, raw: &'a [u8]) -> &'a [u8] {
        let start = usize::from(self.offset);
        let bytes = raw.get(start..start + usize::from(self.len)).unwrap_or_default();
        bytes.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl Value for Text {
    const TYPE: Type = Type::String;
    #[inline]
    fn read(raw: &[u8], offset: usize) -> Option<Self> {
        let (offset, len) = located(u32::read(raw, offset)?);
        raw.get(offset..offset + len)?;
        Some(Self { offset: offset as u16, len: len as u16 })
    }
}

impl<T: Value> Value for Option<T> {
    const TYPE: Type = T::TYPE;
    const OPTIONAL: bool = true;
    #[inline]
    fn read(raw: &[u8], offset: usize) -> Option<Self> {
        if offset == usize::from(NOWHERE) { Some(None) } else { T::read(raw, offset).map(Some) }
    }
}

/// Offset from the start of the record and length of what a `__data_loc` word points at.
pub(crate) fn located(word: u32) -> (usize, usize) {
    ((word & 0xffff) as usize, (word >> 16) as usize)
}

/// An array's length; a longer one fails to compile.
const fn count(n: usize) -> u16 {
    assert!(n <= u16::MAX as usize / 8, "an array in a record is shorter than 64 KiB");
    n as u16
}
