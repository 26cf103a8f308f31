//! `vm test`: the kernel tests, on every kernel of the matrix.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use socktrail_vm::{
    AS_OF_VARIABLE, LAYOUT_FILE, RESULT_FILE, TESTS_VARIABLE, TORTURE_SECONDS_VARIABLE, TORTURE_SEED_VARIABLE,
    TORTURE_WITHOUT_VARIABLE,
};
use tempfile::TempDir;

use crate::binaries::{self, NoTarget, Profile, Program};
use crate::guest::{Guest, Outcome, Unavailable};
use crate::layout_facts::LayoutFacts;
use crate::matrix::{Arch, Kernel, MATRIX};
use crate::options::{Addition, EXIT_INTERRUPTED, MachineOptions, Release, TestOptions};

/// Debian packages that the tests use in the guest.
const PACKAGES: &[&str] = &["curl", "dnsmasq-base", "netcat-openbsd", "nftables"];

/// How long a guest may take: a guest that hangs is ended, one on a busy machine is not.
const TIMEOUT: Duration = Duration::from_secs(45 * 60);
/// The same if the tests that take many minutes are included.
const LONG_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);
/// How long random traffic is made.
const TORTURE: Duration = Duration::from_secs(120);
/// The same with `--long`.
const LONG_TORTURE: Duration = Duration::from_secs(60 * 60);

