use std::fmt;
use std::str::FromStr;

/// How a command in the guest ended, and how many bytes the guest has sent over each port.
///
/// The ports have no end of file, so the host needs the counts to know when all output has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// The exit status as a shell gives it: 128 + N when signal N ended the command.
    pub status: u8,
    /// Bytes sent over [`Port::Stdout`](crate::Port::Stdout).
    pub stdout: u64,
    /// Bytes sent over [`Port::Stderr`](crate::Port::Stderr).
    pub stderr: u64,
    /// Bytes sent over [`Port::Out`](crate::Port::Out).
    pub out: u64,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, stdout, stderr, out } = self;
        write!(f, "ended status={status} stdout={stdout} stderr={stderr} out={out}")
    }
}

/// The text is not what [`Ending`] prints.
#[derive(Debug, PartialEq, Eq)]
pub struct ParseEndingError;

impl fmt::Display for ParseEndingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected `{}`", Ending { status: 0, stdout: 0, stderr: 0, out: 0 })
    }
}

impl std::error::Error for ParseEndingError {}

impl FromStr for Ending {
    type Err = ParseEndingError;

    fn from_str(text: &str) -> Result<Self, ParseEndingError> {
        let mut words = text.split_ascii_whitespace();
        if words.next() != Some("ended") {
            return Err(ParseEndingError);
        }
        let ending = Self {
            status: value(words.next(), "status")?,
            stdout: value(words.next(), "stdout")?,
            stderr: value(words.next(), "stderr")?,
            out: value(words.next(), "out")?,
        };
        if words.next().is_some() {
            return Err(ParseEndingError);
        }
        Ok(ending)
    }
}

/// The value of a `name=value` word.
fn value<T: FromStr>(word: Option<&str>, name: &str) -> Result<T, ParseEndingError> {
    let (key, value) = word.and_then(|word| word.split_once('=')).ok_or(ParseEndingError)?;
    if key != name {
        return Err(ParseEndingError);
    }
    value.parse().map_err(|_| ParseEndingError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_ending_can_be_parsed() {
        let ending = Ending { status: 137, stdout: 1 << 40, stderr: 0, out: 7 };
        assert_eq!(ending.to_string().parse(), Ok(ending));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "ended",
            "ended status=0 stdout=0 stderr=0",
            "ended status=256 stdout=0 stderr=0 out=0",
            "ended stdout=0 status=0 stderr=0 out=0",
            "ended status=0 stdout=0 stderr=0 out=0 more",
            "status=0 stdout=0 stderr=0 out=0",
        ] {
            assert_eq!(text.parse::<Ending>(), Err(ParseEndingError), "{text:?}");
        }
    }
}
