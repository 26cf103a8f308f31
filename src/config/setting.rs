//! Settings: keys with values, and where they are set. Each setting is one layer for [`figment`], which merges the layers
//! and knows which one a value comes from.

use std::path::Path;

use figment::providers::Serialized;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::options::Config;

/// One key with its value.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The full name, such as `socket.dns.enabled`.
    pub key: String,
    /// The value. It is never a section: each key of a section is a setting of its own.
    pub value: Value,
    /// Where it is set, for messages.
    pub metadata: Metadata,
}

impl Setting {
    /// A setting at a line of a file.
    pub fn at_line(path: &Path, FileSetting { key, value, line }: FileSetting) -> Self {
        Self { key, value, metadata: Metadata::from(format!("{}:{line}", path.display()), path) }
    }

    /// Whether a setting comes from a file.
    pub fn is_from_file(metadata: &Metadata) -> bool {
        matches!(metadata.source, Some(Source::File(_)))
    }
}

impl Provider for Setting {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(&self.key, self.value.clone());
        Ok(Profile::Default.collect(nested.into_dict().unwrap_or_default()))
    }
}

/// The defaults, as the bottom layer.
pub fn defaults() -> Figment {
    Figment::from(Serialized::defaults(Config::default()))
}

/// Where the value of a key comes from, for messages.
pub fn origin(figment: &Figment, key: &str) -> String {
    match figment.find_metadata(key) {
        Some(Metadata { source: Some(Source::Code(_)), .. }) | None => "default".to_owned(),
        Some(metadata) => metadata.name.to_string(),
    }
}

/// A key with its value, at a line of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSetting {
    /// The full name of the key.
    pub key: String,
    /// The value.
    pub value: Value,
    /// The line, from 1.
    pub line: usize,
}

/// A mistake at a line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}