/// Runs the tests on each kernel, several guests at once; the status is 0 when all of them passed.
pub fn run(options: &TestOptions) -> Result<u8> {
    let start = Instant::now();
    let boots = boots(options);
    // A guest keeps one processor busy, and waits for two fifths of its time.
    let most = || available_parallelism().map_or(1, NonZero::get) * 3 / 2;
    let jobs = options.jobs.map_or_else(most, usize::from);
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(Vec::new());
    let interrupted = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..jobs.min(boots.len()) {
            scope.spawn(|| {
                while let Some(&boot) = boots.get(next.fetch_add(1, Relaxed)) {
                    match row(options, boot, boots.len() > 1) {
                        Some(row) => rows.lock().unwrap_or_else(PoisonError::into_inner).push(row),
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
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort_by_key(|row| boots.iter().position(|boot| *boot == row.boot));
    if boots.len() > 1 && again_alone(options, &mut rows).is_none() {
        return Ok(EXIT_INTERRUPTED);
    }
    print!("\n{}", report(&rows, start.elapsed()));
    Ok(if rows.iter().all(|row| row.verdict.is_good()) { 0 } else { 1 })
}

/// Runs the tests in one guest; nothing when the user interrupted. Where other guests run beside it, what it says is
/// kept until it has ended.
fn row(options: &TestOptions, boot: Boot, beside_others: bool) -> Option<Row> {
    let start = Instant::now();
    let kept = beside_others.then(Kept::default);
    println!("\n{boot}{}", if beside_others { ": started" } else { "" });
    let verdict = match tested(options, boot, kept.as_ref()) {
        Ok(verdict) => verdict?,
        // What the user asked for by name must work, and what can be had everywhere.
        Err(error) if options.arch.is_none() && boot.arch != Arch::X86_64 && is_out_of_reach(&error) => {
            Verdict::NotRun(format!("{error:#}"))
        }
        Err(error) => Verdict::Broken(format!("{error:#}")),
    };
    if let Some(kept) = kept {
        println!("\n{boot}:\n{}", kept.text());
    }
    Some(Row { boot, verdict, took: start.elapsed() })
}

/// Runs what has failed once more, one guest at a time: several guests at once delay each other, and some tests fail when
/// they are delayed by long enough. What passes then is said in the table. Nothing when the user interrupted.
///
/// Random traffic is not repeated: the next round would make other traffic.
fn again_alone(options: &TestOptions, rows: &mut [Row]) -> Option<()> {
    /// With more failures, delays are not the reason.
    const MOST: usize = 3;
    for row in rows {
        let Verdict::Ran(first) = &mut row.verdict else { continue };
        let failures = first.failures.clone();
        let all_are_named = u64::try_from(failures.len()).is_ok_and(|named| named == first.counts.failed);
        let is_random = failures.iter().any(|name| name.starts_with("torture::"));
        if failures.is_empty() || failures.len() > MOST || !all_are_named || is_random {
            continue;
        }
        println!("\n{}: once more, alone: {}", row.boot, failures.join(", "));
        // The comma at the end makes the filter a list of names, even of one: see `command`.
        let only = TestOptions { filter: Some(failures.join(",") + ","), ..options.clone() };
        match tested(&only, row.boot, None) {
            Ok(None) => return None,
            Ok(Some(Verdict::Ran(second)))
                if second.counts.failed == 0 && second.counts.passed >= first.counts.failed =>
            {
                first.passed_when_alone = failures;
            }
            Ok(Some(_)) => {}
            Err(error) => eprintln!("vm: {} could not run once more: {error:#}", row.boot),
        }
    }
    Some(())
}

/// What a guest said, for later.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether it is this machine's fault, not the tests'.
fn is_out_of_reach(error: &anyhow::Error) -> bool {
    error.is::<NoTarget>() || error.is::<Unavailable>()
}

/// One guest to test in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Boot {
    kernel: Kernel,
    arch: Arch,
    tests: Tests,
    /// The older release that Socktrail behaves as of.
    as_of: Option<Release>,
}

impl Boot {
    /// The beginnings of the names of tests, or with a `-` of those that do not run; nothing for all.
    fn prefixes(&self) -> Option<String> {
        let prefixes = self.tests.prefixes()?.to_owned();
        // Kernels before 4.8 do not tell the name of a thread.
        let without =
            if self.as_of.is_some_and(|release| release < Release(4, 8)) { " -events::thread_names" } else { "" };
        Some(prefixes + without)
    }

    /// What runs in it, in words.
    fn name(&self) -> String {
        let as_of = self.as_of.map_or_else(String::new, |release| format!("as of {release}: "));
        format!("{as_of}{}", self.tests.name())
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {} ({}): {}", self.kernel, self.arch, self.name())
    }
}

/// Which tests run in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tests {
    /// All of them.
    All,
    /// The half of all that compares much traffic with captures.
    Captures,
    /// The other half.
    ButCaptures,
    /// Those that depend on the kernel most: that the layout is found, and that flows and socket events come out right.
    Kernels,
    /// Those that make sense on a kernel that was told to do without IPv6.
    WithoutIpv6,
    /// Those of what older kernels can show as well.
    OlderKernel,
}

impl Tests {
    const fn name(self) -> &'static str {
        match self {
            Self::All => "every test",
            Self::Captures => "captures, random traffic",
            Self::ButCaptures => "every test but captures and random traffic",
            Self::Kernels => "boot, layout, flows, events, sensors",
            Self::WithoutIpv6 => "without IPv6",
            Self::OlderKernel => "flows, owners, threads, ends, programs, events, sensors",
        }
    }

    /// The beginnings of their names, or with a `-` of those that do not run; nothing for all.
    const fn prefixes(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Captures => Some("capture:: tunnels:: mptcp:: torture::"),
            Self::ButCaptures => Some("-capture:: -tunnels:: -mptcp:: -torture::"),
            Self::Kernels => Some("boot:: layout:: flows:: events:: sensors::"),
            Self::WithoutIpv6 => Some(
                "boot::loopback_v4 layout:: flows::curl_over_ipv4 flows::curl_of_a_normal_user_over_ipv4 \
                 flows::udp_over_ipv4 flows::a_refused_connect_over_ipv4 flows::a_program_that_lives_for_milliseconds \
                 flows::the_whole_story",
            ),
            // Not here: what a newer kernel does that an older one does not do, such as merge datagrams.
            Self::OlderKernel => Some(
                "flows::curl flows::udp flows::long flows::arguments flows::empty flows::a_refused flows::a_pro \
                 flows::a_server flows::the_whole_story owners:: threads:: ends::a_connect_in ends::a_connection \
                 ends::nobody programs::executables programs::arguments events:: sensors::",
            ),
        }
    }

    const fn kernel_arguments(self) -> Option<&'static str> {
        match self {
            Self::All | Self::Captures | Self::ButCaptures | Self::Kernels | Self::OlderKernel => None,
            Self::WithoutIpv6 => Some("ipv6.disable=1"),
        }
    }
}

/// The older releases that Socktrail is tested to behave as of.
const OLDER: [Release; 3] = [Release(4, 18), Release(4, 4), Release(3, 13)];

