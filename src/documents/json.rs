//! JSON that is safe to show on a terminal.

use std::io;

use serde::Serialize;

/// A formatter for compact JSON without control characters. JSON allows DEL and C1 control characters without escapes, and a
/// terminal may interpret those as commands, so this formatter escapes them.
#[derive(Debug, Clone, Copy, Default)]
pub struct JsonFormatter;

impl serde_json::ser::Formatter for JsonFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // Most text contains neither DEL nor 0xc2, the first byte of all C1 characters.
        if !fragment.bytes().any(|byte| matches!(byte, 0x7f | 0xc2)) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some((at, control)) = rest.char_indices().find(|(_, c)| c.is_control()) {
            let (clean, tail) = rest.split_at(at);
            write!(writer, "{clean}\\u{:04x}", u32::from(control))?;
            rest = &tail[control.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Appends a document as JSON.
///
/// # Errors
/// The document cannot be serialized. `buffer` is then unchanged.
pub(crate) fn append_json(buffer: &mut Vec<u8>, document: &impl Serialize) -> io::Result<()> {
    let before = buffer.len();
    let result = document.serialize(&mut serde_json::Serializer::with_formatter(&mut *buffer, JsonFormatter));
    result.map_err(|error| {
        buffer.truncate(before);
        error.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_control_characters_decode_to_the_same_text() {
        let text = "a\u{7f}b\u{9b}31mé\u{1b}\u{a0}网";
        let mut json = Vec::new();
        text.serialize(&mut serde_json::Serializer::with_formatter(&mut json, JsonFormatter)).unwrap();
        let json = String::from_utf8(json).unwrap();
        assert!(!json.chars().any(char::is_control), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
