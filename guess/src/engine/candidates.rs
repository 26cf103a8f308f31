//! Candidate values for each key, which every run of a guess narrows down.

use crate::catalog;
use std::collections::{BTreeMap, BTreeSet};

/// After this many runs without evidence for a key, the key counts as not seen.
const MAX_RUNS_UNSEEN: u32 = 6;
/// How many runs, each with other random values, must leave the same candidates. The right value fits every run that
/// was not disturbed. So each run that contradicts the candidates demands one more that agrees: a value that fits only
/// now and then is not believed, even if the right value is not among those that were looked at.
const MIN_RUNS_AGREEING: u32 = 3;
/// After this many runs that leave the same candidates, or that contradict them, more runs will not help.
const MAX_RUNS_STALLED: u32 = 12;

/// What one run showed: for each key that it had evidence for, the values that fit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Evidence(BTreeMap<String, BTreeSet<u32>>);

impl Evidence {
    /// Adds evidence that `key` has one of these values. Evidence that is added later for the same key must hold as
    /// well. No value at all means that the run was disturbed.
    pub(crate) fn one_of(&mut self, key: &str, values: impl IntoIterator<Item = u32>) {
        let values: BTreeSet<u32> = values.into_iter().collect();
        let both = match self.0.get(key) {
            Some(known) => known.intersection(&values).copied().collect(),
            None => values,
        };
        self.0.insert(key.to_owned(), both);
    }

    /// The values that a key may have after this run.
    #[cfg(test)]
    pub(crate) fn values(&self, key: &str) -> Vec<u32> {
        self.0.get(key).into_iter().flatten().copied().collect()
    }
}

/// What is known about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// More runs are needed.
    Undecided,
    /// The key has this value.
    Found(u32),
    /// No run had evidence for the key.
    NotSeen,
    /// There is evidence, but more runs will not make it conclusive, for this reason.
    Inconclusive(String),
}

/// The candidates for each key after some runs.
#[derive(Debug)]
pub(crate) struct Candidates {
    keys: BTreeMap<String, Remaining>,
    runs: u32,
}

/// The candidates for one key.
#[derive(Debug, Default)]
struct Remaining {
    values: BTreeSet<u32>,
    /// How many runs had evidence for the key and left these values.
    agreeing: u32,
    /// How many runs had no evidence for the key, or contradicted the values that runs before had left.
    contradicting: u32,
}

impl Candidates {
    /// Candidates for these keys before the first run.
    pub(crate) fn for_keys(keys: &[String]) -> Self {
        Self { keys: keys.iter().map(|key| (key.clone(), Remaining::default())).collect(), runs: 0 }
    }

    /// How many runs there were.
    pub(crate) fn runs(&self) -> u32 {
        self.runs
    }

    /// Adds the evidence of a run.
    pub(crate) fn add(&mut self, evidence: Evidence) {
        self.runs += 1;
        let Evidence(mut evidence) = evidence;
        for (key, remaining) in &mut self.keys {
            let mut values = evidence.remove(key).unwrap_or_default();
            values.retain(|&value| catalog::is_possible_value(key, value));
            remaining.add(values);
        }
    }

    /// What is known about each key.
    pub(crate) fn verdicts(&self) -> impl Iterator<Item = (&str, Verdict)> {
        self.keys.iter().map(|(key, remaining)| (key.as_str(), remaining.verdict(key, self.runs)))
    }

    /// What is known about each key when there are no more runs.
    ///
    /// The arguments of a function must be in their order. An argument that was found after a later one is not an
    /// argument of this kernel's function: its value was left in the register by a caller.
    pub(crate) fn final_verdicts(&self) -> BTreeMap<&str, Verdict> {
        let verdicts: BTreeMap<&str, Verdict> = self.verdicts().collect();
        let check_order = |key: &str, verdict: &Verdict| {
            let Verdict::Found(position) = *verdict else { return verdict.clone() };
            let is_before = |later: &String| matches!(verdicts.get(later.as_str()), Some(Verdict::Found(other)) if *other <= position);
            match catalog::later_arguments(key).into_iter().find(is_before) {
                Some(later) => {
                    Verdict::Inconclusive(format!("it was found only after {later}, where a caller had left its value"))
                }
                None => verdict.clone(),
            }
        };
        verdicts.iter().map(|(key, verdict)| (*key, check_order(key, verdict))).collect()
    }

