//! Durations in configuration files and on the command line.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration greater than zero, written with a unit: `30s`, `500ms`, `1m 30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(Duration);

/// The error for a text that is not a [`Time`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TimeError(String);

impl From<Duration> for Time {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<Time> for Duration {
    fn from(time: Time) -> Self {
        time.0
    }
}

impl FromStr for Time {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        match humantime::parse_duration(text) {
            Ok(Duration::ZERO) => Err(TimeError("must be greater than zero".to_owned())),
            Ok(duration) => Ok(Self(duration)),
            Err(_) if text.parse::<f64>().is_ok() => {
                Err(TimeError(format!("a time needs a unit: {text}s, {text}ms, {text}min")))
            }
            Err(error) => Err(TimeError(format!("{text:?} is not a time ({error}): write one as in 30s, 500ms or 1m"))),
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text("a time with a unit, as in 30s", PhantomData))
    }
}

/// Hands text, and numbers as text, to [`FromStr`].
pub(crate) struct Text<T>(pub(crate) &'static str, pub(crate) PhantomData<T>);

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_are_greater_than_zero() {
        assert_eq!("90s".parse(), Ok(Time(Duration::from_secs(90))));
        assert_eq!("1m 30s".parse(), Ok(Time(Duration::from_secs(90))));
        assert_eq!("1m".parse(), Ok(Time(Duration::from_secs(60))));
        let problem = |text: &str| text.parse::<Time>().unwrap_err().to_string();
        assert_eq!(problem("30"), "a time needs a unit: 30s, 30ms, 30min");
        assert!(problem("0s").contains("greater than zero"));
        assert!(problem("soon").contains("soon"));
        assert!("-1s".parse::<Time>().is_err());
    }

    #[test]
    fn displayed_times_can_be_parsed() {
        for text in ["30s", "1m 30s", "100ms", "2h", "1day"] {
            let time: Time = text.parse().unwrap();
            assert_eq!(time.to_string().parse(), Ok(time), "{text}");
        }
    }
}
