//! The scenarios, and the network conditions that they run under.

use std::time::Duration;

use anyhow::Result;

use super::link::{Conditions, Family, Link, Routed, loopback};
use super::sniffer::SegmentInfo;
use super::testbed::{ExpectedFlow, Testbed};
use super::{tcp, udp};
use crate::helpers::netlink::Faults;

/// Scenarios that run under the same conditions.
pub(crate) struct Phase {
    name: &'static str,
    /// Whether traffic goes over the router instead of loopback.
    pub(crate) routed: bool,
    conditions: Conditions,
    groups: &'static [Group],
    /// The number of scenarios at once: one if each needs an idle machine.
    pub(crate) concurrency: usize,
    pub(crate) segment_info: SegmentInfo,
}

impl Phase {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// How long to wait for the last packets: lost ones are retransmitted.
    pub(crate) fn last_packets(&self) -> Duration {
        Duration::from_millis(if self.conditions.faults.is_none() { 200 } else { 700 })
    }
}

/// A group of scenarios.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// All scenarios without UDP GSO.
    All,
    /// Scenarios that send many or large packets.
    Much,
    /// Scenarios for a network with faults.
    Faulty,
    /// Scenarios with UDP GSO.
    Segments,
    /// The scenario that sends some data in both directions at once.
    BothWays,
    /// Scenarios with UDP GSO that a capture shows only if packets are segmented before the interface.
    SoftwareGso,
    /// Scenarios for a path with a smaller MTU behind the router.
    Narrow,
    /// Scenarios for loopback only.
    Loopback,
}

/// Without GSO and GRO.
pub(crate) const PLAIN: Conditions =
    Conditions { mtu: 1500, far_mtu: 1500, gso: false, gro: false, software_gso: false, faults: Faults::NONE };
/// With GSO and GRO.
pub(crate) const OFFLOADED: Conditions = Conditions { gso: true, gro: true, ..PLAIN };
const FAULTS: Faults = Faults { delay_ms: 2, loss: 0.02, duplicates: 0.03, reordered: 0.05 };

const CONCURRENCY: usize = 4;

pub(crate) const PHASES: &[Phase] = &[
    Phase {
        name: "loopback",
        routed: false,
        conditions: Conditions { mtu: 65_536, ..OFFLOADED },
        groups: &[Group::All, Group::Loopback],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "loopback_segmented_datagrams",
        routed: false,
        conditions: OFFLOADED,
        groups: &[Group::Segments],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::UdpSize(udp::SEGMENT),
    },
    Phase {
        name: "loopback_software_segmented_datagrams",
        routed: false,
        conditions: Conditions { software_gso: true, ..OFFLOADED },
        groups: &[Group::Segments, Group::SoftwareGso],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "loopback_small_packets",
        routed: false,
        conditions: PLAIN,
        groups: &[Group::Much],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "loopback_offloaded",
        routed: false,
        conditions: OFFLOADED,
        groups: &[Group::Much],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "veth",
        routed: true,
        conditions: PLAIN,
        groups: &[Group::All],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "veth_with_gro",
        routed: true,
        conditions: Conditions { gro: true, ..PLAIN },
        groups: &[Group::Much],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "veth_offloaded",
        routed: true,
        conditions: OFFLOADED,
        groups: &[Group::Much],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "veth_segmented_datagrams",
        routed: true,
        conditions: OFFLOADED,
        groups: &[Group::Segments],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::UdpSize(udp::SEGMENT),
    },
    Phase {
        name: "veth_software_segmented_datagrams",
        routed: true,
        conditions: Conditions { software_gso: true, ..OFFLOADED },
        groups: &[Group::Segments, Group::SoftwareGso],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "veth_narrow",
        routed: true,
        conditions: Conditions { far_mtu: 1280, ..PLAIN },
        groups: &[Group::Narrow],
        concurrency: CONCURRENCY,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "veth_faulty",
        routed: true,
        conditions: Conditions { faults: FAULTS, ..PLAIN },
        groups: &[Group::Faulty, Group::BothWays],
        concurrency: 1,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "veth_faulty_offloaded",
        routed: true,
        conditions: Conditions { faults: FAULTS, ..OFFLOADED },
        groups: &[Group::Faulty],
        concurrency: 1,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "veth_reordered_offloaded",
        routed: true,
        conditions: Conditions { faults: Faults { reordered: 0.25, delay_ms: 2, ..Faults::NONE }, ..OFFLOADED },
        groups: &[Group::Faulty],
        concurrency: 1,
        segment_info: SegmentInfo::FromKernel,
    },
    Phase {
        name: "veth_duplicated_offloaded",
        routed: true,
        conditions: Conditions { faults: Faults { duplicates: 1.0, ..Faults::NONE }, ..OFFLOADED },
        groups: &[Group::Faulty],
        concurrency: 1,
        segment_info: SegmentInfo::FromKernel,
    },
];