    /// Whether more runs may find more.
    pub(crate) fn is_undecided(&self) -> bool {
        let verdict = |key: &str| self.keys.get(key).map(|remaining| remaining.verdict(key, self.runs));
        let other_form_is_found = |key| matches!(catalog::other_form(key).and_then(verdict), Some(Verdict::Found(_)));
        self.verdicts().any(|(key, verdict)| verdict == Verdict::Undecided && !other_form_is_found(key))
    }
}

impl Remaining {
    /// Adds the values that fit in a run; none if it had no evidence for this key.
    fn add(&mut self, fitting: BTreeSet<u32>) {
        let both: BTreeSet<u32> = self.values.intersection(&fitting).copied().collect();
        if fitting.is_empty() {
            self.contradicting += 1;
        } else if self.agreeing > 0 && both == self.values {
            self.agreeing += 1;
        } else if both.is_empty() {
            // Either this is the first evidence, or it contradicts the evidence so far. Then one of the two runs was
            // disturbed, and it is not known which, so start again with this run.
            self.contradicting += u32::from(self.agreeing > 0);
            (self.values, self.agreeing) = (fitting, 1);
        } else {
            (self.values, self.agreeing) = (both, 1);
        }
    }

    fn verdict(&self, key: &str, runs: u32) -> Verdict {
        let is_argument = catalog::split_argument_key(key).is_some();
        let is_unique = self.values.len() == 1;
        // A later register may happen to hold an argument's value, but no earlier argument does.
        let value = self.values.first().filter(|_| is_argument || is_unique);
        match value {
            Some(&value) if self.agreeing >= MIN_RUNS_AGREEING + self.contradicting => Verdict::Found(value),
            _ if self.agreeing == 0 && runs >= MAX_RUNS_UNSEEN => Verdict::NotSeen,
            _ if self.contradicting >= MAX_RUNS_STALLED => {
                Verdict::Inconclusive(format!("{} of {runs} runs contradict the others", self.contradicting))
            }
            _ if self.agreeing >= MAX_RUNS_STALLED && !is_unique => Verdict::Inconclusive(self.ambiguous()),
            _ => Verdict::Undecided,
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
        let mut candidates = Candidates::for_keys(&[key.to_owned()]);
        for run in runs {
            let mut evidence = Evidence::default();
            evidence.one_of(key, run.iter().copied());
            candidates.add(evidence);
        }
        let verdict = candidates.verdicts().next().unwrap().1;
        assert_eq!(candidates.is_undecided(), verdict == Verdict::Undecided);
        verdict
    }

    #[test]
    fn a_candidate_that_runs_agree_on_is_found() {
        assert_eq!(after("a.b", &[&[4, 8], &[8, 12], &[8]]), Verdict::Undecided);
        assert_eq!(after("a.b", &[&[4, 8], &[8, 12], &[8], &[8]]), Verdict::Found(8));
    }

    #[test]
    fn a_value_that_fits_now_and_then_is_not_found() {
        let now_and_then: [&[u32]; 24] = std::array::from_fn(|run| if run % 2 == 0 { &[8][..] } else { &[] });
        for runs in 2..23 {
            assert_eq!(after("a.b", &now_and_then[..runs]), Verdict::Undecided, "{runs}");
        }
        let why = "12 of 24 runs contradict the others".to_owned();
        assert_eq!(after("a.b", &now_and_then), Verdict::Inconclusive(why));
    }

    #[test]
    fn an_offset_outside_the_control_block_is_not_a_candidate() {
        let key = "inet6_skb_parm.frag_max_size";
        assert_eq!(after(key, &[&[128][..]; 6]), Verdict::NotSeen);
        assert_eq!(after(key, &[&[58, 128][..]; 3]), Verdict::Found(58));
    }

    #[test]
    fn runs_end_when_one_of_two_forms_is_found() {
        let [new, old] = ["task_struct.start_boottime", "task_struct.real_start_time"].map(str::to_owned);
        for (seen, unseen) in [(&new, &old), (&old, &new)] {
            let mut candidates = Candidates::for_keys(&[new.clone(), old.clone()]);
            for run in 0..MIN_RUNS_AGREEING {
                assert!(candidates.is_undecided(), "{seen} after {run}");
                let mut evidence = Evidence::default();
                evidence.one_of(seen, [2784]);
                evidence.one_of(unseen, []);
                candidates.add(evidence);
            }
            assert!(!candidates.is_undecided(), "{seen}");
        }
    }

    #[test]
    fn remaining_candidates_are_named() {
        let verdict = after("a.b", &[&[4, 8][..]; 12]);
        assert_eq!(verdict, Verdict::Inconclusive("ambiguous: 4, 8 fit equally well".to_owned()));
    }

    #[test]
    fn the_first_argument_that_fits_is_found() {
        assert_eq!(after("f(a)", &[&[2, 4, 5], &[2, 5], &[2, 5], &[2, 5]]), Verdict::Found(2));
    }

    #[test]
    fn a_value_that_callers_left_in_a_register_is_not_an_argument() {
        let found = |positions: &[(&str, u32)]| {
            let key = |argument: &str| format!("ip6_local_out({argument})");
            let mut candidates = Candidates::for_keys(&["net", "sk", "skb"].map(key));
            for _ in 0..MAX_RUNS_UNSEEN {
                let mut evidence = Evidence::default();
                positions.iter().for_each(|&(argument, position)| evidence.one_of(&key(argument), [position]));
                candidates.add(evidence);
            }
            let found_key =
                |(key, verdict): (&str, Verdict)| matches!(verdict, Verdict::Found(_)).then(|| key.to_owned());
            candidates.final_verdicts().into_iter().filter_map(found_key).collect::<Vec<_>>()
        };
        let all = ["net", "sk", "skb"].map(|argument| format!("ip6_local_out({argument})"));
        assert_eq!(found(&[("net", 1), ("sk", 2), ("skb", 3)]), all);
        assert_eq!(found(&[("net", 3), ("sk", 1), ("skb", 2)]), all[1..]);
        assert_eq!(found(&[("net", 2), ("sk", 3), ("skb", 1)]), all[2..]);
        assert_eq!(found(&[("sk", 1), ("skb", 2)]), all[1..]);
        assert_eq!(found(&[("net", 1)]), all[..1]);
    }

    #[test]
    fn a_disturbed_run_is_outvoted() {
        assert_eq!(after("a.b", &[&[4], &[8], &[8], &[8]]), Verdict::Undecided);
        assert_eq!(after("a.b", &[&[4], &[8], &[8], &[8], &[8]]), Verdict::Found(8));
        assert_eq!(after("a.b", &[&[8], &[], &[8], &[8], &[8]]), Verdict::Found(8));
    }

    #[test]
    fn a_key_without_evidence_is_not_seen() {
        let verdict = after("a.b", &[&[][..]; 6]);
        assert_eq!(verdict, Verdict::NotSeen);
    }

    #[test]
    fn all_evidence_of_one_run_must_hold() {
        let mut evidence = Evidence::default();
        evidence.one_of("a.b", [1, 2, 3]);
        evidence.one_of("a.b", [2, 3, 4]);
        assert_eq!(evidence.values("a.b"), [2, 3]);
    }
}
