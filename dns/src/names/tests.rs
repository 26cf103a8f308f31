use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn names(spoil: impl FnOnce(&mut NamesOptions)) -> Names<u64> {
    let mut options = NamesOptions::default();
    spoil(&mut options);
    Names::new(&options)
}

fn learn(names: &mut Names<u64>, owner: u64, name: &str, last: u8, ttl: u32, now: u64) {
    names.learn(&owner, &Arc::from(name), Address { ip: ip(last), ttl }, now);
}

fn find(names: &Names<u64>, owner: u64, last: u8, at: u64) -> Option<&str> {
    names.find(&owner, ip(last), at).map(AsRef::as_ref)
}

#[test]
fn everyone_knows_what_they_learned() {
    let mut names = names(|_| {});
    learn(&mut names, 1, "one", 1, 300, 0);
    learn(&mut names, 2, "two", 1, 300, 0);
    assert_eq!((find(&names, 1, 1, 0), find(&names, 2, 1, 0)), (Some("one"), Some("two")));
    assert_eq!((find(&names, 1, 2, 0), find(&names, 3, 1, 0)), (None, None));
    learn(&mut names, 1, "newer", 1, 300, SECOND);
    assert_eq!((find(&names, 1, 1, 0), find(&names, 1, 1, SECOND)), (Some("one"), Some("newer")));
    assert_eq!(names.known_names(), 3);
    names.forget(&1);
    assert_eq!((find(&names, 1, 1, 0), names.known_names(), names.owners()), (None, 1, 1));
}

#[test]
fn nothing_is_known_before_the_first_answer() {
    let mut names = names(|_| {});
    learn(&mut names, 1, "one", 1, 300, SECOND);
    assert_eq!((find(&names, 1, 1, SECOND - 1), find(&names, 1, 1, SECOND)), (None, Some("one")));
}

#[test]
fn what_was_superseded_is_forgotten_after_a_while() {
    let mut names = names(|_| {});
    for second in 0..1_000 {
        learn(&mut names, 1, &second.to_string(), 1, 300, second * SECOND / 1_000);
    }
    assert_eq!((names.known_names(), find(&names, 1, 1, SECOND / 2)), (MOST_VERSIONS, None), "too many");
    learn(&mut names, 1, "last", 1, 300, 10 * SECOND);
    assert_eq!((names.known_names(), find(&names, 1, 1, 9 * SECOND)), (2, Some("999")));
    learn(&mut names, 1, "late", 1, 300, 5 * SECOND);
    assert_eq!(find(&names, 1, 1, 9 * SECOND), Some("999"), "too late to be believed");
}

#[test]
fn nothing_is_certain_after_answers_were_missed() {
    let mut names = names(|_| {});
    learn(&mut names, 1, "one", 1, 300, 10);
    names.missed(20, 30);
    assert_eq!((find(&names, 1, 1, 19), find(&names, 1, 1, 20), find(&names, 1, 1, 40)), (Some("one"), None, None));
    learn(&mut names, 1, "one", 1, 300, 31);
    assert_eq!((find(&names, 1, 1, 30), find(&names, 1, 1, 31)), (None, Some("one")));
    for gap in 1..=1_000 {
        names.missed(1_000 * gap, 1_000 * gap);
    }
    assert_eq!(find(&names, 1, 1, 2_000_000), None);
    learn(&mut names, 1, "one", 1, 300, 999_001);
    assert_eq!((find(&names, 1, 1, 999_500), find(&names, 1, 1, 1_000_000)), (Some("one"), None), "between two gaps");
}

#[test]
fn an_answer_within_a_gap_is_not_certain_and_no_gap_is_forgotten() {
    let mut names = names(|_| {});
    learn(&mut names, 1, "one", 1, 300, 15);
    names.missed(10, 20);
    assert_eq!(find(&names, 1, 1, 30), None, "another may have come after it");
    (1..=MOST_GAPS as u64).for_each(|gap| names.missed(1000 * gap, 1000 * gap + 1));
    assert_eq!(find(&names, 1, 1, 30), None, "the oldest gap is merged, and not forgotten");
}

#[test]
fn mapped_addresses_are_looked_up_as_ipv4() {
    let mut names = names(|_| {});
    learn(&mut names, 1, "one", 1, 300, 0);
    assert!(names.find(&1, "::ffff:192.0.2.1".parse().unwrap(), 0).is_some());
}

#[test]
fn time_to_live_has_a_floor_and_a_ceiling() {
    let mut names = names(|_| {});
    for (last, ttl, kept) in [(1, 0, 60), (2, 59, 60), (3, 61, 61), (4, 86_401, 86_400), (5, u32::MAX, 86_400)] {
        learn(&mut names, 1, "one", last, ttl, SECOND);
        assert!(find(&names, 1, last, (kept + 1) * SECOND).is_some(), "{ttl}");
        assert!(find(&names, 1, last, (kept + 1) * SECOND + 1).is_none(), "{ttl}");
    }
    learn(&mut names, 1, "one", 6, 1, u64::MAX - 1);
    assert!(find(&names, 1, 6, u64::MAX).is_some());
}

proptest! {
    /// In whatever order answers are learned, the last one that had arrived by a moment counts.
    #[test]
    fn the_last_answer_before_a_moment_counts(
        answers in prop::collection::vec((0..1_000_u64, 0..4_u8), 0..MOST_VERSIONS),
        moments in prop::collection::vec(0..1_000_u64, 20),
    ) {
        let mut names = names(|_| {});
        for (at, name) in &answers {
            learn(&mut names, 1, &name.to_string(), 1, 300, *at);
        }
        for moment in moments {
            // Of several answers at the same time, the one learned last counts.
            let last = answers.iter().filter(|(at, _)| *at <= moment).max_by_key(|(at, _)| *at);
            let expected = last.map(|(_, name)| name.to_string());
            prop_assert_eq!(find(&names, 1, 1, moment), expected.as_deref());
        }
    }
}

