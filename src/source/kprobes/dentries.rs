//! Directory entries (`struct dentry`), read in the kernel from one of them up to the root of its file system.
//!
//! A probe cannot loop, so it fetches a fixed number of entries: as many as the kernel's limit on the length of an
//! expression allows (`MAX_ARGSTR_LEN`, 63). The root of a file system is its own parent, so every read succeeds,
//! however short the path is. Names are read as windows of a fixed size ([`StringWindow`]), because a file system in
//! user space may have names too long for perf's buffer.
//!
//! Before Linux 4.20, fetch arguments have no arrays, so names are fetched as strings. If the strings of one event are too long
//! for a record of perf, the kernel drops the record, and the windows of its names are empty. An empty name is never part of a
//! path: see [`entry_name`].
//!
//! [`StringWindow`]: socktrail_kprobes::StringWindow

/// The template of a directory entry above another: one parent up for each `up`.
macro_rules! ancestor {
    ($from:expr;) => {
        $from
    };
    ($from:expr; up $($up:tt)*) => {
        concat!("+{dentry.d_parent}(", ancestor!($from; $($up)*), ")")
    };
}

/// The template of an entry's name. [`ancestor`] must be in scope.
macro_rules! name {
    ($($entry:tt)*) => {
        concat!("+0(+{dentry.name}(", ancestor!($($entry)*), "))")
    };
}

pub(super) use {ancestor, name};

/// Names of directory entries, the lowest first; `None` if there are more, or longer ones, than were fetched.
pub(super) type Names = Option<Vec<Vec<u8>>>;

/// The names of the entries from the first up to the root, without the root's. `at` has at least one entry more than `names`.
pub(super) fn climb(at: &[u64], names: &[&[u8]], root: u64) -> Names {
    let steps = at.iter().position(|entry| *entry == root)?;
    names.get(..steps)?.iter().map(|name| entry_name(name)).collect()
}

/// The path of an entry in its file system, from the names of the entry and its ancestors, the lowest first.
pub(super) fn path(names: &[Vec<u8>]) -> Vec<u8> {
    names.iter().rev().flat_map(|name| [b"/", &name[..]].concat()).collect()
}

/// The name of an entry, from its window. `None` if it is empty, longer than the window, or a root's. Roots have a slash in
/// their name. The root of the path is not among the names, so this would be another root.
pub(super) fn entry_name(window: &[u8]) -> Option<Vec<u8>> {
    let end = window.iter().position(|byte| *byte == 0)?;
    let name = &window[..end];
    (!name.is_empty() && !name.contains(&b'/')).then(|| name.to_vec())
}

/// The longest expression that a template becomes with two digits for each offset; for tests.
#[cfg(test)]
pub(super) fn longest_expression(template: &str, kind: socktrail_kprobes::Type) -> String {
    let mut braces = template.split('{');
    let mut text = braces.next().unwrap_or_default().to_owned();
    for (key, rest) in braces.filter_map(|part| part.split_once('}')) {
        // An argument is a register: `%di`, `%x0`.
        text.push_str(if key.contains('.') { "64" } else { "%di" });
        text.push_str(rest);
    }
    format!("{text}:{kind}")
}
