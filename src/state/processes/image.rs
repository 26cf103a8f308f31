//! The program that an exec starts: its name, path and arguments.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::model::event::Exec;
use crate::model::process::{ExecutedFile, Image};

/// The image that an exec starts. `file` is its file, if that is known already, and `before` the image that called exec.
pub(super) fn image(exec: &Exec, file: Option<ExecutedFile>, before: &Image) -> Image {
    let (args, args_cut) = split(&exec.arguments, exec.argument_count);
    // A program that executes itself again, as busybox does, may do so by this link, which leads to another file for us.
    let itself = exec.filename == b"/proc/self/exe";
    let (name, executable) = match before.executable().filter(|_| itself) {
        Some(path) => (base_name(path.as_os_str().as_encoded_bytes()), Some(path.clone())),
        None => (named(&exec.filename), absolute(&exec.interpreter)),
    };
    let file = file.map_or_else(OnceLock::new, OnceLock::from);
    Image { name, file, executable, args, argument_count: exec.argument_count, args_cut, details: OnceLock::new() }
}

/// The name of the file at an executed path; empty if the path is that of a descriptor.
fn named(path: &[u8]) -> String {
    if is_link_of_a_task(path) { String::new() } else { base_name(path) }
}

/// Whether a path may lead to another file for each task: `/dev/fd` is a link to `/proc/self/fd`.
fn is_link_of_a_task(path: &[u8]) -> bool {
    path.starts_with(b"/proc/") || path.starts_with(b"/dev/fd/")
}

fn base_name(path: &[u8]) -> String {
    text(path.rsplit(|b| *b == b'/').next().unwrap_or_default())
}

/// The path, if it is absolute and leads to the same file for every task.
fn absolute(path: &[u8]) -> Option<PathBuf> {
    let path = Some(path).filter(|path| path.starts_with(b"/") && !is_link_of_a_task(path))?;
    Some(OsStr::from_bytes(path).into())
}

/// Splits an area of NUL-terminated arguments, and returns whether it was cut: it ended before the arguments did.
fn split(area: &[u8], count: Option<u32>) -> (Vec<String>, bool) {
    let wanted = count.map_or(usize::MAX, |n| n as usize);
    let mut args = Vec::new();
    let mut rest = area;
    while args.len() < wanted {
        let Some(end) = rest.iter().position(|b| *b == 0) else {
            if !rest.is_empty() {
                args.push(text(rest));
            }
            return (args, true);
        };
        args.push(text(&rest[..end]));
        rest = &rest[end + 1..];
    }
    (args, false)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_after_the_arguments_is_not_taken_for_arguments() {
        let (args, cut) = split(b"curl\0-s\0\0PATH=/bin\0", Some(3));
        assert_eq!(args, ["curl", "-s", ""]);
        assert!(!cut);
    }

    #[test]
    fn arguments_that_were_cut_are_reported_as_cut() {
        let (args, cut) = split(b"curl\0http://exam", Some(2));
        assert_eq!(args, ["curl", "http://exam"]);
        assert!(cut);
    }
}
