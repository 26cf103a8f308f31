//! From functions to tests.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use libtest_mimic::{Failed, Trial};

use crate::known;

/// Defines a module's `tests()`: one test for each function named, called `module::function`. Those behind `long:` run when
/// they are asked for (`--long`). With a name in front it defines that, for a `tests()` that chooses.
macro_rules! tests {
    ($all:ident: $($function:ident),* $(,)?) => {
        fn $all() -> Vec<libtest_mimic::Trial> {
            vec![$(crate::harness::trial(module_path!(), stringify!($function), $function),)*]
        }
    };
    ($($function:ident),* $(,)? $(; long: $($long:ident),*)?) => {
        /// The tests of this subject.
        pub(crate) fn tests() -> Vec<libtest_mimic::Trial> {
            let trial = |name, test| crate::harness::trial(module_path!(), name, test);
            vec![
                $(trial(stringify!($function), $function),)*
                $($(trial(stringify!($long), $long).with_ignored_flag(true),)*)?
            ]
        }
    };
}

/// A test of one function.
pub(crate) fn trial(module: &str, function: &str, test: fn() -> Result<()>) -> Trial {
    let subject = module.split_once("::").map_or(module, |(_, inner)| inner);
    named(format!("{subject}::{function}"), test)
}

/// A test under its full name; its error is shown with all of its causes. One that is [known] to fail must fail.
pub(crate) fn named(name: String, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let known = known::find(&name);
    let own_name = name.clone();
    let run = move || {
        let start = Instant::now();
        let result = test();
        TOOK.lock().unwrap_or_else(PoisonError::into_inner).push((own_name.clone(), start.elapsed()));
        let judged = match known {
            Some(known) => known::judge(known, result),
            None => result,
        };
        if judged.is_err() {
            FAILED.lock().unwrap_or_else(PoisonError::into_inner).push(own_name);
        }
        judged
    };
    let kind = if known.is_some() { "known to be wrong" } else { "" };
    Trial::test(name, move || run().map_err(|error| Failed::from(format!("{error:?}")))).with_kind(kind)
}

/// The tests that have failed.
static FAILED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Names of the failed tests; a test that panicked has none.
pub(crate) fn failed() -> Vec<String> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// How long each test took.
static TOOK: Mutex<Vec<(String, Duration)>> = Mutex::new(Vec::new());

/// The tests that took longest, for who wants the run to be shorter.
pub(crate) fn slowest() -> String {
    let mut took = TOOK.lock().unwrap_or_else(PoisonError::into_inner).clone();
    took.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
    let mut text = String::from("slowest tests, in seconds:\n");
    for (name, took) in took.iter().take(30) {
        let _ = writeln!(text, "{:8.1} {name}", took.as_secs_f64());
    }
    text
}
