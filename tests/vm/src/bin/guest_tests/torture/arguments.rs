//! The arguments of a workload: `key=value`.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};

/// The arguments of one workload, by key.
#[derive(Debug, Clone, Default)]
pub(super) struct Arguments(HashMap<String, String>);

impl Arguments {
    /// Parses a command line. Arguments without `=` are ignored.
    pub(super) fn of(command_line: &[String]) -> Self {
        let pair = |argument: &String| argument.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self(command_line.iter().filter_map(pair).collect())
    }

    /// The value of a key, if there is one.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The value of a key, or a default.
    pub(super) fn or<T: FromStr>(&self, key: &str, default: T) -> Result<T>
    where
        T::Err: Display,
    {
        self.text(key).map_or(Ok(default), |text| parse(key, text))
    }

    /// The value of a key that must be given.
    pub(super) fn get<T: FromStr>(&self, key: &str) -> Result<T>
    where
        T::Err: Display,
    {
        parse(key, self.text(key).with_context(|| format!("`{key}` is missing"))?)
    }
}

fn parse<T: FromStr>(key: &str, text: &str) -> Result<T>
where
    T::Err: Display,
{
    text.parse().map_err(|error| anyhow!("{key}={text}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_have_values() {
        let arguments = Arguments::of(&["act".into(), "up=7".into(), "to=[::1]:9".into()]);
        assert_eq!(arguments.or("up", 1).unwrap(), 7);
        assert_eq!(arguments.or("down", 1).unwrap(), 1);
        assert_eq!(arguments.text("to"), Some("[::1]:9"));
        assert!(arguments.get::<u8>("to").is_err() && arguments.get::<u8>("from").is_err());
    }
}
