//! Finds the documents that make a server refuse a whole request, by bisection. Does no I/O.
//!
//! A server, or a proxy in front of it, may answer a whole request with 4xx because of one document. A refused request is halved
//! until the document is alone. That proves nothing yet: with a wrong key, everything is refused. So the document is only a suspect
//! until another document is accepted. If it is refused again after that, it is at fault. When too many requests are refused in a
//! row, or only suspects are left, a [witness](Step::Witness) is needed: another document, sent alone, which shows whether the
//! server accepts anything.

use std::ops::Range;

/// How many refusals in a row are tolerated beyond those needed to isolate one document.
const EXTRA_REFUSALS: u32 = 4;
/// After this many accepted requests of the maximum size, the maximum is doubled.
const ACCEPTED_UNTIL_GROWTH: u32 = 8;

/// The next step.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these documents in one request.
    Send(Range<usize>),
    /// Send a document alone that is not a suspect. If it is accepted, call [`Bisection::note_witness_accepted`].
    Witness,
    /// All documents were sent, and there are no suspects.
    Done,
}

/// The search for documents at fault. Documents are numbered in order.
#[derive(Debug)]
pub struct Bisection {
    /// Ranges that still have to be sent; the last one is next.
    rest: Vec<Range<usize>>,
    /// Suspects: refused alone, and no other document was accepted since.
    suspects: Vec<usize>,
    /// Refused alone, but others were accepted since: these are sent once more.
    again: Vec<usize>,
    /// The document of `again` that is being sent.
    on_trial: Option<usize>,
    /// How many requests were refused in a row.
    refusals: u32,
    /// After this many refusals in a row, a witness is needed.
    max_refusals: u32,
    /// The maximum number of documents in one request.
    max_request: usize,
    /// How many requests of the maximum size were accepted since the maximum last changed.
    accepted_at_max: u32,
}

impl Bisection {
    /// A search among `count` documents.
    pub fn new(count: usize) -> Self {
        let max_refusals = count.max(1).ilog2() + 1 + EXTRA_REFUSALS;
        let rest = (count > 0).then_some(0..count).into_iter().collect();
        Self {
            rest,
            suspects: Vec::new(),
            again: Vec::new(),
            on_trial: None,
            refusals: 0,
            max_refusals,
            max_request: count,
            accepted_at_max: 0,
        }
    }

    /// The next step.
    pub fn next(&mut self) -> Step {
        self.on_trial = self.again.pop();
        if let Some(at) = self.on_trial {
            return Step::Send(at..at + 1);
        }
        if self.refusals >= self.max_refusals || (self.rest.is_empty() && !self.suspects.is_empty()) {
            return Step::Witness;
        }
        let Some(range) = self.rest.pop() else { return Step::Done };
        let end = range.end.min(range.start + self.max_request);
        if end < range.end {
            self.rest.push(end..range.end);
        }
        Step::Send(range.start..end)
    }

    /// Notes that a request was accepted.
    pub fn note_accepted(&mut self, range: &Range<usize>) {
        self.accepted_at_max += u32::from(range.len() == self.max_request);
        if self.accepted_at_max >= ACCEPTED_UNTIL_GROWTH {
            (self.max_request, self.accepted_at_max) = (self.max_request * 2, 0);
        }
        self.note_witness_accepted();
    }

    /// Notes that a witness was accepted.
    pub fn note_witness_accepted(&mut self) {
        self.refusals = 0;
        self.again.extend(self.suspects.drain(..).rev());
    }

    /// Notes that a request was refused. Returns a document that is at fault, if one was found.
    pub fn note_refused(&mut self, range: Range<usize>) -> Option<usize> {
        if self.on_trial.is_some() {
            return self.on_trial.take();
        }
        self.refusals += 1;
        if range.len() <= 1 {
            self.suspects.extend(range);
            return None;
        }
        let middle = range.start + range.len() / 2;
        self.rest.extend([middle..range.end, range.start..middle]);
        None
    }

    /// Notes that a request was refused for its size. Returns a document that is at fault, if one was found.
    pub fn note_too_large(&mut self, range: Range<usize>) -> Option<usize> {
        if range.len() <= 1 {
            return self.note_refused(range);
        }
        (self.max_request, self.accepted_at_max) = (range.len() / 2, 0);
        self.rest.push(range);
        None
    }

