//! Every flow's packets and bytes are those of a packet capture.
//!
//! A capture that the tests write themselves, read by an independent parser, is compared with the documents of the
//! same traffic: each flow, each direction, packets and bytes, equal. Traffic goes over loopback, and over a router
//! between two hosts (network namespaces), so that what one sends is not what the other receives.
//!
//! All scenarios of all [phases] are played ([play]) under one monitor when the first of the tests asks for its
//! result; then each test tells its own.

mod compare;
pub(crate) mod link;
mod missed;
mod phases;
mod play;
mod sniffer;
mod stage;
mod tcp;
mod udp;
mod wire;

use libtest_mimic::Trial;

use crate::harness::named;

/// The tests of this subject.
pub(crate) fn tests() -> Vec<Trial> {
    let of_cases = phases::cases().into_iter().map(|case| {
        let name = case.name();
        named(name.clone(), move || play::verdict(&name))
    });
    let of_misses = [named("capture::what_was_seen_is_not_lossy".to_owned(), missed::what_was_seen_is_not_lossy)];
    of_cases.chain(of_misses).collect()
}
