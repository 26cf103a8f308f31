//! From functions to tests.

use anyhow::Result;
use libtest_mimic::{Failed, Trial};

use crate::known;

/// Defines a module's `tests()`: one test for each function named, called `module::function`. Those behind `long:` run when
/// they are asked for (`--long`).
macro_rules! tests {
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
    let run = move || match known {
        Some(known) => known::judge(known, test()),
        None => test(),
    };
    let kind = if known.is_some() { "known to be wrong" } else { "" };
    Trial::test(name, move || run().map_err(|error| Failed::from(format!("{error:?}")))).with_kind(kind)
}