/// The guests to boot, those that take longest first, so that none runs alone at the end.
///
/// Every test on every kernel takes hours on two processors, too long for a check before each commit. Whoever names
/// a kernel or asks for all of it gets all of it, and a filter without a kernel asks for one guest, not for all.
fn boots(options: &TestOptions) -> Vec<Boot> {
    let boot = |(kernel, arch), tests| Boot { kernel, arch, tests, as_of: options.as_of };
    let first = MATRIX[0];
    let wanted: Vec<_> = if !options.kernels.is_empty() {
        let arch = options.arch.unwrap_or(Arch::X86_64);
        options.kernels.iter().map(|&kernel| (kernel, arch)).collect()
    } else if options.full || options.arch.is_some() {
        MATRIX.iter().copied().filter(|&(_, arch)| options.arch.is_none_or(|wanted| wanted == arch)).collect()
    } else if options.filter.is_some() || options.as_of.is_some() {
        vec![first]
    } else {
        return default_boots();
    };
    if options.filter.is_some() {
        return wanted.into_iter().map(|machine| boot(machine, Tests::All)).collect();
    }
    if options.as_of.is_some() {
        return wanted.into_iter().map(|machine| boot(machine, Tests::OlderKernel)).collect();
    }
    let halves = [Tests::ButCaptures, Tests::Captures];
    let all = wanted.iter().flat_map(|&machine| halves.map(|half| boot(machine, half)));
    all.chain(wanted.contains(&first).then(|| boot(first, Tests::WithoutIpv6))).collect()
}

/// What runs unless something else is asked for.
fn default_boots() -> Vec<Boot> {
    let boot = |(kernel, arch), tests| Boot { kernel, arch, tests, as_of: None };
    let first = MATRIX[0];
    let mut boots = vec![boot(first, Tests::ButCaptures), boot(first, Tests::Captures)];
    boots.extend(OLDER.map(|release| Boot { as_of: Some(release), ..boot(first, Tests::OlderKernel) }));
    boots.extend(MATRIX[1..].iter().map(|&machine| boot(machine, Tests::Kernels)));
    boots.push(boot(first, Tests::WithoutIpv6));
    boots
}

/// Boots one kernel and runs the tests; nothing when the user interrupted.
fn tested(options: &TestOptions, boot: Boot, kept: Option<&Kept>) -> Result<Option<Verdict>> {
    let mut machine = MachineOptions::standard(boot.kernel, boot.arch);
    machine.append = boot.tests.kernel_arguments().map(str::to_owned);
    let out = TempDir::new().context("create a temporary folder")?;
    let additions = additions(boot)?;
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
    let [stdout, stderr]: [Box<dyn Write + Send>; 2] = match kept {
        Some(kept) => [Box::new(kept.clone()), Box::new(kept.clone())],
        None => [Box::new(io::stdout()), Box::new(io::stderr())],
    };
    match guest.boot(stdout, stderr)? {
        Outcome::Interrupted => Ok(None),
        Outcome::Ended(_) => {
            let (counts, failures) = Counts::read(&out.path().join(RESULT_FILE))?;
            let layout = LayoutFacts::read(&out.path().join(LAYOUT_FILE))?;
            Ok(Some(Verdict::Ran(Ran { counts, failures, passed_when_alone: Vec::new(), layout })))
        }
        outcome => Ok(Some(Verdict::Broken(outcome.to_string()))),
    }
}

