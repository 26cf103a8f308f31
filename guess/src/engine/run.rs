//! Running guesses.

use super::board::{Board, Posted};
use super::clues::{Candidates, Verdict};
use super::guess::{AnyGuess, Scene, Stage};
use super::plan::{Step, levels};
use super::probe::Probe;
use crate::catalog;
use crate::layout::{Layout, Origin};
use crate::resolve::{SkipKind, Skipped};
use socktrail_kprobes::{Error, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// How many triggers in a row may fail before a guess gives up.
const FAILURES: u32 = 5;

/// How guesses are run.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// How long one guess may take.
    pub(crate) timeout: Duration,
    /// Why guesses that need IPv6 cannot run, if they cannot.
    pub(crate) no_ipv6: Option<String>,
}

/// Runs what is needed of `guesses` to find the keys `wanted`, and adds what they find to `layout`. Returns what they do
/// not find.
///
/// # Errors
///
/// When no thread can be started. A guess that finds nothing is no error: then there are reasons.
pub(crate) fn run_all(
    mut guesses: Vec<Box<dyn AnyGuess>>,
    wanted: &[String],
    layout: &mut Layout,
    board: &mut Board,
    terms: &Terms,
) -> io::Result<Vec<Skipped>> {
    let steps: Vec<Step> = guesses.iter().map(|guess| Step { needs: guess.needs(), gives: guess.gives() }).collect();
    let probes: Vec<Probe> = guesses.iter().flat_map(|guess| guess.probes(0)).collect();
    board.learn(&probes.iter().map(|probe| probe.function.as_str()).collect::<Vec<_>>());
    let mut run = Run { layout, board, terms, skipped: BTreeMap::new() };
    for level in levels(&steps, wanted, |key| run.layout.knows(key)) {
        let members = guesses.iter_mut().enumerate().filter(|(index, _)| level.contains(index));
        run.level(members.map(|(_, guess)| guess.as_mut() as &mut dyn AnyGuess).collect())?;
    }
    Ok(run.skipped.into_values().collect())
}

/// A run of guesses under way.
struct Run<'a> {
    layout: &'a mut Layout,
    board: &'a mut Board,
    terms: &'a Terms,
    /// What was not found, by key.
    skipped: BTreeMap<String, Skipped>,
}

/// A guess that is running.
struct Runner<'a> {
    guess: &'a mut dyn AnyGuess,
    attempt: u32,
    /// What it gives and has not found yet.
    missing: Vec<String>,
    spent: Duration,
}

/// How it went on a guess's thread.
#[derive(Default)]
struct Report {
    /// What ended the guess before its time.
    trouble: Option<String>,
    /// The functions that were called.
    called: BTreeSet<String>,
}