/// `netem` delivers packets in timer interrupts while others are sent, so that probes miss hits.
pub(crate) const TIMER_DRIVEN: Phase = Phase {
    name: "timer_driven",
    routed: true,
    conditions: Conditions { faults: Faults { delay_ms: 2, ..Faults::NONE }, ..PLAIN },
    groups: &[],
    concurrency: 1,
    segment_info: SegmentInfo::FromKernel,
};

/// A scenario makes traffic, and returns the flows that must be reported.
pub(crate) type Scenario = fn(&Testbed<'_>) -> Result<Vec<ExpectedFlow>>;

/// The scenarios: name, groups, IP versions, function.
const SCENARIOS: &[(&str, &[Group], &[Family], Scenario)] = {
    const BOTH: &[Family] = &[Family::V4, Family::V6];
    const V4_ONLY: &[Family] = &[Family::V4];
    const ALL: &[Group] = &[Group::All];
    const MUCH: &[Group] = &[Group::All, Group::Much];
    const FAULTY: &[Group] = &[Group::Faulty];
    const ALL_AND_FAULTY: &[Group] = &[Group::All, Group::Faulty];
    const SEGMENTS: &[Group] = &[Group::Segments];
    const SOFTWARE_GSO: &[Group] = &[Group::SoftwareGso];
    const NARROW: &[Group] = &[Group::Narrow];
    const LOOPBACK: &[Group] = &[Group::Loopback];
    &[
        ("tcp_nothing_but_a_handshake", ALL, BOTH, tcp::nothing_but_a_handshake),
        ("tcp_client_closes_first", ALL, BOTH, tcp::client_closes_first),
        ("tcp_server_closes_first", ALL, BOTH, tcp::server_closes_first),
        ("tcp_both_close_at_once", ALL, BOTH, tcp::both_close_at_once),
        ("tcp_bulk_to_server", MUCH, BOTH, tcp::bulk_to_server),
        ("tcp_bulk_to_client", MUCH, BOTH, tcp::bulk_to_client),
        ("tcp_bulk_both_ways", MUCH, BOTH, tcp::bulk_both_ways),
        ("tcp_some_to_server", FAULTY, BOTH, tcp::some_to_server),
        ("tcp_some_to_client", FAULTY, BOTH, tcp::some_to_client),
        ("tcp_some_both_ways", &[Group::BothWays], BOTH, tcp::some_both_ways),
        ("tcp_small_messages", ALL_AND_FAULTY, BOTH, tcp::small_messages),
        ("tcp_half_close", ALL, BOTH, tcp::half_close),
        ("tcp_reset_by_client", ALL, BOTH, tcp::reset_by_client),
        ("tcp_reset_by_server", ALL, BOTH, tcp::reset_by_server),
        ("tcp_closed_unread", ALL, BOTH, tcp::closed_unread),
        ("tcp_refused", ALL, BOTH, tcp::refused),
        ("tcp_never_accepted", ALL, BOTH, tcp::never_accepted),
        ("tcp_zero_window", ALL, BOTH, tcp::zero_window),
        ("tcp_keepalive", ALL, BOTH, tcp::keepalive),
        ("tcp_urgent_data", ALL, BOTH, tcp::urgent_data),
        ("tcp_sent_file", MUCH, BOTH, tcp::sent_file),
        ("tcp_spliced", MUCH, BOTH, tcp::spliced),
        ("tcp_without_copies", MUCH, BOTH, tcp::without_copies),
        ("tcp_ip_options", MUCH, BOTH, tcp::ip_options),
        ("tcp_mapped", ALL, V4_ONLY, tcp::mapped),
        ("udp_connected", ALL, BOTH, udp::connected),
        ("udp_unconnected", ALL, BOTH, udp::unconnected),
        ("udp_several_remotes", ALL, BOTH, udp::several_remotes),
        ("udp_connected_twice", ALL, BOTH, udp::connected_twice),
        ("udp_large", MUCH, BOTH, udp::large),
        ("udp_many", ALL, BOTH, udp::many),
        ("udp_unhurried", FAULTY, BOTH, udp::unhurried),
        ("udp_more_than_fits", ALL, BOTH, udp::more_than_fits),
        ("udp_closed_port", ALL, BOTH, udp::closed_port),
        ("udp_too_large_to_send", ALL, BOTH, udp::too_large_to_send),
        ("udp_corked", ALL, BOTH, udp::corked),
        ("udp_corked_large", MUCH, BOTH, udp::corked_large),
        ("udp_ip_options", ALL, BOTH, udp::ip_options),
        ("udp_mapped", ALL, V4_ONLY, udp::mapped),
        ("udp_multicast", LOOPBACK, V4_ONLY, udp::multicast),
        ("udp_segmented", SEGMENTS, BOTH, udp::segmented),
        ("udp_segmented_and_merged", SEGMENTS, BOTH, udp::segmented_and_merged),
        ("udp_segmented_a_little", SEGMENTS, BOTH, udp::segmented_a_little),
        ("udp_segmented_by_message", SEGMENTS, BOTH, udp::segmented_by_message),
        ("udp_segmented_a_little_and_merged", SEGMENTS, BOTH, udp::segmented_a_little_and_merged),
        ("udp_segmented_tiny", SOFTWARE_GSO, BOTH, udp::segmented_tiny),
        ("udp_segmented_tiny_by_message", SOFTWARE_GSO, BOTH, udp::segmented_tiny_by_message),
        ("udp_path_mtu", NARROW, BOTH, udp::path_mtu),
        ("udp_fragmented_by_the_router", NARROW, V4_ONLY, udp::fragmented_by_the_router),
    ]
};

/// One test: a scenario in a phase, over IPv4 or IPv6.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// Index of [`PHASES`].
    pub(crate) phase: usize,
    pub(crate) family: Family,
    scenario_name: &'static str,
    pub(crate) scenario: Scenario,
}

