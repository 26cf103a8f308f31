//! The messages of the helper. A question is `u` or `g`, then the id as a little-endian `u32`. An answer repeats the question,
//! and adds a byte for the result and, if there is one, the name.

use super::super::{Answer, Id, MAX_NAME_LEN};

/// The length of a question.
pub(super) const QUESTION_LEN: usize = 5;
/// The maximum size of an answer in bytes.
pub(super) const MAX_ANSWER_LEN: usize = QUESTION_LEN + 1 + MAX_NAME_LEN;

const USER: u8 = b'u';
const GROUP: u8 = b'g';

const NAMED: u8 = b'n';
const UNKNOWN: u8 = b'u';
const FAILED: u8 = b'f';
/// There is no `getent`.
const NO_GETENT: u8 = b'-';

pub(super) fn question(id: Id) -> [u8; QUESTION_LEN] {
    let kind = match id {
        Id::User(_) => USER,
        Id::Group(_) => GROUP,
    };
    let [a, b, c, d] = id.number().to_le_bytes();
    [kind, a, b, c, d]
}

pub(super) fn read_question(bytes: &[u8]) -> Option<Id> {
    let (&kind, number) = bytes.split_first()?;
    let number = u32::from_le_bytes(number.try_into().ok()?);
    match kind {
        USER => Some(Id::User(number)),
        GROUP => Some(Id::Group(number)),
        _ => None,
    }
}

pub(super) fn answer(id: Id, answer: Option<&Answer>) -> Vec<u8> {
    let (kind, name) = match answer {
        Some(Answer::Named(name)) => (NAMED, name.as_str()),
        Some(Answer::Unknown) => (UNKNOWN, ""),
        Some(Answer::Failed) => (FAILED, ""),
        None => (NO_GETENT, ""),
    };
    [&question(id), &[kind][..], name.as_bytes()].concat()
}

/// Parses an answer. `None` if there is no `getent`. An answer about another id counts as a failure.
pub(super) fn read_answer(bytes: &[u8], id: Id) -> Option<Answer> {
    let rest = bytes.strip_prefix(&question(id)).and_then(<[u8]>::split_first);
    match rest {
        Some((&NAMED, name)) => Some(std::str::from_utf8(name).map_or(Answer::Failed, Answer::named)),
        Some((&UNKNOWN, [])) => Some(Answer::Unknown),
        Some((&NO_GETENT, [])) => None,
        _ => Some(Answer::Failed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids() -> impl Strategy<Value = Id> {
        (any::<bool>(), any::<u32>()).prop_map(|(user, id)| if user { Id::User(id) } else { Id::Group(id) })
    }

    proptest! {
        #[test]
        fn questions_and_answers_survive_encoding(id in ids(), other in ids(), name in "[a-z][a-z0-9@.-]{0,80}") {
            prop_assert_eq!(read_question(&question(id)), Some(id));
            for sent in [Some(Answer::Named(name)), Some(Answer::Unknown), Some(Answer::Failed), None] {
                let bytes = answer(id, sent.as_ref());
                prop_assert!(bytes.len() <= MAX_ANSWER_LEN);
                prop_assert_eq!(read_answer(&bytes, id), sent);
                if other != id {
                    prop_assert_eq!(read_answer(&bytes, other), Some(Answer::Failed), "about another id");
                }
            }
        }

        #[test]
        fn no_name_has_control_characters(bytes in prop::collection::vec(any::<u8>(), 0..300), id in ids()) {
            let _ = read_question(&bytes);
            let whole = [&question(id)[..], &[NAMED], String::from_utf8_lossy(&bytes).as_bytes()].concat();
            if let Some(Answer::Named(name)) = read_answer(&whole, id) {
                prop_assert!(name.len() <= MAX_NAME_LEN && !name.chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn the_longest_name_fits() {
        let name = "n".repeat(MAX_NAME_LEN);
        let bytes = answer(Id::User(u32::MAX), Some(&Answer::Named(name.clone())));
        assert_eq!((bytes.len(), read_answer(&bytes, Id::User(u32::MAX))), (MAX_ANSWER_LEN, Some(Answer::Named(name))));
    }
}
