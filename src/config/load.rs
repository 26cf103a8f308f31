//! Laying one source of configuration over the other.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Empty, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::check;
use super::error::{ConfigError, Problem, describe};
use super::file;
use super::keys::{ENVIRONMENT, Keys, variable};
use super::options::Config;
use super::setting::insert;
use super::yaml;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// It is built in.
    Default,
    /// A file.
    File {
        /// Which.
        path: PathBuf,
        /// The line, from 1; 0 where the file as a whole is meant.
        line: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// The command line.
    CommandLine,
}

impl Origin {
    pub(super) fn file(path: &Path, line: usize) -> Self {
        Self::File { path: path.to_owned(), line }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0 } => path.display().fmt(f),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// Gathers the sources of a configuration, then loads it.
///
/// ```
/// # use socktrail::config::Loader;
/// let loaded = Loader::new().set(["socket.dns.enabled=false".to_owned()]).load()?;
/// assert!(!loaded.config.socket.dns.enabled);
/// # Ok::<(), socktrail::config::ConfigError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Loader {
    file: Option<PathBuf>,
    environment: Vec<(String, String)>,
    assignments: Vec<String>,
}

/// A configuration that makes sense.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is worth knowing though nothing is wrong.
    pub notes: Vec<Problem>,
    /// Every key with its value.
    pub resolved: Vec<Resolved>,
}

/// A key with its value and where that comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// With dots.
    pub key: String,
    /// As JSON, which is YAML too; secrets are not in it.
    pub value: String,
    /// Who said so.
    pub origin: Origin,
}

/// What one source sets.
struct Layer(BTreeMap<String, (Value, Origin)>);

impl Loader {
    /// With what is built in.
    pub fn new() -> Self {
        Self::default()
    }

    /// Over that, a YAML or TOML file; its name says which.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Over that, variables of the environment: those that begin with `SOCKTRAIL_`.
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment = variables.into_iter().filter(|(name, _)| name.starts_with(ENVIRONMENT)).collect();
        self
    }

    /// Over that, assignments as in `socket.dns.enabled=false`.
    pub fn set(mut self, assignments: impl IntoIterator<Item = String>) -> Self {
        self.assignments = assignments.into_iter().collect();
        self
    }

    /// Puts it all together.
    ///
    /// # Errors
    /// Whatever is wrong, all of it.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let keys = Keys::all();
        let mut problems = Vec::new();
        let layers = [
            self.of_file(&keys, &mut problems),
            self.of_environment(&keys, &mut problems),
            self.of_assignments(&keys, &mut problems),
        ];
        let figment = layers.iter().fold(Figment::from(built_in()), |figment, layer| figment.merge(layer));
        let origins: BTreeMap<_, _> =
            layers.iter().flat_map(|layer| &layer.0).map(|(key, (_, origin))| (&**key, origin)).collect();
        let origin = |key: &str| origins.get(key).map_or(Origin::Default, |origin| (*origin).clone());

        let config = extract(figment, &keys, origin, &mut problems);
        let checked = check::check(&config);
        problems.extend(checked.problems.into_iter().map(|(key, problem)| Problem::of(origin(&key), &key, problem)));
        if !problems.is_empty() {
            problems.sort_by(|one, other| one.origin.cmp(&other.origin));
            return Err(ConfigError(problems));
        }
        let notes = checked.notes.into_iter().map(|(key, note)| Problem::of(origin(&key), &key, note)).collect();
        Ok(Loaded { resolved: resolved(&config, &keys, origin), config, notes })
    }

    fn of_file(&self, keys: &Keys, problems: &mut Vec<Problem>) -> Layer {
        let mut layer = Layer(BTreeMap::new());
        let Some(path) = &self.file else { return layer };
        let settings = file::read(path).unwrap_or_else(|problem| {
            problems.push(problem);
            Vec::new()
        });
        for setting in settings {
            let origin = Origin::file(path, setting.line);
            if keys.default(&setting.key).is_none() {
                problems.push(Problem::of(origin, &setting.key, keys.unknown(&setting.key)));
            } else if let Some((_, before)) = layer.0.get(&setting.key) {
                problems.push(Problem::of(origin, &setting.key, format!("is set twice, at {before} too")));
            } else {
                layer.0.insert(setting.key, (setting.value, origin));
            }
        }
        layer
    }

    fn of_environment(&self, keys: &Keys, problems: &mut Vec<Problem>) -> Layer {
        let mut layer = Layer(BTreeMap::new());
        for (name, text) in &self.environment {
            let origin = Origin::Environment(name.clone());
            match keys.iter().find(|key| variable(key) == *name) {
                Some(key) => drop(layer.0.insert(key.to_owned(), (typed(keys, key, text), origin))),
                None => problems.push(Problem { origin, key: None, problem: "sets no key that is known".to_owned() }),
            }
        }
        layer
    }

    fn of_assignments(&self, keys: &Keys, problems: &mut Vec<Problem>) -> Layer {
        let mut layer = Layer(BTreeMap::new());
        for assignment in &self.assignments {
            let (key, text) = assignment.split_once('=').unwrap_or((assignment, ""));
            if keys.default(key).is_none() {
                problems.push(Problem::of(Origin::CommandLine, key, keys.unknown(key)));
            } else if !assignment.contains('=') {
                problems.push(Problem::of(Origin::CommandLine, key, "expected KEY=VALUE"));
            } else {
                layer.0.insert(key.to_owned(), (typed(keys, key, text), Origin::CommandLine));
            }
        }
        layer
    }
}

/// A value that came as text, of the type that its key's built-in value has.
fn typed(keys: &Keys, key: &str, text: &str) -> Value {
    let plain = |text: &str| yaml::plain(text).unwrap_or(Value::Empty(Tag::Default, Empty::None));
    match keys.default(key) {
        Some(Value::String(..)) => text.into(),
        Some(Value::Array(..)) => {
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(plain).collect::<Vec<_>>().into()
        }
        _ => plain(text),
    }
}

fn built_in() -> impl Provider {
    figment::providers::Serialized::defaults(Config::default())
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::default()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut dict = Dict::new();
        for (key, (value, _)) in &self.0 {
            insert(&mut dict, key, value.clone());
        }
        Ok(Profile::Default.collect(dict))
    }
}

/// The configuration; where a value is wrong, the built-in one takes its place and the problem is noted.
fn extract(mut figment: Figment, keys: &Keys, origin: impl Fn(&str) -> Origin, problems: &mut Vec<Problem>) -> Config {
    for _ in keys.iter() {
        let error = match figment.extract::<Config>() {
            Ok(config) => return config,
            Err(error) => error,
        };
        let Some(key) = keys.holding(&error.path.join(".")) else {
            problems.push(Problem { origin: Origin::Default, key: None, problem: describe(&error.kind) });
            return Config::default();
        };
        problems.push(Problem::of(origin(key), key, describe(&error.kind)));
        let mut instead = Layer(BTreeMap::new());
        let default = keys.default(key).cloned();
        instead.0.extend(default.map(|value| (key.to_owned(), (value, Origin::Default))));
        figment = figment.merge(&instead);
    }
    Config::default()
}

/// Every key with its value.
pub(super) fn resolved(config: &Config, keys: &Keys, origin: impl Fn(&str) -> Origin) -> Vec<Resolved> {
    let json = serde_json::to_value(config).unwrap_or_default();
    let resolve = |key: &str| {
        let value = key.split('.').fold(&json, |value, part| &value[part]).to_string();
        Resolved { key: key.to_owned(), value, origin: origin(key) }
    };
    keys.iter().map(resolve).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
