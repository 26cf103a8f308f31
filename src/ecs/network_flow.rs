//! The document of a flow.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::endpoint::source_and_destination;
use super::{
    Container, Context, ECS_VERSION, Endpoint, ErrorFields, EventFields, Group, Network, Process, System, User,
};
use crate::agent::Agent;
use crate::clock::Millis;
use crate::flow::{Counters, Flow, Owner};
use crate::host::Host;

/// A flow as an ECS document. Serialize it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkFlow<'a> {
    /// The flow's end.
    #[serde(rename = "@timestamp")]
    pub timestamp: Millis,
    /// What the document is, and when and how the flow went.
    pub event: EventFields,
    /// Who began the flow.
    pub source: Endpoint,
    /// Whom it went to.
    pub destination: Endpoint,
    /// The same as `source`.
    pub client: Endpoint,
    /// The same as `destination`.
    pub server: Endpoint,
    /// Protocols, direction, and both ways' sum.
    pub network: Network,
    /// Which flow it is, and how much of it was seen.
    pub flow: FlowFields,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process<'a>>,
    /// Who that acted as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// Who that acted as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// Where it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container<'a>>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorFields>,
    /// All addresses and users of the document.
    pub related: Related,
    /// What ECS has no name for.
    pub system: System<'a>,
    /// What kind of service the data is of.
    pub service: Service,
    /// Where it was seen.
    pub host: &'a Host,
    /// Who saw it.
    pub agent: &'a Agent,
    /// The schema.
    pub ecs: Ecs,
}

/// `flow.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlowFields {
    /// Names the flow: the same in each of its documents, and in no other's.
    pub id: String,
    /// Whether this is its last document.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Whether it was watched from its first packet on.
    pub complete: bool,
    /// Why its packets and bytes may not be exact: see [`Inexact`](crate::flow::Inexact).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inexact: Vec<&'static str>,
    /// Outgoing packets that this host dropped; they count nowhere else.
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

/// `related.*`: for searches that do not care for the place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Related {
    /// Both addresses; one, when a host talks to itself.
    pub ip: Vec<IpAddr>,
    /// The names looked up.
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

fn strings<S: Serializer>(strings: &[Arc<str>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(strings.iter().map(|string| &**string))
}

#[cfg(test)]
mod tests;
