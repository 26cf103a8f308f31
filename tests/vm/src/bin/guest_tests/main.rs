//! The kernel tests. They run inside a guest, as root; `cargo vm test` boots one and starts them.
//!
//! To add a test, write a `fn name() -> anyhow::Result<()>` in the module of its subject, and name it in the
//! module's `tests!` line. A new subject is a new module, named in [`all`]. The [`helpers`] start programs and
//! socktrail itself, and know what was started, so that a test can compare that with what was seen; what such a child
//! process does is one of the [`actors`]' parts.
//!
//! [`TESTS_VARIABLE`] chooses among them by the beginnings of their names.
//!
//! Tests run one after the other, since each of them sees the traffic of the whole machine.

#[macro_use]
mod harness;
mod actors;
mod helpers;
mod known;

mod agent;
mod boot;
mod capture;
mod containers;
mod embedding;
mod ends;
mod events;
mod flows;
mod hazards;
mod idle;
mod kprobes;
mod layout;
mod lifetime;
mod lockdown;
mod losses;
mod masks;
mod mptcp;
mod names;
mod options;
mod owners;
mod privileges;
mod programs;
mod self_test;
mod sensors;
mod sources;
mod threads;
mod torture;
mod tunnels;
mod wall_clock;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use socktrail_vm::{OUT_DIR, RESULT_FILE, TESTS_VARIABLE};

use crate::actors::ACT;

/// The tests of every subject, in order: nothing can be watched any more after the last.
fn all() -> Vec<Trial> {
    let all = [
        boot::tests(),
        layout::tests(),
        flows::tests(),
        sources::tests(),
        masks::tests(),
        names::tests(),
        idle::tests(),
        lifetime::tests(),
        embedding::tests(),
        privileges::tests(),
        hazards::tests(),
        kprobes::tests(),
        self_test::tests(),
        owners::tests(),
        threads::tests(),
        containers::tests(),
        programs::tests(),
        sensors::tests(),
        agent::tests(),
        options::tests(),
        events::tests(),
        ends::tests(),
        losses::tests(),
        wall_clock::tests(),
        capture::tests(),
        tunnels::tests(),
        mptcp::tests(),
        torture::tests(),
        lockdown::tests(),
    ];
    all.into_iter().flatten().collect()
}

/// Those that the environment asks for; an error when it asks for something that there is not.
fn chosen(all: Vec<Trial>) -> Result<Vec<Trial>, String> {
    match std::env::var(TESTS_VARIABLE) {
        Ok(beginnings) => those_of(all, &beginnings),
        Err(_) => Ok(all),
    }
}

/// Those that are chosen by the beginnings of their names.
fn those_of(all: Vec<Trial>, beginnings: &str) -> Result<Vec<Trial>, String> {
    let (without, with): (Vec<_>, Vec<_>) = beginnings.split_whitespace().partition(|word| word.starts_with('-'));
    let without: Vec<_> = without.iter().map(|word| &word[1..]).collect();
    for beginning in with.iter().chain(&without) {
        if !all.iter().any(|test| test.name().starts_with(beginning)) {
            return Err(format!("no test begins with `{beginning}`"));
        }
    }
    let begins = |test: &Trial, words: &[&str]| words.iter().any(|word| test.name().starts_with(word));
    let is_chosen = |test: &Trial| (with.is_empty() || begins(test, &with)) && !begins(test, &without);
    Ok(all.into_iter().filter(is_chosen).collect())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((ACT, part)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return actors::act(part);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let tests = match chosen(all()) {
        Ok(tests) => tests,
        Err(error) => {
            let _ = writeln!(io::stderr(), "guest-tests: {error}");
            return ExitCode::FAILURE;
        }
    };
    let conclusion = libtest_mimic::run(&arguments, tests);
    let _ = write!(io::stdout(), "{}", harness::slowest());
    let result = serde_json::json!({
        "passed": conclusion.num_passed,
        "failed": conclusion.num_failed,
        "ignored": conclusion.num_ignored,
        "filtered": conclusion.num_filtered_out,
        "failures": harness::failed(),
    });
    // Without the file the runner knows that something went wrong.
    fs::write(Path::new(OUT_DIR).join(RESULT_FILE), result.to_string()).ok();
    conclusion.exit_code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_chosen_by_the_beginnings_of_their_names() {
        let trials = || ["a::x", "a::y", "b::x"].map(|name| Trial::test(name, || Ok(()))).into();
        let names = |beginnings| {
            let chosen = those_of(trials(), beginnings)?;
            Ok::<_, String>(chosen.iter().map(|test| test.name().to_owned()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(names("a:: b::").unwrap(), "a::x a::y b::x");
        assert_eq!(names("-a::").unwrap(), "b::x");
        assert_eq!(names("a:: -a::y").unwrap(), "a::x");
        assert!(names("c::").is_err() && names("-c::").is_err());
    }
}
