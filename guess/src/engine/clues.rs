//! Candidates for each key, fewer with every run.

use crate::catalog;
use std::collections::{BTreeMap, BTreeSet};

/// How many runs may say nothing of a key before it is said that nothing is to be seen of it.
const SILENT: u32 = 6;
/// How many runs must agree before what is left is believed, each with other random values. The right value fits every
/// run that was not disturbed, so for each run that it does not fit one more must agree: what fits now and then is not it,
/// even where the right value is not among what was looked at.
const ENOUGH: u32 = 3;
/// How many runs may leave the same candidates, or speak against what is left, before it is said that this will not end.
const STUCK: u32 = 12;

/// What one run showed: for each key that it had something to say about, the values that fit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Clues(BTreeMap<String, BTreeSet<u32>>);

impl Clues {
    /// The run showed that `key` has one of these values. None at all means that the run was disturbed.
    pub(crate) fn allow(&mut self, key: &str, values: impl IntoIterator<Item = u32>) {
        let values: BTreeSet<u32> = values.into_iter().collect();
        let both = match self.0.get(key) {
            Some(known) => known.intersection(&values).copied().collect(),
            None => values,
        };
        self.0.insert(key.to_owned(), both);
    }

    /// What a key may be after this run.
    #[cfg(test)]
    pub(crate) fn of(&self, key: &str) -> Vec<u32> {
        self.0.get(key).into_iter().flatten().copied().collect()
    }
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// More runs are needed.
    Open,
    /// This it is.
    Is(u32),
    /// Nothing is to be seen of it.
    Unseen,
    /// It was seen, but more runs will not make it clear.
    Unclear(String),
}

/// What is left after some runs.
#[derive(Debug)]
pub(crate) struct Candidates {
    left: BTreeMap<String, Left>,
    runs: u32,
}

#[derive(Debug, Default)]
struct Left {
    values: BTreeSet<u32>,
    /// How many runs spoke of it and left these values.
    agreed: u32,
    /// How many runs said nothing of it, or contradicted what the ones before had left.
    against: u32,
}

impl Candidates {
    /// Nothing is known of any of these keys.
    pub(crate) fn of(keys: &[String]) -> Self {
        Self { left: keys.iter().map(|key| (key.clone(), Left::default())).collect(), runs: 0 }
    }

    /// How many runs there were.
    pub(crate) fn runs(&self) -> u32 {
        self.runs
    }

    /// Takes what a run showed.
    pub(crate) fn note(&mut self, clues: Clues) {
        self.runs += 1;
        let Clues(mut shown) = clues;
        for (key, left) in &mut self.left {
            let mut values = shown.remove(key).unwrap_or_default();
            values.retain(|&value| catalog::may_be(key, value));
            left.note(values);
        }
    }

    /// What is known of each key.
    pub(crate) fn verdicts(&self) -> impl Iterator<Item = (&str, Verdict)> {
        self.left.iter().map(|(key, left)| (key.as_str(), left.verdict(key, self.runs)))
    }

    /// Whether more runs could tell more.
    pub(crate) fn open(&self) -> bool {
        let verdict = |key: &str| self.left.get(key).map(|left| left.verdict(key, self.runs));
        let other_is_found = |key| matches!(catalog::other_form(key).and_then(verdict), Some(Verdict::Is(_)));
        self.verdicts().any(|(key, verdict)| verdict == Verdict::Open && !other_is_found(key))
    }
}

impl Left {
    /// Takes what a run showed; nothing if it did not speak of this.
    fn note(&mut self, shown: BTreeSet<u32>) {
        let both: BTreeSet<u32> = self.values.intersection(&shown).copied().collect();
        if shown.is_empty() {
            self.against += 1;
        } else if self.agreed > 0 && both == self.values {
            self.agreed += 1;
        } else if both.is_empty() {
            // The first to speak, or a contradiction: one of the two was disturbed, so begin again.
            self.against += u32::from(self.agreed > 0);
            (self.values, self.agreed) = (shown, 1);
        } else {
            (self.values, self.agreed) = (both, 1);
        }
    }

