//! Every flow's packets and bytes are those of a packet capture.
//!
//! A capture that the tests write themselves, read by an independent parser, is compared with the documents of the
//! same traffic: each flow, each direction, packets and bytes, equal. Traffic goes over loopback, and over a router
//! between two hosts (network namespaces), so that what one sends is not what the other receives.
//!
//! All scenarios of all [phases] are played ([play]) under one monitor when the first of the tests asks for its
//! result; then each test tells its own.

pub(crate) mod compare;
mod dropped;
pub(crate) mod link;
mod missed;
pub(crate) mod phases;
mod play;
mod queued;
mod refused;
pub(crate) mod sniffer;
pub(crate) mod stage;
mod tcp;
mod udp;
pub(crate) mod wire;

use anyhow::Result;
use libtest_mimic::Trial;

use crate::harness::named;

/// What a test does.
type Test = fn() -> Result<()>;

/// The tests of this subject.
pub(crate) fn tests() -> Vec<Trial> {
    let of_cases = phases::cases().into_iter().map(|case| {
        let name = case.name();
        named(name.clone(), move || play::verdict(&name))
    });
    let of_misses = [named("capture::what_was_seen_is_not_lossy".to_owned(), missed::what_was_seen_is_not_lossy)];
    let of_drops: [(&str, Test); 16] = [
        ("dropped_by_a_packet_filter", dropped::by_a_packet_filter),
        ("dropped_now_and_then", dropped::now_and_then),
        ("dropped_by_a_queue_or_for_want_of_a_neighbour", dropped::by_a_queue_or_for_want_of_a_neighbour),
        ("dropped_by_a_control_group", refused::by_a_control_group),
        ("dropped_at_the_device", refused::at_the_device),
        ("dropped_by_a_filter_of_tc", queued::by_a_filter_of_tc),
        ("dropped_by_codel", queued::by_codel),
        ("dropped_by_codel_when_large", queued::by_codel_when_large),
        ("dropped_by_cake", queued::by_cake),
        ("dropped_by_a_driver", queued::by_a_driver),
        ("dropped_with_their_queue", queued::with_their_queue),
        ("dropped_by_ipsec", refused::by_ipsec),
        ("dropped_without_a_socket", refused::without_a_socket),
        ("dropped_without_a_socket_by_tc", refused::without_a_socket_by_tc),
        ("dropped_without_a_socket_by_a_queue", refused::without_a_socket_by_a_queue),
        ("dropped_nothing_by_an_unread_capture", refused::nothing_by_an_unread_capture),
    ];
    let of_drops = of_drops.map(|(name, test)| named(format!("capture::{name}"), move || dropped::tried(test)));
    of_cases.chain(of_misses).chain(of_drops).collect()
}
