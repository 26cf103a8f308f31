//! Glob patterns.
//!
//! `*` matches any number of characters, also spaces; `?` one character; `[0-9]` one of these, `[!0-9]` one other; `{tcp,udp}`
//! either. `\` escapes the next character. A pattern must match the whole text. Brackets that contain a colon are an IPv6 address
//! and match literally: `[::1]:80`, `[2001:db8:*]:443`.

use std::borrow::Cow;
use std::fmt;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// The maximum length of a pattern in bytes.
const MAX_LEN: usize = 1024;
/// The index of the remote host's name in the tuple.
const HOST: usize = 3;
/// The number of parts of the tuple.
const PARTS: usize = 5;

/// One pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    glob: Glob,
    /// The pattern for any name of the remote host. It matches every tuple that `glob` matches with some name.
    any_host: Glob,
}

/// The error for a text that is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad glob {pattern:?}: {problem}")]
pub struct BadPattern {
    pattern: String,
    problem: Cow<'static, str>,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// An unclosed bracket or brace, a reversed range, a `\` at the end, an empty text, or more than 1,024 bytes.
    pub fn new(text: &str) -> Result<Self, BadPattern> {
        let bad = |problem| BadPattern { pattern: text.chars().take(80).collect(), problem };
        if text.is_empty() || text.len() > MAX_LEN {
            return Err(bad(format!("expected 1 to {MAX_LEN} bytes, not {}", text.len()).into()));
        }
        let glob = glob(text).map_err(bad)?;
        let any_host = self::glob(&with_any_host(text)).map_err(bad)?;
        Ok(Self { glob, any_host })
    }

    /// A function that tells whether the pattern matches a text. For tuples, use [`Patterns`].
    pub fn matcher(&self) -> impl Fn(&str) -> bool + use<> {
        let matcher = self.glob.compile_matcher();
        move |text| matcher.is_match(text)
    }
}

/// A set of patterns.
#[derive(Debug, Clone)]
pub struct Patterns {
    exact: GlobSet,
    any_host: GlobSet,
}

impl Patterns {
    /// A set of these patterns.
    ///
    /// # Errors
    /// Together they are too large.
    pub fn new(patterns: &[Pattern]) -> Result<Self, BadPattern> {
        let set = |part: fn(&Pattern) -> &Glob| {
            let mut set = GlobSetBuilder::new();
            for pattern in patterns {
                set.add(part(pattern).clone());
            }
            set.build().map_err(|error| {
                let pattern = error.glob().unwrap_or("(all of the list)").to_owned();
                BadPattern { pattern, problem: error.kind().to_string().into() }
            })
        };
        Ok(Self { exact: set(|pattern| &pattern.glob)?, any_host: set(|pattern| &pattern.any_host)? })
    }

    /// Whether one of them matches this tuple.
    pub fn match_tuple(&self, tuple: &str) -> bool {
        self.exact.is_match(tuple)
    }

    /// Whether one of them may match this tuple once the remote host has a name.
    pub fn may_match(&self, tuple: &str) -> bool {
        self.any_host.is_match(tuple)
    }
}

fn glob(text: &str) -> Result<Glob, Cow<'static, str>> {
    let text = with_literal_addresses(text)?;
    let built = GlobBuilder::new(&text).literal_separator(false).backslash_escape(true).empty_alternates(true).build();
    built.map_err(|error| error.kind().to_string().into())
}

