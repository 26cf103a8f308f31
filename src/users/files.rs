//! Looks up names in `/etc/passwd` and `/etc/group`. Each line has fields separated by colons: the first is the name, the
//! third the id (`passwd(5)`, `group(5)`).

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NONBLOCK;

use super::Answer;

/// The maximum number of bytes that are read.
const MAX_BYTES: u64 = 16 << 20;

/// Looks up an id in a file.
pub(super) fn look_up(path: &Path, id: u32) -> Answer {
    search(path, id).unwrap_or(Answer::Failed)
}

fn search(path: &Path, id: u32) -> io::Result<Answer> {
    // Non-blocking, in case it is a pipe.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(Answer::Failed);
    }
    let mut lines = BufReader::new(file.take(MAX_BYTES));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        if let answer @ Answer::Named(_) = parse_line(&line, id) {
            return Ok(answer);
        }
        line.clear();
    }
    Ok(Answer::Unknown)
}

/// Returns the name in a line, if the line is about this id.
pub(super) fn parse_line(line: &[u8], id: u32) -> Answer {
    let mut fields = line.split(|byte| matches!(byte, b':' | b'\n'));
    let (name, _password, number) = (fields.next(), fields.next(), fields.next());
    let text = |field: Option<&[u8]>| std::str::from_utf8(field?).ok().map(ToOwned::to_owned);
    match (text(name), text(number).and_then(|number| number.parse::<u32>().ok())) {
        // Lines that begin with + or - are for NIS and contain no user.
        (Some(name), Some(number)) if id == number && !name.starts_with(['+', '-', '#']) => Answer::named(&name),
        _ => Answer::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_an_id() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("passwd");
        let text = "root:x:0:0:root:/root:/bin/sh\n+:*:7:::\n#old:x:7:\n:x:7:\nbroken\nb\u{1b}d:x:8:\na:x:7:7::/:\nlast:x:4294967295";
        std::fs::write(&path, text).unwrap();
        assert_eq!(look_up(&path, 0), Answer::Named("root".into()));
        assert_eq!(look_up(&path, 7), Answer::Named("a".into()));
        assert_eq!(look_up(&path, 8), Answer::Unknown, "no name has control characters");
        assert_eq!(look_up(&path, u32::MAX), Answer::Named("last".into()));
        assert_eq!(look_up(&path, 1), Answer::Unknown);
        assert_eq!(look_up(folder.path(), 1), Answer::Failed);
        assert_eq!(look_up(&folder.path().join("none"), 1), Answer::Failed);
    }

    #[test]
    fn a_pipe_does_not_block() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("passwd");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(look_up(&path, 1), Answer::Failed);
    }
}