    fn verdict(&self, key: &str, runs: u32) -> Verdict {
        let of_argument = catalog::split_argument_key(key).is_some();
        let is_one = self.values.len() == 1;
        // An argument's value may be left over in a later register, but no earlier argument carries it.
        let lowest = self.values.first().filter(|_| of_argument || is_one);
        match lowest {
            Some(&value) if self.agreed >= ENOUGH + self.against => Verdict::Is(value),
            _ if self.agreed == 0 && runs >= SILENT => Verdict::Unseen,
            _ if self.against >= STUCK => {
                Verdict::Unclear(format!("{} of {runs} runs speak against what the others show", self.against))
            }
            _ if self.agreed >= STUCK && !is_one => Verdict::Unclear(self.ambiguous()),
            _ => Verdict::Open,
        }
    }

    fn ambiguous(&self) -> String {
        let values: Vec<_> = self.values.iter().map(ToString::to_string).collect();
        format!("ambiguous: {} fit equally well", values.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(key: &str, runs: &[&[u32]]) -> Verdict {
        let mut candidates = Candidates::of(&[key.to_owned()]);
        for run in runs {
            let mut clues = Clues::default();
            clues.allow(key, run.iter().copied());
            candidates.note(clues);
        }
        let verdict = candidates.verdicts().next().unwrap().1;
        assert_eq!(candidates.open(), verdict == Verdict::Open);
        verdict
    }

    #[test]
    fn one_candidate_that_runs_agree_on_is_it() {
        assert_eq!(after("a.b", &[&[4, 8], &[8, 12], &[8]]), Verdict::Open);
        assert_eq!(after("a.b", &[&[4, 8], &[8, 12], &[8], &[8]]), Verdict::Is(8));
    }

    #[test]
    fn what_fits_now_and_then_is_not_it() {
        let now_and_then: [&[u32]; 24] = std::array::from_fn(|run| if run % 2 == 0 { &[8][..] } else { &[] });
        for runs in 2..23 {
            assert_eq!(after("a.b", &now_and_then[..runs]), Verdict::Open, "{runs}");
        }
        let why = "12 of 24 runs speak against what the others show".to_owned();
        assert_eq!(after("a.b", &now_and_then), Verdict::Unclear(why));
    }

    #[test]
    fn what_lies_outside_of_a_control_block_is_no_candidate() {
        let key = "inet6_skb_parm.frag_max_size";
        assert_eq!(after(key, &[&[128][..]; 6]), Verdict::Unseen);
        assert_eq!(after(key, &[&[58, 128][..]; 3]), Verdict::Is(58));
    }

    #[test]
    fn nobody_waits_for_the_other_form_of_what_is_found() {
        let [new, old] = ["task_struct.start_boottime", "task_struct.real_start_time"].map(str::to_owned);
        for (seen, unseen) in [(&new, &old), (&old, &new)] {
            let mut candidates = Candidates::of(&[new.clone(), old.clone()]);
            for run in 0..ENOUGH {
                assert!(candidates.open(), "{seen} after {run}");
                let mut clues = Clues::default();
                clues.allow(seen, [2784]);
                clues.allow(unseen, []);
                candidates.note(clues);
            }
            assert!(!candidates.open(), "{seen}");
        }
    }

    #[test]
    fn candidates_that_stay_are_named() {
        let verdict = after("a.b", &[&[4, 8][..]; 12]);
        assert_eq!(verdict, Verdict::Unclear("ambiguous: 4, 8 fit equally well".to_owned()));
    }

    #[test]
    fn the_first_of_the_arguments_that_fit_is_it() {
        assert_eq!(after("f(a)", &[&[2, 4, 5], &[2, 5], &[2, 5], &[2, 5]]), Verdict::Is(2));
    }

    #[test]
    fn a_disturbed_run_is_outvoted() {
        assert_eq!(after("a.b", &[&[4], &[8], &[8], &[8]]), Verdict::Open);
        assert_eq!(after("a.b", &[&[4], &[8], &[8], &[8], &[8]]), Verdict::Is(8));
        assert_eq!(after("a.b", &[&[8], &[], &[8], &[8], &[8]]), Verdict::Is(8));
    }

    #[test]
    fn silence_is_told() {
        let verdict = after("a.b", &[&[][..]; 6]);
        assert_eq!(verdict, Verdict::Unseen);
    }

    #[test]
    fn several_clues_of_one_run_must_all_hold() {
        let mut clues = Clues::default();
        clues.allow("a.b", [1, 2, 3]);
        clues.allow("a.b", [2, 3, 4]);
        assert_eq!(clues.of("a.b"), [2, 3]);
    }
}
