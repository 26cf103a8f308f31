use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn ip(last_octet: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last_octet])
}

fn names(change: impl FnOnce(&mut NamesOptions)) -> KnownNames<u64> {
    let mut options = NamesOptions::default();
    change(&mut options);
    KnownNames::new(&options)
}

/// An owner gets an answer at `now`: `name` has the address 192.0.2.`last_octet`.
fn learn(names: &mut KnownNames<u64>, owner: u64, name: &str, last_octet: u8, ttl: u32, now: u64) {
    names.learn(&owner, &Arc::from(name), Address { ip: ip(last_octet), ttl }, now);
}

/// An owner's name for 192.0.2.`last_octet` at a time.
fn find(names: &KnownNames<u64>, owner: u64, last_octet: u8, at: u64) -> Option<&str> {
    names.find(&owner, ip(last_octet), at).map(AsRef::as_ref)
}

#[test]
fn each_owner_finds_its_own_names() {
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
fn no_name_is_found_before_the_first_answer() {
    let mut names = names(|_| {});
    learn(&mut names, 1, "one", 1, 300, SECOND);
    assert_eq!((find(&names, 1, 1, SECOND - 1), find(&names, 1, 1, SECOND)), (None, Some("one")));
}

#[test]
fn superseded_answers_are_forgotten_after_a_while() {
    let mut names = names(|_| {});
    for second in 0..1_000 {
        learn(&mut names, 1, &second.to_string(), 1, 300, second * SECOND / 1_000);
    }
    assert_eq!((names.known_names(), find(&names, 1, 1, SECOND / 2)), (MAX_ANSWERS, None), "only the latest are kept");
    learn(&mut names, 1, "last", 1, 300, 10 * SECOND);
    assert_eq!((names.known_names(), find(&names, 1, 1, 9 * SECOND)), (2, Some("999")));
    learn(&mut names, 1, "late", 1, 300, 5 * SECOND);
    assert_eq!(find(&names, 1, 1, 9 * SECOND), Some("999"), "an answer that is too old changes nothing");
}

#[test]
fn no_name_is_found_after_answers_were_missed() {
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
fn an_answer_within_a_gap_does_not_count_and_no_gap_is_forgotten() {
    let mut names = names(|_| {});
    learn(&mut names, 1, "one", 1, 300, 15);
    names.missed(10, 20);
    assert_eq!(find(&names, 1, 1, 30), None, "a later one may have been missed");
    (1..=MAX_GAPS as u64).for_each(|gap| names.missed(1000 * gap, 1000 * gap + 1));
    assert_eq!(find(&names, 1, 1, 30), None, "the oldest gap was merged, not forgotten");
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
    for (octet, ttl, kept) in [(1, 0, 60), (2, 59, 60), (3, 61, 61), (4, 86_401, 86_400), (5, u32::MAX, 86_400)] {
        learn(&mut names, 1, "one", octet, ttl, SECOND);
        let until = SECOND + kept * SECOND;
        assert!(find(&names, 1, octet, until).is_some(), "{ttl}");
        assert!(find(&names, 1, octet, until + 1).is_none(), "{ttl}");
    }
    learn(&mut names, 1, "one", 6, 1, u64::MAX - 1);
    assert!(find(&names, 1, 6, u64::MAX).is_some());
}

proptest! {
    /// Of the answers up to a time, the latest is found, in whatever order they were learned.
    #[test]
    fn the_latest_answer_up_to_a_time_is_found(
        answers in prop::collection::vec((0..1_000_u64, 0..4_u8), 0..MAX_ANSWERS),
        times in prop::collection::vec(0..1_000_u64, 20),
    ) {
        let mut names = names(|_| {});
        for (at, name) in &answers {
            learn(&mut names, 1, &name.to_string(), 1, 300, *at);
        }
        for time in times {
            // Of several answers with the same time, the one that was learned last counts.
            let latest = answers.iter().filter(|(at, _)| *at <= time).max_by_key(|(at, _)| *at);
            let expected = latest.map(|(_, name)| name.to_string());
            prop_assert_eq!(find(&names, 1, 1, time), expected.as_deref());
        }
    }
}

#[test]
fn expired_names_are_forgotten() {
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
fn children_inherit_names() {
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
    assert_eq!(
        (find(&names, 2, 1, 0), names.known_names()),
        (None, 0),
        "a parent without names leaves the child without names"
    );
    names.inherit(&2, &2);
}

#[test]
fn shared_tables_are_forgotten_when_all_their_names_have_expired() {
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
fn the_oldest_is_evicted() {
    let mut names = names(|o| (o.per_owner, o.owners, o.total) = (3, 2, 4));
    for octet in 1..=5 {
        learn(&mut names, 1, "one", octet, 300, 0);
    }
    let known: Vec<IpAddr> = names.known_to(&1).map(|known| known.ip).collect();
    assert_eq!(known, [ip(3), ip(4), ip(5)]);
    assert_eq!(names.counters().evicted_addresses, 2);
    learn(&mut names, 2, "two", 1, 300, 0);
    learn(&mut names, 2, "two", 2, 300, 0);
    assert_eq!(
        (names.owners(), names.known_names(), names.counters().evicted_owners),
        (1, 2, 1),
        "at most four names in all"
    );
    learn(&mut names, 3, "three", 1, 300, 0);
    learn(&mut names, 2, "two", 1, 300, 0);
    learn(&mut names, 4, "four", 1, 300, 0);
    assert_eq!((find(&names, 2, 1, 0), find(&names, 3, 1, 0)), (Some("two"), None), "at most two owners");
}

#[derive(Clone, Debug)]
enum Step {
    Learn { owner: u64, octet: u8, name: u8 },
    Inherit { parent: u64, child: u64 },
    Forget { owner: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u64, 0..10_u8, any::<u8>()).prop_map(|(owner, octet, name)| Step::Learn { owner, octet, name }),
        2 => (0..6_u64, 0..6_u64).prop_map(|(parent, child)| Step::Inherit { parent, child }),
        1 => (0..6_u64).prop_map(|owner| Step::Forget { owner }),
    ]
}

proptest! {
    #[test]
    fn behaves_like_a_map_of_maps(steps in prop::collection::vec(step(), 0..100)) {
        let mut names = names(|_| {});
        let mut model: HashMap<u64, HashMap<u8, String>> = HashMap::new();
        for (now, step) in (0..).zip(steps) {
            match step {
                Step::Learn { owner, octet, name } => {
                    learn(&mut names, owner, &name.to_string(), octet, 300, now);
                    model.entry(owner).or_default().insert(octet, name.to_string());
                }
                Step::Inherit { parent, child } => {
                    names.inherit(&parent, &child);
                    match model.get(&parent).cloned() {
                        Some(known) => model.insert(child, known),
                        None => model.remove(&child),
                    };
                }
                Step::Forget { owner } => {
                    names.forget(&owner);
                    model.remove(&owner);
                }
            }
            for owner in 0..6 {
                for octet in 0..10 {
                    let expected = model.get(&owner).and_then(|known| known.get(&octet)).map(String::as_str);
                    prop_assert_eq!(find(&names, owner, octet, now), expected);
                }
            }
        }
    }

    #[test]
    fn stays_within_bounds(steps in prop::collection::vec(step(), 0..300)) {
        let mut names = names(|o| (o.per_owner, o.owners, o.total) = (4, 3, 8));
        for step in steps {
            match step {
                Step::Learn { owner, octet, name } => learn(&mut names, owner, &name.to_string(), octet, 300, 0),
                Step::Inherit { parent, child } => names.inherit(&parent, &child),
                Step::Forget { owner } => names.forget(&owner),
            }
            let known: usize = (0..6).map(|owner| names.known_to(&owner).count()).sum();
            // `known` counts shared names once for each owner.
            prop_assert!(names.owners() <= 3 && names.known_names() <= 8 && names.known_names() <= known);
        }
    }
}
