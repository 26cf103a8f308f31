//! `source` and `destination`, which `client` and `server` repeat.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::model::flow;
use crate::model::flow::{Counters, Direction, Flow};

/// One end of a flow, with what it sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Its address; left out if it never had one.
    #[serde(skip_serializing_if = "IpAddr::is_unspecified")]
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
    /// The name that the flow's owner looked up to get this address.
    #[serde(serialize_with = "super::identity::name", skip_serializing_if = "Option::is_none")]
    pub domain: Option<Arc<str>>,
    /// IP packets it sent.
    pub packets: u64,
    /// Bytes it sent: IP header, transport header and payload.
    pub bytes: u64,
}

impl Endpoint {
    fn new(end: flow::Endpoint, domain: Option<Arc<str>>, sent: Counters) -> Self {
        Self { ip: end.ip, port: end.port, domain, packets: sent.packets, bytes: sent.bytes }
    }
}

/// The source, which is the end that began the flow, and the destination.
///
/// If the beginning was not seen, the end with the lower port is the destination.
pub(super) fn source_and_destination(flow: &Flow) -> (Endpoint, Endpoint) {
    let local = Endpoint::new(flow.local, None, flow.sent);
    let remote = Endpoint::new(flow.remote, flow.domain.clone(), flow.received);
    let remote_began = match flow.direction {
        Direction::Ingress => true,
        Direction::Egress => false,
        Direction::Unknown => local.port < remote.port,
    };
    if remote_began { (remote, local) } else { (local, remote) }
}
