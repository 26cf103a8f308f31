//! The `format` file of a trace event: which fields its records have, and where.

use std::{fmt, str};

use crate::value::located;
use crate::{Error, Place, Value};

/// A parsed `events/GROUP/NAME/format`.
///
/// ```
/// # use socktrail_kprobes::Format;
/// let format = Format::parse(b"name: exec\nID: 307\nformat:\n\
///     \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
///     \n\
///     \tfield:pid_t pid;\toffset:8;\tsize:4;\tsigned:1;\n")?;
/// assert_eq!(format.id, 307);
/// assert_eq!(format.field("pid").map(|field| (field.offset, field.size)), Some((8, 4)));
/// # Ok::<(), socktrail_kprobes::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// The event's name.
    pub name: String,
    /// The event's id: `common_type` in its records, and `config` of a perf event on it.
    pub id: u32,
    /// Its fields, the common ones first, in the kernel's order.
    pub fields: Vec<FormatField>,
}

/// One field of a [`Format`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatField {
    /// Its name.
    pub name: String,
    /// The C type as the kernel writes it, brackets included: `u64`, `u64[]`, `__data_loc char[]`, `const void *`.
    pub kind: String,
    /// Bytes from the start of the record.
    pub offset: u16,
    /// Size in bytes, all elements of an array together.
    pub size: u16,
    /// Whether the number is signed.
    pub signed: bool,
}

impl Format {
    /// Parses the text of a `format` file. Never panics.
    ///
    /// # Errors
    /// [`Error::Format`] with the line that could not be understood.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let mut name = None;
        let mut id = None;
        let mut fields = Vec::new();
        let mut lines = 0;
        for line in text.split(|byte| *byte == b'\n') {
            lines += 1;
            let wrong = |problem| Error::Format { event: name.clone().unwrap_or_default(), line: lines, problem };
            let line = str::from_utf8(line).map_err(|_| wrong("not UTF-8"))?.trim_ascii();
            if let Some(value) = line.strip_prefix("name:") {
                name = Some(value.trim_ascii().to_owned());
            } else if let Some(value) = line.strip_prefix("ID:") {
                id = Some(value.trim_ascii().parse().map_err(|_| wrong("ID is not a number"))?);
            } else if line.starts_with("field:") {
                fields.push(FormatField::parse(line).map_err(wrong)?);
            } else if line.starts_with("print fmt:") {
                break;
            }
        }
        let wrong = |problem| Error::Format { event: name.clone().unwrap_or_default(), line: lines, problem };
        let id = id.ok_or_else(|| wrong("no ID"))?;
        let name = name.clone().ok_or_else(|| wrong("no name"))?;
        Ok(Self { name, id, fields })
    }

    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&FormatField> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// The text as the kernel writes it, up to `print fmt`. [`Format::parse`] reads it back.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "name: {}\nID: {}\nformat:", self.name, self.id)?;
        for FormatField { name, kind, offset, size, signed } in &self.fields {
            // `u64[]` with the name `words` is declared as `u64 words[]`; only `__data_loc char[]` keeps its brackets.
            let declaration = match kind.split_once('[') {
                Some((element, length)) if !kind.starts_with("__data_loc") => {
                    format!("{} {name}[{length}", element.trim_end())
                }
                _ => format!("{kind} {name}"),
            };
            writeln!(f, "\tfield:{declaration};\toffset:{offset};\tsize:{size};\tsigned:{};", u8::from(*signed))?;
        }
        Ok(())
    }
}