    /// Documents that can be witnesses, in order: they were not sent yet, or were refused only together with others.
    pub fn witness_candidates(&self) -> impl DoubleEndedIterator<Item = usize> {
        self.rest.iter().rev().cloned().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Sends all to a server that refuses every request with a bad document. Returns the documents accepted, in order,
    /// those at fault, and the number of requests. A witness is accepted unless all documents are bad; in that case this ends.
    fn send_all(count: usize, bad: &BTreeSet<usize>) -> (Vec<usize>, Vec<usize>, usize) {
        let (mut bisection, mut accepted, mut at_fault, mut requests) =
            (Bisection::new(count), Vec::new(), Vec::new(), 0);
        loop {
            requests += 1;
            match bisection.next() {
                Step::Send(range) if range.clone().any(|at| bad.contains(&at)) => {
                    at_fault.extend(bisection.note_refused(range));
                }
                Step::Send(range) => {
                    bisection.note_accepted(&range);
                    accepted.extend(range);
                }
                Step::Witness if bad.len() < count => bisection.note_witness_accepted(),
                Step::Witness | Step::Done => return (accepted, at_fault, requests - 1),
            }
        }
    }

    #[test]
    fn one_document_in_many_is_found_in_few_requests() {
        for at in [0, 1, 799, 1598, 1599] {
            let (accepted, at_fault, requests) = send_all(1600, &[at].into());
            assert_eq!((accepted.len(), &at_fault[..]), (1599, &[at][..]));
            assert!(requests <= 2 * 11 + 3, "{requests}");
        }
        assert_eq!(send_all(1600, &BTreeSet::new()).2, 1);
    }

    /// The server refuses everything for a while, and accepts everything after that.
    #[test]
    fn a_document_that_is_accepted_the_second_time_is_not_at_fault() {
        for refusals in 0..9 {
            let (mut bisection, mut asked, mut accepted) = (Bisection::new(25), 0, Vec::new());
            loop {
                asked += 1;
                match bisection.next() {
                    Step::Send(range) if asked <= refusals => assert_eq!(bisection.note_refused(range), None),
                    Step::Send(range) => {
                        bisection.note_accepted(&range);
                        accepted.extend(range);
                    }
                    Step::Witness => bisection.note_witness_accepted(),
                    Step::Done => break,
                }
            }
            accepted.sort_unstable();
            assert_eq!(accepted, (0..25).collect::<Vec<_>>());
        }
    }

    #[test]
    fn if_everything_is_refused_no_document_is_at_fault_and_few_requests_are_made() {
        for count in [1, 2, 25, 1600] {
            let (accepted, at_fault, requests) = send_all(count, &(0..count).collect());
            assert_eq!((accepted.len(), at_fault.len()), (0, 0));
            assert!(requests <= 11 + EXTRA_REFUSALS as usize, "{requests}");
        }
    }

    #[test]
    fn a_request_that_is_too_large_is_sent_in_parts_that_grow_again() {
        let (mut bisection, mut refused, mut requests) = (Bisection::new(1000), 0, 0);
        let mut sent = Vec::new();
        while let Step::Send(range) = bisection.next() {
            requests += 1;
            // At first the server accepts at most a hundred; later it has no limit.
            if range.len() > 100 && requests < 30 {
                refused += 1;
                bisection.note_too_large(range);
            } else {
                bisection.note_accepted(&range);
                sent.extend(range);
            }
        }
        assert_eq!(sent, (0..1000).collect::<Vec<_>>());
        assert!(requests < 30 && refused <= 6, "{requests} {refused}");
    }

    #[test]
    fn a_document_that_is_too_large_alone_is_at_fault_only_after_another_was_accepted() {
        let mut bisection = Bisection::new(2);
        assert_eq!(bisection.next(), Step::Send(0..2));
        assert_eq!(bisection.note_too_large(0..2), None);
        assert_eq!(bisection.next(), Step::Send(0..1));
        assert_eq!(bisection.note_too_large(0..1), None, "a broken server may find any request too large");
        assert_eq!(bisection.next(), Step::Send(1..2));
        bisection.note_accepted(&(1..2));
        assert_eq!(bisection.next(), Step::Send(0..1));
        assert_eq!(bisection.note_too_large(0..1), Some(0));
        assert_eq!(bisection.next(), Step::Done);
    }

    /// A request that is too large says nothing about its documents, or about whether the server accepts others.
    #[test]
    fn a_request_of_several_documents_that_is_too_large_is_not_counted_as_a_refusal() {
        let mut bisection = Bisection::new(1024);
        let mut limit = 1024;
        while limit > 1 {
            assert_eq!(bisection.next(), Step::Send(0..limit));
            assert_eq!(bisection.note_too_large(0..limit), None);
            limit /= 2;
        }
        // The full number of refusals is left: 11 isolate one document of 1,024.
        for at in 0..11 + EXTRA_REFUSALS as usize {
            assert_eq!(bisection.next(), Step::Send(at..at + 1));
            assert_eq!(bisection.note_refused(at..at + 1), None);
        }
        assert_eq!(bisection.next(), Step::Witness);
    }

    #[test]
    fn witness_candidates_are_in_order_and_never_accepted_documents() {
        let mut bisection = Bisection::new(8);
        assert_eq!(bisection.witness_candidates().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        assert_eq!(bisection.next(), Step::Send(0..8));
        bisection.note_refused(0..8);
        assert_eq!(
            bisection.witness_candidates().collect::<Vec<_>>(),
            (0..8).collect::<Vec<_>>(),
            "only together with others"
        );
        assert_eq!(bisection.next(), Step::Send(0..4));
        bisection.note_accepted(&(0..4));
        assert_eq!(bisection.witness_candidates().collect::<Vec<_>>(), (4..8).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn good_documents_are_accepted_in_order_and_bad_ones_are_at_fault(
            count in 1..200_usize, bad in proptest::collection::btree_set(0..200_usize, 0..40),
        ) {
            let bad: BTreeSet<_> = bad.into_iter().filter(|at| *at < count).collect();
            let (accepted, at_fault, _) = send_all(count, &bad);
            if bad.len() < count {
                prop_assert_eq!(accepted, (0..count).filter(|at| !bad.contains(at)).collect::<Vec<_>>());
                prop_assert_eq!(at_fault.into_iter().collect::<BTreeSet<_>>(), bad);
            }
        }
    }
}