impl Run<'_> {
    /// Runs guesses that do not need each other, those that found nothing where they looked first once more.
    fn level(&mut self, guesses: Vec<&mut dyn AnyGuess>) -> io::Result<()> {
        let mut runners: Vec<Runner<'_>> = guesses.into_iter().filter_map(|guess| self.runner(guess)).collect();
        while !runners.is_empty() {
            self.round(&mut runners)?;
            for runner in &mut runners {
                runner.attempt += 1;
            }
            runners.retain(|runner| !runner.missing.is_empty() && runner.attempt < runner.guess.attempts());
        }
        Ok(())
    }

    /// A guess that can begin. Of another it is said why it cannot.
    fn runner<'a>(&mut self, guess: &'a mut dyn AnyGuess) -> Option<Runner<'a>> {
        let mut missing = guess.gives();
        missing.retain(|key| !self.layout.needs_no(key));
        if let Some(why) = self.terms.no_ipv6.as_ref().filter(|_| guess.ipv6()) {
            self.skip(&missing, SkipKind::NoIpv6, why);
            return None;
        }
        if let Some(lacks) = guess.needs().into_iter().find(|key| !self.layout.knows(key)) {
            let why = self.skipped.get(&lacks).map_or("nothing gives it", |skipped| &skipped.reason);
            let why = format!("it takes {lacks} to find it, and that was not found: {why}");
            self.skip(&missing, SkipKind::NotFound, &why);
            return None;
        }
        Some(Runner { guess, attempt: 0, missing, spent: Duration::ZERO })
    }

    fn skip(&mut self, keys: &[String], kind: SkipKind, reason: &str) {
        for key in keys {
            let skipped = Skipped { key: key.clone(), kind, reason: reason.to_owned() };
            self.skipped.insert(key.clone(), skipped);
        }
    }

    /// Installs what the guesses want to look through and runs one guess after the other.
    fn round(&mut self, runners: &mut [Runner<'_>]) -> io::Result<()> {
        let began = Instant::now();
        let (probes, numbers) = number(runners);
        let posted = match self.board.post(probes.clone(), self.layout) {
            Ok(posted) => posted,
            Err(error) => {
                runners.iter().for_each(|runner| self.skip(&runner.missing, SkipKind::NotFound, &error.to_string()));
                return Ok(());
            }
        };
        let installed = began.elapsed();
        for (runner, numbers) in runners.iter_mut().zip(&numbers) {
            let began = Instant::now();
            runner.spent += installed;
            self.attempt(runner, &posted, numbers, &probes)?;
            runner.spent += began.elapsed();
            tracing::debug!(guess = runner.guess.name(), took = ?runner.spent, missing = ?runner.missing);
        }
        let removing = Instant::now();
        drop(posted);
        tracing::debug!(probes = probes.len(), ?installed, removed = ?removing.elapsed(), all = ?began.elapsed());
        Ok(())
    }

    /// Runs a guess and takes what it finds into the layout.
    fn attempt(
        &mut self,
        runner: &mut Runner<'_>,
        posted: &Posted,
        numbers: &[usize],
        probes: &[Probe],
    ) -> io::Result<()> {
        let mut keys = runner.missing.clone();
        for &number in numbers {
            if let Some(error) = posted.refused(number) {
                let lost = lost(&probes[number], &keys);
                self.skip(&lost, kind_of(error), &error.to_string());
                keys.retain(|key| !lost.contains(key));
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let until = began + self.terms.timeout.saturating_sub(runner.spent);
        let mut candidates = Candidates::of(&keys);
        let report = on_own_thread(runner.guess, posted, numbers, &mut candidates, until)?;
        tracing::trace!(guess = runner.guess.name(), runs = candidates.runs(), took = ?began.elapsed());
        for (key, verdict) in candidates.verdicts() {
            // What was seen here is not looked for elsewhere.
            if matches!(verdict, Verdict::Is(_) | Verdict::Unclear(_)) {
                runner.missing.retain(|missing| missing != key);
            }
            if let Verdict::Is(value) = verdict {
                self.layout.set(key, value, Origin::Guess, runner.spent + began.elapsed());
                self.skipped.remove(key);
            } else {
                let (kind, why) = self.why_not(key, verdict, &report, candidates.runs());
                self.skip(&[key.to_owned()], kind, &why);
            }
        }
        // This kernel does not have the other form of what was found.
        runner.missing.retain(|key| !self.layout.needs_no(key));
        Ok(())
    }

    fn why_not(&self, key: &str, verdict: Verdict, report: &Report, runs: u32) -> (SkipKind, String) {
        let function = catalog::split_argument_key(key).map(|(function, _)| function);
        if let Some(function) = function.filter(|&function| !report.called.contains(function))
            && !report.called.is_empty()
        {
            let why = format!("{function} was not called in {runs} runs that should have: its callers have its code");
            return (SkipKind::NeverCalled, why);
        }
        let why = match (verdict, &report.trouble) {
            (Verdict::Unclear(why), _) => why,
            (Verdict::Unseen, _) => format!("it was not seen in {runs} runs"),
            (_, Some(trouble)) => trouble.clone(),
            (_, None) => format!("not certain after {runs} runs in {:?}", self.terms.timeout),
        };
        (SkipKind::NotFound, why)
    }
}

/// Everything that guesses want to look through, what they declare alike once, and for each guess the numbers of its
/// probes. Those that serve only what is known already are left out.
fn number(runners: &[Runner<'_>]) -> (Vec<Probe>, Vec<Vec<usize>>) {
    let mut probes: Vec<Probe> = Vec::new();
    let mut numbers = Vec::new();
    for runner in runners {
        let mut own = Vec::new();
        for probe in runner.guess.probes(runner.attempt) {
            if lost(&probe, &runner.missing).is_empty() {
                continue;
            }
            let known = probes.iter().position(|known| *known == probe);
            own.push(known.unwrap_or(probes.len()));
            if known.is_none() {
                probes.push(probe);
            }
        }
        numbers.push(own);
    }
    (probes, numbers)
}

/// The keys that cannot be found without a probe.
fn lost(probe: &Probe, keys: &[String]) -> Vec<String> {
    let function = |key: &String| catalog::split_argument_key(key).map(|(function, _)| function.to_owned());
    let hangs_on_it = |key: &&String| !probe.optional || function(key).as_ref() == Some(&probe.function);
    keys.iter().filter(hangs_on_it).cloned().collect()
}

fn kind_of(error: &Error) -> SkipKind {
    if error.kind() == Kind::NoFunction { SkipKind::NoFunction } else { SkipKind::NotFound }
}

/// Runs a guess again and again on a fresh thread.
fn on_own_thread(
    guess: &mut dyn AnyGuess,
    posted: &Posted,
    numbers: &[usize],
    candidates: &mut Candidates,
    until: Instant,
) -> io::Result<Report> {
    let name = format!("guess {}", guess.name());
    thread::scope(|scope| {
        let runs = || on_stage(guess, posted, numbers, candidates, until);
        let running = thread::Builder::new().name(name).spawn_scoped(scope, runs)?;
        let broken =
            |_| Report { trouble: Some("the guess broke down: this is a bug".to_owned()), ..Report::default() };
        Ok(running.join().unwrap_or_else(broken))
    })
}

fn on_stage(
    guess: &mut dyn AnyGuess,
    posted: &Posted,
    numbers: &[usize],
    candidates: &mut Candidates,
    until: Instant,
) -> Report {
    match Stage::new(posted, numbers) {
        Ok(mut stage) => {
            let trouble = repeat(guess, &mut stage, candidates, until);
            Report { trouble, called: stage.called().clone() }
        }
        Err(error) => Report { trouble: Some(error.to_string()), ..Report::default() },
    }
}

/// Runs a guess until nothing is open, and tells the last trouble that it had, if any.
fn repeat(
    guess: &mut dyn AnyGuess,
    scene: &mut dyn Scene,
    candidates: &mut Candidates,
    until: Instant,
) -> Option<String> {
    let (mut failures, mut trouble) = (0, None);
    while candidates.open() && Instant::now() < until && failures < FAILURES {
        match guess.once(scene) {
            Ok(clues) => {
                candidates.note(clues);
                failures = 0;
            }
            Err(error) => {
                trouble = Some(format!("what would show it does not work: {error}"));
                failures += 1;
            }
        }
    }
    trouble
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::clues::Clues;
    use crate::engine::guess::Guess;
    use crate::engine::random::Random;
    use crate::engine::shot::Shot;

    /// A guess that is told what each run shows.
    struct Told(Vec<Option<Vec<u32>>>);

    impl Guess for Told {
        type Sent = Vec<u32>;

        fn name(&self) -> &'static str {
            "told"
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

        fn trigger(&mut self, _scene: &mut dyn Scene) -> io::Result<Vec<u32>> {
            let run = if self.0.is_empty() { None } else { self.0.remove(0) };
            run.ok_or_else(|| io::Error::other("refused"))
        }

        fn solve(&self, sent: &Vec<u32>, _shots: &[Shot]) -> Clues {
            let mut clues = Clues::default();
            clues.allow("a.b", sent.iter().copied());
            clues
        }
    }

    struct Nowhere(Random);

    impl Scene for Nowhere {
        fn random(&mut self) -> &mut Random {
            &mut self.0
        }

        fn watch(&mut self, _pid: u32) -> io::Result<()> {
            Ok(())
        }

        fn shots(&mut self) -> Vec<Shot> {
            Vec::new()
        }
    }

    fn run(shown: &[Option<&[u32]>], time: Duration) -> (Verdict, Option<String>, u32) {
        let mut guess = Told(shown.iter().map(|run| run.map(<[u32]>::to_vec)).collect());
        let mut candidates = Candidates::of(&["a.b".to_owned()]);
        let trouble = repeat(&mut guess, &mut Nowhere(Random::new()), &mut candidates, Instant::now() + time);
        let verdict = candidates.verdicts().next().unwrap().1;
        (verdict, trouble, candidates.runs())
    }

    const TIME: Duration = Duration::from_secs(60);

    #[test]
    fn it_runs_until_one_is_left() {
        let (verdict, trouble, runs) =
            run(&[Some(&[1, 2, 3]), Some(&[2, 3]), Some(&[2]), Some(&[2]), Some(&[2]), Some(&[9])], TIME);
        assert_eq!((verdict, trouble, runs), (Verdict::Is(2), None, 5));
    }

    #[test]
    fn a_trigger_that_fails_now_and_then_does_not_matter() {
        let (verdict, trouble, _) = run(&[None, Some(&[2]), None, None, Some(&[2]), Some(&[2])], TIME);
        assert_eq!(verdict, Verdict::Is(2));
        assert!(trouble.unwrap().ends_with("refused"));
    }

    #[test]
    fn a_trigger_that_always_fails_ends_it() {
        let (verdict, trouble, runs) = run(&[], TIME);
        assert_eq!((verdict, runs), (Verdict::Open, 0));
        assert_eq!(trouble.unwrap(), "what would show it does not work: refused");
    }

    #[test]
    fn time_ends_it() {
        let (verdict, trouble, runs) = run(&[Some(&[2])], Duration::ZERO);
        assert_eq!((verdict, trouble, runs), (Verdict::Open, None, 0));
    }

    #[test]
    fn a_probe_that_is_refused_takes_its_own_arguments_only_if_others_can_do_without() {
        let keys = ["f(a)", "f(b)", "g(a)", "s.m"].map(str::to_owned);
        assert_eq!(lost(&Probe::on("f").optional(), &keys), ["f(a)", "f(b)"]);
        assert_eq!(lost(&Probe::on("f"), &keys), keys);
    }
}
