//! Runs guesses.

use super::candidates::{Candidates, Verdict};
use super::guess::{AnyGuess, Context, ProbedThread};
use super::installer::{InstalledProbes, ProbeInstaller};
use super::plan::{Step, levels};
use super::probe::Probe;
use crate::catalog;
use crate::layout::{Layout, ValueOrigin};
use crate::resolve::{SkipKind, Skipped};
use socktrail_kprobes::{Error, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// How many triggers in a row may fail before a guess gives up.
const MAX_FAILURES: u32 = 5;

/// How guesses are run.
#[derive(Debug, Clone)]
pub(crate) struct RunOptions {
    /// How long one guess may take.
    pub(crate) timeout: Duration,
    /// Why guesses that need IPv6 cannot run, if they cannot.
    pub(crate) no_ipv6: Option<String>,
}

/// Runs those of `guesses` that are needed to find the `wanted` keys, and adds what they find to `layout`. Returns the
/// keys that they do not find.
///
/// # Errors
///
/// When no thread can be started. It is not an error if a guess finds nothing: the returned keys have reasons.
pub(crate) fn run_all(
    mut guesses: Vec<Box<dyn AnyGuess>>,
    wanted: &[String],
    layout: &mut Layout,
    installer: &mut ProbeInstaller,
    options: &RunOptions,
) -> io::Result<Vec<Skipped>> {
    let steps: Vec<Step> = guesses.iter().map(|guess| Step { needs: guess.needs(), gives: guess.gives() }).collect();
    let probes: Vec<Probe> = guesses.iter().flat_map(|guess| guess.probes(0)).collect();
    installer.look_up_functions(&probes.iter().map(|probe| probe.function.as_str()).collect::<Vec<_>>());
    let mut runner = Runner { layout, installer, options, skipped: BTreeMap::new() };
    for level in levels(&steps, wanted, |key| runner.layout.contains(key)) {
        let members = guesses.iter_mut().enumerate().filter(|(index, _)| level.contains(index));
        runner.run_level(members.map(|(_, guess)| guess.as_mut() as &mut dyn AnyGuess).collect())?;
    }
    Ok(runner.skipped.into_values().collect())
}

struct Runner<'a> {
    layout: &'a mut Layout,
    installer: &'a mut ProbeInstaller,
    options: &'a RunOptions,
    /// What was not found, by key.
    skipped: BTreeMap<String, Skipped>,
}

/// A guess that has not found everything yet and has attempts left.
struct ActiveGuess<'a> {
    guess: &'a mut dyn AnyGuess,
    /// The number of the current attempt.
    attempt: u32,
    /// The keys that it gives and has not found yet.
    missing: Vec<String>,
    /// How long its attempts took.
    running: Duration,
    /// How long its probes took to install, which may be long on a busy machine. They are installed together with those of other
    /// guesses, so this time does not count against the limit.
    installing: Duration,
}

impl ActiveGuess<'_> {
    /// When its time is over, if it runs from now on.
    fn deadline(&self, now: Instant, timeout: Duration) -> Instant {
        now + timeout.saturating_sub(self.running)
    }
}

/// What a guess's thread reports besides candidates.
#[derive(Default)]
struct ThreadReport {
    /// Why the last trigger that failed did so, or why the guess could not run.
    error: Option<String>,
    called_functions: BTreeSet<String>,
}

