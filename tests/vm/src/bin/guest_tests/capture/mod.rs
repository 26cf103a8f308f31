//! The packets and bytes of every flow equal those of a packet capture.
//!
//! The tests capture traffic themselves, parse it with an independent parser, and compare packets and bytes of each
//! flow and direction with the documents. Traffic goes over loopback, and over a router between two hosts (network
//! namespaces), where the packets that one host sends may differ from those that the other receives.
//!
//! One monitor observes all scenarios of all [phases]. They run ([runner]) when the first of the tests asks for its
//! result. Each test then returns its own.

pub(crate) mod compare;
mod dropped;
pub(crate) mod link;
mod missed;
pub(crate) mod phases;
mod queued;
mod refused;
mod runner;
pub(crate) mod sniffer;
mod tcp;
pub(crate) mod testbed;
mod udp;
pub(crate) mod wire;

use anyhow::Result;
use libtest_mimic::Trial;

use crate::harness::named;
use crate::known::is_by_cgroup;

/// The function of a test.
type Test = fn() -> Result<()>;

/// The tests of this subject.
pub(crate) fn tests() -> Vec<Trial> {
    let of_cases = phases::cases().into_iter().map(|case| {
        let name = case.name();
        named(name.clone(), move || runner::verdict(&name))
    });
    let of_misses = [named(
        "capture::flows_are_not_lossy_without_missed_hits".to_owned(),
        missed::flows_are_not_lossy_without_missed_hits,
    )];
    let of_drops: [(&str, Test); 17] = [
        ("dropped_by_a_packet_filter", dropped::by_a_packet_filter),
        ("dropped_now_and_then", dropped::now_and_then),
        ("dropped_by_a_queue_or_without_a_neighbour", dropped::by_a_queue_or_without_a_neighbour),
        ("dropped_by_a_control_group", refused::by_a_control_group),
        ("dropped_at_the_device", refused::at_the_device),
        ("dropped_by_a_filter_of_tc", queued::by_a_filter_of_tc),
        ("dropped_by_codel", queued::by_codel),
        ("dropped_by_codel_when_large", queued::by_codel_when_large),
        ("dropped_by_cake", queued::by_cake),
        ("dropped_by_a_driver", queued::by_a_driver),
        ("dropped_with_their_queue", queued::with_their_queue),
        ("dropped_with_unknown_drop_functions", queued::with_unknown_drop_functions),
        ("dropped_by_ipsec", refused::by_ipsec),
        ("dropped_without_a_socket", refused::without_a_socket),
        ("dropped_without_a_socket_by_tc", refused::without_a_socket_by_tc),
        ("dropped_without_a_socket_by_a_queue", refused::without_a_socket_by_a_queue),
        ("dropped_nothing_by_an_unread_capture", refused::nothing_by_an_unread_capture),
    ];
    let of_drops =
        of_drops.map(|(name, test)| named(format!("capture::{name}"), move || dropped::retry_if_lossy(test)));
    // Programs at a control group see no drops.
    let of_drops = of_drops.into_iter().filter(|_| !is_by_cgroup());
    of_cases.chain(of_misses).chain(of_drops).collect()
}
