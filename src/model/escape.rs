//! Escapes text that others choose, such as a program's name and arguments, so that it cannot control the terminal.

use std::fmt::Write;

/// `text` for a terminal, in at most `max` characters. If it is cut, the last one is `…`. Control characters, invisible
/// characters and those that change the direction of writing are escaped as in Rust (`\u{1b}`), and backslashes are doubled.
pub fn printable(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
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
        if length + added + usize::from(chars.peek().is_some()) > max {
            out.truncate(before);
            out.push('…');
            break;
        }
        length += added;
    }
    out
}

/// Whether a terminal shows this character as it is, without an effect on others.
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
}
