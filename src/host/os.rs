//! The operating system, from `os-release(5)`.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::model::bounded;

/// `host.os.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Os {
    /// `linux`.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// The kernel's release, as `uname -r` gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// `NAME`: `Debian GNU/Linux`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `VERSION`, else `VERSION_ID`: `9 (stretch)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `VERSION_CODENAME`, else the part of `VERSION` in parentheses, in lower case. Not an ECS field; Beats documents have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codename: Option<String>,
    /// `ID`: `debian`, `ubuntu`, `rhel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// The family of distributions, if known: `debian`, `redhat`, `suse`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Cow<'static, str>>,
}

impl Default for Os {
    fn default() -> Self {
        Self {
            kind: Cow::Borrowed("linux"),
            kernel: None,
            name: None,
            version: None,
            codename: None,
            platform: None,
            family: None,
        }
    }
}

impl Os {
    pub(super) fn gather_from(root: &Path, kernel: Option<String>) -> Self {
        let places = ["etc/os-release", "usr/lib/os-release"];
        let text = places.iter().find_map(|place| bounded::text(&root.join(place)).ok());
        Self { kernel, ..Self::from_release(&text.unwrap_or_default()) }
    }

    fn from_release(text: &str) -> Self {
        let mut os = Self::default();
        let (mut version_id, mut like) = (None, None);
        for (key, value) in text.lines().filter_map(assignment) {
            match key {
                "NAME" => os.name = Some(value),
                "VERSION" => os.version = Some(value),
                "VERSION_ID" => version_id = Some(value),
                "VERSION_CODENAME" => os.codename = Some(value),
                "ID" => os.platform = Some(value),
                "ID_LIKE" => like = Some(value),
                _ => {}
            }
        }
        os.codename = os.codename.or_else(|| in_parentheses(os.version.as_deref()?));
        os.version = os.version.or(version_id);
        let relatives = like.iter().flat_map(|like| like.split_whitespace());
        os.family = os.platform.as_deref().into_iter().chain(relatives).find_map(family).map(Cow::Borrowed);
        os
    }
}

/// Parses a line `KEY=value`, and removes shell quoting. `None` for comments, other lines and empty values.
fn assignment(line: &str) -> Option<(&str, String)> {
    let (key, value) = line.trim().split_once('=')?;
    let value = unquoted(value);
    (!value.is_empty()).then_some((key, value))
}

fn unquoted(value: &str) -> String {
    let quote = value.chars().next().filter(|first| matches!(first, '"' | '\''));
    let inner = quote.and_then(|quote| value.strip_prefix(quote)?.strip_suffix(quote)).unwrap_or(value);
    if quote == Some('\'') {
        return inner.to_owned();
    }
    let mut chars = inner.chars();
    let mut plain = String::with_capacity(inner.len());
    while let Some(char) = chars.next() {
        plain.extend(if char == '\\' { chars.next() } else { Some(char) });
    }
    plain
}

fn in_parentheses(version: &str) -> Option<String> {
    let (_, rest) = version.split_once('(')?;
    let (name, _) = rest.split_once(')')?;
    (!name.is_empty()).then(|| name.to_lowercase())
}

fn family(id: &str) -> Option<&'static str> {
    Some(match id {
        "debian" | "ubuntu" | "linuxmint" | "raspbian" => "debian",
        "rhel" | "fedora" | "centos" | "rocky" | "almalinux" | "ol" | "amzn" | "scientific" | "azurelinux"
        | "mariner" => "redhat",
        "suse" | "sles" | "sled" | "opensuse" | "opensuse-leap" | "opensuse-tumbleweed" => "suse",
        "arch" | "archarm" | "manjaro" => "arch",
        "alpine" => "alpine",
        "gentoo" => "gentoo",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRETCH: &str = r#"PRETTY_NAME="Debian GNU/Linux 9 (stretch)"
NAME="Debian GNU/Linux"
VERSION_ID="9"
VERSION="9 (stretch)"
ID=debian
HOME_URL="https://www.debian.org/"
"#;

    #[test]
    fn a_whole_file_is_parsed() {
        let os = Os::from_release(STRETCH);
        assert_eq!(os.name.as_deref(), Some("Debian GNU/Linux"));
        assert_eq!(os.version.as_deref(), Some("9 (stretch)"));
        assert_eq!(os.codename.as_deref(), Some("stretch"));
        assert_eq!(os.platform.as_deref(), Some("debian"));
        assert_eq!(os.family.as_deref(), Some("debian"));
    }

    #[test]
    fn id_like_gives_the_family_of_an_unknown_id() {
        let os = Os::from_release("ID=\"pop\"\nID_LIKE=\"ubuntu debian\"\nVERSION_ID='22.04'\n");
        assert_eq!((os.family.as_deref(), os.version.as_deref()), (Some("debian"), Some("22.04")));
        assert_eq!(Os::from_release("ID=nixos\n").family, None);
    }

    #[test]
    fn quotes_and_escapes() {
        for (written, meant) in [
            (r#""a \"b\" \$c""#, r#"a "b" $c"#),
            (r"'a \b'", r"a \b"),
            ("plain", "plain"),
            (r#"""#, r#"""#),
            (r"end\", "end"),
        ] {
            assert_eq!(unquoted(written), meant);
        }
    }

    #[test]
    fn malformed_lines_are_skipped() {
        let junk = "# NAME=x\nNAME=\nVERSION=\"\"\n=\n\u{0}\nID";
        assert_eq!(Os::from_release(junk), Os { ..Os::default() });
    }
}
