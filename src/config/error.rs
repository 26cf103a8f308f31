//! Errors in a configuration.

use std::fmt;

/// All problems of a configuration; there is at least one.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);

/// One problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the value is set: a line of a file, an environment variable, a flag, `command line` or `default`.
    pub origin: String,
    /// The key; `None` if the problem is not about one key.
    pub key: Option<String>,
    /// What is wrong, and what is expected.
    pub problem: String,
}

impl Problem {
    pub(super) fn with_key(origin: impl Into<String>, key: &str, problem: impl Into<String>) -> Self {
        Self { origin: origin.into(), key: Some(key.to_owned()), problem: problem.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        match &self.key {
            Some(key) => write!(f, "{key}: {}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

/// The message for an error of figment. figment's own message repeats the value, which may be secret.
pub(super) fn describe(kind: &figment::error::Kind) -> String {
    use figment::error::{Actual, Kind};
    let found = |actual: &Actual| match actual {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_) => "a number",
        Actual::Str(_) | Actual::Char(_) | Actual::Bytes(_) => "text",
        Actual::Seq => "a list",
        Actual::Map => "keys with values",
        _ => "nothing",
    };
    let wanted = |expected: &str| match expected {
        "a boolean" => "true or false".to_owned(),
        "a string" | "path string" => "text (put a number in quotes)".to_owned(),
        "a sequence" => "a list, such as [a, b]".to_owned(),
        "u8" => format!("a whole number up to {}", u8::MAX),
        "u16" => format!("a whole number up to {}", u16::MAX),
        "u32" => format!("a whole number up to {}", u32::MAX),
        "u64" | "usize" => "a whole number that is not negative".to_owned(),
        other => other.to_owned(),
    };
    match kind {
        Kind::Message(text) => text.clone(),
        Kind::InvalidType(actual, expected) => format!("expected {}, found {}", wanted(expected), found(actual)),
        Kind::InvalidValue(_, expected) => format!("expected {}", wanted(expected)),
        Kind::UnknownVariant(_, known) => format!("expected one of {}", known.join(", ")),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => "the number is too large".to_owned(),
        other => other.to_string(),
    }
}
