//! `docs/troubleshooting.md` lists every error message of the source, and every exit status.

use std::fs;
use std::path::{Path, PathBuf};

/// The code before and after an error message.
const MARKS: [(&str, &str); 4] =
    [("#[error(", ")]"), ("bail!(", ");"), ("ensure!(", ");"), ("OutputError::new(", ");")];
/// The minimum length of a piece of a message: shorter ones are found anywhere.
const MIN_LEN: usize = 12;

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

#[test]
fn every_error_of_the_source_is_explained() {
    let page = words(&fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap());
    let mut missing = Vec::new();
    let mut known = 0;
    for folder in ["src", "kprobes/src", "guess/src", "dns/src"] {
        for file in sources(&root().join(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            for piece in messages(&text) {
                known += 1;
                if !page.contains(&piece) {
                    missing.push(format!("{}: {piece}", file.strip_prefix(root()).unwrap().display()));
                }
            }
        }
    }
    assert!(known > 60, "only {known} errors were found in the source");
    assert!(missing.is_empty(), "not in docs/troubleshooting.md:\n{}", missing.join("\n"));
}

#[test]
fn every_exit_status_is_explained() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_socktrail")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, statuses) = help.split_once("Exit status:").expect("help has a table");
    let numbers: Vec<_> = statuses.lines().filter_map(|line| line.trim().split_once("  ")).collect();
    assert_eq!(numbers.len(), 8);
    for (number, _) in numbers {
        assert!(page.contains(&format!("| {number} |")), "status {number}");
    }
}

/// All Rust files except those of tests and fuzzing.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_test =
        |path: &Path| path.file_stem().is_some_and(|name| name == "tests" || name == "fuzzing" || name == "testing");
    let entries = entries.filter(|path| !is_test(path)).collect::<Vec<_>>();
    let (folders, files): (Vec<_>, Vec<_>) = entries.into_iter().partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// The most distinctive part of each error message in a source file.
fn messages(source: &str) -> Vec<String> {
    let code = source.split("mod tests {").next().unwrap_or_default();
    let mut found = Vec::new();
    for (before, after) in MARKS {
        for (at, _) in code.match_indices(before) {
            // The longest literal of the call.
            let rest = &code[at + before.len()..];
            let call = &rest[..rest.find(after).unwrap_or(rest.len())];
            found.extend(literals(call).iter().filter_map(|literal| longest_piece(literal)).max_by_key(String::len));
        }
    }
    found
}

/// The string literals of a piece of code, with continued lines joined.
fn literals(code: &str) -> Vec<String> {
    let (mut found, mut literal, mut chars) = (Vec::new(), None::<String>, code.chars().peekable());
    while let Some(char) = chars.next() {
        match (&mut literal, char) {
            (None, '"') => literal = Some(String::new()),
            (None, _) => {}
            (Some(_), '"') => found.extend(literal.take()),
            (Some(text), '\\') => match chars.next() {
                Some('\n') => while chars.next_if(|next| next.is_whitespace()).is_some() {},
                Some('n') => text.push(' '),
                Some(other) => text.push(other),
                None => {}
            },
            (Some(text), other) => text.push(other),
        }
    }
    found
}

/// The longest part of a message between placeholders, if it is long enough.
fn longest_piece(message: &str) -> Option<String> {
    let mut pieces = vec![String::new()];
    let mut depth = 0;
    for char in message.chars() {
        match char {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                pieces.push(String::new());
            }
            other if depth == 0 => pieces.last_mut()?.push(other),
            _ => {}
        }
    }
    let longest = pieces.into_iter().map(|piece| words(&piece)).max_by_key(String::len)?;
    let longest = longest.trim_matches(|c: char| !c.is_alphanumeric()).to_owned();
    (longest.len() >= MIN_LEN).then_some(longest)
}

/// A text without backquotes, backslashes and line breaks.
fn words(text: &str) -> String {
    text.replace(['`', '\\'], "").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn messages_are_found_in_source() {
    let source = r#"
        #[cfg(test)]
        mod testing;
        #[error("no {what} at {path}: is it \
                 mounted at all")]
        #[error("no such place exists")]
        bail!("{x}: nothing to do");
        return Err(OutputError::new(format!("packing: {error}"), "check its disk"));
        #[cfg(test)]
        mod tests {
            bail!("this is of a test");
        }
    "#;
    assert_eq!(messages(source), ["is it mounted at all", "no such place exists", "nothing to do", "check its disk"]);
}
