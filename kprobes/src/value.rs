//! Fetched values: their types in the text of a probe, and how they are read from a record.

use std::fmt;
use std::marker::PhantomData;

use crate::sample::{NOWHERE, Place};

/// The type of a fetch argument, named as in kprobetrace.rst. Numbers are in the machine's byte order.
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
    /// `u32` or `u64`: a number of the size of this kernel's pointers.
    Word,
    /// `s32` or `s64`: the same with a sign.
    SignedWord,
    /// `x8[N]`: N bytes in memory order, at most 64; a field of a static tracepoint may be longer. Before Linux 4.20
    /// they are fetched as single values.
    Bytes(u16),
    /// `x64[N]`: N numbers of 64 bits, at most 64. Before Linux 4.20 they are fetched as single values.
    U64Array(u16),
    /// `x64[N]`: the first 8 * N bytes of a string; N is at most 64. Before Linux 4.20 it may be fetched as a `string`: see
    /// [`StringWindow`].
    StringWindow(u16),
    /// `string`: NUL-terminated, from kernel memory, or from user memory after `+u…(…)`.
    String,
}

impl Type {
    /// The number of bytes that the value takes in the fixed part of a record. A string takes the 4 bytes that locate
    /// it. For a word this is the maximum, 8.
    pub const fn size(self) -> usize {
        match self {
            Self::U8 | Self::S8 => 1,
            Self::U16 | Self::S16 => 2,
            Self::U32 | Self::S32 | Self::String => 4,
            Self::U64 | Self::S64 | Self::Word | Self::SignedWord => 8,
            Self::Bytes(n) => n as usize,
            Self::U64Array(n) | Self::StringWindow(n) => n as usize * 8,
        }
    }
}

impl Type {
    /// This type on a kernel with this word size.
    pub(crate) const fn resolved(self, word: WordSize) -> Self {
        match (self, word) {
            (Self::Word, WordSize::Four) => Self::U32,
            (Self::Word, WordSize::Eight) => Self::U64,
            (Self::SignedWord, WordSize::Four) => Self::S32,
            (Self::SignedWord, WordSize::Eight) => Self::S64,
            (other, _) => other,
        }
    }

    /// Whether a field of this size in bytes can have this type.
    pub(crate) const fn fits(self, size: usize) -> bool {
        size == self.size() || matches!(self, Self::Word | Self::SignedWord) && size == 4
    }

    /// The type that fetches the lowest `bits` of this one. `None` if this is not an unsigned number, or has fewer
    /// bits.
    pub(crate) fn of_bits(self, bits: u8) -> Option<String> {
        let is_unsigned = matches!(self, Self::U8 | Self::U16 | Self::U32 | Self::U64);
        let size = self.size() * 8;
        (is_unsigned && (1..=size).contains(&usize::from(bits))).then(|| format!("b{bits}@0/{size}"))
    }
}

/// The size of a word of the kernel: a pointer, a `long`, a register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WordSize {
    /// 32 bits.
    Four,
    /// 64 bits.
    #[default]
    Eight,
}

impl WordSize {
    /// The word size of this program.
    pub const OURS: Self = if size_of::<usize>() == 4 { Self::Four } else { Self::Eight };

    /// In bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// As a 64-bit kernel spells it.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8 => f.write_str("u8"),
            Self::U16 => f.write_str("u16"),
            Self::U32 => f.write_str("u32"),
            Self::U64 | Self::Word => f.write_str("u64"),
            Self::S8 => f.write_str("s8"),
            Self::S16 => f.write_str("s16"),
            Self::S32 => f.write_str("s32"),
            Self::S64 | Self::SignedWord => f.write_str("s64"),
            Self::Bytes(n) => write!(f, "x8[{n}]"),
            Self::U64Array(n) | Self::StringWindow(n) => write!(f, "x64[{n}]"),
            Self::String => f.write_str("string"),
        }
    }
}

/// A Rust type that a field of a [`sample!`](crate::sample!) or [`tracepoint!`](crate::tracepoint!) may have: the
/// integers from 8 to 64 bits, [`Word`], [`SignedWord`], `[u8; N]`, [`Array<u64, N>`](Array), [`StringWindow`], [`Text`],
/// and an `Option` of one of them for a field that not every kernel has.
pub trait Value {
    /// The type of the struct's field: `Self`, or `u64` and `i64` for [`Word`] and [`SignedWord`].
    type Read: Copy;
    /// The fetch type that fills it.
    const TYPE: Type;
    /// Whether the field may be missing in the record.
    const OPTIONAL: bool = false;
    /// Reads it from a record. `None` if the record ends before it.
    fn read(raw: &[u8], place: Place) -> Option<Self::Read>;
}

macro_rules! integers {
    ($($rust:ty = $kind:ident),*) => {$(
        impl Value for $rust {
            type Read = Self;
            const TYPE: Type = Type::$kind;
            #[inline]
            fn read(raw: &[u8], place: Place) -> Option<Self> {
                let bytes = raw.get(place.start()..)?.first_chunk()?;
                Some(Self::from_ne_bytes(*bytes))
            }
        }
    )*};
}
integers!(u8 = U8, u16 = U16, u32 = U32, u64 = U64, i8 = S8, i16 = S16, i32 = S32, i64 = S64);

/// A pointer, or any other value of the kernel's word size. In the struct it is a `u64`. The event's `format` says how
/// many bytes it takes in a record.
#[derive(Clone, Copy, Debug)]
pub enum Word {}

