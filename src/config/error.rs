//! What is wrong with a configuration.

use std::fmt;

use super::load::Origin;

/// Everything that is wrong with a configuration; at least one thing.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// Which key; none when the text as a whole cannot be read.
    pub key: Option<String>,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Problem {
    pub(super) fn of(origin: Origin, key: &str, problem: impl Into<String>) -> Self {
        Self { origin, key: Some(key.to_owned()), problem: problem.into() }
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

/// What a mistake of figment means. Values are never repeated: they may be secret.
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
        "a string" | "path string" => "text (a number goes in quotes)".to_owned(),
        "a sequence" => "a list, as in [a, b]".to_owned(),
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
