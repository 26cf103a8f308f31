//! Loads a configuration from its sources. Each overrides those before it.

use std::collections::HashMap;
use std::path::PathBuf;

use figment::value::{Empty, Tag, Value};
use figment::{Figment, Metadata};

use super::check;
use super::error::{ConfigError, Problem, describe};
use super::file;
use super::keys::{ENVIRONMENT, keys, lookup, unknown, variable};
use super::options::Config;
use super::section::Key;
use super::setting::{Setting, defaults, origin};
use super::yaml;

/// Collects the sources of a configuration, then loads it. Each source overrides those before it: file, environment,
/// flags, assignments.
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
    flags: Vec<(String, String)>,
    assignments: Vec<String>,
}

/// A valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Notes about settings that are valid, but may not be what the user wants.
    pub notes: Vec<Problem>,
    /// Every key with its value, in alphabetical order.
    pub resolved: Vec<Resolved>,
}

/// A key with its value and where that comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The full name of the key.
    pub key: String,
    /// The value as JSON, which is also YAML. Secrets are replaced by asterisks.
    pub value: String,
    /// Where it is set: a line of a file, an environment variable, a flag, `command line` or `default`.
    pub origin: String,
    /// Whether a running agent applies a new value when it reads its configuration again.
    pub reloadable: bool,
}

impl Loader {
    /// A loader without any source, which yields the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file. Its name ends in `.yml`, `.yaml` or `.toml`.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Adds environment variables. Only those that begin with `SOCKTRAIL_` are used.
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment = variables.into_iter().filter(|(name, _)| name.starts_with(ENVIRONMENT)).collect();
        self
    }

    /// Adds [flags](super::Flag): names without dashes, each with its value. Commas separate the values of a list.
    pub fn flags(mut self, flags: impl IntoIterator<Item = (String, String)>) -> Self {
        self.flags = flags.into_iter().collect();
        self
    }

    /// Adds assignments, such as `socket.dns.enabled=false`.
    pub fn set(mut self, assignments: impl IntoIterator<Item = String>) -> Self {
        self.assignments = assignments.into_iter().collect();
        self
    }

    /// Loads and checks the configuration.
    ///
    /// # Errors
    /// All problems that were found, not only the first.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let (keys, defaults) = (keys(), defaults());
        let (mut figment, mut problems, mut order) = (defaults.clone(), Vec::new(), HashMap::new());
        for (index, setting) in self.settings(&keys, &defaults).into_iter().enumerate() {
            let origin = match setting.and_then(|setting| check_setting(setting, &keys, &defaults, &figment)) {
                Ok(setting) => {
                    figment = figment.merge(&setting);
                    setting.metadata.name.into_owned()
                }
                Err(problem) => {
                    problems.push(problem.clone());
                    problem.origin
                }
            };
            order.entry(origin).or_insert(index);
        }
        // This does not fail, because settings of the wrong type were not merged.
        let config: Config = figment.extract().unwrap_or_default();
        let located = |(key, problem): (String, String)| Problem::with_key(origin(&figment, &key), &key, problem);
        let checked = check::check(&config);
        problems.extend(checked.problems.into_iter().map(located));
        if !problems.is_empty() {
            problems.sort_by_key(|problem| order.get(&problem.origin));
            return Err(ConfigError(problems));
        }
        let notes = checked.notes.into_iter().map(located).collect();
        Ok(Loaded { resolved: resolved(&config, &keys, &figment), config, notes })
    }

    /// The settings of all sources, in the order in which they are merged.
    fn settings(&self, keys: &[Key], defaults: &Figment) -> Vec<Result<Setting, Problem>> {
        let typed = |key: &str, text: &str, origin: String| Setting {
            key: key.to_owned(),
            value: typed(defaults, key, text),
            metadata: Metadata::named(origin),
        };
        let file = self.file.iter().flat_map(|path| match file::read(path) {
            Ok(settings) => settings.into_iter().map(Ok).collect(),
            Err(problem) => vec![Err(problem)],
        });
        let for_key = |key: Option<&Key>, text: &str, origin: String| match key {
            Some(key) => Ok(typed(&key.name, text, origin)),
            None => Err(Problem { origin, key: None, problem: "does not name a known key".to_owned() }),
        };
        let environment = self.environment.iter().map(|(name, text)| {
            let key = keys.iter().find(|key| variable(&key.name) == *name);
            for_key(key, text, format!("environment variable {name}"))
        });
        let flags = self.flags.iter().map(|(name, text)| {
            let key = keys.iter().find(|key| key.flag.is_some_and(|flag| flag.name == name));
            for_key(key, text, format!("--{name}"))
        });
        let assignments = self.assignments.iter().map(|assignment| {
            let origin = "command line".to_owned();
            match assignment.split_once('=') {
                Some((key, text)) => Ok(typed(key, text, origin)),
                None if keys.iter().any(|key| key.name == *assignment) => {
                    Err(Problem::with_key(origin, assignment, "expected KEY=VALUE"))
                }
                None => Err(Problem::with_key(origin, assignment, unknown(keys, assignment))),
            }
        });
        file.chain(environment).chain(flags).chain(assignments).collect()
    }
}

/// Returns the setting, if its key is known, its value has the right type, and the file does not set it twice.
fn check_setting(setting: Setting, keys: &[Key], defaults: &Figment, before: &Figment) -> Result<Setting, Problem> {
    let refused = |problem: String| Err(Problem::with_key(setting.metadata.name.clone(), &setting.key, problem));
    if !keys.iter().any(|key| key.name == setting.key) {
        return refused(unknown(keys, &setting.key));
    }
    let earlier = before.find_metadata(&setting.key).filter(|earlier| Setting::is_from_file(earlier));
    if let Some(earlier) = earlier.filter(|_| Setting::is_from_file(&setting.metadata)) {
        return refused(format!("is already set at {}", earlier.name));
    }
    match defaults.clone().merge(&setting).extract::<Config>() {
        Ok(_) => Ok(setting),
        Err(error) => refused(describe(&error.kind)),
    }
}

/// Parses a text as the type of its key's default; if there is no default, as YAML does. figment's own provider for the
/// environment looks only at the text: it would turn a password that consists of digits into a number.
fn typed(defaults: &Figment, key: &str, text: &str) -> Value {
    let plain = |text: &str| yaml::plain(text).unwrap_or(Value::Empty(Tag::Default, Empty::None));
    match defaults.find_value(key) {
        Ok(Value::String(..)) => text.into(),
        Ok(Value::Array(..)) => {
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(plain).collect::<Vec<_>>().into()
        }
        _ => plain(text),
    }
}

/// Every key with its value.
fn resolved(config: &Config, keys: &[Key], figment: &Figment) -> Vec<Resolved> {
    let json = serde_json::to_value(config).unwrap_or_default();
    let resolve = |key: &Key| Resolved {
        key: key.name.clone(),
        value: lookup(&json, &key.name).to_string(),
        origin: origin(figment, &key.name),
        reloadable: key.reloadable,
    };
    let mut resolved: Vec<_> = keys.iter().map(resolve).collect();
    resolved.sort_by(|one, other| one.key.cmp(&other.key));
    resolved
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
