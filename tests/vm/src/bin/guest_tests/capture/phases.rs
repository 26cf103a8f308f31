//! What is played, and under which conditions.

use std::time::Duration;

use anyhow::Result;

use super::link::{Conditions, Family, Link, Routed, loopback};
use super::sniffer::Learn;
use super::stage::{Expected, Stage};
use super::{tcp, udp};
use crate::helpers::netlink::Faults;

/// Scenarios under the same conditions.
pub(crate) struct Phase {
    name: &'static str,
    /// Over the router, not over loopback.
    pub(crate) routed: bool,
    conditions: Conditions,
    play: &'static [Play],
    /// How many scenarios are played at a time: one, where each is to find an idle machine.
    pub(crate) players: usize,
    pub(crate) learn: Learn,
}

impl Phase {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// How long the last packets may take: where some are lost, they are sent again.
    pub(crate) fn last_packets(&self) -> Duration {
        Duration::from_millis(if self.conditions.faults.is_none() { 200 } else { 700 })
    }
}

/// Which scenarios a phase plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Play {
    /// All, but those whose datagrams the kernel is asked to cut.
    All,
    /// Those that send much.
    Much,
    /// Those for a network with faults.
    Faulty,
    /// Those whose datagrams the kernel is asked to cut.
    Segments,
    /// One that sends both ways at once, some of it.
    BothWays,
    /// Those whose segments only an interface that gets them one by one shows.
    Cut,
    /// Those for a network that has smaller packets farther on.
    Narrow,
    /// Those for a host that talks to itself.
    Alone,
}

/// Every packet is on its own.
pub(crate) const PLAIN: Conditions =
    Conditions { mtu: 1500, far_mtu: 1500, merged_out: false, merged_in: false, cut: false, faults: Faults::NONE };
/// Interfaces carry many packets as one.
pub(crate) const OFFLOADED: Conditions = Conditions { merged_out: true, merged_in: true, ..PLAIN };
const FAULTS: Faults = Faults { delay_ms: 2, loss: 0.02, duplicates: 0.03, reordered: 0.05 };

const PLAYERS: usize = 4;

pub(crate) const PHASES: &[Phase] = &[
    Phase {
        name: "loopback",
        routed: false,
        conditions: Conditions { mtu: 65_536, ..OFFLOADED },
        play: &[Play::All, Play::Alone],
        players: PLAYERS,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "loopback_segmented_datagrams",
        routed: false,
        conditions: OFFLOADED,
        play: &[Play::Segments],
        players: PLAYERS,
        learn: Learn::Udp(udp::SEGMENT),
    },
    Phase {
        name: "loopback_cut_datagrams",
        routed: false,
        conditions: Conditions { cut: true, ..OFFLOADED },
        play: &[Play::Segments, Play::Cut],
        players: PLAYERS,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "loopback_small_packets",
        routed: false,
        conditions: PLAIN,
        play: &[Play::Much],
        players: PLAYERS,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "loopback_offloaded",
        routed: false,
        conditions: OFFLOADED,
        play: &[Play::Much],
        players: PLAYERS,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "veth",
        routed: true,
        conditions: PLAIN,
        play: &[Play::All],
        players: PLAYERS,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "veth_merged",
        routed: true,
        conditions: Conditions { merged_in: true, ..PLAIN },
        play: &[Play::Much],
        players: PLAYERS,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "veth_offloaded",
        routed: true,
        conditions: OFFLOADED,
        play: &[Play::Much],
        players: PLAYERS,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "veth_segmented_datagrams",
        routed: true,
        conditions: OFFLOADED,
        play: &[Play::Segments],
        players: PLAYERS,
        learn: Learn::Udp(udp::SEGMENT),
    },
    Phase {
        name: "veth_cut_datagrams",
        routed: true,
        conditions: Conditions { cut: true, ..OFFLOADED },
        play: &[Play::Segments, Play::Cut],
        players: PLAYERS,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "veth_narrow",
        routed: true,
        conditions: Conditions { far_mtu: 1280, ..PLAIN },
        play: &[Play::Narrow],
        players: PLAYERS,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "veth_faulty",
        routed: true,
        conditions: Conditions { faults: FAULTS, ..PLAIN },
        play: &[Play::Faulty, Play::BothWays],
        players: 1,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "veth_faulty_offloaded",
        routed: true,
        conditions: Conditions { faults: FAULTS, ..OFFLOADED },
        play: &[Play::Faulty],
        players: 1,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "veth_reordered_offloaded",
        routed: true,
        conditions: Conditions { faults: Faults { reordered: 0.25, delay_ms: 2, ..Faults::NONE }, ..OFFLOADED },
        play: &[Play::Faulty],
        players: 1,
        learn: Learn::FromKernel,
    },
    Phase {
        name: "veth_doubled_offloaded",
        routed: true,
        conditions: Conditions { faults: Faults { duplicates: 1.0, ..Faults::NONE }, ..OFFLOADED },
        play: &[Play::Faulty],
        players: 1,
        learn: Learn::FromKernel,
    },
];

/// Packets arrive when a timer says so, while others are sent: then probes are missed.
pub(crate) const HASTY: Phase = Phase {
    name: "hasty",
    routed: true,
    conditions: Conditions { faults: Faults { delay_ms: 2, ..Faults::NONE }, ..PLAIN },
    play: &[],
    players: 1,
    learn: Learn::FromKernel,
};