/// For a 64-bit kernel of x86, the tests' own program built for 32 bits, where Rust has that target.
fn additions(boot: Boot) -> Result<Vec<Addition>> {
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

/// The command line of the tests in the guest.
fn command(boot: Boot, options: &TestOptions) -> Result<String> {
    let filter = options.filter.as_deref().unwrap_or_default();
    if !filter.chars().all(|c| c.is_ascii_alphanumeric() || "_:,".contains(c)) {
        bail!("`{filter}` is no part of a test's name");
    }
    let beginnings = filter.contains(',').then(|| filter.trim_end_matches(',').replace(',', " "));
    let names = beginnings.or_else(|| boot.prefixes());
    let mut command = names.map_or_else(String::new, |names| format!("{TESTS_VARIABLE}='{names}' "));
    let torture = if options.long { LONG_TORTURE } else { TORTURE };
    command.push_str(&format!("{TORTURE_SECONDS_VARIABLE}={} ", torture.as_secs()));
    if let Some(release) = boot.as_of {
        command.push_str(&format!("{AS_OF_VARIABLE}={release} "));
    }
    if let Some(seed) = options.seed {
        command.push_str(&format!("{TORTURE_SEED_VARIABLE}={seed} "));
    }
    if let Some(bad) = options.without.iter().find(|kind| !kind.chars().all(|c| c.is_ascii_lowercase() || c == '-')) {
        bail!("`{bad}` is no kind of random traffic");
    }
    if !options.without.is_empty() {
        command.push_str(&format!("{TORTURE_WITHOUT_VARIABLE}={} ", options.without.join(",")));
    }
    command.push_str("guest-tests");
    if options.long {
        command.push_str(" --include-ignored");
    }
    if !filter.contains(',') && !filter.is_empty() {
        command.push(' ');
        command.push_str(filter);
    }
    Ok(command)
}

/// What became of the tests in one guest.
struct Row {
    boot: Boot,
    verdict: Verdict,
    took: Duration,
}

/// How the tests ended.
#[derive(Debug)]
enum Verdict {
    /// To their end.
    Ran(Ran),
    /// The guest could not be booted or broke.
    Broken(String),
    /// They were left out, for a reason.
    NotRun(String),
}

/// What tests that ran to their end have left.
#[derive(Debug)]
struct Ran {
    counts: Counts,
    /// Names of the failed tests; a test that panicked has none.
    failures: Vec<String>,
    /// Those of them that passed when they ran once more, without other guests.
    passed_when_alone: Vec<String>,
    layout: Option<LayoutFacts>,
}

impl Ran {
    /// With those that passed when alone.
    fn counts(&self) -> Counts {
        let passed_when_alone = u64::try_from(self.passed_when_alone.len()).unwrap_or(0);
        let Counts { passed, failed, .. } = self.counts;
        let failed = failed.saturating_sub(passed_when_alone);
        Counts { passed: passed + passed_when_alone, failed, ..self.counts }
    }
}

impl Verdict {
    fn is_good(&self) -> bool {
        match self {
            Self::Ran(ran) => ran.counts().failed == 0,
            Self::Broken(_) => false,
            Self::NotRun(_) => true,
        }
    }

    /// A guest that broke counts as one failed test, whatever had passed before.
    fn counts(&self) -> Counts {
        match self {
            Self::Ran(ran) => ran.counts(),
            Self::Broken(_) => Counts { failed: 1, ..Counts::default() },
            Self::NotRun(_) => Counts::default(),
        }
    }

    fn layout(&self) -> Option<&LayoutFacts> {
        match self {
            Self::Ran(ran) => ran.layout.as_ref(),
            Self::Broken(_) | Self::NotRun(_) => None,
        }
    }
}

/// How many tests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
}

impl Counts {
    /// Reads the file in which the tests leave their counts, and the names of those that failed.
    fn read(path: &Path) -> Result<(Self, Vec<String>)> {
        let text = fs::read_to_string(path).context("the tests left no result: did they panic?")?;
        let value: Value = serde_json::from_str(&text).context("understand the tests' result")?;
        let count = |name: &str| value[name].as_u64().with_context(|| format!("the tests' result has no `{name}`"));
        let names = value["failures"].as_array().map_or(&[][..], Vec::as_slice);
        let failures = names.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let counts = Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
            filtered: count("filtered")?,
        };
        Ok((counts, failures))
    }

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
            filtered: self.filtered + other.filtered,
        }
    }
}

