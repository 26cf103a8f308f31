//! `network.*`.

use std::net::IpAddr;

use serde::Serialize;

use super::Directions;
use super::identity::as_string;
use crate::model::flow::{Direction, Flow, Transport};

/// `network.*` of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    /// `ingress`, `egress` or `unknown`; [`Directions::Inbound`] has other names for the first two.
    pub direction: &'static str,
    /// `ipv4` or `ipv6`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `tcp` or `udp`.
    pub transport: Transport,
    /// The IANA protocol number, written as a string.
    #[serde(serialize_with = "as_string")]
    pub iana_number: u8,
    /// IP packets in both directions.
    pub packets: u64,
    /// Bytes in both directions.
    pub bytes: u64,
    /// The [Community ID](https://github.com/corelight/community-id-spec), version 1, seed 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub community_id: Option<String>,
}

impl Network {
    pub(super) fn of(flow: &Flow, directions: Directions) -> Self {
        Self {
            direction: direction(flow.direction, directions),
            kind: if flow.local.ip.is_ipv4() { "ipv4" } else { "ipv6" },
            transport: flow.transport,
            iana_number: flow.transport.iana_number(),
            packets: flow.sent.packets.saturating_add(flow.received.packets),
            bytes: flow.sent.bytes.saturating_add(flow.received.bytes),
            community_id: community_id(flow),
        }
    }
}

fn direction(direction: Direction, names: Directions) -> &'static str {
    match (direction, names) {
        (Direction::Unknown, _) => "unknown",
        (Direction::Ingress, Directions::Ingress) => "ingress",
        (Direction::Egress, Directions::Ingress) => "egress",
        (Direction::Ingress, Directions::Inbound) => "inbound",
        (Direction::Egress, Directions::Inbound) => "outbound",
    }
}

/// The Community ID, which is the same for both ends. The addresses must be canonical, because the crate hashes an
/// IPv4-mapped address as IPv6.
fn community_id(flow: &Flow) -> Option<String> {
    let canonical = |ip: IpAddr| ip.to_canonical();
    community_id::calculate_community_id(
        0,
        canonical(flow.local.ip),
        canonical(flow.remote.ip),
        Some(flow.local.port),
        Some(flow.remote.port),
        flow.transport.iana_number(),
        false,
    )
    .ok()
}
