//! Sensor files: YAML in the form of sysinspect's `net.socket`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_saphyr::{DefaultMessageFormatter, MessageFormatter};

use super::pattern::{Pattern, Patterns};
use crate::model::units::Time;

/// The only listener that sensors can name.
pub const LISTENER: &str = "net.socket";

/// The maximum size of a file in bytes.
const MAX_FILE_LEN: u64 = 1 << 20;
/// The maximum number of sensors.
const MAX_SENSORS: usize = 64;
/// The maximum length of an id or a tag in bytes.
const MAX_NAME_LEN: usize = 128;
/// The default of `dns-ttl`.
const DNS_TTL: Duration = Duration::from_secs(60);

/// An error in a sensor file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The file is invalid.
    #[error("{}{}: {problem}", file.display(), problem.line.map_or_else(String::new, |line| format!(":{line}")))]
    Bad {
        /// The file.
        file: PathBuf,
        /// The problem and its line.
        problem: Problem,
    },
}

/// A problem in the text of a sensor file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1, if it is known.
    pub line: Option<u64>,
    /// The key, such as `sockets.args.patterns[1]`; empty if there is none.
    pub key: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Problem {
    /// Writes the problem without the line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.key {
            "" => f.write_str(&self.message),
            key => write!(f, "{key}: {}", self.message),
        }
    }
}

/// A sensor: which sockets to follow, and what to report.
#[derive(Debug, Clone)]
pub struct Sensor {
    /// Its name in the file, and the first part of the ids of its events.
    pub id: String,
    /// The profiles that it belongs to; empty for all.
    pub profiles: Vec<String>,
    /// Whether to report sockets that open.
    pub opened: bool,
    /// Whether to report sockets that close.
    pub closed: bool,
    /// The sockets to follow; `None` for all.
    pub patterns: Option<Patterns>,
    /// Sockets to ignore, even if one of `patterns` matches.
    pub ignore: Patterns,
    /// How to look up names of remote hosts; `None`: not at all.
    pub dns: Option<Dns>,
    /// Whether an event is reported only once until it is unlocked.
    pub locked: bool,
    /// The tag after the listener in event ids.
    pub tag: Option<String>,
}

/// How to look up names of remote hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dns {
    /// How long an answer is used.
    pub ttl: Duration,
    /// Whether to skip addresses whose names no outside server can know.
    pub skip_non_routable: bool,
}

impl Sensor {
    /// Whether it belongs to one of these profiles. A sensor without profiles belongs to all. If `profiles` is empty, every
    /// sensor does.
    pub fn belongs_to(&self, profiles: &[String]) -> bool {
        let wanted = |own: &String| profiles.iter().any(|profile| profile.eq_ignore_ascii_case(own));
        profiles.is_empty() || self.profiles.is_empty() || self.profiles.iter().any(wanted)
    }
}

/// Reads a sensor file.
///
/// # Errors
/// It cannot be read, is larger than 1 MiB, or is invalid: see [`parse`].
pub fn read(path: &Path) -> Result<Vec<Sensor>, FileError> {
    let io = |source| FileError::Io { file: path.to_owned(), source };
    let bad = |problem| FileError::Bad { file: path.to_owned(), problem };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_FILE_LEN + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_LEN {
        return Err(bad(Problem::without_key(format!("the file is larger than {MAX_FILE_LEN} bytes"))));
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        bad(Problem { line: Some(line as u64), key: String::new(), message: "the file is not UTF-8".to_owned() })
    })?;
    parse(text).map_err(bad)
}

/// Reads several sensor files as if they were one.
///
/// # Errors
/// A file cannot be read or is invalid ([`read`]), two files define a sensor with the same id, or all together define more than
/// 64 sensors.
pub fn read_all(files: &[PathBuf]) -> Result<Vec<Sensor>, FileError> {
    let mut all: Vec<Sensor> = Vec::new();
    for (at, file) in files.iter().enumerate() {
        let bad = |problem| FileError::Bad { file: file.clone(), problem };
        let sensors = read(file)?;
        if let Some(twice) = sensors.iter().find(|sensor| all.iter().any(|other| other.id == sensor.id)) {
            let message = "another file defines a sensor with this id, too".to_owned();
            return Err(bad(Problem { line: None, key: twice.id.clone(), message }));
        }
        all.extend(sensors);
        if all.len() > MAX_SENSORS {
            let message = format!(
                "{} sensors, with those of the {at} files before, are more than the maximum of {MAX_SENSORS}",
                all.len()
            );
            return Err(bad(Problem::without_key(message)));
        }
    }
    Ok(all)
}

