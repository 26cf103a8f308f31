//! Conditions on socket events: `remote.port == 443 && process.name in ["curl", "wget"]`.
//!
//! | written | means |
//! |---|---|
//! | `a && b`, `a \|\| b`, `!a`, `(a)` | both, either, not; `!` binds closest, then `&&`, then `\|\|` |
//! | `field == value`, `!=`, `<`, `<=`, `>`, `>=` | compared as what the field is: numbers as numbers, text byte by byte |
//! | `field in [value, …]` | equal to one of them; of an address also: in one of the networks |
//! | `field like "glob"`, `field like ["glob", …]` | text matches: `*` is any characters, `?` one, `[ab]` one of these, `{a,b}` either |
//! | `field` | true, of a field that is true or false |
//!
//! Text stands in double quotes, in which `\"`, `\\`, `\n`, `\t`, `\xNN` and `\u{NNNN}` are escapes. Addresses and networks are
//! text: `"10.0.0.0/8"`. An event that does not have the field fulfils no comparison with it, neither `==` nor `!=`; `!`
//! of that is true.
//!
//! A condition is checked when it is parsed: an unknown field, a value of the wrong sort, a bad glob or network is an
//! [`ConditionError`] that says where. [`FIELDS`] lists the fields.

mod fields;
mod lexer;
mod parser;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::str::FromStr;

use globset::GlobSet;

use self::fields::Value;
pub use self::fields::{FIELDS, Field, Sort};
use super::SocketEvent;
use crate::filter::Network;

/// A condition that was checked.
#[derive(Debug, Clone)]
pub struct Condition(Term);

/// Why a text is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct ConditionError {
    /// Where, in characters; the first is 1.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
}

/// A part of a condition.
#[derive(Debug, Clone)]
enum Term {
    Any(Vec<Term>),
    All(Vec<Term>),
    Not(Box<Term>),
    Bool(&'static Field, bool),
    Number(&'static Field, Comparison, i64),
    Text(&'static Field, Comparison, String),
    Address(&'static Field, Comparison, IpAddr),
    NumberIn(&'static Field, Vec<i64>),
    TextIn(&'static Field, Vec<String>),
    AddressIn(&'static Field, Vec<Network>),
    Like(&'static Field, GlobSet),
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    fn holds<T: PartialOrd>(self, left: &T, right: &T) -> bool {
        match self {
            Self::Equal => left == right,
            Self::NotEqual => left != right,
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::Greater => left > right,
            Self::GreaterOrEqual => left >= right,
        }
    }
}

impl Condition {
    /// Whether an event fulfils it.
    pub fn matches(&self, event: &SocketEvent) -> bool {
        self.0.matches(event)
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        parser::parse(text).map(Self)
    }
}

impl Term {
    fn matches(&self, event: &SocketEvent) -> bool {
        match self {
            Self::Any(terms) => terms.iter().any(|term| term.matches(event)),
            Self::All(terms) => terms.iter().all(|term| term.matches(event)),
            Self::Not(term) => !term.matches(event),
            Self::Bool(field, wanted) => field.of(event) == Some(Value::Bool(*wanted)),
            Self::Number(field, how, number) => {
                matches!(field.of(event), Some(Value::Number(value)) if how.holds(&value, number))
            }
            Self::Text(field, how, text) => {
                matches!(field.of(event), Some(Value::Text(value)) if how.holds(&&*value, &text.as_str()))
            }
            Self::Address(field, how, ip) => {
                matches!(field.of(event), Some(Value::Address(value)) if how.holds(&value, ip))
            }
            Self::NumberIn(field, numbers) => {
                matches!(field.of(event), Some(Value::Number(value)) if numbers.contains(&value))
            }
            Self::TextIn(field, texts) => {
                matches!(field.of(event), Some(Value::Text(value)) if texts.iter().any(|text| *text == value))
            }
            Self::AddressIn(field, networks) => {
                matches!(field.of(event), Some(Value::Address(value)) if networks.iter().any(|one| one.contains(value)))
            }
            Self::Like(field, globs) => {
                matches!(field.of(event), Some(Value::Text(value)) if globs.is_match(&*value))
            }
        }
    }
}
