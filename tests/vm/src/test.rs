//! `vm test`: the kernel tests, on every kernel of the matrix.

mod boots;
mod command;
mod report;
mod result;
#[cfg(test)]
mod testing;

use std::io::{self, Write};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socktrail_vm::{LAYOUT_FILE, RESULT_FILE};
use tempfile::TempDir;

use self::boots::{Boot, boots};
use self::command::command;
use self::report::report;
use self::result::{Completed, GuestResult, Verdict, read_results};
use crate::binaries::{self, NoTarget, Profile, Program};
use crate::buffer::Buffer;
use crate::guest::{Guest, Outcome, Unavailable};
use crate::layout_facts::LayoutFacts;
use crate::matrix::Arch;
use crate::options::{Addition, EXIT_INTERRUPTED, MachineOptions, TestOptions};

/// Debian packages that the tests use in the guest.
const PACKAGES: &[&str] = &["curl", "dnsmasq-base", "netcat-openbsd", "nftables"];

/// The time limit of a guest: long enough for a busy machine, so that only a guest that hangs is killed.
const TIMEOUT: Duration = Duration::from_secs(45 * 60);
/// The time limit with `--long`, which includes the tests that take many minutes.
const LONG_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);

/// Runs the tests on each kernel, several guests at once. Returns the exit status: 0 if all of them passed.
pub fn run(options: &TestOptions) -> Result<u8> {
    let start = Instant::now();
    let boots = boots(options);
    // A guest uses one processor, for three fifths of its time.
    let default_jobs = || available_parallelism().map_or(1, NonZero::get) * 3 / 2;
    let jobs = options.jobs.map_or_else(default_jobs, usize::from);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let interrupted = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..jobs.min(boots.len()) {
            scope.spawn(|| {
                while let Some(&boot) = boots.get(next.fetch_add(1, Relaxed)) {
                    match run_guest(options, boot, boots.len() > 1) {
                        Some(result) => results.lock().unwrap_or_else(PoisonError::into_inner).push(result),
                        None => interrupted.store(true, Relaxed),
                    }
                    if interrupted.load(Relaxed) {
                        return;
                    }
                }
            });
        }
    });
    if interrupted.into_inner() {
        return Ok(EXIT_INTERRUPTED);
    }
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|result| boots.iter().position(|boot| *boot == result.boot));
    if boots.len() > 1 && rerun_failures_alone(options, &mut results).is_none() {
        return Ok(EXIT_INTERRUPTED);
    }
    print!("\n{}", report(&results, start.elapsed()));
    Ok(if results.iter().all(|result| result.verdict.is_success()) { 0 } else { 1 })
}

/// Runs the tests in one guest; `None` if the user interrupted. The output of concurrent guests is printed when they
/// end, so that it does not mix.
fn run_guest(options: &TestOptions, boot: Boot, is_concurrent: bool) -> Option<GuestResult> {
    let start = Instant::now();
    let buffer = is_concurrent.then(Buffer::default);
    println!("\n{boot}{}", if is_concurrent { ": started" } else { "" });
    let verdict = match run_tests(options, boot, buffer.as_ref()) {
        Ok(verdict) => verdict?,
        // x86_64 is available everywhere, and an architecture that the user asked for must work.
        Err(error) if options.arch.is_none() && boot.arch != Arch::X86_64 && is_unavailable(&error) => {
            Verdict::NotRun(format!("{error:#}"))
        }
        Err(error) => Verdict::Broken(format!("{error:#}")),
    };
    if let Some(buffer) = buffer {
        println!("\n{boot}:\n{}", buffer.text());
    }
    Some(GuestResult { boot, verdict, duration: start.elapsed() })
}