#[test]
fn what_is_over_is_forgotten() {
    let mut names = names(|_| {});
    learn(&mut names, 1, "short", 1, 60, 0);
    learn(&mut names, 1, "long", 2, 120, 0);
    learn(&mut names, 2, "short", 1, 60, 0);
    names.expire(60 * SECOND);
    assert_eq!(names.known_names(), 3);
    names.expire(60 * SECOND + 1);
    assert_eq!((names.known_names(), names.owners(), names.counters().expired_addresses), (1, 1, 2));
    names.expire(u64::MAX);
    assert_eq!((names.known_names(), names.owners()), (0, 0));
}

#[test]
fn children_know_what_their_parents_knew() {
    let mut names = names(|_| {});
    learn(&mut names, 1, "before", 1, 300, 0);
    names.inherit(&1, &2);
    assert_eq!(names.known_names(), 1, "nothing is copied");
    learn(&mut names, 1, "parent's", 2, 300, 0);
    learn(&mut names, 2, "child's", 3, 300, 0);
    assert_eq!(
        (find(&names, 2, 1, 0), find(&names, 2, 2, 0), find(&names, 2, 3, 0)),
        (Some("before"), None, Some("child's"))
    );
    assert_eq!((find(&names, 1, 1, 0), find(&names, 1, 3, 0)), (Some("before"), None));
    assert_eq!(names.known_names(), 4);
    names.forget(&1);
    assert_eq!((find(&names, 2, 1, 0), names.known_names()), (Some("before"), 2));
    names.inherit(&1, &2);
    assert_eq!((find(&names, 2, 1, 0), names.known_names()), (None, 0), "who inherits nothing knows nothing");
    names.inherit(&2, &2);
}

#[test]
fn shared_tables_are_let_go_when_all_of_them_is_over() {
    let mut names = names(|_| {});
    learn(&mut names, 1, "one", 1, 60, 0);
    learn(&mut names, 1, "one", 2, 120, 0);
    names.inherit(&1, &2);
    names.expire(61 * SECOND);
    assert_eq!((names.known_names(), names.owners()), (2, 2));
    names.expire(121 * SECOND);
    assert_eq!((names.known_names(), names.owners()), (0, 0));
}

#[test]
fn the_oldest_gives_way() {
    let mut names = names(|o| (o.per_owner, o.owners, o.total) = (3, 2, 4));
    for last in 1..=5 {
        learn(&mut names, 1, "one", last, 300, 0);
    }
    let known: Vec<IpAddr> = names.known_to(&1).map(|(ip, _, _)| ip).collect();
    assert_eq!(known, [ip(3), ip(4), ip(5)]);
    assert_eq!(names.counters().evicted_addresses, 2);
    learn(&mut names, 2, "two", 1, 300, 0);
    learn(&mut names, 2, "two", 2, 300, 0);
    assert_eq!((names.owners(), names.known_names(), names.counters().evicted_owners), (1, 2, 1), "four in all");
    learn(&mut names, 3, "three", 1, 300, 0);
    learn(&mut names, 2, "two", 1, 300, 0);
    learn(&mut names, 4, "four", 1, 300, 0);
    assert_eq!((find(&names, 2, 1, 0), find(&names, 3, 1, 0)), (Some("two"), None), "two owners");
}

#[derive(Clone, Debug)]
enum Step {
    Learn(u64, u8, u8),
    Inherit(u64, u64),
    Forget(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u64, 0..10_u8, any::<u8>()).prop_map(|(owner, ip, name)| Step::Learn(owner, ip, name)),
        2 => (0..6_u64, 0..6_u64).prop_map(|(parent, child)| Step::Inherit(parent, child)),
        1 => (0..6_u64).prop_map(Step::Forget),
    ]
}

proptest! {
    #[test]
    fn knows_what_a_map_of_maps_knows(steps in prop::collection::vec(step(), 0..100)) {
        let mut names = names(|_| {});
        let mut model: HashMap<u64, HashMap<u8, String>> = HashMap::new();
        for (now, step) in (0..).zip(steps) {
            match step {
                Step::Learn(owner, last, name) => {
                    learn(&mut names, owner, &name.to_string(), last, 300, now);
                    model.entry(owner).or_default().insert(last, name.to_string());
                }
                Step::Inherit(parent, child) => {
                    names.inherit(&parent, &child);
                    match model.get(&parent).cloned() {
                        Some(known) => model.insert(child, known),
                        None => model.remove(&child),
                    };
                }
                Step::Forget(owner) => {
                    names.forget(&owner);
                    model.remove(&owner);
                }
            }
            for owner in 0..6 {
                for last in 0..10 {
                    let expected = model.get(&owner).and_then(|known| known.get(&last)).map(String::as_str);
                    prop_assert_eq!(find(&names, owner, last, now), expected);
                }
            }
        }
    }

    #[test]
    fn stays_within_bounds(steps in prop::collection::vec(step(), 0..300)) {
        let mut names = names(|o| (o.per_owner, o.owners, o.total) = (4, 3, 8));
        for step in steps {
            match step {
                Step::Learn(owner, last, name) => learn(&mut names, owner, &name.to_string(), last, 300, 0),
                Step::Inherit(parent, child) => names.inherit(&parent, &child),
                Step::Forget(owner) => names.forget(&owner),
            }
            let known: usize = (0..6).map(|owner| names.known_to(&owner).count()).sum();
            prop_assert!(names.owners() <= 3 && names.known_names() <= 8 && names.known_names() <= known);
        }
    }
}