/// Parses the text of a sensor file. Returns the sensors in the order of their ids.
///
/// # Errors
/// Invalid YAML, an unknown or repeated key, a value of the wrong type, an invalid glob, no sensor, or more than 64.
pub fn parse(text: &str) -> Result<Vec<Sensor>, Problem> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true, no_schema: true };
    let mut key = String::new();
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        serde_path_to_error::deserialize::<_, BTreeMap<Name, RawSensor>>(deserializer).map_err(|error| {
            key = error.path().to_string();
            error.into_inner()
        })
    });
    let sensors = parsed.map_err(|error| Problem {
        line: error.location().map(|location| location.line()).filter(|line| *line > 0),
        // serde_path_to_error writes `.` for the top of the document, and `?` for a key that could not be read.
        key: key.trim_end_matches(['.', '?']).to_owned(),
        message: message(&error),
    })?;
    match sensors.len() {
        0 => Err(Problem::without_key(
            "no sensor is defined: expected the id of a sensor, with its keys below it".to_owned(),
        )),
        1..=MAX_SENSORS => sensors.into_iter().map(|(id, raw)| raw.sensor(id.0)).collect(),
        many => Err(Problem::without_key(format!("{many} sensors are more than the maximum of {MAX_SENSORS}"))),
    }
}

/// The message for an error in the YAML. Replaces messages of the crate that are meant for programmers.
fn message(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error as E;
    match error {
        E::Unexpected { expected: "sequence start", .. } => "expected a list, such as [a, b]".to_owned(),
        E::Unexpected { expected: "mapping start", .. } => "expected keys with values".to_owned(),
        E::DuplicateMappingKey { key: Some(key), .. } => format!("the key {key} is already set"),
        E::MultipleDocuments { .. } => "a second YAML document begins: put all sensors in one".to_owned(),
        other => DefaultMessageFormatter.format_message(other).into_owned(),
    }
}

impl Problem {
    fn without_key(message: String) -> Self {
        Self { line: None, key: String::new(), message }
    }
}

/// A sensor as in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSensor {
    profile: Option<Vec<String>>,
    /// For people.
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "listener")]
    _listener: Listener,
    opts: Option<Vec<Opt>>,
    args: Option<RawArgs>,
    tag: Option<Name>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawArgs {
    patterns: Option<Vec<Pattern>>,
    ignore: Option<Vec<Pattern>>,
    dns: Option<Switch>,
    dns_ttl: Option<Time>,
    #[serde(alias = "skip_reverse_dns")]
    skip_reverse_dns: Option<Switch>,
    locked: Option<Switch>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Opt {
    Opened,
    Closed,
}

impl RawSensor {
    fn sensor(self, id: String) -> Result<Sensor, Problem> {
        let args = self.args.unwrap_or_default();
        let is_on = |switch: Option<Switch>| switch.is_some_and(|Switch(on)| on);
        let set = |key: &str, patterns: Vec<Pattern>| {
            Patterns::new(&patterns).map_err(|error| {
                let key = format!("{id}.args.{key}");
                Problem { line: None, key, message: error.to_string() }
            })
        };
        let wants = |opt| self.opts.as_ref().is_none_or(|opts| opts.is_empty() || opts.contains(&opt));
        let dns =
            Dns { ttl: args.dns_ttl.map_or(DNS_TTL, Duration::from), skip_non_routable: is_on(args.skip_reverse_dns) };
        Ok(Sensor {
            profiles: self.profile.unwrap_or_default(),
            opened: wants(Opt::Opened),
            closed: wants(Opt::Closed),
            patterns: args.patterns.filter(|list| !list.is_empty()).map(|list| set("patterns", list)).transpose()?,
            ignore: set("ignore", args.ignore.unwrap_or_default())?,
            dns: is_on(args.dns).then_some(dns),
            locked: is_on(args.locked),
            tag: self.tag.map(|Name(tag)| tag),
            id,
        })
    }
}

/// Implements `Deserialize` for a type: `$expected` says in errors what is expected, `$visit` accepts values.
macro_rules! value {
    ($type:ident, $expected:literal, $($visit:item)+) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Value;
                impl Visitor<'_> for Value {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    $($visit)+
                }
                deserializer.deserialize_any(Value)
            }
        }
    };
}

/// The name of a known listener.
struct Listener;

value! { Listener, "the name of a listener",
    fn visit_str<E: Error>(self, text: &str) -> Result<Listener, E> {
        match text {
            LISTENER => Ok(Listener),
            other => Err(E::custom(format_args!("unknown listener {other:?}, expected {LISTENER}"))),
        }
    }
}

/// A part of event ids: an id or a tag.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name(String);

value! { Name, "a name in quotes",
    fn visit_str<E: Error>(self, text: &str) -> Result<Name, E> {
        if text.is_empty() || text.len() > MAX_NAME_LEN || text.contains('|') || text.contains(char::is_control) {
            let expected = format_args!("1 to {MAX_NAME_LEN} bytes without | and control characters");
            return Err(E::custom(format_args!("{text:?} cannot be part of an event id: {expected}")));
        }
        Ok(Name(text.to_owned()))
    }
}

/// `true` or `false`, not in quotes.
struct Switch(bool);

