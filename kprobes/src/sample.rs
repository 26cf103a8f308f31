//! Declarations of samples. One declaration gives both the text of a probe and the decoder of its records.

use std::marker::PhantomData;

use crate::{Error, Fetch, Format, Type};

/// One field that a sample expects in an event's `format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the `format`.
    pub name: &'static str,
    /// Its type, which determines its size. The size of a word depends on the kernel.
    pub kind: Type,
    /// Whether the field may be missing in the `format`.
    pub optional: bool,
}

/// The place of a field in an event's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the start of the record.
    pub offset: u16,
    /// Size in bytes.
    pub size: u16,
}

impl Place {
    /// Offset 0, to read a value from a slice that contains nothing else; the size does not matter.
    pub(crate) const START: Self = Self { offset: 0, size: 0 };

    pub(crate) fn start(self) -> usize {
        usize::from(self.offset)
    }
}

/// The offset of a field that is missing in the `format`.
pub(crate) const NOWHERE: u16 = u16::MAX;

/// A typed record, declared with [`sample!`](crate::sample!) or [`tracepoint!`](crate::tracepoint!).
pub trait Sample: Copy {
    /// The values that a probe must fetch; empty for a static tracepoint.
    const FETCHES: &'static [Fetch<'static>];
    /// The fields that the event's `format` must have, in the order of the struct.
    const FIELDS: &'static [Field];
    /// Reads the struct. Its fields are at `places`, one for each of [`Self::FIELDS`]. `None` if the record is too
    /// short.
    fn read(raw: &[u8], places: &[Place]) -> Option<Self>;
}

/// Decodes the records of one event into `S`. Made once from the event's `format`; decoding allocates nothing.
#[derive(Clone, Debug)]
pub struct Decoder<S> {
    places: Box<[Place]>,
    sample: PhantomData<fn() -> S>,
}

impl<S: Sample> Decoder<S> {
    /// Checks that `format` has each field of `S` with the right size, and remembers their places.
    ///
    /// # Errors
    /// [`Error::Mismatch`] names the field that is missing or has another size.
    pub fn new(format: &Format) -> Result<Self, Error> {
        let places = S::FIELDS.iter().map(|field| place_in(format, field)).collect::<Result<_, _>>()?;
        Ok(Self { places, sample: PhantomData })
    }

    /// Decodes a record's raw bytes. `None` if the record is shorter than the format says.
    #[inline]
    pub fn decode(&self, raw: &[u8]) -> Option<S> {
        S::read(raw, &self.places)
    }
}

fn place_in(format: &Format, field: &Field) -> Result<Place, Error> {
    let mismatch = |problem| Error::Mismatch { event: format.name.clone(), field: field.name.to_owned(), problem };
    if field.optional && format.field(field.name).is_none() {
        return Ok(Place { offset: NOWHERE, size: 0 });
    }
    let found = format.field(field.name).ok_or_else(|| mismatch("missing".to_owned()))?;
    if !field.kind.fits(found.size.into()) {
        return Err(mismatch(format!("{} bytes, expected {}", found.size, field.kind.size())));
    }
    Ok(Place { offset: found.offset, size: found.size })
}

