//! The document of a flow.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::endpoint::source_and_destination;
use super::{
    Container, Context, ECS_VERSION, Endpoint, ErrorFields, EventFields, Group, Network, Process, System, User,
};
use crate::host::Host;
use crate::host::agent::Agent;
use crate::model::clock::Millis;
use crate::model::flow::{Counters, Flow, Owner};

/// A flow as an ECS document, to be serialized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkFlow<'a> {
    /// The flow's end.
    #[serde(rename = "@timestamp")]
    pub timestamp: Millis,
    /// The kind of document, the times and the outcome of the flow.
    pub event: EventFields,
    /// The end that began the flow.
    pub source: Endpoint,
    /// The other end.
    pub destination: Endpoint,
    /// The same as `source`.
    pub client: Endpoint,
    /// The same as `destination`.
    pub server: Endpoint,
    /// Protocols, direction, and the sum of both directions.
    pub network: Network,
    /// The flow's id, and how much of the flow was seen.
    pub flow: FlowFields,
    /// The process that owns the flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process<'a>>,
    /// The user of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// The group of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// The container of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container<'a>>,
    /// Why the flow failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorFields>,
    /// All addresses and users of the document.
    pub related: Related,
    /// Fields that ECS does not define.
    pub system: System<'a>,
    /// The type of service that the data is about.
    pub service: Service,
    /// The host that was monitored.
    pub host: &'a Host,
    /// The program that made the document.
    pub agent: &'a Agent,
    /// The version of the schema.
    pub ecs: Ecs,
}

/// `flow.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlowFields {
    /// The id of the flow: the same in all documents of this flow, and in no others.
    pub id: String,
    /// Whether the flow has ended: see [`Flow::is_final`](crate::model::flow::Flow::is_final).
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Whether the flow was seen from its first packet on.
    pub complete: bool,
    /// Why packets and bytes may be inexact: see [`Inexact`](crate::model::flow::Inexact).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inexact: Vec<&'static str>,
    /// Outgoing packets that this host dropped. They are not counted in `source`, `destination` or `network`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<DroppedFields>,
}

/// `flow.dropped.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DroppedFields {
    /// IP packets.
    pub packets: u64,
    /// Their bytes: IP header, transport header and payload.
    pub bytes: u64,
}

/// `related.*`: values of several fields in one place, for searches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Related {
    /// The addresses of both ends, each once.
    pub ip: Vec<IpAddr>,
    /// The names of both ends.
    #[serde(serialize_with = "strings", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Arc<str>>,
    /// The user's and the effective user's name, or id.
    #[serde(serialize_with = "strings", skip_serializing_if = "Vec::is_empty")]
    pub user: Vec<Arc<str>>,
}

/// `service.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Service {
    /// `system`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// `ecs.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ecs {
    /// [`ECS_VERSION`].
    pub version: &'static str,
}

impl<'a> NetworkFlow<'a> {
    pub(super) fn new(flow: &'a Flow, context: &Context<'a>) -> Self {
        let (source, destination) = source_and_destination(flow);
        let process = match &flow.owner {
            Owner::Process(process) => Some(&**process),
            Owner::Kernel | Owner::Unknown => None,
        };
        let credentials = process.and_then(|process| process.credentials.as_ref());
        let user = credentials.map(|credentials| User::of(credentials, context.names));
        Self {
            timestamp: context.clock.wall(flow.end).millis(),
            event: EventFields::of(flow, context.clock),
            client: source.clone(),
            server: destination.clone(),
            network: Network::of(flow, context.directions),
            flow: FlowFields {
                id: context.agent.flow_id(flow.number),
                is_final: flow.is_final,
                complete: flow.complete,
                inexact: flow.inexact.reasons().collect(),
                dropped: DroppedFields::of(flow.dropped),
            },
            process: process.map(|process| Process::of(process, context)),
            group: credentials.map(|credentials| Group::of(credentials, context.names)),
            container: process.and_then(Container::of),
            error: ErrorFields::of(flow),
            related: Related::of(&source, &destination, user.as_ref()),
            source,
            destination,
            user,
            system: System::of(flow, context),
            service: Service { kind: "system" },
            host: context.host,
            agent: context.agent,
            ecs: Ecs { version: ECS_VERSION },
        }
    }
}

impl DroppedFields {
    fn of(Counters { packets, bytes }: Counters) -> Option<Self> {
        (packets > 0).then_some(Self { packets, bytes })
    }
}

impl Related {
    fn of(source: &Endpoint, destination: &Endpoint, user: Option<&User>) -> Self {
        let mut ip: Vec<_> = [source.ip, destination.ip].into_iter().filter(|ip| !ip.is_unspecified()).collect();
        ip.dedup();
        let hosts = source.domain.iter().chain(&destination.domain).cloned().collect();
        Self { ip, hosts, user: user.map(User::related).unwrap_or_default() }
    }
}

pub(super) fn strings<S: Serializer>(strings: &[Arc<str>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(strings.iter().map(|string| &**string))
}

#[cfg(test)]
mod tests;
