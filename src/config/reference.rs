//! Documentation of the keys, generated from their declarations: the tables of `docs/configuration.md`,
//! `socktrail.example.yml` and the help of flags. `tests/config.rs` checks that the files are up to date.

use std::fmt::Write as _;

use super::keys::keys;
use super::options::Config;
use super::section::{Key, Section};

/// The sections of the configuration, each with its description.
pub const SECTIONS: &[(&str, &str)] = Config::INNER;

/// A Markdown table of a section's keys and defaults.
pub fn table(section: &str) -> String {
    let mut table = String::from("| key | default | what it does |\n|---|---|---|\n");
    for (key, default) in keys_of(section) {
        let default = match &*default {
            "" => "none",
            "\"\"" => "empty",
            value => value,
        };
        let _ = writeln!(table, "| `{}` | {default} | {} |", key.name, description(&key));
    }
    table
}

/// A configuration file with every key and its default, each commented out.
pub fn example() -> String {
    let mut example = String::from(
        "## Configuration of `socktrail agent`. It lists every key with its default; remove the `#` to change one.\n\
         ## `socktrail config check FILE` reports mistakes in a file. docs/configuration.md explains the keys.\n",
    );
    for (section, title) in SECTIONS {
        let _ = writeln!(example, "\n## ---- {title} ----\n");
        for (key, default) in keys_of(section) {
            let _ = writeln!(example, "## {}", plain_text(&description(&key)));
            let _ = writeln!(example, "{}", format!("#{}: {default}", key.name).trim_end());
        }
    }
    example
}

/// The help of a key's flag: the key's description as plain text, without a full stop, and its default.
pub fn help(key: &Key) -> String {
    let text = plain_text(&description(key));
    match &*default(key) {
        "" | "[]" | "\"\"" => text.trim_end_matches('.').to_owned(),
        default => format!("{} [default: {}]", text.trim_end_matches('.'), default.trim_matches(['[', ']'])),
    }
}

/// The keys of a section, each with its default in YAML.
fn keys_of(section: &str) -> impl Iterator<Item = (Key, String)> {
    let prefix = format!("{section}.");
    keys().into_iter().filter(move |key| key.name.starts_with(&prefix)).map(|key| {
        let default = default(&key);
        (key, default)
    })
}

/// A key's description with its bounds, in Markdown.
fn description(key: &Key) -> String {
    match &key.bounds {
        Some(bounds) => format!("{} ({bounds}).", key.description.trim_end_matches('.')),
        None => key.description.to_owned(),
    }
}

/// The default in YAML; empty if there is none.
fn default(key: &Key) -> String {
    match &*key.default().to_string() {
        "null" => String::new(),
        "\"\"" => "\"\"".to_owned(),
        json => json.trim_matches('"').to_owned(),
    }
}

/// Markdown as plain text: links and code are replaced by their text.
fn plain_text(markdown: &str) -> String {
    let mut plain = String::with_capacity(markdown.len());
    let mut rest = markdown;
    while let Some((before, (text, after))) = rest.split_once('[').and_then(|(before, link)| {
        let (text, target) = link.split_once("](")?;
        Some((before, (text, target.split_once(')')?.1)))
    }) {
        plain.push_str(before);
        plain.push_str(text);
        rest = after;
    }
    plain.push_str(rest);
    plain.retain(|letter| letter != '`');
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_plain_text() {
        assert_eq!(plain_text("Only a [condition](events.md#c), `a` or [b](c)."), "Only a condition, a or b.");
        assert_eq!(plain_text("[unclosed](x"), "[unclosed](x");
    }

    #[test]
    fn a_table_has_defaults_and_bounds() {
        let socket = table("socket");
        assert!(socket.contains("| `socket.flow_inactive_timeout` | 30s | A flow"), "{socket}");
        assert!(socket.contains("| `socket.tracefs_path` | none | "), "{socket}");
        let agent = table("agent");
        assert!(agent.contains("| `agent.nice` | 0 | ") && agent.contains(" (0 to 19). |"), "{agent}");
    }

    #[test]
    fn help_has_the_default_if_there_is_one() {
        let help = |name: &str| help(keys().iter().find(|key| key.name == name).unwrap());
        assert!(help("socket.guess_timeout").ends_with(" may take [default: 15s]"));
        assert!(help("socket.dns.ports").ends_with(" [default: 53]"));
        assert!(help("socket.tracefs_path").ends_with(" not mounted"));
    }
}