/// Declares samples of kprobes and kretprobes: the name, type and template (see [`Fetch`]) of each field.
///
/// Generates a `Copy` struct that implements [`Sample`]. Pass its `FETCHES` to
/// [`Group::install`](crate::Group::install), and decode with a [`Decoder`] of it. All types that implement
/// [`Value`](crate::Value) are possible. Integers are read in the machine's byte order, even if the kernel stores them
/// in network byte order.
///
/// A field without a template is one that the kernel always writes: `__probe_ip`, the address of the probe.
///
/// A field of type `Option` is optional: if the layout does not know a name in its template, or if it is `$comm` and the kernel
/// does not have that, the probe is installed without it, and the field is `None`.
///
/// ```
/// use socktrail_kprobes::{Array, Sample, Text, Type, sample};
///
/// sample! {
///     /// A process executes a program: `security_bprm_committed_creds(bprm)`.
///     pub struct Exec {
///         /// How many arguments it was given.
///         pub argc: i32 = "+{linux_binprm.argc}({bprm})",
///         /// Its path. A place in the raw record, not the string.
///         pub path: Text = "+0(+{linux_binprm.filename}({bprm}))",
///         /// The first 512 bytes at the top of its stack.
///         pub stack: Array<u64, 64> = "+u0(+{linux_binprm.p}({bprm}))",
///     }
/// }
///
/// assert_eq!(Exec::FETCHES[0].template, "+{linux_binprm.argc}({bprm})");
/// assert_eq!(Exec::FIELDS[2].kind, Type::U64Array(64));
/// ```
#[macro_export]
macro_rules! sample {
    ($(
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[$field_meta:meta])* $field_vis:vis $field:ident : $kind:ty $(= $template:expr)? ),* $(,)?
        }
    )*) => {$(
        $crate::__sample! {
            $(#[$meta])*
            $vis struct $name {
                $( $(#[$field_meta])* $field_vis $field : $kind = stringify!($field) $(, $template)?; )*
            }
        }
    )*};
}

/// Declares samples of static tracepoints: the name and type of each field, and its name in the tracepoint's `format`.
/// Otherwise like [`sample!`](crate::sample!); nothing is fetched, so `FETCHES` is empty.
///
/// ```
/// use socktrail_kprobes::{Decoder, Format, Sample, tracepoint};
///
/// tracepoint! {
///     /// sock:inet_sock_set_state
///     pub struct State {
///         /// The kernel's `struct sock`.
///         pub sock: u64 = "skaddr",
///         /// In network byte order, as it lies in the record.
///         pub source_v6: [u8; 16] = "saddr_v6",
///     }
/// }
///
/// let format = Format::parse(b"name: inet_sock_set_state\nID: 7\nformat:\n\
///     \tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
///     \tfield:__u8 saddr_v6[16];\toffset:16;\tsize:16;\tsigned:0;\n")?;
/// let decoder = Decoder::<State>::new(&format)?;
/// let state = decoder.decode(&[5; 32]).unwrap();
/// assert_eq!(state.source_v6, [5; 16]);
/// assert_eq!(decoder.decode(&[5; 31]), None);
/// # Ok::<(), socktrail_kprobes::Error>(())
/// ```
#[macro_export]
macro_rules! tracepoint {
    ($(
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[$field_meta:meta])* $field_vis:vis $field:ident : $kind:ty = $theirs:expr ),* $(,)?
        }
    )*) => {$(
        $crate::__sample! {
            $(#[$meta])*
            $vis struct $name { $( $(#[$field_meta])* $field_vis $field : $kind = $theirs; )* }
        }
    )*};
}

/// The struct and its [`Sample`]: each field has its name in the record and, unless the kernel writes it anyway, the
/// template that fetches it.
#[doc(hidden)]
#[macro_export]
macro_rules! __sample {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $(
                $(#[$field_meta:meta])*
                $field_vis:vis $field:ident : $kind:ty = $theirs:expr $(, $template:expr)?;
            )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis struct $name { $( $(#[$field_meta])* $field_vis $field: <$kind as $crate::Value>::Read ),* }

        impl $crate::Sample for $name {
            const FETCHES: &'static [$crate::Fetch<'static>] = &[$($(
                $crate::Fetch::constant($theirs, $template, <$kind as $crate::Value>::TYPE)
                    .optional(<$kind as $crate::Value>::OPTIONAL),
            )?)*];
            const FIELDS: &'static [$crate::Field] = &[$(
                $crate::Field {
                    name: $theirs,
                    kind: <$kind as $crate::Value>::TYPE,
                    optional: <$kind as $crate::Value>::OPTIONAL,
                }
            ),*];
            #[inline]
            fn read(raw: &[u8], places: &[$crate::Place]) -> Option<Self> {
                let mut places = places.iter();
                Some(Self { $(
                    $field: <$kind as $crate::Value>::read(raw, *places.next()?)?
                ),* })
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Array, SignedWord, Text, Word};

    const KPROBE: &[u8] = include_bytes!("formats/kprobe.txt");

    crate::sample! {
        /// All fields of formats/kprobe.txt.
        struct All {
            a1: Array<u64, 64> = "+0({bprm})",
            n: u8 = "{bprm}",
            m: i16 = "{argument}",
            us: Text = "+u0({bprm})",
            st: Text = "+0(+8({bprm}))",
        }

        /// A second struct in the same declaration, with a field that has another size in the format.
        struct Wrong {
            m: i32 = "{argument}",
        }

        struct Missing {
            nowhere: u8 = "{bprm}",
        }

        /// A field that only newer kernels have.
        struct Optional {
            us: Option<Text> = "+u0({bprm})",
            nowhere: Option<u8> = "{bprm}",
        }
    }

    crate::sample! {
        struct OfWords {
            __probe_ip: Word,
            pointer: Word = "{a}",
            error: SignedWord = "$retval",
            perhaps: Option<Word> = "{b}",
        }
    }

    fn of_words(word: u16) -> Format {
        let kinds = if word == 4 { ["u32", "s32"] } else { ["u64", "s64"] };
        let [ip, pointer, error] = [8, 8 + word, 8 + 2 * word];
        let text = format!(
            "name: e\nID: 1\nformat:\n\tfield:unsigned long __probe_ip;\toffset:{ip};\tsize:{word};\tsigned:0;\n\
             \tfield:{} pointer;\toffset:{pointer};\tsize:{word};\tsigned:0;\n\
             \tfield:{} error;\toffset:{error};\tsize:{word};\tsigned:1;\n",
            kinds[0], kinds[1],
        );
        Format::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn words_are_as_long_as_the_format_says() {
        let decode = |word: u16, values: &[u8]| {
            let raw = [&[0xff; 8], values].concat();
            Decoder::<OfWords>::new(&of_words(word)).unwrap().decode(&raw)
        };
        let short = [0xc010_0000, 0xc020_0000, -22_i32 as u32].map(u32::to_ne_bytes).concat();
        let expected = OfWords { __probe_ip: 0xc010_0000, pointer: 0xc020_0000, error: -22, perhaps: None };
        assert_eq!(decode(4, &short), Some(expected));
        assert_eq!(decode(4, &short[..11]), None);
        let long = [1 << 40, 2 << 40, -22_i64 as u64].map(u64::to_ne_bytes).concat();
        let expected = OfWords { __probe_ip: 1 << 40, pointer: 2 << 40, error: -22, perhaps: None };
        assert_eq!(decode(8, &long), Some(expected));
        assert!(Decoder::<OfWords>::new(&of_words(2)).is_err());
        let fetched: Vec<_> = OfWords::FETCHES.iter().map(|fetch| &*fetch.name).collect();
        assert_eq!(fetched, ["pointer", "error", "perhaps"], "the kernel writes the first by itself");
    }

    crate::tracepoint! {
        struct State {
            sock: u64 = "skaddr",
            family: u16 = "family",
            source: [u8; 4] = "saddr",
        }
    }

    fn record() -> Vec<u8> {
        let mut raw = vec![0; 551];
        raw[16..24].copy_from_slice(&7_u64.to_ne_bytes());
        raw[520..528].copy_from_slice(&9_u64.to_ne_bytes());
        raw[528] = 200;
        raw[529..531].copy_from_slice(&(-2_i16).to_ne_bytes());
        raw[531..535].copy_from_slice(&(6_u32 << 16 | 551).to_ne_bytes());
        raw[547..551].copy_from_slice(&557_u32.to_ne_bytes());
        raw.extend_from_slice(b"/bin\0x\0\0\0");
        raw
    }

    #[test]
    fn one_declaration_gives_text_and_decoder() {
        let texts = All::FETCHES.iter().map(|fetch| format!("{}={}:{}", fetch.name, fetch.template, fetch.kind));
        let texts = texts.collect::<Vec<_>>().join(" ");
        assert_eq!(
            texts,
            "a1=+0({bprm}):x64[64] n={bprm}:u8 m={argument}:s16 us=+u0({bprm}):string st=+0(+8({bprm})):string"
        );
        let decoder = Decoder::<All>::new(&Format::parse(KPROBE).unwrap()).unwrap();
        let raw = record();
        let all = decoder.decode(&raw).unwrap();
        assert_eq!((all.n, all.m), (200, -2));
        let words: Vec<u64> = all.a1.values(&raw).collect();
        assert_eq!((words.len(), words[0], words[1], words[63]), (64, 7, 0, 9));
        assert_eq!(all.us.bytes(&raw), b"/bin");
        assert_eq!(all.st.bytes(&raw), b"");
    }

    #[test]
    fn optional_fields_missing_in_the_format_are_none() {
        let decoder = Decoder::<Optional>::new(&Format::parse(KPROBE).unwrap()).unwrap();
        let raw = record();
        let Optional { us, nowhere } = decoder.decode(&raw).unwrap();
        assert_eq!((us.map(|us| us.bytes(&raw)), nowhere), (Some(&b"/bin"[..]), None));
        assert_eq!(decoder.decode(&raw[..540]), None, "the string is in the format, but the record ends before it");
    }

    #[test]
    fn no_length_of_record_panics() {
        let decoder = Decoder::<All>::new(&Format::parse(KPROBE).unwrap()).unwrap();
        let raw = record();
        for len in 0..raw.len() {
            // The string is at the end, followed by padding.
            let short = &raw[..len];
            assert_eq!(decoder.decode(short).is_some(), len >= 557, "{len}");
        }
        let all = decoder.decode(&raw).unwrap();
        assert_eq!((all.us.bytes(&[]), all.a1.bytes(&raw[..100])), (&b""[..], &b""[..]));
    }

    #[test]
    fn a_string_that_points_outside_the_record_is_rejected() {
        let decoder = Decoder::<All>::new(&Format::parse(KPROBE).unwrap()).unwrap();
        let mut raw = record();
        raw[531..535].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(decoder.decode(&raw), None);
    }

    #[test]
    fn tracepoints_have_names_of_their_own() {
        assert_eq!(State::FETCHES, []);
        let format = Format::parse(include_bytes!("formats/inet_sock_set_state.txt")).unwrap();
        let decoder = Decoder::<State>::new(&format).unwrap();
        let mut raw = [0; 72];
        raw[8..16].copy_from_slice(&5_u64.to_ne_bytes());
        raw[28..30].copy_from_slice(&2_u16.to_ne_bytes());
        raw[32..36].copy_from_slice(&[127, 0, 0, 1]);
        assert_eq!(decoder.decode(&raw), Some(State { sock: 5, family: 2, source: [127, 0, 0, 1] }));
    }

    #[test]
    fn mismatched_fields_are_named() {
        let format = Format::parse(KPROBE).unwrap();
        let error = Decoder::<Wrong>::new(&format).unwrap_err().to_string();
        assert_eq!(error, "event b does not fit its sample: field m: 2 bytes, expected 4");
        let error = Decoder::<Missing>::new(&format).unwrap_err().to_string();
        assert_eq!(error, "event b does not fit its sample: field nowhere: missing");
    }
}