/// The pattern with the brackets around IPv6 addresses escaped.
fn with_literal_addresses(text: &str) -> Result<String, Cow<'static, str>> {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some(at) = rest.find(['[', '\\']) {
        let (before, special) = rest.split_at(at);
        out.push_str(before);
        let length = match special.strip_prefix('[').and_then(|inside| inside.split_once(']')) {
            Some((inside, _)) if inside.contains(':') => {
                if let Some(odd) = inside.chars().find(|char| !char.is_ascii_hexdigit() && !":.*?".contains(*char)) {
                    let problem = format!("[{inside}] holds a colon, so it is an IPv6 address, which has no {odd:?}");
                    return Err(problem.into());
                }
                out.extend(["\\[", inside, "\\]"]);
                rest = &special[inside.len() + 2..];
                continue;
            }
            Some((inside, _)) => inside.len() + 2,
            // The escaped character may have several bytes.
            None => special.chars().take(2).map(char::len_utf8).sum(),
        };
        out.push_str(&special[..length]);
        rest = &special[length..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The pattern with `*` in place of the host. This needs a pattern with as many parts as the tuple, whose spaces can only match
/// those of the tuple. For any other pattern, the result is `*`.
fn with_any_host(text: &str) -> Cow<'static, str> {
    let mut parts: Vec<_> = text.split(' ').collect();
    if parts.len() != PARTS || parts.iter().any(|part| glob(part).is_err()) {
        return "*".into();
    }
    parts[HOST] = "*";
    parts.join(" ").into()
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Pattern;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a glob pattern in quotes")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Pattern, E> {
                Pattern::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUPLE: &str = "tcp 192.0.2.1:40000 198.51.100.7:443 www.example.org ESTABLISHED";
    const IPV6: &str = "tcp6 [2001:db8::1]:40000 [2001:db8::2]:443 - ESTABLISHED";

    fn matches(pattern: &str, text: &str) -> bool {
        let matched = Pattern::new(pattern).unwrap().matcher()(text);
        let set = Patterns::new(&[Pattern::new(pattern).unwrap()]).unwrap();
        assert_eq!(set.match_tuple(text), matched, "a pattern matches the same alone and in a set");
        assert!(set.may_match(text) || !matched, "{pattern}");
        matched
    }

    #[test]
    fn documented_patterns_match() {
        for (pattern, tcp, ipv6) in [
            ("tcp * * * ESTABLISHED", true, false),
            ("tcp6 * * * *", false, true),
            ("tcp{,6} * * * ESTABLISHED", true, true),
            ("*", true, true),
            ("tcp *", true, false),
            ("tcp", false, false),
            ("* ESTABLISHED", true, true),
            ("* *:443 * *", true, true),
            ("* * *:443 * *", true, true),
            ("* *:40000 * * *", true, true),
            ("* * [2001:db8::2]:443 * *", false, true),
            ("* * [2001:db8:*]:* * *", false, true),
            ("* * [2001:db8::?]:443 * *", false, true),
            ("* * 198.51.100.[0-9]:443 * *", true, false),
            ("* * 198.51.100.[!0-9]:443 * *", false, false),
            ("* * * *.example.org *", true, false),
            ("* * * - *", false, true),
            ("TCP * * * *", false, false),
            ("tcp * * * {LISTEN,ESTABLISHED}", true, false),
            (r"tcp\6 * * * *", false, true),
            ("tcp  * * * *", false, false),
        ] {
            assert_eq!((matches(pattern, TUPLE), matches(pattern, IPV6)), (tcp, ipv6), "{pattern}");
        }
    }

    #[test]
    fn brackets_are_classes_unless_they_hold_a_colon() {
        assert!(matches("[a-c]x", "bx") && !matches("[a-c]x", "[a-c]x"));
        assert!(matches("[::1]:80", "[::1]:80") && !matches("[::1]:80", "::80"));
        assert!(matches(r"\[::1\]:80", "[::1]:80"), "escaped brackets are literal");
        assert!(matches("[[]::1]:80", "[::1]:80"), "the form for globs without the rule for colons");
        assert!(matches("[fe80:*]:1", "[fe80::2]:1"));
        assert!(matches(r"\é[::1]", "é[::1]"));
        assert!(matches("{a,[::1]}", "[::1]"));
    }

    #[test]
    fn the_error_for_an_invalid_pattern_says_why() {
        for (text, why) in [
            ("tcp [* x", "missing ']'"),
            ("tcp {a,b", "missing '}'"),
            ("tcp a}", "missing '{'"),
            ("[z-a]", "'z' > 'a'"),
            ("tcp \\", "dangling"),
            ("[0-9:]", "IPv6"),
            ("", "not 0"),
        ] {
            let error = Pattern::new(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(&format!("{text:?}")), "{error}");
        }
        assert!(Pattern::new(&"x".repeat(MAX_LEN + 1)).unwrap_err().to_string().contains("1025"));
    }

    #[test]
    fn no_name_is_needed_if_none_could_match() {
        let may = |pattern: &str| Patterns::new(&[Pattern::new(pattern).unwrap()]).unwrap().may_match(IPV6);
        assert!(may("tcp6 * * *.example.org ESTABLISHED"));
        assert!(may("tcp6 * * * *"));
        assert!(!may("tcp * * *.example.org ESTABLISHED"));
        assert!(!may("tcp6 * *:80 *.example.org *"));
        assert!(may("*example.org*"), "the name may be anywhere in this pattern");
        assert!(may(r"tcp {a b,c}\ * * *.example.org *"), "spaces in braces and escaped spaces do not separate parts");
    }

    proptest::proptest! {
        #[test]
        fn a_set_matches_like_its_pattern_and_may_match_if_any_name_would(
            pattern in "[a-c*?{},!:\\[\\]\\\\ -]{0,12}",
            parts in proptest::collection::vec("[a-c:\\[\\]-]{1,3}", PARTS),
        ) {
            let Ok(pattern) = Pattern::new(&pattern) else { return Ok(()) };
            let set = Patterns::new(std::slice::from_ref(&pattern)).unwrap();
            let named = parts.join(" ");
            proptest::prop_assert_eq!(set.match_tuple(&named), pattern.matcher()(&named));
            let mut parts = parts;
            parts[HOST] = "-".to_owned();
            proptest::prop_assert!(set.may_match(&parts.join(" ")) || !set.match_tuple(&named));
        }
    }
}