impl Value for Word {
    type Read = u64;
    const TYPE: Type = Type::Word;
    #[inline]
    fn read(raw: &[u8], place: Place) -> Option<u64> {
        if place.size == 4 { u32::read(raw, place).map(u64::from) } else { u64::read(raw, place) }
    }
}

/// The same with a sign: an `i64`.
#[derive(Clone, Copy, Debug)]
pub enum SignedWord {}

impl Value for SignedWord {
    type Read = i64;
    const TYPE: Type = Type::SignedWord;
    #[inline]
    fn read(raw: &[u8], place: Place) -> Option<i64> {
        if place.size == 4 { i32::read(raw, place).map(i64::from) } else { i64::read(raw, place) }
    }
}

impl<const N: usize> Value for [u8; N] {
    type Read = Self;
    const TYPE: Type = Type::Bytes(count(N));
    #[inline]
    fn read(raw: &[u8], place: Place) -> Option<Self> {
        raw.get(place.start()..)?.first_chunk().copied()
    }
}

/// The place of an array of `N` values in a record. The array is not copied; ask for its bytes or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array<T, const N: usize> {
    offset: u16,
    item: PhantomData<T>,
}

impl<T: Value<Read = T>, const N: usize> Array<T, N> {
    /// The bytes of the array, in the machine's byte order. `raw` must be the record that it was decoded from; for a
    /// shorter record the result is empty.
    pub fn bytes<'a>(&self, raw: &'a [u8]) -> &'a [u8] {
        let start = usize::from(self.offset);
        raw.get(start..start + N * size_of::<T>()).unwrap_or_default()
    }

    /// The values of the array, in order. `raw` must be the record that it was decoded from.
    pub fn values<'a>(&self, raw: &'a [u8]) -> impl Iterator<Item = T> + 'a {
        self.bytes(raw).chunks_exact(size_of::<T>()).filter_map(|chunk| T::read(chunk, Place::START))
    }
}

impl<const N: usize> Value for Array<u64, N> {
    type Read = Self;
    const TYPE: Type = Type::U64Array(count(N));
    #[inline]
    fn read(raw: &[u8], place: Place) -> Option<Self> {
        raw.get(place.start()..place.start().checked_add(N * 8)?)?;
        Some(Self { offset: place.offset, item: PhantomData })
    }
}

/// The place of the first `8 * N` bytes of a NUL-terminated string in kernel memory, with whatever follows the string.
///
/// Kernels with arrays fetch these bytes as an array. Without arrays, a kprobe fetches the string itself, and zeros fill the
/// rest of the window. The kernel then follows the pointers to the string only twice, not once for each 8 bytes. A kretprobe
/// fetches 8 bytes at a time instead, and so does a kprobe if [`Features::strings`](crate::Features::strings) is `false`.
///
/// A string that is too long has no NUL in the window. A string that cannot be read is empty. If it was fetched as a string, so
/// is the string `(fault)`, which some kernels write for a string that they cannot read.
///
/// Declare only strings that are hardly ever longer than 255 bytes. Without arrays, perf has room for about 2,000 bytes
/// of strings. If they are longer, the kernel drops them and logs a warning, once. They are then empty in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringWindow<const N: usize>(Array<u64, N>);

impl<const N: usize> StringWindow<N> {
    /// The bytes of the window. `raw` must be the record that it was decoded from; for a shorter record the result is
    /// empty.
    pub fn bytes<'a>(&self, raw: &'a [u8]) -> &'a [u8] {
        self.0.bytes(raw)
    }
}

impl<const N: usize> Value for StringWindow<N> {
    type Read = Self;
    const TYPE: Type = Type::StringWindow(count(N));
    #[inline]
    fn read(raw: &[u8], place: Place) -> Option<Self> {
        Array::read(raw, place).map(Self)
    }
}

/// The place of a string in a record. The string is not copied; ask for its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text {
    offset: u16,
    len: u16,
}

impl Text {
    /// The bytes of the string, without the terminating NUL. `raw` must be the record that it was decoded from; for a
    /// shorter record the result is empty. A string that the kernel could not read is empty too, or `(fault)` on some
    /// kernels.
    pub fn bytes<'a>(&self, raw: &'a [u8]) -> &'a [u8] {
        let start = usize::from(self.offset);
        let bytes = raw.get(start..start + usize::from(self.len)).unwrap_or_default();
        bytes.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl Value for Text {
    type Read = Self;
    const TYPE: Type = Type::String;
    #[inline]
    fn read(raw: &[u8], place: Place) -> Option<Self> {
        let (offset, len) = located(u32::read(raw, place)?);
        raw.get(offset..offset + len)?;
        Some(Self { offset: offset as u16, len: len as u16 })
    }
}

impl<T: Value> Value for Option<T> {
    type Read = Option<T::Read>;
    const TYPE: Type = T::TYPE;
    const OPTIONAL: bool = true;
    #[inline]
    fn read(raw: &[u8], place: Place) -> Option<Self::Read> {
        if place.offset == NOWHERE { Some(None) } else { T::read(raw, place).map(Some) }
    }
}

/// The target of a `__data_loc` word: its offset from the start of the record, and its length.
pub(crate) fn located(word: u32) -> (usize, usize) {
    ((word & 0xffff) as usize, (word >> 16) as usize)
}

/// The number of elements of an array. More than 8191 do not compile.
const fn count(n: usize) -> u16 {
    assert!(n <= u16::MAX as usize / 8, "an array in a record has at most 8191 elements");
    n as u16
}
