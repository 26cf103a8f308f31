//! The result of the layout test, for the table of `vm test`.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// A comparison of guesses and type information on one kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct LayoutFacts {
    /// Fields and arguments found by both.
    pub found: u64,
    /// Fields and arguments that differ.
    pub differ: Vec<String>,
    /// Functions that exist but are never called, because the compiler inlined them.
    pub inlined: Vec<String>,
    /// The time that guesses took, in seconds of the guest.
    pub guess_seconds: f64,
    /// The time that reading type information took, in seconds of the guest.
    pub btf_seconds: f64,
}

impl LayoutFacts {
    /// Reads the file that the test writes; `None` if the test did not run.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let context = || format!("parse {}", path.display());
        let text = std::fs::read_to_string(path).with_context(context)?;
        let value: Value = serde_json::from_str(&text).with_context(context)?;
        let seconds = |name: &str| value[name].as_f64().with_context(context);
        let names = |list: &str| {
            let names = value[list].as_array().with_context(context)?;
            anyhow::Ok(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
        };
        Ok(Some(Self {
            found: value["found"].as_u64().with_context(context)?,
            differ: names("differ")?,
            inlined: names("inlined")?,
            guess_seconds: seconds("guess_seconds")?,
            btf_seconds: seconds("btf_seconds")?,
        }))
    }

    /// Whether the two agree, or the keys that differ.
    pub fn verdict(&self) -> String {
        if self.differ.is_empty() { "yes".to_owned() } else { format!("NO: {}", self.differ.join(" ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_the_test_is_read() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("layout.json");
        assert_eq!(LayoutFacts::read(&path).unwrap(), None);
        let text = r#"{"found":2,"differ":["a.b","f(x)"],"inlined":["g"],"guess_seconds":1.5,"btf_seconds":0.25}"#;
        std::fs::write(&path, text).unwrap();
        let facts = LayoutFacts::read(&path).unwrap().unwrap();
        assert_eq!((facts.found, facts.guess_seconds, facts.btf_seconds), (2, 1.5, 0.25));
        assert_eq!(facts.inlined, ["g"]);
        assert_eq!(facts.verdict(), "NO: a.b f(x)");
        std::fs::write(&path, r#"{"found":2}"#).unwrap();
        assert!(LayoutFacts::read(&path).is_err());
    }
}