/// Runs failed tests once more, one guest at a time, because concurrent guests delay each other and some tests fail
/// when they are delayed for long. The table names the tests that pass then. `None` if the user interrupted.
///
/// Random traffic is not repeated: the next run would make other traffic.
fn rerun_failures_alone(options: &TestOptions, results: &mut [GuestResult]) -> Option<()> {
    /// With more failures, delays are not the cause.
    const MAX_FAILURES: usize = 3;
    for result in results {
        let Verdict::Completed(first) = &mut result.verdict else { continue };
        let failures = first.failures.clone();
        let all_are_named = u64::try_from(failures.len()).is_ok_and(|named| named == first.counts.failed);
        let is_random = failures.iter().any(|name| name.starts_with("torture::"));
        if failures.is_empty() || failures.len() > MAX_FAILURES || !all_are_named || is_random {
            continue;
        }
        println!("\n{}: once more, alone: {}", result.boot, failures.join(", "));
        // The trailing comma makes the filter a list of names, even of one: see `command`.
        let only = TestOptions { filter: Some(failures.join(",") + ","), ..options.clone() };
        match run_tests(&only, result.boot, None) {
            Ok(None) => return None,
            Ok(Some(Verdict::Completed(second)))
                if second.counts.failed == 0 && second.counts.passed >= first.counts.failed =>
            {
                first.passed_alone = failures;
            }
            Ok(Some(_)) => {}
            Err(error) => eprintln!("vm: {} could not run once more: {error:#}", result.boot),
        }
    }
    Some(())
}

/// Whether the guest could not be built or booted on this machine, so that the tests are not to blame.
fn is_unavailable(error: &anyhow::Error) -> bool {
    error.is::<NoTarget>() || error.is::<Unavailable>()
}

/// Boots one kernel and runs the tests; `None` if the user interrupted.
fn run_tests(options: &TestOptions, boot: Boot, buffer: Option<&Buffer>) -> Result<Option<Verdict>> {
    let mut machine = MachineOptions::standard(boot.kernel, boot.arch);
    machine.append = boot.tests.kernel_arguments().map(str::to_owned);
    let out = TempDir::new().context("create a temporary folder")?;
    let additions = guest_files(boot)?;
    let guest = Guest {
        machine: &machine,
        packages: &PACKAGES.iter().map(ToString::to_string).collect::<Vec<_>>(),
        programs: &[Program::Socktrail, Program::GuestTests, Program::KprobesTests, Program::Embedding],
        profile: Profile::Guest,
        additions: &additions,
        out: Some(out.path()),
        timeout: options.timeout.unwrap_or(if options.long { LONG_TIMEOUT } else { TIMEOUT }),
        command: &command(boot, options)?,
    };
    let [stdout, stderr]: [Box<dyn Write + Send>; 2] = match buffer {
        Some(buffer) => [Box::new(buffer.clone()), Box::new(buffer.clone())],
        None => [Box::new(io::stdout()), Box::new(io::stderr())],
    };
    match guest.boot(stdout, stderr)? {
        Outcome::Interrupted => Ok(None),
        Outcome::Ended(_) => {
            let layout = LayoutFacts::read(&out.path().join(LAYOUT_FILE))?;
            Ok(Some(Verdict::Completed(Completed { layout, ..read_results(&out.path().join(RESULT_FILE))? })))
        }
        outcome => Ok(Some(Verdict::Broken(outcome.to_string()))),
    }
}

/// On x86_64, `guest-tests` built for i686, if that Rust target can be installed: it tests 32-bit programs.
fn guest_files(boot: Boot) -> Result<Vec<Addition>> {
    if boot.arch != Arch::X86_64 {
        return Ok(Vec::new());
    }
    match binaries::build(Arch::I686, Profile::Guest, &[Program::GuestTests]) {
        Ok(built) => {
            let addition = |host| Addition { host, guest: "/usr/local/bin/guest-tests-32".to_owned() };
            Ok(built.into_iter().map(addition).collect())
        }
        Err(error) if error.is::<NoTarget>() => {
            eprintln!("vm: 32-bit programs are not tested: {error:#}");
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_targets_and_packages_are_unavailable() {
        let error = |offline: bool| {
            let error = anyhow::anyhow!("no route to the mirror").context("get kernel 6.1");
            if offline { error.context(Unavailable) } else { error }.context("outer")
        };
        assert!(is_unavailable(&error(true)));
        assert!(!is_unavailable(&error(false)));
    }
}
