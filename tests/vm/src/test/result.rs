//! The results of the tests in one guest.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::boots::Boot;
use crate::layout_facts::LayoutFacts;

/// The result of one guest.
pub(super) struct GuestResult {
    pub(super) boot: Boot,
    pub(super) verdict: Verdict,
    pub(super) duration: Duration,
}

/// How the tests of a guest ended.
#[derive(Debug)]
pub(super) enum Verdict {
    /// All of them ran.
    Completed(Completed),
    /// The guest could not be booted, or failed; the reason.
    Broken(String),
    /// This machine cannot boot the guest; the reason.
    NotRun(String),
}

/// The results of tests that all ran.
#[derive(Debug)]
pub(super) struct Completed {
    pub(super) counts: Counts,
    /// Names of the failed tests, without those that panicked.
    pub(super) failures: Vec<String>,
    /// The failed tests that passed when they ran once more, without concurrent guests.
    pub(super) passed_alone: Vec<String>,
    pub(super) layout: Option<LayoutFacts>,
}

impl Completed {
    /// The counts, with [`passed_alone`](Self::passed_alone) among the passed tests.
    fn counts(&self) -> Counts {
        let passed_alone = u64::try_from(self.passed_alone.len()).unwrap_or(0);
        let Counts { passed, failed, .. } = self.counts;
        let failed = failed.saturating_sub(passed_alone);
        Counts { passed: passed + passed_alone, failed, ..self.counts }
    }
}

impl Verdict {
    pub(super) fn is_success(&self) -> bool {
        match self {
            Self::Completed(completed) => completed.counts().failed == 0,
            Self::Broken(_) => false,
            Self::NotRun(_) => true,
        }
    }

    /// The counts of tests. A guest that failed counts as one failed test.
    pub(super) fn counts(&self) -> Counts {
        match self {
            Self::Completed(completed) => completed.counts(),
            Self::Broken(_) => Counts { failed: 1, ..Counts::default() },
            Self::NotRun(_) => Counts::default(),
        }
    }

    pub(super) fn layout(&self) -> Option<&LayoutFacts> {
        match self {
            Self::Completed(completed) => completed.layout.as_ref(),
            Self::Broken(_) | Self::NotRun(_) => None,
        }
    }
}

/// The number of tests by result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) ignored: u64,
    pub(super) filtered: u64,
}

impl Counts {
    pub(super) fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
            filtered: self.filtered + other.filtered,
        }
    }
}

/// Reads [`RESULT_FILE`](socktrail_vm::RESULT_FILE).
pub(super) fn read_results(path: &Path) -> Result<Completed> {
    let text = fs::read_to_string(path).context("the tests left no result: did they panic?")?;
    let value: Value = serde_json::from_str(&text).context("parse the tests' result")?;
    let count = |name: &str| value[name].as_u64().with_context(|| format!("the tests' result has no `{name}`"));
    let names = value["failures"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(Completed {
        counts: Counts {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
            filtered: count("filtered")?,
        },
        failures: names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        passed_alone: Vec::new(),
        layout: None,
    })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn counts_are_read() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("result.json");
        fs::write(&path, r#"{"passed":3,"failed":1,"ignored":0,"filtered":2,"failures":["a::b"]}"#).unwrap();
        let counts = Counts { passed: 3, failed: 1, ignored: 0, filtered: 2 };
        let results = read_results(&path).unwrap();
        assert_eq!((results.counts, results.failures), (counts, vec!["a::b".to_owned()]));
        fs::write(&path, r#"{"passed":3}"#).unwrap();
        assert!(read_results(&path).is_err());
    }
}
