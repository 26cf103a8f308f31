//! Makes tests of functions, times them, and inverts the results of [known failures](known).

use std::any::Any;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use libtest_mimic::{Failed, Trial};

use crate::known;
use crate::workloads::EXECUTABLE_32;

/// Defines a module's `tests()`: one test for each function, called `module::function`. Tests after `long:` run with
/// `--long` only. With `name:` in front, it defines `name()` instead, for a module whose own `tests()` filters them.
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

/// A test that calls a function, named after its module and the function.
pub(crate) fn trial(module: &str, function: &str, test: fn() -> Result<()>) -> Trial {
    let subject = module.split_once("::").map_or(module, |(_, inner)| inner);
    named(format!("{subject}::{function}"), test)
}

/// The message of a panic.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("the test panicked")
}

/// A test with a full name. Its error is printed with all causes. A [known failure](known) must fail.
pub(crate) fn named(name: String, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let known = known::find(&name);
    let test_name = name.clone();
    let run = move || {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(test)).unwrap_or_else(|panic| Err(anyhow!("{}", text_of(&*panic))));
        DURATIONS.lock().unwrap_or_else(PoisonError::into_inner).push((test_name.clone(), start.elapsed()));
        let result = match known {
            Some(known) => known::invert(known, result),
            None => result,
        };
        if result.is_err() {
            FAILED.lock().unwrap_or_else(PoisonError::into_inner).push(test_name);
        }
        result
    };
    let kind = if known.is_some() { "known failure" } else { "" };
    Trial::test(name, move || run().map_err(|error| Failed::from(format!("{error:?}")))).with_kind(kind)
}

/// Leaves out the tests of 32-bit programs, unless the guest has such a program.
pub(crate) fn runnable(tests: Vec<Trial>) -> Vec<Trial> {
    let has_32_bit_program = Path::new(EXECUTABLE_32).exists();
    tests.into_iter().filter(|test| has_32_bit_program || !test.name().contains("32_bit")).collect()
}

/// Names of the failed tests.
static FAILED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The names of the failed tests.
pub(crate) fn failed() -> Vec<String> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// How long each test took.
static DURATIONS: Mutex<Vec<(String, Duration)>> = Mutex::new(Vec::new());

/// The slowest tests, with their durations.
pub(crate) fn slowest() -> String {
    let mut durations = DURATIONS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    durations.sort_by_key(|(_, duration)| std::cmp::Reverse(*duration));
    let mut text = String::from("slowest tests, in seconds:\n");
    for (name, duration) in durations.iter().take(30) {
        let _ = writeln!(text, "{:8.1} {name}", duration.as_secs_f64());
    }
    text
}