impl Runner<'_> {
    /// Runs guesses that do not depend on each other, until each has found all its keys or has no attempt left.
    fn run_level(&mut self, guesses: Vec<&mut dyn AnyGuess>) -> io::Result<()> {
        let mut active: Vec<ActiveGuess<'_>> = guesses.into_iter().filter_map(|guess| self.start(guess)).collect();
        while !active.is_empty() {
            self.run_attempts(&mut active)?;
            for guess in &mut active {
                guess.attempt += 1;
            }
            active.retain(|guess| !guess.missing.is_empty() && guess.attempt < guess.guess.attempts());
        }
        Ok(())
    }

    /// Makes a guess active. If it cannot run, the reason is noted for each of its keys.
    fn start<'a>(&mut self, guess: &'a mut dyn AnyGuess) -> Option<ActiveGuess<'a>> {
        let mut missing = guess.gives();
        missing.retain(|key| !self.layout.has_either_form(key));
        if let Some(reason) = self.options.no_ipv6.as_ref().filter(|_| guess.ipv6()) {
            self.skip(&missing, SkipKind::NoIpv6, reason);
            return None;
        }
        if let Some(needed) = guess.needs().into_iter().find(|key| !self.layout.contains(key)) {
            let reason = self.skipped.get(&needed).map_or("no guess gives it", |skipped| &skipped.reason);
            let reason = format!("finding it needs {needed}, which was not found: {reason}");
            self.skip(&missing, SkipKind::NotFound, &reason);
            return None;
        }
        Some(ActiveGuess { guess, attempt: 0, missing, running: Duration::ZERO, installing: Duration::ZERO })
    }

    fn skip(&mut self, keys: &[String], kind: SkipKind, reason: &str) {
        for key in keys {
            let skipped = Skipped { key: key.clone(), kind, reason: reason.to_owned() };
            self.skipped.insert(key.clone(), skipped);
        }
    }

    /// Installs the probes of one attempt of each guess, and makes the attempts one after the other.
    fn run_attempts(&mut self, active: &mut [ActiveGuess<'_>]) -> io::Result<()> {
        let began = Instant::now();
        let ProbePlan { probes, indices } = plan_probes(active);
        let installed = match self.installer.install(probes.clone(), self.layout) {
            Ok(installed) => installed,
            Err(error) => {
                active.iter().for_each(|guess| self.skip(&guess.missing, SkipKind::NotFound, &error.to_string()));
                return Ok(());
            }
        };
        let installing_took = began.elapsed();
        for (guess, indices) in active.iter_mut().zip(&indices) {
            let began = Instant::now();
            guess.installing += installing_took;
            self.run_attempt(guess, &installed, indices, &probes)?;
            guess.running += began.elapsed();
        }
        drop(installed);
        Ok(())
    }

    /// Makes one attempt of a guess, and adds what it finds to the layout.
    fn run_attempt(
        &mut self,
        active: &mut ActiveGuess<'_>,
        installed: &InstalledProbes,
        indices: &[usize],
        probes: &[Probe],
    ) -> io::Result<()> {
        let keys = self.keys_with_probes(active, installed, indices, probes);
        if keys.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let deadline = active.deadline(began, self.options.timeout);
        let mut candidates = Candidates::for_keys(&keys);
        let report = run_on_own_thread(active.guess, installed, indices, &mut candidates, deadline)?;
        for (key, verdict) in candidates.final_verdicts() {
            // Another attempt captures other memory, so it does not help with a key that was seen in this one.
            if matches!(verdict, Verdict::Found(_) | Verdict::Inconclusive(_)) {
                active.missing.retain(|missing| missing != key);
            }
            if let Verdict::Found(value) = verdict {
                self.layout.set(key, value, ValueOrigin::Guess, active.installing + active.running + began.elapsed());
                self.skipped.remove(key);
            } else {
                let (kind, reason) = self.why_not_found(key, verdict, &report, candidates.runs());
                self.skip(&[key.to_owned()], kind, &reason);
            }
        }
        // A kernel has only one of two forms of a key.
        active.missing.retain(|key| !self.layout.has_either_form(key));
        Ok(())
    }

    /// The missing keys of a guess, without those whose probe could not be installed.
    fn keys_with_probes(
        &mut self,
        active: &ActiveGuess<'_>,
        installed: &InstalledProbes,
        indices: &[usize],
        probes: &[Probe],
    ) -> Vec<String> {
        let mut keys = active.missing.clone();
        for &index in indices {
            if let Some(error) = installed.install_error(index) {
                let dependent = keys_that_need(&probes[index], &keys);
                self.skip(&dependent, skip_kind(error), &error.to_string());
                keys.retain(|key| !dependent.contains(key));
            }
        }
        keys
    }

    fn why_not_found(&self, key: &str, verdict: Verdict, report: &ThreadReport, runs: u32) -> (SkipKind, String) {
        let function = catalog::split_argument_key(key).map(|(function, _)| function);
        let called = &report.called_functions;
        if let Some(function) = function.filter(|&function| !called.contains(function))
            && !called.is_empty()
        {
            let reason = format!("{function} was not called in {runs} runs that should call it: it is inlined");
            return (SkipKind::NeverCalled, reason);
        }
        let reason = match (verdict, &report.error) {
            (Verdict::Inconclusive(reason), _) => reason,
            (Verdict::NotSeen, _) => format!("it was not seen in {runs} runs"),
            (_, Some(error)) => error.clone(),
            (_, None) => format!("not certain after {runs} runs in {:?}", self.options.timeout),
        };
        (SkipKind::NotFound, reason)
    }
}

