//! The order in which guesses run.

use std::collections::BTreeSet;

/// The keys that a guess needs and gives.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) needs: Vec<String>,
    pub(crate) gives: Vec<String>,
}

/// Sorts the steps that are needed to find the `wanted` keys into levels, by their indices. Each step is in the first
/// level where everything that it needs is known already or given by the levels before.
pub(crate) fn levels(steps: &[Step], wanted: &[String], known: impl Fn(&str) -> bool) -> Vec<Vec<usize>> {
    let mut needed = needed(steps, wanted, &known);
    let mut given: BTreeSet<&str> = BTreeSet::new();
    let mut levels = Vec::new();
    while !needed.is_empty() {
        let has = |key: &String| known(key) || given.contains(key.as_str());
        let (ready, rest): (Vec<usize>, Vec<usize>) =
            needed.into_iter().partition(|&index| steps[index].needs.iter().all(has));
        // Steps whose needs are never met come last. When they run, they report what they need.
        let (level, rest) = if ready.is_empty() { (rest, Vec::new()) } else { (ready, rest) };
        given.extend(level.iter().flat_map(|&index| &steps[index].gives).map(String::as_str));
        levels.push(level);
        needed = rest;
    }
    levels
}

/// The indices of the steps that give what is wanted, of those that give what these need, and so on.
fn needed(steps: &[Step], wanted: &[String], known: &impl Fn(&str) -> bool) -> Vec<usize> {
    let mut open: Vec<&String> = wanted.iter().collect();
    let mut needed = BTreeSet::new();
    while let Some(key) = open.pop() {
        if known(key) {
            continue;
        }
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.gives.contains(key)) {
            if needed.insert(index) {
                open.extend(&step.needs);
            }
        }
    }
    needed.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn steps(table: &[(&str, &str)]) -> Vec<Step> {
        table.iter().map(|(needs, gives)| Step { needs: keys(needs), gives: keys(gives) }).collect()
    }

    #[test]
    fn each_step_comes_after_those_that_give_what_it_needs() {
        let steps = steps(&[("b c", "d"), ("a", "b"), ("", "a"), ("a", "c"), ("", "e")]);
        assert_eq!(levels(&steps, &keys("d e"), |_| false), [vec![2, 4], vec![1, 3], vec![0]]);
    }

    #[test]
    fn steps_that_are_not_needed_do_not_run() {
        let steps = steps(&[("", "a"), ("a", "b"), ("", "c")]);
        assert_eq!(levels(&steps, &keys("b"), |_| false), [[0], [1]]);
        assert_eq!(levels(&steps, &keys("b"), |key| key == "a"), [[1]]);
        assert!(levels(&steps, &keys("a b c"), |_| true).is_empty());
    }

    #[test]
    fn steps_that_cannot_run_come_last() {
        let steps = steps(&[("z", "a"), ("b", "c"), ("c", "b"), ("", "d")]);
        assert_eq!(levels(&steps, &keys("a b d"), |_| false), [vec![3], vec![0, 1, 2]]);
    }
}