impl Case {
    /// The name of its test.
    pub(crate) fn name(&self) -> String {
        let family = if self.family == Family::V4 { "v4" } else { "v6" };
        format!("capture::{}_{family}_{}", PHASES[self.phase].name, self.scenario_name)
    }
}

/// All cases, in the order of their phases.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (phase, Phase { groups, .. }) in PHASES.iter().enumerate() {
        for &(scenario_name, scenario_groups, families, scenario) in SCENARIOS {
            if !scenario_groups.iter().any(|group| groups.contains(group)) {
                continue;
            }
            cases.extend(families.iter().map(|&family| Case { phase, family, scenario_name, scenario }));
        }
    }
    cases
}

/// Loopback and the routed network.
pub(crate) struct Networks {
    loopback: Link,
    routed: Routed,
}

impl Networks {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { loopback: loopback()?, routed: Routed::new()? })
    }

    /// Sets the conditions of a phase, and returns its network.
    pub(crate) fn prepare(&self, phase: &Phase) -> Result<&Link> {
        if phase.routed {
            self.routed.set(phase.conditions)?;
            Ok(&self.routed.link)
        } else {
            self.loopback.client.set(phase.conditions)?;
            Ok(&self.loopback)
        }
    }
}

impl Drop for Networks {
    /// Restores loopback for other tests.
    fn drop(&mut self) {
        self.loopback.client.set(PHASES[0].conditions).ok();
    }
}