/// The table at the end, a line as cargo's own tests end with, and the two numbers that matter.
fn report(rows: &[Row], took: Duration) -> String {
    let mut text = format!(
        "{:7}{:9}{:>6}  {:11}{:>7}{:>7}{:>8}{:>8}{:>9}  {}\n",
        "kernel", "arch", "found", "guess = BTF", "guess", "BTF", "passed", "failed", "seconds", "tests"
    );
    for Row { boot, verdict, took } in rows {
        let Counts { passed, failed, ignored, filtered } = verdict.counts();
        let mut note = match verdict {
            Verdict::Ran(_) if ignored + filtered == 0 => boot.name(),
            Verdict::Ran(_) => format!("{}; {ignored} ignored, {filtered} filtered out", boot.name()),
            Verdict::Broken(why) => format!("the guest failed: {why}"),
            Verdict::NotRun(why) => format!("not run: {why}"),
        };
        if let Verdict::Ran(Ran { passed_when_alone, .. }) = verdict
            && !passed_when_alone.is_empty()
        {
            note.push_str(&format!("; passed only when run again alone: {}", passed_when_alone.join(", ")));
        }
        let inlined = verdict.layout().map_or(&[][..], |facts| &facts.inlined);
        if !inlined.is_empty() {
            note.push_str(&format!("; inlined here: {}", inlined.join(", ")));
        }
        let [found, agree, guess, btf] = match verdict.layout() {
            Some(facts) => [
                facts.found.to_string(),
                facts.verdict(),
                format!("{:.2} s", facts.guess_seconds),
                format!("{:.2} s", facts.btf_seconds),
            ],
            None => ["-"; 4].map(str::to_owned),
        };
        let line = format!(
            "{:7}{:9}{found:>6}  {agree:11}{guess:>7}{btf:>7}{passed:>8}{failed:>8}{:>9.1}  {note}",
            boot.kernel,
            boot.arch,
            took.as_secs_f64()
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let Counts { passed, failed, ignored, filtered } =
        rows.iter().fold(Counts::default(), |sum, row| sum.add(row.verdict.counts()));
    let result = if rows.iter().all(|row| row.verdict.is_good()) { "ok" } else { "FAILED" };
    text.push_str(&format!(
        "\ntest result: {result}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; \
         {filtered} filtered out; finished in {:.2}s\n{passed} passed, {failed} failed\n",
        took.as_secs_f64()
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kernels: &[Kernel], arch: Option<Arch>) -> TestOptions {
        TestOptions {
            kernels: kernels.to_vec(),
            arch,
            full: false,
            long: false,
            jobs: None,
            seed: None,
            as_of: None,
            without: Vec::new(),
            timeout: None,
            filter: None,
        }
    }

    fn boot(kernel: Kernel, arch: Arch, tests: Tests) -> Boot {
        Boot { kernel, arch, tests, as_of: None }
    }

    #[test]
    fn by_default_the_whole_matrix_is_booted_and_one_kernel_gets_every_test() {
        let all = boots(&options(&[], None));
        let [first, second] = [Tests::ButCaptures, Tests::Captures].map(|half| boot(Kernel::V6_1, Arch::X86_64, half));
        assert_eq!(all[..2], [first, second]);
        for (release, boot) in OLDER.iter().zip(&all[2..]) {
            assert_eq!(*boot, Boot { tests: Tests::OlderKernel, as_of: Some(*release), ..first });
        }
        for &(kernel, arch) in &MATRIX[1..] {
            assert!(all.contains(&boot(kernel, arch, Tests::Kernels)), "{kernel} {arch}");
        }
        assert_eq!(all.last(), Some(&boot(Kernel::V6_1, Arch::X86_64, Tests::WithoutIpv6)));
        let full = boots(&TestOptions { full: true, ..options(&[], None) });
        for half in [Tests::ButCaptures, Tests::Captures] {
            assert_eq!(full.iter().filter(|boot| boot.tests == half).count(), MATRIX.len());
        }
    }

    #[test]
    fn what_is_named_is_what_runs() {
        let halves = |kernel, arch| [Tests::ButCaptures, Tests::Captures].map(|half| boot(kernel, arch, half));
        assert_eq!(boots(&options(&[Kernel::V5_10], None)), halves(Kernel::V5_10, Arch::X86_64));
        let arm = Some(Arch::Aarch64);
        let named = boots(&options(&[Kernel::V6_12, Kernel::V6_1], arm));
        assert_eq!(named, [Kernel::V6_12, Kernel::V6_1].map(|kernel| halves(kernel, Arch::Aarch64)).concat());
        assert!(boots(&options(&[], arm)).iter().all(|boot| boot.arch == Arch::Aarch64));
        let filtered = TestOptions { filter: Some("x".into()), ..options(&[], None) };
        let first = boot(Kernel::V6_1, Arch::X86_64, Tests::All);
        assert_eq!(boots(&filtered), [first]);
        let as_of = Some(Release(4, 18));
        assert_eq!(boots(&TestOptions { as_of, ..filtered }), [Boot { as_of, ..first }]);
        let older = TestOptions { as_of, ..options(&[Kernel::V6_12], None) };
        let only = Boot { kernel: Kernel::V6_12, tests: Tests::OlderKernel, as_of, ..first };
        assert_eq!(boots(&older), [only]);
    }

    #[test]
    fn the_halves_are_each_others_rest() {
        let [first, second] = [Tests::Captures, Tests::ButCaptures].map(|half| half.prefixes().unwrap());
        let without = first.split(' ').map(|beginning| format!("-{beginning}")).collect::<Vec<_>>().join(" ");
        assert_eq!(second, without);
    }

    #[test]
    fn a_filter_is_no_shell_command() {
        let of = |filter: &str| TestOptions { filter: Some(filter.to_owned()), ..options(&[], None) };
        let [all, kernels] = [Tests::All, Tests::Kernels].map(|tests| boot(Kernel::V6_1, Arch::X86_64, tests));
        let one = of("boot::lo");
        assert_eq!(command(all, &one).unwrap(), "TORTURE_SECONDS=120 guest-tests boot::lo");
        let long = TestOptions { long: true, ..of("boot::lo") };
        let command_of_long = "TORTURE_SECONDS=3600 guest-tests --include-ignored boot::lo";
        assert_eq!(command(all, &long).unwrap(), command_of_long);
        let again =
            TestOptions { seed: Some(7), without: vec!["udp-many".into(), "late".into()], ..options(&[], None) };
        let repeated = "GUEST_TESTS='boot:: layout:: flows:: events:: sensors::' TORTURE_SECONDS=120 \
                        TORTURE_SEED=7 TORTURE_WITHOUT=udp-many,late guest-tests";
        assert_eq!(command(kernels, &again).unwrap(), repeated);
        let older = Boot { as_of: Some(Release(3, 13)), ..all };
        assert_eq!(command(older, &one).unwrap(), "TORTURE_SECONDS=120 AS_OF=3.13 guest-tests boot::lo");
        let names = |release| Boot { as_of: Some(release), tests: Tests::OlderKernel, ..all }.prefixes().unwrap();
        assert!(names(Release(4, 4)).contains("-events::thread_names") && !names(Release(4, 18)).contains('-'));
        assert!(command(all, &of("x; reboot")).is_err());
        assert!(command(all, &TestOptions { without: vec!["x; reboot".into()], ..one }).is_err());
    }

    #[test]
    fn only_what_cannot_be_had_is_out_of_reach() {
        let error = |offline: bool| {
            let error = anyhow::anyhow!("no route to the mirror").context("get kernel 6.1");
            if offline { error.context(Unavailable) } else { error }.context("outer")
        };
        assert!(is_out_of_reach(&error(true)));
        assert!(!is_out_of_reach(&error(false)));
    }

    #[test]
    fn counts_are_read() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("result.json");
        fs::write(&path, r#"{"passed":3,"failed":1,"ignored":0,"filtered":2,"failures":["a::b"]}"#).unwrap();
        let counts = Counts { passed: 3, failed: 1, ignored: 0, filtered: 2 };
        assert_eq!(Counts::read(&path).unwrap(), (counts, vec!["a::b".to_owned()]));
        fs::write(&path, r#"{"passed":3}"#).unwrap();
        assert!(Counts::read(&path).is_err());
    }

    #[test]
    fn the_last_lines_sum_up() {
        let row = |kernel, verdict| Row {
            boot: boot(kernel, Arch::X86_64, Tests::All),
            verdict,
            took: Duration::from_millis(2500),
        };
        let good = Counts { passed: 4, failed: 0, ignored: 1, filtered: 0 };
        let inlined = vec!["ip_local_out".to_owned()];
        let facts = LayoutFacts { found: 80, differ: Vec::new(), inlined, guess_seconds: 1.25, btf_seconds: 0.04 };
        let ran = || {
            let layout = Some(facts.clone());
            Verdict::Ran(Ran { counts: good, failures: Vec::new(), passed_when_alone: Vec::new(), layout })
        };
        let rows = vec![row(Kernel::V6_1, ran()), row(Kernel::V6_12, Verdict::NotRun("no std".into()))];
        let text = report(&rows, Duration::from_secs(5));
        assert_eq!(
            text,
            "kernel arch      found  guess = BTF  guess    BTF  passed  failed  seconds  tests\n\
             6.1    x86_64       80  yes         1.25 s 0.04 s       4       0      2.5  every test; 1 ignored, 0 \
             filtered out; inlined here: ip_local_out\n\
             6.12   x86_64        -  -                -      -       0       0      2.5  not run: no std\n\n\
             test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 5.00s\n\
             4 passed, 0 failed\n"
        );

        let rows = vec![row(Kernel::V6_1, ran()), row(Kernel::V6_12, Verdict::Broken("oops".into()))];
        let text = report(&rows, Duration::from_secs(5));
        assert!(text.contains("test result: FAILED. 4 passed; 1 failed;"), "{text}");
        assert_eq!(text.lines().last(), Some("4 passed, 1 failed"));

        let delayed = Verdict::Ran(Ran {
            counts: Counts { passed: 3, failed: 1, ..good },
            failures: vec!["a::b".into()],
            passed_when_alone: vec!["a::b".into()],
            layout: None,
        });
        let text = report(&[row(Kernel::V6_1, delayed)], Duration::from_secs(5));
        assert!(text.contains("; passed only when run again alone: a::b\n"), "{text}");
        assert_eq!(text.lines().last(), Some("4 passed, 0 failed"));
    }
}
