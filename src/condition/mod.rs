//! Conditions on socket events: `remote.port == 443 && process.name in ["curl", "wget"]`.
//!
//! | syntax | meaning |
//! |---|---|
//! | `a && b`, `a \|\| b`, `!a`, `(a)` | and, or, not; `!` binds most tightly, then `&&`, then `\|\|` |
//! | `field == value`, `!=`, `<`, `<=`, `>`, `>=` | compares numbers as numbers, addresses as addresses, and text byte by byte |
//! | `field in [value, …]` | equal to one of the values; an address may also be in one of the networks |
//! | `field like "glob"`, `field like ["glob", …]` | text matches a glob: `*` is any number of characters, `?` one, `[ab]` one of these, `{a,b}` either |
//! | `field`, `field == true`, `field != true`, `field == false`, … | a boolean field is true, or is false |
//!
//! Text is in double quotes, with the escapes `\"`, `\\`, `\n`, `\t`, `\xNN` and `\u{NNNN}`. Addresses and networks are in
//! quotes, too: `"10.0.0.0/8"`. A comparison with a field that the event does not have is false, even with `!=`. So
//! `!(field == value)` is true for an event without the field, but `field != value` is false.
//!
//! A condition is checked when it is parsed: an unknown field, a value of the wrong type, an invalid glob or network is a
//! [`ConditionError`] with its position. [`FIELDS`] lists the fields.

mod fields;
mod lexer;
mod parser;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::str::FromStr;

use globset::GlobSet;

use self::fields::Value;
pub use self::fields::{FIELDS, Field, ValueType};
use crate::model::filter::Network;
use crate::model::socket_event::SocketEvent;

/// A parsed and checked condition.
#[derive(Debug, Clone)]
pub struct Condition(Term);

/// The error for a text that is not a condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct ConditionError {
    /// The position in characters; the first is 1.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
}

/// A node of the syntax tree.
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

/// A comparison operator.
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
    /// Whether an event matches the condition.
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
            Self::Bool(field, wanted) => field.value_in(event) == Some(Value::Bool(*wanted)),
            Self::Number(field, operator, number) => {
                matches!(field.value_in(event), Some(Value::Number(value)) if operator.holds(&value, number))
            }
            Self::Text(field, operator, text) => {
                matches!(field.value_in(event), Some(Value::Text(value)) if operator.holds(&&*value, &text.as_str()))
            }
            Self::Address(field, operator, ip) => {
                matches!(field.value_in(event), Some(Value::Address(value)) if operator.holds(&value, ip))
            }
            Self::NumberIn(field, numbers) => {
                matches!(field.value_in(event), Some(Value::Number(value)) if numbers.contains(&value))
            }
            Self::TextIn(field, texts) => {
                matches!(field.value_in(event), Some(Value::Text(value)) if texts.iter().any(|text| *text == value))
            }
            Self::AddressIn(field, networks) => {
                matches!(field.value_in(event), Some(Value::Address(value)) if networks.iter().any(|one| one.contains(value)))
            }
            Self::Like(field, globs) => {
                matches!(field.value_in(event), Some(Value::Text(value)) if globs.is_match(&*value))
            }
        }
    }
}