impl FormatField {
    /// Parses `field:u64 words[]; offset:16; size:512; signed:0;`, separated by tabs.
    pub(crate) fn parse(line: &str) -> Result<Self, &'static str> {
        let mut declaration = None;
        let mut offset = None;
        let mut size = None;
        let mut signed = false;
        for part in line.split(';').map(str::trim_ascii) {
            match part.split_once(':') {
                Some(("field", value)) => declaration = Some(value.trim_ascii()),
                Some(("offset", value)) => {
                    offset = Some(value.parse().map_err(|_| "offset is not a number below 65536")?);
                }
                Some(("size", value)) => size = Some(value.parse().map_err(|_| "size is not a number below 65536")?),
                Some(("signed", value)) => signed = value == "1",
                _ => {}
            }
        }
        let (name, kind) = split_declaration(declaration.ok_or("no declaration")?).ok_or("no field name")?;
        Ok(Self { name, kind, offset: offset.ok_or("no offset")?, size: size.ok_or("no size")?, signed })
    }

    /// The field as a number, sign-extended if the format says that it is signed. `None` if its size is not 1, 2, 4 or
    /// 8 bytes, or if the record ends before it. Meant for records whose fields are only known at run time; a
    /// [`Decoder`](crate::Decoder) is faster.
    pub fn number(&self, raw: &[u8]) -> Option<u64> {
        let place = Place { offset: self.offset, size: self.size };
        Some(match (self.size, self.signed) {
            (1, false) => u64::from(u8::read(raw, place)?),
            (2, false) => u64::from(u16::read(raw, place)?),
            (4, false) => u64::from(u32::read(raw, place)?),
            (1, true) => i64::from(i8::read(raw, place)?) as u64,
            (2, true) => i64::from(i16::read(raw, place)?) as u64,
            (4, true) => i64::from(i32::read(raw, place)?) as u64,
            (8, _) => u64::read(raw, place)?,
            _ => return None,
        })
    }

    /// The field's bytes. For a string or another `__data_loc` field, the bytes that it points at. `None` if the record
    /// ends before them.
    pub fn bytes<'a>(&self, raw: &'a [u8]) -> Option<&'a [u8]> {
        let place = Place { offset: self.offset, size: self.size };
        if self.kind.starts_with("__data_loc") {
            let (offset, size) = located(u32::read(raw, place)?);
            return raw.get(offset..offset + size);
        }
        raw.get(place.start()..place.start() + usize::from(self.size))
    }
}

