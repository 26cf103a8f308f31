//! Parses YAML into settings with their lines. figment's own provider for YAML uses an unmaintained crate and does not know
//! lines.

use figment::value::{Empty, Tag, Value};
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::section::join;
use super::setting::{FileSetting, Mistake};

/// The maximum depth of sections.
const MAX_DEPTH: usize = 32;

/// Parses the first document of a text.
pub fn parse(text: &str) -> Result<Vec<FileSetting>, Mistake> {
    let mut reader = Reader { events: Parser::new_from_str(text), settings: Vec::new() };
    loop {
        match reader.next()? {
            (Event::MappingStart(..), _) => reader.section("", 0)?,
            (Event::DocumentEnd | Event::StreamEnd, _) => return Ok(reader.settings),
            (Event::StreamStart | Event::DocumentStart(..), _) => {}
            (Event::Scalar(text, ScalarStyle::Plain, ..), _) if plain(&text).is_none() => {}
            (_, span) => return Err(mistake(span, "expected keys with values, such as `socket.enable_ipv6: true`")),
        }
    }
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    settings: Vec<FileSetting>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Mistake> {
        let broken = |error: ScanError| Mistake { line: error.marker().line(), problem: error.info() };
        loop {
            match self.events.next().transpose().map_err(broken)? {
                Some((Event::Comment(..), _)) => {}
                event => return Ok(event.unwrap_or((Event::StreamEnd, Span::default()))),
            }
        }
    }

    /// Reads the rest of a mapping, after its start.
    fn section(&mut self, section: &str, depth: usize) -> Result<(), Mistake> {
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(()),
                Event::Scalar(key, ..) if !key.is_empty() => join(section, &key),
                _ => return Err(mistake(span, "expected a key")),
            };
            if depth >= MAX_DEPTH {
                return Err(mistake(span, "too many sections within sections"));
            }
            let line = span.start.line();
            match self.next()? {
                (Event::MappingStart(..), _) => self.section(&key, depth + 1)?,
                (event, span) => {
                    if let Some(value) = self.value(event, span, depth)? {
                        self.settings.push(FileSetting { key, value, line });
                    }
                }
            }
        }
    }

    /// A value other than a section; `None` if it is empty.
    fn value(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Option<Value>, Mistake> {
        match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) => Ok(plain(&text)),
            Event::Scalar(text, ..) => Ok(Some(Value::from(text.into_owned()))),
            Event::SequenceStart(..) if depth < MAX_DEPTH => self.list(depth + 1).map(Some),
            Event::Alias(_) => Err(mistake(span, "aliases (*name) are not supported: write the value out")),
            _ => Err(mistake(span, "expected a value")),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, Mistake> {
        let mut values = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::from(values)),
                (Event::MappingStart(..), span) => return Err(mistake(span, "expected a value, not keys with values")),
                (event, span) => values.push(self.value(event, span, depth)?.unwrap_or(empty())),
            }
        }
    }
}

fn empty() -> Value {
    Value::Empty(Tag::Default, Empty::None)
}

fn mistake(span: Span, problem: &str) -> Mistake {
    Mistake { line: span.start.line(), problem: problem.to_owned() }
}

/// Parses a scalar without quotes by YAML's core schema: null (`None`), a boolean, a number, or text.
pub fn plain(text: &str) -> Option<Value> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return None,
        "true" | "True" | "TRUE" => return Some(true.into()),
        "false" | "False" | "FALSE" => return Some(false.into()),
        _ => {}
    }
    if !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '-' | '+' | '.')) {
        return Some(text.into());
    }
    let number = text.parse::<i64>().map(Value::from).ok();
    let number = number.or_else(|| text.parse::<u64>().map(Value::from).ok());
    Some(number.or_else(|| text.parse::<f64>().map(Value::from).ok()).unwrap_or_else(|| text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, Value, usize)> {
        parse(text).unwrap().into_iter().map(|setting| (setting.key, setting.value, setting.line)).collect()
    }

    #[test]
    fn nested_and_dotted_keys_are_the_same() {
        let nested = "socket:\n  dns:\n    enabled: false\n    af_packet: {snaplen: 512}\n";
        let dotted = "socket.dns.enabled: false\nsocket.dns.af_packet.snaplen: 512\n";
        let mixed = "socket.dns:\n  enabled: false\n  af_packet.snaplen: 512\n";
        let keys = |text| parsed(text).into_iter().map(|(key, value, _)| (key, value)).collect::<Vec<_>>();
        assert_eq!(keys(nested), keys(dotted));
        assert_eq!(keys(mixed), keys(dotted));
        assert_eq!(parsed(nested).iter().map(|(.., line)| *line).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn scalars_have_the_types_of_the_core_schema() {
        let text = "a: 30s\nb: 12\nc: '12'\nd: true\ne: 1.5\nf: ~\ng:\nh: \"true\"\ni: 18446744073709551615\nj: -3\n";
        let found: Vec<_> = parsed(text).into_iter().map(|(key, value, _)| (key, value)).collect();
        let expected = [
            ("a", "30s".into()),
            ("b", 12_i64.into()),
            ("c", "12".into()),
            ("d", true.into()),
            ("e", 1.5.into()),
            ("h", "true".into()),
            ("i", u64::MAX.into()),
            ("j", (-3_i64).into()),
        ];
        assert_eq!(found, expected.map(|(key, value): (&str, Value)| (key.to_owned(), value)));
    }

    #[test]
    fn lists_in_both_forms() {
        assert_eq!(parsed("a: [1, b]")[0].1, parsed("a:\n  - 1\n  - b\n")[0].1);
        assert_eq!(parsed("a: [1, b]")[0].1, Value::from(vec![Value::from(1_i64), Value::from("b")]));
    }

    #[test]
    fn empty_text_has_no_settings() {
        for text in ["", "# only a comment\n", "---\n...\n", "~\n"] {
            assert_eq!(parsed(text), [], "{text:?}");
        }
    }

    #[test]
    fn other_values_than_mappings_are_mistakes() {
        for (text, line) in [
            ("- a\n- b\n", 1),
            ("just text\n", 1),
            ("a: 1\nb: [1, 2\nc: 3\n", 3),
            ("a: 1\n b: 2\n", 2),
            ("a: &x 1\nb: *x\n", 2),
            ("a: 1\n? [b]\n: c\n", 2),
            ("a:\n  - b: 1\n", 2),
        ] {
            let mistake = parse(text).unwrap_err();
            assert_eq!(mistake.line, line, "{text:?}: {}", mistake.problem);
        }
        let deep = "{a: ".repeat(99) + &"}".repeat(99);
        assert!(parse(&deep).unwrap_err().problem.contains("too many"));
        assert!(parse(&("a: ".to_owned() + &"[".repeat(9999))).is_err());
    }
}
