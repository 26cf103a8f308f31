//! Reads fields of documents and compares them with expected values.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The expected value at each JSON pointer, such as `/event/start`. `null` means that there must be no such field.
pub(crate) type ExpectedFields = Vec<(&'static str, Value)>;

/// Compares a document with the expected fields. The error lists every difference.
pub(crate) fn expect(document: &Value, expected: &ExpectedFields) -> Result<()> {
    let nothing = Value::Null;
    let differences: Vec<_> = expected
        .iter()
        .filter_map(|(path, value)| {
            let found = document.pointer(path).unwrap_or(&nothing);
            (found != value).then(|| format!("{path} is {found}, not {value}"))
        })
        .collect();
    if !differences.is_empty() {
        bail!("{}\nin {document:#}", differences.join("\n"));
    }
    Ok(())
}

/// The number at a JSON pointer.
pub(crate) fn number(document: &Value, path: &str) -> Result<u64> {
    at(document, path)?.as_u64().with_context(|| format!("{path} is not a number in {document:#}"))
}

/// The time at a JSON pointer.
pub(crate) fn time(document: &Value, path: &str) -> Result<SystemTime> {
    let text = at(document, path)?.as_str().with_context(|| format!("{path} is not a string in {document:#}"))?;
    humantime::parse_rfc3339(text).with_context(|| format!("{path} is not a time: {text}"))
}

/// The address of `source`, `destination`, `client` or `server`.
pub(crate) fn endpoint(document: &Value, name: &str) -> Option<SocketAddr> {
    let ip = document.pointer(&format!("/{name}/ip"))?.as_str()?.parse().ok()?;
    let port = document.pointer(&format!("/{name}/port"))?.as_u64()?;
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}

/// Whether a document is about a flow between these addresses, in either order.
pub(crate) fn is_between(document: &Value, one: SocketAddr, other: SocketAddr) -> bool {
    let ends = (endpoint(document, "source"), endpoint(document, "destination"));
    ends == (Some(one), Some(other)) || ends == (Some(other), Some(one))
}

/// Fails unless the flow starts and ends between `earliest` and `latest`, and `event.duration` is the difference.
pub(crate) fn expect_times(document: &Value, earliest: SystemTime, latest: SystemTime) -> Result<()> {
    let (start, end) = (time(document, "/event/start")?, time(document, "/event/end")?);
    let [lower, upper] = [earliest, latest].map(humantime::format_rfc3339_nanos);
    ensure!(
        earliest <= start && start <= end && end <= latest,
        "event.start and event.end are not between {lower} and {upper} in {document:#}"
    );
    let duration = Duration::from_nanos(number(document, "/event/duration")?);
    let difference = end.duration_since(start)?;
    ensure!(
        difference == duration,
        "event.duration is {duration:?}, but end - start is {difference:?} in {document:#}"
    );
    Ok(())
}

fn at<'a>(document: &'a Value, path: &str) -> Result<&'a Value> {
    document.pointer(path).with_context(|| format!("no {path} in {document:#}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document() -> Value {
        json!({
            "event": {"start": "2025-01-01T00:00:01.000000001Z", "end": "2025-01-01T00:00:02Z", "duration": 999_999_999},
            "source": {"ip": "::1", "port": 9},
            "destination": {"ip": "::1", "port": 80},
        })
    }

    #[test]
    fn the_error_lists_differences() {
        expect(&document(), &vec![("/source/port", json!(9)), ("/error", Value::Null)]).unwrap();
        let error = expect(&document(), &vec![("/source/port", json!(7)), ("/event", Value::Null)]).unwrap_err();
        assert!(error.to_string().starts_with("/source/port is 9, not 7\n/event is {"), "{error}");
    }

    #[test]
    fn addresses_match_in_either_order() {
        let (one, other) = ("[::1]:80".parse().unwrap(), "[::1]:9".parse().unwrap());
        assert!(is_between(&document(), one, other) && is_between(&document(), other, one));
        assert!(!is_between(&document(), one, one));
    }

    #[test]
    fn start_and_end_are_within_the_limits_and_match_the_duration() {
        let reading = |text| humantime::parse_rfc3339(text).unwrap();
        let (before, within) = (reading("2025-01-01T00:00:01Z"), reading("2025-01-01T00:00:01.5Z"));
        let after = reading("2025-01-01T00:00:02Z");
        expect_times(&document(), before, after).unwrap();
        expect_times(&document(), within, after).unwrap_err();
        expect_times(&document(), before, within).unwrap_err();
        let mut wrong_duration = document();
        wrong_duration["event"]["duration"] = json!(1);
        expect_times(&wrong_duration, before, after).unwrap_err();
    }
}