/// `("words", "u64[]")` of `u64 words[]`; `("path", "__data_loc char[]")` of `__data_loc char[] path`.
fn split_declaration(declaration: &str) -> Option<(String, String)> {
    let (plain, brackets) = match declaration.strip_suffix(']') {
        Some(inside) => declaration.split_at(inside.rfind('[')?),
        None => (declaration, ""),
    };
    let plain = plain.trim_ascii_end();
    let start = plain.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map_or(0, |at| at + 1);
    let (kind, name) = (plain.get(..start)?.trim_ascii_end(), plain.get(start..)?);
    (!name.is_empty()).then(|| (name.to_owned(), format!("{kind}{brackets}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<'a>(format: &'a Format, name: &str) -> (&'a str, u16, u16, bool) {
        let field = format.field(name).unwrap_or_else(|| panic!("no {name}"));
        (&field.kind, field.offset, field.size, field.signed)
    }

    #[test]
    fn a_kprobe_of_6_1() {
        let format = Format::parse(include_bytes!("formats/kprobe.txt")).unwrap();
        assert_eq!((format.name.as_str(), format.id, format.fields.len()), ("b", 1392, 11));
        assert_eq!(field(&format, "common_type"), ("unsigned short", 0, 2, false));
        assert_eq!(field(&format, "common_pid"), ("int", 4, 4, true));
        assert_eq!(field(&format, "__probe_ip"), ("unsigned long", 8, 8, false));
        assert_eq!(field(&format, "a1"), ("u64[]", 16, 512, false));
        assert_eq!(field(&format, "m"), ("s16", 529, 2, true));
        assert_eq!(field(&format, "us"), ("__data_loc char[]", 531, 4, true));
        assert_eq!(field(&format, "us2"), ("__data_loc char[][3]", 535, 12, true));
    }

    #[test]
    fn a_kretprobe_of_6_1() {
        let format = Format::parse(include_bytes!("formats/kretprobe.txt")).unwrap();
        assert_eq!((format.name.as_str(), format.id), ("c", 1393));
        assert_eq!(field(&format, "rv"), ("s32", 24, 4, true));
    }

    #[test]
    fn tracepoints_of_6_1() {
        let format = Format::parse(include_bytes!("formats/inet_sock_set_state.txt")).unwrap();
        assert_eq!((format.name.as_str(), format.id), ("inet_sock_set_state", 1351));
        assert_eq!(field(&format, "skaddr"), ("const void *", 8, 8, false));
        assert_eq!(field(&format, "daddr_v6"), ("__u8[16]", 56, 16, false));
        let format = Format::parse(include_bytes!("formats/sched_process_exec.txt")).unwrap();
        assert_eq!(field(&format, "filename"), ("__data_loc char[]", 8, 4, true));
    }

    #[test]
    fn odd_declarations() {
        for (declaration, name, kind) in [
            ("char *name", "name", "char *"),
            ("char comm[TASK_COMM_LEN + 1]", "comm", "char[TASK_COMM_LEN + 1]"),
            ("unsigned long args[6]", "args", "unsigned long[6]"),
            ("x", "x", ""),
        ] {
            assert_eq!(split_declaration(declaration), Some((name.to_owned(), kind.to_owned())));
        }
        assert_eq!(split_declaration("int (*call)(void)"), None);
        assert_eq!(split_declaration("]"), None);
    }

    #[test]
    fn malformed_formats_name_the_line() {
        for (text, line, problem) in [
            ("", 1, "no ID"),
            ("ID: 7\n", 2, "no name"),
            ("name: a\nID: seven\n", 2, "ID is not a number"),
            ("name: a\nID: 99999999999\n", 2, "ID is not a number"),
            ("name: a\nID: 7\nformat:\n\tfield:u8 x;\tsize:1;\n", 4, "no offset"),
            ("name: a\nID: 7\nformat:\n\tfield:u8 x;\toffset:1;\n", 4, "no size"),
            ("name: a\nID: 7\nformat:\n\tfield:u8 x;\toffset:-1;\tsize:1;\n", 4, "offset is not a number below 65536"),
            ("name: a\nID: 7\nformat:\n\tfield:u8 x;\toffset:1;\tsize:65536;\n", 4, "size is not a number below 65536"),
            ("name: a\nID: 7\nformat:\n\tfield:;\toffset:1;\tsize:1;\n", 4, "no field name"),
        ] {
            match Format::parse(text.as_bytes()) {
                Err(Error::Format { line: at, problem: what, .. }) => assert_eq!((at, what), (line, problem), "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(matches!(Format::parse(b"name: \xff\n"), Err(Error::Format { line: 1, problem: "not UTF-8", .. })));
    }

    #[test]
    fn numbers_and_bytes_of_a_record() {
        let format = Format::parse(include_bytes!("formats/kprobe.txt")).unwrap();
        let mut raw = vec![0_u8; 551];
        raw[529..531].copy_from_slice(&(-2_i16).to_ne_bytes());
        raw[547..551].copy_from_slice(&(3_u32 << 16 | 551).to_ne_bytes());
        raw.extend_from_slice(b"ab\0");
        let get = |name| format.field(name).unwrap();
        assert_eq!(get("m").number(&raw), Some(-2_i64 as u64));
        assert_eq!(get("a1").number(&raw), None);
        assert_eq!(get("a1").bytes(&raw).map(<[u8]>::len), Some(512));
        assert_eq!(get("st").bytes(&raw), Some(&b"ab\0"[..]));
        assert_eq!(get("st").bytes(&raw[..552]), None);
        assert_eq!(get("m").number(&raw[..530]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(bytes: Vec<u8>) {
            let _ = Format::parse(&bytes);
        }

        #[test]
        fn no_damaged_format_panics(at in 0_usize..2000, byte: u8, cut in 0_usize..2100) {
            let mut text = include_bytes!("formats/kprobe.txt").to_vec();
            text[at] = byte;
            text.truncate(cut);
            if let Ok(format) = Format::parse(&text) {
                for field in &format.fields {
                    let _ = (field.number(&text), field.bytes(&text));
                }
            }
        }
    }
}