/// The probes of one attempt of each of several guesses.
struct ProbePlan {
    /// All probes, with equal ones listed once.
    probes: Vec<Probe>,
    /// For each guess, the indices of its probes.
    indices: Vec<Vec<usize>>,
}

/// Collects the probes that active guesses need for what they have not found yet.
fn plan_probes(active: &[ActiveGuess<'_>]) -> ProbePlan {
    let mut plan = ProbePlan { probes: Vec::new(), indices: Vec::new() };
    for guess in active {
        let mut own = Vec::new();
        for probe in guess.guess.probes(guess.attempt) {
            if keys_that_need(&probe, &guess.missing).is_empty() {
                continue;
            }
            let known = plan.probes.iter().position(|known| *known == probe);
            own.push(known.unwrap_or(plan.probes.len()));
            if known.is_none() {
                plan.probes.push(probe);
            }
        }
        plan.indices.push(own);
    }
    plan
}

/// Those of `keys` that cannot be found without the probe.
fn keys_that_need(probe: &Probe, keys: &[String]) -> Vec<String> {
    let function = |key: &String| catalog::split_argument_key(key).map(|(function, _)| function.to_owned());
    let needs_it = |key: &&String| !probe.optional || function(key).as_ref() == Some(&probe.function);
    keys.iter().filter(needs_it).cloned().collect()
}

fn skip_kind(error: &Error) -> SkipKind {
    if error.kind() == Kind::NoFunction { SkipKind::NoFunction } else { SkipKind::NotFound }
}

/// Runs a guess repeatedly on a thread of its own.
fn run_on_own_thread(
    guess: &mut dyn AnyGuess,
    installed: &InstalledProbes,
    indices: &[usize],
    candidates: &mut Candidates,
    deadline: Instant,
) -> io::Result<ThreadReport> {
    let name = format!("guess {}", guess.name());
    thread::scope(|scope| {
        let run = || run_on_this_thread(guess, installed, indices, candidates, deadline);
        let thread = thread::Builder::new().name(name).spawn_scoped(scope, run)?;
        let panicked =
            |_| ThreadReport { error: Some("the guess panicked: this is a bug".to_owned()), ..ThreadReport::default() };
        Ok(thread.join().unwrap_or_else(panicked))
    })
}

fn run_on_this_thread(
    guess: &mut dyn AnyGuess,
    installed: &InstalledProbes,
    indices: &[usize],
    candidates: &mut Candidates,
    deadline: Instant,
) -> ThreadReport {
    match ProbedThread::attach(installed, indices) {
        Ok(mut thread) => {
            let error = repeat(guess, &mut thread, candidates, deadline);
            ThreadReport { error, called_functions: thread.called_functions().clone() }
        }
        Err(error) => ThreadReport { error: Some(error.to_string()), ..ThreadReport::default() },
    }
}

/// Runs a guess until all its keys are decided, the deadline has passed, or its trigger keeps failing. Returns why the
/// last trigger that failed did so.
fn repeat(
    guess: &mut dyn AnyGuess,
    context: &mut dyn Context,
    candidates: &mut Candidates,
    deadline: Instant,
) -> Option<String> {
    let (mut failures, mut last_error) = (0, None);
    while candidates.is_undecided() && Instant::now() < deadline && failures < MAX_FAILURES {
        match guess.run_once(context) {
            Ok(evidence) => {
                candidates.add(evidence);
                failures = 0;
            }
            Err(error) => {
                last_error = Some(format!("the trigger failed: {error}"));
                failures += 1;
            }
        }
    }
    last_error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::call::Call;
    use crate::engine::candidates::Evidence;
    use crate::engine::guess::{Guess, NoCalls};
    use crate::engine::random::Random;

    /// A guess with given evidence for each run; `None` is a trigger that fails.
    struct Scripted(Vec<Option<Vec<u32>>>);

    impl Guess for Scripted {
        type Expected = Vec<u32>;

        fn name(&self) -> &'static str {
            "scripted"
        }

        fn needs(&self) -> Vec<String> {
            Vec::new()
        }

        fn gives(&self) -> Vec<String> {
            vec!["a.b".to_owned()]
        }

        fn probes(&self, _attempt: u32) -> Vec<Probe> {
            Vec::new()
        }

        fn trigger(&mut self, _context: &mut dyn Context) -> io::Result<Vec<u32>> {
            let run = if self.0.is_empty() { None } else { self.0.remove(0) };
            run.ok_or_else(|| io::Error::other("refused"))
        }

        fn solve(&self, expected: &Vec<u32>, _calls: &[Call]) -> Evidence {
            let mut evidence = Evidence::default();
            evidence.one_of("a.b", expected.iter().copied());
            evidence
        }
    }

    fn run(evidence: &[Option<&[u32]>], time: Duration) -> (Verdict, Option<String>, u32) {
        let mut guess = Scripted(evidence.iter().map(|run| run.map(<[u32]>::to_vec)).collect());
        let mut candidates = Candidates::for_keys(&["a.b".to_owned()]);
        let error = repeat(&mut guess, &mut NoCalls(Random::new()), &mut candidates, Instant::now() + time);
        let verdict = candidates.verdicts().next().unwrap().1;
        (verdict, error, candidates.runs())
    }

    const TIME: Duration = Duration::from_secs(60);

    #[test]
    fn a_guess_runs_until_enough_runs_agree_on_one_candidate() {
        let (verdict, error, runs) =
            run(&[Some(&[1, 2, 3]), Some(&[2, 3]), Some(&[2]), Some(&[2]), Some(&[2]), Some(&[9])], TIME);
        assert_eq!((verdict, error, runs), (Verdict::Found(2), None, 5));
    }

    #[test]
    fn a_trigger_may_fail_now_and_then() {
        let (verdict, error, _) = run(&[None, Some(&[2]), None, None, Some(&[2]), Some(&[2])], TIME);
        assert_eq!(verdict, Verdict::Found(2));
        assert!(error.unwrap().ends_with("refused"));
    }

    #[test]
    fn a_guess_ends_when_its_trigger_always_fails() {
        let (verdict, error, runs) = run(&[], TIME);
        assert_eq!((verdict, runs), (Verdict::Undecided, 0));
        assert_eq!(error.unwrap(), "the trigger failed: refused");
    }

    #[test]
    fn a_guess_ends_at_its_deadline() {
        let (verdict, error, runs) = run(&[Some(&[2])], Duration::ZERO);
        assert_eq!((verdict, error, runs), (Verdict::Undecided, None, 0));
    }

    #[test]
    fn the_time_in_which_probes_are_installed_does_not_count_against_the_limit() {
        let [second, minute] = [1, 60].map(Duration::from_secs);
        let mut scripted = Scripted(Vec::new());
        let mut guess =
            ActiveGuess { guess: &mut scripted, attempt: 1, missing: Vec::new(), running: second, installing: minute };
        let now = Instant::now();
        assert_eq!(guess.deadline(now, minute), now + 59 * second);
        guess.running = minute + second;
        assert_eq!(guess.deadline(now, minute), now);
    }

    #[test]
    fn keys_of_other_functions_do_not_need_an_optional_probe() {
        let keys = ["f(a)", "f(b)", "g(a)", "s.m"].map(str::to_owned);
        assert_eq!(keys_that_need(&Probe::on("f").optional(), &keys), ["f(a)", "f(b)"]);
        assert_eq!(keys_that_need(&Probe::on("f"), &keys), keys);
    }
}
