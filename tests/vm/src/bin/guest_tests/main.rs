//! The kernel tests. They run inside a guest, as root; `cargo vm test` boots one and starts them.
//!
//! To add a test, write a `fn name() -> anyhow::Result<()>` in the module of its subject, and name it in the
//! module's `tests!` line. A new subject is a new module, named in [`all`]. The [`helpers`] start programs and
//! socktrail, and record what was started, so that a test can compare it with the documents. If a test needs a process
//! that no Debian program provides, it starts this program again with one of the [`workloads`].
//!
//! [`TESTS_VARIABLE`] selects tests by prefixes of their names.
//!
//! Tests run one after the other, since each of them sees the traffic of the whole machine.

#[macro_use]
mod harness;
mod helpers;
mod known;
mod workloads;

mod accounting;
mod agent;
mod backend;
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

use crate::workloads::RUN;

/// The tests of every subject, in order. `lockdown` is last: no monitor can start after it.
fn all() -> Vec<Trial> {
    let all = [
        boot::tests(),
        layout::tests(),
        flows::tests(),
        accounting::tests(),
        backend::tests(),
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

/// The tests that [`TESTS_VARIABLE`] selects. A prefix that matches no test is an error.
fn selected(all: Vec<Trial>) -> Result<Vec<Trial>, String> {
    match std::env::var(TESTS_VARIABLE) {
        Ok(prefixes) => select(all, &prefixes),
        Err(_) => Ok(all),
    }
}

/// Selects tests by prefixes of their names, separated by spaces. A `-` before a prefix leaves tests out.
fn select(all: Vec<Trial>, prefixes: &str) -> Result<Vec<Trial>, String> {
    let (excluded, included): (Vec<_>, Vec<_>) = prefixes.split_whitespace().partition(|word| word.starts_with('-'));
    let excluded: Vec<_> = excluded.iter().map(|word| &word[1..]).collect();
    for prefix in included.iter().chain(&excluded) {
        if !all.iter().any(|test| test.name().starts_with(prefix)) {
            return Err(format!("no test's name starts with `{prefix}`"));
        }
    }
    let matches = |test: &Trial, prefixes: &[&str]| prefixes.iter().any(|prefix| test.name().starts_with(prefix));
    let is_selected = |test: &Trial| (included.is_empty() || matches(test, &included)) && !matches(test, &excluded);
    Ok(all.into_iter().filter(is_selected).collect())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((RUN, workload)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return workloads::run(workload);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let tests = match selected(all()) {
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
    // If the file is missing, the runner on the host reports a failure.
    fs::write(Path::new(OUT_DIR).join(RESULT_FILE), result.to_string()).ok();
    conclusion.exit_code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_selected_by_prefix() {
        let trials = || ["a::x", "a::y", "b::x"].map(|name| Trial::test(name, || Ok(()))).into();
        let names = |prefixes| {
            let selected = select(trials(), prefixes)?;
            Ok::<_, String>(selected.iter().map(|test| test.name().to_owned()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(names("a:: b::").unwrap(), "a::x a::y b::x");
        assert_eq!(names("-a::").unwrap(), "b::x");
        assert_eq!(names("a:: -a::y").unwrap(), "a::x");
        assert!(names("c::").is_err() && names("-c::").is_err());
    }
}