value! { Switch, "true or false",
    fn visit_bool<E: Error>(self, on: bool) -> Result<Switch, E> {
        Ok(Switch(on))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../tests/data/net-socket.yaml");

    fn one(text: &str) -> Sensor {
        let mut sensors = parse(text).unwrap();
        assert_eq!(sensors.len(), 1);
        sensors.remove(0)
    }

    #[test]
    fn the_sample_is_parsed() {
        let sensor = one(SAMPLE);
        assert_eq!((&*sensor.id, sensor.tag.as_deref()), ("sockets", Some("net-sockets")));
        assert!(sensor.opened && sensor.closed && !sensor.locked);
        assert_eq!(sensor.dns, Some(Dns { ttl: Duration::from_secs(60), skip_non_routable: true }));
        let patterns = sensor.patterns.unwrap();
        assert!(patterns.match_tuple("tcp 10.0.0.1:1 192.0.2.1:2 - ESTABLISHED"));
        assert!(!patterns.match_tuple("tcp 10.0.0.1:1 192.0.2.1:2 - LISTEN"));
        assert!(sensor.ignore.match_tuple("udp 10.0.0.1:1 192.0.2.1:2 - -"));
    }

    #[test]
    fn defaults_are_as_documented() {
        for text in [
            "a:\n  listener: net.socket\n",
            "a:\n  listener: net.socket\n  opts: []\n  args:\n    patterns: []\n",
            "a:\n  listener: net.socket\n  opts:\n  args:\n  tag:\n  profile:\n  description:\n",
            "a:\n  listener: net.socket\n  args:\n    patterns:\n    ignore:\n    dns:\n    dns-ttl:\n    locked:\n",
        ] {
            let sensor = one(text);
            assert!(sensor.opened && sensor.closed, "both events: {text}");
            assert!(sensor.patterns.is_none() && !sensor.ignore.match_tuple("x"), "all sockets: {text}");
            assert!(sensor.dns.is_none() && !sensor.locked && sensor.tag.is_none(), "{text}");
        }
        let with_dns = one("a:\n  listener: net.socket\n  args:\n    dns: true\n");
        assert_eq!(with_dns.dns, Some(Dns { ttl: Duration::from_secs(60), skip_non_routable: false }));
    }

    #[test]
    fn both_spellings_mean_the_same() {
        for key in ["skip-reverse-dns", "skip_reverse_dns"] {
            let text = format!("a:\n  listener: net.socket\n  args: {{ dns: true, dns-ttl: 5min, {key}: true }}\n");
            let dns = Dns { ttl: Duration::from_secs(300), skip_non_routable: true };
            assert_eq!(one(&text).dns, Some(dns), "{key}");
        }
    }

    #[test]
    fn one_event_or_both() {
        for (opts, opened, closed) in [("opened", true, false), ("closed", false, true), ("closed, opened", true, true)]
        {
            let sensor = one(&format!("a:\n  listener: net.socket\n  opts: [{opts}]\n"));
            assert_eq!((sensor.opened, sensor.closed), (opened, closed), "{opts}");
        }
    }

    #[test]
    fn profiles_choose_sensors() {
        let own = |profile: &str| one(&format!("a:\n  listener: net.socket\n  profile: [{profile}]\n"));
        let wanted = |profiles: &[&str]| profiles.iter().map(|profile| (*profile).to_owned()).collect::<Vec<_>>();
        assert!(own("web, db").belongs_to(&wanted(&["DB"])));
        assert!(!own("web").belongs_to(&wanted(&["db"])));
        assert!(own("web").belongs_to(&[]) && own("").belongs_to(&wanted(&["db"])), "no profiles on one side");
    }

    #[test]
    fn several_files_count_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, ids: std::ops::Range<usize>| {
            let text: String = ids.map(|number| format!("s{number}: {{ listener: net.socket }}\n")).collect();
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (one, other) = (file("one.yaml", 0..40), file("other.yaml", 40..64));
        assert_eq!(read_all(&[one.clone(), other.clone()]).unwrap().len(), MAX_SENSORS);
        let error = |files: &[PathBuf]| read_all(files).unwrap_err().to_string();
        let twice = error(&[one.clone(), file("twice.yaml", 39..41)]);
        assert!(twice.ends_with("twice.yaml: s39: another file defines a sensor with this id, too"), "{twice}");
        let many = error(&[one, other, file("many.yaml", 64..65)]);
        assert!(
            many.ends_with("many.yaml: 65 sensors, with those of the 2 files before, are more than the maximum of 64"),
            "{many}"
        );
        assert!(error(&["/no/such.yaml".into()]).contains("/no/such.yaml"));
    }

    #[test]
    fn several_sensors_in_one_file() {
        let sensors = parse("b:\n  listener: net.socket\na:\n  listener: net.socket\n").unwrap();
        assert_eq!(sensors.iter().map(|sensor| &*sensor.id).collect::<Vec<_>>(), ["a", "b"]);
        let many =
            |count| (0..count).map(|number| format!("s{number}: {{ listener: net.socket }}\n")).collect::<String>();
        assert_eq!(parse(&many(MAX_SENSORS)).unwrap().len(), MAX_SENSORS);
        assert_eq!(parse(&many(MAX_SENSORS + 1)).unwrap_err().message, "65 sensors are more than the maximum of 64");
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in "(a:|listener:|net.socket|args:|patterns:|\\PC|[ \\n\\[\\]{}&*!|>\"'-]){0,40}") {
            let _ = parse(&text);
        }
    }
}
