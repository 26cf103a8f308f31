//! What others chose the text of (a program's name, its arguments) must not steer the terminal that shows it.

use std::fmt::Write;
use std::io;

use serde::Serialize;

/// `text` for a terminal: at most `most` characters (the last of them `…` where there were more), with control
/// characters, invisible ones and those that turn the direction of writing escaped as in Rust (`\u{1b}`), and the
/// backslash doubled.
pub fn printable(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most));
    let mut length = 0;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        let before = out.len();
        match char {
            '\\' => out.push_str("\\\\"),
            char if is_harmless(char) => out.push(char),
            // Writing to a string cannot fail.
            char => _ = write!(out, "{}", char.escape_default()),
        }
        let added = out.get(before..).map_or(0, |added| added.chars().count());
        if length + added + usize::from(chars.peek().is_some()) > most {
            out.truncate(before);
            out.push('…');
            break;
        }
        length += added;
    }
    out
}

/// Whether a character is shown as it is, and does nothing to others.
pub(crate) fn is_harmless(char: char) -> bool {
    !(char.is_control() || is_invisible(char) || (char.is_whitespace() && char != ' '))
}

/// Characters that change how others are shown: joiners, marks and overrides of direction, tags.
fn is_invisible(char: char) -> bool {
    matches!(
        char,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// Compact JSON that holds no control character at all: JSON itself lets DEL and the C1 controls through unescaped,
/// and a terminal may take those for commands. What the document says stays the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct JsonFormatter;

impl serde_json::ser::Formatter for JsonFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // Nearly all text is ASCII; DEL and all of C1's first byte, 0xc2, are quick to rule out.
        if !fragment.bytes().any(|byte| matches!(byte, 0x7f | 0xc2)) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some((at, control)) = rest.char_indices().find(|(_, char)| char.is_control()) {
            let (clean, tail) = rest.split_at(at);
            write!(writer, "{clean}\\u{:04x}", u32::from(control))?;
            rest = &tail[control.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Appends a document in JSON.
///
/// # Errors
/// It cannot be written as JSON; then `to` is as it was.
pub(super) fn append_json(to: &mut Vec<u8>, document: &impl Serialize) -> io::Result<()> {
    let before = to.len();
    let written = document.serialize(&mut serde_json::Serializer::with_formatter(&mut *to, JsonFormatter));
    written.map_err(|error| {
        to.truncate(before);
        error.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays() {
        assert_eq!(printable("Web Content é 網", 40), "Web Content é 網");
        assert_eq!(printable("", 5), "");
    }

    #[test]
    fn control_characters_are_spelt_out() {
        assert_eq!(printable("\u{1b}[2J\r\n\u{7f}\u{9b}", 90), "\\u{1b}[2J\\r\\n\\u{7f}\\u{9b}");
        assert_eq!(printable("a\u{202e}b\u{200b}", 90), "a\\u{202e}b\\u{200b}");
        assert_eq!(printable("\\n", 90), "\\\\n");
    }

    #[test]
    fn long_text_is_cut_to_the_width() {
        assert_eq!(printable("abcdef", 6), "abcdef");
        assert_eq!(printable("abcdefg", 6), "abcde…");
        assert_eq!(printable(&"\u{1b}".repeat(10), 14), "\\u{1b}\\u{1b}…", "no half of an escape");
        for most in 1..20 {
            assert!(printable(&"\u{1b}é".repeat(9), most).chars().count() <= most, "{most}");
        }
    }

    #[test]
    fn json_without_controls_means_the_same() {
        let text = "a\u{7f}b\u{9b}31mé\u{1b}\u{a0}网";
        let mut json = Vec::new();
        text.serialize(&mut serde_json::Serializer::with_formatter(&mut json, JsonFormatter)).unwrap();
        let json = String::from_utf8(json).unwrap();
        assert!(!json.chars().any(char::is_control), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