/// A scenario: it makes traffic and says which flows there were.
pub(crate) type Scenario = fn(&Stage<'_>) -> Result<Vec<Expected>>;

/// What is played: its name, when, and whether it is for IPv4 only.
const SCENARIOS: &[(&str, &[Play], bool, Scenario)] = {
    const ALL: &[Play] = &[Play::All];
    const MUCH: &[Play] = &[Play::All, Play::Much];
    const FAULTY: &[Play] = &[Play::Faulty];
    const ALL_AND_FAULTY: &[Play] = &[Play::All, Play::Faulty];
    const SEGMENTS: &[Play] = &[Play::Segments];
    const CUT: &[Play] = &[Play::Cut];
    const NARROW: &[Play] = &[Play::Narrow];
    const ALONE: &[Play] = &[Play::Alone];
    &[
        ("tcp_nothing_but_a_handshake", ALL, false, tcp::nothing_but_a_handshake),
        ("tcp_client_closes_first", ALL, false, tcp::client_closes_first),
        ("tcp_server_closes_first", ALL, false, tcp::server_closes_first),
        ("tcp_both_close_at_once", ALL, false, tcp::both_close_at_once),
        ("tcp_bulk_to_server", MUCH, false, tcp::bulk_to_server),
        ("tcp_bulk_to_client", MUCH, false, tcp::bulk_to_client),
        ("tcp_bulk_both_ways", MUCH, false, tcp::bulk_both_ways),
        ("tcp_some_to_server", FAULTY, false, tcp::some_to_server),
        ("tcp_some_to_client", FAULTY, false, tcp::some_to_client),
        ("tcp_some_both_ways", &[Play::BothWays], false, tcp::some_both_ways),
        ("tcp_small_messages", ALL_AND_FAULTY, false, tcp::small_messages),
        ("tcp_half_close", ALL, false, tcp::half_close),
        ("tcp_reset_by_client", ALL, false, tcp::reset_by_client),
        ("tcp_reset_by_server", ALL, false, tcp::reset_by_server),
        ("tcp_closed_unread", ALL, false, tcp::closed_unread),
        ("tcp_refused", ALL, false, tcp::refused),
        ("tcp_never_accepted", ALL, false, tcp::never_accepted),
        ("tcp_zero_window", ALL, false, tcp::zero_window),
        ("tcp_keepalive", ALL, false, tcp::keepalive),
        ("tcp_urgent_data", ALL, false, tcp::urgent_data),
        ("tcp_sent_file", MUCH, false, tcp::sent_file),
        ("tcp_spliced", MUCH, false, tcp::spliced),
        ("tcp_without_copies", MUCH, false, tcp::without_copies),
        ("tcp_ip_options", MUCH, false, tcp::ip_options),
        ("tcp_mapped", ALL, true, tcp::mapped),
        ("udp_connected", ALL, false, udp::connected),
        ("udp_unconnected", ALL, false, udp::unconnected),
        ("udp_several_remotes", ALL, false, udp::several_remotes),
        ("udp_connected_twice", ALL, false, udp::connected_twice),
        ("udp_large", MUCH, false, udp::large),
        ("udp_many", ALL, false, udp::many),
        ("udp_unhurried", FAULTY, false, udp::unhurried),
        ("udp_more_than_fits", ALL, false, udp::more_than_fits),
        ("udp_closed_port", ALL, false, udp::closed_port),
        ("udp_too_large_to_send", ALL, false, udp::too_large_to_send),
        ("udp_corked", ALL, false, udp::corked),
        ("udp_corked_large", MUCH, false, udp::corked_large),
        ("udp_ip_options", ALL, false, udp::ip_options),
        ("udp_mapped", ALL, true, udp::mapped),
        ("udp_multicast", ALONE, true, udp::multicast),
        ("udp_segmented", SEGMENTS, false, udp::segmented),
        ("udp_segmented_and_merged", SEGMENTS, false, udp::segmented_and_merged),
        ("udp_segmented_a_little", SEGMENTS, false, udp::segmented_a_little),
        ("udp_segmented_by_message", SEGMENTS, false, udp::segmented_by_message),
        ("udp_segmented_a_little_and_merged", SEGMENTS, false, udp::segmented_a_little_and_merged),
        ("udp_segmented_tiny", CUT, false, udp::segmented_tiny),
        ("udp_segmented_tiny_by_message", CUT, false, udp::segmented_tiny_by_message),
        ("udp_path_mtu", NARROW, false, udp::path_mtu),
        ("udp_cut_on_the_way", NARROW, true, udp::cut_on_the_way),
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
    for (phase, Phase { play, .. }) in PHASES.iter().enumerate() {
        for &(scenario_name, plays, v4_only, scenario) in SCENARIOS {
            if !plays.iter().any(|wanted| play.contains(wanted)) {
                continue;
            }
            let families: &[_] = if v4_only { &[Family::V4] } else { &[Family::V4, Family::V6] };
            cases.extend(families.iter().map(|&family| Case { phase, family, scenario_name, scenario }));
        }
    }
    cases
}

/// All networks.
pub(crate) struct Networks {
    loopback: Link,
    routed: Routed,
}

impl Networks {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { loopback: loopback()?, routed: Routed::new()? })
    }

    /// The network of a phase, in the state that it wants.
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
    /// Other tests find loopback as it was.
    fn drop(&mut self) {
        self.loopback.client.set(PHASES[0].conditions).ok();
    }
}
